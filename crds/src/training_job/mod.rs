//! `S3TrainingJob`: trains a searcher by reinforcement against an index and a frozen generator.

mod algorithm;
mod data;
mod operation;
mod search;
mod searcher;
mod status;

pub use algorithm::*;
pub use data::*;
pub use operation::*;
pub use search::*;
pub use searcher::*;
pub use status::*;

use crate::{Compatibility, Determinism, Duration, Generator, Judge, PodOverrides, Queue, Resources, rules};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Trains a searcher by reinforcement against an index and a frozen generator.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "searchagent.dev",
    version = "v1alpha1",
    kind = "S3TrainingJob",
    plural = "s3trainingjobs",
    singular = "s3trainingjob",
    shortname = "s3tj",
    category = "s3",
    namespaced,
    status = "S3TrainingJobStatus",
    derive = "PartialEq",
    doc = "Trains a searcher by reinforcement against an index and a frozen generator.",
    printcolumn = r#"{"name":"Step","type":"integer","jsonPath":".status.step"}"#,
    printcolumn = r#"{"name":"Of","type":"integer","jsonPath":".spec.steps"}"#,
    printcolumn = r#"{"name":"GBR","type":"number","description":"Gain Beyond RAG of the last evaluation","jsonPath":".status.gbr"}"#,
    printcolumn = r#"{"name":"GenAcc","type":"number","jsonPath":".status.genAcc"}"#,
    printcolumn = r#"{"name":"Baseline","type":"number","description":"GenAcc of the baseline","jsonPath":".status.baselineGenAcc"}"#,
    printcolumn = r#"{"name":"Searches","type":"number","description":"Searches per question","priority":1,"jsonPath":".status.searchesPerQuestion"}"#,
    printcolumn = r#"{"name":"Attempts","type":"integer","priority":1,"jsonPath":".status.attempts"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type==\"Succeeded\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Succeeded\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[
    &rules::GROUP_SIZE, &rules::FILTER_SIZE, &rules::MAX_SELECTED, &rules::BITWISE_DTYPE, &rules::BITWISE_FALLBACKS,
    &rules::NEEDS_GENERATOR, &rules::SEARCH_R1_ALONE, &rules::FORMAT_SCORE, &rules::BUFFER_SIZE, &rules::STEPS_OR_WARM_START, &rules::RUNS_BOUND, &rules::STOP_NEEDS_PROBE, &rules::STALENESS_ALONE, &rules::ENGINE_RELAXED, &rules::ENGINE_LORA, &rules::SEARCHER_IMMUTABLE, &rules::RETRIEVER_IMMUTABLE, &rules::GENERATOR_IMMUTABLE,
    &rules::SEED_IMMUTABLE, &rules::STEPS_GROW,
])))]
pub struct S3TrainingJobSpec {
    /// The model that learns. Immutable: a checkpoint belongs to it.
    pub searcher: Searcher,
    /// The index that it searches. Immutable.
    pub retriever: RetrieverUse,
    /// The frozen model that answers. Immutable: baseline answers belong to it. None under
    /// `compatibility: SearchR1`, whose searcher answers itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generator: Option<Generator>,
    /// The model that judges answers; without it a gold answer's span decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// Training questions.
    pub data: TrainingData,
    /// The search loop.
    #[serde(default)]
    pub search: Search,
    /// How episodes are rewarded.
    #[serde(default)]
    pub reward: Reward,
    /// How the policy learns.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// AdamW.
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Episodes of one policy update step.
    #[serde(default)]
    pub rollout: Rollout,
    /// Supervised training before the first policy update step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warm_start: Option<WarmStart>,
    /// Policy update steps; 0 with `warmStart` trains by supervision only. It may grow, never shrink.
    #[serde(default = "default_steps")]
    #[schemars(range(max = 1_000_000))]
    pub steps: u32,
    /// Ends training before `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopRule>,
    /// Seed of everything random. Immutable.
    #[serde(default = "default_seed")]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub seed: u64,
    /// `Bitwise`: same seed, same run digest, also after a resume. `Relaxed`: faster, mismatch measured.
    #[serde(default)]
    pub determinism: Determinism,
    /// Whose search loop and scoring are reproduced. `SearchR1` trains a model that searches and answers itself,
    /// rewarded by the exact match of its answer; there `search.maxSearches` is its `max_turns`, and of `search` only
    /// that, `topK`, `observationTokens`, `turnTokens`, `contextTokens` and `promptTemplate` apply.
    #[serde(default)]
    pub compatibility: Compatibility,
    /// Checkpoints.
    #[serde(default)]
    pub checkpoint: Checkpoint,
    /// Evaluation while training.
    #[serde(default)]
    pub evaluation: TrainingEvaluation,
    /// What counts as a collapsing policy, and what is done then.
    #[serde(default)]
    pub guards: Guards,
    /// Trainer replicas and their GPUs.
    #[serde(default)]
    pub parallelism: Parallelism,
    /// CPU and memory of each trainer replica.
    #[serde(default)]
    pub resources: Resources,
    /// Additions to the trainer's pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
    /// Kueue queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// Checkpoints, stops and releases the GPUs; `false` goes on from there.
    #[serde(default)]
    pub suspend: bool,
    /// Seconds that the job may run in all, waiting and suspension not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_deadline_seconds: Option<u64>,
    /// GPU-seconds that all attempts together may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub gpu_second_budget: Option<u64>,
    /// What follows a failure, by its class.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// Time after which a finished job is deleted; never before its last checkpoint is verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u64>,
    /// Serves the trained searcher after success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serving: Option<AgentServing>,
}

fn default_steps() -> u32 {
    20
}
fn default_seed() -> u64 {
    1
}

impl S3TrainingJobSpec {
    /// Passages per search: the loop's own number, or the retriever's.
    pub fn search_top_k(&self) -> u32 {
        self.search.top_k.unwrap_or(self.retriever.top_k)
    }
}

/// How one class of failure is answered, with its own delay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FailurePolicy {
    /// Attempts in all; then the job fails with `AttemptsExhausted`.
    #[schemars(range(min = 1, max = 1000))]
    pub max_attempts: u32,
    /// Rules by class; a class without a rule has the default that its name's text says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["class"]))]
    pub rules: Vec<FailureRule>,
    /// Delay before the second attempt; doubled by each further one.
    pub backoff: Duration,
    /// Longest delay.
    pub max_backoff: Duration,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        Self {
            max_attempts: 10,
            rules: Vec::new(),
            backoff: Duration::from_secs(10),
            max_backoff: Duration::from_secs(600),
        }
    }
}
