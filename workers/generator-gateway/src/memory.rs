//! Answers kept in memory: the newest, up to a number and a size.

use crate::cache::Key;
use crate::provider::Completion;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Parts with a lock each, so that threads seldom meet.
const PARTS: usize = 16;
/// Answers kept in memory.
const ANSWERS: usize = 100_000;
/// Bytes of their texts.
const BYTES: usize = 64 << 20;

/// Keys are digests: their first bytes are as good as any hash of them.
#[derive(Clone, Default)]
pub(crate) struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for (place, byte) in bytes.iter().take(8).enumerate() {
            self.0 ^= u64::from(*byte) << (8 * place);
        }
    }
    // the length of an array key says nothing
    fn write_usize(&mut self, _: usize) {}
}

impl BuildHasher for FirstBytes {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

#[derive(Default)]
struct Part {
    answers: HashMap<Key, Arc<Completion>, FirstBytes>,
    order: VecDeque<Key>,
    bytes: usize,
}

fn weight(answer: &Completion) -> usize {
    answer.text.len() + answer.logprobs.as_ref().map_or(0, |logprobs| logprobs.len())
}

/// The memory.
#[derive(Default)]
pub(crate) struct Memory([Mutex<Part>; PARTS]);

impl Memory {
    fn part(&self, key: &Key) -> MutexGuard<'_, Part> {
        // the maps are whole after every statement, so a panicked holder leaves nothing half done
        self.0[usize::from(key[31]) % PARTS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, key: &Key) -> Option<Arc<Completion>> {
        self.part(key).answers.get(key).cloned()
    }

    /// Keeps an answer; the first one of a key stays. What is now kept is returned.
    pub fn insert(&self, key: Key, answer: Arc<Completion>) -> Arc<Completion> {
        let mut part = self.part(&key);
        if let Some(first) = part.answers.get(&key) {
            return first.clone();
        }
        part.bytes += weight(&answer);
        part.answers.insert(key, answer.clone());
        part.order.push_back(key);
        while part.order.len() > ANSWERS / PARTS || (part.bytes > BYTES / PARTS && part.order.len() > 1) {
            let Some(oldest) = part.order.pop_front() else { break };
            if let Some(gone) = part.answers.remove(&oldest) {
                part.bytes -= weight(&gone);
            }
        }
        answer
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::provider::Finish;

    #[test]
    fn the_first_answer_stays_and_old_ones_go() {
        let memory = Memory::default();
        let answer = |text: String| {
            Arc::new(Completion { text, prompt_tokens: 1, completion_tokens: 1, finish: Finish::Stop, logprobs: None })
        };
        let key = |i: u32| -> Key { crate::cache::digest_of(&i.to_le_bytes()) };
        for i in 0..150_000u32 {
            memory.insert(key(i), answer(i.to_string()));
        }
        assert_eq!(memory.insert(key(149_999), answer("other".into())).text, "149999");
        assert!(memory.get(&key(0)).is_none());
        let kept = (0..150_000).filter(|i| memory.get(&key(*i)).is_some()).count();
        assert!(kept <= ANSWERS && kept > ANSWERS * 9 / 10, "{kept}");
        memory.insert(key(1 << 20), answer("x".repeat(BYTES)));
        assert!(memory.get(&key(1 << 20)).is_some());
    }
}
