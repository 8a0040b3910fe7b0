//! sha256 of bytes, files and canonical JSON.

use crate::ArtifactError;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Read;
use std::path::Path;

/// sha256 of bytes, lower-case hex.
pub fn digest_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// sha256 of a file's content, lower-case hex.
pub fn digest_file(path: &Path) -> Result<String, ArtifactError> {
    let mut file = std::fs::File::open(path).map_err(|e| ArtifactError::io("open", path, e))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer).map_err(|e| ArtifactError::io("read", path, e))?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..read]);
    }
}

/// Refuses a file whose sha256 is not `expected`.
pub fn verify_file(path: &Path, expected: &str) -> Result<(), ArtifactError> {
    let actual = digest_file(path)?;
    if actual.eq_ignore_ascii_case(expected) {
        return Ok(());
    }
    Err(ArtifactError::Digest { path: path.to_owned(), expected: expected.to_owned(), actual })
}

/// JSON with sorted keys and no white space (RFC 8785 in spirit; floats in `serde_json`'s shortest form).
pub fn canonical_json<T: Serialize>(value: &T) -> Result<String, ArtifactError> {
    let mut out = String::new();
    write_canonical(&serde_json::to_value(value)?, &mut out)?;
    Ok(out)
}

fn write_canonical(value: &Value, out: &mut String) -> Result<(), ArtifactError> {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                out.push_str(&serde_json::to_string(key)?);
                out.push(':');
                write_canonical(&map[key], out)?;
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                write_canonical(item, out)?;
            }
            out.push(']');
        }
        scalar => {
            // writing into a String cannot fail
            let _ = write!(out, "{scalar}");
        }
    }
    Ok(())
}

/// sha256 of a value's canonical JSON, lower-case hex.
pub fn digest_json<T: Serialize>(value: &T) -> Result<String, ArtifactError> {
    Ok(digest_bytes(canonical_json(value)?.as_bytes()))
}

/// A digest over named parts in order; each part is length-prefixed, so parts never run together.
#[derive(Default)]
pub struct DigestWriter(Sha256);

impl DigestWriter {
    /// Adds one part.
    pub fn part(&mut self, name: &str, bytes: &[u8]) -> &mut Self {
        for piece in [name.as_bytes(), bytes] {
            self.0.update((piece.len() as u64).to_le_bytes());
            self.0.update(piece);
        }
        self
    }

    /// The digest, lower-case hex.
    pub fn finish(self) -> String {
        hex::encode(self.0.finalize())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn key_order_does_not_matter_and_parts_do_not_run_together() {
        let a: Value = serde_json::from_str(r#"{"b":[1,{"y":0.5,"x":"é"}],"a":null}"#).unwrap();
        assert_eq!(canonical_json(&a).unwrap(), r#"{"a":null,"b":[1,{"x":"é","y":0.5}]}"#);
        let mut one = DigestWriter::default();
        one.part("ab", b"c");
        let mut two = DigestWriter::default();
        two.part("a", b"bc");
        assert_ne!(one.finish(), two.finish());
    }
}
