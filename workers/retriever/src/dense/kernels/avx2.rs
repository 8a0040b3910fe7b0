//! The loops in AVX2 with FMA and F16C.
#![allow(unsafe_code)] // as in the parent: checked there, called only where detected

use super::{BIT_ROWS, HalfFloatSliceExt, LANES, Out, PLANES, f16, fold};
#[allow(clippy::wildcard_imports)] // dozens of intrinsics
use std::arch::x86_64::*;

/// Calls `$tile::<R, Q>` over all rows and queries: two rows and three queries fill sixteen registers.
macro_rules! tiles {
    ($rows:ident, $queries:ident, $width:ident, $out:ident, $tile:ident) => {
        let (rows, queries) = ($rows.len() / $width, $queries.len() / $width);
        let mut r = 0;
        while r < rows {
            let row = $rows.as_ptr().add(r * $width);
            let mut q = 0;
            while q < queries {
                let query = $queries.as_ptr().add(q * $width);
                let at = $out.values.as_mut_ptr().add(q * $out.stride + r);
                match (rows - r, queries - q) {
                    (2.., 3..) => $tile::<2, 3>(row, query, $width, at, $out.stride),
                    (2.., 2) => $tile::<2, 2>(row, query, $width, at, $out.stride),
                    (2.., _) => $tile::<2, 1>(row, query, $width, at, $out.stride),
                    (_, 3..) => $tile::<1, 3>(row, query, $width, at, $out.stride),
                    (_, 2) => $tile::<1, 2>(row, query, $width, at, $out.stride),
                    (_, _) => $tile::<1, 1>(row, query, $width, at, $out.stride),
                }
                q += 3.min(queries - q);
            }
            r += 2.min(rows - r);
        }
    };
}

#[target_feature(enable = "avx2,fma")]
pub unsafe fn scores(rows: &[f32], queries: &[f32], width: usize, out: &mut Out<'_, f32>) {
    // SAFETY: the caller has checked that rows, queries and places lie in their slices.
    unsafe {
        tiles!(rows, queries, width, out, score_tile);
    }
}

#[target_feature(enable = "avx2,fma")]
unsafe fn score_tile<const R: usize, const Q: usize>(
    rows: *const f32,
    queries: *const f32,
    width: usize,
    out: *mut f32,
    stride: usize,
) {
    let mut sums = [[[_mm256_setzero_ps(); 2]; R]; Q];
    let mut at = 0;
    while at < width {
        for half in 0..2 {
            let mut x = [_mm256_setzero_ps(); R];
            for (r, x) in x.iter_mut().enumerate() {
                // SAFETY: R rows of `width` elements begin at `rows`.
                *x = unsafe { _mm256_loadu_ps(rows.add(r * width + at + 8 * half)) };
            }
            for (q, sums) in sums.iter_mut().enumerate() {
                // SAFETY: Q queries of `width` elements begin at `queries`.
                let y = unsafe { _mm256_loadu_ps(queries.add(q * width + at + 8 * half)) };
                for (sum, x) in sums.iter_mut().zip(x) {
                    sum[half] = _mm256_fmadd_ps(x, y, sum[half]);
                }
            }
        }
        at += LANES;
    }
    for (q, sums) in sums.iter().enumerate() {
        for (r, [low, high]) in sums.iter().enumerate() {
            let mut lanes = [0f32; LANES];
            // SAFETY: twice eight lanes are written to sixteen; `out` has a place for every row and query.
            unsafe {
                _mm256_storeu_ps(lanes.as_mut_ptr(), *low);
                _mm256_storeu_ps(lanes.as_mut_ptr().add(8), *high);
                *out.add(q * stride + r) = fold(lanes);
            }
        }
    }
}

#[target_feature(enable = "avx2")]
pub unsafe fn code_sums(rows: &[u8], queries: &[i8], width: usize, out: &mut Out<'_, i32>) {
    // SAFETY: the caller has checked that rows, queries and places lie in their slices.
    unsafe {
        tiles!(rows, queries, width, out, code_tile);
    }
}

