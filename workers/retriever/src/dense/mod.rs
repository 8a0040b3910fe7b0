//! Inner-product search over all passages' vectors: exact, or by small codes with the best scored again.
//!
//! Every score that leaves this module is the exact one of [`kernels::scores`]: the same to the bit whatever
//! the batch, the number of threads and the processor. Codes ([`bytes`], [`bits`]) only choose which rows are
//! scored; how many are chosen is set when the index is built, by its measured recall.

pub mod bits;
pub mod bytes;
pub mod file;
pub mod kernels;
pub mod rotation;
pub mod rows;

use crate::error::Result;
use crate::rank::{Ranked, TopK};
use bits::{BitCodes, BitQuery, BitScratch};
use bytes::{ByteCodes, ByteQueries};
use kernels::{Level, Out};
use rayon::prelude::*;
use rows::Rows;
use s3_config::DenseKind;
use std::ops::Range;
use std::path::Path;

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
}

/// All passages' vectors, ready to be searched.
pub struct DenseIndex {
    rows: Rows,
    codes: Codes,
    /// Rows scored again per passage asked for.
    oversample: usize,
    level: Level,
}

#[derive(Default)]
struct Scratch {
    rows: Vec<f32>,
    scores: Vec<f32>,
    sums: Vec<i32>,
    bits: BitScratch,
}

/// Writes the codes of a kind beside the vectors that it is made of; exact search needs none.
pub fn write_codes(kind: DenseKind, rows: &Rows, path: &Path) -> Result<()> {
    match kind {
        DenseKind::Flat => Ok(()),
        DenseKind::ScalarQuantized => bytes::write(rows, path),
        DenseKind::OneBit => bits::write(rows, path),
    }
}

impl DenseIndex {
    /// Exact search over rows.
    pub fn new(rows: Rows) -> Self {
        Self { rows, codes: Codes::None, oversample: 1, level: Level::detect() }
    }

    /// Search of a kind over rows, with its codes from a file.
    pub fn open(kind: DenseKind, rows: Rows, codes: &Path, oversample: usize) -> Result<Self> {
        let codes = match kind {
            DenseKind::Flat => Codes::None,
            DenseKind::ScalarQuantized => Codes::Bytes(ByteCodes::open(codes, &rows)?),
            DenseKind::OneBit => Codes::Bits(BitCodes::open(codes, &rows)?),
        };
        Ok(Self { rows, codes, oversample: oversample.max(1), level: Level::detect() })
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

    /// Bytes per passage that every search reads.
    pub fn scanned_bytes(&self) -> f64 {
        let all = match &self.codes {
            Codes::None => self.len() * self.dimensions() * 2,
            Codes::Bytes(codes) => codes.bytes(),
            Codes::Bits(codes) => codes.bytes(),
        };
        all as f64 / self.len().max(1) as f64
    }

    /// The best `k` passages of every query; each query has `dimensions` elements. `exact` scores all
    /// passages, whatever the kind.
    pub fn search(&self, queries: &[Vec<f32>], k: usize, exact: bool) -> Vec<Vec<Ranked>> {
        let candidates = (k * self.oversample).max(k + SPARE);
        match &self.codes {
            Codes::None => self.exact(queries, k),
            _ if exact || candidates >= self.len() => self.exact(queries, k),
            Codes::Bytes(codes) => {
                let prepared = codes.prepare(queries);
                self.rescored(queries, k, &self.by_bytes(codes, &prepared, queries.len(), candidates))
            }
            Codes::Bits(codes) => {
                let prepared: Vec<BitQuery> = queries.iter().map(|query| codes.prepare(query)).collect();
                self.rescored(queries, k, &self.by_bits(codes, &prepared, candidates))
            }
        }
    }

    /// The best `k` of the passages at `positions`, scored exactly.
    pub fn search_among(&self, query: &[f32], k: usize, positions: &[u32]) -> Vec<Ranked> {
        self.score_again(query, k, positions)
    }

    /// Recall at `k` of this index: the share of the exact best passages that a search finds, averaged over
    /// the queries.
    pub fn recall(&self, queries: &[Vec<f32>], exact: &[Vec<Ranked>], k: usize) -> f64 {
        let (mut found, mut wanted) = (0, 0);
        for (found_now, exact) in self.search(queries, k, false).iter().zip(exact) {
            wanted += exact.len();
            found += exact.iter().filter(|best| found_now.iter().any(|one| one.position == best.position)).count();
        }
        if wanted == 0 { 1.0 } else { found as f64 / wanted as f64 }
    }

    fn padded(&self, queries: &[Vec<f32>]) -> Vec<f32> {
        let width = self.rows.width();
        let mut flat = vec![0.0; queries.len() * width];
        for (row, query) in flat.chunks_exact_mut(width).zip(queries) {
            row[..query.len()].copy_from_slice(query);
        }
        flat
    }

    /// Runs `each` over blocks of all rows, on all threads, with a collector of `keep` per query.
    fn scan(
        &self,
        queries: usize,
        keep: usize,
        each: impl Fn(Range<usize>, &mut Scratch, &mut [TopK]) + Sync,
    ) -> Vec<Vec<Ranked>> {
        let empty = || (0..queries).map(|_| TopK::new(keep)).collect::<Vec<_>>();
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
                |(scratch, a), (_, b)| (scratch, a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect()),
            );
        best.into_iter().map(TopK::finish).collect()
    }

    fn exact(&self, queries: &[Vec<f32>], k: usize) -> Vec<Vec<Ranked>> {
        let (flat, width) = (self.padded(queries), self.rows.width());
        self.scan(queries.len(), k, |range, scratch, best| {
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
        })
    }

    fn by_bytes(&self, codes: &ByteCodes, prepared: &ByteQueries, queries: usize, keep: usize) -> Vec<Vec<Ranked>> {
        self.scan(queries, keep, |range, scratch, best| {
            for first in range.clone().step_by(2 * STEP) {
                let part = first..range.end.min(first + 2 * STEP);
                codes.scan(self.level, prepared, part, &mut scratch.sums, best);
            }
        })
    }

    fn by_bits(&self, codes: &BitCodes, prepared: &[BitQuery], keep: usize) -> Vec<Vec<Ranked>> {
        self.scan(prepared.len(), keep, |range, scratch, best| {
            codes.scan(self.level, prepared, range, &mut scratch.bits, best);
        })
    }

    /// The best `k` of each query's candidates by their exact scores.
    fn rescored(&self, queries: &[Vec<f32>], k: usize, candidates: &[Vec<Ranked>]) -> Vec<Vec<Ranked>> {
        let one = |(query, candidates): (&Vec<f32>, &Vec<Ranked>)| {
            // by rising position: the vectors' file is read forwards
            let mut positions: Vec<u32> = candidates.iter().map(|one| one.position).collect();
            positions.sort_unstable();
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
            for (row, position) in rows.chunks_exact_mut(width).zip(group) {
                self.rows.read(*position as usize, row);
            }
            let mut scores = [0.0; GROUP];
            let rows = &rows[..group.len() * width];
            kernels::scores(self.level, rows, &flat, width, &mut Out { values: &mut scores, stride: GROUP });
            for (position, score) in group.iter().zip(scores) {
                best.push(*position, f64::from(score));
            }
        }
        best.finish()
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
