//! The passages of an index on disk: canonical JSON lines and a table of their ends, memory-mapped, so
//! that a corpus larger than memory is served as well.

use crate::corpus::Entry;
use crate::error::{Result, RetrieverError};
use crate::keys::{KeyWriter, Keys, value};
use crate::mapped::map;
use memmap2::Mmap;
use s3_search::Passage;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// File names inside an index.
pub const PASSAGES: &str = "passages.jsonl";
/// Ends of the lines, u64 little endian.
pub const PASSAGE_ENDS: &str = "passages.ends";

/// Writes passages in order.
pub struct PassageWriter {
    paths: [PathBuf; 2],
    lines: BufWriter<File>,
    ends: BufWriter<File>,
    keys: KeyWriter,
    written: u64,
    passages: u32,
}

impl PassageWriter {
    /// Starts both files in `folder`.
    pub fn create(folder: &Path) -> Result<Self> {
        let paths = [folder.join(PASSAGES), folder.join(PASSAGE_ENDS)];
        let create = |path: &Path| File::create(path).map(BufWriter::new).map_err(RetrieverError::io("create", path));
        Ok(Self {
            lines: create(&paths[0])?,
            ends: create(&paths[1])?,
            keys: KeyWriter::default(),
            paths,
            written: 0,
            passages: 0,
        })
    }

    /// Adds the next passage.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        self.keys.add(self.passages, entry);
        self.passages += 1;
        let mut line = serde_json::to_vec(entry).map_err(|e| RetrieverError::Internal(e.to_string()))?;
        line.push(b'\n');
        self.written += line.len() as u64;
        self.lines.write_all(&line).map_err(RetrieverError::io("write", &self.paths[0]))?;
        self.ends.write_all(&self.written.to_le_bytes()).map_err(RetrieverError::io("write", &self.paths[1]))
    }

    /// Ends both files and writes the keys.
    pub fn finish(mut self, folder: &Path) -> Result<()> {
        self.lines.flush().map_err(RetrieverError::io("write", &self.paths[0]))?;
        self.ends.flush().map_err(RetrieverError::io("write", &self.paths[1]))?;
        self.keys.finish(folder)
    }
}

/// Reads passages by position.
pub struct PassageStore {
    path: PathBuf,
    lines: Mmap,
    ends: Mmap,
    keys: Keys,
}

impl PassageStore {
    /// Maps the files of `folder` and checks that their ends fit.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(PASSAGES);
        let (lines, ends) = (map(&path)?, map(&folder.join(PASSAGE_ENDS))?);
        let keys = Keys::open(folder, ends.len() / 8)?;
        let store = Self { path, lines, ends, keys };
        let sorted = (0..store.len()).map(|at| store.end(at)).is_sorted();
        let last = store.len().checked_sub(1).map(|last| store.end(last));
        if !sorted || !store.ends.len().is_multiple_of(8) || last != Some(store.lines.len() as u64) {
            return Err(RetrieverError::content(&store.path, "its table of lines does not fit; build the index again"));
        }
        Ok(store)
    }

    /// Number of passages.
    pub fn len(&self) -> usize {
        self.ends.len() / 8
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn end(&self, at: usize) -> u64 {
        let (ends, _) = self.ends.as_chunks::<8>();
        u64::from_le_bytes(ends[at])
    }

    /// The line of the passage at `position`, as it was written: an [`Entry`] as JSON and a line break.
    pub fn line(&self, position: usize) -> &[u8] {
        let start = if position == 0 { 0 } else { self.end(position - 1) };
        &self.lines[start as usize..self.end(position) as usize]
    }

    /// All that is known of the passage at `position`.
    pub fn entry(&self, position: usize) -> Result<Entry> {
        serde_json::from_slice(self.line(position))
            .map_err(|error| RetrieverError::content(&self.path, format!("passage {position}: {error}")))
    }

    /// The passage at `position`.
    pub fn get(&self, position: usize) -> Result<Passage> {
        self.entry(position).map(Entry::passage)
    }

    /// Positions of the passages whose field (`id`, `title` or a name of the metadata) has this value, rising.
    pub fn find(&self, field: &str, wanted: &str) -> Result<Vec<u32>> {
        let mut found = Vec::new();
        for at in self.keys.candidates(field, wanted) {
            if value(&self.entry(at as usize)?, field) == Some(wanted) {
                found.push(at);
            }
        }
        Ok(found)
    }
}
