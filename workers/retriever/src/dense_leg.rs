//! Finishing the dense leg of a build: codes or FAISS' index of the chosen kind, and how much a search has to look at to
//! keep the promised recall.

use crate::build::stop_if_asked;
use crate::dense::approximate::{self, Building};
use crate::dense::rows::Rows;
use crate::dense::{DenseIndex, write_codes};
use crate::embed::Embedding;
use crate::error::{Result, RetrieverError};
use crate::index::{CODES, FAISS, VECTORS};
use crate::rank::Ranked;
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
/// The same where FAISS chooses them.
const CHOSEN: [usize; 5] = [2, 4, 8, 32, 128];
/// Lists visited and candidates kept, to begin with.
const PROBES: u32 = 8;
const KEPT: u32 = 32;
/// More of either is hardly a search by them any more.
const MOST: u32 = 1 << 16;

/// What the build learnt about its dense leg.
pub struct DenseLeg {
    /// Elements of a vector.
    pub dimensions: u64,
    /// Candidates per passage asked for; none for exact search.
    pub oversample: Option<u64>,
    /// How much FAISS looks at; none where it has nothing to set.
    pub effort: Option<u32>,
    /// Measured recall at ten.
    pub recall: f64,
}

/// Writes the codes beside the vectors in `folder` and measures them.
///
/// Titles stand in for queries, encoded as queries are: questions lie elsewhere than passages, and codes that are
/// measured with passages look better than they are. A passage without a title gives its first words.
pub fn dense_leg(folder: &Path, dense: &DenseConfig, embedding: &Embedding<'_>) -> Result<DenseLeg> {
    let (config, progress) = (&dense.index, embedding.progress);
    let vectors = folder.join(VECTORS);
    let rows = Rows::open(&vectors)?;
    let dimensions = rows.dimensions() as u64;
    let exact = DenseLeg { dimensions, oversample: None, effort: None, recall: 1.0 };
    if config.kind == DenseKind::Flat {
        return Ok(exact);
    }
    if config.kind.is_faiss() {
        let path = folder.join(FAISS);
        if config.kind != DenseKind::Imported {
            let stop = || embedding.shutdown.requested();
            let show = |phase: &'static str, done: u64, total: u64| {
                if done == 0 {
                    progress.phase(phase, total);
                }
                progress.done(done);
            };
            let building = Building { stop: &stop, progress: &show };
            approximate::build(config.kind, &config.structure, &rows, &path, &building)?;
        } else if !path.exists() {
            return Ok(exact);
        }
        let index = DenseIndex::open(config.kind, rows, &path, CHOSEN[0])?;
        return measured(index, dense, embedding);
    }
    progress.phase("code vectors", 0);
    let codes = folder.join(CODES);
    write_codes(config.kind, &rows, &codes)?;
    let mut index = DenseIndex::open(config.kind, rows, &codes, OVERSAMPLES[0])?;
    progress.phase("measure recall", 0);
    let queries = questions(dense, embedding)?;
    let exact = index.search(&queries, DEPTH, true)?;
    let mut reached = 0.0;
    for oversample in OVERSAMPLES {
        index.set_oversample(oversample);
        reached = index.recall(&queries, &exact, DEPTH)?;
        tracing::info!(oversample, recall = reached, "measured");
        if reached >= config.recall_target {
            let oversample = Some(oversample as u64);
            return Ok(DenseLeg { dimensions, oversample, effort: None, recall: reached });
        }
    }
    Err(missed(dense, reached))
}

fn missed(dense: &DenseConfig, reached: f64) -> RetrieverError {
    RetrieverError::Invalid(format!(
        "kind {:?} reaches recall {reached:.4}, below dense.index.recallTarget {}; lower the target or use another kind",
        dense.index.kind, dense.index.recall_target
    ))
}

/// Raises what FAISS looks at, and at each step the candidates scored again, until the recall is reached.
fn measured(mut index: DenseIndex, dense: &DenseConfig, embedding: &Embedding<'_>) -> Result<DenseLeg> {
    let (target, structure) = (dense.index.recall_target, &dense.index.structure);
    embedding.progress.phase("measure recall", 0);
    let queries = questions(dense, embedding)?;
    let exact = index.search(&queries, DEPTH, true)?;
    let parameter = index.set_effort(1)?;
    let mut effort = match parameter.as_deref() {
        Some("nprobe") => structure.probes.unwrap_or(PROBES),
        Some(_) => structure.ef_search.unwrap_or(KEPT),
        None => 1,
    };
    let dimensions = index.dimensions() as u64;
    let measure = |index: &mut DenseIndex, oversample: usize, exact: &[Vec<Ranked>]| {
        index.set_oversample(oversample);
        index.recall(&queries, exact, DEPTH)
    };
    loop {
        stop_if_asked(embedding.shutdown)?;
        if parameter.is_some() {
            index.set_effort(effort)?;
        }
        // with fewer candidates it does not become better
        let most = measure(&mut index, CHOSEN[CHOSEN.len() - 1], &exact)?;
        tracing::info!(parameter = parameter.as_deref(), effort, recall = most, "measured");
        if most >= target {
            for oversample in CHOSEN {
                let recall = measure(&mut index, oversample, &exact)?;
                if recall >= target {
                    let (oversample, effort) = (Some(oversample as u64), parameter.map(|_| effort));
                    return Ok(DenseLeg { dimensions, oversample, effort, recall });
                }
            }
        }
        if parameter.is_none() || effort >= MOST || effort as usize >= index.len() {
            return Err(missed(dense, most));
        }
        effort *= 2;
    }
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
