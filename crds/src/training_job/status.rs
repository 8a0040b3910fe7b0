//! What is known about a training job.

use crate::condition_list;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is known about a training job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct S3TrainingJobStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Policy update steps done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u32>,
    /// Gain Beyond RAG: GenAcc minus the baseline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gbr: Option<f64>,
    /// Share of right answers with the searcher's passages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gen_acc: Option<f64>,
    /// Share of right answers with the baseline's passages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub baseline_gen_acc: Option<f64>,
    /// Executed searches per question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub searches_per_question: Option<f64>,
    /// The newest verified checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_checkpoint: Option<CheckpointStatus>,
    /// Evaluations on the schedule of `evaluation.runs`, by step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["step"]))]
    pub evaluations: Vec<ScheduledEvaluation>,
    /// The exported adapter or model, once training is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub export: Option<Artifact>,
    /// Attempts of the training started; those of the baseline and of a fetch are not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Seconds spent waiting in the queue, all waits that are over together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_wait_seconds: Option<u64>,
    /// Since when it waits in the queue, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_since: Option<Time>,
    /// GPU-seconds used by all attempts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_seconds: Option<u64>,
    /// Run digest, once training is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the job finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// Address of the served searcher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// `BaselineReady`, `Checkpointed`, `Training`, `Suspended`, `CollapseSuspected`, `Evaluated`, `Succeeded`.
    #[schemars(schema_with = "condition_list")]
    pub conditions: Vec<Condition>,
}

/// A published checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointStatus {
    /// Where it lies.
    pub uri: String,
    /// Digest of its manifest.
    pub digest: String,
    /// Policy update steps done when it was taken.
    pub step: u32,
}

/// One evaluation on a job's schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ScheduledEvaluation {
    /// Policy update steps done by the searcher that is evaluated.
    pub step: u32,
    /// The `EvalRun`.
    pub name: String,
    /// Sha256 of the searcher's adapter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Reason of its `Succeeded` condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Share of right answers of the first arm with the job's searcher, over all datasets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_acc: Option<f64>,
    /// Its gain over the baseline arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gbr: Option<f64>,
}

/// A published file or folder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Artifact {
    /// Where it lies.
    pub uri: String,
    /// Its digest.
    pub digest: String,
}
