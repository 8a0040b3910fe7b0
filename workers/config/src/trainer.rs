//! The trainer: `baseline`, `sft`, `train`, `export`.

use crate::{
    AlgorithmConfig, ArmMethod, Compatibility, DTypeKind, Determinism, Endpoint, LoraConfig, ModelSpec,
    OptimizerConfig, RewardConfig, Runtime, SearchConfig,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A question file under its dataset name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DatasetConfig {
    /// Dataset name; enters ids and digests.
    pub name: String,
    /// The file: JSON lines, JSON or Parquet.
    pub path: PathBuf,
    /// The public set that it holds; of a file with several only its rows are taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<String>,
    /// Only rows of this split, where rows say theirs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<String>,
    /// Where question and answers stand in a row; the usual places by default.
    #[serde(default, skip_serializing_if = "QuestionFields::is_default")]
    pub fields: QuestionFields,
}

/// Columns of a question file, members of members with dots: `reward_model.ground_truth.target`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct QuestionFields {
    /// The id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The question.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub question: Option<String>,
    /// The gold answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers: Option<String>,
    /// The options of a multiple-choice question, by their letters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<String>,
    /// Titles of the evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
}

impl QuestionFields {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// How answers are asked of the gateway, and judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GeneratorConfig {
    /// The gateway.
    pub endpoint: Endpoint,
    /// Provider name; empty means the gateway's first.
    #[serde(default)]
    pub model: String,
    /// Answer template by name.
    #[serde(default = "default_template")]
    pub template: String,
    /// New tokens of an answer.
    #[serde(default = "default_answer_tokens")]
    pub max_tokens: u32,
    /// Answers longer than this (normalised words) are wrong.
    #[serde(default = "default_max_answer_words")]
    pub max_answer_tokens: u32,
    /// Words (white-space separated) kept of each passage in the prompt; 0 keeps all.
    #[serde(default)]
    pub passage_words: u32,
    /// Provider that judges; none is span only.
    #[serde(default)]
    pub judge: Option<String>,
    /// Requests sent together; fixes batches in Bitwise mode.
    #[serde(default = "default_chunk")]
    pub chunk: usize,
    /// Who asks, for budgets and accounting; empty takes the component's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caller: String,
    /// File with the caller's token, where the gateway asks for one; read at each start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

impl GeneratorConfig {
    /// No generator: what `compatibility: SearchR1` has, whose searcher answers itself.
    pub fn none() -> Self {
        Self {
            endpoint: Endpoint::default(),
            model: String::new(),
            template: default_template(),
            max_tokens: default_answer_tokens(),
            max_answer_tokens: default_max_answer_words(),
            passage_words: 0,
            judge: None,
            chunk: default_chunk(),
            caller: String::new(),
            token_file: None,
        }
    }

    /// Whether it is none.
    pub fn is_none(&self) -> bool {
        self.endpoint.address.is_empty()
    }
}

fn default_template() -> String {
    "short-answer".into()
}
fn default_answer_tokens() -> u32 {
    32
}
fn default_max_answer_words() -> u32 {
    16
}
fn default_chunk() -> usize {
    64
}

/// A step prefers questions whose last episodes were neither all right nor all wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DifficultyBufferConfig {
    /// Questions remembered.
    pub capacity: usize,
    /// Share of each step that is drawn from them.
    pub share: f64,
}

/// Which questions are trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainDataConfig {
    /// Training questions.
    pub datasets: Vec<DatasetConfig>,
    /// The corpus, to keep questions that it can answer.
    #[serde(default)]
    pub corpus: Option<PathBuf>,
    /// Only this part of the questions, `0/2` being the first half by hash: parts never overlap.
    #[serde(default)]
    pub part: Option<String>,
    /// Questions kept at most, in hash order.
    #[serde(default)]
    pub limit: Option<usize>,
    /// Leave out questions that the baseline already answers.
    #[serde(default)]
    pub drop_baseline_solved: bool,
    /// Leave out questions answered by yes, no, true or false.
    #[serde(default = "default_true")]
    pub drop_yes_no: bool,
    /// See [`DifficultyBufferConfig`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub difficulty_buffer: Option<DifficultyBufferConfig>,
}

