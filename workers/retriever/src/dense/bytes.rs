//! 8-bit codes: every dimension cut into 254 steps between its smallest and largest value.
//!
//! A row's inner product with a query is a sum of code × (query · step) and a part that is the same for all
//! rows. The query's products are rounded to 8 bits too, so a row costs integer multiplications only, and
//! rows are ordered by the exact integer sum. The best are scored again with their vectors.

use super::file::{Data, Header, Kind, Writer};
use super::kernels::{CODE_LANES, Level, Out, code_sums};
use super::rows::Rows;
use crate::error::{Result, RetrieverError};
use crate::rank::TopK;
use rayon::prelude::*;
use std::ops::Range;
use std::path::Path;

/// Rows coded at once while building.
const BATCH: usize = 8192;
/// What a code of zero stands for.
const MIDDLE: f32 = 128.0;

/// The codes of all rows.
pub struct ByteCodes {
    data: Data,
    /// Per dimension, the size of one step.
    steps: Vec<f32>,
    width: usize,
    rows: usize,
}

/// Queries in 8 bits.
pub struct ByteQueries {
    codes: Vec<i8>,
    count: usize,
}

fn table(dimensions: usize) -> usize {
    (2 * 4 * dimensions).next_multiple_of(CODE_LANES)
}

/// Codes `rows` into a file.
pub fn write(rows: &Rows, path: &Path) -> Result<()> {
    let d = rows.dimensions();
    let empty = || (vec![f32::INFINITY; d], vec![f32::NEG_INFINITY; d]);
    let widen = |(mut low, mut high): (Vec<f32>, Vec<f32>), row: &[f32]| {
        low.iter_mut().zip(row).for_each(|(low, x)| *low = low.min(*x));
        high.iter_mut().zip(row).for_each(|(high, x)| *high = high.max(*x));
        (low, high)
    };
    let (low, high) = (0..rows.len())
        .into_par_iter()
        .with_min_len(512)
        .fold(empty, |range, at| widen(range, &rows.row(at)))
        .reduce(empty, |a, (low, high)| widen(widen(a, &low), &high));
    let middles: Vec<f32> = low.iter().zip(&high).map(|(low, high)| f32::midpoint(*low, *high)).collect();
    let steps: Vec<f32> = low.iter().zip(&high).map(|(low, high)| (high - low) / 254.0).collect();

    let mut writer = Writer::create(path, Header { kind: Kind::Bytes, dimensions: d, rows: 0 })?;
    let mut head: Vec<u8> = bytemuck::cast_slice(&middles).to_vec();
    head.extend_from_slice(bytemuck::cast_slice(&steps));
    head.resize(table(d), 0);
    writer.write(&head)?;
    let width = d.next_multiple_of(CODE_LANES);
    for first in (0..rows.len()).step_by(BATCH) {
        let range = first..rows.len().min(first + BATCH);
        let mut codes = vec![0u8; range.len() * width];
        codes.par_chunks_exact_mut(width).zip(range).for_each(|(codes, at)| {
            let row = rows.row(at);
            for (code, ((x, middle), step)) in codes.iter_mut().zip(row.iter().zip(&middles).zip(&steps)) {
                let steps = if *step > 0.0 { (x - middle) / step } else { 0.0 };
                // a float becomes an integer by saturation
                *code = (steps.round() + MIDDLE) as u8;
            }
        });
        writer.write(&codes)?;
    }
    writer.finish(rows.len())
}

impl ByteCodes {
    /// Maps codes for `rows`.
    pub fn open(path: &Path, rows: &Rows) -> Result<Self> {
        let (header, data) = Data::open(path)?;
        let (d, count) = (rows.dimensions(), rows.len());
        let width = d.next_multiple_of(CODE_LANES);
        let fits = header == Header { kind: Kind::Bytes, dimensions: d, rows: count };
        if !fits || data.len() != table(d) + count * width {
            return Err(RetrieverError::content(path, "does not fit the vectors beside it; build the index again"));
        }
        let steps = bytemuck::cast_slice(&data[4 * d..8 * d]).to_vec();
        Ok(Self { data, steps, width, rows: count })
    }

    /// Bytes that a search reads, besides the vectors of the candidates.
    pub fn bytes(&self) -> usize {
        self.data.len()
    }

    /// Rounds queries for these codes.
    pub fn prepare(&self, queries: &[Vec<f32>]) -> ByteQueries {
        let mut codes = vec![0i8; queries.len() * self.width];
        for (codes, query) in codes.chunks_exact_mut(self.width).zip(queries) {
            let products: Vec<f32> = query.iter().zip(&self.steps).map(|(x, step)| x * step).collect();
            let largest = products.iter().fold(0f32, |top, x| top.max(x.abs()));
            let scale = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (code, product) in codes.iter_mut().zip(products) {
                *code = (product * scale).round() as i8;
            }
        }
        ByteQueries { codes, count: queries.len() }
    }

    /// Offers the rows of a range to every query's collector.
    pub fn scan(
        &self,
        level: Level,
        queries: &ByteQueries,
        range: Range<usize>,
        sums: &mut Vec<i32>,
        best: &mut [TopK],
    ) {
        debug_assert!(range.end <= self.rows);
        let codes = &self.data[table(self.steps.len())..];
        let count = range.len();
        sums.resize(count * queries.count, 0);
        let rows = &codes[range.start * self.width..range.end * self.width];
        code_sums(level, rows, &queries.codes, self.width, &mut Out { values: sums, stride: count });
        for (sums, best) in sums.chunks_exact(count).zip(best) {
            best.offer(range.start as u32, sums);
        }
    }
}
