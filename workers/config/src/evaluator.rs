//! The evaluator.

use crate::{DatasetConfig, Determinism, Endpoint, GeneratorConfig, ModelSpec, RetrievalMethod, Runtime, SearchConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How an arm gathers passages, or answers itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "method", deny_unknown_fields)]
pub enum ArmMethod {
    /// No passages.
    Direct {},
    /// The top passages of the raw question.
    #[serde(rename_all = "camelCase")]
    Rag {
        /// Passages.
        top_k: u32,
        /// Ranking.
        #[serde(default, skip_serializing_if = "is_default")]
        ranking: RetrievalMethod,
    },
    /// Per question as many top passages as the named arm handed over.
    #[serde(rename_all = "camelCase")]
    SameBudgetRag {
        /// The arm whose counts are taken.
        budget_from: String,
        /// What is counted.
        #[serde(default, skip_serializing_if = "is_default")]
        budget_by: BudgetUnit,
        /// Ranking.
        #[serde(default, skip_serializing_if = "is_default")]
        ranking: RetrievalMethod,
    },
    /// A searcher.
    #[serde(rename_all = "camelCase")]
    S3 {
        /// The searcher, with the adapter to evaluate.
        searcher: Box<ModelSpec>,
        /// The loop.
        search: SearchConfig,
        /// Sampling temperature; 0 is greedy.
        #[serde(default)]
        temperature: f64,
        /// Nucleus; 1 is off.
        #[serde(default = "whole", skip_serializing_if = "is_whole")]
        top_p: f64,
        /// Episodes decoded together.
        #[serde(default = "default_batch")]
        batch: usize,
    },
    /// No passages, step by step.
    ChainOfThought(Box<PlayedArm>),
    /// A model that was tuned to answer.
    Sft(Box<PlayedArm>),
    /// A model that was trained to reason and answer.
    R1(Box<PlayedArm>),
    /// A model that searches and answers itself.
    SearchR1(Box<PlayedArm>),
    /// Search inside reasoning.
    SearchO1(Box<PlayedArm>),
    /// Retrieval interleaved with reasoning.
    IrCot(Box<PlayedArm>),
    /// A rewritten query.
    DeepRetrieval(Box<PlayedArm>),
}

/// Whose protocol a played arm follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolKind {
    /// Step by step, without search.
    ChainOfThought,
    /// An answer, without search.
    Sft,
    /// Reasoning and an answer, without search.
    R1,
    /// `<search>` and `<answer>`.
    SearchR1,
    /// Search inside reasoning, documents read aside.
    SearchO1,
    /// Sentence by sentence.
    IrCot,
    /// One rewritten query.
    DeepRetrieval,
}

impl ArmMethod {
    /// The protocol, where the arm plays one.
    pub fn played(&self) -> Option<(ProtocolKind, &PlayedArm)> {
        Some(match self {
            Self::Direct {} | Self::Rag { .. } | Self::SameBudgetRag { .. } | Self::S3 { .. } => return None,
            Self::ChainOfThought(arm) => (ProtocolKind::ChainOfThought, arm),
            Self::Sft(arm) => (ProtocolKind::Sft, arm),
            Self::R1(arm) => (ProtocolKind::R1, arm),
            Self::SearchR1(arm) => (ProtocolKind::SearchR1, arm),
            Self::SearchO1(arm) => (ProtocolKind::SearchO1, arm),
            Self::IrCot(arm) => (ProtocolKind::IrCot, arm),
            Self::DeepRetrieval(arm) => (ProtocolKind::DeepRetrieval, arm),
        })
    }

    /// The arm's own model, where it has one.
    pub fn searcher_mut(&mut self) -> Option<&mut ModelSpec> {
        match self {
            Self::Direct {} | Self::Rag { .. } | Self::SameBudgetRag { .. } => None,
            Self::S3 { searcher, .. } => Some(searcher),
            Self::ChainOfThought(arm)
            | Self::Sft(arm)
            | Self::R1(arm)
            | Self::SearchR1(arm)
            | Self::SearchO1(arm)
            | Self::IrCot(arm)
            | Self::DeepRetrieval(arm) => arm.searcher.as_mut(),
        }
    }

