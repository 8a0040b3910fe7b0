//! Methods that gather passages for questions, or answer themselves: the arms of an evaluation, and what a training
//! compares with.
//!
//! * `direct`, `rag`: nothing, and the top passages of the raw question.
//! * `played`: every other paper's method, by its machine of [`s3_search::script`].

mod direct;
mod played;
mod rag;

pub use direct::Direct;
pub use played::Played;
pub use rag::Rag;

use crate::codec::ModelCodec;
use crate::error::RolloutError;
use crate::peers::{ChatSource, Retrieve};
use crate::record::EpisodeRecord;
use s3_config::{ArmMethod, ModelSpec};
use s3_model::Decoder;
use s3_search::{Passage, Question};
use s3_telemetry::Shutdown;
use serde::{Deserialize, Serialize};

/// What an arm hands to the generator for one question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gathered {
    /// In the order the generator reads them.
    pub passages: Vec<Passage>,
    /// Searches beside the raw question's.
    pub searches: u32,
    /// The searcher's episode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub episode: Option<EpisodeRecord>,
    /// The method's own answer, where it answers itself; empty when it gave none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<String>,
    /// Why the question could not be played: the served model refuses it. It has no verdict then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// One method.
pub trait Arm {
    /// Passages for consecutive questions of the set; `first` is the place of the first one. Infrastructure
    /// failures are errors: nothing is handed over in their place.
    fn gather(&mut self, first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError>;
}

/// What an arm is made of.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    /// Ranks passages.
    pub retriever: &'a dyn Retrieve,
    /// The generator's model, for methods without one of their own.
    pub chat: &'a dyn ChatSource,
    /// Words of a passage that the generator reads; 0 is all.
    pub passage_words: u32,
    /// Stops episodes.
    pub shutdown: &'a Shutdown,
    /// Seed of the run.
    pub seed: u64,
}

/// A loaded searcher.
pub struct Searcher {
    /// Its weights.
    pub decoder: Decoder,
    /// Its tokenizer.
    pub codec: ModelCodec,
}

impl Searcher {
    /// Loads weights, adapter and tokenizer.
    pub fn load(spec: &ModelSpec) -> Result<Self, RolloutError> {
        let (decoder, tokenizer) = Decoder::load(spec)?;
        Ok(Self { decoder, codec: ModelCodec::new(tokenizer) })
    }
}

/// Makes an arm, and loads its model where it has one; none for methods that need more than their configuration: a
/// trained searcher, and what another arm handed over.
pub fn open<'a>(method: &'a ArmMethod, around: Surroundings<'a>) -> Result<Option<Box<dyn Arm + 'a>>, RolloutError> {
    if let Some((kind, config)) = method.played() {
        let model = config.searcher.as_ref().map(Searcher::load).transpose()?;
        return Ok(Some(Box::new(Played { kind, config, model, around })));
    }
    Ok(match method {
        ArmMethod::Direct {} => Some(Box::new(Direct)),
        ArmMethod::Rag { top_k, ranking } => {
            Some(Box::new(Rag { retriever: around.retriever, top_k: *top_k, ranking: *ranking }))
        }
        _ => None,
    })
}

/// The questions, as a retriever is told them.
pub fn asked(questions: &[Question]) -> Vec<&Question> {
    questions.iter().collect()
}

/// The questions' own texts, as queries.
pub fn raw(questions: &[Question]) -> Vec<String> {
    questions.iter().map(|question| question.question.clone()).collect()
}
