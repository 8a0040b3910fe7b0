//! Inner-product search over all passages' vectors: exact, or by small codes with the best scored again.
//!
//! Every score that leaves this module is the exact one of [`kernels::scores`]: the same to the bit whatever
//! the batch, the number of threads and the processor. Codes ([`bytes`], [`bits`]) and FAISS' structures ([`approximate`])
//! only choose which rows are scored; how many are chosen is set when the index is built, by its measured recall.

pub mod approximate;
pub mod bits;
pub mod bytes;
pub mod candidates;
pub mod file;
#[cfg(feature = "cuda")]
pub mod gpu;
pub mod kernels;
pub mod rotation;
pub mod rows;

use crate::error::{Result, RetrieverError};
use crate::rank::{Ranked, TopK};
use approximate::Approximate;
use bits::{BitCodes, BitQuery};
use bytes::{ByteCodes, ByteQueries};
use candidates::Candidates;
use kernels::{Level, Out};
use rayon::prelude::*;
use rows::Rows;
use s3_config::DenseKind;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicU64;

/// Rows handled by one task.
const BLOCK: usize = 1024;
/// Rows scored against all queries while they lie in the second cache.
const STEP: usize = 64;
/// Fewest candidates scored again beyond the ones asked for.
const SPARE: usize = 22;

enum Codes {
    None,
    Bytes(ByteCodes),
    Bits(BitCodes),
    Faiss(Approximate),
}

/// All passages' vectors, ready to be searched.
pub struct DenseIndex {
    rows: Rows,
    codes: Codes,
    /// Rows scored again per passage asked for.
    oversample: usize,
    level: Level,
    #[cfg(feature = "cuda")]
    gpu: Option<gpu::OnGpu>,
}

#[derive(Default)]
struct Scratch {
    rows: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<i32>,
}

/// Writes the codes of a kind beside the vectors that it is made of; exact search needs none.
pub fn write_codes(kind: DenseKind, rows: &Rows, path: &Path) -> Result<()> {
    match kind {
        DenseKind::Flat => Ok(()),
        DenseKind::ScalarQuantized => bytes::write(rows, path),
        DenseKind::OneBit => bits::write(rows, path),
        other => Err(RetrieverError::Internal(format!("{other:?} has no codes; approximate::build makes it"))),
    }
}

impl DenseIndex {
    /// Exact search over rows.
    pub fn new(rows: Rows) -> Self {
        Self {
            rows,
            codes: Codes::None,
            oversample: 1,
            level: Level::detect(),
            #[cfg(feature = "cuda")]
            gpu: None,
        }
    }

    /// Search of a kind over rows, with its codes from a file.
    pub fn open(kind: DenseKind, rows: Rows, codes: &Path, oversample: usize) -> Result<Self> {
        let codes = match kind {
            DenseKind::Flat => Codes::None,
            DenseKind::ScalarQuantized => Codes::Bytes(ByteCodes::open(codes, &rows)?),
            DenseKind::OneBit => Codes::Bits(BitCodes::open(codes, &rows)?),
            _ => Codes::Faiss(Approximate::open(codes, &rows)?),
        };
        rows.read_scattered(!matches!(codes, Codes::None));
        Ok(Self { codes, oversample: oversample.max(1), ..Self::new(rows) })
    }

