//! Refuses evaluation sets that were chosen by whether the baseline is right.
//!
//! On questions that the baseline gets wrong, gain beyond it cannot be negative and any answer at all is a
//! gain. Such files give themselves away by the scores they were filtered by, or by a manifest that names the
//! filter.

use crate::error::EvalError;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Who is the baseline in such marks.
const WHO: &[&str] = &["baseline", "naiverag", "rag"];
/// What is known of it.
const WHAT: &[&str] =
    &["score", "scores", "correct", "right", "wrong", "acc", "accuracy", "genacc", "solved", "em", "f1"];

/// Refuses a row that carries the baseline's score (`baseline_score`, `ragCorrect`, …) or names a filter by it.
pub fn refuse_row(path: &Path, row: &Value) -> Result<(), EvalError> {
    match mark(row) {
        Some(mark) => Err(EvalError::Filtered { path: path.to_owned(), mark }),
        None => Ok(()),
    }
}

/// Refuses a file whose manifest (`FILE.manifest.json`, `STEM.manifest.json`, `manifest.json` in its folder)
/// names a filter by the baseline. A manifest that is not readable JSON is refused, too: nobody knows what it
/// would say.
pub fn refuse_manifest(path: &Path) -> Result<(), EvalError> {
    for manifest in manifests(path) {
        let bytes = match std::fs::read(&manifest) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(EvalError::read(&manifest, error)),
        };
        let value: Value = serde_json::from_slice(&bytes).map_err(|error| EvalError::Line {
            path: manifest.clone(),
            line: error.line(),
            reason: error.to_string(),
        })?;
        refuse_row(&manifest, &value)?;
    }
    Ok(())
}

fn manifests(path: &Path) -> Vec<PathBuf> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".manifest.json");
    vec![PathBuf::from(beside), path.with_extension("manifest.json"), path.with_file_name("manifest.json")]
}

/// The first mark in an object or in objects inside it.
fn mark(value: &Value) -> Option<String> {
    match value {
        Value::Object(map) => map.iter().find_map(|(key, inside)| {
            let bare = bare(key);
            if is_score(&bare) || (bare == "dropbaselinesolved" && *inside == Value::Bool(true)) {
                return Some(format!("the key {key:?}"));
            }
            if bare.contains("filter") && names_baseline(inside) {
                return Some(format!("the entry {key:?}: {inside}"));
            }
            mark(inside)
        }),
        Value::Array(items) => items.iter().find_map(mark),
        _ => None,
    }
}

fn bare(key: &str) -> String {
    key.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn is_score(bare: &str) -> bool {
    WHO.iter().any(|who| bare.strip_prefix(who).is_some_and(|rest| WHAT.contains(&rest)))
}

fn names_baseline(value: &Value) -> bool {
    match value {
        Value::String(text) => {
            let text = bare(text);
            text.contains("baseline") || text.contains("naiverag") || text.starts_with("rag")
        }
        Value::Array(items) => items.iter().any(names_baseline),
        Value::Object(map) => map.iter().any(|(key, inside)| bare(key).contains("baseline") || names_baseline(inside)),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn marks_are_found_and_plain_rows_are_not() {
        let path = Path::new("questions.jsonl");
        for row in [
            json!({"question": "q", "baseline_score": 0}),
            json!({"question": "q", "ragScore": 0.0}),
            json!({"question": "q", "extra_info": {"naive_rag_correct": false}}),
            json!({"filter": "baseline wrong"}),
            json!({"filters": ["dropYesNo", "dropBaselineSolved"]}),
            json!({"data": {"dropBaselineSolved": true}}),
        ] {
            let refused = refuse_row(path, &row).unwrap_err().to_string();
            assert!(refused.contains("refused") && refused.contains("free"), "{refused}");
        }
        for row in [
            json!({"id": "1", "question": "what is rag score?", "answers": ["baseline"]}),
            json!({"filter": "eligible"}),
            json!({"dropBaselineSolved": false, "score": 1, "storage": 2, "ragged": 3}),
        ] {
            refuse_row(path, &row).unwrap();
        }
    }
}