    /// The search loop's settings, where the arm has a loop.
    pub fn search_mut(&mut self) -> Option<&mut SearchConfig> {
        match self {
            Self::Direct {} | Self::Rag { .. } | Self::SameBudgetRag { .. } => None,
            Self::S3 { search, .. } => Some(search),
            Self::ChainOfThought(arm)
            | Self::Sft(arm)
            | Self::R1(arm)
            | Self::SearchR1(arm)
            | Self::SearchO1(arm)
            | Self::IrCot(arm)
            | Self::DeepRetrieval(arm) => Some(&mut arm.search),
        }
    }
}

/// Who answers an arm's questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum AnswerBy {
    /// The generator, from what the arm gathered.
    #[default]
    Generator,
    /// The arm's own model.
    Own,
}

/// What of a budget is equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BudgetUnit {
    /// The number of passages.
    #[default]
    Passages,
    /// The number of their tokens, as near as whole passages come.
    Tokens,
}

/// An arm that plays another method's protocol.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PlayedArm {
    /// The model that plays; none asks the generator's through the gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub searcher: Option<ModelSpec>,
    /// Limits.
    pub search: SearchConfig,
    /// Who answers.
    #[serde(default)]
    pub answer: AnswerBy,
    /// Sampling temperature; 0 is greedy.
    #[serde(default)]
    pub temperature: f64,
    /// Nucleus; 1 is off.
    #[serde(default = "whole", skip_serializing_if = "is_whole")]
    pub top_p: f64,
    /// Questions played together.
    #[serde(default = "default_batch")]
    pub batch: usize,
}

fn default_batch() -> usize {
    16
}
fn whole() -> f64 {
    1.0
}
#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_whole(value: &f64) -> bool {
    *value >= 1.0
}
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A retriever that is no index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Control {
    /// Finds nothing.
    Empty,
    /// Finds random passages of the corpus.
    Random,
    /// Finds passages with a gold answer first.
    Oracle,
    /// Finds the passages that the set marks as evidence first.
    Evidence,
}

/// Where one arm searches, when not where the run does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArmRetrieverConfig {
    /// Another retriever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Endpoint>,
    /// A control, over the run's or that retriever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// The corpus that controls draw from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corpus: Option<PathBuf>,
}

/// One compared method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmConfig {
    /// Unique name, shown in tables.
    pub name: String,
    /// Its own retriever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriever: Option<ArmRetrieverConfig>,
    /// See [`ArmMethod`].
    #[serde(flatten)]
    pub method: ArmMethod,
}

/// How questions are chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SampleConfig {
    /// Questions in all.
    pub size: usize,
    /// Keep only questions that the corpus can answer (the eligible set).
    #[serde(default)]
    pub eligible: bool,
    /// The corpus, for the eligible set.
    #[serde(default)]
    pub corpus: Option<PathBuf>,
    /// Training question files: their questions are left out.
    #[serde(default)]
    pub exclude: Vec<PathBuf>,
    /// Training sets that are a part of their file, or have columns of their own: theirs are left out, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_sets: Vec<DatasetConfig>,
}

/// What a family of tests is corrected by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Correction {
    /// Nothing.
    None,
    /// Holm's step-down.
    #[default]
    Holm,
    /// Benjamini and Hochberg's false discovery rate.
    BenjaminiHochberg,
}

