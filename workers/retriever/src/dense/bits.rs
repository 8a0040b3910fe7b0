//! 1-bit codes with an unbiased estimate of the inner product (`RaBitQ`: Gao and Long 2024), a thirty-second
//! of f32's size.
//!
//! A row minus the mean of all rows is rotated at random, and of each axis only the side is kept: the sign
//! vector s / √d. With o the rotated row and r a rotated query, ⟨o, r⟩ is estimated by ⟨s, r⟩ · ‖o‖² / Σ|oᵢ|,
//! exact when r points along o and unbiased over rotations otherwise. A query is split along the mean first:
//! the part along it is the same for all rows but for one number a row, and what is left is short. It is
//! rounded to whole numbers, and ⟨s, r⟩ is looked up, six bits at a time ([`BitTables`]). The best rows are scored again
//! with their vectors.
//!
//! Rows lie in blocks of 64: their bits, byte by byte ([`place`]), then two numbers of each. A scan reads a block once
//! and takes out only the rows that reach the least of the best so far.

use super::candidates::Candidates;
use super::file::{Data, Header, Kind, Writer};
use super::kernels::{BIT_BYTES, BIT_ROWS, BitBlock, BitTables, Level, bit_estimates, place};
use super::rotation::Rotation;
use super::rows::Rows;
use crate::error::{Result, RetrieverError};
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

/// Rows coded at once while building; whole blocks.
const BATCH: usize = 8192;
/// Bytes of a block's two numbers a row.
const FACTORS: usize = 2 * 4 * BIT_ROWS;

/// The codes of all rows.
pub struct BitCodes {
    data: Data,
    mean: Vec<f32>,
    rotation: Rotation,
}

/// One query against 1-bit codes.
pub struct BitQuery {
    /// The part off the mean, rotated and rounded.
    tables: BitTables,
    /// How much of the mean is in it, twice its step, and its step times all elements' sizes, negative.
    numbers: [f32; 3],
}

/// Bytes of a row's code.
fn bytes(dimensions: usize) -> usize {
    dimensions.div_ceil(8).next_multiple_of(BIT_BYTES)
}

/// Bytes of a block.
fn block(dimensions: usize) -> usize {
    bytes(dimensions) * BIT_ROWS + FACTORS
}

/// Bytes of the mean.
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

/// Codes up to [`BIT_ROWS`] rows from `first` on into a block.
fn code(rows: &Rows, first: usize, mean: &[f32], rotation: &Rotation, block: &mut [u8]) {
    let (codes, factors) = block.split_at_mut(block.len() - FACTORS);
    let mut row = vec![0f32; mean.len()];
    for lane in 0..BIT_ROWS.min(rows.len() - first) {
        rows.read(first + lane, &mut row);
        row.iter_mut().zip(mean).for_each(|(x, mean)| *x -= mean);
        let along = dot(&row, mean);
        rotation.apply(&mut row);
        let absolute: f64 = row.iter().map(|x| f64::from(x.abs())).sum();
        for (byte, values) in row.chunks(8).enumerate() {
            let bits = values.iter().enumerate().fold(0, |bits, (at, x)| bits | u8::from(*x > 0.0) << at);
            codes[byte * BIT_ROWS + place(lane)] = bits;
        }
        let length = if absolute > 0.0 { (f64::from(dot(&row, &row)) / absolute) as f32 } else { 0.0 };
        for (column, number) in [length, along].into_iter().enumerate() {
            factors[4 * (column * BIT_ROWS + lane)..][..4].copy_from_slice(&number.to_le_bytes());
        }
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
    for first in (0..rows.len()).step_by(BATCH) {
        let mut blocks = vec![0u8; BATCH.min(rows.len() - first).div_ceil(BIT_ROWS) * block(d)];
        blocks
            .par_chunks_exact_mut(block(d))
            .enumerate()
            .for_each(|(at, block)| code(rows, first + at * BIT_ROWS, &mean, &rotation, block));
        writer.write(&blocks)?;
    }
    writer.finish(rows.len())
}

impl BitCodes {
    /// Maps codes for `rows`.
    pub fn open(path: &Path, rows: &Rows) -> Result<Self> {
        let (header, data) = Data::open(path)?;
        let (d, count) = (rows.dimensions(), rows.len());
        let fits = header == Header { kind: Kind::Bits, dimensions: d, rows: count };
        if !fits || data.len() != table(d) + count.div_ceil(BIT_ROWS) * block(d) {
            return Err(RetrieverError::content(path, "does not fit the vectors beside it; build the index again"));
        }
        let mean = bytemuck::cast_slice(&data[..4 * d]).to_vec();
        Ok(Self { data, mean, rotation: Rotation::new(d) })
    }

    /// Bytes that a search reads, besides the vectors of the candidates.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Splits, rotates and rounds a query.
    pub fn prepare(&self, level: Level, query: &[f32]) -> BitQuery {
        let square = dot(&self.mean, &self.mean);
        let along = if square > 0.0 { dot(query, &self.mean) / square } else { 0.0 };
        let mut rest: Vec<f32> = query.iter().zip(&self.mean).map(|(x, mean)| x - along * mean).collect();
        self.rotation.apply(&mut rest);
        rest.resize(8 * bytes(query.len()), 0.0);
        let (tables, step) = BitTables::rounded(level, &rest);
        // ⟨s, r⟩ is the set bits' elements less the others', so twice the set ones' less all: with the sums of the tables,
        // from which the negative elements are taken off, twice the sum less all elements' sizes
        let numbers = [along, 2.0 * step, -step * tables.reach() as f32];
        BitQuery { tables, numbers }
    }

    /// Offers the rows of a range, which begins with a block, to every query's collector.
    pub fn scan(&self, queries: &[BitQuery], range: Range<usize>, best: &mut [Candidates]) {
        let d = self.mean.len();
        let blocks = range.start / BIT_ROWS..range.end.div_ceil(BIT_ROWS);
        let blocks = &self.data[table(d)..][blocks.start * block(d)..blocks.end * block(d)];
        let mut estimates = [0.0; BIT_ROWS];
        for (query, best) in queries.iter().zip(best) {
            for (first, block) in range.clone().step_by(BIT_ROWS).zip(blocks.chunks_exact(block(d))) {
                let (codes, factors) = block.split_at(block.len() - FACTORS);
                let [lengths, along]: &[[f32; BIT_ROWS]; 2] = bytemuck::from_bytes(factors);
                let block = BitBlock { codes, lengths, along };
                let reached = bit_estimates(&block, &query.tables, query.numbers, best.floor(), &mut estimates);
                let rows = (range.end - first).min(BIT_ROWS);
                best.offer(first as u32, reached & u64::MAX >> (BIT_ROWS - rows), &estimates);
            }
        }
    }
}
