//! The inverted index as a file: a header of counts and parameters, then the arrays, little endian.
//!
//! The manifest's sha256 finds damage; the checks here make sure that even a file with a right digest
//! but wrong content never reads outside its arrays.

use crate::lexical::LexicalIndex;

const MAGIC: &[u8; 8] = b"S3BM25\0\x02";

fn put<const N: usize, T: Copy>(out: &mut Vec<u8>, values: &[T], bytes: impl Fn(T) -> [u8; N]) {
    for value in values {
        out.extend_from_slice(&bytes(*value));
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (part, rest) = self.0.split_at_checked(length).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(part)
    }

    fn values<const N: usize, T>(&mut self, count: usize, value: impl Fn([u8; N]) -> T) -> Result<Vec<T>, String> {
        let bytes = self.take(count.checked_mul(N).ok_or("a count is too large")?)?;
        let (chunks, _) = bytes.as_chunks::<N>();
        Ok(chunks.iter().map(|chunk| value(*chunk)).collect())
    }
}

fn rises_to(ends: &[u64], last: usize) -> bool {
    ends.is_sorted() && ends.last().map_or(last == 0, |end| *end == last as u64)
}

impl LexicalIndex {
    /// The file's content; the same index always gives the same bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        let counts = [self.len, self.term_ends.len(), self.term_bytes.len(), self.passages.len()];
        put(&mut out, &counts, |count| (count as u64).to_le_bytes());
        put(&mut out, &[self.k1, self.b], f64::to_le_bytes);
        put(&mut out, &self.term_ends, u64::to_le_bytes);
        put(&mut out, &self.posting_ends, u64::to_le_bytes);
        out.extend_from_slice(&self.term_bytes);
        put(&mut out, &self.passages, u32::to_le_bytes);
        put(&mut out, &self.impacts, f32::to_le_bytes);
        out
    }

    /// Reads what [`LexicalIndex::to_bytes`] wrote, or says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader(bytes);
        if reader.take(MAGIC.len())? != MAGIC {
            return Err("not an inverted index of this version".to_owned());
        }
        let counts = reader.values(4, |b| u64::from_le_bytes(b) as usize)?;
        let parameters = reader.values(2, f64::from_le_bytes)?;
        let mut index = Self {
            k1: parameters[0],
            b: parameters[1],
            len: counts[0],
            term_ends: reader.values(counts[1], u64::from_le_bytes)?,
            posting_ends: reader.values(counts[1], u64::from_le_bytes)?,
            term_bytes: reader.take(counts[2])?.to_vec(),
            passages: reader.values(counts[3], u32::from_le_bytes)?,
            impacts: reader.values(counts[3], f32::from_le_bytes)?,
            maxima: Vec::new(),
        };
        if !reader.0.is_empty() {
            return Err("it is longer than its counts say".to_owned());
        }
        if !rises_to(&index.term_ends, index.term_bytes.len()) || !rises_to(&index.posting_ends, index.passages.len()) {
            return Err("its offsets are out of order".to_owned());
        }
        if index.len > u32::MAX as usize || index.passages.iter().any(|passage| *passage as usize >= index.len) {
            return Err("it names passages that it does not have".to_owned());
        }
        let mut start = 0;
        for end in &index.posting_ends {
            if !index.passages[start..*end as usize].is_sorted_by(|a, b| a < b) {
                return Err("the passages of a term are out of order".to_owned());
            }
            start = *end as usize;
        }
        if !index.impacts.iter().all(|impact| impact.is_finite() && *impact >= 0.0) {
            return Err("a score in it is no number".to_owned());
        }
        index.maxima = index.maxima();
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::lexical::LexicalBuilder;

    use super::*;

    #[test]
    fn round_trip_and_every_damage() {
        let mut builder = LexicalBuilder::default();
        builder.add("Alpha", "beta gamma");
        builder.add("", "gamma gamma delta");
        let index = builder.finish(&s3_config::LexicalConfig::default());
        let bytes = index.to_bytes();
        assert_eq!(LexicalIndex::from_bytes(&bytes).unwrap(), index);
        for cut in 0..bytes.len() {
            assert!(LexicalIndex::from_bytes(&bytes[..cut]).is_err());
        }
        // A flipped byte is refused or gives an index that can be searched without a panic.
        for at in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                if let Ok(index) = LexicalIndex::from_bytes(&bytes) {
                    index.search("gamma alpha", 5);
                }
            }
        }
    }
}
