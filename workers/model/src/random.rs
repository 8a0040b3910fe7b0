//! Counter-based randomness: a number depends on its key and index only, never on what was drawn
//! before, so results do not change with batching, resume or thread count.

use candle_core::{Device, Tensor};
use sha2::{Digest, Sha256};

use crate::error::Result;

/// `SplitMix64`'s finaliser: a bijection that mixes every bit.
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// A 64-bit key of a seed and a text.
pub(crate) fn key(seed: u64, text: &str) -> u64 {
    let digest = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(text.as_bytes()).finalize();
    let mut bytes = [0u8; 8];
    bytes.copy_from_slice(&digest[..8]);
    u64::from_le_bytes(bytes)
}

/// A uniform number in [0, 1) with 53 random bits.
pub(crate) fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// A stream of uniform numbers.
pub(crate) struct Uniform {
    key: u64,
    count: u64,
}

impl Uniform {
    pub(crate) fn new(seed: u64, text: &str) -> Self {
        Self { key: key(seed, text), count: 0 }
    }
    pub(crate) fn next(&mut self) -> f64 {
        self.count += 1;
        unit(mix(self.key ^ mix(self.count)))
    }
}

/// A CPU tensor of normal numbers (Box-Muller in f64).
pub(crate) fn normal(uniform: &mut Uniform, shape: (usize, usize), std: f32) -> Result<Tensor> {
    let data: Vec<f32> = (0..shape.0 * shape.1)
        .map(|_| {
            let radius = (-2.0 * (1.0 - uniform.next()).ln()).sqrt();
            (radius * (std::f64::consts::TAU * uniform.next()).cos()) as f32 * std
        })
        .collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}
