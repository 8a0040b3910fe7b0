//! A web search in the place of an index.

use crate::retriever::{default_queries_limit, default_top_k, default_top_k_limit};
use crate::{Runtime, ServerTls, default_deadline_millis, default_requests_limit};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Limits on the calls to a web-search service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebLimits {
    /// Calls in flight at most.
    pub concurrency: usize,
    /// Deadline of one attempt, milliseconds.
    pub deadline_ms: u64,
    /// Attempts per query.
    pub attempts: u32,
    /// Requests a minute at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Queries that may wait for their turn; more are refused.
    pub queue: usize,
    /// First waiting time between attempts, milliseconds; it doubles with each.
    pub backoff_ms: u64,
}

impl Default for WebLimits {
    fn default() -> Self {
        Self {
            concurrency: 8,
            deadline_ms: 20_000,
            attempts: 5,
            requests_per_minute: None,
            queue: 10_000,
            backoff_ms: 500,
        }
    }
}

/// `s3-retriever web`: a service that speaks `SerpAPI`'s JSON, behind the retriever's own faces.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WebSearchConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// gRPC address.
    pub grpc: SocketAddr,
    /// HTTP address of `POST /retrieve`.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// Address that is asked (`https://serpapi.com/search`).
    pub endpoint: String,
    /// Search engine, as the service calls it.
    #[serde(default = "default_engine")]
    pub engine: String,
    /// Further query parameters, such as a language or a place.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parameters: BTreeMap<String, String>,
    /// File with the key; reread when it changes, so a rotated secret needs no restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: WebLimits,
    /// Durable results (one file): no query is paid for twice. None keeps them in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub results: Option<PathBuf>,
    /// Longer queries are cut, characters.
    #[serde(default = "default_query_characters")]
    pub query_characters: usize,
    /// Passages per query when the caller names none.
    #[serde(default = "default_top_k")]
    pub top_k: u32,
    /// Largest accepted top-k.
    #[serde(default = "default_top_k_limit")]
    pub top_k_limit: u32,
    /// Queries per request at most.
    #[serde(default = "default_queries_limit")]
    pub queries_limit: usize,
    /// Requests worked on at once; more are refused with 429 or `RESOURCE_EXHAUSTED`.
    #[serde(default = "default_requests_limit")]
    pub requests_limit: usize,
    /// A request not answered after this is given up, milliseconds; a caller's own deadline may be shorter.
    #[serde(default = "default_deadline_millis")]
    pub deadline_millis: u64,
    /// Folder of callers' tokens, a file each; none answers everyone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<PathBuf>,
    /// Certificates of gRPC and HTTP: with them every caller must show one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Networks (`127.0.0.1`) that the service may be reached at although they are loopback, link-local or reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_addresses: Vec<String>,
}

fn default_engine() -> String {
    "google".into()
}
/// What [`WebSearchConfig::query_characters`] is by default.
pub fn default_query_characters() -> usize {
    512
}
