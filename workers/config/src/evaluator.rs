//! The evaluator.

use crate::{DatasetConfig, Determinism, Endpoint, GeneratorConfig, ModelSpec, Runtime, SearchConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How an arm gathers passages.
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
    },
    /// Per question as many top passages as the named arm handed over.
    #[serde(rename_all = "camelCase")]
    SameBudgetRag {
        /// The arm whose counts are taken.
        budget_from: String,
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
        /// Episodes decoded together.
        #[serde(default = "default_batch")]
        batch: usize,
    },
}

fn default_batch() -> usize {
    16
}

/// One compared method.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArmConfig {
    /// Unique name, shown in tables.
    pub name: String,
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
    /// The retriever.
    pub retriever: Endpoint,
    /// The frozen generator.
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
