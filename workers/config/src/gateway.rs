//! The generator gateway.

use crate::{ModelSpec, Runtime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
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
    /// Any OpenAI-compatible endpoint.
    OpenAi(OpenAiConfig),
    /// Azure OpenAI.
    AzureOpenAi(AzureOpenAiConfig),
    /// Anthropic's Messages API.
    Anthropic(AnthropicConfig),
    /// AWS Bedrock (Converse).
    Bedrock(BedrockConfig),
}

/// Any OpenAI-compatible endpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenAiConfig {
    /// Name callers use.
    pub name: String,
    /// Base address up to `/v1`.
    pub base_url: String,
    /// Further addresses that serve the same model: a prompt goes where its beginning went before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replicas: Vec<String>,
    /// Model name sent upstream.
    pub model: String,
    /// File with the key; reread when it changes, so a rotated secret needs no restart.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: CallLimits,
}

/// Azure OpenAI.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AzureOpenAiConfig {
    /// Name callers use.
    pub name: String,
    /// Address of the Azure resource.
    pub endpoint: String,
    /// Deployment name.
    pub deployment: String,
    /// API version, a date.
    pub api_version: String,
    /// File with the key.
    pub api_key_file: PathBuf,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: CallLimits,
}

/// Anthropic's Messages API.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AnthropicConfig {
    /// Name callers use.
    pub name: String,
    /// Base address without `/v1`.
    #[serde(default = "default_anthropic")]
    pub base_url: String,
    /// Model name sent upstream.
    pub model: String,
    /// File with the key.
    pub api_key_file: PathBuf,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: CallLimits,
}

/// AWS Bedrock.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BedrockConfig {
    /// Name callers use.
    pub name: String,
    /// AWS region; part of the address and of the signature.
    pub region: String,
    /// Model id, inference profile or ARN.
    pub model: String,
    /// AWS credentials file (`[default]`, `aws_access_key_id = …`); none takes the environment's keys or the
    /// pod's identity.
    #[serde(default)]
    pub credentials_file: Option<PathBuf>,
    /// Address, when not the region's public one.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: CallLimits,
}

/// Limits on the calls to a provider.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CallLimits {
    /// Calls in flight at most.
    pub concurrency: usize,
    /// Deadline of one attempt, milliseconds.
    pub deadline_ms: u64,
    /// Attempts per request.
    pub attempts: u32,
    /// Requests a minute at most, over all providers with the same address and key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute at most, prompt and answer together, over all providers with the same address and key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_per_minute: Option<u64>,
    /// Calls that may wait for their turn; more are refused with a hint when to come back.
    pub queue: usize,
    /// A second attempt is sent beside one that has not answered within this time; none never does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge_after_ms: Option<u64>,
    /// First waiting time between attempts, milliseconds; it doubles with each.
    pub backoff_ms: u64,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            concurrency: 64,
            deadline_ms: 120_000,
            attempts: 6,
            requests_per_minute: None,
            tokens_per_minute: None,
            queue: 10_000,
            hedge_after_ms: None,
            backoff_ms: 250,
        }
    }
}

/// What one caller's calls may cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BudgetConfig {
    /// Calls in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// Tokens in all, prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Cost in all, in the currency of the prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
    /// Price of a million prompt tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_price: Option<f64>,
    /// Price of a million answer tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_price: Option<f64>,
}

/// A budget on what one caller asks of some providers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CallerBudget {
    /// The caller: the name of its token's file, or what it calls itself where no tokens are configured.
    pub caller: String,
    /// The providers that are counted together; empty counts all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<String>,
    /// What it may cost.
    pub budget: BudgetConfig,
}

/// How the answer cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheMode {
    /// Looked up and filled.
    #[default]
    ReadWrite,
    /// Looked up, never filled.
    ReadOnly,
    /// Filled, never looked up: answers are asked for anew, and the first stored one stays.
    WriteOnly,
    /// Neither.
    Off,
}

/// A measurement that a judge must have passed before it is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CalibrationConfig {
    /// The report that `calibrate` wrote.
    pub report: PathBuf,
    /// Least lower bound of κ (95 %).
    #[serde(default = "default_kappa")]
    pub min_kappa: f64,
}

fn default_kappa() -> f64 {
    0.6
}
fn default_anthropic() -> String {
    "https://api.anthropic.com".into()
}
fn default_batch() -> usize {
    16
}
fn default_context() -> usize {
    2048
}

impl ProviderConfig {
    /// The name callers use.
    pub fn name(&self) -> &str {
        match self {
            Self::BuiltIn { name, .. } => name,
            Self::OpenAi(config) => &config.name,
            Self::AzureOpenAi(config) => &config.name,
            Self::Anthropic(config) => &config.name,
            Self::Bedrock(config) => &config.name,
        }
    }

    /// Changes the name callers use.
    pub fn rename(&mut self, to: String) {
        let name = match self {
            Self::BuiltIn { name, .. } => name,
            Self::OpenAi(config) => &mut config.name,
            Self::AzureOpenAi(config) => &mut config.name,
            Self::Anthropic(config) => &mut config.name,
            Self::Bedrock(config) => &mut config.name,
        };
        *name = to;
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
    /// Durable answer cache and ledger (one file); none keeps answers in memory only.
    #[serde(default)]
    pub cache: Option<PathBuf>,
    /// How the cache is used.
    #[serde(default)]
    pub cache_mode: CacheMode,
    /// Extra answer templates by name: a file each with `{question}` and `{documents}`.
    #[serde(default)]
    pub templates: BTreeMap<String, PathBuf>,
    /// Providers to ask, in order, when one cannot answer. Their answers are another model's: none unless named.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fallbacks: BTreeMap<String, Vec<String>>,
    /// By judging provider a second one that must agree before an answer counts as correct or incorrect.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub second_judges: BTreeMap<String, String>,
    /// By judging provider the calibration that it must have passed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibrations: BTreeMap<String, CalibrationConfig>,
    /// Folder with one file per caller, its name the caller's and its content the token (a mounted Secret);
    /// reread when it changes. With it every request needs a token, and a token speaks for its caller only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller_tokens: Option<PathBuf>,
    /// By caller a file with its token; reread when it changes. Nobody else can speak in the name of one that stands
    /// here. Beside `callerTokens`, these callers are known too.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tokens: BTreeMap<String, PathBuf>,
    /// Whether callers that have no token in `tokens` are refused. With `callerTokens` they always are.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tokens_only: bool,
    /// What callers' calls may cost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<CallerBudget>,
    /// Networks (`10.0.0.0/8`, `127.0.0.1`) that providers may be reached at although they are loopback,
    /// link-local or reserved. Private networks need no entry.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow_addresses: Vec<String>,
    /// Accepted bytes of one request.
    #[serde(default = "default_body")]
    pub body_limit: usize,
}

fn default_body() -> usize {
    64 << 20
}
