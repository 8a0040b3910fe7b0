//! How the policy learns from rewarded episodes.

use crate::{Duration, SecretKeyRef, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Advantage estimator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// What the policy's loss is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Surrogate {
    /// Clipped token ratios (arXiv 1707.06347).
    #[default]
    Clip,
    /// One clipped ratio an episode, the geometric mean of its tokens' (GSPO, arXiv 2507.18071).
    SequenceClip,
    /// The log-probability weighted by the clipped ratio, which is not differentiated (CISPO, arXiv 2506.13585).
    WeightClip,
}

/// How token losses become one number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KlKind {
    /// Log ratio.
    K1,
    /// Half squared log ratio.
    K2,
    /// exp(−x) − 1 + x: unbiased and never negative.
    #[default]
    K3,
}

/// Where the penalty for leaving the reference policy is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KlPlacement {
    /// Added to the loss.
    #[default]
    Loss,
    /// Subtracted from the reward of each action token.
    Reward,
}

/// Correction for samples of an older policy or of another numerics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ImportanceCorrection {
    /// None: rollouts are of the policy that learns.
    #[default]
    None,
    /// Token ratios, cut at the cap.
    TokenTruncated,
    /// Ratio of the whole episode, cut at the cap.
    SequenceTruncated,
    /// Token ratios; a token outside floor and cap weighs nothing (IcePop).
    TokenMasked,
    /// An episode whose tokens' geometric mean ratio is outside floor and cap leaves the batch.
    SequenceMasked,
}

/// Policy-gradient algorithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::DUAL_CLIP])))]
pub struct Algorithm {
    /// Advantage estimator.
    pub estimator: Estimator,
    /// What the policy's loss is made of.
    pub surrogate: Surrogate,
    /// The ratio is clipped below at 1 − this.
    #[schemars(range(min = 0, max = 1))]
    pub clip_low: f64,
    /// The ratio is clipped above at 1 + this.
    #[schemars(range(min = 0, max = 10))]
    pub clip_high: f64,
    /// Bounds the loss of tokens with a negative advantage at this times the advantage's size (arXiv 1912.09729):
    /// above 1, or 0 for no bound.
    #[schemars(range(min = 0, max = 1000))]
    pub dual_clip: f64,
    /// Penalty for leaving the reference policy.
    pub kl: Kl,
    /// Coefficient of the entropy bonus.
    #[schemars(range(min = 0))]
    pub entropy_coefficient: f64,
    /// How token losses become one number.
    pub aggregation: Aggregation,
    /// Divisor of `aggregation: SequenceSum`, tokens: the longest an episode's actions can be.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub horizon: u32,
    /// Questions whose samples all got the same reward leave the batch (DAPO's dynamic sampling).
    pub filter_zero_variance: bool,
    /// Correction for samples of an older policy or of another numerics.
    pub importance: Importance,
    /// Generalised advantage estimation, for `Ppo`.
    pub gae: Gae,
    /// The critic, for `Ppo`.
    pub critic: Critic,
    /// Passes over each batch.
    #[schemars(range(min = 1, max = 100))]
    pub epochs: u32,
}

impl Default for Algorithm {
    fn default() -> Self {
        Self {
            estimator: Estimator::Rloo,
            surrogate: Surrogate::Clip,
            clip_low: 0.2,
            clip_high: 0.2,
            dual_clip: 0.0,
            kl: Kl::default(),
            entropy_coefficient: 0.0,
            aggregation: Aggregation::TokenMean,
            horizon: 1,
            filter_zero_variance: false,
            importance: Importance::default(),
            gae: Gae::default(),
            critic: Critic::default(),
            epochs: 1,
        }
    }
}

/// Penalty for leaving the reference policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kl {
    /// Its estimator.
    pub kind: KlKind,
    /// Its coefficient; 0 leaves it out.
    #[schemars(range(min = 0))]
    pub coefficient: f64,
    /// Where it is taken.
    pub placement: KlPlacement,
}

/// Correction for samples of an older policy or of another numerics.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Importance {
    /// Its kind.
    pub correction: ImportanceCorrection,
    /// Largest ratio.
    #[schemars(range(min = 1))]
    pub cap: f64,
    /// Smallest ratio, for `TokenMasked` and `SequenceMasked`.
    #[schemars(range(min = 0, max = 1))]
    pub floor: f64,
}

impl Default for Importance {
    fn default() -> Self {
        Self { correction: ImportanceCorrection::None, cap: 2.0, floor: 0.5 }
    }
}

/// Generalised advantage estimation (arXiv 1506.02438) over action tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gae {
    /// Discount; `ReinforcePlusPlus` takes it too.
    #[schemars(range(min = 0, max = 1))]
    pub gamma: f64,
    /// Lambda.
    #[schemars(range(min = 0, max = 1))]
    pub lambda: f64,
}

