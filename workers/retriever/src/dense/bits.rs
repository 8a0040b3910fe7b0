//! 1-bit codes with an unbiased estimate of the inner product (RaBitQ: Gao and Long 2024), a thirty-second
//! of f32's size.
//!
//! A row minus the mean of all rows is rotated at random, and of each axis only the side is kept: the sign
//! vector s / √d. With o the rotated row and r a rotated query, ⟨o, r⟩ is estimated by ⟨s, r⟩ · ‖o‖² / Σ|oᵢ|,
//! exact when r points along o and unbiased over rotations otherwise. A query is split along the mean first:
//! the part along it is the same for all rows but for one number a row, and what is left is short. It is
//! rounded to 4 bits, so that ⟨s, r⟩ is counting bits. The best rows are scored again with their vectors.

use super::file::{Data, Header, Kind, Writer};
use super::kernels::{BIT_ROWS, BitRows, Level, PLANES, bit_sums, estimates};
use super::rotation::Rotation;
use super::rows::Rows;
use crate::error::{Result, RetrieverError};
use crate::rank::TopK;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

const WORD: usize = 64;
/// Rows coded at once while building; whole blocks.
const BATCH: usize = 8192;

/// The codes of all rows.
pub struct BitCodes {
    data: Data,
    mean: Vec<f32>,
    rotation: Rotation,
    rows: usize,
}

/// One query against 1-bit codes.
pub struct BitQuery {
    /// Its 4-bit elements by bit.
    planes: Vec<u64>,
    /// How much of the mean is in it.
    along: f32,
    /// Twice the size of one step.
    step: f32,
    /// Twice the smallest element.
    low: f32,
    /// Sum of its rounded elements.
    sum: f32,
}

/// What scanning needs besides.
#[derive(Default)]
pub struct BitScratch {
    sums: Vec<u32>,
    estimates: Vec<f32>,
}

/// The three numbers kept of a row beside its bits.
#[derive(Clone, Copy, Default)]
struct Factors {
    /// ‖o‖² / Σ|oᵢ|.
    length: f32,
    /// Inner product of row minus mean with the mean.
    along: f32,
    /// Bits set.
    ones: f32,
}

fn words(dimensions: usize) -> usize {
    dimensions.div_ceil(WORD)
}

fn table(dimensions: usize) -> usize {
    (4 * dimensions).next_multiple_of(64)
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>() as f32
}

