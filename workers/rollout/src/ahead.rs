//! Rounds of episodes that are played while the trainer learns from earlier ones.
//!
//! Which policy plays a round is a schedule, never what happened to be there: round t is played from its first
//! token to its last by the policy after t − 1 − staleness updates (by the first one where that is negative). So
//! up to `staleness + 1` rounds are under way, and what they become depends on the seed and the staleness alone.

use crate::error::RolloutError;
use s3_telemetry::Shutdown;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Scope;
use std::time::Duration;

/// Room for the tokenizer and debug builds.
const STACK: usize = 256 << 20;

/// Updates behind the policy that plays round `step` (from 1).
pub fn policy_of(step: u32, staleness: u32) -> u32 {
    step.saturating_sub(1).saturating_sub(staleness)
}

/// Rounds under way, at most `staleness + 1`. Those that nobody takes are given up when this is dropped.
pub struct Ahead<'scope, 'env, T> {
    scope: &'scope Scope<'scope, 'env>,
    staleness: u32,
    last: u32,
    rounds: BTreeMap<u32, Flight<T>>,
}

struct Flight<T> {
    result: Receiver<Result<T, RolloutError>>,
    shutdown: Shutdown,
    done: Arc<AtomicU64>,
}

impl<'scope, 'env, T: Send + 'scope> Ahead<'scope, 'env, T> {
    /// No round yet; `last` is the last one that will be asked for.
    pub fn new(scope: &'scope Scope<'scope, 'env>, staleness: u32, last: u32) -> Self {
        Self { scope, staleness, last, rounds: BTreeMap::new() }
    }

    /// The rounds that can start once `done` updates are behind and that are not under way, in order.
    pub fn due(&self, done: u32) -> Vec<u32> {
        let until = done.saturating_add(1).saturating_add(self.staleness).min(self.last);
        (done + 1..=until).filter(|step| !self.rounds.contains_key(step)).collect()
    }

    /// Starts a round on a thread of its own. The work counts its finished episodes and leaves when it is asked
    /// to.
    pub fn start(
        &mut self,
        step: u32,
        shutdown: Shutdown,
        work: impl FnOnce(&Shutdown, &AtomicU64) -> Result<T, RolloutError> + Send + 'scope,
    ) -> Result<(), RolloutError> {
        let (sender, result) = channel();
        let done = Arc::new(AtomicU64::new(0));
        let flight = Flight { result, shutdown: shutdown.clone(), done: done.clone() };
        std::thread::Builder::new()
            .name(format!("round {step}"))
            .stack_size(STACK)
            .spawn_scoped(self.scope, move || {
                // nobody takes a round that was given up
                let _ = sender.send(work(&shutdown, &done));
            })
            .map_err(|error| RolloutError::Thread { reason: error.to_string() })?;
        self.rounds.insert(step, flight);
        Ok(())
    }

    /// Waits for a round; `each` hears how many episodes are finished.
    pub fn take(&mut self, step: u32, each: impl Fn(u64)) -> Result<T, RolloutError> {
        let gone = |reason: &str| RolloutError::Thread { reason: format!("round {step}: {reason}") };
        let flight = self.rounds.get(&step).ok_or_else(|| gone("it was never started"))?;
        let result = loop {
            match flight.result.recv_timeout(Duration::from_millis(200)) {
                Ok(result) => break result,
                Err(RecvTimeoutError::Timeout) => each(flight.done.load(Ordering::Relaxed)),
                Err(RecvTimeoutError::Disconnected) => {
                    break Err(gone("it panicked; the message above says where"));
                }
            }
        };
        self.rounds.remove(&step);
        result
    }
}

impl<T> Drop for Ahead<'_, '_, T> {
    fn drop(&mut self) {
        self.rounds.values().for_each(|round| round.shutdown.request());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rounds_start_as_soon_as_their_policy_is_there() {
        for staleness in 0..4u32 {
            std::thread::scope(|scope| {
                let mut ahead = Ahead::new(scope, staleness, 6);
                for done in 0..6 {
                    for step in ahead.due(done) {
                        let policy = policy_of(step, staleness);
                        assert!(policy <= done && step - 1 - policy <= staleness);
                        ahead.start(step, Shutdown::default(), move |_, _| Ok(policy)).unwrap();
                    }
                    assert_eq!(ahead.rounds.len() as u32, (staleness + 1).min(6 - done));
                    assert_eq!(ahead.take(done + 1, |_| ()).unwrap(), done.saturating_sub(staleness));
                }
                assert!(ahead.due(6).is_empty());
            });
        }
    }

    #[test]
    fn a_round_that_panics_or_is_dropped_holds_nobody_up() {
        std::thread::scope(|scope| {
            let mut ahead = Ahead::<()>::new(scope, 1, 2);
            let wait = |shutdown: &Shutdown, _: &AtomicU64| {
                while !shutdown.requested() {
                    std::thread::yield_now();
                }
                Err(RolloutError::Interrupted)
            };
            ahead.start(2, Shutdown::default(), wait).unwrap();
            assert!(ahead.take(1, |_| ()).is_err());
        });
    }
}
