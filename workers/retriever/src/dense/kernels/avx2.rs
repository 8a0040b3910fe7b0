//! The loops in AVX2 with FMA and F16C.
#![allow(unsafe_code)] // as in the parent: checked there, called only where detected

use super::tables::Line;
use super::{BIT_BYTES, BIT_ROWS, BitBlock, HalfFloatSliceExt, LANES, Out, f16, fold};
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

#[target_feature(enable = "avx2,fma,f16c")]
pub unsafe fn half_scores(rows: [&[f16]; 4], query: &[f32]) -> [f32; 4] {
    let mut sums = [[_mm256_setzero_ps(); 2]; 4];
    for at in (0..query.len()).step_by(8) {
        let half = at % LANES / 8;
        // SAFETY: eight elements follow `at` in the query and in every row.
        unsafe {
            let y = _mm256_loadu_ps(query.as_ptr().add(at));
            for (sum, row) in sums.iter_mut().zip(rows) {
                let x = _mm256_cvtph_ps(_mm_loadu_si128(row.as_ptr().add(at).cast()));
                sum[half] = _mm256_fmadd_ps(x, y, sum[half]);
            }
        }
    }
    sums.map(|[low, high]| {
        let mut lanes = [0f32; LANES];
        // SAFETY: twice eight lanes are written to sixteen.
        unsafe {
            _mm256_storeu_ps(lanes.as_mut_ptr(), low);
            _mm256_storeu_ps(lanes.as_mut_ptr().add(8), high);
        }
        fold(lanes)
    })
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
pub unsafe fn bit_estimates(
    block: &BitBlock<'_>,
    tables: &[Line],
    [along, step, shift]: [f32; 3],
    floor: f32,
    out: &mut [f32; BIT_ROWS],
) -> u64 {
    let mut reached = 0;
    let (low, word) = (_mm256_set1_epi8(15), _mm256_set1_epi32(0xFFFF));
    let (along, step, shift, floor) =
        (_mm256_set1_ps(along), _mm256_set1_ps(step), _mm256_set1_ps(shift), _mm256_set1_ps(floor));
    for half in 0..2 {
        let (mut even, mut odd) = (_mm256_setzero_si256(), _mm256_setzero_si256());
        for (at, lines) in tables.chunks_exact(BIT_BYTES).enumerate() {
            let mut sum = _mm256_setzero_si256();
            for (byte, Line(table)) in lines.iter().enumerate() {
                // SAFETY: a block has 64 bytes per line, and a line is 64 bytes.
                let (codes, lows, highs) = unsafe {
                    (
                        _mm256_loadu_si256(
                            block.codes.as_ptr().add((at * BIT_BYTES + byte) * BIT_ROWS + 32 * half).cast(),
                        ),
                        _mm256_loadu_si256(table.as_ptr().cast()),
                        _mm256_loadu_si256(table.as_ptr().add(32).cast()),
                    )
                };
                let lows = _mm256_shuffle_epi8(lows, _mm256_and_si256(codes, low));
                let highs = _mm256_shuffle_epi8(highs, _mm256_and_si256(_mm256_srli_epi16::<4>(codes), low));
                // three bytes' sums fit one
                sum = _mm256_add_epi8(sum, _mm256_add_epi8(lows, highs));
            }
            even = _mm256_add_epi16(even, sum);
            odd = _mm256_add_epi16(odd, _mm256_srli_epi16::<8>(sum));
        }
        // the odd bytes' sums stand in the upper halves too
        even = _mm256_sub_epi16(even, _mm256_slli_epi16::<8>(odd));
        let quarters = [
            _mm256_and_si256(even, word),
            _mm256_and_si256(odd, word),
            _mm256_srli_epi32::<16>(even),
            _mm256_srli_epi32::<16>(odd),
        ];
        for (quarter, sums) in quarters.into_iter().enumerate() {
            let first = 16 * quarter + 8 * half;
            // SAFETY: eight rows follow `first` in all three.
            unsafe {
                let rows = _mm256_loadu_ps(block.along.as_ptr().add(first));
                let lengths = _mm256_loadu_ps(block.lengths.as_ptr().add(first));
                // no fused operations: every level rounds alike
                let inner = _mm256_add_ps(_mm256_mul_ps(step, _mm256_cvtepi32_ps(sums)), shift);
                let estimates = _mm256_add_ps(_mm256_mul_ps(along, rows), _mm256_mul_ps(lengths, inner));
                _mm256_storeu_ps(out.as_mut_ptr().add(first), estimates);
                let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(estimates, floor));
                reached |= u64::from(mask as u32) << first;
            }
        }
    }
    reached
}
