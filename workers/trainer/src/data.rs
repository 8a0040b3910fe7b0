//! Which questions are trained on, and which are held out.
//!
//! The choice depends on the files' contents, the seed and the configuration only, never on their order.

use s3_config::{DatasetConfig, ProbeConfig, TrainDataConfig};
use s3_questions::{Asked, QuestionError};
use s3_rollout::question_key;
use s3_search::eligible::{answerable, sample};
use s3_search::score::{check_golds, normalize};
use s3_search::{Passage, Question};
use s3_telemetry::Failure;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead;
use std::path::Path;

/// Reads question files; a question without a usable gold answer is left out and counted.
pub fn load_questions(datasets: &[DatasetConfig]) -> Result<Vec<Question>, Failure> {
    let mut questions = Vec::new();
    let mut unusable = 0usize;
    read_sets(datasets, |asked| {
        if check_golds(&asked.question.answers).is_ok() {
            questions.push(asked.question);
        } else {
            unusable += 1;
        }
    })?;
    if unusable > 0 {
        tracing::warn!(unusable, "questions without a usable gold answer are left out");
    }
    Ok(questions)
}

/// Titles of the evidence that the sets mark, by [`question_key`]; refused when they mark none.
pub fn load_evidence(datasets: &[DatasetConfig]) -> Result<BTreeMap<String, Vec<String>>, Failure> {
    let mut marked = BTreeMap::new();
    read_sets(datasets, |asked| {
        if !asked.evidence.is_empty() {
            marked.insert(question_key(&asked.question), asked.evidence);
        }
    })?;
    if marked.is_empty() {
        let why = "no set of data.datasets marks evidence; leave warmStart.evidence out, or map the column by fields";
        return Err(Failure::input(why));
    }
    Ok(marked)
}

fn read_sets(datasets: &[DatasetConfig], mut each: impl FnMut(Asked)) -> Result<(), Failure> {
    for dataset in datasets {
        let read = s3_questions::each(dataset, |asked, _, _| {
            each(asked);
            Ok::<(), QuestionError>(())
        });
        read.map_err(|error| match error {
            QuestionError::Io { ref source, .. } if source.kind() != std::io::ErrorKind::NotFound => Failure::io(error),
            error => Failure::input(error),
        })?;
    }
    Ok(())
}

/// Reads a corpus (one passage a line) and hands over each passage.
pub fn read_corpus(path: &Path, each: impl FnMut(Passage)) -> Result<(), Failure> {
    read_lines(path, each)
}

fn read_lines<T: serde::de::DeserializeOwned>(path: &Path, mut each: impl FnMut(T)) -> Result<(), Failure> {
    let file = std::fs::File::open(path).map_err(|e| Failure::input(format!("{}: {e}", path.display())))?;
    for (number, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|e| Failure::io(format!("{}: {e}", path.display())))?;
        if line.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(&line)
            .map_err(|e| Failure::input(format!("{} line {}: {e}", path.display(), number + 1)))?;
        each(value);
    }
    Ok(())
}

/// A part of the questions, `INDEX/OF`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    index: u64,
    of: u64,
}

impl Part {
    /// Reads `0/2`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = || Failure::input(format!("data.part {text:?}: write INDEX/OF, such as 0/2 for the first half"));
        let (index, of) = text.split_once('/').ok_or_else(wrong)?;
        let part =
            Self { index: index.trim().parse().map_err(|_| wrong())?, of: of.trim().parse().map_err(|_| wrong())? };
        if part.index < part.of { Ok(part) } else { Err(wrong()) }
    }

    /// Whether a question is in this part. Independent of the seed: parts of one number never overlap.
    pub fn holds(self, question: &Question) -> bool {
        let hash = Sha256::digest(normalize(&question.question).as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash[..8]);
        u64::from_le_bytes(first) % self.of == self.index
    }
}

/// Whether some gold is a bare yes or no, which a generator guesses half the time.
pub fn is_yes_no(question: &Question) -> bool {
    question.answers.iter().any(|gold| matches!(normalize(gold).as_str(), "yes" | "no" | "true" | "false"))
}

/// Training questions in hash order, each text once, and the held-out ones; the baseline is not asked yet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// To train on.
    pub train: Vec<Question>,
    /// Held out for the probe; never in `train`.
    pub probe: Vec<Question>,
}

