//! Rows of Parquet files, lists and groups too.

use crate::error::QuestionError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Columns that no question is made of, and that hold most of the bytes of the released files.
const HEAVY: [&str; 1] = ["initial_searched_results"];

/// Hands every row to `take`.
pub fn rows<E: From<QuestionError>>(
    path: &Path,
    file: File,
    mut take: impl FnMut(Value, usize) -> Result<(), E>,
) -> Result<(), E> {
    let damaged = |reason: &str| QuestionError::File {
        path: path.to_owned(),
        reason: format!("not a readable Parquet file ({reason}); fetch it again"),
    };
    // the reader trusts lengths inside a file; whatever it does with damaged ones is the file's fault
    let guarded = |what: &mut dyn FnMut() -> Option<Result<Row, parquet::errors::ParquetError>>| {
        catch_unwind(AssertUnwindSafe(what)).map_err(|_| damaged("it is damaged"))
    };
    let open = || -> Result<_, parquet::errors::ParquetError> {
        let reader = SerializedFileReader::new(file)?;
        let schema = reader.metadata().file_metadata().schema();
        let kept = schema.get_fields().iter().filter(|field| !HEAVY.contains(&field.name())).cloned().collect();
        let projection = parquet::schema::types::Type::group_type_builder(schema.name()).with_fields(kept).build()?;
        parquet::record::reader::RowIter::from_file_into(Box::new(reader)).project(Some(projection))
    };
    let opened = catch_unwind(AssertUnwindSafe(open)).map_err(|_| damaged("it is damaged"))?;
    let mut rows = opened.map_err(|error| damaged(&error.to_string()))?;
    let mut number = 0;
    while let Some(row) = guarded(&mut || rows.next())? {
        number += 1;
        let row = row.map_err(|error| damaged(&error.to_string()))?;
        take(Value::Object(object(row.get_column_iter())), number)?;
    }
    Ok(())
}

fn object<'a>(fields: impl Iterator<Item = (&'a String, &'a Field)>) -> Map<String, Value> {
    fields.map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Group(group) => Value::Object(object(group.get_column_iter())),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let text = |key: &Field| match key {
                Field::Str(text) => text.clone(),
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(key, inside)| (text(key), value(inside))).collect())
        }
        // written by tools that leave the text's mark out
        Field::Bytes(bytes) => Value::String(String::from_utf8_lossy(bytes.data()).into_owned()),
        // dates and decimals are nothing that a question is made of
        other => scalar(other).unwrap_or_default(),
    }
}

/// A text, a truth value or a number.
pub fn scalar(field: &Field) -> Option<Value> {
    Some(match field {
        Field::Str(text) => Value::String(text.clone()),
        Field::Bool(yes) => Value::Bool(*yes),
        Field::Byte(number) => (*number).into(),
        Field::Short(number) => (*number).into(),
        Field::Int(number) => (*number).into(),
        Field::Long(number) => (*number).into(),
        Field::UByte(number) => (*number).into(),
        Field::UShort(number) => (*number).into(),
        Field::UInt(number) => (*number).into(),
        Field::ULong(number) => (*number).into(),
        Field::Float(number) => (*number).into(),
        Field::Double(number) => (*number).into(),
        _ => return None,
    })
}
