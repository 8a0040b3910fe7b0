//! Policy and value losses with their derivatives by log-probability, entropy and value.

use super::kl_term;
use s3_config::{AlgorithmConfig, KlPlacement, Surrogate};

/// Action tokens of a micro-batch, flat, in episode then position order.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    /// Action tokens of each episode; their sum is the length of every other field.
    pub lengths: &'a [usize],
    /// Log-probabilities under the learning policy.
    pub new: &'a [f32],
    /// Log-probabilities before the update: at sampling, or the trainer's own under importance correction.
    pub old: &'a [f32],
    /// Log-probabilities under the reference policy, when a KL term is in the loss.
    pub reference: Option<&'a [f32]>,
    /// Entropy of each token's distribution, nats.
    pub entropy: &'a [f32],
    /// Advantages.
    pub advantage: &'a [f32],
    /// Importance weights, when rollouts are corrected: see [`super::importance`].
    pub importance: Option<&'a [f32]>,
    /// Share of each token in the optimiser batch: see [`super::token_weights`].
    pub weight: &'a [f64],
}

/// A loss and what the model's backward pass needs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyLoss {
    /// The loss, summed over the micro-batch's weighted tokens.
    pub loss: f64,
    /// d loss / d log-probability.
    pub d_logprob: Vec<f32>,
    /// d loss / d entropy.
    pub d_entropy: Vec<f32>,
    /// Tokens whose ratio was clipped.
    pub clipped: usize,
    /// Σ weight · KL from the reference.
    pub kl: f64,
}

/// A token's surrogate: its value, its derivative by the token's log-probability, whether it was clipped.
type Term = (f64, f64, bool);

/// The configured surrogate, the KL term where it is in the loss, and an entropy bonus.
pub fn policy_loss(config: &AlgorithmConfig, batch: TokenBatch<'_>) -> PolicyLoss {
    let mut out = PolicyLoss::default();
    let log_ratio = |t: usize| f64::from(batch.new[t]) - f64::from(batch.old[t]);
    let mut start = 0;
    for &length in batch.lengths {
        let episode = start..start + length;
        start += length;
        let mean = episode.clone().map(log_ratio).sum::<f64>() / length.max(1) as f64;
        for t in episode {
            let (advantage, weight) = (f64::from(batch.advantage[t]), batch.weight[t]);
            let (value, slope, clipped) = match config.surrogate {
                Surrogate::Clip => clip(config, advantage, log_ratio(t)),
                Surrogate::SequenceClip => sequence_clip(config, advantage, mean),
                Surrogate::WeightClip => weight_clip(config, advantage, log_ratio(t), f64::from(batch.new[t])),
            };
            let correction = batch.importance.map_or(1.0, |weights| f64::from(weights[t]));
            let (mut loss, mut slope) = (correction * value, correction * slope);
            out.clipped += usize::from(clipped);
            if let (Some(reference), KlPlacement::Loss) = (batch.reference, config.kl_placement) {
                let (kl, kl_slope) = kl_term(config.kl, batch.new[t], reference[t]);
                loss += config.kl_coefficient * kl;
                slope += config.kl_coefficient * kl_slope;
                out.kl += weight * kl;
            }
            loss -= config.entropy_coefficient * f64::from(batch.entropy[t]);
            out.loss += weight * loss;
            out.d_logprob.push((weight * slope) as f32);
            out.d_entropy.push((-weight * config.entropy_coefficient) as f32);
        }
    }
    out
}

