//! The answer cache: one file, exact keys, whole batches.
//!
//! A batch is stored in one transaction (which other batches may share), and only then answered. So after `kill -9` a repeated request finds
//! all answers of the batch or none: the batch that is computed again is the same batch, and Bitwise mode
//! repeats to the bit. The first stored answer of a key stays: whoever computed the same key at the same time
//! is given the stored one, so a key never has two answers.
//!
//! Commits are two-phase, because the texts come from outside. The whole file is verified when it is opened,
//! and each value carries its own checksum over key and content: a damaged file is refused, never believed.

use crate::memory::Memory;
use crate::provider::{Call, Completion, Finish, Sampling, Usage};
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};
use s3_config::CacheMode;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use tokio::sync::oneshot;

/// sha256 over everything that decides an answer.
pub type Key = [u8; 32];

const ANSWERS: TableDefinition<'static, &[u8; 32], &[u8]> = TableDefinition::new("answers");
const INTENTS: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("intents");
/// By account: calls, prompt tokens, answer tokens.
const USAGE: TableDefinition<'static, &str, (u64, u64, u64)> = TableDefinition::new("usage");
const META: TableDefinition<'static, &str, u32> = TableDefinition::new("meta");
const FORMAT: u32 = 1;
const CHECK: usize = 16;
/// Answers that share a commit at most.
const TOGETHER: usize = 4096;
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

#[cfg(test)]
pub(crate) fn digest_of(bytes: &[u8]) -> Key {
    Sha256::digest(bytes).into()
}

/// The key of a call to a provider. Every part goes in with its length, so that no two calls run together.
pub fn key(digest: &str, scope: &str, call: &Call) -> Key {
    let mut hasher = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(b"s3-answer-3");
    part(digest.as_bytes());
    part(scope.as_bytes());
    part(&(call.messages.len() as u64).to_le_bytes());
    for message in &call.messages {
        part(&[message.role as u8]);
        part(message.content.as_bytes());
    }
    part(&[u8::from(call.text.is_some())]);
    part(call.text.as_deref().unwrap_or("").as_bytes());
    // taken apart by name, so that a member that is added later is not forgotten
    let Sampling { temperature, top_p, max_tokens, stop, logprobs } = &call.sampling;
    for number in [temperature, top_p] {
        part(&number.to_bits().to_le_bytes());
    }
    // no limit, and a limit of nothing, are two things
    for number in [*max_tokens, logprobs.map(u32::from)] {
        part(&number.map_or([0xff; 8], |number| u64::from(number).to_le_bytes()));
    }
    part(&(stop.len() as u64).to_le_bytes());
    for stop in stop {
        part(stop.as_bytes());
    }
    hasher.finalize().into()
}

#[derive(Serialize, Deserialize)]
struct Stored<'a> {
    text: std::borrow::Cow<'a, str>,
    prompt: u32,
    completion: u32,
    length: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    logprobs: Option<std::borrow::Cow<'a, str>>,
}

fn pack(key: &Key, answer: &Completion) -> Result<Vec<u8>, serde_json::Error> {
    let stored = Stored {
        text: answer.text.as_str().into(),
        prompt: answer.prompt_tokens,
        completion: answer.completion_tokens,
        length: answer.finish == Finish::Length,
        logprobs: answer.logprobs.as_deref().map(Into::into),
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
        logprobs: stored.logprobs.map(|text| Arc::from(text.into_owned())),
    })
}

fn checksum(key: &Key, payload: &[u8]) -> [u8; CHECK] {
    let full: [u8; 32] = Sha256::new().chain_update(key).chain_update(payload).finalize().into();
    let mut short = [0; CHECK];
    short.copy_from_slice(&full[..CHECK]);
    short
}

/// Answers looked up and stored: in memory, and on disk where there is a file.
pub struct AnswerCache {
    memory: Arc<Memory>,
    disk: Option<Disk>,
    mode: CacheMode,
    accounts: Vec<(String, Usage)>,
}

struct Disk {
    path: PathBuf,
    database: Arc<Database>,
    /// None only while it is dropped.
    writes: Option<mpsc::Sender<Write>>,
    writer: Option<std::thread::JoinHandle<()>>,
}

/// What was handed over is written, and the file is free for the next who opens it.
impl Drop for Disk {
    fn drop(&mut self) {
        self.writes = None;
        if let Some(writer) = self.writer.take() {
            // a writer that panicked has told of it already
            let _ = writer.join();
        }
    }
}

impl Disk {
    fn write(&self, batch: Batch, reply: oneshot::Sender<Kept>) -> Result<(), Arc<CacheError>> {
        let sent = self.writes.as_ref().map(|writes| writes.send(Write { batch, reply }));
        sent.and_then(Result::ok).ok_or_else(|| self.gone())
    }

