//! From token losses to one number.

use s3_config::{Aggregation, AlgorithmConfig};

/// Each token's weight so that micro-batches of one optimiser batch add up to the configured mean.
///
/// `lengths` are the action tokens of every episode of the optimiser batch; an episode of length 0 (masked, or
/// filtered out) counts nowhere. Token mean: DAPO (arXiv 2503.14476). Sequence mean: GRPO (arXiv 2402.03300).
/// Sequence sum over a constant horizon: Dr. GRPO (arXiv 2503.20783).
pub fn token_weights(config: &AlgorithmConfig, lengths: &[usize]) -> Vec<Vec<f64>> {
    let tokens = lengths.iter().sum::<usize>().max(1) as f64;
    let sequences = lengths.iter().filter(|n| **n > 0).count().max(1) as f64;
    lengths
        .iter()
        .map(|&length| {
            let weight = match config.aggregation {
                Aggregation::TokenMean => 1.0 / tokens,
                Aggregation::SequenceMean => 1.0 / (sequences * length.max(1) as f64),
                Aggregation::SequenceSum => 1.0 / (sequences * f64::from(config.horizon.max(1))),
            };
            vec![weight; length]
        })
        .collect()
}

/// As [`token_weights`], each `micro` episodes a batch of their own, and the mean of those: what a trainer does that
/// takes the mean of every backward pass and divides by their number. Equal to the mean over all tokens only where
/// the passes have equally many.
pub fn micro_weights(config: &AlgorithmConfig, lengths: &[usize], micro: usize) -> Vec<Vec<f64>> {
    let micro = micro.max(1);
    let passes = lengths.len().div_ceil(micro).max(1) as f64;
    let mut weights: Vec<Vec<f64>> = lengths.chunks(micro).flat_map(|part| token_weights(config, part)).collect();
    weights.iter_mut().flatten().for_each(|weight| *weight /= passes);
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn means_sum_to_one(lengths in prop::collection::vec(0usize..9, 1..9)) {
            prop_assume!(lengths.iter().any(|n| *n > 0));
            for aggregation in [Aggregation::TokenMean, Aggregation::SequenceMean] {
                let config = AlgorithmConfig { aggregation, ..AlgorithmConfig::default() };
                let sum: f64 = token_weights(&config, &lengths).iter().flatten().sum();
                prop_assert!((sum - 1.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn a_sum_over_a_horizon_does_not_favour_short_episodes() {
        let config =
            AlgorithmConfig { aggregation: Aggregation::SequenceSum, horizon: 10, ..AlgorithmConfig::default() };
        let weights = token_weights(&config, &[2, 0, 5]);
        assert_eq!(weights, [vec![0.05; 2], vec![], vec![0.05; 5]]);
    }
}
