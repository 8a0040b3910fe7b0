//! Parquet files in the layout of the reference's released ones (`test_e5_s3.parquet`), as pandas and the hub's
//! `datasets` write it.

use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use std::path::Path;
use std::sync::Arc;

const SCHEMA: &str = "message schema {
  optional binary id (UTF8);
  optional binary question (UTF8);
  optional group golden_answers (LIST) { repeated group list { optional binary element (UTF8); } }
  optional binary initial_searched_results (UTF8);
  optional binary data_source (UTF8);
  optional group prompt (LIST) { repeated group list { optional group element {
    optional binary content (UTF8); optional binary role (UTF8); } } }
  optional binary ability (UTF8);
  optional group reward_model {
    optional group ground_truth {
      optional group gt_docs (LIST) { repeated group list { optional binary element (UTF8); } }
      optional binary question (UTF8);
      optional group target (LIST) { repeated group list { optional binary element (UTF8); } }
    }
    optional binary style (UTF8);
  }
  optional group extra_info { optional int64 index; optional binary split (UTF8); }
}";

/// One row of the file.
pub struct Row {
    pub source: &'static str,
    pub question: String,
    pub answers: Vec<String>,
    pub initial: String,
}

/// Writes the file.
pub fn write(path: &Path, rows: &[Row]) {
    let schema = Arc::new(parquet::schema::parser::parse_message_type(SCHEMA).unwrap());
    let properties = WriterProperties::builder().set_compression(parquet::basic::Compression::SNAPPY).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let one = |text: &str| vec![text.to_owned()];
    let prompt = |row: &Row| {
        format!(
            "You search for a generator. The real question and its first results follow.\n<question>\n{}\n</question>\n<information>\n{}</information>",
            row.question, row.initial
        )
    };
    texts(&mut group, 1, None, rows.iter().enumerate().map(|(at, _)| vec![format!("test_{at}")]));
    texts(&mut group, 1, None, rows.iter().map(|row| one(&row.question)));
    texts(&mut group, 3, Some(1), rows.iter().map(|row| row.answers.clone()));
    texts(&mut group, 1, None, rows.iter().map(|row| one(&row.initial)));
    texts(&mut group, 1, None, rows.iter().map(|row| one(row.source)));
    texts(&mut group, 4, Some(1), rows.iter().map(|row| vec![prompt(row)]));
    texts(&mut group, 4, Some(1), rows.iter().map(|_| one("user")));
    texts(&mut group, 1, None, rows.iter().map(|_| one("fact-reasoning")));
    texts(&mut group, 5, Some(3), rows.iter().map(|_| Vec::new()));
    texts(&mut group, 3, None, rows.iter().map(|row| one(&row.question)));
    texts(&mut group, 5, Some(3), rows.iter().map(|row| row.answers.clone()));
    texts(&mut group, 2, None, rows.iter().map(|_| one("rule")));
    let mut column = group.next_column().unwrap().unwrap();
    let places: Vec<i64> = (0..rows.len() as i64).collect();
    column.typed::<Int64Type>().write_batch(&places, Some(&vec![2; rows.len()]), None).unwrap();
    column.close().unwrap();
    texts(&mut group, 2, None, rows.iter().map(|_| one("test")));
    assert!(group.next_column().unwrap().is_none(), "every column of the schema");
    group.close().unwrap();
    writer.close().unwrap();
}

/// The next column. `full` is the definition level of a value; of a list, `list` is the level at which an empty one is
/// defined.
fn texts<W: std::io::Write + Send>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    full: i16,
    list: Option<i16>,
    rows: impl Iterator<Item = Vec<String>>,
) {
    let (mut values, mut definitions, mut repetitions) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        if row.is_empty() {
            definitions.push(list.unwrap());
            repetitions.push(0);
        }
        for (at, text) in row.into_iter().enumerate() {
            values.push(ByteArray::from(text.as_str()));
            definitions.push(full);
            repetitions.push(i16::from(at > 0));
        }
    }
    let mut column = group.next_column().unwrap().unwrap();
    let repetitions = list.map(|_| repetitions.as_slice());
    column.typed::<ByteArrayType>().write_batch(&values, Some(&definitions), repetitions).unwrap();
    column.close().unwrap();
}