impl Default for Gae {
    fn default() -> Self {
        Self { gamma: 1.0, lambda: 1.0 }
    }
}

/// The critic: a linear head on the last hidden state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Critic {
    /// Clip range of its prediction.
    #[schemars(range(min = 0))]
    pub clip: f64,
    /// Weight of its loss.
    #[schemars(range(min = 0))]
    pub coefficient: f64,
}

impl Default for Critic {
    fn default() -> Self {
        Self { clip: 0.5, coefficient: 0.5 }
    }
}

/// AdamW (arXiv 1711.05101) with clipping by global norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Optimizer {
    /// Learning rate after warm-up.
    #[schemars(range(min = 0, max = 1))]
    pub learning_rate: f64,
    /// First-moment decay.
    #[schemars(range(min = 0, max = 1))]
    pub beta1: f64,
    /// Second-moment decay.
    #[schemars(range(min = 0, max = 1))]
    pub beta2: f64,
    /// Denominator term.
    #[schemars(range(min = 0, max = 1))]
    pub epsilon: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0, max = 1))]
    pub weight_decay: f64,
    /// Gradients are scaled down to this global norm.
    #[schemars(range(min = 0))]
    pub max_grad_norm: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u32,
}

impl Default for Optimizer {
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

/// Servers that write the turns of training episodes in the trainer's place: vLLM (0.10.2 or newer), or what speaks its
/// dialect of the OpenAI API. Each serves `searcher.model` with LoRA adapters that are loaded at run time
/// (`--enable-lora`, `VLLM_ALLOW_RUNTIME_LORA_UPDATING=True`), and has the volume of the job's checkpoints mounted where
/// the trainer has it: the claim CLAIM (`JOB-job-data`, or `checkpoint.storage.claimName`) at `/work/CLAIM`.
///
/// Before a round each server loads the policy that the round is played with, under a name of its own: no request is
/// answered by an older one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RolloutEngine {
    /// Base addresses up to and with `/v1`. The samples of a question go to one server, whose cache knows their
    /// beginning; one that is down is stood in for by the others.
    #[schemars(length(min = 1, max = 64), inner(length(max = 2048), regex(pattern = r"^https?://.+$")))]
    pub endpoints: Vec<String>,
    /// Key that the servers ask for; none sends no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// Deadline of one call: a turn, or the loading of a policy.
    #[serde(default = "default_engine_timeout")]
    pub timeout: Duration,
    /// Attempts per call before its episode is masked.
    #[serde(default = "default_engine_attempts")]
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
}

fn default_engine_timeout() -> Duration {
    Duration::from_secs(300)
}
fn default_engine_attempts() -> u32 {
    5
}

/// Episodes of one policy update step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::MINI_BATCH_DIVIDES, &rules::MICRO_BATCH_DIVIDES, &rules::ENGINE_TEMPERATURE])))]
pub struct Rollout {
    /// Questions per step.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub questions: u32,
    /// Episodes per question; estimators that compare them (all but `Ppo`, `Reinforce` and `ReinforcePlusPlus`)
    /// need two or more.
    #[schemars(range(min = 1, max = 10_000))]
    pub samples: u32,
    /// Sampling temperature.
    #[schemars(range(min = 0, max = 10))]
    pub temperature: f64,
    /// Nucleus: only the likeliest tokens of this total probability are sampled; 1 is off.
    #[schemars(range(min = 0.01, max = 1))]
    pub top_p: f64,
    /// Episodes under way at once; each takes the memory of its keys and values.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: u32,
    /// Episodes per backward pass; part of what `determinism: Bitwise` fixes.
    #[schemars(range(min = 1, max = 65_536))]
    pub micro_batch: u32,
    /// Episodes per optimiser step; 0 takes the whole round.
    #[schemars(range(max = 16_777_216))]
    pub mini_batch: u32,
    /// How many updates the policy that plays a step's episodes may lie behind the one that learns from them; 0 is
    /// on-policy. Step t trains on episodes of the policy after t − 1 − this updates, a schedule that no latency
    /// changes, so episodes go on while the trainer learns. Above 0, `algorithm.importance` should correct for it.
    #[schemars(range(max = 64))]
    pub staleness: u32,
    /// Threads that decode episodes; changes no result.
    #[schemars(range(min = 1, max = 64))]
    pub workers: u32,
    /// Servers that write the episodes; by default the trainer does, with weights that it shares with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<RolloutEngine>,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            questions: 30,
            samples: 4,
            temperature: 1.0,
            top_p: 1.0,
            batch: 64,
            micro_batch: 4,
            mini_batch: 0,
            staleness: 0,
            workers: 1,
            engine: None,
        }
    }
}
