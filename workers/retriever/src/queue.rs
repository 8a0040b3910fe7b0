//! Requests that wait for the engine, and the one worker that takes them up together.
//!
//! Whoever finds the worker idle starts it; it takes everything that waits as one round, up to a limit, and goes on
//! until nothing waits. Nobody waits for a batch to fill: alone, a request is served at once, and the more there are, the
//! larger the rounds become by themselves. Callers are tasks that await a reply, not threads that block.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Jobs in order of arrival.
pub struct Queue<J> {
    state: Mutex<State<J>>,
    /// Size of one round at most, as long as one job is smaller.
    limit: usize,
}

struct State<J> {
    waiting: VecDeque<(usize, J)>,
    working: bool,
}

impl<J> Queue<J> {
    /// A queue of rounds of at most `limit`.
    pub fn new(limit: usize) -> Self {
        Self { state: Mutex::new(State { waiting: VecDeque::new(), working: false }), limit }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job of a size; when it says so, the caller has to see that [`Queue::work`] is called.
    #[must_use]
    pub fn push(&self, size: usize, job: J) -> bool {
        let mut state = self.state();
        state.waiting.push_back((size, job));
        !std::mem::replace(&mut state.working, true)
    }

    /// Jobs that wait.
    pub fn len(&self) -> usize {
        self.state().waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Works on rounds until nothing waits. A round that panics loses its own jobs only: dropped, they tell their callers.
    pub fn work(&self, mut round: impl FnMut(Vec<J>)) {
        while let Some(jobs) = self.take() {
            if catch_unwind(AssertUnwindSafe(|| round(jobs))).is_err() {
                tracing::error!("a round of searches broke off");
            }
        }
    }

    fn take(&self) -> Option<Vec<J>> {
        let mut state = self.state();
        let mut size = 0;
        let fits = |job: &&(usize, J)| {
            size += job.0;
            size <= self.limit
        };
        let count = state.waiting.iter().take_while(fits).count().max(1).min(state.waiting.len());
        if count == 0 {
            state.working = false;
            return None;
        }
        Some(state.waiting.drain(..count).map(|(_, job)| job).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    #[test]
    fn everyone_is_answered_once_and_rounds_are_shared() {
        let queue = Queue::new(64);
        let (rounds, largest) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for caller in 0..16usize {
                let (queue, rounds, largest) = (&queue, &rounds, &largest);
                scope.spawn(move || {
                    for turn in 0..50 {
                        let (reply, answer) = mpsc::channel();
                        if queue.push(turn % 4, (caller * 1000 + turn, reply)) {
                            queue.work(|jobs| {
                                rounds.fetch_add(1, Ordering::SeqCst);
                                largest.fetch_max(jobs.len(), Ordering::SeqCst);
                                std::thread::yield_now();
                                jobs.into_iter().for_each(|(number, reply)| reply.send(number * 2).unwrap());
                            });
                        }
                        assert_eq!(answer.recv().unwrap(), 2 * (caller * 1000 + turn));
                        assert!(answer.recv().is_err());
                    }
                });
            }
        });
        assert!(rounds.load(Ordering::SeqCst) <= 16 * 50 && largest.load(Ordering::SeqCst) <= 128);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_broken_round_loses_its_own_jobs_only() {
        let queue = Queue::new(1);
        let (reply, answer) = mpsc::channel();
        assert!(queue.push(1, (0, reply.clone())));
        assert!(!queue.push(5, (1, reply.clone())), "somebody works already");
        assert!(!queue.push(1, (2, reply)));
        queue.work(|jobs| {
            assert_eq!(jobs.len(), 1, "a job above the limit has a round of its own");
            for (number, reply) in jobs {
                assert!(number != 1, "this one breaks");
                reply.send(number).unwrap();
            }
        });
        assert_eq!(answer.iter().collect::<Vec<_>>(), [0, 2]);
        let (reply, answer) = mpsc::channel();
        assert!(queue.push(1, (7, reply)), "the next one starts the worker again");
        queue.work(|jobs| jobs.into_iter().for_each(|(number, reply)| reply.send(number).unwrap()));
        assert_eq!(answer.recv().unwrap(), 7);
    }
}
