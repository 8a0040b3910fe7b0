//! Same-budget RAG: per question as many top passages of the raw question as another arm handed over. What
//! a searcher gains over this it does not gain by reading more.

use super::{Arm, Gathered, raw};
use s3_config::RetrievalMethod;
use s3_rollout::{Retrieve, RolloutError};
use s3_search::Question;

pub(super) struct SameBudget<'a> {
    pub(super) retriever: &'a dyn Retrieve,
    /// Per question of the whole set.
    pub(super) budgets: Vec<usize>,
}

impl Arm for SameBudget<'_> {
    fn gather(&mut self, first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let budgets = &self.budgets[first..first + questions.len()];
        let most = budgets.iter().copied().max().unwrap_or_default() as u32;
        if most == 0 {
            return Ok(vec![Gathered::default(); questions.len()]);
        }
        let found = self.retriever.retrieve(&raw(questions), most, RetrievalMethod::Default)?;
        let cut = |(mut passages, budget): (Vec<_>, &usize)| {
            passages.truncate(*budget);
            Gathered { passages, ..Gathered::default() }
        };
        Ok(found.into_iter().zip(budgets).map(cut).collect())
    }
}
