//! Advantage estimators.

use s3_config::{AlgorithmConfig, Estimator};

/// What one scored episode brings to a policy update.
#[derive(Clone, Debug, PartialEq)]
pub struct EpisodeReturn {
    /// Index of its question in the round: samples of one question form a group.
    pub question: usize,
    /// The reward, given at the last action token.
    pub reward: f64,
    /// Action tokens.
    pub tokens: usize,
    /// The critic's value before each action token, for PPO.
    pub values: Option<Vec<f32>>,
}

/// Per episode and action token.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// Multiplies the policy gradient.
    pub advantage: Vec<Vec<f32>>,
    /// The critic's target, for PPO.
    pub returns: Option<Vec<Vec<f32>>>,
}

/// Advantages of a round by the configured estimator.
///
/// Group estimators (RLOO, GRPO) do not change when a constant is added to every reward of a question: the
/// baseline term of GBR cancels there, and matters through filtering, evaluation and PPO's critic.
pub fn advantages(config: &AlgorithmConfig, episodes: &[EpisodeReturn]) -> Advantages {
    match config.estimator {
        Estimator::Ppo => gae(config, episodes),
        Estimator::Rloo => broadcast(episodes, &leave_one_out(episodes)),
        Estimator::Grpo => broadcast(episodes, &group_normalised(episodes)),
        Estimator::Reinforce => broadcast(episodes, &batch_centred(episodes)),
    }
}

fn broadcast(episodes: &[EpisodeReturn], scalars: &[f64]) -> Advantages {
    let advantage = episodes.iter().zip(scalars).map(|(episode, value)| vec![*value as f32; episode.tokens]).collect();
    Advantages { advantage, returns: None }
}

/// Rewards of the other members of an episode's group, in round order.
fn group(episodes: &[EpisodeReturn], question: usize) -> impl Iterator<Item = f64> {
    episodes.iter().filter(move |episode| episode.question == question).map(|episode| episode.reward)
}

/// r − mean of the group's other rewards (Ahmadian 2024, arXiv 2402.14740). A group of one has no
/// baseline and teaches nothing: 0.
fn leave_one_out(episodes: &[EpisodeReturn]) -> Vec<f64> {
    episodes
        .iter()
        .map(|episode| {
            let count = group(episodes, episode.question).count() as f64;
            let sum: f64 = group(episodes, episode.question).sum();
            if count < 2.0 { 0.0 } else { episode.reward - (sum - episode.reward) / (count - 1.0) }
        })
        .collect()
}

/// (r − mean) / (standard deviation + 1e-6) with Bessel's correction (Shao 2024, arXiv 2402.03300). A group
/// of one keeps its reward, as the public trainers do.
fn group_normalised(episodes: &[EpisodeReturn]) -> Vec<f64> {
    episodes
        .iter()
        .map(|episode| {
            let rewards: Vec<f64> = group(episodes, episode.question).collect();
            if rewards.len() < 2 {
                return episode.reward;
            }
            let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
            let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (rewards.len() - 1) as f64;
            (episode.reward - mean) / (variance.sqrt() + 1e-6)
        })
        .collect()
}

/// r − mean of the round (Williams 1992).
fn batch_centred(episodes: &[EpisodeReturn]) -> Vec<f64> {
    let mean = episodes.iter().map(|e| e.reward).sum::<f64>() / episodes.len().max(1) as f64;
    episodes.iter().map(|e| e.reward - mean).collect()
}

