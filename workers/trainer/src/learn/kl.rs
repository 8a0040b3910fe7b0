//! KL divergence between two policies from log-probabilities of sampled tokens (Schulman 2020,
//! "Approximating KL divergence").

use s3_config::KlKind;

/// The penalty for one token, nats, and its derivative by the new log-probability.
///
/// `logprob` is the learning policy's, `reference` the fixed one's. For k3 the log ratio is held to ±20 before it
/// is exponentiated and the penalty to 10, as the public trainers do.
pub fn kl_term(kind: KlKind, logprob: f32, reference: f32) -> (f64, f64) {
    let difference = f64::from(logprob) - f64::from(reference);
    match kind {
        KlKind::K1 => (difference, 1.0),
        KlKind::K2 => (0.5 * difference * difference, difference),
        KlKind::K3 => {
            let x = (-difference).clamp(-20.0, 20.0);
            let value = x.exp() - x - 1.0;
            let slope = if difference.abs() <= 20.0 && value <= 10.0 { 1.0 - x.exp() } else { 0.0 };
            (value.min(10.0), slope)
        }
    }
}

/// The penalty as a part of each action token's reward: −coefficient · KL estimate of the policy that sampled
/// (Ziegler 2019, arXiv 1909.08593; the s3 reference: k1, 0.001).
pub fn kl_penalties(kind: KlKind, coefficient: f64, sampled: &[f32], reference: &[f32]) -> Vec<f64> {
    sampled.iter().zip(reference).map(|(old, fixed)| -coefficient * kl_term(kind, *old, *fixed).0).collect()
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
            for (a, b) in [(-1.0f32, -1.5f32), (-2.0, -0.25), (-0.5, -0.5), (-9.0, -0.5)] {
                let h = 1e-3f32;
                let numeric = (kl_term(kind, a + h, b).0 - kl_term(kind, a - h, b).0) / (2.0 * f64::from(h));
                assert!((numeric - kl_term(kind, a, b).1).abs() < 1e-2, "{kind:?} {a} {b}");
            }
        }
        assert!(mismatch_kl(&[-1.0, -2.0], &[-1.0, -2.0]).abs() < 1e-12);
    }

    #[test]
    fn a_penalty_pulls_towards_the_reference() {
        let penalties = kl_penalties(KlKind::K1, 0.5, &[-1.0, -3.0], &[-2.0, -2.0]);
        assert!((penalties[0] + 0.5).abs() < 1e-9 && (penalties[1] - 0.5).abs() < 1e-9);
    }
}
