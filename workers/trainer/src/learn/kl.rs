//! KL divergence between two policies from log-probabilities of sampled tokens (Schulman 2020,
//! "Approximating KL divergence").

use s3_config::KlKind;

/// The penalty for one token and its derivative by the new log-probability.
///
/// `logprob` is the learning policy's, `reference` the fixed one's. The log ratio is held to ±20 before it is
/// exponentiated, as the public trainers do.
pub fn kl_term(kind: KlKind, logprob: f32, reference: f32) -> (f64, f64) {
    let difference = f64::from(logprob) - f64::from(reference);
    match kind {
        KlKind::K1 => (difference, 1.0),
        KlKind::K2 => (0.5 * difference * difference, difference),
        KlKind::K3 => {
            let x = (-difference).clamp(-20.0, 20.0);
            let slope = if difference.abs() <= 20.0 { 1.0 - x.exp() } else { 0.0 };
            (x.exp() - x - 1.0, slope)
        }
    }
}

/// Mean k3 estimate of KL(rollout ‖ trainer) over tokens, nats: 0 when both compute the same numbers.
pub fn mismatch_kl(rollout: &[f32], trainer: &[f32]) -> f64 {
    let sum: f64 = rollout
        .iter()
        .zip(trainer)
        .map(|(old, new)| {
            let x = f64::from(*new) - f64::from(*old);
            x.clamp(-20.0, 20.0).exp() - x - 1.0
        })
        .sum();
    sum / rollout.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derivatives_match_finite_differences() {
        for kind in [KlKind::K1, KlKind::K2, KlKind::K3] {
            for (a, b) in [(-1.0f32, -1.5f32), (-2.0, -0.25), (-0.5, -0.5)] {
                let h = 1e-3f32;
                let numeric = (kl_term(kind, a + h, b).0 - kl_term(kind, a - h, b).0) / (2.0 * f64::from(h));
                assert!((numeric - kl_term(kind, a, b).1).abs() < 1e-3, "{kind:?} {a} {b}");
            }
        }
        assert!(mismatch_kl(&[-1.0, -2.0], &[-1.0, -2.0]).abs() < 1e-12);
    }
}
