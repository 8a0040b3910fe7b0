//! A file of numbers for mapping: a header, the data, and a checksum of every mebibyte of it.
//!
//! Header, 64 bytes, little endian: magic, kind (u32), dimensions (u32), rows (u64), bytes of data (u64),
//! CRC-32 of the checksums (u32), CRC-32 of the header before it (u32), zeros. The manifest's sha256 is what
//! makes a file trusted; the checksums find damage in parallel and say where it is.

use crate::error::{Result, RetrieverError};
use crate::mapped::map;
use memmap2::{Advice, Mmap};
use rayon::prelude::*;
use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

#[cfg(target_endian = "big")]
compile_error!("index files are mapped as they are: little endian");

const MAGIC: &[u8; 8] = b"S3DENSE\x02";
/// Size of the header; data that follows it in a map lies on a boundary of so many bytes.
pub const HEADER: usize = 64;
const BLOCK: usize = 1 << 20;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Rows of f16.
    Half = 0,
    /// Rows of f32.
    Single = 1,
    /// 8-bit codes.
    Bytes = 2,
    /// 1-bit codes. (3 was another order of them.)
    Bits = 4,
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// See [`Kind`].
    pub kind: Kind,
    /// Elements of a row.
    pub dimensions: usize,
    /// Rows.
    pub rows: usize,
}

/// Writes such a file front to back.
pub struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    header: Header,
    /// The block that is being filled.
    hasher: crc32fast::Hasher,
    filled: usize,
    written: u64,
    checksums: Vec<u8>,
}

impl Writer {
    /// Starts the file.
    pub fn create(path: &Path, header: Header) -> Result<Self> {
        let io = RetrieverError::io("create", path);
        let file = File::create(path).and_then(|mut file| file.write_all(&[0; HEADER]).map(|()| file)).map_err(io)?;
        Ok(Self {
            path: path.to_owned(),
            file: BufWriter::with_capacity(BLOCK, file),
            header,
            hasher: crc32fast::Hasher::new(),
            filled: 0,
            written: 0,
            checksums: Vec::new(),
        })
    }

    /// Adds data.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - self.filled));
            self.hasher.update(part);
            self.file.write_all(part).map_err(RetrieverError::io("write", &self.path))?;
            self.filled += part.len();
            if self.filled == BLOCK {
                self.end_block();
            }
            bytes = rest;
        }
        Ok(())
    }

    fn end_block(&mut self) {
        let hasher = std::mem::take(&mut self.hasher);
        self.checksums.extend_from_slice(&hasher.finalize().to_le_bytes());
        self.filled = 0;
    }

    /// Writes checksums and header.
    pub fn finish(mut self, rows: usize) -> Result<()> {
        if self.filled > 0 {
            self.end_block();
        }
        self.header.rows = rows;
        let header = encode(&self.header, self.written, crc32fast::hash(&self.checksums));
        let finished = self.file.write_all(&self.checksums).and_then(|()| {
            self.file.seek(SeekFrom::Start(0))?;
            self.file.write_all(&header)?;
            self.file.flush()
        });
        finished.map_err(RetrieverError::io("write", &self.path))
    }
}

fn encode(header: &Header, bytes: u64, checksums: u32) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&(header.kind as u32).to_le_bytes());
    out[12..16].copy_from_slice(&(header.dimensions as u32).to_le_bytes());
    out[16..24].copy_from_slice(&(header.rows as u64).to_le_bytes());
    out[24..32].copy_from_slice(&bytes.to_le_bytes());
    out[32..36].copy_from_slice(&checksums.to_le_bytes());
    let own = crc32fast::hash(&out[..36]);
    out[36..40].copy_from_slice(&own.to_le_bytes());
    out
}

/// The data of such a file.
pub struct Data {
    map: Mmap,
    bytes: usize,
}

impl Data {
    /// Maps a file, after checking its header and all blocks.
    pub fn open(path: &Path) -> Result<(Header, Self)> {
        let map = map(path)?;
        let (header, bytes) = verify(&map).map_err(|reason| RetrieverError::content(path, reason))?;
        Ok((header, Self { map, bytes }))
    }

    /// Says how the data will be read: front to back, or here and there, when reading ahead would only drive other
    /// pages out of memory.
    pub fn read_scattered(&self, scattered: bool) {
        let advice = if scattered { Advice::Random } else { Advice::Normal };
        if let Err(error) = self.map.advise(advice) {
            tracing::debug!(%error, "the system takes no advice about a map");
        }
    }
}

impl std::ops::Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[HEADER..HEADER + self.bytes]
    }
}

fn verify(file: &[u8]) -> Result<(Header, usize), String> {
    const AGAIN: &str = "build the index again";
    let (head, rest) = file.split_first_chunk::<HEADER>().ok_or(format!("it is shorter than its header; {AGAIN}"))?;
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let long = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
    let kinds = [Kind::Half, Kind::Single, Kind::Bytes, Kind::Bits];
    let kind = kinds.into_iter().find(|kind| *kind as u32 == word(8));
    let (Some(kind), true) = (kind, &head[..8] == MAGIC) else {
        return Err(format!("not a vector file of this version; {AGAIN}"));
    };
    let header = Header { kind, dimensions: word(12) as usize, rows: long(16) as usize };
    if encode(&header, long(24), word(32)) != *head || header.dimensions == 0 {
        return Err(format!("its header is damaged; {AGAIN}"));
    }
    let bytes = usize::try_from(long(24)).unwrap_or(usize::MAX);
    let size = bytes.div_ceil(BLOCK).checked_mul(4).and_then(|table| table.checked_add(bytes));
    if size != Some(rest.len()) {
        return Err(format!("its size does not fit its header; {AGAIN}"));
    }
    let (data, checksums) = rest.split_at(bytes);
    if crc32fast::hash(checksums) != word(32) {
        return Err(format!("its checksums are damaged; {AGAIN}"));
    }
    let (checksums, _) = checksums.as_chunks::<4>();
    let bad = data
        .par_chunks(BLOCK)
        .zip(checksums)
        .position_first(|(block, checksum)| crc32fast::hash(block).to_le_bytes() != *checksum);
    match bad {
        Some(block) => Err(format!("block {block} of {BLOCK} bytes is damaged; {AGAIN}")),
        None => Ok((header, bytes)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_round_trip_and_every_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let header = Header { kind: Kind::Bytes, dimensions: 3, rows: 0 };
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 5] {
            let content: Vec<u8> = (0..size).map(|at| (at * 7 / 3) as u8).collect();
            let mut writer = Writer::create(&path, header).unwrap();
            content.chunks(70_001).for_each(|part| writer.write(part).unwrap());
            writer.finish(9).unwrap();
            let (found, data) = Data::open(&path).unwrap();
            assert_eq!(found, Header { rows: 9, ..header });
            assert!(data[..] == content[..]);
        }
        let whole = std::fs::read(&path).unwrap();
        for at in (0..70).chain((70..whole.len()).step_by(9973)).chain(whole.len() - 9..whole.len()) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            assert!(verify(&damaged).is_err(), "byte {at}");
            assert!(verify(&whole[..at]).is_err(), "cut at {at}");
        }
        assert!(verify(&[&whole[..], &[0]].concat()).is_err());
        // 1-bit codes as they were ordered before
        let mut before = whole;
        before[8..12].copy_from_slice(&3u32.to_le_bytes());
        let own = crc32fast::hash(&before[..36]).to_le_bytes();
        before[36..40].copy_from_slice(&own);
        assert_eq!(verify(&before).unwrap_err(), "not a vector file of this version; build the index again");
    }
}
