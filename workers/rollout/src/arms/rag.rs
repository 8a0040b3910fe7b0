//! Naive RAG: the top passages of the raw question.

use super::{Arm, Gathered, asked, raw};
use crate::error::RolloutError;
use crate::peers::Retrieve;
use s3_config::RetrievalMethod;

use s3_search::Question;

/// The arm of a number of passages.
pub struct Rag<'a> {
    /// Ranks passages.
    pub retriever: &'a dyn Retrieve,
    /// Passages.
    pub top_k: u32,
    /// How they are ranked.
    pub ranking: RetrievalMethod,
}

impl Arm for Rag<'_> {
    fn gather(&mut self, _first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let found = self.retriever.retrieve_for(&asked(questions), &raw(questions), self.top_k, self.ranking)?;
        Ok(found.into_iter().map(|passages| Gathered { passages, ..Gathered::default() }).collect())
    }
}
