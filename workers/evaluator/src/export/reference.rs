//! The reference's own files, so that its scripts and other people's read on: `SOURCE_output_sequences.json` with
//! the contexts of an arm, and its evaluation's `{source: {question: {answer, score, em_score}}}`.
//!
//! Both are keyed by the question's text, as there: of equal questions in a set the last one stands, and the count
//! of those is told.

use crate::error::EvalError;
use crate::results::Results;
use s3_artifacts::{ArtifactError, write_atomic};
use s3_search::compat::render_context;
use s3_search::score::Verdict;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The files.
    pub files: Vec<PathBuf>,
    /// Questions that another one of the same text replaced.
    pub replaced: usize,
}

/// Writes one arm's contexts and scores into a folder.
pub fn write(results: &Results, arm: &str, folder: &Path) -> Result<Written, EvalError> {
    let mut contexts: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut scores: Map<String, Value> = Map::new();
    let mut written = Written::default();
    let mut rows: Vec<_> = results.rows.iter().filter(|row| row.arm == arm).collect();
    rows.sort_by_key(|row| row.place);
    if rows.is_empty() {
        return Err(EvalError::Config(format!("these results have no arm {arm:?}")));
    }
    for row in rows {
        let question = &results.questions.questions[row.place];
        let passages: Vec<(String, String)> = row
            .passages
            .iter()
            .filter_map(|id| results.passages.get(id))
            .map(|passage| (passage.title.clone(), passage.text.clone()))
            .collect();
        let response: Vec<&str> =
            row.episode.iter().flat_map(|episode| &episode.turns).map(|turn| turn.text.as_str()).collect();
        let entry = json!({
            "golden_answers": question.answers,
            "context_with_info": render_context(&passages),
            "response_str": response.join("\n\n"),
        });
        let before = contexts.entry(&row.dataset).or_default().insert(question.question.clone(), entry);
        written.replaced += usize::from(before.is_some());
        let one = json!({
            "answer": row.answer,
            "score": u8::from(row.verdict == Verdict::Correct),
            "em_score": u8::from(row.exact_match == Some(true)),
        });
        let source = scores.entry(row.dataset.clone()).or_insert_with(|| json!({}));
        source[&question.question] = one;
    }
    let mut put = |name: String, value: &Value| -> Result<(), EvalError> {
        let path = folder.join(name);
        write_atomic(&path, &serde_json::to_vec_pretty(value).map_err(ArtifactError::from)?)?;
        written.files.push(path);
        Ok(())
    };
    for (source, entries) in contexts {
        put(format!("{source}_output_sequences.json"), &Value::Object(entries))?;
    }
    put("result.json".into(), &Value::Object(scores))?;
    Ok(written)
}
