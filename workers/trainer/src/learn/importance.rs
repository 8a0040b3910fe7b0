//! Weights for rollouts whose log-probabilities are not the trainer's: an older policy sampled them, or another
//! numerics computed them.

use s3_config::{ImportanceConfig, ImportanceCorrection};

/// Log ratios are held to this before they are exponentiated, as the public trainers do.
const LIMIT: f64 = 20.0;

/// See [`importance`].
#[derive(Clone, Debug, PartialEq)]
pub struct Importance {
    /// Multiplies the policy loss of each token; a constant, never differentiated.
    pub weight: Vec<Vec<f32>>,
    /// Whether the episode stays in the batch.
    pub keep: Vec<bool>,
}

/// Importance weights π(trainer) / π(rollout) per episode, from log-probabilities of the same policy's action
/// tokens as the trainer computes them before an update and as they were at sampling.
///
/// Truncated token and sequence weights: Ionides 2008, as used for mismatched rollouts (Yao 2025). Masked tokens:
/// `IcePop` (Ling team 2025). Masked sequences: the geometric mean of an episode's ratios must lie in floor…cap.
pub fn importance(config: &ImportanceConfig, trainer: &[&[f32]], rollout: &[&[f32]]) -> Importance {
    let log_ratios = trainer.iter().zip(rollout).map(|(new, old)| -> Vec<f64> {
        new.iter().zip(*old).map(|(new, old)| f64::from(*new) - f64::from(*old)).collect()
    });
    let mut out = Importance { weight: Vec::with_capacity(trainer.len()), keep: Vec::with_capacity(trainer.len()) };
    let ratio = |x: f64| x.clamp(-LIMIT, LIMIT).exp();
    let inside = |ratio: f64| (config.floor..=config.cap).contains(&ratio);
    for episode in log_ratios {
        let sum: f64 = episode.iter().sum();
        let mean = sum / episode.len().max(1) as f64;
        let weight = |x: &f64| match config.correction {
            ImportanceCorrection::None | ImportanceCorrection::SequenceMasked => 1.0,
            ImportanceCorrection::TokenTruncated => ratio(*x).min(config.cap),
            ImportanceCorrection::SequenceTruncated => ratio(sum).min(config.cap),
            ImportanceCorrection::TokenMasked => Some(ratio(*x)).filter(|r| inside(*r)).unwrap_or(0.0),
        };
        out.weight.push(episode.iter().map(|x| weight(x) as f32).collect());
        out.keep.push(config.correction != ImportanceCorrection::SequenceMasked || inside(ratio(mean)));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)]
    use super::*;

    fn of(correction: ImportanceCorrection) -> Importance {
        let config = ImportanceConfig { correction, cap: 2.0, floor: 0.5 };
        let ln = |ratios: &[f32]| ratios.iter().map(|r| r.ln()).collect::<Vec<f32>>();
        let (a, b) = (ln(&[1.0, 3.9]), ln(&[0.25, 0.25]));
        importance(&config, &[&a, &b], &[&[0.0, 0.0], &[0.0, 0.0]])
    }

    #[test]
    fn by_hand() {
        let close = |got: Importance, want: [[f32; 2]; 2], keep: [bool; 2]| {
            for (got, want) in got.weight.iter().flatten().zip(want.iter().flatten()) {
                assert!((got - want).abs() < 1e-6, "{got} {want}");
            }
            assert_eq!(got.keep, keep);
        };
        close(of(ImportanceCorrection::None), [[1.0, 1.0], [1.0, 1.0]], [true, true]);
        close(of(ImportanceCorrection::TokenTruncated), [[1.0, 2.0], [0.25, 0.25]], [true, true]);
        close(of(ImportanceCorrection::SequenceTruncated), [[2.0, 2.0], [0.0625, 0.0625]], [true, true]);
        close(of(ImportanceCorrection::TokenMasked), [[1.0, 0.0], [0.0, 0.0]], [true, true]);
        // geometric means just below 2, and 1/4
        close(of(ImportanceCorrection::SequenceMasked), [[1.0, 1.0], [1.0, 1.0]], [true, false]);
    }

    #[test]
    fn on_policy_nothing_changes() {
        for correction in [
            ImportanceCorrection::TokenTruncated,
            ImportanceCorrection::SequenceTruncated,
            ImportanceCorrection::TokenMasked,
            ImportanceCorrection::SequenceMasked,
        ] {
            let config = ImportanceConfig { correction, ..ImportanceConfig::default() };
            let result = importance(&config, &[&[-1.0, -2.0]], &[&[-1.0, -2.0]]);
            assert_eq!(result, Importance { weight: vec![vec![1.0, 1.0]], keep: vec![true] });
        }
    }
}