#[target_feature(enable = "avx2")]
unsafe fn code_tile<const R: usize, const Q: usize>(
    rows: *const u8,
    queries: *const i8,
    width: usize,
    out: *mut i32,
    stride: usize,
) {
    let mut sums = [[_mm256_setzero_si256(); R]; Q];
    let mut at = 0;
    while at < width {
        let mut x = [_mm256_setzero_si256(); R];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: R rows of `width` bytes begin at `rows`.
            *x = _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(rows.add(r * width + at).cast()) });
        }
        for (q, sums) in sums.iter_mut().enumerate() {
            // SAFETY: Q queries of `width` bytes begin at `queries`.
            let y = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(queries.add(q * width + at).cast()) });
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, y));
            }
        }
        at += 16;
    }
    for (q, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            let mut lanes = [0i32; 8];
            // SAFETY: eight lanes are written to eight; `out` has a place for every row and query.
            unsafe {
                _mm256_storeu_si256(lanes.as_mut_ptr().cast(), *sum);
                *out.add(q * stride + r) = lanes.iter().sum();
            }
        }
    }
}

#[target_feature(enable = "avx2,f16c")]
pub unsafe fn widen(halves: &[f16], out: &mut [f32]) {
    let whole = halves.len() - halves.len() % 8;
    for at in (0..whole).step_by(8) {
        // SAFETY: eight elements follow `at` in both.
        unsafe {
            let half = _mm_loadu_si128(halves.as_ptr().add(at).cast());
            _mm256_storeu_ps(out.as_mut_ptr().add(at), _mm256_cvtph_ps(half));
        }
    }
    halves[whole..].convert_to_f32_slice(&mut out[whole..]);
}

#[target_feature(enable = "avx2")]
pub fn estimates(rows: &super::BitRows<'_>, query: [f32; 4], out: &mut [f32]) {
    super::estimates_plain(rows, query, out);
}

#[target_feature(enable = "avx2")]
pub unsafe fn bit_sums(blocks: &[u64], planes: &[u64], words: usize, out: &mut [u32]) {
    // Set bits of every half byte; two lookups and a sum of absolute differences count a vector's bits.
    let table = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
    );
    let (low, zero) = (_mm256_set1_epi8(15), _mm256_setzero_si256());
    for (block, out) in blocks.chunks_exact(words * BIT_ROWS).zip(out.chunks_exact_mut(BIT_ROWS)) {
        let mut sums = [zero; 2];
        for plane in 0..PLANES {
            let mut counts = [zero; 2];
            for word in 0..words {
                let query = _mm256_set1_epi64x(planes[plane * words + word] as i64);
                for (half, count) in counts.iter_mut().enumerate() {
                    // SAFETY: a block has `words` groups of eight words.
                    let bits = unsafe { _mm256_loadu_si256(block.as_ptr().add(word * BIT_ROWS + 4 * half).cast()) };
                    let bits = _mm256_and_si256(bits, query);
                    let bytes = _mm256_add_epi8(
                        _mm256_shuffle_epi8(table, _mm256_and_si256(bits, low)),
                        _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(bits), low)),
                    );
                    *count = _mm256_add_epi64(*count, _mm256_sad_epu8(bytes, zero));
                }
            }
            for (sum, count) in sums.iter_mut().zip(counts) {
                let shift = _mm_cvtsi32_si128(plane as i32);
                *sum = _mm256_add_epi64(*sum, _mm256_sll_epi64(count, shift));
            }
        }
        for (half, sum) in sums.iter().enumerate() {
            let mut lanes = [0u64; 4];
            // SAFETY: four lanes are written to four.
            unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), *sum) };
            for (out, lane) in out[4 * half..].iter_mut().zip(lanes) {
                *out = lane as u32;
            }
        }
    }
}
