//! Several workers that build one index together: who takes which shard, and how the first one hears of the others.
//!
//! Worker w of N encodes the shards whose number leaves w when divided by N; the first one also indexes, waits for all
//! shards, joins them and publishes. They meet only in the shared state folder: a lock by which nobody else is the same
//! worker, and a mark that each of the others writes anew while it lives. Shards depend on what is encoded alone, so it
//! does not matter who made them, in which attempt, or with how many workers.

use crate::error::{Result, RetrieverError};
use s3_config::{Runtime, TeamConfig};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Folder of locks and marks in the state folder.
const FOLDER: &str = "workers";
/// A mark is written so many times within the silence after which its worker counts as lost.
const BEATS: u32 = 8;

/// What a worker says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mark {
    /// Told apart from every earlier one: process and count.
    process: u32,
    beat: u64,
    /// What it builds, once it knows.
    digest: Option<String>,
    /// Passages of its share that are encoded.
    passages: u64,
}

fn mark_path(folder: &Path, worker: usize) -> PathBuf {
    folder.join(format!("{worker}.json"))
}

/// This worker among all.
pub struct Team {
    /// Its number, from 0.
    pub worker: usize,
    /// How many there are.
    pub workers: usize,
    config: TeamConfig,
    folder: PathBuf,
    /// Goes with the process.
    _lock: File,
}

impl Team {
    /// Takes the place that the configuration names; none where one worker builds alone.
    pub fn join(runtime: &Runtime) -> Result<Option<Self>> {
        let Some(config) = runtime.team.clone().filter(|team| team.members.len() > 1) else { return Ok(None) };
        let (worker, workers) = (config.rank as usize, config.members.len());
        if worker >= workers {
            let reason = format!("runtime.team.rank is {worker}, but there are {workers} members; number them from 0");
            return Err(RetrieverError::Invalid(reason));
        }
        let folder = runtime.state_dir.join(FOLDER);
        std::fs::create_dir_all(&folder).map_err(RetrieverError::io("create folder", &folder))?;
        let path = folder.join(format!("{worker}.lock"));
        let lock = File::create(&path).map_err(RetrieverError::io("create", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { worker, workers, config, folder, _lock: lock })),
            Err(std::fs::TryLockError::WouldBlock) => Err(RetrieverError::Twin { worker, folder }),
            Err(std::fs::TryLockError::Error(source)) => Err(RetrieverError::Io { action: "lock", path, source }),
        }
    }

    /// Whether it joins and publishes.
    pub fn is_first(&self) -> bool {
        self.worker == 0
    }

    /// The worker that encodes a shard.
    pub fn owner(&self, shard: usize) -> usize {
        shard % self.workers
    }

    /// Starts to tell the first worker that this one lives; until it is dropped.
    pub fn pulse(&self) -> Result<Pulse> {
        let silence = Duration::from_secs(self.config.silence_seconds.max(1));
        Pulse::start(&mark_path(&self.folder, self.worker), silence / BEATS)
    }

    /// The other workers, as the first one hears of them. What earlier processes said of themselves is forgotten.
    pub fn others(&self, digest: &str) -> Result<Others> {
        let mut workers = Vec::new();
        for worker in 1..self.workers {
            let path = mark_path(&self.folder, worker);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(RetrieverError::Io { action: "remove", path, source: error });
                }
                _ => {}
            }
            let member = self.config.members.get(worker).cloned().unwrap_or_default();
            workers.push(Other { worker, member, path, mark: None, heard: Instant::now() });
        }
        let (together, silence) = (self.config.together_seconds, self.config.silence_seconds.max(1));
        Ok(Others { digest: digest.to_owned(), workers, together, silence })
    }
}

/// One of the others.
struct Other {
    worker: usize,
    member: String,
    path: PathBuf,
    mark: Option<Mark>,
    heard: Instant,
}

/// All workers but the first.
pub struct Others {
    digest: String,
    workers: Vec<Other>,
    together: u64,
    silence: u64,
}

impl Others {
    /// Reads what they say of themselves; an error when one of them builds something else.
    pub fn listen(&mut self) -> Result<()> {
        for other in &mut self.workers {
            // a mark is replaced by a rename, so it is whole or not there yet
            let Some(mark) =
                std::fs::read(&other.path).ok().and_then(|text| serde_json::from_slice::<Mark>(&text).ok())
            else {
                continue;
            };
            if let Some(theirs) = mark.digest.as_ref().filter(|theirs| **theirs != self.digest) {
                return Err(RetrieverError::Invalid(format!(
                    "worker {} ({}) builds the index {theirs}, this one {}; give all workers the same corpus, encoder and settings",
                    other.worker, other.member, self.digest
                )));
            }
            if other.mark.as_ref() != Some(&mark) {
                (other.mark, other.heard) = (Some(mark), Instant::now());
            }
        }
        Ok(())
    }

    /// Passages that they have encoded, as they say.
    pub fn passages(&self) -> u64 {
        self.workers.iter().filter_map(|other| other.mark.as_ref()).map(|mark| mark.passages).sum()
    }

