//! The rows that codes rate best, of which only the positions matter in the end.

use std::sync::atomic::{AtomicU64, Ordering};

/// Keeps the `k` rows of the highest estimates; of equal ones those that come first.
pub struct Candidates {
    k: usize,
    /// The estimate in the order of whole numbers above the position's complement: the greater the better.
    keys: Vec<u64>,
    /// No lesser key can still be among the best k.
    floor: u64,
}

fn key(estimate: f32, position: u32) -> u64 {
    // adding zero turns -0 into 0: they are equal
    let bits = (estimate + 0.0).to_bits();
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!position)
}

impl Candidates {
    /// A collector of the best `k`.
    pub fn new(k: usize) -> Self {
        Self { k, keys: Vec::with_capacity(2 * k), floor: key(f32::NEG_INFINITY, u32::MAX) }
    }

    /// Below this estimate no row is kept any more.
    pub fn floor(&self) -> f32 {
        let ordered = (self.floor >> 32) as u32;
        f32::from_bits(if ordered >> 31 == 1 { ordered & !(1 << 31) } else { !ordered })
    }

    /// Learns what collectors of other rows have found, and tells them what this one has.
    pub fn share(&mut self, floor: &AtomicU64) {
        self.floor = self.floor.max(floor.fetch_max(self.floor, Ordering::Relaxed));
    }

    /// Offers the rows from `first` on whose bits are set in `reached`; their estimates are numbers.
    pub fn offer(&mut self, first: u32, mut reached: u64, estimates: &[f32; 64]) {
        while reached != 0 {
            let row = reached.trailing_zeros();
            self.push(key(estimates[row as usize], first + row));
            reached &= reached - 1;
        }
    }

    fn push(&mut self, key: u64) {
        if key < self.floor || self.k == 0 {
            return;
        }
        self.keys.push(key);
        if self.keys.len() >= 2 * self.k {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if self.keys.len() > self.k {
            let (_, least, _) = self.keys.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
            self.floor = *least;
            self.keys.truncate(self.k);
        }
    }

    /// Takes in another collector's rows.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        for key in other.keys {
            self.push(key);
        }
        self
    }

    /// The best k's positions, rising.
    pub fn positions(mut self) -> Vec<u32> {
        self.shrink();
        let mut positions: Vec<u32> = self.keys.into_iter().map(|key| !(key as u32)).collect();
        positions.sort_unstable();
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_sorting(
            values in prop::collection::vec(prop_oneof![-3f32..3.0, Just(0.0), Just(-0.0), Just(1.0), Just(f32::NEG_INFINITY)], 0..700),
            k in 0usize..40, cut in 0usize..700, shared in any::<bool>(),
        ) {
            let mut expected: Vec<u32> = (0..values.len() as u32).collect();
            expected.sort_by(|a, b| (values[*b as usize] + 0.0).total_cmp(&(values[*a as usize] + 0.0)).then(a.cmp(b)));
            expected.truncate(k);
            expected.sort_unstable();
            let floor = AtomicU64::new(0);
            let (mut a, mut b) = (Candidates::new(k), Candidates::new(k));
            for (block, part) in values.chunks(64).enumerate() {
                let side = if block * 64 < cut { &mut a } else { &mut b };
                if shared {
                    side.share(&floor);
                }
                let mut estimates = [f32::NAN; 64];
                estimates[..part.len()].copy_from_slice(part);
                let low = side.floor();
                let reached = (0..64).filter(|row| estimates[*row] >= low).fold(0, |all, row| all | 1 << row);
                side.offer(64 * block as u32, reached, &estimates);
            }
            prop_assert_eq!(b.merge(a).positions(), expected);
        }
    }
}
