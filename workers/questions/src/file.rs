//! Rows of JSON lines, JSON and Parquet.

use crate::error::QuestionError;
use crate::sets::Set;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek};
use std::path::Path;

/// Hands every row to `take`, with its number from 1: of JSON lines the line's, else the row's.
pub fn rows<E: From<QuestionError>>(
    path: &Path,
    set: Option<&Set>,
    mut take: impl FnMut(Value, usize) -> Result<(), E>,
) -> Result<(), E> {
    let io = |source| QuestionError::Io { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(io)?;
    let mut start = Vec::new();
    file.by_ref().take(4).read_to_end(&mut start).map_err(io)?;
    file.rewind().map_err(io)?;
    if start == b"PAR1" {
        return crate::parquet::rows(path, file, take);
    }
    let plain: Box<dyn Read> = if start.starts_with(&[0x1f, 0x8b]) {
        Box::new(flate2::read::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let mut lines = BufReader::new(plain);
    let first = loop {
        let seen = lines.fill_buf().map_err(io)?;
        match seen.iter().find(|byte| !byte.is_ascii_whitespace()) {
            Some(byte) => break Some(*byte),
            None if seen.is_empty() => break None,
            None => {
                let length = seen.len();
                lines.consume(length);
            }
        }
    };
    if first == Some(b'[') {
        return whole(path, lines, String::new(), set, take);
    }
    let mut text = String::new();
    let mut number = 0;
    while lines.read_line(&mut text).map_err(io)? > 0 {
        number += 1;
        if text.trim().is_empty() {
            text.clear();
            continue;
        }
        match serde_json::from_str::<Value>(&text) {
            // one document that holds the set, on one line or on many
            Ok(value) if number == 1 && nested(&value) => return documents(path, value, set, &mut take),
            Ok(value) => take(value, number)?,
            Err(error) if number == 1 && error.is_eof() => return whole(path, lines, text, set, take),
            Err(error) => {
                return Err(QuestionError::Row { path: path.to_owned(), number, reason: error.to_string() }.into());
            }
        }
        text.clear();
    }
    Ok(())
}

fn whole<E: From<QuestionError>>(
    path: &Path,
    mut rest: impl Read,
    mut text: String,
    set: Option<&Set>,
    mut take: impl FnMut(Value, usize) -> Result<(), E>,
) -> Result<(), E> {
    rest.read_to_string(&mut text).map_err(|source| QuestionError::Io { path: path.to_owned(), source })?;
    let value = serde_json::from_str(&text)
        .map_err(|error| QuestionError::File { path: path.to_owned(), reason: format!("not JSON: {error}") })?;
    documents(path, value, set, &mut take)
}

/// An object whose members are sets or rows, not a row itself.
fn nested(value: &Value) -> bool {
    let has = |name: &str| value.get(name).is_some_and(|inside| inside.is_array() || inside.is_object());
    let row = ["question", "Question", "query", "reward_model", "prompt"].iter().any(|name| value.get(name).is_some());
    !row && value.as_object().is_some_and(|map| has("data") || has("Data") || map.values().all(Value::is_object))
}

/// Rows of one document: a list, a list under `data`, MIRAGE's `{set: {id: row}}`, or the reference's
/// `{question: {golden_answers, …}}`.
fn documents<E: From<QuestionError>>(
    path: &Path,
    value: Value,
    set: Option<&Set>,
    take: &mut dyn FnMut(Value, usize) -> Result<(), E>,
) -> Result<(), E> {
    let refuse = |reason: &str| QuestionError::File { path: path.to_owned(), reason: reason.to_owned() };
    let rows: Vec<Value> = match value {
        Value::Array(rows) => rows,
        Value::Object(mut map) => match map.remove("data").or_else(|| map.remove("Data")) {
            Some(Value::Array(rows)) => rows,
            Some(_) => return Err(refuse("`data` is no list of questions").into()),
            None if map.values().all(|inside| inside.get("golden_answers").is_some()) => {
                map.into_iter().map(|(question, row)| with(row, "question", &question)).collect()
            }
            None => return mirage(path, map, set, take),
        },
        _ => return Err(refuse("neither a list nor an object of questions").into()),
    };
    for (row, number) in rows.into_iter().zip(1..) {
        take(row, number)?;
    }
    Ok(())
}

/// MIRAGE's benchmark: `{set: {id: {question, options, answer}}}`.
fn mirage<E: From<QuestionError>>(
    path: &Path,
    map: Map<String, Value>,
    set: Option<&Set>,
    take: &mut dyn FnMut(Value, usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut number = 0;
    for (source, rows) in map {
        let Value::Object(rows) = rows else {
            let reason = format!("`{source}` holds no questions by id");
            return Err(QuestionError::File { path: path.to_owned(), reason }.into());
        };
        if set.is_some_and(|set| set.source != source) {
            continue;
        }
        for (id, row) in rows {
            number += 1;
            take(with(with(row, "id", &id), "data_source", &source), number)?;
        }
    }
    Ok(())
}

fn with(mut row: Value, name: &str, text: &str) -> Value {
    if let Value::Object(map) = &mut row {
        map.entry(name.to_owned()).or_insert(json!(text));
    }
    row
}