/// max(−A·r, −A·clip(r)) (Schulman 2017, arXiv 1707.06347; asymmetric range: DAPO, arXiv 2503.14476). With a
/// negative advantage at most −A·dual clip (Ye 2020, arXiv 1912.09729). The log ratio is held to ±20.
fn clip(config: &AlgorithmConfig, advantage: f64, log_ratio: f64) -> Term {
    let ratio = log_ratio.clamp(-20.0, 20.0).exp();
    let (free, bounded) = (-advantage * ratio, -advantage * range(config, ratio));
    // outside the range the bounded branch is constant
    let clipped = free < bounded;
    let (value, slope) =
        if clipped { (bounded, 0.0) } else { (free, if log_ratio.abs() <= 20.0 { free } else { 0.0 }) };
    let limit = -advantage * config.dual_clip;
    if config.dual_clip > 1.0 && advantage < 0.0 && value > limit {
        (limit, 0.0, true)
    } else {
        (value, slope, clipped)
    }
}

/// The same with one ratio an episode, exp(mean log ratio); each token carries its own derivative (GSPO-token,
/// Zheng 2025, arXiv 2507.18071). The mean log ratio is held to ≤ 10.
fn sequence_clip(config: &AlgorithmConfig, advantage: f64, mean: f64) -> Term {
    let ratio = mean.min(10.0).exp();
    let (free, bounded) = (-advantage * ratio, -advantage * range(config, ratio));
    if free < bounded { (bounded, 0.0, true) } else { (free, if mean <= 10.0 { free } else { 0.0 }, false) }
}

/// −clip(r)·A·log π, the clipped ratio a constant (`MiniMax` 2025, arXiv 2506.13585): no token loses its gradient.
fn weight_clip(config: &AlgorithmConfig, advantage: f64, log_ratio: f64, logprob: f64) -> Term {
    let ratio = log_ratio.clamp(-20.0, 20.0).exp();
    let limited = range(config, ratio);
    let slope = -limited * advantage;
    (slope * logprob, slope, (limited - ratio).abs() > 0.0)
}

fn range(config: &AlgorithmConfig, ratio: f64) -> f64 {
    ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high)
}

/// The critic's loss and derivative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValueLoss {
    /// The loss, summed over the micro-batch's weighted tokens.
    pub loss: f64,
    /// d loss / d value.
    pub d_value: Vec<f32>,
}

