//! The answer cache: one file, exact keys, whole batches.
//!
//! A batch is stored in one transaction, and only then answered. So after `kill -9` a repeated request finds
//! all answers of the batch or none: the batch that is computed again is the same batch, and Bitwise mode
//! repeats to the bit. The first stored answer of a key stays: whoever computed the same key at the same time
//! is given the stored one, so a key never has two answers.
//!
//! Commits are two-phase, because the texts come from outside. The whole file is verified when it is opened,
//! and each value carries its own checksum over key and content: a damaged file is refused, never believed.

use crate::provider::{Call, Completion, Finish};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// sha256 over everything that decides an answer.
pub type Key = [u8; 32];

const ANSWERS: TableDefinition<'static, &[u8; 32], &[u8]> = TableDefinition::new("answers");
const META: TableDefinition<'static, &str, u32> = TableDefinition::new("meta");
const FORMAT: u32 = 1;
const CHECK: usize = 16;
/// Answers kept in memory; an answer is small, so this is a few tens of MB.
const MEMORY: usize = 100_000;
/// Bytes of file pages kept in memory.
const PAGES: usize = 32 << 20;

/// Why the cache cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Content that this program did not write.
    #[error("answer cache {path} is damaged ({reason}); remove it to start with an empty one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// Another process holds the file.
    #[error("answer cache {path} is in use by another gateway; give each its own file or stop the other")]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("answer cache {path} cannot be {action}: {reason}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        reason: String,
    },
}

/// The key of a call to a provider.
pub fn key(digest: &str, scope: &str, call: &Call) -> Result<Key, serde_json::Error> {
    let mut hasher = Sha256::new();
    let call = serde_json::to_vec(call)?;
    for part in [b"s3-answer-1", digest.as_bytes(), scope.as_bytes(), &call] {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    Ok(hasher.finalize().into())
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    text: std::borrow::Cow<'a, str>,
    prompt: u32,
    completion: u32,
    length: bool,
}

fn pack(key: &Key, answer: &Completion) -> Result<Vec<u8>, serde_json::Error> {
    let stored = Stored {
        text: answer.text.as_str().into(),
        prompt: answer.prompt_tokens,
        completion: answer.completion_tokens,
        length: answer.finish == Finish::Length,
    };
    let payload = serde_json::to_vec(&stored)?;
    let mut value = checksum(key, &payload).to_vec();
    value.extend(payload);
    Ok(value)
}

fn unpack(key: &Key, value: &[u8]) -> Option<Completion> {
    let (check, payload) = value.split_at_checked(CHECK)?;
    if check != checksum(key, payload) {
        return None;
    }
    let stored: Stored<'_> = serde_json::from_slice(payload).ok()?;
    Some(Completion {
        text: stored.text.into_owned(),
        prompt_tokens: stored.prompt,
        completion_tokens: stored.completion,
        finish: if stored.length { Finish::Length } else { Finish::Stop },
    })
}

fn checksum(key: &Key, payload: &[u8]) -> [u8; CHECK] {
    let full: [u8; 32] = Sha256::new().chain_update(key).chain_update(payload).finalize().into();
    let mut short = [0; CHECK];
    short.copy_from_slice(&full[..CHECK]);
    short
}

/// The cache. Calls block on the disk: use them off the async threads.
pub struct AnswerCache {
    path: PathBuf,
    database: Database,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    answers: HashMap<Key, Completion>,
    order: VecDeque<Key>,
}

impl Memory {
    fn insert(&mut self, key: Key, answer: Completion) {
        if self.answers.insert(key, answer).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > MEMORY
            && let Some(oldest) = self.order.pop_front()
        {
            self.answers.remove(&oldest);
        }
    }
}

impl AnswerCache {
    /// Opens or creates the file and verifies all of it.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        let io =
            |action| move |e: std::io::Error| CacheError::Io { path: path.to_owned(), action, reason: e.to_string() };
        if !path.try_exists().map_err(io("opened"))? {
            create(path)?;
        }
        let database = Builder::new()
            .set_cache_size(PAGES)
            .set_check_integrity_on_open(true)
            .open(path)
            .map_err(|e| opening(path, &e))?;
        let cache = Self { path: path.to_owned(), database, memory: Mutex::default() };
        cache.check_format()?;
        Ok(cache)
    }

    fn check_format(&self) -> Result<(), CacheError> {
        let read = |e: redb::Error| self.failed("read", e);
        let transaction = self.database.begin_read().map_err(|e| read(e.into()))?;
        let table = transaction.open_table(META).map_err(|e| read(e.into()))?;
        let found = table.get("format").map_err(|e| read(e.into()))?.map(|value| value.value());
        if found == Some(FORMAT) {
            return Ok(());
        }
        let reason = format!("format {found:?}, this gateway writes {FORMAT}");
        Err(CacheError::Damaged { path: self.path.clone(), reason })
    }

    fn failed(&self, action: &'static str, error: redb::Error) -> CacheError {
        failed(&self.path, action, error)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // the maps are whole after every statement, so a panicked holder leaves nothing half done
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The stored answers of a batch.
    pub fn lookup(&self, keys: &[Key]) -> Result<Vec<Option<Completion>>, CacheError> {
        let mut found: Vec<Option<Completion>> = {
            let memory = self.memory();
            keys.iter().map(|key| memory.answers.get(key).cloned()).collect()
        };
        if found.iter().all(Option::is_some) {
            return Ok(found);
        }
        let read = |e: redb::Error| self.failed("read", e);
        let transaction = self.database.begin_read().map_err(|e| read(e.into()))?;
        let table = transaction.open_table(ANSWERS).map_err(|e| read(e.into()))?;
        for (key, slot) in keys.iter().zip(&mut found).filter(|(_, slot)| slot.is_none()) {
            if let Some(value) = table.get(key).map_err(|e| read(e.into()))? {
                let answer = unpack(key, value.value()).ok_or_else(|| self.damaged_value())?;
                self.memory().insert(*key, answer.clone());
                *slot = Some(answer);
            }
        }
        Ok(found)
    }

    fn damaged_value(&self) -> CacheError {
        CacheError::Damaged { path: self.path.clone(), reason: "an answer does not match its checksum".to_owned() }
    }

    /// Stores a batch in one transaction; on disk when this returns. The result is what the cache now holds:
    /// an answer that was stored first stays.
    pub fn store(&self, batch: Vec<(Key, Completion)>) -> Result<Vec<Completion>, CacheError> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let write = |e: redb::Error| self.failed("written", e);
        let mut transaction = self.database.begin_write().map_err(|e| write(e.into()))?;
        transaction.set_two_phase_commit(true);
        let mut kept = Vec::with_capacity(batch.len());
        {
            let mut table = transaction.open_table(ANSWERS).map_err(|e| write(e.into()))?;
            for (key, answer) in batch {
                let present = match table.get(&key).map_err(|e| write(e.into()))? {
                    Some(value) => Some(unpack(&key, value.value()).ok_or_else(|| self.damaged_value())?),
                    None => None,
                };
                let answer = if let Some(present) = present {
                    present
                } else {
                    let value = pack(&key, &answer).map_err(|e| write(StorageError::Io(e.into()).into()))?;
                    table.insert(&key, value.as_slice()).map_err(|e| write(e.into()))?;
                    answer
                };
                kept.push((key, answer));
            }
        }
        transaction.commit().map_err(|e| write(e.into()))?;
        let mut memory = self.memory();
        Ok(kept
            .into_iter()
            .map(|(key, answer)| {
                memory.insert(key, answer.clone());
                answer
            })
            .collect())
    }
}

