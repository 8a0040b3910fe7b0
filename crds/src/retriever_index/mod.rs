//! `RetrieverIndex`: a corpus made searchable, and served.

mod dense;
mod web;

pub use dense::*;
pub use web::*;

use crate::{
    DataSource, Dataset, Device, LocalRef, ModelSource, PodOverrides, Quantity, Resources, Storage, condition_list,
    rules,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A corpus made searchable (lexical, dense or both) and served to training jobs and evaluations.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "searchagent.dev",
    version = "v1alpha1",
    kind = "RetrieverIndex",
    plural = "retrieverindices",
    singular = "retrieverindex",
    shortname = "ri",
    category = "s3",
    namespaced,
    status = "RetrieverIndexStatus",
    derive = "PartialEq",
    doc = "A corpus made searchable (lexical, dense or both) and served to training jobs and evaluations.",
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#,
    printcolumn = r#"{"name":"Passages","type":"integer","jsonPath":".status.passages"}"#,
    printcolumn = r#"{"name":"Built","type":"string","description":"Passages indexed so far, percent","jsonPath":".status.progress"}"#,
    printcolumn = r#"{"name":"Recall","type":"number","description":"Measured recall against exact search","jsonPath":".status.recall"}"#,
    printcolumn = r#"{"name":"Answerable","type":"string","description":"Share of the audited questions that the corpus can answer","jsonPath":".status.answerable[*].fraction"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].reason"}"#,
    printcolumn = r#"{"name":"Digest","type":"string","priority":1,"jsonPath":".status.digest"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::HYBRID_LEGS, &rules::HYBRID_FUSION, &rules::WEB_ALONE])))]
pub struct RetrieverIndexSpec {
    /// What the index is made of: built here, imported, or a web search.
    pub source: IndexSource,
    /// How the lexical and the dense ranking become one.
    #[serde(default)]
    pub fusion: Fusion,
    /// A cross-encoder that reorders the best passages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reranker: Option<Reranker>,
    /// Where the index is kept.
    #[serde(default)]
    pub storage: Storage,
    /// How it is served.
    #[serde(default)]
    pub serving: IndexServing,
    /// What is reported about it besides size and recall.
    #[serde(default)]
    pub audit: Audit,
}

/// What an index is made of. Exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::ONE_INDEX_SOURCE])))]
pub struct IndexSource {
    /// Build it from a corpus.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build: Option<IndexBuild>,
    /// Take an index that exists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub import: Option<IndexImport>,
    /// Ask a service that searches the web; nothing is built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub web_search: Option<WebSearch>,
}

/// Building an index. At least one of `lexical` and `dense` is set; both make hybrid search possible.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::SOME_LEG, &rules::BUILD_WORKERS])))]
pub struct IndexBuild {
    /// The passages.
    pub corpus: Corpus,
    /// BM25 over an inverted index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lexical: Option<Lexical>,
    /// An encoder's embeddings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<Dense>,
    /// Pods (processes of `s3 run`) that embed the passages together; the first one indexes and publishes besides. The
    /// index is the same with any number. More than one need storage that several nodes mount (`ReadWriteMany`).
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub workers: u32,
    /// CPU, memory and GPUs of each worker.
    #[serde(default)]
    pub resources: Resources,
    /// Additions to the build's pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

fn one() -> u32 {
    1
}

impl Default for IndexBuild {
    fn default() -> Self {
        Self {
            corpus: Corpus::default(),
            lexical: None,
            dense: None,
            workers: one(),
            resources: Resources::default(),
            pod: None,
        }
    }
}

/// Taking an existing index: FAISS parts and the corpus whose rows they number.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IndexImport {
    /// Parts of the index file, joined in this order.
    #[schemars(length(min = 1, max = 256))]
    pub parts: Vec<DataSource>,
    /// Expected sha256 (lower-case hex) of the joined file.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// The passages, row by row.
    pub corpus: Corpus,
    /// The encoder that made the index; queries are encoded by it.
    pub encoder: Encoder,
    /// BM25 beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lexical: Option<Lexical>,
}

/// Layout of a corpus file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CorpusFormat {
    /// Seen from the first line.
    #[default]
    Auto,
    /// jsonl of `{"id", "title", "text"}`.
    TitleText,
    /// jsonl of `{"id", "contents"}`, the title in quotes on the first line.
    Contents,
}

