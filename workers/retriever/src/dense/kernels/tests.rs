//! Every level against plain Rust, to the bit.

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
fn every_half_widens_exactly() {
    let halves: Vec<f16> = (0..=u16::MAX).chain(0..13).map(f16::from_bits).collect();
    for level in Level::available() {
        let mut out = vec![0f32; halves.len()];
        widen(level, &halves, &mut out);
        for (half, single) in halves.iter().zip(out) {
            let same = half.to_f32().to_bits() == single.to_bits();
            assert!(same || (half.is_nan() && single.is_nan()), "{level:?} {half:?}");
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
