//! What the bits of a 1-bit code are worth to a query: sums of the query's elements over every pattern of a few bits.
//!
//! A row's sum is then a lookup per few bits instead of arithmetic per bit (fast scan: André, Kermarrec and Le Scouarnec 2015).
//! AVX-512 looks up six bits at once, the other levels four. Elements are whole numbers, so both give the same sums.

use super::Level;

/// Bytes of a code come in threes: twice three nibbles, or six bits of each and the two that are left of all three.
pub const BIT_BYTES: usize = 3;
/// Bits of so many bytes.
const PART: usize = 8 * BIT_BYTES;
/// Bits of a group, and the most that its elements may add up to, whatever their signs: four such groups fit a byte.
const GROUP: usize = 6;
const MOST: u32 = 63;
/// The most that all elements may add up to: a row's sum fits sixteen bits, with room for what the sum of floats lacks.
const ALL: u32 = 60_000;

/// 64 bytes where loads of so many cross no cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub struct Line(pub [u8; 64]);

/// The tables of one query.
///
/// The sum of a row is that of its set bits' elements less the sum of all negative ones, so it is never below 0.
pub struct BitTables {
    lines: Vec<Line>,
    bytes: usize,
    reach: u32,
    level: Level,
}

/// Each group's elements among those of three bytes.
fn groups<T: Copy>(part: &[T]) -> [[T; GROUP]; 4] {
    let low = |byte: usize| std::array::from_fn(|bit| part[8 * byte + bit]);
    // the last as its bits are put together: the first byte's two are uppermost
    [low(0), low(1), low(2), [part[22], part[23], part[14], part[15], part[6], part[7]]]
}

/// Sums over all subsets of elements, by the bits that say which are in.
fn subsets(elements: &[i8], out: &mut [u8]) {
    out[0] = elements.iter().filter(|x| **x < 0).map(|x| x.unsigned_abs()).sum();
    for (bit, x) in elements.iter().enumerate() {
        let (without, with) = out[..2 << bit].split_at_mut(1 << bit);
        for (with, without) in with.iter_mut().zip(without) {
            *with = without.wrapping_add_signed(*x);
        }
    }
}

/// The least step for which every sum of rounded elements keeps its bounds; 0 for a query of zeros or next to them, and
/// for one that is not of numbers.
fn step(query: &[f32]) -> f32 {
    // each element may be rounded up by half a step
    let least = |elements: &[f32], most: u32| {
        elements.iter().map(|x| x.abs()).sum::<f32>() / (most as f32 - 0.5 * elements.len() as f32)
    };
    let all = least(query, ALL);
    let step = query.chunks_exact(PART).flat_map(groups).fold(all, |step, group| step.max(least(&group, MOST)));
    if all.is_finite() && step.is_normal() { step } else { 0.0 }
}

impl BitTables {
    /// Rounds a query, which is padded with zeros to whole threes of bytes, an element a bit; the tables and the step.
    pub fn rounded(level: Level, query: &[f32]) -> (Self, f32) {
        let step = step(query);
        let round = |x: &f32| if step > 0.0 { (x / step).round() as i8 } else { 0 };
        let elements: Vec<i8> = query.iter().map(round).collect();
        (Self::new(level, &elements), step)
    }

    /// Tables for elements whose sizes add up to at most 63 in every group, and 65,535 in all.
    fn new(level: Level, elements: &[i8]) -> Self {
        assert!(elements.len().is_multiple_of(PART), "codes are padded");
        let size = |elements: &[i8]| elements.iter().map(|x| u32::from(x.unsigned_abs())).sum::<u32>();
        let reach = size(elements);
        assert!(u16::try_from(reach).is_ok(), "a row's sum fits sixteen bits");
        let mut lines = Vec::with_capacity(elements.len() / PART * 4);
        for part in elements.chunks_exact(PART) {
            let groups = groups(part);
            assert!(groups.iter().all(|group| size(group) <= MOST), "four sums fit a byte");
            if level == Level::Avx512 {
                for group in groups {
                    let mut line = Line([0; 64]);
                    subsets(&group, &mut line.0);
                    lines.push(line);
                }
            } else {
                for byte in part.chunks_exact(8) {
                    // each half twice: a lookup of AVX2's stays within sixteen bytes
                    let mut line = Line([0; 64]);
                    for (half, table) in byte.chunks_exact(4).zip(line.0.chunks_exact_mut(32)) {
                        subsets(half, &mut table[..16]);
                        table.copy_within(..16, 16);
                    }
                    lines.push(line);
                }
            }
        }
        Self { lines, bytes: elements.len() / 8, reach, level }
    }

    /// Bytes of a code.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The sum of all elements' sizes; a row's sum is at most that.
    pub fn reach(&self) -> u32 {
        self.reach
    }

    /// The instruction set that they are for.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Four lines per three bytes for AVX-512, else a line per byte.
    pub(super) fn lines(&self) -> &[Line] {
        &self.lines
    }
}