    fn gone(&self) -> Arc<CacheError> {
        let reason = "its writer has ended".to_owned();
        Arc::new(CacheError::Io { path: self.path.clone(), action: "written", reason })
    }
}

/// What one transaction makes durable, together or not at all.
#[derive(Default)]
pub(crate) struct Batch {
    /// Answers with their keys.
    pub answers: Vec<(Key, Completion)>,
    /// Calls that are about to be made: they count as made if the process dies before they are settled.
    pub intents: Vec<Intent>,
    /// Intents that are over.
    pub settled: Vec<u64>,
    /// What accounts were charged.
    pub charges: Vec<(String, Usage)>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.intents.is_empty() && self.settled.is_empty() && self.charges.is_empty()
    }
}

/// A call that is about to be made, and the most it may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Intent {
    pub id: u64,
    pub account: String,
    pub calls: u64,
    pub prompt: u64,
    pub answer: u64,
}

/// The answers that are now kept, in the batch's order.
type Kept = Result<Vec<Arc<Completion>>, Arc<CacheError>>;

struct Write {
    batch: Batch,
    reply: oneshot::Sender<Kept>,
}

impl AnswerCache {
    /// Answers in memory only.
    pub fn in_memory(mode: CacheMode) -> Self {
        Self { memory: Arc::default(), disk: None, mode, accounts: Vec::new() }
    }

    /// Opens or creates the file and verifies all of it.
    pub fn open(path: &Path) -> Result<Self, CacheError> {
        Self::open_as(path, CacheMode::ReadWrite)
    }

    /// The same in another mode.
    pub fn open_as(path: &Path, mode: CacheMode) -> Result<Self, CacheError> {
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
        check_format(path, &database)?;
        let database = Arc::new(database);
        let memory = Arc::<Memory>::default();
        let (writes, inbox) = mpsc::channel::<Write>();
        let writer = Writer { path: path.to_owned(), database: database.clone(), memory: memory.clone() };
        let accounts = writer.recover()?;
        let writer = std::thread::Builder::new()
            .name("cache-writer".to_owned())
            .spawn(move || writer.run(&inbox))
            .map_err(io("opened"))?;
        let disk = Disk { path: path.to_owned(), database, writes: Some(writes), writer: Some(writer) };
        Ok(Self { memory, disk: Some(disk), mode, accounts })
    }

    /// Whether answers may be looked up.
    pub fn reads(&self) -> bool {
        matches!(self.mode, CacheMode::ReadWrite | CacheMode::ReadOnly)
    }

    fn fills(&self) -> bool {
        matches!(self.mode, CacheMode::ReadWrite | CacheMode::WriteOnly)
    }

    /// Whether something has to be written before a batch is answered.
    pub(crate) fn is_durable(&self) -> bool {
        self.disk.is_some()
    }

    /// The stored answer of a key. Memory first; a page of the file that is not in memory costs a read.
    pub(crate) fn get(&self, key: &Key) -> Result<Option<Arc<Completion>>, CacheError> {
        if !self.reads() {
            return Ok(None);
        }
        if let Some(answer) = self.memory.get(key) {
            return Ok(Some(answer));
        }
        let Some(disk) = &self.disk else { return Ok(None) };
        let read = |e: redb::Error| failed(&disk.path, "read", e);
        let transaction = disk.database.begin_read().map_err(|e| read(e.into()))?;
        let table = transaction.open_table(ANSWERS).map_err(|e| read(e.into()))?;
        let Some(value) = table.get(key).map_err(|e| read(e.into()))? else { return Ok(None) };
        let answer = unpack(key, value.value()).ok_or_else(|| damaged_value(&disk.path))?;
        Ok(Some(self.memory.insert(*key, Arc::new(answer))))
    }

    /// The stored answers of a batch.
    pub fn lookup(&self, keys: &[Key]) -> Result<Vec<Option<Completion>>, CacheError> {
        keys.iter().map(|key| Ok(self.get(key)?.map(|answer| (*answer).clone()))).collect()
    }

    /// Makes a batch durable in one transaction, which it may share with others. The answers that the cache now
    /// holds for its keys are returned: one that was stored first stays.
    pub(crate) async fn commit(&self, mut batch: Batch) -> Kept {
        if !self.fills() {
            let own = std::mem::take(&mut batch.answers).into_iter().map(|(_, answer)| Arc::new(answer)).collect();
            if !batch.is_empty() && self.disk.is_some() {
                self.send(batch).await?;
            }
            return Ok(own);
        }
        match &self.disk {
            Some(_) if batch.is_empty() => Ok(Vec::new()),
            Some(_) => self.send(batch).await,
            None => {
                let keep = |(key, answer)| self.memory.insert(key, Arc::new(answer));
                Ok(batch.answers.into_iter().map(keep).collect())
            }
        }
    }

