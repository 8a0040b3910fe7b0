//! Exact inner-product search: every passage is scored for every query.
//!
//! A pair's score is summed in sixteen fixed lanes that are added up in a fixed tree, without fused
//! multiply-add. So it is the same to the bit whatever the batch, the number of threads and the width of
//! the processor's vectors. Other kinds of dense index (quantised, graphs) can stand beside this one
//! behind the same `search`.
#![allow(unsafe_code)] // calling the AVX2 build of a safe function after detecting AVX2

use crate::rank::{Ranked, TopK};
use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

const LANES: usize = 16;
/// Queries scored in one reading of a passage's vector.
const TILE: usize = 4;
/// Passages handled by one task.
const BLOCK: usize = 1024;

/// All passages' vectors, widened to f32, rows padded with zeros to whole lanes.
pub struct DenseIndex {
    dimensions: usize,
    stride: usize,
    rows: Vec<f32>,
    passages: usize,
}

fn padded(vector: &[f32], stride: usize) -> Vec<f32> {
    let mut row = vec![0.0; stride];
    row[..vector.len()].copy_from_slice(vector);
    row
}

#[inline(always)]
#[allow(clippy::inline_always)] // must be compiled once per instruction set
fn score_tile<const Q: usize>(row: &[f32], queries: &[f32], stride: usize) -> [f32; Q] {
    let mut sums = [[0f32; LANES]; Q];
    let (row, _) = row[..stride].as_chunks::<LANES>();
    for (at, part) in row.iter().enumerate() {
        for (query, sums) in sums.iter_mut().enumerate() {
            let from = query * stride + at * LANES;
            let other = &queries[from..from + LANES];
            for lane in 0..LANES {
                sums[lane] += part[lane] * other[lane];
            }
        }
    }
    sums.map(|mut sums| {
        let mut width = LANES / 2;
        while width > 0 {
            for lane in 0..width {
                sums[lane] += sums[lane + width];
            }
            width /= 2;
        }
        sums[0]
    })
}

/// Scores `rows` for all `queries` (padded rows run together): `each(query, row, score)`.
#[inline(always)]
#[allow(clippy::inline_always)]
fn scan(rows: &[f32], queries: &[f32], stride: usize, mut each: impl FnMut(usize, usize, f32)) {
    let count = queries.len() / stride;
    for (at, row) in rows.chunks_exact(stride).enumerate() {
        let mut query = 0;
        while query < count {
            let rest = &queries[query * stride..];
            if count - query >= TILE {
                for (offset, score) in score_tile::<TILE>(row, rest, stride).into_iter().enumerate() {
                    each(query + offset, at, score);
                }
                query += TILE;
            } else {
                let [score] = score_tile::<1>(row, rest, stride);
                each(query, at, score);
                query += 1;
            }
        }
    }
}

fn scan_into(rows: &[f32], queries: &[f32], stride: usize, first: usize, best: &mut [TopK]) {
    scan(rows, queries, stride, |query, row, score| best[query].push((first + row) as u32, f64::from(score)));
}

/// The same code, compiled for eight-wide vectors.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn scan_into_avx2(rows: &[f32], queries: &[f32], stride: usize, first: usize, best: &mut [TopK]) {
    scan(rows, queries, stride, |query, row, score| best[query].push((first + row) as u32, f64::from(score)));
}

fn scan_dispatched(rows: &[f32], queries: &[f32], stride: usize, first: usize, best: &mut [TopK]) {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: AVX2 was detected just now; the function is safe otherwise.
        return unsafe { scan_into_avx2(rows, queries, stride, first, best) };
    }
    scan_into(rows, queries, stride, first, best);
}

impl DenseIndex {
    /// From f16 rows of `dimensions` elements.
    pub fn new(vectors: &[f16], dimensions: usize) -> Self {
        let stride = dimensions.next_multiple_of(LANES);
        let passages = vectors.len() / dimensions;
        let mut rows = vec![0.0; passages * stride];
        for (row, vector) in rows.chunks_exact_mut(stride).zip(vectors.chunks_exact(dimensions)) {
            vector.convert_to_f32_slice(&mut row[..dimensions]);
        }
        Self { dimensions, stride, rows, passages }
    }

