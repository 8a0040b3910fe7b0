//! The generator gateway.

use crate::{ModelSpec, Runtime};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;

/// Where answers come from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", deny_unknown_fields)]
pub enum ProviderConfig {
    /// A candle model inside the gateway.
    #[serde(rename_all = "camelCase")]
    BuiltIn {
        /// Name callers use.
        name: String,
        /// The model.
        model: ModelSpec,
        /// Prompts computed together.
        #[serde(default = "default_batch")]
        batch: usize,
        /// Longest prompt plus answer, tokens.
        #[serde(default = "default_context")]
        context_tokens: usize,
    },
    /// Any OpenAI-compatible chat endpoint.
    #[serde(rename_all = "camelCase")]
    OpenAi {
        /// Name callers use.
        name: String,
        /// Base address up to `/v1`.
        base_url: String,
        /// Model name sent upstream.
        model: String,
        /// File with the key; read at each use, so a rotated secret needs no restart.
        #[serde(default)]
        api_key_file: Option<PathBuf>,
        /// Calls in flight at most.
        #[serde(default = "default_concurrency")]
        concurrency: usize,
        /// Deadline of one attempt, milliseconds.
        #[serde(default = "default_call_deadline")]
        deadline_ms: u64,
        /// Attempts per request.
        #[serde(default = "default_call_attempts")]
        attempts: u32,
    },
}

fn default_batch() -> usize {
    16
}
fn default_context() -> usize {
    2048
}
fn default_concurrency() -> usize {
    64
}
fn default_call_deadline() -> u64 {
    120_000
}
fn default_call_attempts() -> u32 {
    6
}

impl ProviderConfig {
    /// The name callers use.
    pub fn name(&self) -> &str {
        match self {
            Self::BuiltIn { name, .. } | Self::OpenAi { name, .. } => name,
        }
    }
}

/// `s3-generator-gateway serve`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GatewayConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// gRPC address of `Answer` and `Judge`.
    pub grpc: SocketAddr,
    /// Address of the OpenAI-compatible front.
    #[serde(default)]
    pub http: Option<SocketAddr>,
    /// Providers by name; the first is the default.
    pub providers: Vec<ProviderConfig>,
    /// Durable answer cache (one file); none keeps nothing.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// Extra answer templates by name: a file each with `{question}` and `{documents}`.
    #[serde(default)]
    pub templates: std::collections::BTreeMap<String, PathBuf>,
    /// Accepted bytes of one request.
    #[serde(default = "default_body")]
    pub body_limit: usize,
}

fn default_body() -> usize {
    64 << 20
}
