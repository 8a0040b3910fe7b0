//! How good a judge is: measured against answers that people labelled.

use crate::engine::{Ask, Gateway, Lane};
use crate::judge::{Candidate, Decision, TEXTS};
use crate::panel::{Ruling, judge};
use crate::provider::Provider;
use s3_config::CalibrationConfig;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// Answers judged together; progress is told after each part.
const PART: usize = 16;
/// Fewer labels of either kind say nothing.
const LEAST: usize = 5;
/// 97.5 % point of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

/// One labelled answer.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Label {
    /// The question.
    pub question: String,
    /// An answer to it.
    pub answer: String,
    /// Its gold answers.
    #[serde(alias = "answers", alias = "gold_answers")]
    pub golds: Vec<String>,
    /// What a person says of the answer.
    pub correct: bool,
}

/// Labelled answers and the digest of their file.
#[derive(Clone, Debug)]
pub struct Labels {
    /// The answers.
    pub labels: Vec<Label>,
    /// sha256 of the file.
    pub digest: String,
}

/// Reads a file of labelled answers, a line of JSON each.
pub fn read_labels(path: &Path) -> Result<Labels, String> {
    let place = path.display();
    let bytes = std::fs::read(path).map_err(|e| format!("cannot read labels {place}: {e}"))?;
    let text = std::str::from_utf8(&bytes).map_err(|_| format!("labels {place} are not UTF-8"))?;
    let mut labels = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let label = serde_json::from_str(line).map_err(|e| format!("labels {place}, line {}: {e}", number + 1))?;
        labels.push(label);
    }
    let correct = labels.iter().filter(|label: &&Label| label.correct).count();
    if correct < LEAST || labels.len() - correct < LEAST {
        return Err(format!(
            "labels {place} hold {correct} correct and {} incorrect answers; give at least {LEAST} of each",
            labels.len() - correct
        ));
    }
    Ok(Labels { labels, digest: s3_artifacts::digest_bytes(&bytes) })
}

/// A share or coefficient with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    /// The value.
    pub value: f64,
    /// Lower bound.
    pub low: f64,
    /// Upper bound.
    pub high: f64,
}

impl fmt::Display for Measured {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:.3} [{:.3}, {:.3}]", self.value, self.low, self.high)
    }
}

/// Wilson's interval of `hits` in `all`.
fn share(hits: usize, all: usize) -> Measured {
    let (n, p) = (all as f64, hits as f64 / all as f64);
    let middle = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt() / (1.0 + Z * Z / n);
    Measured { value: p, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
}

/// Cohen's kappa with the large-sample error of Fleiss, Cohen and Everitt (1969).
fn kappa(table: [[usize; 2]; 2]) -> Measured {
    let n = table.iter().flatten().sum::<usize>() as f64;
    let p = |i: usize, j: usize| table[i][j] as f64 / n;
    let row = |i: usize| p(i, 0) + p(i, 1);
    let column = |j: usize| p(0, j) + p(1, j);
    let observed = p(0, 0) + p(1, 1);
    let expected = row(0) * column(0) + row(1) * column(1);
    if (1.0 - expected).abs() < 1e-12 {
        // one verdict for everything: no better than chance
        return Measured { value: 0.0, low: -1.0, high: 1.0 };
    }
    let value = (observed - expected) / (1.0 - expected);
    let agree: f64 =
        (0..2).map(|i| p(i, i) * ((1.0 - expected) - (column(i) + row(i)) * (1.0 - observed)).powi(2)).sum();
    let differ: f64 = [(0, 1), (1, 0)].iter().map(|&(i, j)| p(i, j) * (column(i) + row(j)).powi(2)).sum();
    let inner = agree + (1.0 - observed).powi(2) * differ - (observed * expected - 2.0 * expected + observed).powi(2);
    let error = inner.max(0.0).sqrt() / ((1.0 - expected).powi(2) * n.sqrt());
    Measured { value, low: (value - Z * error).max(-1.0), high: (value + Z * error).min(1.0) }
}

/// What a judge was measured to be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// Digest of the judge: models, wordings, reading.
    pub judge: String,
    /// Name of the judging provider when it was measured.
    pub provider: String,
    /// sha256 of the labels.
    pub labels: String,
    /// Answers labelled.
    pub answers: usize,
    /// Right answers judged correct.
    pub true_positives: usize,
    /// Wrong answers judged correct.
    pub false_positives: usize,
    /// Wrong answers judged incorrect.
    pub true_negatives: usize,
    /// Right answers judged incorrect.
    pub false_negatives: usize,
    /// Answers on which no verdict came. They count in nothing below.
    pub undecided: usize,
    /// Right answers judged correct, of all right ones with a verdict.
    pub sensitivity: Measured,
    /// Wrong answers judged incorrect, of all wrong ones with a verdict.
    pub specificity: Measured,
    /// Agreement beyond chance.
    pub kappa: Measured,
}

impl Calibration {
    fn from_table(judge: String, provider: &str, labels: &Labels, table: [[usize; 2]; 2], undecided: usize) -> Self {
        let [[true_positives, false_negatives], [false_positives, true_negatives]] = table;
        Self {
            judge,
            provider: provider.to_owned(),
            labels: labels.digest.clone(),
            answers: labels.labels.len(),
            true_positives,
            false_positives,
            true_negatives,
            false_negatives,
            undecided,
            sensitivity: share(true_positives, true_positives + false_negatives),
            specificity: share(true_negatives, true_negatives + false_positives),
            kappa: kappa(table),
        }
    }

