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
/// Rows whose 1-bit codes are interleaved word by word.
pub const BIT_ROWS: usize = 8;
/// Bits of a query's element against 1-bit codes.
pub const PLANES: usize = 4;

/// Instruction sets, best last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C (2013 on).
    Avx2,
    /// AVX-512 with VNNI and VPOPCNTDQ (2019 on).
    Avx512,
}

impl Level {
    /// The best one that this processor has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            if has!("avx512f") && has!("avx512bw") && has!("avx512vnni") && has!("avx512vpopcntdq") {
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

/// For every row Σ over its set bits of the query's 4-bit element. `blocks` holds the rows' words
/// interleaved by [`BIT_ROWS`]; `planes` the query's bits, lowest first, `words` words each.
pub fn bit_sums(level: Level, blocks: &[u64], planes: &[u64], words: usize, out: &mut [u32]) {
    assert!(words > 0 && planes.len() == PLANES * words, "a query has all its bits");
    assert!(blocks.len() == out.len() * words && out.len().is_multiple_of(BIT_ROWS), "whole blocks of rows");
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `scores`.
        Level::Avx512 => unsafe { avx512::bit_sums(blocks, planes, words, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as in `scores`.
        Level::Avx2 => unsafe { avx2::bit_sums(blocks, planes, words, out) },
        _ => portable::bit_sums(blocks, planes, words, out),
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

/// What [`estimates`] reads: per row the sum over its set bits, and its three numbers.
pub struct BitRows<'a> {
    /// From [`bit_sums`].
    pub sums: &'a [u32],
    /// Factor of the whole.
    pub lengths: &'a [f32],
    /// Factor of the query's part along the mean.
    pub along: &'a [f32],
    /// Bits set.
    pub ones: &'a [f32],
}

/// `along · row.along + row.length · (step · sum + low · ones − total)` for every row; `query` is along, step,
/// low, total.
pub fn estimates(level: Level, rows: &BitRows<'_>, query: [f32; 4], out: &mut [f32]) {
    match level {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was detected; the function is safe otherwise.
        Level::Avx512 => unsafe { avx512::estimates(rows, query, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Level::Avx2 => unsafe { avx2::estimates(rows, query, out) },
        _ => estimates_plain(rows, query, out),
    }
}

#[inline(always)]
#[allow(clippy::inline_always)] // must be compiled once per instruction set
fn estimates_plain(rows: &BitRows<'_>, [along, step, low, total]: [f32; 4], out: &mut [f32]) {
    let numbers = rows.sums.iter().zip(rows.lengths.iter().zip(rows.along.iter().zip(rows.ones)));
    for (out, (sum, (length, (row_along, ones)))) in out.iter_mut().zip(numbers) {
        // no fused operations: every level rounds alike
        *out = along * row_along + length * (step * (*sum as i32) as f32 + low * ones - total);
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

#[cfg(target_arch = "x86_64")]
mod avx512;

#[cfg(target_arch = "x86_64")]
mod avx2;

#[cfg(test)]
mod tests;
