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
    /// The process ends; whoever supervises it decides.
    Fail,
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
    /// Search-R1's: of an answer of one's own that is wrong.
    #[serde(skip_serializing_if = "is_zero")]
    pub format_score: f64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's shape
fn is_zero(value: &f64) -> bool {
    value.abs() <= 0.0
}

impl Default for RewardConfig {
    fn default() -> Self {
        Self {
            kind: RewardKind::GainBeyondRag,
            invalid_turn: 0.0,
            search_cost: 0.0,
            on_failure: FailurePolicy::Mask,
            format_score: 0.0,
        }
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
    /// Discounted returns over action tokens, whitened over the batch (arXiv 2501.03262).
    ReinforcePlusPlus,
    /// Group mean, then whitened over the batch (arXiv 2501.03262).
    ReinforcePlusPlusBaseline,
    /// Group mean without the standard deviation (arXiv 2503.20783).
    DrGrpo,
    /// Length-weighted group mean, the optimal reward baseline (arXiv 2505.23585).
    Opo,
}

impl Estimator {
    /// Whether it compares the samples of a question, so that one sample alone teaches nothing useful.
    pub const fn needs_group(self) -> bool {
        matches!(self, Self::Rloo | Self::Grpo | Self::ReinforcePlusPlusBaseline | Self::DrGrpo | Self::Opo)
    }
}

/// What the policy's loss is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Surrogate {
    /// Clipped token ratios (arXiv 1707.06347).
    #[default]
    Clip,
    /// One clipped ratio an episode, the geometric mean of its tokens' (GSPO, arXiv 2507.18071).
    SequenceClip,
    /// log π weighted by the clipped ratio, which itself is not differentiated (CISPO, arXiv 2506.13585).
    WeightClip,
}

/// How token losses become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregation {
    /// Mean over the action tokens of the batch (DAPO, arXiv 2503.14476).
    #[default]
    TokenMean,
    /// Mean over episodes of the episode's token mean (GRPO, arXiv 2402.03300).
    SequenceMean,
    /// Mean over episodes of the episode's token sum, divided by `horizon` (Dr. GRPO, arXiv 2503.20783).
    SequenceSum,
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

/// Where the penalty for leaving the reference policy is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum KlPlacement {
    /// Added to the loss, differentiated.
    #[default]
    Loss,
    /// Subtracted from the reward of each action token, of the policy that sampled.
    Reward,
}

/// Correction for rollouts whose log-probabilities are not the trainer's: of an older policy, or of another
/// numerics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportanceCorrection {
    /// None: the loss takes the log-probabilities of sampling.
    #[default]
    None,
    /// Token ratios, cut at the cap (truncated importance sampling).
    TokenTruncated,
    /// Ratio of the whole episode, cut at the cap.
    SequenceTruncated,
    /// Token ratios; a token outside floor…cap weighs nothing (`IcePop`).
    TokenMasked,
    /// An episode whose tokens' geometric mean ratio is outside floor…cap leaves the batch.
    SequenceMasked,
}

/// See [`ImportanceCorrection`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ImportanceConfig {
    /// See [`ImportanceCorrection`].
    pub correction: ImportanceCorrection,
    /// Largest ratio.
    pub cap: f64,
    /// Smallest ratio, for the masks.
    pub floor: f64,
}

impl Default for ImportanceConfig {
    fn default() -> Self {
        Self { correction: ImportanceCorrection::None, cap: 2.0, floor: 0.5 }
    }
}

/// Policy-gradient algorithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AlgorithmConfig {
    /// See [`Estimator`].
    pub estimator: Estimator,
    /// See [`Surrogate`].
    pub surrogate: Surrogate,
    /// The ratio is clipped below at 1 − this.
    pub clip_low: f64,
    /// The ratio is clipped above at 1 + this.
    pub clip_high: f64,
    /// With a negative advantage the loss is at most this times the advantage's size (arXiv 1912.09729); above 1,
    /// or 0 for no such bound.
    pub dual_clip: f64,
    /// Coefficient of the KL term; 0 leaves it out.
    pub kl_coefficient: f64,
    /// See [`KlKind`].
    pub kl: KlKind,
    /// See [`KlPlacement`].
    pub kl_placement: KlPlacement,
    /// Coefficient of the entropy bonus.
    pub entropy_coefficient: f64,
    /// See [`Aggregation`].
    pub aggregation: Aggregation,
    /// Divisor of [`Aggregation::SequenceSum`], tokens.
    pub horizon: u32,
    /// Whether questions whose samples all got the same reward leave the batch (DAPO's dynamic sampling).
    pub filter_zero_variance: bool,
    /// See [`ImportanceConfig`].
    pub importance: ImportanceConfig,
    /// Discount of GAE and REINFORCE++.
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
            surrogate: Surrogate::Clip,
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 0.0,
            kl_coefficient: 0.0,
            kl: KlKind::K3,
            kl_placement: KlPlacement::Loss,
            entropy_coefficient: 0.0,
            aggregation: Aggregation::TokenMean,
            horizon: 1,
            filter_zero_variance: false,
            importance: ImportanceConfig::default(),
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
