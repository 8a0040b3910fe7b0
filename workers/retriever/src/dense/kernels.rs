//! The inner loops of dense search, three times each: AVX-512, AVX2 with FMA, and plain Rust.
//!
//! All three give the same bits. A float score is summed in sixteen lanes with fused multiply-add, in the
//! order of the elements, and the lanes are added in a fixed tree; integer sums are exact. So neither the
//! processor nor the batch nor the number of threads can change a ranking.
#![allow(unsafe_code)] // intrinsics load through pointers, and their functions may only be called where detected

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Lanes of a float score; rows are padded to whole lanes.
pub const LANES: usize = 16;
/// Bytes that a row of 8-bit codes is padded to.
pub const CODE_LANES: usize = 64;
/// Rows whose 1-bit codes are interleaved byte by byte.
pub const BIT_ROWS: usize = 64;

/// Instruction sets, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C (2013 on).
    Avx2,
    /// AVX-512 with VNNI and VBMI (2019 on).
    Avx512,
}

impl Level {
    /// The best one that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512vnni") && has!("avx512vbmi") {
                return Self::Avx512;
            }
            if has!("avx2") && has!("fma") && has!("f16c") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Every level that this processor has.
    pub fn available() -> impl Iterator<Item = Self> {
        [Self::Portable, Self::Avx2, Self::Avx512].into_iter().filter(|level| *level <= Self::detect())
    }
}

/// Where scores go: that of query `q` and row `r` to `out[q * stride + r]`.
pub struct Out<'a, T> {
    /// The scores.
    pub values: &'a mut [T],
    /// Distance between two queries.
    pub stride: usize,
}

fn check<A, B, T>(rows: &[A], queries: &[B], width: usize, lanes: usize, out: &Out<'_, T>) -> (usize, usize) {
    assert!(width > 0 && width.is_multiple_of(lanes), "rows are padded");
    assert!(rows.len().is_multiple_of(width) && queries.len().is_multiple_of(width), "whole rows and queries");
    let (rows, queries) = (rows.len() / width, queries.len() / width);
    assert!(rows <= out.stride && queries * out.stride <= out.values.len(), "scores have their places");
    (rows, queries)
}

/// Inner products of rows and queries, both of `width` elements run together.
pub fn scores(level: Level, rows: &[f32], queries: &[f32], width: usize, out: &mut Out<'_, f32>) {
    check(rows, queries, width, LANES, out);
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected, and `check` has shown that all rows and places lie in their slices.
        Level::Avx512 => unsafe { avx512::scores(rows, queries, width, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::scores(rows, queries, width, out) },
        _ => portable::scores(rows, queries, width, out),
    }
}

/// Inner products of four rows of f16 and one query: what [`scores`] gives for the rows [widened](widen), without a copy.
pub fn half_scores(level: Level, rows: [&[f16]; 4], query: &[f32]) -> [f32; 4] {
    assert!(query.len().is_multiple_of(LANES), "whole lanes");
    assert!(rows.iter().all(|row| row.len() == query.len()), "rows of the query's length");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected, and rows and query have the same whole lanes.
        Level::Avx512 => unsafe { avx512::half_scores(rows, query) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::half_scores(rows, query) },
        _ => portable::half_scores(rows, query),
    }
}

/// Inner products of rows of unsigned codes and queries of signed ones.
pub fn code_sums(level: Level, rows: &[u8], queries: &[i8], width: usize, out: &mut Out<'_, i32>) {
    check(rows, queries, width, CODE_LANES, out);
    assert!(width <= 1 << 15, "sums fit 32 bits");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `scores`.
        Level::Avx512 => unsafe { avx512::code_sums(rows, queries, width, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `scores`.
        Level::Avx2 => unsafe { avx2::code_sums(rows, queries, width, out) },
        _ => portable::code_sums(rows, queries, width, out),
    }
}

/// Halves as f32, which is exact; `out` has as many elements.
pub fn widen(level: Level, halves: &[f16], out: &mut [f32]) {
    assert_eq!(halves.len(), out.len(), "a place for every element");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected, and both slices have the same length.
        Level::Avx512 => unsafe { avx512::widen(halves, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::widen(halves, out) },
        _ => halves.convert_to_f32_slice(out),
    }
}

/// Asks for memory that will be read soon.
pub fn ask_for<T>(values: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for at in (0..size_of_val(values)).step_by(64) {
        // SAFETY: every x86-64 processor has this instruction, and it reads nothing.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(values.as_ptr().cast::<i8>().wrapping_add(at));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// [`BIT_ROWS`] rows of 1-bit codes.
pub struct BitBlock<'a> {
    /// Byte by byte: of the first byte those of all rows, each at its [`place`], then of the second, …
    pub codes: &'a [u8],
    /// Per row the factor of the whole.
    pub lengths: &'a [f32; BIT_ROWS],
    /// Per row the factor of the query's part along the mean.
    pub along: &'a [f32; BIT_ROWS],
}

/// Where a row's byte lies among its block's. Rows 0, 16, 32 and 48 are neighbours, then 1, 17, …: sums of four
/// neighbouring bytes are taken apart into four vectors of sixteen rows in order.
pub const fn place(row: usize) -> usize {
    row % 16 * 4 + row / 16
}

/// `along · row.along + row.length · (step · sum + shift)` for every row of a block, where `sum` is that of
/// [`BitTables`] and `query` is along, step, shift. Bit r of what is returned: row r has at least `floor`.
pub fn bit_estimates(
    block: &BitBlock<'_>,
    tables: &BitTables,
    query: [f32; 3],
    floor: f32,
    out: &mut [f32; BIT_ROWS],
) -> u64 {
    assert_eq!(block.codes.len(), tables.bytes() * BIT_ROWS, "a block of the query's length");
    match tables.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected, and the block has a byte per row and byte of the tables.
        Level::Avx512 => unsafe { avx512::bit_estimates(block, tables.lines(), query, floor, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::bit_estimates(block, tables.lines(), query, floor, out) },
        _ => portable::bit_estimates(block, tables.lines(), query, floor, out),
    }
}

/// The tree in which a score's lanes are added.
fn fold(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

mod portable;
mod tables;

pub use tables::{BIT_BYTES, BitTables};

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
mod avx2;

#[cfg(test)]
mod tests;