/// Makes an empty cache beside the path and renames it, so that a half made file never bears the name.
fn create(path: &Path) -> Result<(), CacheError> {
    let io = |e: std::io::Error| CacheError::Io { path: path.to_owned(), action: "created", reason: e.to_string() };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(io)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.new", std::process::id()));
    let temporary = PathBuf::from(temporary);
    if temporary.exists() {
        std::fs::remove_file(&temporary).map_err(io)?;
    }
    let made = fill_empty(&temporary).map_err(|e| failed(path, "created", e));
    let renamed = made.and_then(|()| std::fs::rename(&temporary, path).map_err(io));
    if renamed.is_err() {
        // the error that counts is the first
        let _ = std::fs::remove_file(&temporary);
    }
    renamed?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io)
}

fn fill_empty(path: &Path) -> Result<(), redb::Error> {
    let database = Database::create(path)?;
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", FORMAT)?;
    transaction.open_table(ANSWERS)?;
    transaction.commit()?;
    Ok(())
}

fn opening(path: &Path, error: &DatabaseError) -> CacheError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            CacheError::InUse { path: path.to_owned() }
        }
        DatabaseError::Storage(StorageError::Io(io)) if !is_content(io.kind()) => {
            CacheError::Io { path: path.to_owned(), action: "opened", reason: io.to_string() }
        }
        other => CacheError::Damaged { path: path.to_owned(), reason: other.to_string() },
    }
}

/// Reading past the end or finding no magic number is damage, not a failing disk.
fn is_content(kind: std::io::ErrorKind) -> bool {
    matches!(kind, std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData)
}