/// The passages of an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Corpus {
    /// Where the file lies: `file://`, `pvc://`, `hf://`, `s3://` or `gs://`.
    #[schemars(length(max = 2048), regex(pattern = crate::schema::URI_PATTERN))]
    pub uri: String,
    /// Commit, tag or branch of a hub repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub revision: Option<String>,
    /// Expected sha256 (lower-case hex) of the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Token for a private repository or bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<crate::SecretKeyRef>,
    /// Layout of the file.
    #[serde(default)]
    pub format: CorpusFormat,
    /// Only the first this many passages; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<u64>,
}

/// How text becomes terms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Analyzer {
    /// Lower case, English stop words and Porter stems.
    #[default]
    English,
    /// Lower case at word boundaries, any language.
    Standard,
}

/// BM25 (Robertson and Zaragoza 2009).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Lexical {
    /// Term-frequency saturation.
    #[schemars(range(min = 0, max = 10))]
    pub k1: f64,
    /// Length normalisation.
    #[schemars(range(min = 0, max = 1))]
    pub b: f64,
    /// How text becomes terms.
    pub analyzer: Analyzer,
}

impl Default for Lexical {
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4, analyzer: Analyzer::English }
    }
}

/// Rule that makes one ranking of two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FusionKind {
    /// Both legs are served on their own.
    None,
    /// score = Σ weight / (constant + rank) (Cormack 2009).
    #[default]
    ReciprocalRank,
}

/// How the lexical and the dense ranking become one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::FUSION_WEIGHT])))]
pub struct Fusion {
    /// The rule.
    pub kind: FusionKind,
    /// Rank constant.
    #[schemars(range(min = 0))]
    pub constant: f64,
    /// Weight of the lexical ranking.
    #[schemars(range(min = 0))]
    pub lexical_weight: f64,
    /// Weight of the dense ranking.
    #[schemars(range(min = 0))]
    pub dense_weight: f64,
    /// Candidates taken of each ranking.
    #[schemars(range(min = 1, max = 10_000))]
    pub depth: u32,
}

impl Default for Fusion {
    fn default() -> Self {
        Self { kind: FusionKind::ReciprocalRank, constant: 60.0, lexical_weight: 1.0, dense_weight: 1.0, depth: 100 }
    }
}

/// A cross-encoder that reorders the best passages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Reranker {
    /// The model.
    pub model: ModelSource,
    /// Passages reordered per query.
    #[serde(default = "default_depth")]
    #[schemars(range(min = 1, max = 1000))]
    pub depth: u32,
    /// Query and passage together are cut to this, tokens.
    #[serde(default = "default_pair_tokens")]
    #[schemars(range(min = 8, max = 32_768))]
    pub max_tokens: u32,
    /// Processor.
    #[serde(default)]
    pub device: Device,
}

fn default_depth() -> u32 {
    32
}
fn default_pair_tokens() -> u32 {
    512
}

/// How the retriever ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RetrievalMethod {
    /// Hybrid where the index has both legs and fusion is on, else the leg it has.
    #[default]
    Default,
    /// BM25.
    Lexical,
    /// Embeddings.
    Dense,
    /// Both, fused.
    Hybrid,
}

