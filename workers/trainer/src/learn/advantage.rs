//! Advantage estimators.

use s3_config::{AlgorithmConfig, Estimator};

/// What one scored episode brings to a policy update.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EpisodeReturn {
    /// Index of its question in the round: samples of one question form a group.
    pub question: usize,
    /// The reward, given at the last token.
    pub reward: f64,
    /// Tokens: the action tokens (under `compatibility: S3` all tokens of the response).
    pub tokens: usize,
    /// Added to the reward at each token: the KL penalty, when it is taken in the reward.
    pub penalties: Option<Vec<f64>>,
    /// The critic's value before each token, for PPO.
    pub values: Option<Vec<f32>>,
    /// Whether the last of the tokens stands for what follows the response: the critic learns that nothing comes
    /// after it, but it has no reward and counts in no mean (`compatibility: S3`).
    pub after: bool,
}

impl EpisodeReturn {
    /// The reward of one token.
    fn at(&self, token: usize) -> f64 {
        let penalty = self.penalties.as_ref().map_or(0.0, |penalties| penalties[token]);
        if token + 1 == self.tokens - usize::from(self.after) { self.reward + penalty } else { penalty }
    }

    /// The undiscounted sum of the tokens' rewards.
    fn score(&self) -> f64 {
        self.reward + self.penalties.as_ref().map_or(0.0, |penalties| penalties.iter().sum())
    }
}

/// Per episode and token.
#[derive(Clone, Debug, PartialEq)]
pub struct Advantages {
    /// Multiplies the policy gradient.
    pub advantage: Vec<Vec<f32>>,
    /// The critic's target, for PPO.
    pub returns: Option<Vec<Vec<f32>>>,
}

/// Advantages of a round by the configured estimator.
///
/// Group estimators (all but PPO, REINFORCE and REINFORCE++) do not change when a constant is added to every
/// reward of a question: the baseline term of GBR cancels there, and matters through filtering, evaluation and
/// PPO's critic.
pub fn advantages(config: &AlgorithmConfig, episodes: &[EpisodeReturn]) -> Advantages {
    match config.estimator {
        Estimator::Ppo => gae(config, episodes),
        Estimator::Rloo => broadcast(episodes, &leave_one_out(episodes)),
        Estimator::Grpo => broadcast(episodes, &group_centred(episodes, true)),
        Estimator::DrGrpo => broadcast(episodes, &group_centred(episodes, false)),
        Estimator::Opo => broadcast(episodes, &length_weighted(episodes)),
        Estimator::Reinforce => broadcast(episodes, &batch_centred(episodes)),
        Estimator::ReinforcePlusPlus => whitened(&discounted(config, episodes)),
        Estimator::ReinforcePlusPlusBaseline => {
            let scalars = group_centred(episodes, false);
            let rows: Vec<Vec<f64>> =
                episodes.iter().zip(scalars).map(|(episode, value)| vec![value; episode.tokens]).collect();
            whitened(&rows)
        }
    }
}

/// Per episode: whether all samples of its question got the same reward, so that the group teaches nothing
/// (DAPO's dynamic sampling, arXiv 2503.14476, as a filter). A group of one has no variance.
pub fn zero_variance(questions: &[usize], rewards: &[f64]) -> Vec<bool> {
    let mut range: std::collections::BTreeMap<usize, (f64, f64)> = std::collections::BTreeMap::new();
    for (question, reward) in questions.iter().zip(rewards) {
        let (low, high) = range.entry(*question).or_insert((*reward, *reward));
        *low = low.min(*reward);
        *high = high.max(*reward);
    }
    questions.iter().map(|question| range.get(question).is_none_or(|(low, high)| high <= low)).collect()
}

fn broadcast(episodes: &[EpisodeReturn], scalars: &[f64]) -> Advantages {
    let advantage = episodes.iter().zip(scalars).map(|(episode, value)| vec![*value as f32; episode.tokens]).collect();
    Advantages { advantage, returns: None }
}

/// The episodes of an episode's group, itself included, in round order.
fn group(episodes: &[EpisodeReturn], question: usize) -> impl Iterator<Item = &EpisodeReturn> {
    episodes.iter().filter(move |episode| episode.question == question)
}

