//! A published index: its identity, the pointer to the current version, and opening it verified.
//!
//! Layout: `<output>/<digest>/{manifest.json, passages.jsonl, passages.ends, passages.keys, lexical.bin,
//! vectors.f16, vectors.codes or vectors.faiss}` and the pointer `<output>/CURRENT`, one line: the digest and the sha256 of that version's manifest. The
//! pointer thus fixes every byte of the version.

use crate::dense::DenseIndex;
use crate::dense::rows::Rows;
use crate::error::{Result, RetrieverError};
use crate::lexical::LexicalIndex;
use crate::passages::PassageStore;
use s3_artifacts::{Manifest, digest_file, load_manifest, write_atomic};
use s3_config::{DenseKind, Pooling, Structure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Manifest kind.
pub const KIND: &str = "index";
/// Layout version …
const FORMAT: u32 = 3;
/// … and that of an index with 1-bit codes, whose order changed since.
const ONE_BIT_FORMAT: u32 = 4;
/// File of the inverted index.
pub const LEXICAL: &str = "lexical.bin";
/// File of the vectors.
pub const VECTORS: &str = "vectors.f16";
/// File of the codes of quantised vectors.
pub const CODES: &str = "vectors.codes";
/// File of the index that FAISS searches.
pub const FAISS: &str = "vectors.faiss";
const CURRENT: &str = "CURRENT";
const HEX: usize = 64;

/// Everything that decides what an index holds; its digest names the index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Identity {
    /// sha256 of the corpus file.
    pub corpus_sha256: String,
    /// Only the first this many passages.
    pub limit: Option<u64>,
    /// The lexical leg.
    pub lexical: Option<LexicalIdentity>,
    /// The dense leg.
    pub dense: Option<DenseIdentity>,
}

/// See [`Identity`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LexicalIdentity {
    /// Version of the analyzer.
    pub analyzer: String,
    /// Term-frequency saturation.
    pub k1: f64,
    /// Length normalisation.
    pub b: f64,
}

/// See [`Identity`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DenseIdentity {
    /// How vectors are searched.
    pub kind: DenseKind,
    /// Recall that a search by codes was set to; none for exact search.
    pub recall_target: Option<f64>,
    /// How FAISS' kinds are made.
    #[serde(default, skip_serializing_if = "Structure::is_default")]
    pub structure: Structure,
    /// sha256 of the encoder's `model.safetensors`.
    pub encoder_sha256: String,
    /// sha256 of its `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// Token states to vector.
    pub pooling: Pooling,
    /// Put before queries.
    pub query_prefix: String,
    /// Put before passages.
    pub passage_prefix: String,
    /// Truncation.
    pub max_tokens: usize,
    /// sha256 of the file that the vectors came from, when they were not computed by the build.
    pub vectors_sha256: Option<String>,
}

/// What is worth knowing about an index beside its identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Facts {
    /// Passages.
    pub passages: u64,
    /// Elements of a vector; 0 without a dense leg.
    pub dimensions: u64,
    /// Rows scored again per passage asked for; none for exact search.
    pub oversample: Option<u64>,
    /// Lists that FAISS visits or candidates that it keeps per query; none where it has neither.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effort: Option<u32>,
    /// Least cosine of an imported vector with the encoder's own, where the index codes them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fidelity: Option<f64>,
    /// Recall at ten against exact search, measured by the build; none without a dense leg.
    pub recall: Option<f64>,
    /// Size of all files but the manifest.
    pub bytes: u64,
    /// Audited datasets.
    pub answerable: Vec<Answerable>,
}

/// How much of a dataset the corpus can answer at all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answerable {
    /// Dataset name.
    pub dataset: String,
    /// sha256 of the question file.
    pub sha256: String,
    /// Questions in it.
    pub questions: u64,
    /// Those with a gold answer that stands in some passage and not in the question.
    pub answerable: u64,
}

/// The layout version of an index of this identity.
pub fn format(identity: &Identity) -> u32 {
    match &identity.dense {
        Some(dense) if dense.kind == DenseKind::OneBit => ONE_BIT_FORMAT,
        _ => FORMAT,
    }
}

/// The digest that an index of this identity gets.
pub fn index_digest(identity: &Identity) -> Result<String> {
    Ok(manifest_like(identity)?.digest()?)
}

