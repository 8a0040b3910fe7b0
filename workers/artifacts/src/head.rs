//! Who may publish into a folder, and what was published last: compare-and-swap on one record.
//!
//! The record is the file `HEAD-<generation>` with the highest number. A new one is written beside its place and
//! hard-linked to the next number, which the file system does for one writer only, also over NFS. Whoever
//! publishes names its epoch (the number of the try that it belongs to) and holds the record by a mark of its
//! own; once a newer try, or another process of the same try, has taken the record, everything else that the
//! older one publishes is refused as [`ArtifactError::Fenced`].

use crate::{ArtifactError, digest_bytes, sync_folder};
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

const PREFIX: &str = "HEAD-";
/// Older records that stay, so that a reader that has just listed the folder finds what it listed.
const KEPT: usize = 8;
/// Rounds of losing against other writers before this counts as a failing disk.
const ROUNDS: u32 = 1000;

/// One published folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Published {
    /// Its name in the folder of HEAD.
    pub name: String,
    /// Steps done.
    pub step: u32,
    /// Digest of its content.
    pub digest: String,
}

/// What HEAD says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeadRecord {
    /// The try that may publish.
    pub epoch: u32,
    /// Mark of the process that may.
    pub holder: String,
    /// What was published, newest first.
    pub published: Vec<Published>,
}

/// The right to publish into a folder.
#[derive(Clone, Debug)]
pub struct Head {
    folder: PathBuf,
    epoch: u32,
    holder: String,
}

impl Head {
    /// Takes the folder for the try `epoch`; refused when a newer one has it.
    pub fn claim(folder: &Path, epoch: u32) -> Result<Self, ArtifactError> {
        std::fs::create_dir_all(folder).map_err(|e| ArtifactError::io("create folder", folder, e))?;
        let head = Self { folder: folder.to_owned(), epoch, holder: mark() };
        head.swap(|record| {
            if record.epoch > epoch {
                return Err(head.fenced(record.epoch));
            }
            Ok(HeadRecord { epoch, holder: head.holder.clone(), published: record.published })
        })?;
        Ok(head)
    }

    /// An error once another process has taken the folder.
    pub fn check(&self) -> Result<HeadRecord, ArtifactError> {
        let (_, record) = newest(&self.folder)?;
        self.own(&record)?;
        Ok(record)
    }

    /// Changes the list of what is published, unless another process has taken the folder.
    pub fn publish(&self, change: impl Fn(&mut Vec<Published>)) -> Result<(), ArtifactError> {
        self.swap(|mut record| {
            self.own(&record)?;
            change(&mut record.published);
            Ok(record)
        })
    }

    /// Part of names that no other process makes: the try and the beginning of the mark.
    pub fn tag(&self) -> String {
        format!("e{}.{}", self.epoch, self.holder.get(..8).unwrap_or(&self.holder))
    }