    /// Copies the rows to a GPU, which from then on is searched exactly whatever the kind. On the CPU nothing changes.
    pub fn put_on(&mut self, device: &s3_model::Device) -> Result<()> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            self.gpu = Some(gpu::OnGpu::new(&self.rows, device)?);
        }
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(())
    }

    /// Number of passages.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Elements of one vector.
    pub fn dimensions(&self) -> usize {
        self.rows.dimensions()
    }

    /// One passage's vector.
    pub fn vector(&self, position: usize) -> Vec<f32> {
        self.rows.row(position)
    }

    /// Rows scored again per passage asked for.
    pub fn oversample(&self) -> usize {
        self.oversample
    }

    /// Scores more or fewer candidates again.
    pub fn set_oversample(&mut self, oversample: usize) {
        self.oversample = oversample.max(1);
    }

    /// Sets how much of one of FAISS' structures a search looks at. Says what parameter that is, where it has one.
    pub fn set_effort(&self, effort: u32) -> Result<Option<String>> {
        match &self.codes {
            Codes::Faiss(index) => index.set_effort(effort),
            _ => Ok(None),
        }
    }

    /// Bytes per passage that every search reads; 0 where FAISS does not say.
    pub fn scanned_bytes(&self) -> f64 {
        let all = match &self.codes {
            Codes::None => self.len() * self.dimensions() * 2,
            Codes::Bytes(codes) => codes.bytes(),
            Codes::Bits(codes) => codes.bytes(),
            Codes::Faiss(_) => 0,
        };
        all as f64 / self.len().max(1) as f64
    }

    /// The best `k` passages of every query; each query has `dimensions` elements. `exact` scores all
    /// passages, whatever the kind.
    pub fn search(&self, queries: &[Vec<f32>], k: usize, exact: bool) -> Result<Vec<Vec<Ranked>>> {
        #[cfg(feature = "cuda")]
        if let Some(gpu) = self.gpu.as_ref().filter(|gpu| gpu.takes(k)) {
            return self.on_gpu(gpu, queries, k);
        }
        let candidates = (k * self.oversample).max(k + SPARE);
        Ok(match &self.codes {
            Codes::None => self.exact(queries, k),
            _ if exact || candidates >= self.len() => self.exact(queries, k),
            Codes::Bytes(codes) => {
                let prepared = codes.prepare(queries);
                self.rescored(queries, k, positions(&self.by_bytes(codes, &prepared, queries.len(), candidates)))
            }
            Codes::Bits(codes) => {
                let prepared: Vec<BitQuery> = queries.iter().map(|query| codes.prepare(self.level, query)).collect();
                self.rescored(queries, k, self.by_bits(codes, &prepared, candidates))
            }
            Codes::Faiss(index) => self.whole(queries, k, index.candidates(queries, candidates)?),
        })
    }

    #[cfg(feature = "cuda")]
    fn on_gpu(&self, gpu: &gpu::OnGpu, queries: &[Vec<f32>], k: usize) -> Result<Vec<Vec<Ranked>>> {
        let kept = gpu.search(queries, k)?;
        let others: Vec<Option<f32>> = kept.iter().map(|kept| kept.as_ref().and_then(|kept| kept.others)).collect();
        let lost: Vec<bool> = kept.iter().map(Option::is_none).collect();
        let positions = kept.into_iter().map(|kept| kept.map_or(Vec::new(), |kept| kept.positions)).collect();
        let mut found = self.rescored(queries, k, positions);
        let unsafe_one = |at: &usize| {
            lost[*at]
                || others[*at].is_some_and(|others| {
                    found[*at].len() < k || found[*at].last().is_none_or(|last| last.score <= f64::from(others))
                })
        };
        let again: Vec<usize> = (0..queries.len()).filter(unsafe_one).collect();
        if !again.is_empty() {
            tracing::debug!(queries = again.len(), "searched on the CPU: too near for f16");
            let asked: Vec<Vec<f32>> = again.iter().map(|at| queries[*at].clone()).collect();
            for (at, list) in again.into_iter().zip(self.exact(&asked, k)) {
                found[at] = list;
            }
        }
        Ok(found)
    }

    /// Ranks FAISS' candidates. A query for which it knows fewer than were asked for is answered by exact search.
    fn whole(&self, queries: &[Vec<f32>], k: usize, candidates: Vec<Vec<u32>>) -> Vec<Vec<Ranked>> {
        let enough = k.min(self.len());
        let few: Vec<usize> = (0..queries.len()).filter(|at| candidates[*at].len() < enough).collect();
        let mut found = self.rescored(queries, k, candidates);
        if !few.is_empty() {
            let asked: Vec<Vec<f32>> = few.iter().map(|at| queries[*at].clone()).collect();
            for (at, list) in few.into_iter().zip(self.exact(&asked, k)) {
                found[at] = list;
            }
        }
        found
    }

    /// The best `k` of the passages at `positions`, scored exactly.
    pub fn search_among(&self, query: &[f32], k: usize, positions: &[u32]) -> Vec<Ranked> {
        self.score_again(query, k, positions)
    }

    /// Recall at `k` of this index: the share of the exact best passages that a search finds, averaged over
    /// the queries.
    pub fn recall(&self, queries: &[Vec<f32>], exact: &[Vec<Ranked>], k: usize) -> Result<f64> {
        let (mut found, mut wanted) = (0, 0);
        for (found_now, exact) in self.search(queries, k, false)?.iter().zip(exact) {
            wanted += exact.len();
            found += exact.iter().filter(|best| found_now.iter().any(|one| one.position == best.position)).count();
        }
        Ok(if wanted == 0 { 1.0 } else { found as f64 / wanted as f64 })
    }

    fn padded(&self, queries: &[Vec<f32>]) -> Vec<f32> {
        let width = self.rows.width();
        let mut flat = vec![0.0; queries.len() * width];
        for (row, query) in flat.chunks_exact_mut(width).zip(queries) {
            row[..query.len()].copy_from_slice(query);
        }
        flat
    }

    /// Runs `each` over blocks of all rows, on all threads, with a collector of each query's best; they are merged.
    fn scan<C: Send>(
        &self,
        empty: impl Fn() -> Vec<C> + Sync,
        merge: impl Fn(C, C) -> C + Sync,
        each: impl Fn(Range<usize>, &mut Scratch, &mut [C]) + Sync,
    ) -> Vec<C> {
        let (_, best) = (0..self.len().div_ceil(BLOCK))
            .into_par_iter()
            .fold(
                || (Scratch::default(), empty()),
                |(mut scratch, mut best), block| {
                    let range = block * BLOCK..self.len().min((block + 1) * BLOCK);
                    each(range, &mut scratch, &mut best);
                    (scratch, best)
                },
            )
            .reduce(
                || (Scratch::default(), empty()),
                |(scratch, a), (_, b)| (scratch, a.into_iter().zip(b).map(|(a, b)| merge(a, b)).collect()),
            );
        best
    }

    /// [`Self::scan`] for the best `keep` in order.
    fn ranked(
        &self,
        queries: usize,
        keep: usize,
        each: impl Fn(Range<usize>, &mut Scratch, &mut [TopK]) + Sync,
    ) -> Vec<Vec<Ranked>> {
        let empty = || (0..queries).map(|_| TopK::new(keep)).collect();
        self.scan(empty, TopK::merge, each).into_iter().map(TopK::finish).collect()
    }

    fn exact(&self, queries: &[Vec<f32>], k: usize) -> Vec<Vec<Ranked>> {
        let (flat, width) = (self.padded(queries), self.rows.width());
        let coded = !matches!(self.codes, Codes::None);
        if coded {
            self.rows.read_scattered(false);
        }
        let found = self.ranked(queries.len(), k, |range, scratch, best| {
            for first in range.clone().step_by(STEP) {
                let part = first..range.end.min(first + STEP);
                let stride = part.len();
                scratch.scores.resize(stride * queries.len(), 0.0);
                let rows = self.rows.padded(part, &mut scratch.rows);
                kernels::scores(self.level, rows, &flat, width, &mut Out { values: &mut scratch.scores, stride });
                for (scores, best) in scratch.scores.chunks_exact(stride).zip(best.iter_mut()) {
                    best.offer(first as u32, scores);
                }
            }
        });
        if coded {
            self.rows.read_scattered(true);
        }
        found
    }

    fn by_bytes(&self, codes: &ByteCodes, prepared: &ByteQueries, queries: usize, keep: usize) -> Vec<Vec<Ranked>> {
        self.ranked(queries, keep, |range, scratch, best| {
            for first in range.clone().step_by(2 * STEP) {
                let part = first..range.end.min(first + 2 * STEP);
                codes.scan(self.level, prepared, part, &mut scratch.sums, best);
            }
        })
    }

    /// Positions of the candidates, rising.
    fn by_bits(&self, codes: &BitCodes, prepared: &[BitQuery], keep: usize) -> Vec<Vec<u32>> {
        let floors: Vec<AtomicU64> = prepared.iter().map(|_| AtomicU64::new(0)).collect();
        let empty = || prepared.iter().map(|_| Candidates::new(keep)).collect();
        let found = self.scan(empty, Candidates::merge, |range, _, best: &mut [Candidates]| {
            best.iter_mut().zip(&floors).for_each(|(best, floor)| best.share(floor));
            codes.scan(prepared, range, best);
        });
        found.into_iter().map(Candidates::positions).collect()
    }

    /// The best `k` of each query's candidates by their exact scores.
    fn rescored(&self, queries: &[Vec<f32>], k: usize, candidates: Vec<Vec<u32>>) -> Vec<Vec<Ranked>> {
        let one = |(query, mut positions): (&Vec<f32>, Vec<u32>)| {
            // by rising position: the vectors' file is read forwards
            positions.sort_unstable();
            positions.dedup();
            self.score_again(query, k, &positions)
        };
        queries.par_iter().zip(candidates).map(one).collect()
    }

    /// The best `k` of the rows at `positions` by their exact scores.
    fn score_again(&self, query: &[f32], k: usize, positions: &[u32]) -> Vec<Ranked> {
        const GROUP: usize = 4;
        let width = self.rows.width();
        let mut flat = vec![0.0; width];
        flat[..query.len()].copy_from_slice(query);
        let mut rows = vec![0.0; GROUP * width];
        let mut best = TopK::new(k);
        for (number, group) in positions.chunks(GROUP).enumerate() {
            for position in positions.iter().skip((number + 1) * GROUP).take(GROUP) {
                self.rows.ask_for(*position as usize);
            }
            let scores = self.scores_of(group, &flat, &mut rows);
            for (position, score) in group.iter().zip(scores) {
                best.push(*position, f64::from(score));
            }
        }
        best.finish()
    }

    /// Exact scores of up to four rows.
    fn scores_of(&self, group: &[u32], query: &[f32], scratch: &mut [f32]) -> [f32; 4] {
        let row = |at: usize| self.rows.half(group[at.min(group.len() - 1)] as usize);
        if let (Some(a), Some(b), Some(c), Some(d)) = (row(0), row(1), row(2), row(3)) {
            return kernels::half_scores(self.level, [a, b, c, d], query);
        }
        let width = query.len();
        for (row, position) in scratch.chunks_exact_mut(width).zip(group) {
            self.rows.read(*position as usize, row);
        }
        let (mut scores, stride) = ([0.0; 4], 4);
        let rows = &scratch[..group.len() * width];
        kernels::scores(self.level, rows, query, width, &mut Out { values: &mut scores, stride });
        scores
    }
}

fn positions(found: &[Vec<Ranked>]) -> Vec<Vec<u32>> {
    found.iter().map(|list| list.iter().map(|one| one.position).collect()).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
