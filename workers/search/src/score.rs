//! Answers against golds: exact match, token F1, spans and generation accuracy.

use crate::stated::states;
pub use crate::text::normalize;
use crate::text::{contains, span_tokens};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is known of an answer's correctness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// Right.
    Correct,
    /// Wrong.
    Incorrect,
    /// The judge answered, but neither yes nor no.
    Undecided,
    /// No answer or verdict could be had, or there is no gold to compare with.
    Failed,
}

impl Verdict {
    /// 1 or 0; `None` where nothing is known, which masks the sample and is never a 0.
    pub fn value(self) -> Option<f64> {
        match self {
            Verdict::Correct => Some(1.0),
            Verdict::Incorrect => Some(0.0),
            Verdict::Undecided | Verdict::Failed => None,
        }
    }
}

impl From<bool> for Verdict {
    fn from(right: bool) -> Self {
        if right { Verdict::Correct } else { Verdict::Incorrect }
    }
}

/// A question that cannot be scored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "none of the gold answers {golds:?} is left after normalisation; every answer would match it: give the question a gold answer with letters or digits"
)]
pub struct EmptyGolds {
    /// The golds as given.
    pub golds: Vec<String>,
}

/// Whether a gold has anything to compare: `"the"` and `"?"` normalise to nothing and would be found in
/// every answer, so they are left out everywhere below.
fn usable(golds: &[String]) -> impl Iterator<Item = &String> {
    golds.iter().filter(|gold| !span_tokens(gold).is_empty())
}

/// Refuses a question all of whose golds normalise to nothing; call it where questions are loaded.
pub fn check_golds(golds: &[String]) -> Result<(), EmptyGolds> {
    if usable(golds).next().is_none() {
        return Err(EmptyGolds { golds: golds.to_vec() });
    }
    Ok(())
}

/// Whether the normalised answer equals a normalised gold.
pub fn exact_match(answer: &str, golds: &[String]) -> bool {
    let answer = normalize(answer);
    usable(golds).any(|gold| normalize(gold) == answer)
}

/// Token F1 over normalised words (as multisets) with the best gold, 0 to 1.
pub fn f1(answer: &str, golds: &[String]) -> f64 {
    let answer = normalize(answer);
    let answer: Vec<&str> = answer.split_whitespace().collect();
    usable(golds).map(|gold| f1_one(&answer, gold)).fold(0.0, f64::max)
}

fn f1_one(answer: &[&str], gold: &str) -> f64 {
    let gold = normalize(gold);
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    let mut size = 0;
    for word in gold.split_whitespace() {
        *left.entry(word).or_default() += 1;
        size += 1;
    }
    let mut common = 0;
    for word in answer {
        if let Some(count) = left.get_mut(word).filter(|count| **count > 0) {
            *count -= 1;
            common += 1;
        }
    }
    if common == 0 { 0.0 } else { 2.0 * f64::from(common) / (answer.len() + size) as f64 }
}

/// Whether a gold's normalised tokens stand contiguously in the answer's.
pub fn has_span(answer: &str, golds: &[String]) -> bool {
    let answer = span_tokens(answer);
    usable(golds).any(|gold| contains(&answer, &span_tokens(gold)))
}

/// Length of an answer in normalised words, the unit of `maxAnswerTokens`.
pub fn answer_tokens(answer: &str) -> usize {
    normalize(answer).split_whitespace().count()
}

/// Generation accuracy: a span of a gold in an answer of at most `max_answer_tokens` normalised
/// words that states it (see [`crate::stated`]), confirmed by the judge where there is one (`judge` is
/// `None` where there is not). Without a span the judge decides alone. No usable gold is
/// [`Verdict::Failed`].
pub fn gen_acc(answer: &str, golds: &[String], max_answer_tokens: usize, judge: Option<Verdict>) -> Verdict {
    if check_golds(golds).is_err() {
        return Verdict::Failed;
    }
    if !has_span(answer, golds) {
        return judge.unwrap_or(Verdict::Incorrect);
    }
    if answer_tokens(answer) > max_answer_tokens || !states(answer, golds) {
        return Verdict::Incorrect;
    }
    judge.unwrap_or(Verdict::Correct)
}

/// Gain Beyond RAG of one question: a − z; `None` when either is not known.
pub fn gbr(searcher: Verdict, baseline: Verdict) -> Option<f64> {
    Some(searcher.value()? - baseline.value()?)
}
