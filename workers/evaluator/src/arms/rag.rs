//! Naive RAG: the top passages of the raw question.

use super::{Arm, Gathered, asked, raw};
use s3_config::RetrievalMethod;
use s3_rollout::{Retrieve, RolloutError};
use s3_search::Question;

pub(super) struct Rag<'a> {
    pub(super) retriever: &'a dyn Retrieve,
    pub(super) top_k: u32,
    pub(super) ranking: RetrievalMethod,
}

impl Arm for Rag<'_> {
    fn gather(&mut self, _first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let found = self.retriever.retrieve_for(&asked(questions), &raw(questions), self.top_k, self.ranking)?;
        Ok(found.into_iter().map(|passages| Gathered { passages, ..Gathered::default() }).collect())
    }
}
