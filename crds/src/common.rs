//! Types that several kinds share: sources of models and data, references, storage, resources, pods.

use crate::{Quantity, rules};
use k8s_openapi::api::core::v1::Toleration;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An object of this project in the same namespace, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalRef {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
}

/// One key of a Secret in the same namespace. The value is read at each use, so a rotated secret needs no restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Key inside the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A model: base weights, an encoder or a reranker. Fetched once, verified, and kept by digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSource {
    /// Where it lies: `hf://OWNER/NAME`, `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `pvc://CLAIM/PATH` or `file://PATH`
    /// (`file:///abs/path`, or `file://./path` beside the manifest). A GGUF file or a folder with safetensors.
    #[schemars(length(max = 2048), regex(pattern = crate::schema::URI_PATTERN))]
    pub uri: String,
    /// Commit, tag or branch of a hub repository; a branch is pinned to the commit it named when first fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub revision: Option<String>,
    /// Expected sha256 (lower-case hex) of the GGUF file or of `model.safetensors`; another content is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Token for a private repository or bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
}

/// A file or folder of data: a corpus, questions, vectors, a template, an adapter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DataSource {
    /// Where it lies: `hf://OWNER/NAME/PATH`, `s3://BUCKET/KEY`, `gs://BUCKET/KEY`, `pvc://CLAIM/PATH` or
    /// `file://PATH` (`file:///abs/path`, or `file://./path` beside the manifest).
    #[schemars(length(max = 2048), regex(pattern = crate::schema::URI_PATTERN))]
    pub uri: String,
    /// Commit, tag or branch of a hub repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub revision: Option<String>,
    /// Expected sha256 (lower-case hex) of the file; for an adapter folder, of `adapter_model.safetensors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Token for a private repository or bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
}

/// A public question set, or your own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QuestionSet {
    /// Your own file, named by `uri`.
    #[default]
    Custom,
    /// Natural Questions.
    Nq,
    /// TriviaQA.
    TriviaQa,
    /// PopQA.
    PopQa,
    /// HotpotQA.
    HotpotQa,
    /// 2WikiMultihopQA.
    TwoWiki,
    /// MuSiQue.
    MuSiQue,
    /// Bamboogle.
    Bamboogle,
    /// MedQA of MIRAGE.
    MedQa,
    /// MedMCQA of MIRAGE.
    MedMcqa,
    /// PubMedQA of MIRAGE.
    PubMedQa,
    /// BioASQ of MIRAGE.
    BioAsq,
    /// MMLU-Med of MIRAGE.
    Mmlu,
}

/// Columns of a question file; members of members with dots, such as `reward_model.ground_truth.target`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QuestionFields {
    /// The id; without one a question's place in the file is it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub id: Option<String>,
    /// The question.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub question: Option<String>,
    /// The gold answers: a text or a list of texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub answers: Option<String>,
    /// The options of a multiple-choice question, by their letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub options: Option<String>,
    /// Titles of the passages that hold the evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub evidence: Option<String>,
}

/// Questions with gold answers under a name: JSON lines, JSON or Parquet in the layout of FlashRAG, Search-R1, s3,
/// MIRAGE or the set's own release, or `{"id", "question", "answers"}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::DATASET_URI])))]
pub struct Dataset {
    /// Name in tables, ids and digests; unique in its list.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$"))]
    pub name: String,
    /// A public set, or `Custom` with a `uri`. Of a file with several sets only its questions are taken. Without `uri`
    /// FlashRAG's collection on the hub is read, which has all but MIRAGE's five.
    #[serde(default)]
    pub set: QuestionSet,
    /// The file: same forms as everywhere (`file://`, `pvc://`, `hf://`, `s3://`, `gs://`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = crate::schema::URI_PATTERN))]
    pub uri: Option<String>,
    /// Split of a public set, by default the one that its papers report; of a file of your own the rows that say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub split: Option<String>,
    /// Columns of the file; the usual names of all known layouts by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<QuestionFields>,
    /// Expected sha256 (lower-case hex) of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Token for a private repository or bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyRef>,
}

/// Processor that runs a model; it also picks the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Device {
    /// CUDA when GPUs are requested (on one machine: when one is present), else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA; an error when there is none.
    Cuda,
}

/// Arithmetic type of weights in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DType {
    /// 32-bit floats, the only type for which `determinism: Bitwise` is guaranteed.
    #[default]
    F32,
    /// bfloat16 weights with 32-bit reductions, for GPUs.
    Bf16,
}

/// How a volume's content reaches the pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum StorageMode {
    /// All pods mount the volume; with pods on several nodes it must be ReadWriteMany or ReadOnlyMany.
    #[default]
    Shared,
    /// Each pod copies what it needs to its node first.
    LocalCopy,
}

/// How many nodes may mount a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum AccessMode {
    /// One node, read and write.
    #[default]
    ReadWriteOnce,
    /// Many nodes, read only.
    ReadOnlyMany,
    /// Many nodes, read and write.
    ReadWriteMany,
}

/// The volume that keeps what a resource makes: an index, checkpoints, results.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::STORAGE_CLAIM])))]
pub struct Storage {
    /// `Shared` mounts the volume in every pod, `LocalCopy` copies to the node first.
    pub mode: StorageMode,
    /// An existing claim; without it one is made with `size` and `storageClassName`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: Option<String>,
    /// Size of the claim that is made; by default estimated from the input's size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// Storage class of the claim that is made; by default the cluster's.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// Access mode of the claim that is made.
    pub access_mode: AccessMode,
}

/// CPU, memory and GPUs (`nvidia.com/gpu` in `limits`) of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// What the scheduler reserves, by resource name (`cpu`, `memory`, `ephemeral-storage`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at most, by resource name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32))]
    pub limits: BTreeMap<String, Quantity>,
}

/// An environment variable of a worker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::ENV_VALUE])))]
pub struct EnvVar {
    /// Name of the variable.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub value: Option<String>,
    /// A secret that holds its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
}

/// Additions to the pods of one component. What the operator sets itself cannot be overridden.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PodOverrides {
    /// Labels added to the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations added to the pods.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Labels that a node must have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
    /// Node and pod affinity, as in a Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::free_object")]
    pub affinity: Option<serde_json::Value>,
    /// Service account of the pods; by default one without any permission.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub service_account_name: Option<String>,
    /// Priority class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// Runtime class of the pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub runtime_class_name: Option<String>,
    /// Image of the worker instead of the operator's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub image: Option<String>,
    /// Secrets for pulling images.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<LocalRef>,
    /// Variables added to the worker.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub env: Vec<EnvVar>,
}

/// How a job enters a Kueue queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum QueueMode {
    /// The queue's label on each Job: every attempt queues anew.
    Labels,
    /// One Workload for all attempts and servers, admitted together.
    #[default]
    Workload,
}

/// A Kueue queue. Exactly one of the two modes applies, never both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Queue {
    /// Name of the LocalQueue.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `Workload` or `Labels`.
    #[serde(default)]
    pub mode: QueueMode,
}

/// Whether runs repeat to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Determinism {
    /// Same seed, same run digest, on any number of workers, also after a resume (CPU, F32).
    #[default]
    Bitwise,
    /// Batches may follow arrival; the mismatch is measured instead of excluded.
    Relaxed,
}

/// Whose behaviour the search loop reproduces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Compatibility {
    /// The protocol and scoring of this project.
    #[default]
    None,
    /// The s3 reference, to the tag.
    S3,
    /// Search-R1's tags and own answers.
    SearchR1,
}
