//! Results of earlier queries. A served index never changes, so an entry never goes stale: the key names
//! the index.

use crate::rank::Ranked;
use crate::request::Method;
use std::collections::HashMap;
use std::sync::Arc;

/// What a result depends on.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Key {
    /// Digest of the index.
    pub index: Arc<str>,
    /// Ranking.
    pub method: Method,
    /// Passages asked for.
    pub k: usize,
    /// What else was asked for; empty when nothing was.
    pub plan: Arc<str>,
    /// The query.
    pub query: String,
}

/// A bounded map of two generations: when the young one is full it becomes the old one, and what was not
/// asked for since is dropped. Constant time, at most `capacity` entries.
pub struct Cache {
    half: usize,
    young: HashMap<Key, Arc<[Ranked]>>,
    old: HashMap<Key, Arc<[Ranked]>>,
}

impl Cache {
    /// Keeps at most `capacity` results; none when zero.
    pub fn new(capacity: usize) -> Self {
        Self { half: capacity / 2, young: HashMap::new(), old: HashMap::new() }
    }

    /// An earlier result.
    pub fn get(&mut self, key: &Key) -> Option<Arc<[Ranked]>> {
        if let Some(found) = self.young.get(key) {
            return Some(found.clone());
        }
        let (key, found) = self.old.remove_entry(key)?;
        self.insert(key, found.clone());
        Some(found)
    }

    /// Keeps a result.
    pub fn insert(&mut self, key: Key, result: Arc<[Ranked]>) {
        if self.half == 0 {
            return;
        }
        if self.young.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, result);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounded_and_keeps_what_is_asked_for() {
        let key = |query: usize| Key {
            index: "i".into(),
            method: Method::Lexical,
            k: 3,
            plan: "".into(),
            query: query.to_string(),
        };
        let mut cache = Cache::new(20);
        for at in 0..1000 {
            cache.insert(key(at), Arc::new([]));
            assert!(cache.get(&key(0)).is_some(), "after {at}");
            assert!(cache.young.len() + cache.old.len() <= 20);
        }
        assert!(cache.get(&key(1)).is_none());
        assert!(cache.get(&key(999)).is_some());
        let other = Key { index: "j".into(), ..key(999) };
        assert!(cache.get(&other).is_none());
    }
}
