//! Same-budget RAG: per question as many top passages of the raw question, or tokens of them, as another arm handed
//! over. What a searcher gains over this it does not gain by reading more.

use super::{Arm, Gathered, asked, raw};
use s3_config::{BudgetUnit, RetrievalMethod};
use s3_rollout::{Retrieve, RolloutError};
use s3_search::text::tokens;
use s3_search::{Passage, Question};

/// Passages a ranking is asked for at most, when tokens are counted.
const DEEPEST: u32 = 1000;

pub(super) struct SameBudget<'a> {
    pub(super) retriever: &'a dyn Retrieve,
    /// Per question of the whole set.
    pub(super) budgets: Vec<usize>,
    pub(super) by: BudgetUnit,
    pub(super) ranking: RetrievalMethod,
    /// Words of a passage that the generator reads; 0 is all.
    pub(super) passage_words: u32,
}

/// Tokens that the generator reads of a passage: runs of letters and digits, and other visible characters, as answers
/// are compared by; no model's vocabulary, so that the count is the same for every generator.
fn length(passage: &Passage, words: u32) -> usize {
    let words = if words == 0 { usize::MAX } else { words as usize };
    let read: Vec<&str> = passage.text.split_whitespace().take(words).collect();
    tokens(&passage.title).len() + tokens(&read.join(" ")).len()
}

/// The budget that passages make.
pub(super) fn budget(passages: &[Passage], by: BudgetUnit, passage_words: u32) -> usize {
    match by {
        BudgetUnit::Passages => passages.len(),
        BudgetUnit::Tokens => passages.iter().map(|passage| length(passage, passage_words)).sum(),
    }
}

/// How many of the first passages come nearest to a budget of tokens; none when even more might.
fn nearest(lengths: &[usize], budget: usize, all: bool) -> Option<usize> {
    let mut sum = 0;
    for (count, length) in lengths.iter().enumerate() {
        if sum + length >= budget {
            let over = sum + length - budget;
            return Some(if over <= budget - sum { count + 1 } else { count });
        }
        sum += length;
    }
    all.then_some(lengths.len())
}

impl Arm for SameBudget<'_> {
    fn gather(&mut self, first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let budgets = &self.budgets[first..first + questions.len()];
        let most = budgets.iter().copied().max().unwrap_or_default();
        if most == 0 {
            return Ok(vec![Gathered::default(); questions.len()]);
        }
        let find = |top_k| self.retriever.retrieve_for(&asked(questions), &raw(questions), top_k, self.ranking);
        let cut = |(mut passages, count): (Vec<Passage>, usize)| {
            passages.truncate(count);
            Gathered { passages, ..Gathered::default() }
        };
        if self.by == BudgetUnit::Passages {
            let found = find(most as u32)?;
            return Ok(found.into_iter().zip(budgets.iter().copied()).map(cut).collect());
        }
        let mut top_k = 8;
        loop {
            let found = find(top_k)?;
            let counts: Option<Vec<usize>> = found
                .iter()
                .zip(budgets)
                .map(|(passages, budget)| {
                    let lengths: Vec<usize> =
                        passages.iter().map(|passage| length(passage, self.passage_words)).collect();
                    nearest(&lengths, *budget, passages.len() < top_k as usize || top_k >= DEEPEST)
                })
                .collect();
            if let Some(counts) = counts {
                return Ok(found.into_iter().zip(counts).map(cut).collect());
            }
            top_k = (top_k * 2).min(DEEPEST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_passages_come_as_near_as_they_can() {
        for (lengths, budget, wanted) in [
            (vec![10, 10, 10], 20, Some(2)),
            (vec![10, 10, 10], 14, Some(1)),
            (vec![10, 10, 10], 15, Some(2)),
            (vec![10, 10, 10], 0, Some(0)),
            (vec![100], 30, Some(0)),
            (vec![10, 10], 25, None),
        ] {
            assert_eq!(nearest(&lengths, budget, false), wanted, "{lengths:?} {budget}");
        }
        assert_eq!(nearest(&[10, 10], 25, true), Some(2));
        let passage = Passage { id: "a".into(), title: "A b".into(), text: "One, two three.".into() };
        assert_eq!((length(&passage, 0), length(&passage, 2)), (7, 5));
        assert_eq!(budget(&[passage.clone(), passage], BudgetUnit::Tokens, 0), 14);
    }
}