    /// The try that it publishes for.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    fn own(&self, record: &HeadRecord) -> Result<(), ArtifactError> {
        if record.epoch == self.epoch && record.holder == self.holder {
            return Ok(());
        }
        Err(self.fenced(record.epoch))
    }

    fn fenced(&self, by: u32) -> ArtifactError {
        ArtifactError::Fenced { path: self.folder.clone(), epoch: self.epoch, by }
    }

    fn swap(&self, next: impl Fn(HeadRecord) -> Result<HeadRecord, ArtifactError>) -> Result<(), ArtifactError> {
        for _ in 0..ROUNDS {
            let (generation, record) = newest(&self.folder)?;
            let text = serde_json::to_vec(&next(record)?)?;
            if self.link(generation + 1, &text)? {
                sync_folder(&self.folder)?;
                // One that was linked behind a newer record (its number had been cleared away) says nothing.
                let (now, record) = newest(&self.folder)?;
                if now > generation + 1 {
                    self.own(&record)?;
                }
                return self.clear(generation);
            }
        }
        let reason = std::io::Error::other("other writers were always faster");
        Err(ArtifactError::io("publish", &self.folder, reason))
    }

    /// Makes the record of that generation; false when somebody else has made it.
    fn link(&self, generation: u64, text: &[u8]) -> Result<bool, ArtifactError> {
        let temporary = self.folder.join(format!(".{PREFIX}{}.tmp", self.holder));
        let io = |action| move |source| ArtifactError::io(action, &self.folder, source);
        let written = std::fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(text)?;
            file.sync_all()
        });
        let linked = written.and_then(|()| std::fs::hard_link(&temporary, record_path(&self.folder, generation)));
        // a file that stays is overwritten by the next publication; the error that counts is the first
        let _ = std::fs::remove_file(&temporary);
        match linked {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(io("publish HEAD in")(error)),
        }
    }

    fn clear(&self, upto: u64) -> Result<(), ArtifactError> {
        for generation in generations(&self.folder)?.into_iter().filter(|g| *g <= upto).skip(KEPT) {
            match std::fs::remove_file(record_path(&self.folder, generation)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(ArtifactError::io("clear old HEAD in", &self.folder, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What HEAD of a folder says; none where nobody has ever claimed it.
pub fn read_head(folder: &Path) -> Result<Option<HeadRecord>, ArtifactError> {
    let (generation, record) = newest(folder)?;
    Ok((generation > 0).then_some(record))
}

fn record_path(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("{PREFIX}{generation:012}"))
}

/// The highest record; number 0 and an empty one where there is none.
fn newest(folder: &Path) -> Result<(u64, HeadRecord), ArtifactError> {
    for _ in 0..ROUNDS {
        let Some(generation) = generations(folder)?.first().copied() else { return Ok((0, HeadRecord::default())) };
        let path = record_path(folder, generation);
        match std::fs::read(&path) {
            Ok(text) => {
                let record = serde_json::from_slice(&text).map_err(|error| ArtifactError::Corrupt {
                    path,
                    reason: format!("HEAD is not readable ({error})"),
                })?;
                return Ok((generation, record));
            }
            // Cleared away since it was listed, so there is a newer one.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(ArtifactError::io("read", &path, error)),
        }
    }
    Err(ArtifactError::io("read HEAD in", folder, std::io::Error::other("it changed at every look")))
}

/// Numbers of the records, highest first.
fn generations(folder: &Path) -> Result<Vec<u64>, ArtifactError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ArtifactError::io("list", folder, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|e| ArtifactError::io("list", folder, e))?.file_name();
        found.extend(name.to_string_lossy().strip_prefix(PREFIX).and_then(|digits| digits.parse::<u64>().ok()));
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// A mark that no other process has.
fn mark() -> String {
    use std::hash::{BuildHasher, Hasher};
    let noise = std::collections::hash_map::RandomState::new().build_hasher().finish();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    digest_bytes(format!("{noise} {now} {}", std::process::id()).as_bytes()).chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn published(step: u32) -> Published {
        Published { name: format!("step-{step}"), step, digest: String::new() }
    }

    #[test]
    fn a_newer_try_fences_the_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("checkpoints");
        assert_eq!(read_head(&folder).unwrap(), None);
        let old = Head::claim(&folder, 1).unwrap();
        old.publish(|list| list.insert(0, published(1))).unwrap();
        let new = Head::claim(&folder, 2).unwrap();
        assert_eq!(new.check().unwrap().published, [published(1)], "what was published stays");
        let refused = old.publish(|list| list.insert(0, published(2))).unwrap_err();
        assert!(matches!(refused, ArtifactError::Fenced { epoch: 1, by: 2, .. }), "{refused}");
        assert!(old.check().is_err());
        assert!(Head::claim(&folder, 1).is_err(), "a late start of the old try, too");
        new.publish(|list| list.insert(0, published(2))).unwrap();
        assert_eq!(read_head(&folder).unwrap().unwrap().published, [published(2), published(1)]);
    }

    #[test]
    fn of_two_processes_of_one_try_the_later_holds() {
        let dir = tempfile::tempdir().unwrap();
        let first = Head::claim(dir.path(), 3).unwrap();
        let second = Head::claim(dir.path(), 3).unwrap();
        assert!(matches!(first.check(), Err(ArtifactError::Fenced { epoch: 3, by: 3, .. })));
        second.check().unwrap();
    }

    #[test]
    fn old_records_are_cleared_away() {
        let dir = tempfile::tempdir().unwrap();
        let head = Head::claim(dir.path(), 1).unwrap();
        for step in 0..30 {
            head.publish(|list| list.insert(0, published(step))).unwrap();
        }
        assert_eq!(read_head(dir.path()).unwrap().unwrap().published.len(), 30);
        assert!(std::fs::read_dir(dir.path()).unwrap().count() <= KEPT + 2);
    }

    #[test]
    fn a_broken_record_is_refused_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let head = Head::claim(dir.path(), 1).unwrap();
        std::fs::write(record_path(dir.path(), 2), b"{").unwrap();
        assert!(matches!(head.publish(|_| {}), Err(ArtifactError::Corrupt { .. })));
    }

    #[test]
    fn claims_race_and_exactly_one_process_holds_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let heads: Vec<Option<Head>> = std::thread::scope(|scope| {
            let folder = dir.path();
            let claims: Vec<_> = (1..=8).map(|epoch| scope.spawn(move || Head::claim(folder, epoch).ok())).collect();
            claims.into_iter().map(|claim| claim.join().unwrap()).collect()
        });
        let holding: Vec<u32> = heads.iter().flatten().filter(|head| head.check().is_ok()).map(Head::epoch).collect();
        assert_eq!(holding, [8], "the newest try, whatever the order");
    }
}
