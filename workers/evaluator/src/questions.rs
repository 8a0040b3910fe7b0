//! Reading question files, and choosing what is asked.

use crate::error::EvalError;
use crate::filtered;
use s3_config::EvaluatorConfig;
use s3_search::eligible;
use s3_search::score::{check_golds, normalize};
use s3_search::{Passage, Question};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The questions of an evaluation, and how they were chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct QuestionSet {
    /// [`eligible::digest`] of `questions`.
    pub sha256: String,
    /// Seed of the order.
    pub seed: u64,
    /// Whether only questions that the corpus can answer were taken.
    pub eligible: bool,
    /// Questions in the files.
    pub considered: usize,
    /// Left out: also in the training files.
    pub in_training: usize,
    /// Left out: no gold answer stands in the corpus.
    pub unanswerable: usize,
    /// In the order of sha256(seed ‖ question). Questions with equal ids are kept.
    pub questions: Vec<Question>,
}

/// One row of a question file; further keys are looked at by [`filtered`] only.
#[derive(Deserialize)]
struct Row {
    #[serde(default)]
    id: Option<serde_json::Value>,
    question: String,
    answers: Vec<String>,
}

/// A row of which only the question's text matters.
#[derive(Deserialize)]
struct TrainingRow {
    question: String,
}

/// Chooses the questions that the configuration asks for.
pub fn choose(config: &EvaluatorConfig) -> Result<QuestionSet, EvalError> {
    let mut questions = Vec::new();
    for dataset in &config.datasets {
        filtered::refuse_manifest(&dataset.path)?;
        questions.extend(read_questions(&dataset.name, &dataset.path)?);
    }
    let mut training = Vec::new();
    for path in &config.sample.exclude {
        each_line(path, |row: TrainingRow| training.push(row.question))?;
    }
    let set = if config.sample.eligible {
        let Some(corpus) = &config.sample.corpus else {
            return Err(EvalError::Config(
                "sample.eligible needs sample.corpus, the passages that are searched".into(),
            ));
        };
        let mut passages = Vec::new();
        each_line(corpus, |passage: Passage| passages.push((passage.title, passage.text)))?;
        let training = training.iter().map(String::as_str);
        let set = eligible::select(&questions, training, passages, config.seed, config.sample.size);
        QuestionSet {
            sha256: set.sha256,
            seed: config.seed,
            eligible: true,
            considered: set.considered,
            in_training: set.in_training,
            unanswerable: set.unanswerable,
            questions: set.questions,
        }
    } else {
        any(questions, &training, config.seed, config.sample.size)
    };
    if set.questions.is_empty() {
        return Err(EvalError::Config(format!(
            "no question is left of {}: {} are training questions, {} have no gold answer in the corpus",
            set.considered, set.in_training, set.unanswerable
        )));
    }
    for question in &set.questions {
        check_golds(&question.answers)
            .map_err(|error| EvalError::Config(format!("{} {}: {error}", question.dataset, question.id)))?;
    }
    Ok(set)
}

/// All questions that are not in the training files, in hash order.
fn any(questions: Vec<Question>, training: &[String], seed: u64, size: usize) -> QuestionSet {
    let considered = questions.len();
    let training: BTreeSet<String> = training.iter().map(|text| normalize(text)).collect();
    let fresh: Vec<Question> =
        questions.into_iter().filter(|question| !training.contains(&normalize(&question.question))).collect();
    let in_training = considered - fresh.len();
    let questions = eligible::sample(fresh, seed, size);
    QuestionSet {
        sha256: eligible::digest(&questions),
        seed,
        eligible: false,
        considered,
        in_training,
        unanswerable: 0,
        questions,
    }
}

fn read_questions(dataset: &str, path: &Path) -> Result<Vec<Question>, EvalError> {
    let mut questions = Vec::new();
    for (at, text) in lines(path)?.enumerate() {
        let line = at + 1;
        let fault = |reason: String| EvalError::Line { path: path.to_owned(), line, reason };
        let text = text.map_err(|error| EvalError::read(path, error))?;
        if text.trim().is_empty() {
            continue;
        }
        let value: serde_json::Value = serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
        filtered::refuse_row(path, &value)?;
        let row: Row = serde_json::from_value(value).map_err(|error| fault(error.to_string()))?;
        let id = match row.id {
            Some(serde_json::Value::String(id)) => id,
            Some(serde_json::Value::Number(id)) => id.to_string(),
            None => format!("{dataset}-{at}"),
            Some(other) => return Err(fault(format!("id {other} is neither a text nor a number"))),
        };
        questions.push(Question { id, dataset: dataset.to_owned(), question: row.question, answers: row.answers });
    }
    Ok(questions)
}

fn lines(path: &Path) -> Result<impl Iterator<Item = std::io::Result<String>>, EvalError> {
    let file = std::fs::File::open(path).map_err(|error| EvalError::read(path, error))?;
    Ok(BufReader::new(file).lines())
}

/// Every line of a JSON-lines file, typed.
fn each_line<T: DeserializeOwned>(path: &Path, mut take: impl FnMut(T)) -> Result<(), EvalError> {
    for (at, text) in lines(path)?.enumerate() {
        let text = text.map_err(|error| EvalError::read(path, error))?;
        if text.trim().is_empty() {
            continue;
        }
        let row = serde_json::from_str(&text).map_err(|error| EvalError::Line {
            path: path.to_owned(),
            line: at + 1,
            reason: error.to_string(),
        })?;
        take(row);
    }
    Ok(())
}
