//! Parquet, as the hub converts every data set to it.

use super::{Place, Take, record};
use crate::error::{Result, RetrieverError};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// Hands every row to `take`; the file's sha256.
pub fn records(path: &Path, take: Take<'_>) -> Result<String> {
    let file = File::open(path).map_err(RetrieverError::open("corpus", path))?;
    // the reader trusts lengths inside a file; whatever it does with damaged ones is the file's fault
    let read = catch_unwind(AssertUnwindSafe(|| rows(path, file, take)));
    read.unwrap_or_else(|_| Err(damaged(path, "it is damaged")))?;
    Ok(s3_artifacts::digest_file(path)?)
}

fn damaged(path: &Path, reason: &str) -> RetrieverError {
    RetrieverError::content(path, format!("not a readable Parquet file ({reason}); fetch it again"))
}

fn rows(path: &Path, file: File, take: Take<'_>) -> Result<()> {
    let bad = |error: parquet::errors::ParquetError| damaged(path, &error.to_string().replace('\n', " "));
    let reader = SerializedFileReader::new(file).map_err(bad)?;
    for (row, number) in reader.get_row_iter(None).map_err(bad)?.zip(1..) {
        if !take(Place { path, number }, None)? {
            return Ok(());
        }
        let place = Place { path, number };
        let entry = record::entry(fields(&row.map_err(bad)?)).map_err(|reason| place.bad(reason))?;
        take(place, Some(entry))?;
    }
    Ok(())
}

/// Columns with one value each; a column `metadata` with members of its own stays an object.
fn fields(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Group(group) => Value::Object(fields(group)),
        // lists, dates and bytes are nothing that a passage is made of
        other => s3_questions::scalar(other).unwrap_or_default(),
    }
}