/// r − mean of the group's other rewards (Ahmadian 2024, arXiv 2402.14740). A group of one has no
/// baseline and teaches nothing: 0.
fn leave_one_out(episodes: &[EpisodeReturn]) -> Vec<f64> {
    episodes
        .iter()
        .map(|episode| {
            let count = group(episodes, episode.question).count() as f64;
            let sum: f64 = group(episodes, episode.question).map(EpisodeReturn::score).sum();
            let own = episode.score();
            if count < 2.0 { 0.0 } else { own - (sum - own) / (count - 1.0) }
        })
        .collect()
}

/// r − mean, divided when `scaled` by the standard deviation with Bessel's correction + 1e-6 (Shao 2024, arXiv
/// 2402.03300); unscaled: Liu 2025, arXiv 2503.20783. A group of one keeps its reward, as the public trainers do.
fn group_centred(episodes: &[EpisodeReturn], scaled: bool) -> Vec<f64> {
    episodes
        .iter()
        .map(|episode| {
            let rewards: Vec<f64> = group(episodes, episode.question).map(EpisodeReturn::score).collect();
            if rewards.len() < 2 {
                // (r − 0) / (1 + 1e-6) there
                return if scaled { episode.score() / (1.0 + 1e-6) } else { episode.score() };
            }
            let mean = rewards.iter().sum::<f64>() / rewards.len() as f64;
            let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (rewards.len() - 1) as f64;
            (episode.score() - mean) / if scaled { variance.sqrt() + 1e-6 } else { 1.0 }
        })
        .collect()
}

/// r − Σ length·r / Σ length over the group: the variance-optimal baseline under the assumption that a gradient's
/// squared norm grows with length (Hao 2025, arXiv 2505.23585). A group of one keeps its reward.
fn length_weighted(episodes: &[EpisodeReturn]) -> Vec<f64> {
    episodes
        .iter()
        .map(|episode| {
            if group(episodes, episode.question).count() < 2 {
                return episode.score();
            }
            let length: f64 = group(episodes, episode.question).map(|e| e.tokens as f64).sum();
            let sum: f64 = group(episodes, episode.question).map(|e| e.tokens as f64 * e.score()).sum();
            episode.score() - sum / length.max(1.0)
        })
        .collect()
}

/// r − mean of the round (Williams 1992).
fn batch_centred(episodes: &[EpisodeReturn]) -> Vec<f64> {
    let mean = episodes.iter().map(EpisodeReturn::score).sum::<f64>() / episodes.len().max(1) as f64;
    episodes.iter().map(|e| e.score() - mean).collect()
}

/// Discounted sum of the rewards from each token on (Hu 2025, arXiv 2501.03262).
fn discounted(config: &AlgorithmConfig, episodes: &[EpisodeReturn]) -> Vec<Vec<f64>> {
    let run = |episode: &EpisodeReturn| {
        let mut sums = vec![0.0; episode.tokens];
        let mut next = 0.0;
        for t in (0..episode.tokens).rev() {
            next = episode.at(t) + config.gamma * next;
            sums[t] = next;
        }
        sums
    };
    episodes.iter().map(run).collect()
}

/// To mean 0 and variance 1 (Bessel's correction) over the round's tokens.
fn whitened(rows: &[Vec<f64>]) -> Advantages {
    let all: Vec<f64> = rows.iter().flatten().copied().collect();
    let count = all.len() as f64;
    let mean = all.iter().sum::<f64>() / count.max(1.0);
    let variance = all.iter().map(|a| (a - mean).powi(2)).sum::<f64>() / (count - 1.0).max(1.0);
    let scale = 1.0 / (variance + 1e-8).sqrt();
    let advantage = rows.iter().map(|row| row.iter().map(|a| ((a - mean) * scale) as f32).collect()).collect();
    Advantages { advantage, returns: None }
}

