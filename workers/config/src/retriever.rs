//! The retriever: building an index and serving it.

use crate::{DatasetConfig, DeviceKind, RetrievalMethod, Runtime, ServerTls};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// A corpus: a file or a folder of files of `{id, title, text}` or the reference's `{id, contents}`, as JSON lines,
/// tab-separated columns (plain, gzipped or by zstd) or Parquet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CorpusConfig {
    /// The file or folder.
    pub path: PathBuf,
    /// Expected sha256, lower-case hex; of a folder that of `sha256sum`'s list of its files in order.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Only the first this many passages.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// BM25 (Robertson and Zaragoza 2009) with an English analyzer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LexicalConfig {
    /// Term-frequency saturation.
    pub k1: f64,
    /// Length normalisation.
    pub b: f64,
}

impl Default for LexicalConfig {
    fn default() -> Self {
        Self { k1: 0.9, b: 0.4 }
    }
}

/// How token states become one vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pooling {
    /// Mean over the attention mask.
    #[default]
    Mean,
    /// The first token.
    Cls,
}

/// How vectors are searched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DenseKind {
    /// All of them, exactly.
    #[default]
    Flat,
    /// By 8 bits a dimension, the best scored again exactly.
    ScalarQuantized,
    /// By 1 bit a dimension, the best scored again exactly.
    OneBit,
    /// By FAISS' inverted lists of rows, the best scored again exactly.
    IvfFlat,
    /// By FAISS' inverted lists of product-quantised rows, the best scored again exactly.
    IvfPq,
    /// By FAISS' graph, the best scored again exactly.
    Hnsw,
    /// By what a factory string of FAISS says, the best scored again exactly.
    Factory,
    /// By the FAISS index that `vectors` names, as it is; one of kind Flat is [`DenseKind::Flat`].
    Imported,
}

impl DenseKind {
    /// Whether FAISS chooses the candidates.
    pub fn is_faiss(self) -> bool {
        matches!(self, Self::IvfFlat | Self::IvfPq | Self::Hnsw | Self::Factory | Self::Imported)
    }
}

/// The index over the vectors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DenseIndexConfig {
    /// See [`DenseKind`].
    pub kind: DenseKind,
    /// Recall that the build must measure: more candidates are scored again until it does.
    pub recall_target: f64,
    /// How FAISS' kinds are made.
    #[serde(skip_serializing_if = "Structure::is_default")]
    pub structure: Structure,
}

impl Default for DenseIndexConfig {
    fn default() -> Self {
        Self { kind: DenseKind::Flat, recall_target: 0.95, structure: Structure::default() }
    }
}

/// How an index of FAISS' is made; what is not set follows from the vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Structure {
    /// Inverted lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lists: Option<u32>,
    /// Lists visited per query at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<u32>,
    /// Bytes per product-quantised vector.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_bytes: Option<u32>,
    /// Neighbours per node of a graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub neighbors: Option<u32>,
    /// Candidates while building a graph.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef_construction: Option<u32>,
    /// Candidates while searching a graph, at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ef_search: Option<u32>,
    /// FAISS' factory string.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factory: Option<String>,
}

impl Structure {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// Dense retrieval by an encoder's normalised embeddings and inner product.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DenseConfig {
    /// Folder with `config.json`, `model.safetensors`, `tokenizer.json`.
    pub encoder: PathBuf,
    /// Expected sha256 of `model.safetensors`.
    #[serde(default)]
    pub encoder_sha256: Option<String>,
    /// See [`Pooling`].
    #[serde(default)]
    pub pooling: Pooling,
    /// Put before a query (`query: ` for E5).
    #[serde(default)]
    pub query_prefix: String,
    /// Put before a passage (`passage: ` for E5).
    #[serde(default)]
    pub passage_prefix: String,
    /// Truncation, tokens.
    #[serde(default = "default_max_tokens")]
    pub max_tokens: usize,
    /// The index over the vectors.
    #[serde(default)]
    pub index: DenseIndexConfig,
    /// Vectors computed earlier, checked by sample before use.
    #[serde(default)]
    pub vectors: Option<VectorsConfig>,
    /// Processor for encoding.
    #[serde(default)]
    pub device: DeviceKind,
}

fn default_max_tokens() -> usize {
    256
}

/// Embeddings computed earlier: a safetensors file with tensor `vectors` [passages, dimensions] f16, or a FAISS
/// index, whole or in parts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VectorsConfig {
    /// The file.
    pub path: PathBuf,
    /// Further parts, joined to it in this order.
    #[serde(default)]
    pub parts: Vec<PathBuf>,
    /// Expected sha256 of the whole.
    pub sha256: String,
    /// Random passages encoded again; each must reach cosine 0.9999 with its stored vector.
    #[serde(default = "default_verify")]
    pub verify: usize,
}

