//! Reading FAISS indices of kind Flat, as they are published: whole, or cut into parts. The other kinds are read by FAISS
//! itself ([`crate::dense::approximate`]).
//!
//! The file is a header of 45 bytes (four letters of the kind, dimensions i32, rows i64, two unused i64, trained
//! u8, metric i32, number of floats u64) and the rows in f32, little endian. It is read here, front to back and
//! with every number checked, because FAISS itself crashes on damaged files.

use crate::error::{Result, RetrieverError};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

const HEADER: usize = 45;
/// First letters of an inner-product index; `Reader` refuses the other kinds by name.
pub const MAGIC: &[u8; 4] = b"IxFI";
/// Rows read at once.
const BATCH: usize = 4096;

/// Writes parts, joined in order, to one file; the sha256 of the whole.
pub fn join(first: &Path, more: &[PathBuf], to: &Path) -> Result<String> {
    let mut out = File::create(to).map_err(RetrieverError::io("create", to))?;
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    for part in std::iter::once(first).chain(more.iter().map(PathBuf::as_path)) {
        let mut file = File::open(part).map_err(RetrieverError::open("vectors file", part))?;
        loop {
            let read = file.read(&mut buffer).map_err(RetrieverError::io("read", part))?;
            if read == 0 {
                break;
            }
            hasher.update(&buffer[..read]);
            out.write_all(&buffer[..read]).map_err(RetrieverError::io("write", to))?;
        }
    }
    Ok(hex::encode(hasher.finalize()))
}

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Elements of a row.
    pub dimensions: usize,
    /// Rows.
    pub rows: usize,
}

/// Whether a file begins like a FAISS index of any kind.
pub fn is_faiss(path: &Path) -> Result<bool> {
    Ok(letters(path)?.is_some_and(|first| first[0] == b'I' && first.iter().all(u8::is_ascii_alphanumeric)))
}

/// Whether a file begins like an index that [`Reader`] reads.
pub fn is_flat(path: &Path) -> Result<bool> {
    Ok(letters(path)?.is_some_and(|first| &first == MAGIC))
}

fn letters(path: &Path) -> Result<Option<[u8; 4]>> {
    let mut first = [0; 4];
    let mut file = File::open(path).map_err(RetrieverError::open("vectors file", path))?;
    match file.read_exact(&mut first) {
        Ok(()) => Ok(Some(first)),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(source) => Err(RetrieverError::Io { action: "read", path: path.to_owned(), source }),
    }
}

/// A flat index that is read front to back, hashed on the way.
pub struct Reader {
    parts: std::vec::IntoIter<PathBuf>,
    /// The part being read, named in errors.
    path: PathBuf,
    file: BufReader<File>,
    hasher: Sha256,
    shape: Shape,
    left: usize,
}

impl Reader {
    /// Opens the parts, joined in order, and reads the header.
    pub fn open(first: &Path, more: &[PathBuf]) -> Result<Self> {
        for part in more {
            std::fs::metadata(part).map_err(RetrieverError::open("vectors file", part))?;
        }
        let file = File::open(first).map_err(RetrieverError::open("vectors file", first))?;
        let mut reader = Self {
            parts: Vec::from(more).into_iter(),
            path: first.to_owned(),
            file: BufReader::with_capacity(1 << 20, file),
            hasher: Sha256::new(),
            shape: Shape { dimensions: 0, rows: 0 },
            left: 0,
        };
        let mut header = [0; HEADER];
        reader.fill(&mut header)?;
        reader.shape = parse(&header).map_err(|reason| RetrieverError::content(first, reason))?;
        reader.left = reader.shape.rows;
        Ok(reader)
    }

    /// What the header says.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    fn fill(&mut self, mut out: &mut [u8]) -> Result<()> {
        while !out.is_empty() {
            let read = self.file.read(out).map_err(RetrieverError::io("read", &self.path))?;
            if read > 0 {
                self.hasher.update(&out[..read]);
                out = &mut out[read..];
            } else if let Some(next) = self.parts.next() {
                let file = File::open(&next).map_err(RetrieverError::io("open", &next))?;
                self.file = BufReader::with_capacity(1 << 20, file);
                self.path = next;
            } else {
                return Err(RetrieverError::content(
                    &self.path,
                    "it ends before the rows that its header promises; fetch it again, and name all its parts in order",
                ));
            }
        }
        Ok(())
    }

    /// The next rows, run together; empty after the last.
    pub fn next_rows(&mut self) -> Result<Vec<f32>> {
        let count = self.left.min(BATCH);
        let mut values = vec![0f32; count * self.shape.dimensions];
        self.fill(bytemuck::cast_slice_mut(&mut values))?;
        self.left -= count;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let row = self.shape.rows - self.left - count + at / self.shape.dimensions;
            return Err(RetrieverError::content(&self.path, format!("row {row} holds something that is no number")));
        }
        Ok(values)
    }

    /// Makes sure that nothing follows the rows; the sha256 of all parts joined.
    pub fn finish(mut self) -> Result<String> {
        let mut byte = [0];
        loop {
            let read = self.file.read(&mut byte).map_err(RetrieverError::io("read", &self.path))?;
            if read > 0 {
                return Err(RetrieverError::content(&self.path, "it goes on after the rows that its header promises"));
            }
            let Some(next) = self.parts.next() else { return Ok(hex::encode(self.hasher.finalize())) };
            self.file = BufReader::new(File::open(&next).map_err(RetrieverError::io("open", &next))?);
            self.path = next;
        }
    }
}

