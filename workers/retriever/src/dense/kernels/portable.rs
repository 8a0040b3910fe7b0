//! The loops in plain Rust: what the others must equal.

use super::tables::Line;
use super::{BIT_ROWS, BitBlock, LANES, Out, f16, fold, place};

pub fn scores(rows: &[f32], queries: &[f32], width: usize, out: &mut Out<'_, f32>) {
    for (q, query) in queries.chunks_exact(width).enumerate() {
        for (r, row) in rows.chunks_exact(width).enumerate() {
            let mut lanes = [0f32; LANES];
            for (row, query) in row.as_chunks::<LANES>().0.iter().zip(query.as_chunks::<LANES>().0) {
                for (lane, (x, y)) in lanes.iter_mut().zip(row.iter().zip(query)) {
                    *lane = x.mul_add(*y, *lane);
                }
            }
            out.values[q * out.stride + r] = fold(lanes);
        }
    }
}

pub fn half_scores(rows: [&[f16]; 4], query: &[f32]) -> [f32; 4] {
    rows.map(|row| {
        let mut lanes = [0f32; LANES];
        for (row, query) in row.as_chunks::<LANES>().0.iter().zip(query.as_chunks::<LANES>().0) {
            for (lane, (x, y)) in lanes.iter_mut().zip(row.iter().zip(query)) {
                *lane = x.to_f32().mul_add(*y, *lane);
            }
        }
        fold(lanes)
    })
}

pub fn code_sums(rows: &[u8], queries: &[i8], width: usize, out: &mut Out<'_, i32>) {
    for (q, query) in queries.chunks_exact(width).enumerate() {
        for (r, row) in rows.chunks_exact(width).enumerate() {
            let products = row.iter().zip(query).map(|(x, y)| i32::from(*x) * i32::from(*y));
            out.values[q * out.stride + r] = products.sum();
        }
    }
}

pub fn bit_estimates(
    block: &BitBlock<'_>,
    tables: &[Line],
    [along, step, shift]: [f32; 3],
    floor: f32,
    out: &mut [f32; BIT_ROWS],
) -> u64 {
    let mut sums = [0u16; BIT_ROWS];
    for (codes, Line(table)) in block.codes.as_chunks::<BIT_ROWS>().0.iter().zip(tables) {
        for (sum, byte) in sums.iter_mut().zip(codes) {
            let (low, high) = (usize::from(byte & 15), usize::from(byte >> 4));
            *sum += u16::from(table[low]) + u16::from(table[32 + high]);
        }
    }
    let mut reached = 0;
    for (row, out) in out.iter_mut().enumerate() {
        let sum = f32::from(sums[place(row)]);
        // no fused operations: every level rounds alike
        *out = along * block.along[row] + block.lengths[row] * (step * sum + shift);
        reached |= u64::from(*out >= floor) << row;
    }
    reached
}
