//! How an episode is rewarded and how the policy learns from it.

use serde::{Deserialize, Serialize};

/// The reward of one scored episode: a = searcher's passages right, z = baseline right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RewardKind {
    /// a − z, the paper's Gain Beyond RAG.
    #[default]
    GainBeyondRag,
    /// 2·a − z, what the reference's code trains on.
    ReferenceCode,
    /// a alone.
    GenerationAccuracy,
}

/// What an infrastructure failure does to a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailurePolicy {
    /// The sample leaves the batch; it is never a wrong answer.
    #[default]
    Mask,
}

/// Reward and its shaping. Shaping terms are added to the reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RewardConfig {
    /// See [`RewardKind`].
    pub kind: RewardKind,
    /// Added for each turn that could not be read (≤ 0).
    pub invalid_turn: f64,
    /// Added for each executed search (≤ 0).
    pub search_cost: f64,
    /// See [`FailurePolicy`].
    pub on_failure: FailurePolicy,
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self { kind: RewardKind::GainBeyondRag, invalid_turn: 0.0, search_cost: 0.0, on_failure: FailurePolicy::Mask }
    }
}

/// Advantage estimator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Estimator {
    /// Leave-one-out baseline over the samples of a question (arXiv 2402.14740).
    #[default]
    Rloo,
    /// Clipped surrogate with a critic and GAE over action tokens (arXiv 1707.06347).
    Ppo,
    /// Group mean and standard deviation (arXiv 2402.03300).
    Grpo,
    /// Batch-mean baseline (Williams 1992).
    Reinforce,
}

/// How token losses become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregation {
    /// Mean over the action tokens of the batch.
    #[default]
    TokenMean,
    /// Mean over episodes of the episode's token mean.
    SequenceMean,
}

/// Estimator of the KL divergence from the reference policy (Schulman 2020).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KlKind {
    /// log ratio.
    K1,
    /// half squared log ratio.
    K2,
    /// exp(−x) − 1 + x: unbiased and ≥ 0.
    #[default]
    K3,
}

/// Policy-gradient algorithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AlgorithmConfig {
    /// See [`Estimator`].
    pub estimator: Estimator,
    /// The ratio is clipped below at 1 − this.
    pub clip_low: f64,
    /// The ratio is clipped above at 1 + this.
    pub clip_high: f64,
    /// Coefficient of the KL term in the loss; 0 leaves it out.
    pub kl_coefficient: f64,
    /// See [`KlKind`].
    pub kl: KlKind,
    /// Coefficient of the entropy bonus.
    pub entropy_coefficient: f64,
    /// See [`Aggregation`].
    pub aggregation: Aggregation,
    /// GAE discount.
    pub gamma: f64,
    /// GAE lambda.
    pub lambda: f64,
    /// Clip range of the critic.
    pub value_clip: f64,
    /// Weight of the critic's loss.
    pub value_coefficient: f64,
    /// Passes over each batch.
    pub epochs: u32,
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        Self {
            estimator: Estimator::Rloo,
            clip_low: 0.2,
            clip_high: 0.2,
            kl_coefficient: 0.0,
            kl: KlKind::K3,
            entropy_coefficient: 0.0,
            aggregation: Aggregation::TokenMean,
            gamma: 1.0,
            lambda: 1.0,
            value_clip: 0.5,
            value_coefficient: 0.5,
            epochs: 1,
        }
    }
}

/// `AdamW` (arXiv 1711.05101) with global-norm clipping.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// First-moment decay.
    pub beta1: f64,
    /// Second-moment decay.
    pub beta2: f64,
    /// Denominator term.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    pub max_grad_norm: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            warmup_steps: 0,
        }
    }
}