fn mean(rows: &Rows) -> Vec<f32> {
    let d = rows.dimensions();
    // blocks of a fixed size, added in order: the same mean on any number of threads
    let starts: Vec<usize> = (0..rows.len()).step_by(BATCH).collect();
    let partial: Vec<Vec<f64>> = starts
        .into_par_iter()
        .map(|first| {
            let (mut sum, mut row) = (vec![0f64; d], vec![0f32; d]);
            for at in first..rows.len().min(first + BATCH) {
                rows.read(at, &mut row);
                sum.iter_mut().zip(&row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            sum
        })
        .collect();
    let mut sum = vec![0f64; d];
    for part in partial {
        sum.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
    }
    sum.into_iter().map(|sum| (sum / rows.len().max(1) as f64) as f32).collect()
}

/// Codes up to eight rows from `first` on into a block.
fn code(rows: &Rows, first: usize, mean: &[f32], rotation: &Rotation, block: &mut [u64], factors: &mut [Factors]) {
    let mut row = vec![0f32; mean.len()];
    for (lane, factors) in factors.iter_mut().enumerate().take(rows.len() - first) {
        rows.read(first + lane, &mut row);
        row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
        let along = dot(&row, mean);
        rotation.apply(&mut row);
        let absolute: f64 = row.iter().map(|x| f64::from(x.abs())).sum();
        let mut ones = 0;
        for (word, values) in row.chunks(WORD).enumerate() {
            let bits = values.iter().enumerate().fold(0u64, |bits, (at, x)| bits | u64::from(*x > 0.0) << at);
            ones += bits.count_ones();
            block[word * BIT_ROWS + lane] = bits;
        }
        let length = if absolute > 0.0 { (f64::from(dot(&row, &row)) / absolute) as f32 } else { 0.0 };
        *factors = Factors { length, along, ones: ones as f32 };
    }
}

/// Codes `rows` into a file.
pub fn write(rows: &Rows, path: &Path) -> Result<()> {
    let d = rows.dimensions();
    let (mean, rotation) = (mean(rows), Rotation::new(d));
    let mut writer = Writer::create(path, Header { kind: Kind::Bits, dimensions: d, rows: 0 })?;
    let mut head: Vec<u8> = bytemuck::cast_slice(&mean).to_vec();
    head.resize(table(d), 0);
    writer.write(&head)?;
    let mut factors = vec![Factors::default(); rows.len().next_multiple_of(BIT_ROWS)];
    for (batch, factors) in factors.chunks_mut(BATCH).enumerate() {
        let mut codes = vec![0u64; factors.len() * words(d)];
        let blocks = codes.par_chunks_exact_mut(words(d) * BIT_ROWS).zip(factors.par_chunks_exact_mut(BIT_ROWS));
        blocks.enumerate().for_each(|(at, (block, factors))| {
            code(rows, batch * BATCH + at * BIT_ROWS, &mean, &rotation, block, factors);
        });
        writer.write(bytemuck::cast_slice(&codes))?;
    }
    for part in [|f: &Factors| f.length, |f: &Factors| f.along, |f: &Factors| f.ones] {
        let column: Vec<f32> = factors.iter().map(part).collect();
        writer.write(bytemuck::cast_slice(&column))?;
    }
    writer.finish(rows.len())
}

impl BitCodes {
    /// Maps codes for `rows`.
    pub fn open(path: &Path, rows: &Rows) -> Result<Self> {
        let (header, data) = Data::open(path)?;
        let (d, count) = (rows.dimensions(), rows.len());
        let fits = header == Header { kind: Kind::Bits, dimensions: d, rows: count };
        let padded = count.next_multiple_of(BIT_ROWS);
        if !fits || data.len() != table(d) + padded * (8 * words(d) + 3 * 4) {
            return Err(RetrieverError::content(path, "does not fit the vectors beside it; build the index again"));
        }
        let mean = bytemuck::cast_slice(&data[..4 * d]).to_vec();
        Ok(Self { data, mean, rotation: Rotation::new(d), rows: count })
    }

    /// Bytes that a search reads, besides the vectors of the candidates.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Splits, rotates and rounds a query.
    pub fn prepare(&self, query: &[f32]) -> BitQuery {
        let d = self.mean.len();
        let square = dot(&self.mean, &self.mean);
        let along = if square > 0.0 { dot(query, &self.mean) / square } else { 0.0 };
        let mut rest: Vec<f32> = query.iter().zip(&self.mean).map(|(x, mean)| x - along * mean).collect();
        self.rotation.apply(&mut rest);
        let low = rest.iter().copied().fold(f32::INFINITY, f32::min);
        let high = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let levels = ((1 << PLANES) - 1) as f32;
        let step = (high - low) / levels;
        let mut planes = vec![0u64; PLANES * words(d)];
        let mut total = 0u32;
        for (at, x) in rest.iter().enumerate() {
            let level = if step > 0.0 { ((x - low) / step).round().min(levels) as u32 } else { 0 };
            total += level;
            for plane in 0..PLANES {
                planes[plane * words(d) + at / WORD] |= u64::from(level >> plane & 1) << (at % WORD);
            }
        }
        let sum = low * d as f32 + step * total as f32;
        BitQuery { planes, along, step: 2.0 * step, low: 2.0 * low, sum }
    }

    /// Offers the rows of a range, which begins with a block, to every query's collector.
    pub fn scan(
        &self,
        level: Level,
        queries: &[BitQuery],
        range: Range<usize>,
        scratch: &mut BitScratch,
        best: &mut [TopK],
    ) {
        let (d, padded) = (self.mean.len(), self.rows.next_multiple_of(BIT_ROWS));
        let (first, count) = (range.start, range.len());
        let whole = first..range.end.next_multiple_of(BIT_ROWS);
        let (codes, columns) = self.data[table(d)..].split_at(padded * 8 * words(d));
        let codes: &[u64] = bytemuck::cast_slice(codes);
        let columns: &[f32] = bytemuck::cast_slice(columns);
        let column = |at: usize| &columns[at * padded + first..][..count];
        let (lengths, along, ones) = (column(0), column(1), column(2));
        scratch.sums.resize(whole.len(), 0);
        scratch.estimates.resize(count, 0.0);
        for (query, best) in queries.iter().zip(best) {
            let codes = &codes[whole.start * words(d)..whole.end * words(d)];
            bit_sums(level, codes, &query.planes, words(d), &mut scratch.sums);
            let rows = BitRows { sums: &scratch.sums[..count], lengths, along, ones };
            let numbers = [query.along, query.step, query.low, query.sum];
            estimates(level, &rows, numbers, &mut scratch.estimates);
            best.offer(first as u32, &scratch.estimates);
        }
    }
}