fn default_verify() -> usize {
    64
}

/// Reciprocal rank fusion (Cormack 2009): score = Σ weight / (constant + rank).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FusionConfig {
    /// Rank constant.
    pub constant: f64,
    /// Weight of the lexical leg.
    pub lexical_weight: f64,
    /// Weight of the dense leg.
    pub dense_weight: f64,
    /// Candidates per leg.
    pub depth: usize,
}

impl Default for FusionConfig {
    fn default() -> Self {
        Self { constant: 60.0, lexical_weight: 1.0, dense_weight: 1.0, depth: 100 }
    }
}

/// `s3-retriever build`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IndexBuildConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// What to index.
    pub corpus: CorpusConfig,
    /// The lexical leg, when wanted.
    #[serde(default)]
    pub lexical: Option<LexicalConfig>,
    /// The dense leg, when wanted.
    #[serde(default)]
    pub dense: Option<DenseConfig>,
    /// Datasets audited against the corpus.
    #[serde(default)]
    pub audit: Vec<DatasetConfig>,
    /// Folder of published versions: `<output>/<digest>/` and the pointer `<output>/CURRENT`.
    pub output: PathBuf,
}

/// `s3-retriever serve`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RetrieverServeConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// Folder of published versions, as the build's `output`.
    pub index: PathBuf,
    /// The encoder that the index names; refused when its digest differs. None: lexical only.
    #[serde(default)]
    pub encoder: Option<PathBuf>,
    /// Processor for query encoding.
    #[serde(default)]
    pub device: DeviceKind,
    /// gRPC address.
    pub grpc: SocketAddr,
    /// HTTP address of `POST /retrieve`.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// Ranking behind `Default`.
    #[serde(default)]
    pub method: RetrievalMethod,
    /// Fusion of hybrid search.
    #[serde(default)]
    pub fusion: FusionConfig,
    /// Passages per query when the caller names none.
    #[serde(default = "default_top_k")]
    pub top_k: u32,
    /// Largest accepted top-k.
    #[serde(default = "default_top_k_limit")]
    pub top_k_limit: u32,
    /// Queries per request at most.
    #[serde(default = "default_queries_limit")]
    pub queries_limit: usize,
    /// Results kept in the cache.
    #[serde(default = "default_cache")]
    pub cache_entries: usize,
    /// Requests worked on at once; more are refused with 429 or `RESOURCE_EXHAUSTED`.
    #[serde(default = "default_requests_limit")]
    pub requests_limit: usize,
    /// How often to look for a newly published version, milliseconds; 0 serves the first for ever.
    #[serde(default = "default_watch_millis")]
    pub watch_millis: u64,
    /// A request not answered after this is given up, milliseconds; a caller's own deadline may be shorter.
    #[serde(default = "default_deadline_millis")]
    pub deadline_millis: u64,
    /// Folder of callers' tokens, a file each; none answers everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
    /// Certificates of gRPC and HTTP: with them every caller must show one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Reorders the best passages, when wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reranker: Option<RerankerConfig>,
}

/// A cross-encoder that reads query and passage together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RerankerConfig {
    /// Folder with `config.json`, `model.safetensors`, `tokenizer.json`.
    pub model: PathBuf,
    /// Expected sha256 of `model.safetensors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Passages reordered per query.
    #[serde(default = "default_rerank_depth")]
    pub depth: usize,
    /// Query and passage together are cut to this, tokens.
    #[serde(default = "default_pair_tokens")]
    pub max_tokens: usize,
    /// Processor.
    #[serde(default)]
    pub device: DeviceKind,
}

fn default_rerank_depth() -> usize {
    32
}
fn default_pair_tokens() -> usize {
    512
}

/// What [`RetrieverServeConfig::deadline_millis`] is by default.
pub fn default_deadline_millis() -> u64 {
    60_000
}

/// What [`RetrieverServeConfig::requests_limit`] is by default.
pub fn default_requests_limit() -> usize {
    256
}
/// What [`RetrieverServeConfig::watch_millis`] is by default.
pub fn default_watch_millis() -> u64 {
    2000
}

pub(crate) fn default_top_k() -> u32 {
    3
}
pub(crate) fn default_top_k_limit() -> u32 {
    100
}
pub(crate) fn default_queries_limit() -> usize {
    4096
}
fn default_cache() -> usize {
    100_000
}
