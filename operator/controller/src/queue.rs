//! The work queue: each key once, one worker per key, later times and growing pauses.

use crate::key::Key;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Pause after the first failure of a key; doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// Longest pause after failures.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

#[derive(Default)]
struct State {
    due: HashMap<Key, Instant>,
    /// Those of `due` that nobody works on, by time.
    order: BTreeSet<(Instant, Key)>,
    busy: HashSet<Key>,
    failures: HashMap<Key, u32>,
    closed: bool,
}

impl State {
    /// Sets when a key is due.
    fn set(&mut self, key: Key, at: Instant) {
        if let Some(old) = self.due.insert(key.clone(), at) {
            self.order.remove(&(old, key.clone()));
        }
        if !self.busy.contains(&key) {
            self.order.insert((at, key));
        }
    }
}

/// Keys and when they are due.
#[derive(Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for a key now.
    pub fn add(&self, key: Key) {
        self.add_after(key, Duration::ZERO);
    }

    /// Asks for a key because something that belongs to it changed.
    pub fn gather(&self, key: Key) {
        let pause = key.gathers();
        self.add_after(key, pause);
    }

    /// Asks for a key after a pause; an earlier time that is set already stays.
    pub fn add_after(&self, key: Key, pause: Duration) {
        let at = Instant::now() + pause;
        let mut state = self.state();
        if state.due.get(&key).is_none_or(|due| at < *due) {
            state.set(key, at);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Asks for a key after a failure: later each time, spread by up to a quarter.
    pub fn add_failed(&self, key: Key) {
        let failures = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures += 1;
            *failures
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(LONGEST_PAUSE);
        let spread = f64::from(crate::clock::noise(&key.to_string()) % 256) / 1024.0;
        self.add_after(key, pause.mul_f64(1.0 + spread));
    }

    /// A key that was done without failure.
    pub fn succeeded(&self, key: &Key) {
        self.state().failures.remove(key);
    }

    /// The next key that is due and not being worked on; none once the queue is closed.
    pub async fn next(&self) -> Option<Key> {
        loop {
            let wait = {
                let mut state = self.state();
                if state.closed {
                    drop(state);
                    self.changed.notify_one();
                    return None;
                }
                let now = Instant::now();
                match state.order.first().cloned() {
                    Some((at, key)) if at <= now => {
                        state.order.remove(&(at, key.clone()));
                        state.due.remove(&key);
                        state.busy.insert(key.clone());
                        drop(state);
                        self.changed.notify_one();
                        return Some(key);
                    }
                    Some((at, _)) => Some(at),
                    None => None,
                }
            };
            match wait {
                Some(at) => {
                    tokio::select! { () = tokio::time::sleep_until(at) => {}, () = self.changed.notified() => {} }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// A key that is no longer being worked on.
    pub fn done(&self, key: &Key) {
        let mut state = self.state();
        state.busy.remove(key);
        if let Some(at) = state.due.get(key).copied() {
            state.order.insert((at, key.clone()));
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Gives out no more keys.
    pub fn close(&self) {
        self.state().closed = true;
        self.changed.notify_one();
    }

    /// Keys that wait.
    pub fn depth(&self) -> usize {
        let now = Instant::now();
        self.state().due.values().filter(|at| **at <= now).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(name: &str) -> Key {
        Key::gateways(name)
    }

    #[tokio::test]
    async fn a_key_is_given_out_once_and_again_only_when_it_is_done() {
        let queue = Queue::default();
        queue.add(key("a"));
        queue.add(key("a"));
        assert_eq!(queue.next().await, Some(key("a")));
        queue.add(key("a"));
        queue.add_after(key("b"), Duration::from_millis(1));
        assert_eq!(queue.next().await, Some(key("b")), "the other is being worked on");
        queue.done(&key("a"));
        assert_eq!(queue.next().await, Some(key("a")));
    }

    #[tokio::test]
    async fn the_earlier_time_counts_and_failures_wait_longer() {
        let queue = Queue::default();
        queue.add_after(key("a"), Duration::from_secs(6000));
        queue.add_after(key("a"), Duration::from_millis(5));
        queue.add_after(key("a"), Duration::from_secs(3000));
        assert_eq!(queue.next().await, Some(key("a")));
        queue.done(&key("a"));
        for doubled in [1, 2] {
            let start = Instant::now();
            queue.add_failed(key("a"));
            queue.next().await.unwrap();
            queue.done(&key("a"));
            assert!(start.elapsed() >= FIRST_PAUSE * doubled);
        }
        queue.close();
        assert_eq!(queue.next().await, None);
    }
}
