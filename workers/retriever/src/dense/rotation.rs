//! A fixed random rotation: signs and fast Hadamard transforms over overlapping parts.
//!
//! 1-bit codes keep of a vector only the side of every axis it lies on, so its length must be spread over
//! all axes. Encoders do not do that; a random rotation does, whatever they do (Johnson and Lindenstrauss
//! 1984; Gao and Long 2024 for these codes). Nothing of it is stored: it follows from the dimensions.

/// Rounds of signs and transforms.
const ROUNDS: usize = 4;

/// A rotation of vectors of one length.
pub struct Rotation {
    /// Per round and element, 1 or -1.
    signs: Vec<f32>,
    dimensions: usize,
    /// The largest power of two that fits.
    part: usize,
}

fn mix(mut x: u64) -> u64 {
    // splitmix64
    x = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Rotation {
    /// The rotation for vectors of `dimensions` elements, at least one.
    pub fn new(dimensions: usize) -> Self {
        let sign = |at: usize| if mix(at as u64) & 1 == 0 { 1.0 } else { -1.0 };
        let signs = (0..ROUNDS * dimensions).map(sign).collect();
        Self { signs, dimensions, part: 1 << dimensions.ilog2() }
    }

    /// Rotates one vector in place.
    pub fn apply(&self, vector: &mut [f32]) {
        for (round, signs) in self.signs.chunks_exact(self.dimensions).enumerate() {
            for (x, sign) in vector.iter_mut().zip(signs) {
                *x *= sign;
            }
            // the front, then the back: they overlap, so everything reaches everything
            let start = if round % 2 == 0 { 0 } else { self.dimensions - self.part };
            hadamard(&mut vector[start..start + self.part]);
        }
    }
}

fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    for x in x {
        *x *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_angles_stay_and_spikes_spread() {
        for d in [1, 2, 5, 32, 50, 384, 768] {
            let rotation = Rotation::new(d);
            let mut rows: Vec<Vec<f32>> = vec![
                (0..d).map(|at| f32::from(u8::from(at == d / 3))).collect(),
                (0..d).map(|at| (mix(at as u64 + 99) >> 40) as f32 / (1 << 24) as f32 - 0.5).collect(),
            ];
            let dot =
                |rows: &[Vec<f32>], a: usize, b: usize| rows[a].iter().zip(&rows[b]).map(|(x, y)| x * y).sum::<f32>();
            let before: Vec<f32> = [(0, 0), (0, 1), (1, 1)].map(|(a, b)| dot(&rows, a, b)).to_vec();
            rows.iter_mut().for_each(|row| rotation.apply(row));
            let after: Vec<f32> = [(0, 0), (0, 1), (1, 1)].map(|(a, b)| dot(&rows, a, b)).to_vec();
            for (a, b) in before.iter().zip(&after) {
                assert!((a - b).abs() < 1e-4 * (1.0 + a.abs()), "{d}: {before:?} {after:?}");
            }
            if d >= 384 {
                let largest = rows[0].iter().fold(0f32, |top, x| top.max(x.abs()));
                assert!(largest < 6.0 / (d as f32).sqrt(), "{d}: {largest}");
            }
        }
    }
}
