//! What waits for the engine, and its one thread that takes it up in rounds.
//!
//! The thread takes everything that waits as one round, up to a limit, and goes on until nothing waits. Nobody waits for
//! a batch to fill: alone, a job is served at once, and the more there are, the larger the rounds become by themselves.
//! Callers are tasks that await a reply, not threads that block.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Jobs in order of arrival.
pub struct Queue<J> {
    state: Mutex<State<J>>,
    arrived: Condvar,
    /// Size of one round at most, as long as one job is smaller.
    limit: usize,
}

struct State<J> {
    waiting: VecDeque<(usize, J)>,
    /// Of all that waits together.
    size: usize,
    /// Whether the thread sleeps.
    idle: bool,
    closed: bool,
}

impl<J> Queue<J> {
    /// A queue of rounds of at most `limit`.
    pub fn new(limit: usize) -> Self {
        let state = State { waiting: VecDeque::new(), size: 0, idle: false, closed: false };
        Self { state: Mutex::new(state), arrived: Condvar::new(), limit }
    }

    fn state(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job of a size. After the end it is dropped, which tells its caller.
    pub fn push(&self, size: usize, job: J) {
        let mut state = self.state();
        if state.closed {
            return;
        }
        state.waiting.push_back((size, job));
        state.size += size;
        show(state.size);
        // a thread that works takes it up by itself
        let idle = std::mem::replace(&mut state.idle, false);
        drop(state);
        if idle {
            self.arrived.notify_one();
        }
    }

    /// Ends the queue: what waits is dropped, and the thread with it.
    pub fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        state.size = 0;
        show(0);
        drop(state);
        self.arrived.notify_all();
    }

    /// Works on rounds until the end. A round that panics loses its own jobs only: dropped, they tell their callers.
    pub fn work(&self, mut round: impl FnMut(Vec<J>)) {
        while let Some(jobs) = self.take() {
            if catch_unwind(AssertUnwindSafe(|| round(jobs))).is_err() {
                tracing::error!("a round of searches broke off");
            }
        }
    }

    fn take(&self) -> Option<Vec<J>> {
        let mut state = self.state();
        while state.waiting.is_empty() && !state.closed {
            state.idle = true;
            state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.idle = false;
        if state.closed {
            return None;
        }
        let mut size = 0;
        let fits = |job: &&(usize, J)| {
            size += job.0;
            size <= self.limit
        };
        let count = state.waiting.iter().take_while(fits).count().max(1);
        let taken: Vec<(usize, J)> = state.waiting.drain(..count).collect();
        state.size -= taken.iter().map(|(size, _)| size).sum::<usize>();
        show(state.size);
        Some(taken.into_iter().map(|(_, job)| job).collect())
    }
}

/// Shows how much waits. A process serves one index, so one queue speaks.
fn show(waiting: usize) {
    let none: [&str; 0] = [];
    s3_telemetry::metrics().retriever_waiting.with_label_values(&none).set(waiting as f64);
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
        let (rounds, largest, left) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(16));
        std::thread::scope(|scope| {
            for caller in 0..16usize {
                let (queue, left) = (&queue, &left);
                scope.spawn(move || {
                    for turn in 0..50 {
                        let (reply, answer) = mpsc::channel();
                        queue.push(turn % 4, (caller * 1000 + turn, reply));
                        assert_eq!(answer.recv().unwrap(), 2 * (caller * 1000 + turn));
                        assert!(answer.recv().is_err());
                    }
                    if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                        queue.close();
                    }
                });
            }
            queue.work(|jobs: Vec<(usize, mpsc::Sender<usize>)>| {
                rounds.fetch_add(1, Ordering::SeqCst);
                largest.fetch_max(jobs.len(), Ordering::SeqCst);
                std::thread::yield_now();
                for (number, reply) in jobs {
                    reply.send(number * 2).unwrap();
                }
            });
        });
        assert!(rounds.load(Ordering::SeqCst) <= 16 * 50 && largest.load(Ordering::SeqCst) <= 16);
    }

    #[test]
    fn a_broken_round_loses_its_own_jobs_only_and_so_does_the_end() {
        let queue = Queue::new(1);
        let (reply, answer) = mpsc::channel();
        for (size, number) in [(1, 0), (5, 1), (1, 2)] {
            queue.push(size, (number, reply.clone()));
        }
        drop(reply);
        queue.work(|jobs| {
            assert_eq!(jobs.len(), 1, "a job above the limit has a round of its own");
            for (number, reply) in jobs {
                assert!(number != 1, "this one breaks");
                reply.send(number).unwrap();
                if number == 2 {
                    queue.push(1, (3, reply));
                    queue.close();
                }
            }
        });
        assert_eq!(answer.iter().collect::<Vec<_>>(), [0, 2]);
        let (reply, answer) = mpsc::channel();
        queue.push(1, (4, reply));
        assert!(answer.recv().is_err(), "nobody would take it");
    }
}
