//! Language models that answer and judge: who provides them, their limits and budget.

use crate::{DType, DataSource, Device, Duration, ModelSource, PodOverrides, Quantity, Resources, SecretKeyRef, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who runs a language model. Exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::ONE_PROVIDER])))]
pub struct Provider {
    /// Any OpenAI-compatible chat endpoint (vLLM, SGLang, Together, DeepInfra, DashScope, …).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open_ai_compatible: Option<OpenAiCompatible>,
    /// A small model inside the gateway, for machines without any endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub built_in: Option<BuiltIn>,
    /// Anthropic's Messages API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anthropic: Option<Anthropic>,
    /// Azure OpenAI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_open_ai: Option<AzureOpenAi>,
    /// AWS Bedrock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bedrock: Option<Bedrock>,
    /// A model server that the operator runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed: Option<ManagedServer>,
}

/// Any OpenAI-compatible chat endpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OpenAiCompatible {
    /// Base address up to and with `/v1`.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://.+$"))]
    pub endpoint: String,
    /// Further base addresses that serve the same model: a prompt goes where its beginning went before, so that its
    /// cache is met, unless that server is fuller than the others or down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 2048), regex(pattern = r"^https?://.+$")))]
    pub replicas: Vec<String>,
    /// Model name sent to the endpoint.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// API key; none sends no key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
}

/// A model inside the gateway.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BuiltIn {
    /// The model: a GGUF file or a folder with safetensors.
    pub model: ModelSource,
    /// Short-answer adapter (PEFT layout), frozen for every arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<DataSource>,
    /// Processor.
    #[serde(default)]
    pub device: Device,
    /// Arithmetic type.
    #[serde(default)]
    pub dtype: DType,
    /// Prompts computed together.
    #[serde(default = "default_batch")]
    #[schemars(range(min = 1, max = 4096))]
    pub batch: u32,
    /// Longest prompt plus answer, tokens.
    #[serde(default = "default_context")]
    #[schemars(range(min = 64, max = 1_048_576))]
    pub context_tokens: u32,
}

fn default_batch() -> u32 {
    16
}
fn default_context() -> u32 {
    2048
}

/// Anthropic's Messages API.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Anthropic {
    /// Model name.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// API key.
    pub api_key_secret_ref: SecretKeyRef,
    /// Base address, when not the public one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://.+$"))]
    pub endpoint: Option<String>,
}

/// Azure OpenAI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AzureOpenAi {
    /// Address of the Azure resource.
    #[schemars(length(max = 2048), regex(pattern = r"^https://.+$"))]
    pub endpoint: String,
    /// Deployment name.
    #[schemars(length(min = 1, max = 253))]
    pub deployment: String,
    /// API version, a date.
    #[schemars(length(min = 1, max = 63))]
    pub api_version: String,
    /// API key.
    pub api_key_secret_ref: SecretKeyRef,
}

/// AWS Bedrock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bedrock {
    /// AWS region.
    #[schemars(length(min = 1, max = 63))]
    pub region: String,
    /// Model id.
    #[schemars(length(min = 1, max = 253))]
    pub model: String,
    /// Secret key with an AWS credentials file; none uses the pod's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials_secret_ref: Option<SecretKeyRef>,
}

/// Software of a managed model server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServerEngine {
    /// vLLM.
    #[default]
    Vllm,
    /// `SGLang`.
    Sglang,
}

/// A model server that the operator runs beside the job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedServer {
    /// Its software.
    #[serde(default)]
    pub engine: ServerEngine,
    /// The model that it serves.
    pub model: ModelSource,
    /// Servers behind one address.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 64))]
    pub replicas: u32,
    /// CPU, memory and GPUs of each server.
    #[serde(default)]
    pub resources: Resources,
    /// Further command-line arguments of the server.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub args: Vec<String>,
    /// Additions to its pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
}

fn one() -> u32 {
    1
}