fn manifest_like(identity: &Identity) -> Result<Manifest> {
    let format = format(identity);
    let identity = serde_json::to_value(identity).map_err(|e| RetrieverError::Internal(e.to_string()))?;
    let (facts, files) = (serde_json::Value::Null, std::collections::BTreeMap::new());
    Ok(Manifest { kind: KIND.to_owned(), format, identity, facts, files })
}

/// Makes `digest` the version that `<output>/CURRENT` points to.
pub fn set_current(output: &Path, digest: &str) -> Result<()> {
    let manifest = digest_file(&output.join(digest).join("manifest.json"))?;
    Ok(write_atomic(&output.join(CURRENT), format!("{digest} {manifest}\n").as_bytes())?)
}

/// The digest in `<output>/CURRENT` and the manifest's sha256.
pub fn current(output: &Path) -> Result<(String, String)> {
    let path = output.join(CURRENT);
    let bytes = std::fs::read(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            RetrieverError::content(output, "no index is published there; run `s3-retriever build` first")
        }
        _ => RetrieverError::Io { action: "read", path: path.clone(), source },
    })?;
    let is_hex = |part: &[u8]| part.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    match &bytes[..] {
        [digest @ .., b'\n'] if digest.len() == 2 * HEX + 1 => {
            let (digest, manifest) = (&digest[..HEX], &digest[HEX..]);
            if let [b' ', manifest @ ..] = manifest
                && is_hex(digest)
                && is_hex(manifest)
            {
                let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
                return Ok((text(digest), text(manifest)));
            }
        }
        _ => {}
    }
    Err(RetrieverError::content(&path, "is damaged; run `s3-retriever build` again to restore it"))
}

/// Manifest, identity and facts of a published version whose files are whole.
pub struct Verified {
    /// As published.
    pub manifest: Manifest,
    /// Parsed from the manifest.
    pub identity: Identity,
    /// Parsed from the manifest.
    pub facts: Facts,
}

/// Verifies version `digest` in `output`: every file's sha256 and the identity's digest.
pub fn verify(output: &Path, digest: &str) -> Result<Verified> {
    let folder = output.join(digest);
    parsed(&folder, digest, load_manifest(&folder, KIND)?)
}

/// What the manifest of version `digest` says, its files unread.
pub fn unverified(output: &Path, digest: &str) -> Result<Verified> {
    let folder = output.join(digest);
    let path = folder.join("manifest.json");
    let bytes = std::fs::read(&path).map_err(RetrieverError::io("read", &path))?;
    let manifest = serde_json::from_slice(&bytes)
        .map_err(|error| RetrieverError::content(&path, format!("not a manifest ({error}); build the index again")))?;
    parsed(&folder, digest, manifest)
}

fn parsed(folder: &Path, digest: &str, manifest: Manifest) -> Result<Verified> {
    let bad = |reason: String| RetrieverError::content(folder, format!("{reason}; build the index again"));
    let identity = serde_json::from_value(manifest.identity.clone());
    let wanted = identity.as_ref().map_or(FORMAT, format);
    if manifest.format != wanted {
        return Err(bad(format!("layout {} is not {wanted}, the one this program reads", manifest.format)));
    }
    if manifest.digest()? != digest {
        return Err(bad("the manifest describes another index".to_owned()));
    }
    let unreadable = |error: serde_json::Error| bad(format!("manifest is not readable ({error})"));
    let identity = identity.map_err(unreadable)?;
    let facts = serde_json::from_value(manifest.facts.clone()).map_err(unreadable)?;
    Ok(Verified { manifest, identity, facts })
}

/// An index ready to be searched.
pub struct Index {
    /// Its name.
    pub digest: String,
    /// Digest of its files.
    pub content_digest: String,
    /// What decides its content.
    pub identity: Identity,
    /// Its passages.
    pub passages: PassageStore,
    /// The lexical leg.
    pub lexical: Option<LexicalIndex>,
    /// The dense leg.
    pub dense: Option<DenseIndex>,
    /// See [`Facts`].
    pub fidelity: Option<f64>,
}

