//! Dense retrieval: the encoder, its vectors, and the index over them.

use crate::{Device, ModelSource, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How token states become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Pooling {
    /// Mean over the attention mask.
    #[default]
    Mean,
    /// The first token.
    Cls,
}

/// A model that turns text into vectors, and how it is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Encoder {
    /// The model: a folder with `config.json`, `model.safetensors`, `tokenizer.json`.
    pub model: ModelSource,
    /// How token states become one vector.
    #[serde(default)]
    pub pooling: Pooling,
    /// Put before a query (`query: ` for E5).
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub query_prefix: String,
    /// Put before a passage (`passage: ` for E5).
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub passage_prefix: String,
    /// Longer texts are cut, tokens.
    #[serde(default = "default_max_tokens")]
    #[schemars(range(min = 8, max = 32_768))]
    pub max_tokens: u32,
    /// Processor.
    #[serde(default)]
    pub device: Device,
}

fn default_max_tokens() -> u32 {
    256
}

/// Dense retrieval: embeddings and an index over them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dense {
    /// The model that makes the vectors.
    pub encoder: Encoder,
    /// The index over them.
    #[serde(default)]
    pub index: VectorIndex,
    /// Vectors computed earlier; a sample is encoded again and compared before they are used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vectors: Option<Vectors>,
}

/// Embeddings computed earlier: safetensors with tensor `vectors` [passages, dimensions] in f16.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Vectors {
    /// Where the file lies: `file://`, `pvc://`, `hf://`, `s3://` or `gs://`.
    #[schemars(length(max = 2048), regex(pattern = crate::schema::URI_PATTERN))]
    pub uri: String,
    /// Expected sha256 (lower-case hex) of the file.
    #[schemars(regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: String,
    /// Random passages encoded again; each must reach cosine 0.9999 with its stored vector.
    #[serde(default = "default_verify")]
    #[schemars(range(min = 1, max = 100_000))]
    pub verify: u32,
}

fn default_verify() -> u32 {
    64
}

/// Structure of a vector index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VectorIndexKind {
    /// Exact search over all vectors.
    #[default]
    Flat,
    /// FAISS' inverted lists of whole vectors; the best are scored again exactly.
    IvfFlat,
    /// FAISS' inverted lists of product-quantised vectors; the best are scored again exactly.
    IvfPq,
    /// FAISS' navigable small-world graph; the best are scored again exactly.
    Hnsw,
    /// 8 bits a dimension; the best are scored again exactly.
    ScalarQuantized,
    /// 1 bit a dimension (RaBitQ); the best are scored again exactly. A thirty-second of the memory of f32: 21 million
    /// vectors of 768 dimensions in 2.3 GB.
    OneBit,
    /// What FAISS makes of the `factory` string; the best are scored again exactly.
    Factory,
}

/// Similarity of two vectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Metric {
    /// Inner product of normalised vectors.
    #[default]
    InnerProduct,
    /// Euclidean distance.
    L2,
}

/// The index over the vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::FACTORY_STRING, &rules::IVF_FIELDS, &rules::PQ_FIELDS, &rules::HNSW_FIELDS, &rules::PROBES_FIELD, &rules::EF_SEARCH_FIELD])))]
pub struct VectorIndex {
    /// Its structure.
    pub kind: VectorIndexKind,
    /// Similarity.
    pub metric: Metric,
    /// Share of the exact top passages that it must find, measured after the build; search effort is raised until it
    /// does, and `RecallVerified` says what was reached.
    #[schemars(range(min = 0.5, max = 1))]
    pub recall_target: f64,
    /// Inverted lists, for `IvfFlat` and `IvfPq`; by default from the number of passages.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub lists: Option<u32>,
    /// Lists visited per query at least, for `IvfFlat`, `IvfPq` and `Factory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub probes: Option<u32>,
    /// Bytes per vector, for `IvfPq`; a divisor of its dimensions, an eighth of them by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4096))]
    pub code_bytes: Option<u32>,
    /// Neighbours per node, for `Hnsw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 1024))]
    pub neighbors: Option<u32>,
    /// Candidates while building, for `Hnsw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 100_000))]
    pub ef_construction: Option<u32>,
    /// Candidates while searching at least, for `Hnsw` and `Factory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub ef_search: Option<u32>,
    /// FAISS factory string, for `Factory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub factory: Option<String>,
}

impl Default for VectorIndex {
    fn default() -> Self {
        Self {
            kind: VectorIndexKind::Flat,
            metric: Metric::InnerProduct,
            recall_target: 0.95,
            lists: None,
            probes: None,
            code_bytes: None,
            neighbors: None,
            ef_construction: None,
            ef_search: None,
            factory: None,
        }
    }
}
