//! Counter-based random numbers: the n-th draw of a stream is a pure function of (key, n).

/// One stream of draws.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream(u64);

impl Stream {
    /// The stream with this number under this seed.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        Self(mix(mix(seed ^ 0x5851_f42d_4c95_7f2d) ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// The `at`-th 64 bits.
    pub(super) fn bits(self, at: u64) -> u64 {
        mix(self.0.wrapping_add(at.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// The `at`-th index below `n` (multiply-shift; its bias is below n / 2^64).
    pub(super) fn below(self, at: u64, n: usize) -> usize {
        ((u128::from(self.bits(at)) * n as u128) >> 64) as usize
    }

    /// The `at`-th number in [0, 1).
    #[cfg(test)]
    pub(super) fn unit(self, at: u64) -> f64 {
        (self.bits(at) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// `SplitMix64`'s finaliser.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
