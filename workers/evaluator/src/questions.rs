//! Reading question files, and choosing what is asked.

use crate::error::EvalError;
use crate::filtered;
use s3_config::{DatasetConfig, EvaluatorConfig};
use s3_search::eligible;
use s3_search::score::{check_golds, normalize};
use s3_search::{Passage, Question};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::Path;

/// The questions of an evaluation, and how they were chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Titles of the passages that the set marks as evidence, per question; empty where it marks none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<Vec<String>>,
}

/// Chooses the questions that the configuration asks for.
pub fn choose(config: &EvaluatorConfig) -> Result<QuestionSet, EvalError> {
    let (mut questions, mut evidence) = (Vec::new(), BTreeMap::new());
    for dataset in &config.datasets {
        filtered::refuse_manifest(&dataset.path)?;
        s3_questions::each(dataset, |asked, row, _| {
            filtered::refuse_row(&dataset.path, row)?;
            if !asked.evidence.is_empty() {
                evidence.insert(key(&asked.question), asked.evidence);
            }
            questions.push(asked.question);
            Ok::<(), EvalError>(())
        })?;
    }
    let mut training = Vec::new();
    for path in &config.sample.exclude {
        // of a training file only the questions' texts matter, whatever the rest of a row is
        let dataset = DatasetConfig { name: "training".into(), path: path.clone(), ..DatasetConfig::default() };
        s3_questions::texts(&dataset, |text| training.push(text))?;
    }
    for dataset in &config.sample.exclude_sets {
        s3_questions::texts(dataset, |text| training.push(text))?;
    }
    let mut set = if config.sample.eligible {
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
            evidence: Vec::new(),
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
    if !evidence.is_empty() {
        set.evidence =
            set.questions.iter().map(|question| evidence.get(&key(question)).cloned().unwrap_or_default()).collect();
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
        evidence: Vec::new(),
    }
}

fn key(question: &Question) -> (String, String, String) {
    (question.dataset.clone(), question.id.clone(), question.question.clone())
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
