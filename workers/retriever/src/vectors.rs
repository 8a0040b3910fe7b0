//! Vectors in files: shards of a build, and safetensors for exchange. The index's own form is in
//! [`crate::dense::file`].

use crate::error::{Result, RetrieverError};
use crate::mapped::map;
use half::f16;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

/// f16 rows of equal length.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vectors {
    /// Elements of one row.
    pub dimensions: usize,
    /// Rows run together.
    pub values: Vec<f16>,
}

const MAGIC: &[u8; 8] = b"S3VECF16";
const HEADER: usize = 8 + 8 + 8;
const DIGEST: usize = 64;

fn to_bytes(values: &[f16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn from_bytes(bytes: &[u8]) -> Vec<f16> {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.iter().map(|pair| f16::from_le_bytes(*pair)).collect()
}

impl Vectors {
    /// Rounds rows to f16; every row has `dimensions` elements.
    pub fn from_rows(rows: &[Vec<f32>], dimensions: usize) -> Self {
        let values = rows.iter().flatten().map(|value| f16::from_f32(*value)).collect();
        Self { dimensions, values }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.dimensions).unwrap_or(0)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// A header of magic, rows and dimensions, then the rows, little endian.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&(self.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.dimensions as u64).to_le_bytes());
        out.extend_from_slice(&to_bytes(&self.values));
        out
    }

    /// Reads what [`Vectors::encode`] wrote, or says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let (header, values) = bytes.split_at_checked(HEADER).ok_or("it is shorter than its header")?;
        let (words, _) = header.as_chunks::<8>();
        let (rows, dimensions) = (u64::from_le_bytes(words[1]), u64::from_le_bytes(words[2]));
        if &words[0] != MAGIC || dimensions == 0 {
            return Err("not a vector file of this version");
        }
        let size = rows.checked_mul(dimensions).and_then(|count| count.checked_mul(2));
        if size != Some(values.len() as u64) {
            return Err("its size does not fit its header");
        }
        Ok(Self { dimensions: dimensions as usize, values: from_bytes(values) })
    }

    /// One shard of a build: the sha256 of the rest, then [`Vectors::encode`]; written atomically.
    pub fn write_shard(&self, path: &Path) -> Result<()> {
        let encoded = self.encode();
        let mut bytes = s3_artifacts::digest_bytes(&encoded).into_bytes();
        bytes.extend_from_slice(&encoded);
        Ok(s3_artifacts::write_atomic(path, &bytes)?)
    }

    /// A shard written earlier; none when it is missing, damaged or of another shape.
    pub fn read_shard(path: &Path, rows: usize, dimensions: usize) -> Option<Self> {
        let bytes = std::fs::read(path).ok()?;
        let (digest, encoded) = bytes.split_at_checked(DIGEST)?;
        if s3_artifacts::digest_bytes(encoded).as_bytes() != digest {
            return None;
        }
        Self::decode(encoded).ok().filter(|shard| shard.dimensions == dimensions && shard.len() == rows)
    }

    /// Writes tensor `vectors` [rows, dimensions] as safetensors; the same input gives the same bytes.
    pub fn write_safetensors(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let end = self.values.len() * 2;
        let header = serde_json::json!({
            "__metadata__": metadata,
            "vectors": {"dtype": "F16", "shape": [self.len(), self.dimensions], "data_offsets": [0, end]},
        });
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        let written = out.write_all(&header).and_then(|()| out.write_all(&to_bytes(&self.values)));
        written.map_err(RetrieverError::io("write", path))?;
        Ok(s3_artifacts::write_atomic(path, &out)?)
    }
}

/// A safetensors file with tensor `vectors` [rows, dimensions] f16, mapped.
pub struct VectorFile {
    map: Mmap,
    values: Range<usize>,
    dimensions: usize,
}

impl VectorFile {
    /// Maps the file and finds the tensor in it.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map(path)?;
        let bad = |reason: String| RetrieverError::content(path, reason);
        let file = SafeTensors::deserialize(&map).map_err(|e| bad(format!("not safetensors: {e}")))?;
        let tensor = file.tensor("vectors").map_err(|_| bad("has no tensor named vectors".to_owned()))?;
        match (tensor.dtype(), tensor.shape()) {
            (Dtype::F16, [_, dimensions]) if *dimensions > 0 => {
                let (dimensions, data) = (*dimensions, tensor.data());
                let start = data.as_ptr().addr() - map.as_ptr().addr();
                let values = start..start + data.len();
                Ok(Self { map, values, dimensions })
            }
            (dtype, shape) => {
                Err(bad(format!("tensor vectors is {dtype:?} {shape:?}, expected F16 [passages, dimensions]")))
            }
        }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.values.len() / (2 * self.dimensions)
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Elements of a row.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Some of the rows, run together.
    pub fn rows(&self, range: Range<usize>) -> Vec<f16> {
        let bytes = &self.map[self.values.clone()];
        from_bytes(&bytes[range.start * 2 * self.dimensions..range.end * 2 * self.dimensions])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn files_round_trip_and_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let vectors = Vectors::from_rows(&[vec![0.25, -1.0, 3.0], vec![0.1, 0.2, 0.3]], 3);
        assert_eq!(Vectors::decode(&vectors.encode()).unwrap(), vectors);
        let path = dir.path().join("v.safetensors");
        vectors.write_safetensors(&path, &BTreeMap::from([("encoder".to_owned(), "x".to_owned())])).unwrap();
        let file = VectorFile::open(&path).unwrap();
        assert_eq!((file.dimensions(), file.len(), file.rows(0..2)), (3, 2, vectors.values.clone()));
        let shard = dir.path().join("shard");
        vectors.write_shard(&shard).unwrap();
        assert_eq!(Vectors::read_shard(&shard, 2, 3).unwrap(), vectors);
        assert!(Vectors::read_shard(&shard, 3, 2).is_none());
        let bytes = std::fs::read(&shard).unwrap();
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 1;
            std::fs::write(&shard, &bytes).unwrap();
            assert!(Vectors::read_shard(&shard, 2, 3).is_none(), "byte {at}");
        }
    }
}
