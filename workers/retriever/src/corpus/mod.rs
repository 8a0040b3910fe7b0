//! Reading a corpus as a stream, in the forms that corpora are published in.
//!
//! * `source`: which files a path means: one file, or a folder in Hugging Face's or Anserini's layout.
//! * `lines`: JSON and tab-separated lines, plain, gzipped or by zstd.
//! * `columns`: Parquet.
//! * `record`: one record to a passage, whatever its fields are called.

mod columns;
mod lines;
mod record;
mod source;

use crate::error::{Result, RetrieverError};
use s3_config::CorpusConfig;
use s3_search::Passage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use source::{Format, sources};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// A passage and what else is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Unique in its corpus.
    pub id: String,
    /// Title without quotes around it.
    pub title: String,
    /// Body.
    pub text: String,
    /// Names and values that filters can ask for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

impl Entry {
    /// Without what else is known of it.
    pub fn passage(self) -> Passage {
        Passage { id: self.id, title: self.title, text: self.text }
    }
}

/// The passage as the reference writes and embeds it: the title in quotes, a line break, the text.
pub fn contents(title: &str, text: &str) -> String {
    format!("\"{title}\"\n{text}")
}

/// sha256 of the corpus, compared with the configured one: of the file, or of a folder's list of names and digests
/// (as `sha256sum` prints it for its files in order).
pub fn corpus_digest(corpus: &CorpusConfig) -> Result<String> {
    let files = sources(&corpus.path)?;
    let found = if files.folder {
        let mut list = String::new();
        for file in &files.files {
            list += &listed(&s3_artifacts::digest_file(&file.path)?, &file.name);
        }
        s3_artifacts::digest_bytes(list.as_bytes())
    } else if let Some(expected) = &corpus.sha256 {
        s3_artifacts::verify_file(&corpus.path, expected)?;
        expected.to_ascii_lowercase()
    } else {
        s3_artifacts::digest_file(&corpus.path)?
    };
    match &corpus.sha256 {
        Some(expected) if !found.eq_ignore_ascii_case(expected) => {
            let reason = format!(
                "sha256 of the folder's list of digests is {found}, expected {expected}; fetch it again or correct \
                 the digest"
            );
            Err(RetrieverError::content(&corpus.path, reason))
        }
        _ => Ok(found),
    }
}

fn listed(digest: &str, name: &str) -> String {
    format!("{digest}  {name}\n")
}

/// Hands every passage, in file order and up to the configured limit, to `each`; returns their number.
///
/// Every file is hashed on the way: what was read is what `digest` names, even when a file is replaced between two
/// readings. A bad record or a repeated id ends the reading.
pub fn read_corpus(corpus: &CorpusConfig, digest: &str, mut each: impl FnMut(Entry) -> Result<()>) -> Result<u64> {
    let files = sources(&corpus.path)?;
    let mut list = String::new();
    let mut taker = Taker { limit: corpus.limit.unwrap_or(u64::MAX), ids: HashSet::new(), passages: 0 };
    let mut last = String::new();
    for file in &files.files {
        let mut take = |place: Place, entry: Option<Entry>| match taker.take(&place, entry)? {
            Some(entry) => each(entry).map(|()| true),
            None => Ok(taker.wants_more()),
        };
        last = match file.format {
            Format::Lines | Format::Tab => lines::records(&file.path, file.format, &mut take)?,
            Format::Parquet => columns::records(&file.path, &mut take)?,
        };
        list += &listed(&last, &file.name);
    }
    let found = if files.folder { s3_artifacts::digest_bytes(list.as_bytes()) } else { last };
    if found != digest {
        return Err(RetrieverError::content(&corpus.path, "it changed while it was read; start the build again"));
    }
    if taker.passages == 0 {
        return Err(RetrieverError::content(&corpus.path, "no passages in it"));
    }
    Ok(taker.passages)
}

/// Where a record stands.
pub(crate) struct Place<'a> {
    path: &'a Path,
    /// Line or row, from one.
    number: u64,
}

impl Place<'_> {
    fn bad(&self, reason: String) -> RetrieverError {
        RetrieverError::Line { path: self.path.to_owned(), line: self.number, reason }
    }
}

/// Takes the record at a place; none asks only whether more are wanted. Says whether more are.
pub(crate) type Take<'a> = &'a mut dyn FnMut(Place<'_>, Option<Entry>) -> Result<bool>;

/// Keeps ids unique and the limit.
struct Taker {
    limit: u64,
    /// The first half of each id's sha256.
    ids: HashSet<[u8; 16]>,
    passages: u64,
}

impl Taker {
    fn wants_more(&self) -> bool {
        self.passages < self.limit
    }

    fn take(&mut self, place: &Place<'_>, entry: Option<Entry>) -> Result<Option<Entry>> {
        let Some(mut entry) = entry.filter(|_| self.wants_more()) else { return Ok(None) };
        if entry.id.is_empty() {
            // corpora without ids are numbered by their rows
            entry.id = self.passages.to_string();
        }
        let digest = Sha256::digest(entry.id.as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&digest[..16]);
        if !self.ids.insert(half) {
            let reason = format!("id {:?} stands on an earlier line too; ids must be unique", entry.id);
            return Err(place.bad(reason));
        }
        self.passages += 1;
        Ok(Some(entry))
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
