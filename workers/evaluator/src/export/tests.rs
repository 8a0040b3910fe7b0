//! Every format holds every row and gives back what was put in.
#![allow(clippy::unwrap_used)]

use super::frame::{Cell, Kind};
use super::*;
use crate::report::samples;
use crate::summary::summarise;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::Field;

fn frame() -> Frame {
    let mut frame = Frame::new(&[("a|b", Kind::Text), ("n", Kind::Whole), ("x", Kind::Real), ("y", Kind::Truth)]);
    frame.rows.push(vec!["say \"no\", twice\n".into(), 7usize.into(), 0.1.into(), true.into()]);
    frame.rows.push(vec![Cell::Null, Cell::Null, Cell::Null, Cell::Null]);
    frame.rows.push(vec!["50 % & a_b é−".into(), 0usize.into(), (-2.5).into(), false.into()]);
    frame
}

#[test]
fn formats_keep_every_value() {
    let text = |format| String::from_utf8(write(&frame(), format).unwrap()).unwrap();
    let csv = text(Format::Csv);
    assert_eq!(csv, "a|b,n,x,y\r\n\"say \"\"no\"\", twice\n\",7,0.1,true\r\n,,,\r\n50 % & a_b é−,0,-2.5,false\r\n");
    let json: Value = serde_json::from_str(&text(Format::Json)).unwrap();
    assert_eq!(json[0], serde_json::json!({"a|b": "say \"no\", twice\n", "n": 7, "x": 0.1, "y": true}));
    assert!(json[1]["n"].is_null() && json.as_array().unwrap().len() == 3);
    let markdown = text(Format::Markdown);
    assert_eq!(markdown.lines().count(), 5);
    assert!(markdown.starts_with("| a\\|b | n | x | y |\n|---|---:|---:|---:|\n"), "{markdown}");
    let latex = text(Format::Latex);
    assert!(
        latex.contains("50 \\% \\& a\\_b é$-$ & 0 & $-$2.5000 & false \\\\") && latex.contains("{lrrr}"),
        "{latex}"
    );
    let bytes = write(&frame(), Format::Parquet).unwrap();
    let reader = SerializedFileReader::new(::bytes::Bytes::from(bytes)).unwrap();
    let rows: Vec<Vec<Field>> = reader
        .get_row_iter(None)
        .unwrap()
        .map(|row| row.unwrap().get_column_iter().map(|(_, field)| field.clone()).collect())
        .collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(
        rows[0],
        [Field::Str("say \"no\", twice\n".into()), Field::Long(7), Field::Double(0.1), Field::Bool(true)]
    );
    assert!(rows[1].iter().all(|field| *field == Field::Null));
}

#[test]
fn an_evaluation_is_exported_whole() {
    let config = samples::config();
    let results = samples::results(&config);
    let summary = summarise(&config, &results).unwrap();
    let identity = serde_json::json!({"arm direct": {"method": "Direct"}, "arm rag": {"method": "Rag"}});
    let json = |what| -> Value {
        serde_json::from_slice(&export(&results, &identity, &summary, what, Format::Json).unwrap()).unwrap()
    };
    let questions = json(What::Questions);
    assert_eq!(questions.as_array().unwrap().len(), 18, "three arms, six questions, the last one too");
    let s3: Vec<&Value> = questions.as_array().unwrap().iter().filter(|row| row["arm"] == "s3").collect();
    assert!(s3.iter().all(|row| row["closed_book_correct"] == false && row["searcher_tokens"] == 2));
    assert_eq!(s3.iter().filter(|row| row["gain"] == 1.0).count(), 2);
    assert!(questions[0]["searcher_tokens"].is_null() && questions[0]["gold_answers"].is_string());
    assert_eq!(json(What::Table).as_array().unwrap().len(), 9);
    let pairs = json(What::Pairs);
    assert_eq!(pairs.as_array().unwrap().len(), 2 + 4, "two against rag: over all, and in each of two datasets");
    assert!(pairs[0]["p_corrected"].as_f64() >= pairs[0]["p_mcnemar"].as_f64());
    let contexts = json(What::Contexts);
    let rag = contexts.as_array().unwrap().iter().find(|row| row["arm"] == "rag" && row["dataset"] == "all").unwrap();
    assert_eq!((rag["samples"].as_u64(), rag["of"].as_str()), (Some(6), Some("context")));
    let matrix = export(&results, &identity, &summary, What::Matrix, Format::Markdown).unwrap();
    let matrix = String::from_utf8(matrix).unwrap();
    assert!(matrix.contains("| a (n = 3) | b (n = 3) | all (n = 6) |"), "{matrix}");
    assert!(matrix.contains("| s3 | GBR |") && !matrix.contains("| rag | GBR |"), "{matrix}");
    assert_eq!(summary.by_dataset.len(), 4);
}

#[test]
fn the_reference_reads_its_own_files() {
    let results = samples::results(&samples::config());
    let dir = tempfile::tempdir().unwrap();
    let written = reference::write(&results, "s3", dir.path()).unwrap();
    assert_eq!((written.files.len(), written.replaced), (3, 0));
    let read =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(dir.path().join(name)).unwrap()).unwrap() };
    let contexts = read("a_output_sequences.json");
    let question = &results.questions.questions[0].question;
    assert!(contexts[question]["context_with_info"].as_str().unwrap().starts_with("Doc 1 (Title: "));
    assert_eq!(contexts.as_object().unwrap().len(), 3);
    assert_eq!(read("result.json")["a"][question]["score"], 1);
    assert!(reference::write(&results, "nobody", dir.path()).is_err());
}
