//! The loops in AVX-512 with VNNI and VBMI.
#![allow(unsafe_code)] // as in the parent: checked there, called only where detected

use super::tables::Line;
use super::{BIT_BYTES, BIT_ROWS, BitBlock, CODE_LANES, HalfFloatSliceExt, LANES, Out, f16, fold};
#[allow(clippy::wildcard_imports)] // dozens of intrinsics
use std::arch::x86_64::*;

/// Queries that are read against a group of rows while both stay in the first cache.
const GROUP: usize = 8;
/// Vectors of a 4 × 4 tile in the order in which [`transpose_fold`] gives their sums back in sequence.
const ORDER: [usize; 16] = [0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15];

/// Calls `$tile::<R, Q>` over all rows and queries; `$whole` for the 4 × 4 tiles.
macro_rules! tiles {
    ($rows:ident, $queries:ident, $width:ident, $out:ident, $whole:ident, $tile:ident) => {
        let (rows, queries) = ($rows.len() / $width, $queries.len() / $width);
        let mut group = 0;
        while group < queries {
            let end = queries.min(group + GROUP);
            let mut r = 0;
            while r < rows {
                let row = $rows.as_ptr().add(r * $width);
                let mut q = group;
                while q < end {
                    let query = $queries.as_ptr().add(q * $width);
                    let at = $out.values.as_mut_ptr().add(q * $out.stride + r);
                    match (rows - r, end - q) {
                        (4.., 4..) if q == 0 => $whole::<true>(row, query, $width, at, $out.stride),
                        (4.., 4..) => $whole::<false>(row, query, $width, at, $out.stride),
                        (4.., 3) => $tile::<4, 3>(row, query, $width, at, $out.stride),
                        (4.., 2) => $tile::<4, 2>(row, query, $width, at, $out.stride),
                        (4.., _) => $tile::<4, 1>(row, query, $width, at, $out.stride),
                        (_, 4..) => $tile::<1, 4>(row, query, $width, at, $out.stride),
                        (_, 3) => $tile::<1, 3>(row, query, $width, at, $out.stride),
                        (_, 2) => $tile::<1, 2>(row, query, $width, at, $out.stride),
                        (_, _) => $tile::<1, 1>(row, query, $width, at, $out.stride),
                    }
                    q += 4.min(end - q);
                }
                r += if rows - r >= 4 { 4 } else { 1 };
            }
            group = end;
        }
    };
}

#[target_feature(enable = "avx512f")]
pub unsafe fn scores(rows: &[f32], queries: &[f32], width: usize, out: &mut Out<'_, f32>) {
    // SAFETY: the caller has checked that rows, queries and places lie in their slices.
    unsafe {
        tiles!(rows, queries, width, out, score_whole, score_tile);
    }
}

/// Lane sums of R rows and Q queries. AHEAD asks for the next R rows, which come from memory, on the way;
/// a prefetch reads nothing and cannot fault, so it may point behind the last row.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn score_sums<const R: usize, const Q: usize, const AHEAD: bool>(
    rows: *const f32,
    queries: *const f32,
    width: usize,
) -> [[__m512; R]; Q] {
    let mut sums = [[_mm512_setzero_ps(); R]; Q];
    let mut at = 0;
    while at < width {
        let mut x = [_mm512_setzero_ps(); R];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: R rows of `width` elements begin at `rows`.
            *x = unsafe { _mm512_loadu_ps(rows.add(r * width + at)) };
            if AHEAD {
                _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add((r + R) * width + at).cast());
            }
        }
        for (q, sums) in sums.iter_mut().enumerate() {
            // SAFETY: Q queries of `width` elements begin at `queries`.
            let y = unsafe { _mm512_loadu_ps(queries.add(q * width + at)) };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        at += LANES;
    }
    sums
}

