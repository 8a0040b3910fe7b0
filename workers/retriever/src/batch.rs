//! Joins the work of callers that wait at the same time.
//!
//! The first caller to come works for all that are waiting, itself included; those that come meanwhile wait for
//! the next round. Nobody waits for a batch to fill: alone, a caller is served at once, and the more there are,
//! the larger the batches become by themselves.

use std::sync::{Condvar, Mutex, PoisonError};

/// Collects items of callers and works on them together.
pub struct Batcher<I, O> {
    state: Mutex<State<I, O>>,
    changed: Condvar,
    /// Items of one round at most, as long as one caller's items are fewer.
    limit: usize,
}

struct State<I, O> {
    next_ticket: u64,
    working: bool,
    waiting: Vec<(u64, Vec<I>)>,
    done: Vec<(u64, Option<Vec<O>>)>,
}

impl<I, O> Batcher<I, O> {
    /// A batcher of rounds of at most `limit` items.
    pub fn new(limit: usize) -> Self {
        let state = State { next_ticket: 0, working: false, waiting: Vec::new(), done: Vec::new() };
        Self { state: Mutex::new(state), changed: Condvar::new(), limit }
    }

    /// Results for `items`, in order, by `work`, which gets the items of several callers and answers each; none
    /// when the round that they were in broke off.
    pub fn run(&self, items: Vec<I>, work: impl Fn(Vec<I>) -> Option<Vec<O>>) -> Option<Vec<O>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push((ticket, items));
        loop {
            if let Some(at) = state.done.iter().position(|(done, _)| *done == ticket) {
                return state.done.swap_remove(at).1;
            }
            if state.working {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.working = true;
            let round = take(&mut state.waiting, self.limit);
            drop(state);
            let mut guard =
                Round { batcher: self, tickets: round.iter().map(|(ticket, _)| *ticket).collect(), done: None };
            let sizes: Vec<usize> = round.iter().map(|(_, items)| items.len()).collect();
            let found = work(round.into_iter().flat_map(|(_, items)| items).collect());
            guard.done = found.filter(|found| found.len() == sizes.iter().sum::<usize>()).map(|found| {
                let mut found = found.into_iter();
                sizes.iter().map(|size| found.by_ref().take(*size).collect()).collect()
            });
            drop(guard);
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The longest waiting callers whose items together stay within the limit, at least one.
fn take<I>(waiting: &mut Vec<(u64, Vec<I>)>, limit: usize) -> Vec<(u64, Vec<I>)> {
    let mut items = 0;
    let fits = |(_, list): &&(u64, Vec<I>)| {
        items += list.len();
        items <= limit
    };
    let count = waiting.iter().take_while(fits).count().max(1).min(waiting.len());
    waiting.drain(..count).collect()
}

/// Ends a round even when the work panicked: its callers must not wait for ever.
struct Round<'a, I, O> {
    batcher: &'a Batcher<I, O>,
    tickets: Vec<u64>,
    done: Option<Vec<Vec<O>>>,
}

impl<I, O> Drop for Round<'_, I, O> {
    fn drop(&mut self) {
        let mut state = self.batcher.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.working = false;
        let mut found = self.done.take().map(Vec::into_iter);
        for ticket in self.tickets.drain(..) {
            let result = found.as_mut().and_then(Iterator::next);
            state.done.push((ticket, result));
        }
        drop(state);
        self.batcher.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn everyone_gets_their_own_and_rounds_are_shared() {
        let batcher = Batcher::new(64);
        let (rounds, largest) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for caller in 0..16usize {
                let (batcher, rounds, largest) = (&batcher, &rounds, &largest);
                scope.spawn(move || {
                    for turn in 0..50 {
                        let items: Vec<usize> = (0..turn % 4).map(|at| caller * 1000 + turn * 10 + at).collect();
                        let found = batcher.run(items.clone(), |items| {
                            rounds.fetch_add(1, Ordering::SeqCst);
                            largest.fetch_max(items.len(), Ordering::SeqCst);
                            std::thread::yield_now();
                            Some(items.into_iter().map(|item| item * 2).collect())
                        });
                        assert_eq!(found.unwrap(), items.iter().map(|item| item * 2).collect::<Vec<_>>());
                    }
                });
            }
        });
        assert!(rounds.load(Ordering::SeqCst) <= 16 * 50 && largest.load(Ordering::SeqCst) <= 64);
        assert!(batcher.state.lock().unwrap().done.is_empty());
    }

    #[test]
    fn a_broken_round_frees_its_callers() {
        let batcher: Batcher<u32, u32> = Batcher::new(8);
        assert!(batcher.run(vec![1], |_| None).is_none());
        assert!(batcher.run(vec![1], |_| Some(Vec::new())).is_none());
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| batcher.run(vec![1], |_| panic!("work"))));
        assert!(panicked.is_err());
        batcher.state.lock().unwrap().done.clear();
        assert_eq!(batcher.run(vec![3], Some), Some(vec![3]));
    }
}