    /// An error when a worker that is waited for is silent for too long.
    pub fn expect(&self, worker: usize) -> Result<()> {
        let Some(other) = self.workers.iter().find(|other| other.worker == worker) else { return Ok(()) };
        let seconds = if other.mark.is_some() { self.silence } else { self.together };
        if other.heard.elapsed() <= Duration::from_secs(seconds) {
            return Ok(());
        }
        Err(RetrieverError::Lost { worker, member: other.member.clone(), seconds })
    }
}

/// Writes a worker's mark again and again, from a thread of its own.
pub struct Pulse {
    digest: Arc<Mutex<Option<String>>>,
    passages: Arc<AtomicU64>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pulse {
    fn start(path: &Path, every: Duration) -> Result<Self> {
        let (digest, passages) = (Arc::new(Mutex::new(None)), Arc::new(AtomicU64::new(0)));
        let (stop, stopped) = channel();
        let (shown, counted, path) = (Arc::clone(&digest), Arc::clone(&passages), path.to_owned());
        let beat = move || {
            let mut said = false;
            for beat in 0.. {
                let digest = shown.lock().unwrap_or_else(PoisonError::into_inner).clone();
                let mark =
                    Mark { process: std::process::id(), beat, digest, passages: counted.load(Ordering::Relaxed) };
                let written = serde_json::to_vec(&mark)
                    .map_err(|error| error.to_string())
                    .and_then(|text| s3_artifacts::write_atomic(&path, &text).map_err(|error| error.to_string()));
                // the work goes on; the first worker will miss what it cannot read
                if let (Err(error), false) = (&written, said) {
                    tracing::warn!(%error, "the first worker cannot hear of this one");
                }
                said = written.is_err();
                if stopped.recv_timeout(every) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("pulse".into())
            .spawn(beat)
            .map_err(|error| RetrieverError::Internal(format!("a thread for the pulse: {error}")))?;
        Ok(Self { digest, passages, stop: Some(stop), thread: Some(thread) })
    }

    /// What is built.
    pub fn builds(&self, digest: &str) {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest.to_owned());
    }

    /// How many passages of the share are encoded.
    pub fn encoded(&self, passages: u64) {
        self.passages.store(passages, Ordering::Relaxed);
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // a panic there was printed there
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn team(folder: &Path, rank: u32, silence: u64) -> Result<Option<Team>> {
        let runtime = serde_json::json!({
            "name": "build", "stateDir": folder,
            "team": {
                "rank": rank, "members": ["r0:9400", "r1:9400", "r2:9400"], "togetherSeconds": 2, "silenceSeconds": silence,
            },
        });
        Team::join(&serde_json::from_value(runtime).unwrap())
    }

    #[test]
    fn every_shard_has_one_worker_and_every_worker_one_place() {
        let dir = tempfile::tempdir().unwrap();
        let members: Vec<Team> = (0..3).map(|rank| team(dir.path(), rank, 60).unwrap().unwrap()).collect();
        for shard in 0..20 {
            assert_eq!(members.iter().filter(|member| member.owner(shard) == member.worker).count(), 1);
        }
        let twin = team(dir.path(), 1, 60).err().unwrap().to_string();
        assert!(twin.contains("worker 1"), "{twin}");
        assert!(team(dir.path(), 3, 60).err().unwrap().to_string().contains("number them from 0"));
        drop(members);
        assert!(team(dir.path(), 1, 60).unwrap().is_some(), "the place is free again");
    }

    #[test]
    fn who_is_silent_is_named_and_so_is_who_builds_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let first = team(dir.path(), 0, 60).unwrap().unwrap();
        let second = team(dir.path(), 1, 8).unwrap().unwrap();
        let mut others = first.others("one").unwrap();
        let pulse = second.pulse().unwrap();
        pulse.builds("one");
        pulse.encoded(512);
        let until = |others: &mut Others, what: &dyn Fn(&Others) -> bool| {
            let end = Instant::now() + Duration::from_secs(30);
            while !what(others) {
                assert!(Instant::now() < end, "it does not come");
                std::thread::sleep(Duration::from_millis(20));
                others.listen().unwrap();
            }
        };
        until(&mut others, &|others| others.passages() == 512);
        // the third never came, the second is still heard when the third is missed
        until(&mut others, &|others| others.expect(2).is_err());
        assert!(others.expect(1).is_ok());
        let missed = others.expect(2).unwrap_err().to_string();
        assert!(missed.contains("worker 2 (r2:9400)") && missed.contains("2 s"), "{missed}");
        drop(first);
        let first = team(dir.path(), 0, 1).unwrap().unwrap();
        let mut others = first.others("one").unwrap();
        until(&mut others, &|others| others.passages() == 512);
        drop(pulse);
        until(&mut others, &|others| others.expect(1).is_err());
        let pulse = second.pulse().unwrap();
        pulse.builds("two");
        let end = Instant::now() + Duration::from_secs(30);
        let error = loop {
            match others.listen() {
                Ok(()) => assert!(Instant::now() < end),
                Err(error) => break error.to_string(),
            }
        };
        assert!(error.contains("worker 1 (r1:9400) builds the index two"), "{error}");
    }
}