/// Limits on calls to a provider.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// Calls in flight at most.
    #[schemars(range(min = 1, max = 100_000))]
    pub concurrency: u32,
    /// Deadline of one call.
    pub timeout: Duration,
    /// Attempts per request before it counts as failed.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// Requests a minute at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u32>,
    /// Tokens a minute at most, prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens_per_minute: Option<u64>,
    /// Calls that may wait for their turn; more are refused with a hint when to come back. By default 10,000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue: Option<u32>,
    /// Sends a second attempt beside one that has not answered after this time. It costs calls; by default none is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedge_after: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            concurrency: 64,
            timeout: Duration::from_secs(120),
            attempts: 6,
            requests_per_minute: None,
            tokens_per_minute: None,
            queue: None,
            hedge_after: None,
        }
    }
}

/// Another provider, with limits of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OtherProvider {
    /// Who runs it.
    pub provider: Provider,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: Limits,
}

/// A measurement that a judge must have passed before it is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JudgeCalibration {
    /// The report that `s3-generator-gateway calibrate` wrote about this very judge.
    pub report: DataSource,
    /// Least lower bound of Cohen's κ (95 %).
    #[serde(default = "default_kappa")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub min_kappa: f64,
}

fn default_kappa() -> f64 {
    0.6
}

/// What calls may cost before the job stops with `BudgetExhausted`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Budget {
    /// Tokens in all, prompt and answer together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub tokens: Option<u64>,
    /// Calls in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub calls: Option<u64>,
    /// Cost in all, in the currency of the two prices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<Quantity>,
    /// Price of a million prompt tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_million_prompt_tokens: Option<Quantity>,
    /// Price of a million answer tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_per_million_answer_tokens: Option<Quantity>,
}

/// The frozen model that answers from passages.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Generator {
    /// Who runs it.
    pub provider: Provider,
    /// How answers are asked for.
    #[serde(default)]
    pub answer: AnswerFormat,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: Limits,
    /// What its calls may cost, those of its fallbacks included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// Providers to ask, in order, when this one cannot answer. Their answers are another model's, and which one
    /// answers depends on what is up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4))]
    pub fallbacks: Vec<OtherProvider>,
    /// Token (16 characters or more) by which the gateway knows this resource's calls, the judge's too. With it nobody
    /// else can speak in its name, and where all users of a gateway have one, nobody can ask without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller_token_secret_ref: Option<SecretKeyRef>,
}

/// How answers are asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AnswerFormat {
    /// Answer template by name (`short-answer` is built in).
    #[schemars(length(min = 1, max = 63))]
    pub template: String,
    /// File of a template of your own, with `{question}` and `{documents}`; it takes the name above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template_source: Option<DataSource>,
    /// New tokens of an answer.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_tokens: u32,
    /// Answers longer than this many normalised words are wrong; it stops listing everything.
    #[schemars(range(min = 1, max = 65_536))]
    pub max_answer_tokens: u32,
    /// Words kept of each passage in the prompt; 0 keeps all.
    pub passage_words: u32,
    /// Requests sent together; part of what `determinism: Bitwise` fixes.
    #[schemars(range(min = 1, max = 65_536))]
    pub chunk: u32,
}

impl Default for AnswerFormat {
    fn default() -> Self {
        Self {
            template: "short-answer".into(),
            template_source: None,
            max_tokens: 32,
            max_answer_tokens: 16,
            passage_words: 0,
            chunk: 64,
        }
    }
}

/// The model that decides whether an answer contains a gold answer. Without a judge, a gold answer's span decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Judge {
    /// Who runs it.
    pub provider: Provider,
    /// Limits on its calls.
    #[serde(default)]
    pub limits: Limits,
    /// What its calls may cost, those of the second judge included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget: Option<Budget>,
    /// A second judge that must agree; where the two differ the answer counts as neither right nor wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub second: Option<OtherProvider>,
    /// A calibration that this judge (with its second) must have passed; without it the gateway does not start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<JudgeCalibration>,
}
