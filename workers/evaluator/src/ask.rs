//! `s3-evaluator ask`: one question, with everything the searcher did for it.

use crate::arms::{self, Surroundings};
use crate::error::EvalError;
use crate::run::Run;
use s3_config::{AnswerBy, ArmConfig, ArmMethod};
use s3_rollout::record::EpisodeRecord;
use s3_rollout::{
    AnswerOutcome, AnswerSource, ChatSampling, ChatSource, CompletionOutcome, GeneratorPeer, RetrieverPeer,
    RolloutError,
};
use s3_search::{Action, Message, Passage, Question};
use s3_telemetry::Failure;
use serde::Serialize;
use std::time::Instant;

/// What is printed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Asked {
    /// The question.
    pub question: String,
    /// The searcher's turns.
    pub turns: Vec<AskedTurn>,
    /// What the generator read, in order.
    pub passages: Vec<Passage>,
    /// The answer.
    pub answer: Option<String>,
    /// Why there is none: the generator refused.
    pub failure: Option<String>,
    /// Wall-clock seconds, loading the model left out.
    pub seconds: f64,
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AskedTurn {
    /// What the searcher wrote.
    pub text: String,
    /// Its search; none where it stopped or could not be read.
    pub query: Option<String>,
    /// Why the turn could not be read.
    pub invalid: Option<String>,
    /// The passages that its ids refer to.
    pub window: Vec<Passage>,
    /// What it selected, from 1 as it wrote it.
    pub selected: Vec<usize>,
}

/// Plays one episode and answers from it.
pub fn ask(run: &Run, question: &str, arm: Option<&str>) -> Result<Asked, Failure> {
    let arm = searcher_arm(&run.config.arms, arm, 1)?;
    let retriever = retriever(run)?;
    let generator = generator(run)?;
    let around = Surroundings {
        retriever: &retriever,
        chat: generator.as_ref().map_or(&NoChat as &dyn ChatSource, |generator| generator),
        passage_words: run.config.generator.passage_words,
        shutdown: &run.link.shutdown,
        seed: run.config.seed,
    };
    let mut arm = arms::open(&arm, around, Vec::new())?;
    let question =
        Question { id: "ask".into(), dataset: "ask".into(), question: question.to_owned(), answers: Vec::new() };
    let started = Instant::now();
    let mut gathered = arm.gather(0, std::slice::from_ref(&question))?;
    let gathered = gathered.pop().unwrap_or_default();
    let answers = match (&gathered.own, &generator) {
        (Some(own), _) => vec![AnswerOutcome::Answer(own.clone())],
        (None, Some(generator)) => generator.answer(&[(&question, &gathered.passages)])?,
        (None, None) => Vec::new(),
    };
    let (answer, failure) = match answers.into_iter().next() {
        Some(AnswerOutcome::Answer(answer)) => (Some(answer), None),
        Some(AnswerOutcome::Failed { reason, outage: true }) => return Err(Failure::unavailable(reason)),
        Some(AnswerOutcome::Failed { reason, outage: false }) => (None, Some(reason)),
        None => return Err(Failure::unavailable("the generator gave no answer")),
    };
    Ok(Asked {
        question: question.question,
        turns: turns_of(gathered.episode),
        passages: gathered.passages,
        answer,
        failure,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The run's retriever.
pub(crate) fn retriever(run: &Run) -> Result<RetrieverPeer, Failure> {
    let Some(endpoint) = &run.config.retriever else {
        return Err(Failure::input("this configuration has no retriever; a searcher needs one"));
    };
    Ok(RetrieverPeer::connect(&run.link, endpoint)?)
}

/// What the searcher did, turn by turn.
pub(crate) fn turns_of(episode: Option<EpisodeRecord>) -> Vec<AskedTurn> {
    let turns = episode.into_iter().flat_map(|episode| episode.turns).map(|turn| {
        let (query, invalid) = match turn.action {
            Action::Search { query } => (Some(query), None),
            Action::Complete | Action::Note => (None, None),
            Action::Invalid { reason } => (None, Some(reason)),
        };
        let selected = turn.selected.iter().map(|at| at + 1).collect();
        AskedTurn { text: turn.text, query, invalid, window: turn.window, selected }
    });
    turns.collect()
}

/// The run's generator; none where the searcher answers itself.
pub(crate) fn generator(run: &Run) -> Result<Option<GeneratorPeer>, Failure> {
    let config = &run.config.generator;
    if config.is_none() {
        return Ok(None);
    }
    Ok(Some(GeneratorPeer::connect(&run.link, config, &run.config.runtime.name)?))
}

/// No model behind a server: whoever is asked has one of its own.
pub(crate) struct NoChat;

impl ChatSource for NoChat {
    fn complete(
        &self,
        _: &[(&[Message], Vec<String>)],
        _: ChatSampling,
    ) -> Result<Vec<CompletionOutcome>, RolloutError> {
        let reason = "this configuration has none; set `generator`".to_owned();
        Err(RolloutError::Reply { service: "generator", reason })
    }
}

/// The arm of a searcher: of s3, or of a model of its own that searches and answers itself. It plays `batch` questions
/// together.
pub(crate) fn searcher_arm(arms: &[ArmConfig], named: Option<&str>, batch: usize) -> Result<ArmConfig, EvalError> {
    let mut found = arms.iter().cloned().filter_map(|mut arm| {
        match &mut arm.method {
            ArmMethod::S3 { batch: own, .. } => *own = batch,
            ArmMethod::SearchR1(played) if played.searcher.is_some() && played.answer == AnswerBy::Own => {
                played.batch = batch;
            }
            _ => return None,
        }
        Some(arm)
    });
    found.find(|arm| named.is_none_or(|name| arm.name == name)).ok_or_else(|| {
        EvalError::Config(match named {
            Some(name) => format!("no arm {name:?} with a searcher in this configuration"),
            None => "this configuration has no arm with a searcher (method S3 or SearchR1)".into(),
        })
    })
}