/// Generalised advantage estimation over action tokens (Schulman 2016, arXiv 1506.02438), whitened over the
/// round's action tokens; returns are taken before whitening.
fn gae(config: &AlgorithmConfig, episodes: &[EpisodeReturn]) -> Advantages {
    let mut raw: Vec<Vec<f64>> = Vec::with_capacity(episodes.len());
    let mut returns = Vec::with_capacity(episodes.len());
    for episode in episodes {
        let zeros = vec![0.0; episode.tokens];
        let values = episode.values.as_ref().unwrap_or(&zeros);
        let mut advantage = vec![0.0; episode.tokens];
        let mut next = 0.0;
        for t in (0..episode.tokens).rev() {
            let last = t + 1 == episode.tokens;
            let reward = if last { episode.reward } else { 0.0 };
            let next_value = if last { 0.0 } else { f64::from(values[t + 1]) };
            let delta = reward + config.gamma * next_value - f64::from(values[t]);
            next = delta + config.gamma * config.lambda * next;
            advantage[t] = next;
        }
        returns.push(advantage.iter().zip(values).map(|(a, v)| (a + f64::from(*v)) as f32).collect());
        raw.push(advantage);
    }
    let all: Vec<f64> = raw.iter().flatten().copied().collect();
    let count = all.len() as f64;
    let mean = all.iter().sum::<f64>() / count.max(1.0);
    let variance = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let scale = 1.0 / (variance + 1e-8).sqrt();
    let advantage = raw.iter().map(|row| row.iter().map(|a| ((a - mean) * scale) as f32).collect()).collect();
    Advantages { advantage, returns: Some(returns) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn episodes(rewards: &[(usize, f64)]) -> Vec<EpisodeReturn> {
        rewards.iter().map(|&(question, reward)| EpisodeReturn { question, reward, tokens: 2, values: None }).collect()
    }

    fn first(estimator: Estimator, rewards: &[(usize, f64)]) -> Vec<f32> {
        let config = AlgorithmConfig { estimator, ..AlgorithmConfig::default() };
        advantages(&config, &episodes(rewards)).advantage.iter().map(|row| row[0]).collect()
    }

    #[test]
    fn hand_computed() {
        let rewards = [(0, 1.0), (0, 0.0), (0, 0.0), (0, 1.0), (1, 0.5)];
        let third: f64 = 1.0 / 3.0;
        assert_eq!(
            first(Estimator::Rloo, &rewards),
            [2.0 * third, -2.0 * third, -2.0 * third, 2.0 * third, 0.0].map(|x| x as f32)
        );
        let std = third.sqrt();
        let grpo = first(Estimator::Grpo, &rewards);
        for (got, want) in
            grpo.iter().zip([0.5 / (std + 1e-6), -0.5 / (std + 1e-6), -0.5 / (std + 1e-6), 0.5 / (std + 1e-6), 0.5])
        {
            assert!((f64::from(*got) - want).abs() < 1e-6);
        }
        assert_eq!(first(Estimator::Reinforce, &rewards), [0.5, -0.5, -0.5, 0.5, 0.0].map(|x: f64| x as f32));
    }

    #[test]
    fn gae_by_hand() {
        let config =
            AlgorithmConfig { estimator: Estimator::Ppo, gamma: 0.9, lambda: 0.8, ..AlgorithmConfig::default() };
        let episode = EpisodeReturn { question: 0, reward: 1.0, tokens: 2, values: Some(vec![0.5, 0.25]) };
        let result = advantages(&config, &[episode]);
        // delta1 = 1 - .25 = .75; delta0 = .9*.25 - .5 = -.275; a0 = -.275 + .72*.75 = .265
        let returns = result.returns.map(|rows| rows[0].clone()).unwrap_or_default();
        assert!((returns[0] - 0.765).abs() < 1e-6 && (returns[1] - 1.0).abs() < 1e-6);
        assert!((result.advantage[0][0] + result.advantage[0][1]).abs() < 1e-6, "whitened to mean 0");
        assert!((result.advantage[0][1] - std::f32::consts::FRAC_1_SQRT_2).abs() < 1e-4);
    }

    proptest! {
        #[test]
        fn a_constant_per_question_cancels(rewards in prop::collection::vec((0usize..4, 0u8..2), 2..24), shift in prop::array::uniform4(-2i8..3)) {
            let plain: Vec<_> = rewards.iter().map(|&(q, r)| (q, f64::from(r))).collect();
            let counts = |q| plain.iter().filter(|e| e.0 == q).count();
            let shifted: Vec<_> = plain.iter().map(|&(q, r)| (q, r + f64::from(shift[q]))).collect();
            for estimator in [Estimator::Rloo, Estimator::Grpo] {
                for ((a, b), (q, _)) in first(estimator, &plain).iter().zip(first(estimator, &shifted)).zip(&plain) {
                    prop_assert!(counts(*q) < 2 || (a - b).abs() < 1e-5);
                }
            }
        }
    }
}
