//! What parent and child say to each other: a frame is the length of its head (u32), the length of its body (u64), the
//! head as JSON, and the body, numbers in little endian.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::PathBuf;

/// Longest head.
pub const HEAD: usize = 64 << 10;
/// Longest body.
pub const BODY: usize = 256 << 20;

/// A question. One at a time; each has one [`Reply`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Request {
    /// Read an index file.
    Open {
        /// The file.
        path: PathBuf,
    },
    /// Make an empty index for inner products.
    Create {
        /// Elements of a vector.
        dimensions: u32,
        /// FAISS' factory string.
        factory: String,
        /// Candidates while building a graph.
        ef_construction: Option<u32>,
    },
    /// The body's rows are of the training sample.
    Sample,
    /// Train with the sample.
    Train,
    /// Add the body's rows.
    Add,
    /// Write the index to a file.
    Write {
        /// The file.
        path: PathBuf,
    },
    /// Lists visited, or candidates kept, per query from now on.
    Effort {
        /// `nprobe` or `efSearch`, whichever the index has.
        value: u32,
    },
    /// The best rows for each of the body's queries.
    Search {
        /// Rows per query.
        k: u32,
    },
    /// The rows themselves, as the index has them.
    Rows {
        /// The first.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Open` and `Create`.
    Ready(About),
    /// To `Effort`: the parameter that was set, if the index has any.
    Tuned {
        /// FAISS' name of it.
        parameter: Option<String>,
    },
    /// Done; rows are in the body where some were asked for.
    Done,
    /// To `Search`: labels (i64) of all queries, −1 where there are no more.
    Found,
    /// It could not be done.
    Failed {
        /// FAISS' words.
        reason: String,
    },
}

/// An index as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Elements of a vector.
    pub dimensions: u32,
    /// Vectors.
    pub rows: u64,
    /// Whether the index must not be trained first.
    pub trained: bool,
    /// `InnerProduct`, `L2` or another of FAISS' metrics.
    pub metric: String,
}

/// Writes a frame.
pub fn send(to: &mut impl Write, head: &impl Serialize, body: &[u8]) -> io::Result<()> {
    let head = serde_json::to_vec(head)?;
    let mut start = (head.len() as u32).to_le_bytes().to_vec();
    start.extend((body.len() as u64).to_le_bytes());
    start.extend(head);
    to.write_all(&start)?;
    to.write_all(body)?;
    to.flush()
}

/// Reads a frame; none at the end of the stream.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<(T, Vec<u8>)>> {
    let mut start = [0; 12];
    let first = from.read(&mut start[..1])?;
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut start[1..])?;
    let [a, b, c, d, rest @ ..] = start;
    let (head, body) = (u32::from_le_bytes([a, b, c, d]) as usize, u64::from_le_bytes(rest));
    if head > HEAD || body > BODY as u64 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a frame of {head} and {body} bytes")));
    }
    let (mut head, mut bytes) = (vec![0; head], vec![0; body as usize]);
    from.read_exact(&mut head)?;
    from.read_exact(&mut bytes)?;
    Ok(Some((serde_json::from_slice(&head)?, bytes)))
}

/// Numbers as bytes.
pub fn to_bytes<const N: usize, T: Copy>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| bytes(*value)).collect()
}

/// Bytes as numbers; none when the last is incomplete.
pub fn from_bytes<const N: usize, T>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
    let (whole, rest) = bytes.as_chunks::<N>();
    rest.is_empty().then(|| whole.iter().map(|chunk| value(*chunk)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn frames_round_trip_and_damage_is_an_error() {
        let request = Request::Create { dimensions: 4, factory: "IVF2,Flat".into(), ef_construction: None };
        let mut bytes = Vec::new();
        send(&mut bytes, &request, &to_bytes(&[1.5f32, -2.0], f32::to_le_bytes)).unwrap();
        send(&mut bytes, &Reply::Done, &[]).unwrap();
        let mut reader = &bytes[..];
        let (found, body) = receive::<Request>(&mut reader).unwrap().unwrap();
        assert_eq!((found, from_bytes(&body, f32::from_le_bytes).unwrap()), (request, vec![1.5, -2.0]));
        assert_eq!(receive::<Reply>(&mut reader).unwrap().unwrap().0, Reply::Done);
        assert!(receive::<Reply>(&mut reader).unwrap().is_none());
        assert!(from_bytes(&[1, 2, 3], f32::from_le_bytes).is_none());
        for cut in 1..20 {
            assert!(receive::<Request>(&mut &bytes[..cut]).is_err(), "{cut}");
        }
        for (at, value) in [(3, 0xff), (11, 0xff), (13, 0)] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            assert!(receive::<Request>(&mut &damaged[..]).is_err(), "{at}");
        }
    }
}