#[target_feature(enable = "avx512f")]
unsafe fn score_tile<const R: usize, const Q: usize>(
    rows: *const f32,
    queries: *const f32,
    width: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: as the caller's.
    let sums = unsafe { score_sums::<R, Q, true>(rows, queries, width) };
    for (q, sums) in sums.iter().enumerate() {
        for (r, sum) in sums.iter().enumerate() {
            let mut lanes = [0f32; LANES];
            // SAFETY: sixteen lanes are written to sixteen; `out` has a place for every row and query.
            unsafe {
                _mm512_storeu_ps(lanes.as_mut_ptr(), *sum);
                *out.add(q * stride + r) = fold(lanes);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn score_whole<const AHEAD: bool>(
    rows: *const f32,
    queries: *const f32,
    width: usize,
    out: *mut f32,
    stride: usize,
) {
    // SAFETY: as the caller's.
    let sums = unsafe { score_sums::<4, 4, AHEAD>(rows, queries, width) };
    let mut ordered = [_mm512_setzero_ps(); 16];
    for (at, place) in ORDER.iter().enumerate() {
        ordered[*place] = sums[at / 4][at % 4];
    }
    let folded = transpose_fold(&ordered);
    // SAFETY: four rows of four queries have their places.
    unsafe {
        _mm_storeu_ps(out, _mm512_castps512_ps128(folded));
        _mm_storeu_ps(out.add(stride), _mm512_extractf32x4_ps::<1>(folded));
        _mm_storeu_ps(out.add(2 * stride), _mm512_extractf32x4_ps::<2>(folded));
        _mm_storeu_ps(out.add(3 * stride), _mm512_extractf32x4_ps::<3>(folded));
    }
}

/// The sixteen vectors' sums by the same tree as [`fold`], at the places that [`ORDER`] undoes.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose_fold(v: &[__m512; 16]) -> __m512 {
    let mut a = [_mm512_setzero_ps(); 8];
    for at in 0..8 {
        let (low, high) = (v[at], v[at + 8]);
        a[at] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(low, high), _mm512_shuffle_f32x4::<0xEE>(low, high));
    }
    let mut b = [_mm512_setzero_ps(); 4];
    for at in 0..4 {
        let (low, high) = (a[at], a[at + 4]);
        b[at] = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(low, high), _mm512_shuffle_f32x4::<0xDD>(low, high));
    }
    let mut c = [_mm512_setzero_ps(); 2];
    for at in 0..2 {
        let (low, high) = (b[at], b[at + 2]);
        c[at] = _mm512_add_ps(_mm512_shuffle_ps::<0x44>(low, high), _mm512_shuffle_ps::<0xEE>(low, high));
    }
    _mm512_add_ps(_mm512_shuffle_ps::<0x88>(c[0], c[1]), _mm512_shuffle_ps::<0xDD>(c[0], c[1]))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
pub unsafe fn code_sums(rows: &[u8], queries: &[i8], width: usize, out: &mut Out<'_, i32>) {
    // SAFETY: the caller has checked that rows, queries and places lie in their slices.
    unsafe {
        tiles!(rows, queries, width, out, code_whole, code_tile);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn code_vectors<const R: usize, const Q: usize, const AHEAD: bool>(
    rows: *const u8,
    queries: *const i8,
    width: usize,
) -> [[__m512i; R]; Q] {
    let mut sums = [[_mm512_setzero_si512(); R]; Q];
    let mut at = 0;
    while at < width {
        let mut x = [_mm512_setzero_si512(); R];
        for (r, x) in x.iter_mut().enumerate() {
            // SAFETY: R rows of `width` bytes begin at `rows`.
            *x = unsafe { _mm512_loadu_si512(rows.add(r * width + at).cast()) };
            if AHEAD {
                _mm_prefetch::<_MM_HINT_T0>(rows.wrapping_add((r + 2 * R) * width + at).cast());
            }
        }
        for (q, sums) in sums.iter_mut().enumerate() {
            // SAFETY: Q queries of `width` bytes begin at `queries`.
            let y = unsafe { _mm512_loadu_si512(queries.add(q * width + at).cast()) };
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum = _mm512_dpbusd_epi32(*sum, x, y);
            }
        }
        at += CODE_LANES;
    }
    sums
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn code_tile<const R: usize, const Q: usize>(
    rows: *const u8,
    queries: *const i8,
    width: usize,
    out: *mut i32,
    stride: usize,
) {
    // SAFETY: as the caller's; `out` has a place for every row and query.
    unsafe {
        for (q, sums) in code_vectors::<R, Q, true>(rows, queries, width).iter().enumerate() {
            for (r, sum) in sums.iter().enumerate() {
                *out.add(q * stride + r) = _mm512_reduce_add_epi32(*sum);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn code_whole<const AHEAD: bool>(
    rows: *const u8,
    queries: *const i8,
    width: usize,
    out: *mut i32,
    stride: usize,
) {
    // SAFETY: as the caller's.
    let sums = unsafe { code_vectors::<4, 4, AHEAD>(rows, queries, width) };
    let add = |low: __m512i, high: __m512i| _mm512_add_epi32(low, high);
    let mut v = [_mm512_setzero_si512(); 16];
    for (at, place) in ORDER.iter().enumerate() {
        v[*place] = sums[at / 4][at % 4];
    }
    let mut a = [_mm512_setzero_si512(); 8];
    for at in 0..8 {
        let (x, y) = (v[at], v[at + 8]);
        a[at] = add(_mm512_shuffle_i32x4::<0x44>(x, y), _mm512_shuffle_i32x4::<0xEE>(x, y));
    }
    let mut b = [_mm512_setzero_si512(); 4];
    for at in 0..4 {
        let (x, y) = (a[at], a[at + 4]);
        b[at] = add(_mm512_shuffle_i32x4::<0x88>(x, y), _mm512_shuffle_i32x4::<0xDD>(x, y));
    }
    let mut c = [_mm512_setzero_si512(); 2];
    for at in 0..2 {
        let (x, y) = (b[at], b[at + 2]);
        c[at] = add(_mm512_unpacklo_epi64(x, y), _mm512_unpackhi_epi64(x, y));
    }
    let (x, y) = (_mm512_castsi512_ps(c[0]), _mm512_castsi512_ps(c[1]));
    let folded =
        add(_mm512_castps_si512(_mm512_shuffle_ps::<0x88>(x, y)), _mm512_castps_si512(_mm512_shuffle_ps::<0xDD>(x, y)));
    // SAFETY: four rows of four queries have their places.
    unsafe {
        _mm_storeu_si128(out.cast(), _mm512_castsi512_si128(folded));
        _mm_storeu_si128(out.add(stride).cast(), _mm512_extracti32x4_epi32::<1>(folded));
        _mm_storeu_si128(out.add(2 * stride).cast(), _mm512_extracti32x4_epi32::<2>(folded));
        _mm_storeu_si128(out.add(3 * stride).cast(), _mm512_extracti32x4_epi32::<3>(folded));
    }
}

#[target_feature(enable = "avx512f")]
pub unsafe fn half_scores(rows: [&[f16]; 4], query: &[f32]) -> [f32; 4] {
    let mut sums = [_mm512_setzero_ps(); 4];
    for at in (0..query.len()).step_by(LANES) {
        // SAFETY: sixteen elements follow `at` in the query and in every row.
        unsafe {
            let y = _mm512_loadu_ps(query.as_ptr().add(at));
            for (sum, row) in sums.iter_mut().zip(rows) {
                let x = _mm512_cvtph_ps(_mm256_loadu_si256(row.as_ptr().add(at).cast()));
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
    }
    sums.map(|sum| {
        let mut lanes = [0f32; LANES];
        // SAFETY: sixteen lanes are written to sixteen.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sum) };
        fold(lanes)
    })
}

#[target_feature(enable = "avx512f")]
pub unsafe fn widen(halves: &[f16], out: &mut [f32]) {
    let whole = halves.len() - halves.len() % LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: sixteen elements follow `at` in both.
        unsafe {
            let half = _mm256_loadu_si256(halves.as_ptr().add(at).cast());
            _mm512_storeu_ps(out.as_mut_ptr().add(at), _mm512_cvtph_ps(half));
        }
    }
    halves[whole..].convert_to_f32_slice(&mut out[whole..]);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub unsafe fn bit_estimates(
    block: &BitBlock<'_>,
    tables: &[Line],
    [along, step, shift]: [f32; 3],
    floor: f32,
    out: &mut [f32; BIT_ROWS],
) -> u64 {
    // bits of `a` where the mask has ones, else of `b`
    const SELECT: i32 = 0xCA;
    let (first, second) = (_mm512_set1_epi8(0x30), _mm512_set1_epi8(0x0C));
    let (mut even, mut odd) = (_mm512_setzero_si512(), _mm512_setzero_si512());
    for (at, lines) in tables.chunks_exact(4).enumerate() {
        // SAFETY: a block has three times 64 bytes per four lines, and a line is 64 bytes.
        let [a, b, c] = [0, 1, 2].map(|byte| unsafe {
            _mm512_loadu_si512(block.codes.as_ptr().add((at * BIT_BYTES + byte) * BIT_ROWS).cast())
        });
        let [s, t, u, v] = [0, 1, 2, 3].map(|line| unsafe { _mm512_loadu_si512(lines[line].0.as_ptr().cast()) });
        // the bytes' two upper bits; a lookup takes six, whatever stands above them
        let rest = _mm512_ternarylogic_epi32::<SELECT>(second, _mm512_srli_epi16::<4>(b), _mm512_srli_epi16::<6>(c));
        let rest = _mm512_ternarylogic_epi32::<SELECT>(first, _mm512_srli_epi16::<2>(a), rest);
        // four sums fit a byte
        let sum = _mm512_add_epi8(
            _mm512_add_epi8(_mm512_permutexvar_epi8(a, s), _mm512_permutexvar_epi8(b, t)),
            _mm512_add_epi8(_mm512_permutexvar_epi8(c, u), _mm512_permutexvar_epi8(rest, v)),
        );
        even = _mm512_add_epi16(even, sum);
        odd = _mm512_add_epi16(odd, _mm512_srli_epi16::<8>(sum));
    }
    // the odd bytes' sums stand in the upper halves too
    even = _mm512_sub_epi16(even, _mm512_slli_epi16::<8>(odd));
    let word = _mm512_set1_epi32(0xFFFF);
    let quarters = [
        _mm512_and_si512(even, word),
        _mm512_and_si512(odd, word),
        _mm512_srli_epi32::<16>(even),
        _mm512_srli_epi32::<16>(odd),
    ];
    let (along, step, shift, floor) =
        (_mm512_set1_ps(along), _mm512_set1_ps(step), _mm512_set1_ps(shift), _mm512_set1_ps(floor));
    let mut reached = 0;
    for (quarter, sums) in quarters.into_iter().enumerate() {
        let first = 16 * quarter;
        // SAFETY: sixteen rows follow `first` in all three.
        unsafe {
            let rows = _mm512_loadu_ps(block.along.as_ptr().add(first));
            let lengths = _mm512_loadu_ps(block.lengths.as_ptr().add(first));
            // no fused operations: every level rounds alike
            let inner = _mm512_add_ps(_mm512_mul_ps(step, _mm512_cvtepi32_ps(sums)), shift);
            let estimates = _mm512_add_ps(_mm512_mul_ps(along, rows), _mm512_mul_ps(lengths, inner));
            _mm512_storeu_ps(out.as_mut_ptr().add(first), estimates);
            reached |= u64::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(estimates, floor)) << first;
        }
    }
    reached
}
