//! How long calls take: searches, generations and verdicts, each as the evaluation waits for it.
//!
//! Several items travel in one call, so these are seconds per call, as a caller of the services sees them. They are
//! facts of a run and enter no digest.

use s3_config::{GeneratorConfig, RetrievalMethod};
use s3_rollout::{
    AnswerOutcome, AnswerSource, ChatSampling, ChatSource, CompletionOutcome, Judged, Retrieve, RolloutError, Usage,
};
use s3_search::{Message, Passage, Question};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
use std::time::Instant;

/// Seconds of single calls.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Calls {
    /// To the retriever.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<f64>,
    /// To the generator: answers, and turns of models that it serves.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub generation: Vec<f64>,
    /// To the judge.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub judge: Vec<f64>,
}

impl Calls {
    /// Whether there was none.
    pub fn is_empty(&self) -> bool {
        self.search.is_empty() && self.generation.is_empty() && self.judge.is_empty()
    }

    /// Adds more.
    pub fn extend(&mut self, more: &Self) {
        self.search.extend_from_slice(&more.search);
        self.generation.extend_from_slice(&more.generation);
        self.judge.extend_from_slice(&more.judge);
    }
}

/// Notes the seconds of calls that go through [`Timed`].
#[derive(Debug, Default)]
pub struct Timer(RefCell<Calls>);

impl Timer {
    /// What was noted since the last time.
    pub fn take(&self) -> Calls {
        self.0.take()
    }

    /// A peer whose calls are timed.
    pub fn of<T>(&self, inner: T) -> Timed<'_, T> {
        Timed { inner, timer: self }
    }

    fn note<T>(&self, of: fn(&mut Calls) -> &mut Vec<f64>, call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let done = call();
        of(&mut self.0.borrow_mut()).push(started.elapsed().as_secs_f64());
        done
    }
}

/// A peer whose calls are timed.
#[derive(Debug)]
pub struct Timed<'a, T> {
    inner: T,
    timer: &'a Timer,
}

impl Retrieve for Timed<'_, &dyn Retrieve> {
    fn retrieve(
        &self,
        queries: &[String],
        top_k: u32,
        method: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError> {
        self.timer.note(|calls| &mut calls.search, || self.inner.retrieve(queries, top_k, method))
    }

    fn retrieve_for(
        &self,
        questions: &[&Question],
        queries: &[String],
        top_k: u32,
        method: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let call = || self.inner.retrieve_for(questions, queries, top_k, method);
        self.timer.note(|calls| &mut calls.search, call)
    }

    fn deepest(&self) -> u32 {
        self.inner.deepest()
    }

    fn looks_at_questions(&self) -> bool {
        self.inner.looks_at_questions()
    }
}

impl AnswerSource for Timed<'_, &dyn AnswerSource> {
    fn config(&self) -> &GeneratorConfig {
        self.inner.config()
    }

    fn answer(&self, items: &[(&Question, &[Passage])]) -> Result<Vec<AnswerOutcome>, RolloutError> {
        self.timer.note(|calls| &mut calls.generation, || self.inner.answer(items))
    }

    fn judge(&self, items: &[(&Question, &str)]) -> Result<Vec<Judged>, RolloutError> {
        self.timer.note(|calls| &mut calls.judge, || self.inner.judge(items))
    }

    fn usage(&self) -> Usage {
        self.inner.usage()
    }
}

impl ChatSource for Timed<'_, &dyn ChatSource> {
    fn complete(
        &self,
        items: &[(&[Message], Vec<String>)],
        sampling: ChatSampling,
    ) -> Result<Vec<CompletionOutcome>, RolloutError> {
        self.timer.note(|calls| &mut calls.generation, || self.inner.complete(items, sampling))
    }
}