/// Applies every filter that needs no other worker. `corpus` yields (title, text).
pub fn candidates(
    config: &TrainDataConfig,
    probe: Option<&ProbeConfig>,
    seed: u64,
    train: Vec<Question>,
    held_out: Vec<Question>,
    corpus: Option<&[(String, String)]>,
) -> Result<Candidates, Failure> {
    let part = config.part.as_deref().map(Part::parse).transpose()?;
    let probe_limit = probe.map_or(0, |probe| probe.limit);
    let held_out: Vec<Question> =
        distinct(filtered(held_out, config.drop_yes_no, corpus), seed).into_iter().take(probe_limit).collect();
    let reserved: BTreeSet<String> = held_out.iter().map(|question| normalize(&question.question)).collect();
    let train = train
        .into_iter()
        .filter(|question| part.is_none_or(|part| part.holds(question)))
        .filter(|question| !reserved.contains(&normalize(&question.question)))
        .collect();
    Ok(Candidates { train: distinct(filtered(train, config.drop_yes_no, corpus), seed), probe: held_out })
}

fn filtered(questions: Vec<Question>, drop_yes_no: bool, corpus: Option<&[(String, String)]>) -> Vec<Question> {
    let kept: Vec<Question> = questions.into_iter().filter(|question| !(drop_yes_no && is_yes_no(question))).collect();
    let Some(corpus) = corpus else { return kept };
    let answerable = answerable(&kept, corpus.iter().map(|(title, text)| (title, text)));
    kept.into_iter().zip(answerable).filter_map(|(question, yes)| yes.then_some(question)).collect()
}

/// Hash order, the first of equal texts.
fn distinct(questions: Vec<Question>, seed: u64) -> Vec<Question> {
    let mut seen = BTreeSet::new();
    let mut ordered = sample(questions, seed, usize::MAX);
    ordered.retain(|question| seen.insert(normalize(&question.question)));
    ordered
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn question(id: usize, text: &str, gold: &str) -> Question {
        Question { id: id.to_string(), dataset: "d".into(), question: text.into(), answers: vec![gold.into()] }
    }

    fn config() -> TrainDataConfig {
        TrainDataConfig {
            datasets: vec![],
            corpus: None,
            part: None,
            limit: None,
            drop_baseline_solved: false,
            drop_yes_no: true,
            difficulty_buffer: None,
        }
    }

    #[test]
    fn parts_never_overlap_and_cover_everything() {
        let all: Vec<Question> = (0..200).map(|i| question(i, &format!("what is {i}"), "x")).collect();
        let sizes: Vec<usize> = (0..3)
            .map(|i| {
                let part = Part::parse(&format!("{i}/3")).unwrap();
                all.iter().filter(|q| part.holds(q)).count()
            })
            .collect();
        assert_eq!(sizes.iter().sum::<usize>(), 200);
        assert!(sizes.iter().all(|n| *n > 40), "{sizes:?}");
        for wrong in ["2/2", "x/2", "1", "/", "-1/2"] {
            assert!(Part::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn filters_hold_and_order_is_the_hashes() {
        let train = vec![
            question(0, "Is it red?", "Yes"),
            question(1, "Where is it?", "Paris"),
            question(2, "where is it", "Paris"),
            question(3, "Who wrote it?", "Nobody Known"),
            question(4, "Held out?", "Paris"),
            question(5, "Which river?", "Seine"),
        ];
        let corpus = [("Paris".to_owned(), "On the Seine.".to_owned())];
        let probe = ProbeConfig { every: 1, datasets: vec![], limit: 1, export_best: false };
        let held = vec![question(9, "held OUT", "Paris")];
        let chosen = candidates(&config(), Some(&probe), 3, train.clone(), held.clone(), Some(&corpus)).unwrap();
        assert_eq!(chosen.probe, held);
        let mut ids: Vec<&str> = chosen.train.iter().map(|q| q.id.as_str()).collect();
        let reversed: Vec<Question> = train.into_iter().rev().collect();
        assert_eq!(candidates(&config(), Some(&probe), 3, reversed, held, Some(&corpus)).unwrap(), chosen);
        ids.sort_unstable();
        assert!(ids == ["1", "5"] || ids == ["2", "5"], "{ids:?}");
    }
}
