//! Running a job: checkpoints, guards, parallelism, failures, and serving its result.

use crate::{DataSource, LocalRef, PodOverrides, Resources, SecretKeyRef, Storage, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When checkpoints are taken, and which are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Checkpoint {
    /// Every so many steps, and after the last.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub every: u32,
    /// The newest so many are kept.
    #[schemars(range(min = 1, max = 100_000))]
    pub keep: u32,
    /// Where they are kept.
    pub storage: Storage,
    /// Where the first attempt starts, when not from nothing: with that checkpoint's policy, optimiser and step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_from: Option<ResumeFrom>,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self { every: 1, keep: 3, storage: Storage::default(), resume_from: None }
    }
}

/// A checkpoint that training starts from. Exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::ONE_RESUME])))]
pub struct ResumeFrom {
    /// The last checkpoint of another job of the same searcher, once that job is over or suspended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_ref: Option<LocalRef>,
    /// A checkpoint folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<DataSource>,
}

/// Ends training before its last step. What is exported then is what `evaluation.probe.export` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::SOME_STOP])))]
pub struct StopRule {
    /// Probe's gain at which training is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1, max = 1))]
    pub target_gbr: Option<f64>,
    /// Probes without a new best after which training is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub patience: Option<u32>,
}

/// What a guard does when its bound is passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum GuardAction {
    /// Sets `CollapseSuspected` and goes on.
    #[default]
    Warn,
    /// Checkpoints and suspends the job, until `suspend` is set and taken back, or the spec changes.
    Pause,
    /// Returns to the last checkpoint before the bound was passed, and samples other episodes from there; the fourth
    /// time, and where that checkpoint is no longer kept, it pauses.
    Rollback,
}

/// Bounds on one measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::GUARD_BOUND])))]
pub struct Guard {
    /// Smallest healthy value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest healthy value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Steps in a row beyond it before anything is done.
    #[schemars(range(min = 1, max = 1000))]
    pub steps: u32,
    /// What is done.
    pub action: GuardAction,
}

impl Default for Guard {
    fn default() -> Self {
        Self { min: None, max: None, steps: 3, action: GuardAction::Warn }
    }
}

/// What counts as a collapsing policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Guards {
    /// Mean entropy of action tokens, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Guard>,
    /// Share of turns that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_rate: Option<Guard>,
    /// Executed searches per question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub searches_per_question: Option<Guard>,
    /// KL divergence between the policy as sampled and as trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch_kl: Option<Guard>,
}

/// Trainer replicas and their GPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Parallelism {
    /// Replicas that share each step.
    #[schemars(range(min = 1, max = 1024))]
    pub replicas: u32,
    /// GPUs of each replica; each of several holds a rank of its own.
    #[schemars(range(max = 16))]
    pub gpus_per_replica: u32,
    /// A word that the replicas prove to each other before they talk. Without it whoever reaches a replica's port and
    /// knows the job's name could join it: network policies then keep strangers out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
}

impl Default for Parallelism {
    fn default() -> Self {
        Self { replicas: 1, gpus_per_replica: 0, token_secret_ref: None }
    }
}

/// Class of a failure, told from exit code, pod status and message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum FailureClass {
    /// The container exceeded its memory (default: `Fail`, the same would happen again).
    #[default]
    OutOfMemory,
    /// The node vanished or the pod was evicted (default: `Resume`).
    NodeLost,
    /// Communication between GPUs failed (default: `Resume`).
    Communication,
    /// A loss, gradient or reward was not a number (default: `Fail`).
    NotANumber,
    /// The retriever, gateway, generator or judge did not answer in time (default: `Resume`).
    DependencyUnavailable,
    /// The storage is full or unreachable (default: `Resume`).
    Storage,
    /// The input is wrong (default: `Fail`).
    InvalidInput,
    /// Anything else (default: `Resume`).
    Unknown,
}

/// What follows a failure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FailureAction {
    /// A new attempt from the first step.
    Restart,
    /// A new attempt from the last checkpoint.
    #[default]
    Resume,
    /// The job fails.
    Fail,
}

/// How one class of failure is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FailureRule {
    /// The class.
    pub class: FailureClass,
    /// What follows.
    pub action: FailureAction,
    /// Attempts lost to this class before the job fails; by default only `maxAttempts` counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub limit: Option<u32>,
}

/// Serves the trained searcher: `POST /search`, `POST /answer` and an OpenAI-compatible chat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AgentServing {
    /// Servers behind one address.
    #[schemars(range(max = 1000))]
    pub replicas: u32,
    /// Episodes decoded together by one server.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: u32,
    /// CPU, memory and GPUs of each server.
    pub resources: Resources,
    /// Additions to the servers' pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

impl Default for AgentServing {
    fn default() -> Self {
        Self { replicas: 1, batch: 16, resources: Resources::default(), pod: None }
    }
}