fn default_true() -> bool {
    true
}

/// What gains are measured against: naive RAG, or another method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BaselineConfig {
    /// Passages of the raw question, for naive RAG.
    pub top_k: u32,
    /// The method, where it is not naive RAG.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<ArmMethod>,
}

impl Default for BaselineConfig {
    fn default() -> Self {
        Self { top_k: 3, method: None }
    }
}

/// Servers that write the turns of training episodes: vLLM, or what speaks its dialect of the `OpenAI` API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineConfig {
    /// Base addresses up to and with `/v1`; each serves the searcher's base model.
    pub endpoints: Vec<String>,
    /// File with the key that they ask for; read when it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_file: Option<PathBuf>,
    /// Folder in which policies are handed over; the servers see it by the same path.
    pub dir: PathBuf,
    /// Deadline of one call, milliseconds.
    #[serde(default = "default_engine_deadline")]
    pub deadline_ms: u64,
    /// Attempts of a call before its episode is masked.
    #[serde(default = "default_engine_attempts")]
    pub attempts: u32,
}

fn default_engine_deadline() -> u64 {
    300_000
}
fn default_engine_attempts() -> u32 {
    5
}

/// One round of episodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// Questions per policy update step.
    pub questions: usize,
    /// Episodes per question.
    pub samples: usize,
    /// Sampling temperature.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Episodes under way at once, each with its keys and values.
    pub batch: usize,
    /// Episodes per backward pass; fixes reductions in Bitwise mode.
    pub micro_batch: usize,
    /// Episodes per optimiser step; 0 takes the whole round.
    pub mini_batch: usize,
    /// Step t trains on episodes of the policy after t − 1 − this updates.
    #[serde(skip_serializing_if = "is_zero")]
    pub staleness: u32,
    /// Threads that decode; changes no result.
    #[serde(skip_serializing_if = "is_one")]
    pub workers: usize,
    /// Servers that write the episodes; by default this process does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineConfig>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's shape
fn is_zero(staleness: &u32) -> bool {
    *staleness == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's shape
fn is_one(workers: &usize) -> bool {
    *workers == 1
}

impl Default for RolloutConfig {
    fn default() -> Self {
        Self {
            questions: 120,
            samples: 1,
            temperature: 1.0,
            top_p: 1.0,
            batch: 64,
            micro_batch: 4,
            mini_batch: 0,
            staleness: 0,
            workers: 1,
            engine: None,
        }
    }
}

/// When checkpoints are taken and which are kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Folder of published checkpoints.
    pub dir: PathBuf,
    /// Every so many steps.
    #[serde(default = "default_one")]
    pub every: u32,
    /// The newest so many are kept.
    #[serde(default = "default_keep")]
    pub keep: u32,
}

fn default_one() -> u32 {
    1
}
fn default_keep() -> u32 {
    3
}

/// Which steps' searchers are kept for evaluations of their own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MilestonesConfig {
    /// Every so many steps.
    pub every: u32,
    /// Folder of the adapters, one below it per step; see [`milestone_folder`].
    pub dir: PathBuf,
}

/// Name of the folder of a step's adapter below [`MilestonesConfig::dir`].
pub fn milestone_folder(step: u32) -> String {
    format!("step-{step:06}")
}

/// Ends a training before its last step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StopConfig {
    /// Gain on the held-out questions at which training is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target_gain: Option<f64>,
    /// Probes without a higher gain after which training is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u32>,
}

/// What a guard looks at, step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GuardMetric {
    /// Mean entropy of action tokens, nats.
    Entropy,
    /// Share of turns that could be read.
    FormatRate,
    /// Executed searches per question.
    SearchesPerQuestion,
    /// Divergence between the policy as sampled and as trained.
    MismatchKl,
}

impl GuardMetric {
    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Self::Entropy => "entropy",
            Self::FormatRate => "format rate",
            Self::SearchesPerQuestion => "searches per question",
            Self::MismatchKl => "mismatch KL",
        }
    }
}

/// What a guard does, from mild to grave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum GuardAction {
    /// It says so.
    #[default]
    Warn,
    /// It returns to the newest checkpoint before its bound was passed, and samples otherwise from there.
    Rollback,
    /// It saves and ends the process.
    Pause,
}