    /// Number of passages.
    pub fn len(&self) -> usize {
        self.passages
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.passages == 0
    }

    /// Elements of one vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// One passage's vector.
    pub fn vector(&self, position: usize) -> &[f32] {
        &self.rows[position * self.stride..][..self.dimensions]
    }

    /// The best `k` passages of every query; each query has `dimensions` elements.
    pub fn search(&self, queries: &[Vec<f32>], k: usize) -> Vec<Vec<Ranked>> {
        let flat: Vec<f32> = queries.iter().flat_map(|query| padded(query, self.stride)).collect();
        let empty = || (0..queries.len()).map(|_| TopK::new(k)).collect::<Vec<_>>();
        let best = self
            .rows
            .par_chunks(BLOCK * self.stride)
            .enumerate()
            .fold(empty, |mut best, (block, rows)| {
                scan_dispatched(rows, &flat, self.stride, block * BLOCK, &mut best);
                best
            })
            .reduce(empty, |a, b| a.into_iter().zip(b).map(|(a, b)| a.merge(b)).collect());
        best.into_iter().map(TopK::finish).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Few different values, so that ties are common.
    fn vectors(n: usize, d: usize) -> impl Strategy<Value = Vec<f16>> {
        prop::collection::vec((-3i8..4).prop_map(|v| f16::from_f32(f32::from(v) / 4.0)), n * d)
    }

    fn naive(vectors: &[f16], d: usize, query: &[f32], k: usize) -> Vec<(u32, f64)> {
        let mut all: Vec<(u32, f64)> = vectors
            .chunks(d)
            .enumerate()
            .map(|(at, row)| {
                // exact: these products and sums need few bits
                let sum: f64 = row.iter().zip(query).map(|(a, b)| f64::from(a.to_f32()) * f64::from(*b)).sum();
                (at as u32, sum + 0.0)
            })
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(k);
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn equals_sorting_all_scores(
            (d, rows, queries) in (1usize..40).prop_flat_map(|d| (Just(d), vectors(60, d), vectors(7, d))),
            k in 0usize..70,
        ) {
            let index = DenseIndex::new(&rows, d);
            let queries: Vec<Vec<f32>> = queries.chunks(d).map(|q| q.iter().map(|v| v.to_f32()).collect()).collect();
            for (query, found) in queries.iter().zip(index.search(&queries, k)) {
                let found: Vec<_> = found.iter().map(|r| (r.position, r.score)).collect();
                prop_assert_eq!(found, naive(&rows, d, query, k));
            }
        }
    }

    /// Real-valued vectors: any batch, any thread count and both kernels give the same bits.
    #[test]
    fn scores_do_not_depend_on_the_batch() {
        let d = 50;
        let value = |at: usize| ((at * 2_654_435_761) % 1_000_003) as f32 / 1_000_003.0 - 0.5;
        let rows: Vec<f16> = (0..3000 * d).map(|at| f16::from_f32(value(at))).collect();
        let queries: Vec<Vec<f32>> =
            (0..9).map(|q| (0..d).map(|at| value(at * 77 + q * 1_234_567)).collect()).collect();
        let index = DenseIndex::new(&rows, d);
        let together = index.search(&queries, 12);
        for (at, query) in queries.iter().enumerate() {
            assert_eq!(index.search(std::slice::from_ref(query), 12)[0], together[at]);
        }
        let stride = index.stride;
        let flat: Vec<f32> = queries.iter().flat_map(|query| padded(query, stride)).collect();
        let mut portable: Vec<TopK> = queries.iter().map(|_| TopK::new(12)).collect();
        scan_into(&index.rows, &flat, stride, 0, &mut portable);
        assert_eq!(portable.into_iter().map(TopK::finish).collect::<Vec<_>>(), together);
    }
}
