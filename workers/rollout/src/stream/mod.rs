//! Plays episodes that wait for nobody but themselves.
//!
//! Rows that are ready are decoded together, token by token; whoever finishes a turn leaves, whoever got its
//! passages joins. Searches, answers and everything else that takes its time are calls on threads of their own,
//! so a slow one holds up its episode alone. As a row's bits do not depend on the rows beside it
//! ([`Decoder::rows_stand_alone`]), what an episode becomes is a function of its question, sample, policy and
//! seed, and of no latency. Where rows do not stand alone, [`Pace::Together`] keeps the batches equal by waiting.
//!
//! * [`table`]: who plays, who waits, and for what.
//! * [`rows`]: turns that a decoder of this process writes.
//! * [`server`]: turns that a server writes; then each is a call like the others.

mod rows;
mod server;
mod table;

use crate::calls::{Calls, Closing};
use crate::error::RolloutError;
use crate::peers::Retrieve;
use crate::play::{Sampling, Seat, TurnCodec};
use s3_config::RetrievalMethod;
use s3_model::Decoder;
use s3_search::{Passage, Play, Question};
use s3_telemetry::Shutdown;
pub use server::{Continuation, Continued, RolloutServer};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use table::Table;

/// Room for the tokenizer and debug builds.
const STACK: usize = 64 << 20;

/// A call to a service, made while others are played.
pub type Job<'s, T> = Box<dyn FnOnce() -> T + Send + 's>;

/// Whether an episode that waits lets others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each for itself, token by token.
    Free,
    /// Each for itself, turn by turn: whoever gets its passages joins when the turns under way are written. For
    /// devices that decode a whole turn at once.
    Turns,
    /// Nobody writes before all searches under way are answered: batches are the same whatever the latencies.
    Together,
}

/// What is played, kept and paid for. Groups are questions; the episodes of a group begin alike.
///
/// Its methods are called by one thread at a time.
pub trait Stage<'s>: Send {
    /// A run.
    type Play: Play + Send;
    /// What a call of [`Self::ended`] brings.
    type Answer: Send + 's;

    /// Tokens that every prompt begins with. Where they end may depend on nothing that is played.
    fn beginning(&self) -> Vec<u32> {
        Vec::new()
    }
    /// What to search before a group's episodes can start: question, words, passages. None where nothing is.
    fn opening(&mut self, group: usize) -> Option<(Question, String, usize)>;
    /// The episodes of a group that are still to be played.
    fn seats(&mut self, group: usize, initial: Vec<Passage>) -> Result<Vec<Seat<Self::Play>>, RolloutError>;
    /// Calls that are still to be made for runs of a group that were over before.
    fn unanswered(&mut self, _group: usize) -> Vec<Job<'s, Self::Answer>> {
        Vec::new()
    }
    /// Takes a run that is over; the call is made elsewhere, and its answer comes to [`Self::answered`].
    fn ended(&mut self, group: usize, run: Seat<Self::Play>) -> Result<Option<Job<'s, Self::Answer>>, RolloutError>;
    /// Takes an answer.
    fn answered(&mut self, answer: Self::Answer) -> Result<(), RolloutError>;
    /// Puts what was taken so far where it outlives the process.
    fn keep(&mut self) -> Result<(), RolloutError>;
}

/// Who writes the turns of episodes.
#[derive(Clone, Copy)]
pub enum Writer<'s> {
    /// A decoder of this process.
    Decoder(&'s Decoder),
    /// A server that holds the same policy. Episodes wait for their own turns alone, whatever the pace.
    Server(&'s dyn RolloutServer),
}

/// Everything that plays episodes of a stage.
pub struct Stream<'s> {
    /// The searcher.
    pub writer: Writer<'s>,
    /// Its tokenizer.
    pub codec: &'s (dyn TurnCodec + Sync),
    /// Answers searches.
    pub retriever: &'s (dyn Retrieve + Sync),
    /// How passages are ranked.
    pub method: RetrievalMethod,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Looked at between tokens.
    pub shutdown: &'s Shutdown,
    /// Episodes that are played at once, each with a row of the cache, or a call to the server.
    pub slots: usize,
    /// Threads that decode, each with its share of groups and slots.
    pub workers: usize,
    /// Searches and answers under way at once.
    pub calls: (usize, usize),
    /// Who waits for whom.
    pub pace: Pace,
}

impl<'s> Stream<'s> {
    /// Plays `groups` groups to their ends and returns the number of tokens that went through the model.
    pub fn run<S: Stage<'s>>(&self, groups: usize, stage: &Mutex<S>) -> Result<u64, RolloutError> {
        let workers = self.workers.clamp(1, groups.max(1));
        if workers == 1 {
            return self.worker(&(0..groups).collect::<Vec<_>>(), self.slots, stage);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|worker| {
                    let share: Vec<usize> = (worker..groups).step_by(workers).collect();
                    std::thread::Builder::new()
                        .name(format!("rollout {worker}"))
                        .stack_size(STACK)
                        .spawn_scoped(scope, move || self.worker(&share, (self.slots / workers).max(1), stage))
                        .map_err(|error| RolloutError::Thread { reason: error.to_string() })
                })
                .collect::<Result<_, _>>()?;
            let mut sum = Ok(0);
            for thread in threads {
                let computed = thread.join().unwrap_or_else(|_| Err(lost()));
                // the first error counts; the others are its echoes
                sum = sum.and_then(|sum: u64| Ok(sum + computed?));
            }
            sum
        })
    }

    fn worker<S: Stage<'s>>(&self, groups: &[usize], slots: usize, stage: &Mutex<S>) -> Result<u64, RolloutError> {
        let (searches, answers, turns) = (Calls::new(), Calls::new(), Calls::new());
        std::thread::scope(|scope| {
            let (sender, events) = channel();
            let _closing = (Closing(&searches), Closing(&answers), Closing(&turns));
            let slots = slots.max(1);
            let workers = self.workers.max(1);
            searches.serve(scope, (self.calls.0 / workers).max(1), &sender);
            answers.serve(scope, (self.calls.1 / workers).max(1), &sender);
            if matches!(self.writer, Writer::Server(_)) {
                turns.serve(scope, slots, &sender);
            }
            let calls = table::Pools { searches: &searches, answers: &answers, turns: &turns };
            let mut table = Table::new(self, stage, calls, (sender, events), slots)?;
            table.open(groups)?;
            while table.step()? {}
            lock(stage).keep()?;
            Ok(table.computed())
        })
    }
}

fn lock<S>(stage: &Mutex<S>) -> MutexGuard<'_, S> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> RolloutError {
    RolloutError::Thread { reason: "it panicked; the message above says where".into() }
}
