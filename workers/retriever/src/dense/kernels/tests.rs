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

            let w = width * LANES;
            let x: Vec<f16> = (0..4 * w).map(|_| f16::from_f32((next() >> 40) as f32 / (1 << 24) as f32 - 0.5)).collect();
            let y: Vec<f32> = (0..w).map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect();
            let rows = [&x[..w], &x[w..2 * w], &x[2 * w..3 * w], &x[3 * w..]];
            let mut wide = vec![0.0; 4 * w];
            widen(level, &x, &mut wide);
            let mut expected = [0.0; 4];
            scores(Level::Portable, &wide, &y, w, &mut Out { values: &mut expected, stride: 4 });
            prop_assert_eq!(half_scores(level, rows, &y).map(f32::to_bits), expected.map(f32::to_bits), "halves {:?}", level);
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

/// Estimates of a block by every level, and bit by bit from the rounded query.
fn estimated(codes: &[u8], query: &[f32], numbers: [f32; 3], floor: f32) {
    let lengths = std::array::from_fn(|row| 0.25 + row as f32 / 100.0);
    let along = std::array::from_fn(|row| 3.0 - row as f32 / 10.0);
    let block = BitBlock { codes, lengths: &lengths, along: &along };
    for level in Level::available() {
        let (tables, step) = BitTables::rounded(level, query);
        let elements: Vec<i64> = query.iter().map(|x| if step > 0.0 { (x / step).round() as i64 } else { 0 }).collect();
        let reach: i64 = elements.iter().map(|x| x.abs()).sum();
        assert_eq!(i64::from(tables.reach()), reach, "{level:?}");
        let close = |(element, x): (&i64, &f32)| (*element as f32 * step - x).abs() <= step * 0.501 + 1e-40;
        assert!(elements.iter().zip(query).all(close), "{level:?}");
        let mut out = [f32::NAN; BIT_ROWS];
        let reached = bit_estimates(&block, &tables, numbers, floor, &mut out);
        for row in 0..BIT_ROWS {
            let set = |at: &usize| codes[at / 8 * BIT_ROWS + place(row)] >> (at % 8) & 1 == 1;
            let negative: i64 = elements.iter().filter(|x| **x < 0).sum();
            let sum = (0..elements.len()).filter(set).map(|at| elements[at]).sum::<i64>() - negative;
            let expected = numbers[0] * along[row] + lengths[row] * (numbers[1] * sum as f32 + numbers[2]);
            assert_eq!(out[row].to_bits(), expected.to_bits(), "{level:?}, row {row}");
            assert_eq!(reached >> row & 1 == 1, expected >= floor, "{level:?}, row {row}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn every_level_estimates_alike(seed in any::<u64>(), threes in 1usize..40, spread in 0u32..4, used in 0usize..24) {
        let mut next = noise(seed);
        let codes: Vec<u8> = (0..threes * BIT_BYTES * BIT_ROWS).map(|_| (next() >> 13) as u8).collect();
        // from elements alike to one that outweighs all others; the last bits may be padding
        let mut element = || ((next() >> 40) as f32 / (1 << 23) as f32 - 1.0).powi(1 + 6 * spread as i32);
        let mut query: Vec<f32> = (0..threes * BIT_BYTES * 8).map(|_| element()).collect();
        let end = query.len() - used;
        query[end..].fill(0.0);
        estimated(&codes, &query, [0.5, 0.01, -3.0], 0.4);
    }
}

#[test]
fn extreme_queries_keep_their_sums() {
    let bits = 24 * 400;
    let codes: Vec<[u8; 3]> = vec![[0; 3], [255; 3], [0x3F; 3], [0xC0; 3], [0x55, 0xAA, 0xFF]];
    let alternating = |at: usize| if at.is_multiple_of(2) { 1.0 } else { -1.0 };
    let queries: [&dyn Fn(usize) -> f32; 8] = [
        &|_| 0.0,
        // so small that a step would lose its digits
        &|_| 1e-43,
        &|_| 1.0,
        &|_| -1.0,
        &alternating,
        &|at| if at == 7 { -1e30 } else { 1e-30 },
        // all weight in the bits that are put together from three bytes
        &|at| if at % 8 > 5 { alternating(at) } else { 0.0 },
        &|at| if at % 8 > 5 { 0.0 } else { 1.0 },
    ];
    for pattern in &codes {
        for query in queries {
            for bits in [24, 240, bits] {
                let block: Vec<u8> = (0..bits / 8 * BIT_ROWS).map(|at| pattern[at / BIT_ROWS % 3]).collect();
                estimated(&block, &(0..bits).map(query).collect::<Vec<_>>(), [0.0, 1.0, 0.0], f32::NEG_INFINITY);
            }
        }
    }
}

#[test]
fn what_is_no_number_reaches_no_floor() {
    for level in Level::available() {
        let (tables, _) = BitTables::rounded(level, &[f32::NAN; 24]);
        let block = BitBlock { codes: &[255; 192], lengths: &[1.0; BIT_ROWS], along: &[1.0; BIT_ROWS] };
        let reached = bit_estimates(&block, &tables, [f32::NAN, 1.0, 1.0], f32::NEG_INFINITY, &mut [0.0; BIT_ROWS]);
        assert_eq!(reached, 0, "{level:?}");
    }
}
