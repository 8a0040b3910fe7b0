//! Policy and value losses with their derivatives by log-probability, entropy and value.

use super::kl_term;
use s3_config::{Aggregation, AlgorithmConfig};

/// Action tokens of a micro-batch, flat, in episode then position order.
#[derive(Clone, Copy, Debug)]
pub struct TokenBatch<'a> {
    /// Log-probabilities under the learning policy.
    pub new: &'a [f32],
    /// Log-probabilities at sampling.
    pub old: &'a [f32],
    /// Log-probabilities under the reference policy, when a KL term is used.
    pub reference: Option<&'a [f32]>,
    /// Entropy of each token's distribution, nats.
    pub entropy: &'a [f32],
    /// Advantages.
    pub advantage: &'a [f32],
    /// Share of each token in the optimiser batch: see [`token_weights`].
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

/// Each token's weight so that micro-batches of one optimiser batch add up to the configured mean.
///
/// `lengths` are the action tokens of every episode of the optimiser batch.
pub fn token_weights(aggregation: Aggregation, lengths: &[usize]) -> Vec<Vec<f64>> {
    let tokens = lengths.iter().sum::<usize>().max(1) as f64;
    let sequences = lengths.iter().filter(|n| **n > 0).count().max(1) as f64;
    lengths
        .iter()
        .map(|&length| {
            let weight = match aggregation {
                Aggregation::TokenMean => 1.0 / tokens,
                Aggregation::SequenceMean => 1.0 / (sequences * length.max(1) as f64),
            };
            vec![weight; length]
        })
        .collect()
}

/// The clipped surrogate (Schulman 2017, arXiv 1707.06347; asymmetric range: DAPO, arXiv 2503.14476), an
/// optional KL term and an entropy bonus.
pub fn policy_loss(config: &AlgorithmConfig, batch: TokenBatch<'_>) -> PolicyLoss {
    let mut out = PolicyLoss::default();
    for t in 0..batch.new.len() {
        let (advantage, weight) = (f64::from(batch.advantage[t]), batch.weight[t]);
        let ratio = (f64::from(batch.new[t]) - f64::from(batch.old[t])).clamp(-20.0, 20.0).exp();
        let limited = ratio.clamp(1.0 - config.clip_low, 1.0 + config.clip_high);
        let (free, bounded) = (-advantage * ratio, -advantage * limited);
        // outside the range the bounded branch is constant
        let (value, mut slope) = if free >= bounded { (free, free) } else { (bounded, 0.0) };
        out.clipped += usize::from(free < bounded);
        let mut loss = value;
        if let Some(reference) = batch.reference {
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
    out
}

/// The critic's loss and derivative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValueLoss {
    /// The loss, summed over the micro-batch's weighted tokens.
    pub loss: f64,
    /// d loss / d value.
    pub d_value: Vec<f32>,
}

/// coefficient · max((v − R)², (clip(v, old ± range) − R)²), the reference's clipped value loss.
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
    use super::*;
    use proptest::prelude::*;

    fn loss_at(config: &AlgorithmConfig, new: &[f32], old: &[f32], reference: &[f32], advantage: &[f32]) -> PolicyLoss {
        let entropy = vec![1.0; new.len()];
        let weight = token_weights(config.aggregation, &[new.len()]).remove(0);
        let batch = TokenBatch { new, old, reference: Some(reference), entropy: &entropy, advantage, weight: &weight };
        policy_loss(config, batch)
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

        #[test]
        fn weights_sum_to_one(lengths in prop::collection::vec(0usize..9, 1..9)) {
            prop_assume!(lengths.iter().any(|n| *n > 0));
            for aggregation in [Aggregation::TokenMean, Aggregation::SequenceMean] {
                let sum: f64 = token_weights(aggregation, &lengths).iter().flatten().sum();
                prop_assert!((sum - 1.0).abs() < 1e-9);
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