fn failed(path: &Path, action: &'static str, error: redb::Error) -> CacheError {
    let path = path.to_owned();
    match error {
        redb::Error::Io(io) if is_content(io.kind()) => CacheError::Damaged { path, reason: io.to_string() },
        redb::Error::Corrupted(reason) => CacheError::Damaged { path, reason },
        redb::Error::TableDoesNotExist(name) => CacheError::Damaged { path, reason: format!("no table {name}") },
        other @ (redb::Error::TableTypeMismatch { .. } | redb::Error::TableIsMultimap(_)) => {
            CacheError::Damaged { path, reason: other.to_string() }
        }
        other => CacheError::Io { path, action, reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::provider::{Message, Role, Sampling};

    fn answer(text: &str) -> Completion {
        Completion { text: text.to_owned(), prompt_tokens: 3, completion_tokens: 1, finish: Finish::Stop }
    }

    fn filled(path: &Path, count: u8) {
        let cache = AnswerCache::open(path).unwrap();
        cache.store((0..count).map(|i| ([i; 32], answer(&format!("answer {i}")))).collect()).unwrap();
    }

    #[test]
    fn answers_survive_and_the_first_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/answers.redb");
        filled(&path, 3);
        let cache = AnswerCache::open(&path).unwrap();
        assert!(matches!(AnswerCache::open(&path), Err(CacheError::InUse { .. })));
        assert_eq!(cache.lookup(&[[1; 32], [9; 32]]).unwrap(), [Some(answer("answer 1")), None]);
        let kept = cache.store(vec![([1; 32], answer("other")), ([9; 32], answer("new"))]).unwrap();
        assert_eq!(kept, [answer("answer 1"), answer("new")]);
        let again = cache.store(vec![([9; 32], answer("newer"))]).unwrap();
        assert_eq!(again, [answer("new")]);
    }

    #[test]
    fn every_part_of_a_call_is_in_its_key() {
        let call = Call {
            messages: vec![Message::new(Role::User, "q")],
            sampling: Sampling::greedy(Some(8), &["\n".to_owned()]),
        };
        let mut keys = std::collections::BTreeSet::new();
        let mut add = |digest: &str, scope: &str, call: &Call| assert!(keys.insert(key(digest, scope, call).unwrap()));
        add("d", "s", &call);
        add("ds", "", &call);
        add("d", "t", &call);
        let change = |f: fn(&mut Call)| {
            let mut other = call.clone();
            f(&mut other);
            other
        };
        add("d", "s", &change(|c| c.messages[0].content.push('?')));
        add("d", "s", &change(|c| c.messages[0].role = Role::System));
        add("d", "s", &change(|c| c.messages.push(Message::new(Role::User, ""))));
        add("d", "s", &change(|c| c.sampling.max_tokens = None));
        add("d", "s", &change(|c| c.sampling.stop.clear()));
        add("d", "s", &change(|c| c.sampling.top_p = 0.5));
    }

    #[test]
    fn a_damaged_file_is_refused_or_right_never_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.redb");
        filled(&path, 40);
        let whole = std::fs::read(&path).unwrap();
        let keys: Vec<Key> = (0..40).map(|i| [i; 32]).collect();
        let right: Vec<_> = (0..40).map(|i| Some(answer(&format!("answer {i}")))).collect();
        let text_at = whole.windows(9).position(|window| window == b"answer 17").unwrap();
        let mut refused = 0;
        let places = (0..whole.len()).step_by(whole.len() / 60).chain([0, 9, 64, text_at, text_at + 8]);
        for at in places {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x41;
            std::fs::write(&path, &bytes).unwrap();
            match AnswerCache::open(&path).and_then(|cache| cache.lookup(&keys)) {
                Ok(found) => assert_eq!(found, right, "byte {at}"),
                Err(error) => {
                    let line = error.to_string();
                    assert!(line.contains("remove it") && !line.contains('\n'), "byte {at}: {line}");
                    refused += 1;
                    assert!(at != text_at || line.contains("damaged"));
                }
            }
        }
        assert!(refused >= 4, "{refused}");
        for cut in [1, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let opened = AnswerCache::open(&path).and_then(|cache| cache.lookup(&keys));
            assert!(matches!(opened, Err(CacheError::Damaged { .. })), "cut at {cut}: {opened:?}");
        }
        std::fs::write(&path, b"not a cache at all").unwrap();
        assert!(matches!(AnswerCache::open(&path), Err(CacheError::Damaged { .. })));
    }

    #[test]
    fn a_value_moved_to_another_key_is_not_believed() {
        let value = pack(&[1; 32], &answer("Paris")).unwrap();
        assert_eq!(unpack(&[1; 32], &value), Some(answer("Paris")));
        assert_eq!(unpack(&[2; 32], &value), None);
        assert_eq!(unpack(&[1; 32], &value[..10]), None);
    }
}
