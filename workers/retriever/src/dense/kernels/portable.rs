//! The loops in plain Rust: what the others must equal.

use super::{BIT_ROWS, LANES, Out, PLANES, fold};

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

pub fn code_sums(rows: &[u8], queries: &[i8], width: usize, out: &mut Out<'_, i32>) {
    for (q, query) in queries.chunks_exact(width).enumerate() {
        for (r, row) in rows.chunks_exact(width).enumerate() {
            let products = row.iter().zip(query).map(|(x, y)| i32::from(*x) * i32::from(*y));
            out.values[q * out.stride + r] = products.sum();
        }
    }
}

pub fn bit_sums(blocks: &[u64], planes: &[u64], words: usize, out: &mut [u32]) {
    for (block, out) in blocks.chunks_exact(words * BIT_ROWS).zip(out.chunks_exact_mut(BIT_ROWS)) {
        for (row, out) in out.iter_mut().enumerate() {
            *out = (0..PLANES * words)
                .map(|at| (block[at % words * BIT_ROWS + row] & planes[at]).count_ones() << (at / words))
                .sum();
        }
    }
}
