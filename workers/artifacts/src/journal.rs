//! An append-only journal of finished units of work.
//!
//! One line a unit: the first 16 hex digits of the sha256 of the JSON, a space, the JSON `[key, value]`.
//! A torn last line (the process died while writing) is cut off on opening; a broken line before the end
//! means the disk or a person changed the file, and is refused.

use crate::{ArtifactError, digest_bytes};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Finished units by key. Values are written once; a second value for a key is refused.
pub struct Journal<T> {
    path: PathBuf,
    file: File,
    entries: BTreeMap<String, T>,
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens or creates the journal. Lines are durable once [`Journal::append`] has returned.
    pub fn open(path: &Path) -> Result<Self, ArtifactError> {
        let io = |action| move |source| ArtifactError::io(action, path, source);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(io("create folder of"))?;
        }
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(io("open journal"))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(io("read journal"))?;
        let (entries, valid) = parse(path, &bytes)?;
        if valid < bytes.len() {
            tracing_torn(path, bytes.len() - valid);
            file.set_len(valid as u64).map_err(io("cut torn line of"))?;
            file.seek(SeekFrom::End(0)).map_err(io("seek in"))?;
        }
        Ok(Self { path: path.to_owned(), file, entries })
    }

    /// The finished units of a journal that another process may be writing; nothing is changed, a torn last line
    /// is left out.
    pub fn read(path: &Path) -> Result<BTreeMap<String, T>, ArtifactError> {
        let bytes = std::fs::read(path).map_err(|source| ArtifactError::io("read journal", path, source))?;
        Ok(parse(path, &bytes)?.0)
    }

    /// The value of a finished unit.
    pub fn get(&self, key: &str) -> Option<&T> {
        self.entries.get(key)
    }

    /// All finished units by key.
    pub fn entries(&self) -> &BTreeMap<String, T> {
        &self.entries
    }

    /// Adds a finished unit; it is on disk when this returns.
    pub fn append(&mut self, key: &str, value: T) -> Result<(), ArtifactError> {
        self.append_all(vec![(key.to_owned(), value)])
    }

    /// Adds finished units with one wait for the disk; they are on it when this returns. When the process dies
    /// before, some of the first may be there.
    pub fn append_all(&mut self, units: Vec<(String, T)>) -> Result<(), ArtifactError> {
        let mut lines = String::new();
        for (at, (key, value)) in units.iter().enumerate() {
            if self.entries.contains_key(key) || units[..at].iter().any(|(earlier, _)| earlier == key) {
                return Err(ArtifactError::Corrupt {
                    path: self.path.clone(),
                    reason: format!("{key} would be written twice"),
                });
            }
            let json = serde_json::to_string(&(key, value))?;
            lines.extend([&digest_bytes(json.as_bytes())[..16], " ", &json, "\n"]);
        }
        if lines.is_empty() {
            return Ok(());
        }
        let io = |source| ArtifactError::io("append to journal", &self.path, source);
        let before = self.file.metadata().map_err(io)?.len();
        let written = self.file.write_all(lines.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // A half line (disk full) must not stand before later ones; if this fails too, opening cuts it.
            let _ = self.file.set_len(before);
            return Err(ArtifactError::io("append to journal", &self.path, source));
        }
        self.entries.extend(units);
        Ok(())
    }
}

fn tracing_torn(path: &Path, bytes: usize) {
    eprintln!("note: journal {} ended in a torn line of {bytes} bytes; that unit is done again", path.display());
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(BTreeMap<String, T>, usize), ArtifactError> {
    let mut entries = BTreeMap::new();
    let mut start = 0;
    while let Some(length) = bytes[start..].iter().position(|b| *b == b'\n') {
        let line = &bytes[start..start + length];
        let next = start + length + 1;
        match parse_line(line) {
            Some((key, value)) => {
                entries.insert(key, value);
            }
            None if next == bytes.len() => break,
            None => {
                let reason = format!("journal line at byte {start} is damaged");
                return Err(ArtifactError::Corrupt { path: path.to_owned(), reason });
            }
        }
        start = next;
    }
    Ok((entries, start))
}

fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Option<(String, T)> {
    let text = std::str::from_utf8(line).ok()?;
    let (check, json) = text.split_once(' ')?;
    if digest_bytes(json.as_bytes()).get(..16)? != check {
        return None;
    }
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn written() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/journal");
        let mut journal = Journal::<String>::open(&path).unwrap();
        journal.append("a", "value of a".into()).unwrap();
        journal.append_all(["b", "c"].map(|key| (key.to_owned(), format!("value of {key}"))).into()).unwrap();
        assert!(journal.append("a", String::new()).is_err());
        let twice = |key: &str| (key.to_owned(), String::new());
        assert!(journal.append_all(vec![twice("x"), twice("y"), twice("x")]).is_err());
        assert!(journal.append_all(Vec::new()).is_ok() && journal.get("x").is_none());
        let bytes = std::fs::read(&path).unwrap();
        (dir, path, bytes)
    }

    #[test]
    fn every_truncation_keeps_the_whole_lines() {
        let (_dir, path, bytes) = written();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let mut journal = Journal::<String>::open(&path).unwrap();
            let whole = bytes[..cut].split(|b| *b == b'\n').count() - 1;
            assert_eq!(journal.entries().len(), whole);
            journal.append("later", "x".into()).unwrap();
            assert_eq!(Journal::<String>::open(&path).unwrap().entries().len(), whole + 1);
        }
    }

    #[test]
    fn a_changed_byte_before_the_last_line_is_refused() {
        let (_dir, path, bytes) = written();
        let last = bytes[..bytes.len() - 1].iter().rposition(|b| *b == b'\n').unwrap();
        for at in 0..last {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if changed[at] == b'\n' || bytes[at] == b'\n' {
                continue;
            }
            std::fs::write(&path, &changed).unwrap();
            assert!(Journal::<String>::open(&path).is_err(), "byte {at}");
        }
    }
}
