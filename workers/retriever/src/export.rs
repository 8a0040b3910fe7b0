//! `s3-retriever embed`: a corpus to a file of vectors that builds elsewhere can take over.

use crate::corpus::{corpus_digest, read_corpus};
use crate::embed::{Embedding, PassageEncoder};
use crate::error::{Result, RetrieverError};
use crate::passages::{PassageStore, PassageWriter};
use crate::vectors::Vectors;
use s3_config::IndexBuildConfig;
use s3_telemetry::{Outcome, Progress, Shutdown};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Embeds the corpus of a build configuration (whose `dense.vectors` is not looked at) into `output`.
/// Killed and run again, it goes on from the last finished shard.
pub fn export(config: &IndexBuildConfig, output: &Path, progress: &Progress, shutdown: &Shutdown) -> Result<Outcome> {
    let dense = config
        .dense
        .as_ref()
        .ok_or_else(|| RetrieverError::Invalid("dense is not configured: embedding needs an encoder".to_owned()))?;
    let (encoder_sha256, tokenizer_sha256) = PassageEncoder::identify(dense)?;
    let corpus = corpus_digest(&config.corpus)?;
    // What the vectors depend on; it also keeps shards of different settings apart.
    let origin = BTreeMap::from([
        ("corpusSha256".to_owned(), corpus.clone()),
        ("encoderSha256".to_owned(), encoder_sha256),
        ("tokenizerSha256".to_owned(), tokenizer_sha256),
        ("pooling".to_owned(), format!("{:?}", dense.pooling)),
        ("passagePrefix".to_owned(), dense.passage_prefix.clone()),
        ("maxTokens".to_owned(), dense.max_tokens.to_string()),
    ]);
    let limit = config.corpus.limit.unwrap_or(u64::MAX);
    let work = config.runtime.state_dir.join(format!("embed-{}-{limit}", s3_artifacts::digest_json(&origin)?));
    std::fs::create_dir_all(&work).map_err(RetrieverError::io("create folder", &work))?;
    let mut writer = PassageWriter::create(&work)?;
    read_corpus(&config.corpus, &corpus, |passage| writer.add(&passage))?;
    writer.finish(&work)?;
    let store = PassageStore::open(&work)?;
    let encoder = PassageEncoder::load(dense)?;
    let mut vectors = Vectors { dimensions: encoder.dimensions(), values: Vec::new() };
    let embedding = Embedding { encoder: &encoder, store: &store, progress, shutdown };
    embedding.compute(&work.join("shards"), &mut |part| {
        vectors.values.extend_from_slice(part);
        Ok(())
    })?;
    vectors.write_safetensors(output, &origin)?;
    drop(store);
    std::fs::remove_dir_all(&work).map_err(RetrieverError::io("clear", &work))?;
    let digest = s3_artifacts::digest_file(output)?;
    let summary = json!({"passages": vectors.len(), "dimensions": vectors.dimensions});
    Ok(Outcome { digest, summary })
}
