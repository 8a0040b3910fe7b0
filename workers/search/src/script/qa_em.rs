//! Search-R1's reward: exact match of the answer that a model gives itself (its `qa_em.py`), quirks included.
//!
//! Prompt and response are read as one text. The answer is what stands in the last `<answer>` of at least two: its own
//! prompt has two (`<answer> and </answer>` and an example), so the first that the model writes is the third, and a model
//! that writes none has answered the example. A prompt of one's own with none or one is scored by the same rule: the
//! model's single answer does not count then, unless the prompt shows one.

use crate::text::{normalize, strip};
use regex::Regex;
use std::sync::LazyLock;

static ANSWER: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?s)<answer>(.*?)</answer>").ok());

/// The answer that counts; none where there are not two.
pub fn extract(text: &str) -> Option<&str> {
    let found: Vec<&str> =
        ANSWER.as_ref()?.captures_iter(text).filter_map(|one| one.get(1)).map(|one| one.as_str()).collect();
    if found.len() < 2 { None } else { found.last().map(|last| strip(last)) }
}

/// Whether it equals a gold answer, both normalised.
pub fn matches(answer: &str, golds: &[String]) -> bool {
    let answer = normalize(answer);
    golds.iter().any(|gold| normalize(gold) == answer)
}

/// The reward: 1 for a right answer, `format` for a wrong one, 0 for none.
pub fn score(answer: Option<&str>, golds: &[String], format: f64) -> f64 {
    match answer {
        None => 0.0,
        Some(answer) if matches(answer, golds) => 1.0,
        Some(_) => format,
    }
}