impl Correction {
    #[allow(clippy::trivially_copy_pass_by_ref)] // serde hands references over
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A column of the tables. Everything is measured whatever is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Metric {
    /// Share of right answers: span, and the judge where there is one.
    GenAcc,
    /// Normalised equality with a gold answer.
    ExactMatch,
    /// Token F1 with the nearest gold answer.
    F1,
    /// GenAcc minus the baseline arm's.
    Gbr,
    /// A gold answer's span stands in the answer, whatever its length and the judge say.
    Span,
    /// The judge's word alone.
    JudgeAccuracy,
    /// Share of the marked evidence titles that was handed over; where a set marks none, whether a passage that was
    /// handed over holds a gold answer.
    EvidenceRecall,
    /// Searches per question.
    Searches,
    /// Passages per question.
    Passages,
    /// Tokens that the searcher wrote, and words that the generator was given to read.
    Tokens,
    /// Seconds per question.
    Latency,
    /// What the generator's and judge's calls cost.
    Cost,
}

/// What tables show when nothing is chosen.
pub const METRICS: [Metric; 8] = [
    Metric::GenAcc,
    Metric::ExactMatch,
    Metric::F1,
    Metric::Gbr,
    Metric::Searches,
    Metric::Passages,
    Metric::Tokens,
    Metric::Latency,
];

fn default_metrics() -> Vec<Metric> {
    METRICS.to_vec()
}

fn are_default(metrics: &[Metric]) -> bool {
    metrics == METRICS
}

/// Prices of the generator's tokens, per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Prices {
    /// Of prompt tokens.
    pub prompt: f64,
    /// Of answer tokens.
    pub answer: f64,
}

/// Confidence intervals and tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct StatisticsConfig {
    /// Confidence level.
    pub confidence: f64,
    /// Bootstrap resamples.
    pub resamples: usize,
    /// Arm that gains are measured against (GBR).
    pub baseline: Option<String>,
    /// Arms compared in pairs with every other.
    pub paired_against: Vec<String>,
    /// What the tests are corrected by.
    #[serde(skip_serializing_if = "Correction::is_default")]
    pub correction: Correction,
}

impl Default for StatisticsConfig {
    fn default() -> Self {
        Self {
            confidence: 0.95,
            resamples: 10_000,
            baseline: None,
            paired_against: Vec::new(),
            correction: Correction::default(),
        }
    }
}

/// Provenance shown in the report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReportConfig {
    /// The page (HTML, self-contained).
    pub path: PathBuf,
    /// Attribution file of the data used (JSON list).
    #[serde(default)]
    pub attribution: Option<PathBuf>,
    /// Journals of training runs, for the learning curves and training episodes.
    #[serde(default)]
    pub training: Vec<PathBuf>,
}

/// `s3-evaluator run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvaluatorConfig {
    /// Surroundings.
    pub runtime: Runtime,
    /// Seed of the sample and of the bootstrap.
    pub seed: u64,
    /// See [`Determinism`].
    #[serde(default)]
    pub determinism: Determinism,
    /// Compared methods, in table order.
    pub arms: Vec<ArmConfig>,
    /// Questions.
    pub datasets: Vec<DatasetConfig>,
    /// Choice of questions.
    pub sample: SampleConfig,
    /// The retriever; none where every arm has its own or searches nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriever: Option<Endpoint>,
    /// The frozen generator; left out where the only arm is served and answers itself.
    #[serde(default = "GeneratorConfig::none", skip_serializing_if = "GeneratorConfig::is_none")]
    pub generator: GeneratorConfig,
    /// Questions per journalled unit of work.
    #[serde(default = "default_chunk")]
    pub chunk: usize,
    /// Columns of the tables.
    #[serde(default = "default_metrics", skip_serializing_if = "are_default")]
    pub metrics: Vec<Metric>,
    /// What the generator's tokens cost, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prices: Option<Prices>,
    /// Statistics.
    #[serde(default)]
    pub statistics: StatisticsConfig,
    /// Report page.
    #[serde(default)]
    pub report: Option<ReportConfig>,
    /// Folder of the results artifact.
    pub output: PathBuf,
    /// A searcher that is served instead, for `s3-evaluator serve`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serve: Option<ServeConfig>,
}

/// Serving a searcher.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServeConfig {
    /// Address of `/search`, `/answer` and `/v1/chat/completions`.
    pub http: std::net::SocketAddr,
    /// Episodes decoded together.
    pub batch: usize,
}

fn default_chunk() -> usize {
    16
}
