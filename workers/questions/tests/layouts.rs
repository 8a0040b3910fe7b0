//! Every layout gives the same questions, the last one too; what cannot be asked is refused by name.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/released.rs"]
mod released;

use s3_config::{DatasetConfig, QuestionFields};
use s3_questions::{Asked, QuestionError, read, sets};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

fn dataset(path: &Path) -> DatasetConfig {
    DatasetConfig { name: "d".into(), path: path.to_owned(), ..DatasetConfig::default() }
}

fn of(text: &str, dataset: DatasetConfig) -> Result<Vec<Asked>, QuestionError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("questions");
    std::fs::write(&path, text).unwrap();
    read(&DatasetConfig { path, ..dataset })
}

fn plain(text: &str) -> Vec<Asked> {
    of(text, dataset(Path::new(""))).unwrap()
}

fn refused(text: &str) -> String {
    of(text, dataset(Path::new(""))).unwrap_err().to_string()
}

fn lines(rows: &[Value]) -> String {
    rows.iter().map(|row| row.to_string() + "\n").collect()
}

#[test]
fn every_layout_of_a_row() {
    let wanted = ["Paris", "City of Light"];
    for row in [
        json!({"id": "7", "question": "q?", "answers": wanted}),
        // FlashRAG
        json!({"id": "7", "question": "q?", "golden_answers": wanted, "metadata": {}}),
        // Search-R1 and s3
        json!({"data_source": "nq", "question": "q?", "ability": "fact-reasoning", "extra_info": {"index": 7, "split": "test"},
               "reward_model": {"style": "rule", "ground_truth": {"target": wanted}}}),
        json!({"data_source": "nq", "prompt": [{"role": "user", "content": "Answer the given question. Question: q?\n"}],
               "reward_model": {"ground_truth": {"target": wanted}}, "extra_info": {"index": 7}}),
        json!({"prompt": [{"role": "user", "content": "Do it. <question>\nq?\n</question>\n<information>\nDoc 1"}],
               "reward_model": {"ground_truth": {"target": wanted}}, "extra_info": {"index": 7}}),
        // the sets' own releases
        json!({"question_id": "7", "question": "q?", "answer": {"value": "Paris", "aliases": ["Paris", "City of Light"], "type": "x"}}),
        json!({"id": 7, "question": "q?", "possible_answers": "[\"Paris\", \"City of Light\"]"}),
        json!({"id": "7", "question": "q?", "answer": "Paris", "answer_aliases": ["City of Light"], "paragraphs": []}),
        json!({"id": "7", "question": "q?", "answers": {"text": wanted, "answer_start": [1, 2]}}),
        json!({"id": "7", "question": "q?", "answer": wanted}),
    ] {
        let found = plain(&lines(std::slice::from_ref(&row)));
        assert_eq!((found[0].question.id.as_str(), found[0].question.question.as_str()), ("7", "q?"), "{row}");
        assert_eq!(found[0].question.answers, wanted, "{row}");
    }
    // cube: one text, two names
    for name in ["answer", "gold_ans"] {
        let found = plain(&json!([{"question": "q?", name: "Paris", "context": "c"}]).to_string());
        assert_eq!((found[0].question.id.as_str(), &found[0].question.answers[..]), ("d-0", &["Paris".to_owned()][..]));
    }
    let found = plain(&lines(&[json!({"Question": "q?", "Answer": true}), json!({"question": "r", "answer": 4})]));
    assert_eq!((found[0].question.answers[0].as_str(), found[1].question.answers[0].as_str()), ("yes", "4"));
}

#[test]
fn evidence_is_what_the_sets_mark() {
    for row in [
        json!({"question": "q", "answer": "a", "supporting_facts": [["A", 0], ["B", 1], ["A", 2]]}),
        json!({"question": "q", "golden_answers": ["a"], "metadata": {"supporting_facts": {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}}}),
        json!({"question": "q", "answer": "a", "paragraphs": [{"title": "A", "is_supporting": true}, {"title": "C", "is_supporting": false}, {"title": "B", "is_supporting": true}]}),
        json!({"question": "q", "answer": "a", "evidence": ["A", "B"]}),
    ] {
        assert_eq!(plain(&lines(std::slice::from_ref(&row)))[0].evidence, ["A", "B"], "{row}");
    }
}

#[test]
fn mirage_asks_with_options_and_knows_its_five_sets() {
    let benchmark = json!({
        "medqa": {"0": {"question": "Which?", "options": {"A": "heart", "B": "liver"}, "answer": "B"}},
        "pubmedqa": {"9": {"question": "Is it?", "options": {"A": "yes", "B": "no", "C": "maybe"}, "answer": "A"}},
    });
    let all = plain(&benchmark.to_string());
    assert_eq!(all.len(), 2);
    assert_eq!(all[0].question.question, "Which?\nOptions:\nA: heart\nB: liver");
    assert_eq!(all[0].question.answers, ["B: liver", "liver"]);
    // written over many lines, too
    let pretty = serde_json::to_string_pretty(&benchmark).unwrap();
    let set = DatasetConfig { set: Some("PubMedQa".into()), ..dataset(Path::new("")) };
    let one = of(&pretty, set).unwrap();
    assert_eq!((one.len(), one[0].question.id.as_str()), (1, "9"));
    assert_eq!(one[0].question.answers, ["A: yes", "yes"]);
    let none = DatasetConfig { set: Some("Mmlu".into()), ..dataset(Path::new("")) };
    assert!(of(&pretty, none).unwrap_err().to_string().contains("no question here"));
    assert!(
        refused(&json!([{"question": "q", "options": {"A": "x"}, "answer": "E"}]).to_string())
            .contains("none of the options")
    );
}