/// Generalised advantage estimation over the given tokens (Schulman 2016, arXiv 1506.02438), whitened over the
/// round's tokens; returns are taken before whitening. What follows a response has a return, but no advantage.
fn gae(config: &AlgorithmConfig, episodes: &[EpisodeReturn]) -> Advantages {
    let mut raw: Vec<Vec<f64>> = Vec::with_capacity(episodes.len());
    let mut returns = Vec::with_capacity(episodes.len());
    for episode in episodes {
        let zeros = vec![0.0; episode.tokens];
        let values = episode.values.as_ref().unwrap_or(&zeros);
        let mut advantage = vec![0.0; episode.tokens];
        let (mut next, mut next_value) = (0.0, 0.0);
        for t in (0..episode.tokens).rev() {
            let value = f64::from(values[t]);
            next = episode.at(t) + config.gamma * next_value - value + config.gamma * config.lambda * next;
            next_value = value;
            advantage[t] = next;
        }
        returns.push(advantage.iter().zip(values).map(|(a, v)| (a + f64::from(*v)) as f32).collect());
        advantage.truncate(episode.tokens - usize::from(episode.after));
        raw.push(advantage);
    }
    Advantages { returns: Some(returns), ..whitened(&raw) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn episodes(rewards: &[(usize, f64)]) -> Vec<EpisodeReturn> {
        rewards
            .iter()
            .map(|&(question, reward)| EpisodeReturn { question, reward, tokens: 2, ..EpisodeReturn::default() })
            .collect()
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
        let episode =
            EpisodeReturn { reward: 1.0, tokens: 2, values: Some(vec![0.5, 0.25]), ..EpisodeReturn::default() };
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
            for estimator in [
                Estimator::Rloo,
                Estimator::Grpo,
                Estimator::DrGrpo,
                Estimator::Opo,
            ] {
                for ((a, b), (q, _)) in first(estimator, &plain).iter().zip(first(estimator, &shifted)).zip(&plain) {
                    prop_assert!(counts(*q) < 2 || (a - b).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn a_constant_per_question_cancels_before_whitening_too() {
        let plain = [(0, 1.0), (0, 0.0), (1, 0.0), (1, 1.0), (1, 1.0)];
        let shifted: Vec<(usize, f64)> = plain.iter().map(|&(q, r)| (q, r - 1.0 + 3.0 * q as f64)).collect();
        let of = |rewards| first(Estimator::ReinforcePlusPlusBaseline, rewards);
        for (a, b) in of(&plain).iter().zip(of(&shifted)) {
            assert!((a - b).abs() < 1e-6);
        }
    }

    /// All outcomes of three samples from a bandit with three arms, each with its probability: the expected
    /// gradient is exact, no sampling error hides a bias.
    #[test]
    fn the_expected_gradient_of_a_bandit_is_the_analytic_one() {
        let (probability, reward) = ([0.5, 0.3, 0.2], [1.0, 0.0, -0.5]);
        let mean: f64 = (0..3).map(|arm| probability[arm] * reward[arm]).sum();
        // centring by a mean that holds the own sample scales the gradient by (n − 1)/n
        let cases = [
            (Estimator::Rloo, 1.0),
            (Estimator::DrGrpo, 2.0 / 3.0),
            (Estimator::Opo, 2.0 / 3.0),
            (Estimator::Reinforce, 2.0 / 3.0),
        ];
        for (estimator, scale) in cases {
            let mut gradient = [0.0; 3];
            for outcome in 0..27usize {
                let arms = [outcome % 3, outcome / 3 % 3, outcome / 9];
                let weight: f64 = arms.iter().map(|arm| probability[*arm]).product();
                let rewards: Vec<(usize, f64)> = arms.iter().map(|arm| (0, reward[*arm])).collect();
                for (advantage, arm) in first(estimator, &rewards).iter().zip(arms) {
                    for (logit, slope) in gradient.iter_mut().enumerate() {
                        let indicator = f64::from(u8::from(logit == arm));
                        *slope += weight * f64::from(*advantage) * (indicator - probability[logit]) / 3.0;
                    }
                }
            }
            for arm in 0..3 {
                let analytic = scale * probability[arm] * (reward[arm] - mean);
                assert!((gradient[arm] - analytic).abs() < 1e-6, "{estimator:?}: {gradient:?}");
            }
        }
    }

    #[test]
    fn a_group_without_variance_is_seen() {
        assert_eq!(zero_variance(&[0, 0, 1, 1, 2], &[1.0, 1.0, 0.0, 1.0, 5.0]), [true, true, false, false, true]);
    }

    #[test]
    fn penalties_are_rewards_of_their_tokens() {
        let episode =
            EpisodeReturn { reward: 1.0, tokens: 2, penalties: Some(vec![-0.25, -0.5]), ..EpisodeReturn::default() };
        let config = AlgorithmConfig { gamma: 0.5, ..AlgorithmConfig::default() };
        assert_eq!(discounted(&config, std::slice::from_ref(&episode)), [vec![0.0, 0.5]]);
        assert!((episode.score() - 0.25).abs() < 1e-12);
    }
}