/// coefficient · max((v − R)², (clip(v, old ± range) − R)²): the clipped value loss of PPO's first code (Schulman
/// 2017), the s3 reference's with range 0.5 and coefficient 0.5.
pub fn value_loss(config: &AlgorithmConfig, value: &[f32], old: &[f32], returns: &[f32], weight: &[f64]) -> ValueLoss {
    let mut out = ValueLoss::default();
    for t in 0..value.len() {
        let (v, v0, target) = (f64::from(value[t]), f64::from(old[t]), f64::from(returns[t]));
        let limited = v.clamp(v0 - config.value_clip, v0 + config.value_clip);
        let (free, bounded) = ((v - target).powi(2), (limited - target).powi(2));
        let slope = if free >= bounded { 2.0 * (v - target) } else { 0.0 };
        out.loss += weight[t] * config.value_coefficient * free.max(bounded);
        out.d_value.push((weight[t] * config.value_coefficient * slope) as f32);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::token_weights;
    use super::*;
    use proptest::prelude::*;

    fn loss_at(config: &AlgorithmConfig, new: &[f32], old: &[f32], reference: &[f32], advantage: &[f32]) -> PolicyLoss {
        let entropy = vec![1.0; new.len()];
        let weight = token_weights(config, &[new.len()]).remove(0);
        let batch = TokenBatch {
            lengths: &[new.len()],
            new,
            old,
            reference: Some(reference),
            entropy: &entropy,
            advantage,
            importance: None,
            weight: &weight,
        };
        policy_loss(config, batch)
    }

    /// Golden values of another trainer's tests: ratios 2, 2, 1/2 against advantages 2, −2, 2.
    #[test]
    fn dual_clip_by_hand() {
        let config = AlgorithmConfig { dual_clip: 1.5, ..AlgorithmConfig::default() };
        let new = [2.0f32.ln(), 2.0f32.ln(), 0.5f32.ln()];
        let terms: Vec<f64> =
            (0..3).map(|t| loss_at(&config, &new[t..=t], &[0.0], &[0.0], &[[2.0, -2.0, 2.0][t]]).loss).collect();
        for (got, want) in terms.iter().zip([-2.4, 3.0, -1.0]) {
            assert!((got - want).abs() < 1e-6, "{terms:?}");
        }
    }

    #[test]
    fn weight_clipping_keeps_every_gradient() {
        let config = AlgorithmConfig { surrogate: Surrogate::WeightClip, ..AlgorithmConfig::default() };
        let result = loss_at(&config, &[0.5, -0.5], &[0.0, 0.0], &[0.5, -0.5], &[1.0, 1.0]);
        assert!((result.d_logprob[0] + 0.6).abs() < 1e-6 && (result.d_logprob[1] + 0.4).abs() < 1e-6);
        assert_eq!(result.clipped, 2);
    }

    #[test]
    fn on_policy_the_slope_is_minus_the_advantage() {
        let config = AlgorithmConfig::default();
        let result = loss_at(&config, &[-1.0, -2.0], &[-1.0, -2.0], &[-1.0, -2.0], &[1.0, -3.0]);
        assert_eq!(result.d_logprob, [-0.5, 1.5]);
        assert!((result.loss - 1.0).abs() < 1e-12);
    }

    #[test]
    fn clipping_stops_the_gradient_on_the_improving_side_only() {
        let config = AlgorithmConfig::default();
        let up = [0.5f32, -0.5];
        let result = loss_at(&config, &up, &[0.0, 0.0], &up, &[1.0, 1.0]);
        assert_eq!((result.d_logprob[0], result.clipped), (0.0, 1));
        assert!(result.d_logprob[1] < 0.0);
    }

    proptest! {
        #[test]
        fn gradients_match_finite_differences(
            tokens in prop::collection::vec((-3.0f32..-0.1, -0.4f32..0.4, -0.4f32..0.4, -2.0f32..2.0), 1..8),
            kl in 0.0f64..0.5,
        ) {
            let config = AlgorithmConfig { kl_coefficient: kl, entropy_coefficient: 0.01, ..AlgorithmConfig::default() };
            let new: Vec<f32> = tokens.iter().map(|t| t.0).collect();
            let old: Vec<f32> = tokens.iter().map(|t| t.0 + t.1).collect();
            let reference: Vec<f32> = tokens.iter().map(|t| t.0 + t.2).collect();
            let advantage: Vec<f32> = tokens.iter().map(|t| t.3).collect();
            let result = loss_at(&config, &new, &old, &reference, &advantage);
            for t in 0..new.len() {
                let ratio = (new[t] - old[t]).exp();
                prop_assume!((ratio - 0.8).abs() > 1e-2 && (ratio - 1.2).abs() > 1e-2);
                let h = 1e-3f32;
                let shifted = |s: f32| { let mut x = new.clone(); x[t] += s; loss_at(&config, &x, &old, &reference, &advantage).loss };
                let numeric = (shifted(h) - shifted(-h)) / (2.0 * f64::from(h));
                prop_assert!((numeric - f64::from(result.d_logprob[t])).abs() < 2e-3, "{numeric} {}", result.d_logprob[t]);
            }
        }
    }

    #[test]
    fn value_loss_by_hand() {
        let config = AlgorithmConfig::default();
        // free (1-0)²=1 against bounded (.5-0)²=.25: the larger counts
        let result = value_loss(&config, &[1.0], &[0.0], &[0.0], &[1.0]);
        assert!((result.loss - 0.5).abs() < 1e-12 && (result.d_value[0] - 1.0).abs() < 1e-6);
        // free (1-2)²=1 against bounded (.5-2)²=2.25: constant there
        let result = value_loss(&config, &[1.0], &[0.0], &[2.0], &[1.0]);
        assert!((result.loss - 1.125).abs() < 1e-12 && result.d_value[0] == 0.0);
    }
}
