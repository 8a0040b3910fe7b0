//! Sixteen f32 at once: as an array, in two AVX2 registers, in one of AVX-512. Products and sums are
//! rounded one by one everywhere, so the three give the same bits.
#![allow(unsafe_code)] // vector intrinsics; each type is used only where its instructions were asked for

/// Sixteen numbers. The methods of a type may be called only on a processor that has its instructions.
pub(crate) trait Lanes: Copy {
    fn splat(x: f32) -> Self;
    fn load(x: &[f32; 16]) -> Self;
    /// Low and high halves of the bytes.
    fn nibbles(codes: &[u8; 16]) -> (Self, Self);
    /// The bytes as signed numbers.
    fn bytes(codes: &[u8; 16]) -> Self;
    fn add(a: Self, b: Self) -> Self;
    fn mul(a: Self, b: Self) -> Self;
    fn store(self) -> [f32; 16];
}

/// Sum in a fixed order.
#[inline(always)]
#[allow(clippy::inline_always)]
pub(crate) fn total(x: &[f32; 16]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| x[i] + x[i + 8]);
    ((eight[0] + eight[4]) + (eight[2] + eight[6])) + ((eight[1] + eight[5]) + (eight[3] + eight[7]))
}

#[allow(clippy::inline_always)]
impl Lanes for [f32; 16] {
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 16]
    }
    #[inline(always)]
    fn load(x: &[f32; 16]) -> Self {
        *x
    }
    #[inline(always)]
    fn nibbles(codes: &[u8; 16]) -> (Self, Self) {
        (codes.map(|code| f32::from(code & 15)), codes.map(|code| f32::from(code >> 4)))
    }
    #[inline(always)]
    fn bytes(codes: &[u8; 16]) -> Self {
        codes.map(|code| f32::from(code.cast_signed()))
    }
    #[inline(always)]
    fn add(a: Self, b: Self) -> Self {
        std::array::from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn mul(a: Self, b: Self) -> Self {
        std::array::from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn store(self) -> [f32; 16] {
        self
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Two;

#[cfg(target_arch = "x86_64")]
#[allow(clippy::inline_always, clippy::wildcard_imports)]
mod x86 {
    use super::Lanes;
    use std::arch::x86_64::*;

    /// Sixteen numbers in two AVX2 registers.
    #[derive(Clone, Copy)]
    pub(crate) struct Two(__m256, __m256);

    // SAFETY of all methods: loads and stores reach sixteen elements of an array of sixteen; the
    // instructions are there, as the trait demands.
    impl Lanes for Two {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        }
        #[inline(always)]
        fn load(x: &[f32; 16]) -> Self {
            unsafe { Self(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))) }
        }
        #[inline(always)]
        fn nibbles(codes: &[u8; 16]) -> (Self, Self) {
            unsafe {
                let (codes, mask) = (_mm_loadu_si128(codes.as_ptr().cast()), _mm_set1_epi8(15));
                let wide = |x: __m128i| {
                    let (low, high) = (_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x)));
                    Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
                };
                let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), mask);
                (wide(_mm_and_si128(codes, mask)), wide(high))
            }
        }
        #[inline(always)]
        fn bytes(codes: &[u8; 16]) -> Self {
            unsafe {
                let x = _mm_loadu_si128(codes.as_ptr().cast());
                let (low, high) = (_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(x)));
                Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
            }
        }
        #[inline(always)]
        fn add(a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
        }
        #[inline(always)]
        fn mul(a: Self, b: Self) -> Self {
            unsafe { Self(_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
        }
        #[inline(always)]
        fn store(self) -> [f32; 16] {
            let mut out = [0f32; 16];
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), self.0);
                _mm256_storeu_ps(out.as_mut_ptr().add(8), self.1);
            }
            out
        }
    }

    impl Lanes for __m512 {
        #[inline(always)]
        fn splat(x: f32) -> Self {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(x: &[f32; 16]) -> Self {
            unsafe { _mm512_loadu_ps(x.as_ptr()) }
        }
        #[inline(always)]
        fn nibbles(codes: &[u8; 16]) -> (Self, Self) {
            unsafe {
                let (codes, mask) = (_mm_loadu_si128(codes.as_ptr().cast()), _mm_set1_epi8(15));
                let wide = |x: __m128i| _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(x));
                let high = _mm_and_si128(_mm_srli_epi16::<4>(codes), mask);
                (wide(_mm_and_si128(codes, mask)), wide(high))
            }
        }
        #[inline(always)]
        fn bytes(codes: &[u8; 16]) -> Self {
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(codes.as_ptr().cast()))) }
        }
        #[inline(always)]
        fn add(a: Self, b: Self) -> Self {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        fn mul(a: Self, b: Self) -> Self {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        fn store(self) -> [f32; 16] {
            let mut out = [0f32; 16];
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), self) };
            out
        }
    }
}