    /// Keeps one answer where nothing has to be written for it; gives it back where something has.
    pub(crate) fn keep_in_memory(&self, key: Key, answer: Completion) -> Result<Arc<Completion>, Completion> {
        match (&self.disk, self.fills()) {
            (Some(_), _) => Err(answer),
            (None, true) => Ok(self.memory.insert(key, Arc::new(answer))),
            (None, false) => Ok(Arc::new(answer)),
        }
    }

    async fn send(&self, batch: Batch) -> Kept {
        let Some(disk) = &self.disk else { return Ok(Vec::new()) };
        let (reply, stored) = oneshot::channel();
        disk.write(batch, reply)?;
        stored.await.map_err(|_| disk.gone())?
    }

    /// Stores a batch and waits on this thread; on disk when this returns.
    pub fn store(&self, answers: Vec<(Key, Completion)>) -> Result<Vec<Completion>, Arc<CacheError>> {
        let batch = Batch { answers, ..Batch::default() };
        let stored = match &self.disk {
            Some(disk) if self.fills() => {
                let (reply, stored) = oneshot::channel();
                disk.write(batch, reply)?;
                stored.blocking_recv().map_err(|_| disk.gone())??
            }
            _ => batch.answers.into_iter().map(|(key, answer)| self.memory.insert(key, Arc::new(answer))).collect(),
        };
        Ok(stored.iter().map(|answer| (**answer).clone()).collect())
    }

    /// Writes a batch without waiting for it.
    pub(crate) fn enqueue(&self, batch: Batch) {
        if let Some(disk) = self.disk.as_ref().filter(|_| !batch.is_empty()) {
            // a writer that has ended has told of it already
            let _ = disk.write(batch, oneshot::channel().0);
        }
    }

    /// What the accounts had used when the file was opened.
    pub(crate) fn accounts(&self) -> &[(String, Usage)] {
        &self.accounts
    }
}

/// The one thread that writes. What waits while a commit is under way goes together into the next.
struct Writer {
    path: PathBuf,
    database: Arc<Database>,
    memory: Arc<Memory>,
}

impl Writer {
    /// What the accounts have used so far. Calls that were about to be made when the process died are charged
    /// with the most they may have used.
    fn recover(&self) -> Result<Vec<(String, Usage)>, CacheError> {
        let (open, mut known) = self.read_accounts().map_err(|e| failed(&self.path, "read", e))?;
        if open.is_empty() {
            return Ok(known);
        }
        let mut batch = Batch::default();
        for intent in open {
            let used = Usage { calls: intent.calls, prompt: intent.prompt, answer: intent.answer };
            match known.iter_mut().find(|(account, _)| *account == intent.account) {
                Some((_, sum)) => *sum += used,
                None => known.push((intent.account.clone(), used)),
            }
            batch.settled.push(intent.id);
            batch.charges.push((intent.account, used));
        }
        self.write(std::iter::once(&mut batch))?;
        Ok(known)
    }

    #[allow(clippy::type_complexity)] // open intents and accounts
    fn read_accounts(&self) -> Result<(Vec<Intent>, Vec<(String, Usage)>), redb::Error> {
        let transaction = self.database.begin_read()?;
        let (intents, usage) = match (transaction.open_table(INTENTS), transaction.open_table(USAGE)) {
            (Ok(intents), Ok(usage)) => (intents, usage),
            // a file of before there were accounts
            (Err(redb::TableError::TableDoesNotExist(_)), _) | (_, Err(redb::TableError::TableDoesNotExist(_))) => {
                return Ok((Vec::new(), Vec::new()));
            }
            (Err(error), _) | (_, Err(error)) => return Err(error.into()),
        };
        let (mut open, mut known) = (Vec::new(), Vec::new());
        for entry in intents.iter()? {
            let (_, value) = entry?;
            let bad = |e: serde_json::Error| redb::Error::Corrupted(format!("an intent: {e}"));
            open.push(serde_json::from_slice(value.value()).map_err(bad)?);
        }
        for entry in usage.iter()? {
            let (account, value) = entry?;
            let (calls, prompt, answer) = value.value();
            known.push((account.value().to_owned(), Usage { calls, prompt, answer }));
        }
        Ok((open, known))
    }