impl Index {
    /// Opens the version that `<output>/CURRENT` points to, after verifying all of it.
    pub fn open_current(output: &Path) -> Result<Self> {
        let (digest, manifest_sha256) = current(output)?;
        let folder = output.join(&digest);
        s3_artifacts::verify_file(&folder.join("manifest.json"), &manifest_sha256)?;
        let Verified { manifest, identity, facts } = verify(output, &digest)?;
        let read = |name: &str| -> Result<(PathBuf, Vec<u8>)> {
            let path = folder.join(name);
            let bytes = std::fs::read(&path).map_err(RetrieverError::io("read", &path))?;
            // The file could change between verifying and reading; what is served is what was read.
            let expected = manifest.files.get(name).map(String::as_str).unwrap_or_default();
            if s3_artifacts::digest_bytes(&bytes) != expected {
                return Err(RetrieverError::content(&path, "not the content that the manifest names"));
            }
            Ok((path, bytes))
        };
        let mut lexical = None;
        if identity.lexical.is_some() {
            let (path, bytes) = read(LEXICAL)?;
            lexical = Some(LexicalIndex::from_bytes(&bytes).map_err(|e| RetrieverError::content(&path, e))?);
        }
        let mut dense = None;
        if let Some(identity) = &identity.dense {
            dense = Some(open_dense(&folder, identity, &facts)?);
        }
        let passages = PassageStore::open(&folder)?;
        let counts = [
            facts.passages as usize,
            lexical.as_ref().map_or(passages.len(), LexicalIndex::len),
            dense.as_ref().map_or(passages.len(), DenseIndex::len),
        ];
        if counts.iter().any(|count| *count != passages.len()) {
            let reason = format!("its parts hold {} and {counts:?} passages; build the index again", passages.len());
            return Err(RetrieverError::content(&folder, reason));
        }
        let content_digest = manifest.content_digest()?;
        let fidelity = facts.fidelity;
        Ok(Self { digest, content_digest, identity, passages, lexical, dense, fidelity })
    }
}

/// The dense leg of a folder.
pub fn open_dense(folder: &Path, identity: &DenseIdentity, facts: &Facts) -> Result<DenseIndex> {
    let rows = Rows::open(&folder.join(VECTORS))?;
    let oversample = facts.oversample.unwrap_or(1) as usize;
    let faiss = folder.join(FAISS);
    match identity.kind {
        // the manifest, which is verified, names all files
        DenseKind::Imported if !faiss.exists() => Ok(DenseIndex::new(rows)),
        kind if kind.is_faiss() => {
            let index = DenseIndex::open(kind, rows, &faiss, oversample)?;
            facts.effort.map(|effort| index.set_effort(effort)).transpose()?;
            Ok(index)
        }
        kind => DenseIndex::open(kind, rows, &folder.join(CODES), oversample),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_pointer_is_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        assert!(current(dir.path()).unwrap_err().to_string().contains("s3-retriever build"));
        let line = format!("{} {}\n", "0f".repeat(32), "a9".repeat(32));
        let path = dir.path().join(CURRENT);
        std::fs::write(&path, &line).unwrap();
        assert_eq!(current(dir.path()).unwrap(), ("0f".repeat(32), "a9".repeat(32)));
        for bad in [&line[1..], line.trim(), &line.to_uppercase(), &line.replace(' ', "\n"), "", &(line.clone() + "\n")]
        {
            std::fs::write(&path, bad).unwrap();
            assert!(current(dir.path()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn one_bit_codes_have_a_layout_of_their_own() {
        for (kind, format, says) in [
            ("OneBit", 3, "layout 3 is not 4"),
            ("OneBit", 4, "describes another index"),
            ("Flat", 4, "layout 4 is not 3"),
            ("Flat", 3, "describes another index"),
        ] {
            let dense = serde_json::json!({
                "kind": kind, "recallTarget": 0.9, "encoderSha256": "", "tokenizerSha256": "", "pooling": "Mean",
                "queryPrefix": "", "passagePrefix": "", "maxTokens": 9, "vectorsSha256": null,
            });
            let identity = serde_json::json!({"corpusSha256": "", "limit": null, "lexical": null, "dense": dense});
            let (facts, files) = (serde_json::Value::Null, std::collections::BTreeMap::new());
            let manifest = Manifest { kind: KIND.to_owned(), format, identity, facts, files };
            let error = parsed(Path::new("index"), "0", manifest).err().unwrap().to_string();
            assert!(error.contains(says) && error.ends_with("build the index again"), "{kind} {format}: {error}");
        }
    }
}
