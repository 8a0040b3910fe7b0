//! Finding passages by their id, title or metadata: a file of hashes and positions, sorted, memory-mapped.
//!
//! A record is the first eight bytes of a sha256 and a position (u64 and u32, little endian). A hash is a hint: what it
//! leads to is compared with what was asked for.

use crate::corpus::Entry;
use crate::error::{Result, RetrieverError};
use crate::mapped::map;
use memmap2::Mmap;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// File name inside an index.
pub const KEYS: &str = "passages.keys";
const RECORD: usize = 12;
/// Field names of what every passage has.
pub const ID: &str = "id";
/// See [`ID`].
pub const TITLE: &str = "title";

/// The hash of a field's value.
fn hash(field: &str, value: &str) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(field.as_bytes());
    hasher.update([0]);
    hasher.update(value.as_bytes());
    let digest = hasher.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(first)
}

/// A passage's value of a field.
pub fn value<'a>(entry: &'a Entry, field: &str) -> Option<&'a str> {
    match field {
        ID => Some(&entry.id),
        TITLE => Some(&entry.title),
        other => entry.metadata.get(other).map(String::as_str),
    }
}

/// Collects the keys of passages, in order.
#[derive(Default)]
pub struct KeyWriter {
    keys: Vec<(u64, u32)>,
}

impl KeyWriter {
    /// Adds the passage at `position`.
    pub fn add(&mut self, position: u32, entry: &Entry) {
        self.keys.push((hash(ID, &entry.id), position));
        self.keys.push((hash(TITLE, &entry.title), position));
        // a member of the metadata cannot hide an id or a title
        let others = entry.metadata.iter().filter(|(name, _)| name.as_str() != ID && name.as_str() != TITLE);
        self.keys.extend(others.map(|(name, value)| (hash(name, value), position)));
    }

    /// Writes the file into `folder`.
    pub fn finish(mut self, folder: &Path) -> Result<()> {
        self.keys.sort_unstable();
        let path = folder.join(KEYS);
        let mut file = File::create(&path).map(BufWriter::new).map_err(RetrieverError::io("create", &path))?;
        for (hash, position) in self.keys {
            let mut record = [0; RECORD];
            record[..8].copy_from_slice(&hash.to_le_bytes());
            record[8..].copy_from_slice(&position.to_le_bytes());
            file.write_all(&record).map_err(RetrieverError::io("write", &path))?;
        }
        file.flush().map_err(RetrieverError::io("write", &path))
    }
}

/// The keys of an index.
pub struct Keys {
    map: Mmap,
}

impl Keys {
    /// Maps the file of `folder`, whose passages are `passages`; every record is checked once.
    pub fn open(folder: &Path, passages: usize) -> Result<Self> {
        let path = folder.join(KEYS);
        let keys = Self { map: map(&path)? };
        let records = (0..keys.len()).map(|at| keys.record(at));
        let whole = keys.map.len().is_multiple_of(RECORD);
        if !whole || !records.clone().is_sorted() || records.map(|(_, at)| at as usize).any(|at| at >= passages) {
            return Err(RetrieverError::content(&path, "its keys are out of order; build the index again"));
        }
        Ok(keys)
    }

    fn len(&self) -> usize {
        self.map.len() / RECORD
    }

    fn record(&self, at: usize) -> (u64, u32) {
        let (records, _) = self.map.as_chunks::<RECORD>();
        let [a, b, c, d, e, f, g, h, i, j, k, l] = records[at];
        (u64::from_le_bytes([a, b, c, d, e, f, g, h]), u32::from_le_bytes([i, j, k, l]))
    }

    /// Positions whose key may be this one, rising.
    pub fn candidates(&self, field: &str, value: &str) -> impl Iterator<Item = u32> + '_ {
        let wanted = hash(field, value);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.record(middle).0 < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        (low..self.len()).map(|at| self.record(at)).take_while(move |(hash, _)| *hash == wanted).map(|(_, at)| at)
    }
}