fn parse(header: &[u8; HEADER]) -> Result<Shape, String> {
    let kind = String::from_utf8_lossy(&header[..4]);
    if &header[..4] != MAGIC {
        let other = "only Flat indices with inner product (IxFI) can be read; export the vectors with FAISS' \
                     reconstruct_n into such an index";
        return Err(format!("a FAISS index of kind {kind:?}: {other}"));
    }
    let int = |at: usize| i32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let long = |at: usize| u64::from(int(at) as u32) | u64::from(int(at + 4) as u32) << 32;
    let damaged = || "its header is damaged; fetch it again".to_owned();
    let (dimensions, rows, metric, floats) = (int(4), long(8), int(33), long(37));
    if header[32] != 1 || metric != 0 || !(1..=1 << 15).contains(&dimensions) || rows > u64::from(u32::MAX) {
        return Err(damaged());
    }
    if rows * dimensions as u64 != floats {
        return Err(damaged());
    }
    Ok(Shape { dimensions: dimensions as usize, rows: rows as usize })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// What `faiss.write_index(IndexFlatIP)` of faiss-cpu 1.15.1 writes.
    pub fn encode(rows: &[f32], d: usize) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend((d as i32).to_le_bytes());
        out.extend(((rows.len() / d) as i64).to_le_bytes());
        out.extend([1i64 << 20, 1 << 20].iter().flat_map(|dummy| dummy.to_le_bytes()));
        out.push(1);
        out.extend(0i32.to_le_bytes());
        out.extend((rows.len() as u64).to_le_bytes());
        out.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
        out
    }

    fn read(first: &Path, more: &[PathBuf]) -> Result<(Vec<f32>, String)> {
        let mut reader = Reader::open(first, more)?;
        let mut all = Vec::new();
        loop {
            let rows = reader.next_rows()?;
            if rows.is_empty() {
                return Ok((all, reader.finish()?));
            }
            all.extend(rows);
        }
    }

    #[test]
    fn parts_join_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<f32> = (0..30).map(|at| at as f32 / 7.0).collect();
        let file = encode(&rows, 3);
        assert_eq!(file.len(), HEADER + 120);
        let path = |name: &str| dir.path().join(name);
        for cut in [0, 1, 4, 44, 45, 46, 100, file.len()] {
            std::fs::write(path("a"), &file[..cut]).unwrap();
            std::fs::write(path("b"), &file[cut..]).unwrap();
            let (found, digest) = read(&path("a"), &[path("b")]).unwrap();
            assert_eq!((found, digest), (rows.clone(), s3_artifacts::digest_bytes(&file)), "{cut}");
        }
        std::fs::write(path("a"), &file).unwrap();
        assert!(is_faiss(&path("a")).unwrap());
        for cut in 0..file.len() {
            std::fs::write(path("a"), &file[..cut]).unwrap();
            assert!(read(&path("a"), &[]).is_err(), "cut at {cut}");
        }
        for at in 0..37 {
            // the two unused numbers may hold anything
            if (16..32).contains(&at) {
                continue;
            }
            let mut damaged = file.clone();
            damaged[at] ^= 0x84;
            std::fs::write(path("a"), &damaged).unwrap();
            assert!(read(&path("a"), &[]).is_err(), "byte {at}");
        }
        std::fs::write(path("a"), encode(&[f32::NAN, 1.0], 2)).unwrap();
        assert!(read(&path("a"), &[]).unwrap_err().to_string().contains("row 0"));
        std::fs::write(path("a"), [b"IwFl", &file[4..]].concat()).unwrap();
        assert!(read(&path("a"), &[]).unwrap_err().to_string().contains("IwFl"));
    }
}