#[test]
fn columns_can_be_named() {
    let fields = QuestionFields {
        id: Some("meta.key".into()),
        question: Some("text".into()),
        answers: Some("truth.short".into()),
        evidence: Some("pages".into()),
        ..QuestionFields::default()
    };
    let row =
        json!({"meta": {"key": 3}, "text": " q ", "question": "not this", "truth": {"short": "a"}, "pages": ["P"]});
    let found = of(&lines(std::slice::from_ref(&row)), DatasetConfig { fields, ..dataset(Path::new("")) }).unwrap();
    assert_eq!(found[0].question.id, "3");
    assert_eq!(
        (found[0].question.question.as_str(), &found[0].question.answers[..], &found[0].evidence[..]),
        ("q", &["a".to_owned()][..], &["P".to_owned()][..])
    );
    let fields = QuestionFields { answers: Some("nowhere".into()), ..QuestionFields::default() };
    let error = of(&lines(&[row]), DatasetConfig { fields, ..dataset(Path::new("")) }).unwrap_err().to_string();
    assert!(error.contains("line 1") && error.contains("`nowhere`"), "{error}");
}

#[test]
fn rows_are_kept_in_order_and_bad_ones_named() {
    let row = |at: usize| json!({"id": "same", "question": format!("q{}", at / 2), "answers": ["a"]});
    // a blank line, equal ids, equal questions, no newline at the end
    let text = format!("{}\n\n{}", lines(&[row(0), row(1)]).trim_end(), row(2));
    let found = plain(&text);
    assert_eq!(found.len(), 3, "the last one, too");
    assert!(found.iter().all(|one| one.question.id == "same"));
    let numbered = plain(&lines(&[json!({"question": "a", "answer": "x"}), json!({"question": "b", "answer": "y"})]));
    assert_eq!(numbered.iter().map(|one| one.question.id.as_str()).collect::<Vec<_>>(), ["d-0", "d-1"]);
    for (text, said) in [
        (lines(&[row(0), json!({"id": "1", "question": "q"})]), "line 2: no gold answers; there are id, question"),
        (lines(&[json!({"id": "1", "answers": ["a"]})]), "no question"),
        (lines(&[json!({"id": [1], "question": "q", "answers": ["a"]})]), "neither a text nor a number"),
        ("{\"id\": 1}\n{broken\n".into(), "no question"),
        (format!("{}{{broken\n", lines(&[row(0)])), "line 2"),
        (String::new(), "no question here"),
        ("[1, 2".into(), "not JSON"),
    ] {
        assert!(refused(&text).contains(said), "{text:?}: {}", refused(&text));
    }
}

#[test]
fn the_released_parquet_is_read_by_set_and_packed_lines_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("test_e5_s3.parquet");
    let rows: Vec<released::Row> = (0..40)
        .map(|at| released::Row {
            source: ["nq", "triviaqa"][at % 2],
            question: format!("what is {at}?"),
            answers: (0..=at % 3).map(|n| format!("answer {at} {n}")).collect(),
            initial: "Doc 1 (Title: \"T\") text\n".repeat(3),
        })
        .collect();
    released::write(&path, &rows);
    let all = read(&dataset(&path)).unwrap();
    assert_eq!(all.len(), 40);
    assert_eq!(all[39].question.answers, rows[39].answers, "the last row");
    assert_eq!(all[5].question.id, "test_5");
    let set = |name: &str| DatasetConfig { set: Some(name.into()), ..dataset(&path) };
    let nq = read(&set("Nq")).unwrap();
    assert_eq!((nq.len(), nq[1].question.question.as_str()), (20, "what is 2?"));
    assert!(read(&set("PopQa")).unwrap_err().to_string().contains("40 belong to others"));
    assert!(read(&set("Unknown")).is_err());
    assert_eq!(read(&DatasetConfig { split: Some("test".into()), ..set("Nq") }).unwrap().len(), 20);
    assert!(read(&DatasetConfig { split: Some("train".into()), ..set("Nq") }).is_err());

    // damaged files are refused and never crash
    let bytes = std::fs::read(&path).unwrap();
    for at in (8..bytes.len()).step_by(bytes.len() / 60) {
        let mut broken = bytes.clone();
        broken[at] ^= 0x5a;
        std::fs::write(dir.path().join("broken"), &broken).unwrap();
        let _ = read(&dataset(&dir.path().join("broken")));
    }

    let packed = dir.path().join("dev.jsonl.gz");
    let mut pack = flate2::write::GzEncoder::new(std::fs::File::create(&packed).unwrap(), flate2::Compression::fast());
    pack.write_all(lines(&[json!({"question": "q", "golden_answers": ["a"]})]).as_bytes()).unwrap();
    pack.finish().unwrap();
    assert_eq!(read(&dataset(&packed)).unwrap().len(), 1);
}

#[test]
fn sets_are_known_by_what_people_call_them() {
    for (name, set) in [
        ("nq-test", "Nq"),
        ("NQ", "Nq"),
        ("triviaqa_test", "TriviaQa"),
        ("2wikimultihopqa", "TwoWiki"),
        ("TwoWiki", "TwoWiki"),
        ("bioasq", "BioAsq"),
    ] {
        assert_eq!(sets::guessed(name).map(|set| set.name), Some(set), "{name}");
    }
    for name in ["nqx", "web", ""] {
        assert_eq!(sets::guessed(name), None, "{name}");
    }
    assert!(sets::SETS.iter().all(|set| sets::named(set.name) == Some(set)));
}