    /// The share of right answers behind an observed share of correct verdicts (Rogan and Gladen, 1978); none when
    /// the judge is no better than chance.
    pub fn corrected(&self, observed: f64) -> Option<f64> {
        let power = self.sensitivity.value + self.specificity.value - 1.0;
        (power > 0.0).then(|| ((observed + self.specificity.value - 1.0) / power).clamp(0.0, 1.0))
    }

    /// Writes the report.
    pub fn save(&self, path: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("cannot write report {}: {e}", path.display()))
    }

    /// Reads a report.
    pub fn load(path: &Path) -> Result<Self, String> {
        let text =
            std::fs::read(path).map_err(|e| format!("cannot read calibration report {}: {e}", path.display()))?;
        serde_json::from_slice(&text).map_err(|e| format!("calibration report {}: {e}", path.display()))
    }
}

impl fmt::Display for Calibration {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "judge        {} {}", self.provider, &self.judge[..12.min(self.judge.len())])?;
        writeln!(out, "answers      {} ({} without a verdict)", self.answers, self.undecided)?;
        writeln!(out, "sensitivity  {}", self.sensitivity)?;
        writeln!(out, "specificity  {}", self.specificity)?;
        write!(out, "kappa        {}", self.kappa)
    }
}

/// What a judge is: its model, the one that must agree, and how it is asked.
pub fn judge_digest(first: &dyn Provider, second: Option<&dyn Provider>) -> Result<String, String> {
    s3_artifacts::digest_json(&("judge", 1, first.digest(), second.map(Provider::digest), TEXTS))
        .map_err(|e| e.to_string())
}

/// Judges every labelled answer and compares. An outage ends it: a measurement with holes is none.
pub async fn calibrate(
    gateway: &Arc<Gateway>,
    lane: &Arc<Lane>,
    labels: &Labels,
    progress: impl Fn(usize),
) -> Result<Calibration, String> {
    let first = lane.provider();
    let second = gateway.second_judge(first.name()).map(|lane| lane.provider());
    let digest = judge_digest(first, second)?;
    let (mut table, mut undecided) = ([[0usize; 2]; 2], 0);
    let mut done = 0;
    for part in labels.labels.chunks(PART) {
        let candidates: Vec<Candidate<'_>> = part
            .iter()
            .map(|label| Candidate { question: &label.question, answer: &label.answer, gold: &label.golds })
            .collect();
        let rulings = judge(gateway, lane, &candidates, &Ask::by("calibrate")).await.map_err(|e| e.to_string())?;
        for (label, ruling) in part.iter().zip(rulings) {
            match ruling {
                Ruling::Decided(decision) => {
                    table[usize::from(!label.correct)][usize::from(decision == Decision::Incorrect)] += 1;
                }
                Ruling::Undecided(_) => undecided += 1,
                Ruling::Failed(why) => return Err(format!("the judge cannot be asked ({why}); run it again")),
            }
        }
        done += part.len();
        progress(done);
    }
    if table.iter().any(|row| row.iter().sum::<usize>() == 0) {
        return Err("the judge gave no verdict on any right or on any wrong answer: it cannot be measured".to_owned());
    }
    Ok(Calibration::from_table(digest, first.name(), labels, table, undecided))
}

/// Refuses a judge that was not measured, or not measured to be good enough.
pub(crate) fn require(
    first: &dyn Provider,
    second: Option<&dyn Provider>,
    required: &CalibrationConfig,
) -> Result<(), String> {
    let report = Calibration::load(&required.report)?;
    let (name, path) = (first.name(), required.report.display());
    if report.judge != judge_digest(first, second)? {
        return Err(format!("calibration report {path} is of another judge than {name:?}; run calibrate again"));
    }
    if report.kappa.low < required.min_kappa {
        return Err(format!(
            "judge {name:?} has kappa {} by {path}, its lower bound must be {} or more; take a better judge",
            report.kappa, required.min_kappa
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn close(measured: Measured, expected: [f64; 3]) {
        for (got, want) in [measured.value, measured.low, measured.high].into_iter().zip(expected) {
            assert!((got - want).abs() < 5e-4, "{measured} {expected:?}");
        }
    }

    #[test]
    fn shares_and_kappa_are_the_textbooks() {
        close(share(45, 50), [0.9, 0.7864, 0.9565]);
        close(share(50, 50), [1.0, 0.9287, 1.0]);
        // Cohen's example of 20, 5, 10, 15
        close(kappa([[20, 5], [10, 15]]), [0.4, 0.1511, 0.6489]);
        close(kappa([[25, 0], [0, 25]]), [1.0, 1.0, 1.0]);
        assert!(kappa([[30, 0], [20, 0]]).value.abs() < 1e-12);
    }

    #[test]
    fn the_correction_undoes_known_errors() {
        let labels = Labels { labels: Vec::new(), digest: String::new() };
        let table = [[90, 10], [20, 80]];
        let report = Calibration::from_table("d".into(), "j", &labels, table, 0);
        // 30 % right: 0.3 * 0.9 + 0.7 * 0.2 = 0.41 are called correct
        assert!((report.corrected(0.41).unwrap() - 0.3).abs() < 1e-12);
        assert_eq!(Calibration::from_table("d".into(), "j", &labels, [[5, 5], [5, 5]], 0).corrected(0.5), None);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("report.json");
        report.save(&path).unwrap();
        assert_eq!(Calibration::load(&path).unwrap(), report);
    }
}