/// How an index is served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::SERVING_TOP_K])))]
pub struct IndexServing {
    /// Ranking of requests that name none.
    pub method: RetrievalMethod,
    /// Passages of requests that name no number.
    #[schemars(range(min = 1, max = 10_000))]
    pub top_k: u32,
    /// Largest number of passages that a request may ask for.
    #[schemars(range(min = 1, max = 10_000))]
    pub top_k_limit: u32,
    /// Queries in one request at most.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queries_limit: u32,
    /// Results kept in memory.
    pub cache_entries: u32,
    /// Servers behind one address.
    #[schemars(range(max = 1000))]
    pub replicas: u32,
    /// Servers follow the load instead of `replicas`, which counts while nothing can follow it; 0 serves nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<Autoscaling>,
    /// Certificates: with them gRPC and HTTP are spoken over TLS, and every caller must show a certificate, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServingTls>,
    /// Processor of query encoding.
    pub device: Device,
    /// CPU, memory and GPUs of each server.
    pub resources: Resources,
    /// Additions to the servers' pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

impl Default for IndexServing {
    fn default() -> Self {
        Self {
            method: RetrievalMethod::Default,
            top_k: 3,
            top_k_limit: 100,
            queries_limit: 4096,
            cache_entries: 100_000,
            replicas: 1,
            autoscaling: None,
            tls: None,
            device: Device::Auto,
            resources: Resources::default(),
            pod: None,
        }
    }
}

/// Certificates of an index's servers and of who searches with it. Secrets are of type `kubernetes.io/tls` with `ca.crt`,
/// as cert-manager makes and renews them; renewed ones are taken up without a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServingTls {
    /// The servers' Secret: what they show, and in `ca.crt` the authorities that callers' certificates must come from.
    pub secret_ref: LocalRef,
    /// The callers' Secret (jobs, evaluations, served searchers): what they show, and in `ca.crt` the authorities that
    /// the servers' certificate must come from. By default the servers' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_ref: Option<LocalRef>,
    /// Name that the servers' certificate must be for; by default `INDEX-retriever.NAMESPACE.svc`, by which they are
    /// called (127.0.0.1 without a cluster).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
}

/// Servers that follow the load: a `HorizontalPodAutoscaler` over the metric `s3_retriever_waiting_queries` of the pods,
/// which the cluster has to serve (`custom.metrics.k8s.io`, for instance by the Prometheus adapter).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::AUTOSCALING_RANGE])))]
pub struct Autoscaling {
    /// Fewest servers.
    #[schemars(range(min = 1, max = 1000))]
    pub min_replicas: u32,
    /// Most servers.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: u32,
    /// Queries waiting per server above which one is added.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub target_queue_depth: u32,
}

impl Default for Autoscaling {
    fn default() -> Self {
        Self { min_replicas: 1, max_replicas: 4, target_queue_depth: 64 }
    }
}

/// What is reported about an index.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Audit {
    /// Question sets whose answerable fraction is measured: the share with a gold answer in some passage.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub datasets: Vec<Dataset>,
}

/// What is known about an index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RetrieverIndexStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Identity of the published index: corpus, encoder and parameters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the published files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_digest: Option<String>,
    /// Passages indexed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub passages: Option<u64>,
    /// Dimensions of a vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u32>,
    /// Size of the published files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<Quantity>,
    /// How far the build is, `0%` to `100%`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<String>,
    /// Measured recall against exact search.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<f64>,
    /// How much of the audited question sets the corpus can answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["dataset"]))]
    pub answerable: Vec<Answerable>,
    /// Address of the served index, once it is ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Servers that pass their self-query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<u32>,
    /// `Built`, `RecallVerified`, `Serving`, `Autoscaled`, `Ready`.
    #[schemars(schema_with = "condition_list")]
    pub conditions: Vec<Condition>,
}

/// How much of a question set the corpus can answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Answerable {
    /// The dataset's name.
    pub dataset: String,
    /// Its questions.
    pub questions: u64,
    /// Those with a gold answer in some passage.
    pub answerable: u64,
    /// The share.
    pub fraction: f64,
}
