//! The inner loops of dense search, three times each: AVX-512, AVX2 with FMA, and plain Rust.
//!
//! All three give the same bits. A float score is summed in sixteen lanes with fused multiply-add, in the
//! order of the elements, and the lanes are added in a fixed tree; integer sums are exact. So neither the
//! processor nor the batch nor the number of threads can change a ranking.
#![allow(unsafe_code)] // intrinsics load through pointers, and their functions may only be called where detected

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
    /// AVX2 and FMA (2013 on).
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
            if has!("avx2") && has!("fma") {
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

mod portable {
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
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{BIT_ROWS, CODE_LANES, LANES, Out, PLANES, fold};
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
        let folded = transpose_fold(ordered);
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
    fn transpose_fold(v: [__m512; 16]) -> __m512 {
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
        let folded = add(
            _mm512_castps_si512(_mm512_shuffle_ps::<0x88>(x, y)),
            _mm512_castps_si512(_mm512_shuffle_ps::<0xDD>(x, y)),
        );
        // SAFETY: four rows of four queries have their places.
        unsafe {
            _mm_storeu_si128(out.cast(), _mm512_castsi512_si128(folded));
            _mm_storeu_si128(out.add(stride).cast(), _mm512_extracti32x4_epi32::<1>(folded));
            _mm_storeu_si128(out.add(2 * stride).cast(), _mm512_extracti32x4_epi32::<2>(folded));
            _mm_storeu_si128(out.add(3 * stride).cast(), _mm512_extracti32x4_epi32::<3>(folded));
        }
    }

    #[target_feature(enable = "avx512f")]
    pub fn estimates(rows: &super::BitRows<'_>, query: [f32; 4], out: &mut [f32]) {
        super::estimates_plain(rows, query, out);
    }

    #[target_feature(enable = "avx512f,avx512vpopcntdq")]
    pub unsafe fn bit_sums(blocks: &[u64], planes: &[u64], words: usize, out: &mut [u32]) {
        for (block, out) in blocks.chunks_exact(words * BIT_ROWS).zip(out.chunks_exact_mut(BIT_ROWS)) {
            let mut sums = [_mm512_setzero_si512(); PLANES];
            for word in 0..words {
                // SAFETY: a block has `words` groups of eight words.
                let bits = unsafe { _mm512_loadu_si512(block.as_ptr().add(word * BIT_ROWS).cast()) };
                for (plane, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: `planes` holds PLANES times `words` words.
                    let query = _mm512_set1_epi64(unsafe { *planes.get_unchecked(plane * words + word) } as i64);
                    *sum = _mm512_add_epi64(*sum, _mm512_popcnt_epi64(_mm512_and_si512(bits, query)));
                }
            }
            let [a, b, c, d] = sums;
            let low = _mm512_add_epi64(a, _mm512_slli_epi64::<1>(b));
            let high = _mm512_add_epi64(_mm512_slli_epi64::<2>(c), _mm512_slli_epi64::<3>(d));
            let narrow = _mm512_cvtepi64_epi32(_mm512_add_epi64(low, high));
            // SAFETY: eight sums are written to eight places.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), narrow) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BIT_ROWS, LANES, Out, PLANES, fold};
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A stream of numbers that follows from `seed`.
    fn noise(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed | 1;
        move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.wrapping_mul(0x2545_F491_4F6C_DD1D)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn every_level_gives_the_portable_bits(
            seed in any::<u64>(), rows in 0usize..11, queries in 0usize..11, width in 1usize..9, spare in 0usize..3,
        ) {
            let mut next = noise(seed);
            let stride = rows + spare;
            for level in Level::available() {
                let (w, mut float) = (width * LANES, || ((next() >> 40) as f32 / (1 << 23) as f32 - 1.0) * 3.0);
                let (x, y): (Vec<f32>, Vec<f32>) =
                    ((0..rows * w).map(|_| float()).collect(), (0..queries * w).map(|_| float()).collect());
                let run = |level| {
                    let mut values = vec![7.0f32; queries * stride];
                    scores(level, &x, &y, w, &mut Out { values: &mut values, stride });
                    values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                };
                prop_assert_eq!(run(level), run(Level::Portable), "scores {:?}", level);

                let w = width * CODE_LANES;
                let x: Vec<u8> = (0..rows * w).map(|_| (next() >> 13) as u8).collect();
                let y: Vec<i8> = (0..queries * w).map(|_| (next() >> 13) as i8).collect();
                let run = |level| {
                    let mut values = vec![7i32; queries * stride];
                    code_sums(level, &x, &y, w, &mut Out { values: &mut values, stride });
                    values
                };
                prop_assert_eq!(run(level), run(Level::Portable), "codes {:?}", level);

                let x: Vec<u64> = (0..rows * BIT_ROWS * width).map(|_| next()).collect();
                let y: Vec<u64> = (0..PLANES * width).map(|_| next()).collect();
                let run = |level| {
                    let mut values = vec![7u32; rows * BIT_ROWS];
                    bit_sums(level, &x, &y, width, &mut values);
                    values
                };
                prop_assert_eq!(run(level), run(Level::Portable), "bits {:?}", level);
            }
        }
    }

    #[test]
    fn extreme_codes_do_not_overflow() {
        for level in Level::available() {
            let (rows, queries) = (vec![255u8; 4 * 32_768], vec![-128i8; 4 * 32_768]);
            let mut values = vec![0; 16];
            code_sums(level, &rows, &queries, 32_768, &mut Out { values: &mut values, stride: 4 });
            assert_eq!(values, [255 * -128 * 32_768; 16], "{level:?}");
        }
    }
}