/// Bounds on one measured value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GuardConfig {
    /// What is looked at.
    pub metric: GuardMetric,
    /// Smallest healthy value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest healthy value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Steps in a row beyond it before anything is done.
    pub steps: u32,
    /// What is done.
    #[serde(default)]
    pub action: GuardAction,
}

/// Greedy evaluation on held-out training questions during training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProbeConfig {
    /// Every so many steps (and before the first and after the last).
    pub every: u32,
    /// Held-out questions.
    pub datasets: Vec<DatasetConfig>,
    /// How many, in hash order.
    pub limit: usize,
    /// Whether the searcher with the highest gain here is exported, instead of the last one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub export_best: bool,
}

/// Supervised warm start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SftConfig {
    /// What is taught.
    pub task: SftTask,
    /// Passes over the traces.
    pub epochs: u32,
    /// Traces per optimiser step.
    pub batch: usize,
    /// Traces per backward pass.
    pub micro_batch: usize,
    /// Share of traces that search; the rest stop at once.
    pub search_share: f64,
    /// Sub-queries tried for one search trace.
    pub query_trials: usize,
    /// Whether queries with a gold answer in them are tried first.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hindsight: bool,
    /// Whether traces follow the evidence that a set marks, where it marks any.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub evidence: bool,
    /// Traces at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// What a warm start teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SftTask {
    /// The search protocol, from traces made of training questions.
    #[default]
    Protocol,
    /// Short answers from passages, for the built-in generator.
    ShortAnswer,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self {
            task: SftTask::Protocol,
            epochs: 2,
            batch: 32,
            micro_batch: 8,
            search_share: 0.5,
            query_trials: 40,
            hindsight: false,
            evidence: false,
            limit: None,
        }
    }
}

impl TrainerConfig {
    /// Whether the searcher answers itself: no generator is asked, and nothing is compared with.
    pub fn answers_itself(&self) -> bool {
        self.search.compatibility == Compatibility::SearchR1
    }
}

/// Every command of the trainer reads this one structure.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainerConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// Seed of everything random.
    pub seed: u64,
    /// See [`Determinism`].
    #[serde(default)]
    pub determinism: Determinism,
    /// The model that learns (its `adapter` is where training starts).
    pub searcher: ModelSpec,
    /// Adapter shape when the searcher brings none.
    #[serde(default)]
    pub lora: LoraConfig,
    /// Whether all weights are trained, and no adapter.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// The retriever.
    pub retriever: Endpoint,
    /// The frozen generator; left out where the searcher answers itself.
    #[serde(default = "GeneratorConfig::none", skip_serializing_if = "GeneratorConfig::is_none")]
    pub generator: GeneratorConfig,
    /// Training questions.
    pub data: TrainDataConfig,
    /// What gains are measured against.
    #[serde(default)]
    pub baseline: BaselineConfig,
    /// Folder of the baseline's stored answers, shared by `baseline` and `train`.
    pub baseline_store: PathBuf,
    /// The loop.
    #[serde(default)]
    pub search: SearchConfig,
    /// Rewards.
    #[serde(default)]
    pub reward: RewardConfig,
    /// Learning.
    #[serde(default)]
    pub algorithm: AlgorithmConfig,
    /// Optimiser.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Episodes.
    #[serde(default)]
    pub rollout: RolloutConfig,
    /// Policy update steps.
    pub steps: u32,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Searchers that are kept for evaluations of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub milestones: Option<MilestonesConfig>,
    /// When it ends before its last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopConfig>,
    /// What counts as a collapsing policy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guards: Vec<GuardConfig>,
    /// Folder of another training's checkpoints, or one checkpoint, whose newest this one starts from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume_from: Option<PathBuf>,
    /// Held-out evaluation during training.
    #[serde(default)]
    pub probe: Option<ProbeConfig>,
    /// Warm start, for `sft`.
    #[serde(default)]
    pub sft: SftConfig,
    /// Folder that `train` and `sft` export to: an adapter in PEFT's layout, or all weights as a Hugging Face folder.
    pub export: PathBuf,
    /// Arithmetic type of the exported tensors; Bf16 halves the files.
    #[serde(default)]
    pub export_dtype: DTypeKind,
}
