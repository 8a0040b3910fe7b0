//! Finishing the dense leg of a build: codes of the chosen kind, and how many candidates it takes to keep the
//! promised recall.

use crate::dense::rows::Rows;
use crate::dense::{DenseIndex, write_codes};
use crate::error::{Result, RetrieverError};
use crate::index::{CODES, VECTORS};
use s3_config::{DenseIndexConfig, DenseKind};
use s3_telemetry::Progress;
use std::path::Path;

/// Passages whose neighbours are looked for.
const SAMPLE: usize = 128;
/// Neighbours compared.
const DEPTH: usize = 10;
/// Candidates per passage asked for, from the fewest on; more than the last is no longer a search by codes.
const OVERSAMPLES: [usize; 7] = [4, 8, 12, 16, 32, 64, 128];

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
/// Passages stand in for queries: points half way between two of them, so that the question is none of the rows.
pub fn dense_leg(folder: &Path, config: DenseIndexConfig, progress: &Progress) -> Result<DenseLeg> {
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
    let queries = questions(&index);
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

fn questions(index: &DenseIndex) -> Vec<Vec<f32>> {
    let n = index.len();
    let between = |(a, b): (f32, f32)| f32::midpoint(a, b);
    (0..SAMPLE.min(n))
        .map(|at| {
            let position = at * n / SAMPLE.min(n);
            let own = index.vector(position);
            let near = index.vector((position + 1) % n);
            own.into_iter().zip(near).map(between).collect()
        })
        .collect()
}
