//! Finishing the dense leg of a build: codes of the chosen kind, and how many candidates it takes to keep the
//! promised recall.

use crate::dense::rows::Rows;
use crate::dense::{DenseIndex, write_codes};
use crate::embed::Embedding;
use crate::error::{Result, RetrieverError};
use crate::index::{CODES, VECTORS};
use s3_config::{DenseConfig, DenseKind};
use std::path::Path;

/// Queries of the measurement.
const SAMPLE: usize = 128;
/// Words of a query at most.
const WORDS: usize = 12;
/// Neighbours compared.
const DEPTH: usize = 10;
/// Candidates per passage asked for, from the fewest on; more than the last is no longer a search by codes.
const OVERSAMPLES: [usize; 7] = [4, 8, 16, 24, 32, 64, 128];

/// What the build learnt about its dense leg.
pub struct DenseLeg {
    /// Elements of a vector.
    pub dimensions: u64,
    /// Candidates per passage asked for; none for exact search.
    pub oversample: Option<u64>,
    /// Measured recall at ten.
    pub recall: f64,
}

/// Writes the codes beside the vectors in `folder` and measures them.
///
/// Titles stand in for queries, encoded as queries are: questions lie elsewhere than passages, and codes that are
/// measured with passages look better than they are. A passage without a title gives its first words.
pub fn dense_leg(folder: &Path, dense: &DenseConfig, embedding: &Embedding<'_>) -> Result<DenseLeg> {
    let (config, progress) = (dense.index, embedding.progress);
    let vectors = folder.join(VECTORS);
    let rows = Rows::open(&vectors)?;
    let dimensions = rows.dimensions() as u64;
    if config.kind == DenseKind::Flat {
        return Ok(DenseLeg { dimensions, oversample: None, recall: 1.0 });
    }
    progress.phase("code vectors", 0);
    let codes = folder.join(CODES);
    write_codes(config.kind, &rows, &codes)?;
    let mut index = DenseIndex::open(config.kind, rows, &codes, OVERSAMPLES[0])?;
    progress.phase("measure recall", 0);
    let queries = questions(dense, embedding)?;
    let exact = index.search(&queries, DEPTH, true);
    let mut reached = 0.0;
    for oversample in OVERSAMPLES {
        index.set_oversample(oversample);
        reached = index.recall(&queries, &exact, DEPTH);
        tracing::info!(oversample, recall = reached, "measured");
        if reached >= config.recall_target {
            return Ok(DenseLeg { dimensions, oversample: Some(oversample as u64), recall: reached });
        }
    }
    let reason = format!(
        "kind {:?} reaches recall {reached:.4}, below dense.index.recallTarget {}; lower the target or use another kind",
        config.kind, config.recall_target
    );
    Err(RetrieverError::Invalid(reason))
}

fn questions(dense: &DenseConfig, embedding: &Embedding<'_>) -> Result<Vec<Vec<f32>>> {
    let n = embedding.store.len();
    let count = SAMPLE.min(n);
    let texts = (0..count)
        .map(|at| {
            let passage = embedding.store.get(at * n / count)?;
            let words = if passage.title.is_empty() { &passage.text } else { &passage.title };
            let words: Vec<&str> = words.split_whitespace().take(WORDS).collect();
            Ok(format!("{}{}", dense.query_prefix, words.join(" ")))
        })
        .collect::<Result<Vec<_>>>()?;
    embedding.encoder.encode_texts(&texts)
}