    fn run(&self, inbox: &mpsc::Receiver<Write>) {
        while let Ok(first) = inbox.recv() {
            let mut together = vec![first];
            let mut size = together[0].batch.answers.len();
            while size < TOGETHER
                && let Ok(next) = inbox.try_recv()
            {
                size += next.batch.answers.len() + 1;
                together.push(next);
            }
            let written = self.write(together.iter_mut().map(|write| &mut write.batch));
            match written {
                Ok(kept) => {
                    for (write, kept) in together.into_iter().zip(kept) {
                        let kept = kept.into_iter().map(|(key, answer)| self.memory.insert(key, answer)).collect();
                        // who no longer waits asks again and finds it
                        let _ = write.reply.send(Ok(kept));
                    }
                }
                Err(error) => {
                    let error = Arc::new(error);
                    for write in together {
                        let _ = write.reply.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    #[allow(clippy::type_complexity)] // for each batch its keys with the answers that are now kept
    fn write<'a>(
        &self,
        batches: impl Iterator<Item = &'a mut Batch>,
    ) -> Result<Vec<Vec<(Key, Arc<Completion>)>>, CacheError> {
        let write = |e: redb::Error| failed(&self.path, "written", e);
        let mut transaction = self.database.begin_write().map_err(|e| write(e.into()))?;
        transaction.set_two_phase_commit(true);
        let mut kept = Vec::new();
        {
            let mut answers = transaction.open_table(ANSWERS).map_err(|e| write(e.into()))?;
            let mut intents = transaction.open_table(INTENTS).map_err(|e| write(e.into()))?;
            let mut usage = transaction.open_table(USAGE).map_err(|e| write(e.into()))?;
            for batch in batches {
                let mut own = Vec::with_capacity(batch.answers.len());
                for (key, answer) in std::mem::take(&mut batch.answers) {
                    let present = match answers.get(&key).map_err(|e| write(e.into()))? {
                        Some(value) => Some(unpack(&key, value.value()).ok_or_else(|| damaged_value(&self.path))?),
                        None => None,
                    };
                    let answer = if let Some(present) = present {
                        present
                    } else {
                        let value = pack(&key, &answer).map_err(|e| write(StorageError::Io(e.into()).into()))?;
                        answers.insert(&key, value.as_slice()).map_err(|e| write(e.into()))?;
                        answer
                    };
                    own.push((key, Arc::new(answer)));
                }
                for intent in &batch.intents {
                    let value = serde_json::to_vec(intent).map_err(|e| write(StorageError::Io(e.into()).into()))?;
                    intents.insert(intent.id, value.as_slice()).map_err(|e| write(e.into()))?;
                }
                for id in &batch.settled {
                    intents.remove(id).map_err(|e| write(e.into()))?;
                }
                for (account, used) in &batch.charges {
                    let known = usage.get(account.as_str()).map_err(|e| write(e.into()))?.map(|value| value.value());
                    let (calls, prompt, answer) = known.unwrap_or_default();
                    let sum = (calls + used.calls, prompt + used.prompt, answer + used.answer);
                    usage.insert(account.as_str(), sum).map_err(|e| write(e.into()))?;
                }
                kept.push(own);
            }
        }
        transaction.commit().map_err(|e| write(e.into()))?;
        Ok(kept)
    }
}

fn check_format(path: &Path, database: &Database) -> Result<(), CacheError> {
    let read = |e: redb::Error| failed(path, "read", e);
    let transaction = database.begin_read().map_err(|e| read(e.into()))?;
    let table = transaction.open_table(META).map_err(|e| read(e.into()))?;
    let found = table.get("format").map_err(|e| read(e.into()))?.map(|value| value.value());
    if found == Some(FORMAT) {
        return Ok(());
    }
    let reason = format!("format {found:?}, this gateway writes {FORMAT}");
    Err(CacheError::Damaged { path: path.to_owned(), reason })
}

fn damaged_value(path: &Path) -> CacheError {
    CacheError::Damaged { path: path.to_owned(), reason: "an answer does not match its checksum".to_owned() }
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
    transaction.open_table(INTENTS)?;
    transaction.open_table(USAGE)?;
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
        Completion {
            text: text.to_owned(),
            prompt_tokens: 3,
            completion_tokens: 1,
            finish: Finish::Stop,
            logprobs: None,
        }
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
        let call = Call::chat(vec![Message::new(Role::User, "q")], Sampling::greedy(Some(8), &["\n".to_owned()]));
        let mut keys = std::collections::BTreeSet::new();
        let mut add = |digest: &str, scope: &str, call: &Call| assert!(keys.insert(key(digest, scope, call)));
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
        add("d", "s", &change(|c| c.sampling.logprobs = Some(0)));
        add("d", "s", &change(|c| c.text = Some(String::new())));
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
