//! `EvalRun`: methods × datasets × metrics, with statistics and a report.

use crate::{
    Artifact, Compatibility, DType, DataSource, Dataset, Determinism, Device, Generator, Judge, LocalRef, ModelSource,
    PodOverrides, Queue, Resources, RetrievalMethod, RetrieverUse, Search, Storage, condition_list, rules,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Compares methods on the same questions with the same generator.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "searchagent.dev",
    version = "v1alpha1",
    kind = "EvalRun",
    plural = "evalruns",
    singular = "evalrun",
    shortname = "s3er",
    category = "s3",
    namespaced,
    status = "EvalRunStatus",
    derive = "PartialEq",
    doc = "Compares methods on the same questions with the same generator.",
    printcolumn = r#"{"name":"Done","type":"integer","description":"Questions × arms answered","jsonPath":".status.done"}"#,
    printcolumn = r#"{"name":"Of","type":"integer","jsonPath":".status.total"}"#,
    printcolumn = r#"{"name":"Best","type":"string","description":"Arm with the highest GenAcc","jsonPath":".status.best.arm"}"#,
    printcolumn = r#"{"name":"GenAcc","type":"number","jsonPath":".status.best.genAcc"}"#,
    printcolumn = r#"{"name":"GBR","type":"number","jsonPath":".status.best.gbr"}"#,
    printcolumn = r#"{"name":"Succeeded","type":"string","jsonPath":".status.conditions[?(@.type==\"Succeeded\")].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type==\"Succeeded\")].reason"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[
    &rules::BITWISE_FALLBACKS,
    &rules::ARM_RETRIEVER, &rules::BUDGET_ARM, &rules::BASELINE_ARM, &rules::PAIRED_ARM, &rules::ELIGIBLE_NEEDS_INDEX,
    &rules::SAMPLE_IMMUTABLE, &rules::SEED_IMMUTABLE,
])))]
pub struct EvalRunSpec {
    /// What is compared, in table order.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub arms: Vec<Arm>,
    /// Index of arms that name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriever: Option<RetrieverUse>,
    /// The frozen model that answers, for every arm.
    pub generator: Generator,
    /// The model that judges answers; without it a gold answer's span decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub judge: Option<Judge>,
    /// Evaluation questions.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub datasets: Vec<Dataset>,
    /// Which of the questions are asked.
    #[serde(default)]
    pub sample: Sample,
    /// How searchers decode.
    #[serde(default)]
    pub decoding: Decoding,
    /// Columns of the tables, in order; everything is measured and exported whatever is chosen.
    #[serde(default = "default_metrics")]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "set"))]
    pub metrics: Vec<MetricName>,
    /// Intervals and tests.
    #[serde(default)]
    pub statistics: Statistics,
    /// The report page.
    #[serde(default)]
    pub report: Report,
    /// Seed of the sample and of the bootstrap.
    #[serde(default = "default_seed")]
    #[schemars(range(max = 9_007_199_254_740_991_u64))]
    pub seed: u64,
    /// `Bitwise`: same seed, same digest.
    #[serde(default)]
    pub determinism: Determinism,
    /// Questions per journalled unit of work; a resumed run repeats at most one.
    #[serde(default = "default_chunk")]
    #[schemars(range(min = 1, max = 65_536))]
    pub chunk: u32,
    /// Where results are kept.
    #[serde(default)]
    pub storage: Storage,
    /// CPU, memory and GPUs of the evaluator.
    #[serde(default)]
    pub resources: Resources,
    /// Additions to the evaluator's pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodOverrides>,
    /// Kueue queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<Queue>,
    /// Stops after the current unit of work; `false` goes on from there.
    #[serde(default)]
    pub suspend: bool,
    /// Seconds that the run may take in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub active_deadline_seconds: Option<u64>,
    /// Time after which a finished run is deleted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds_after_finished: Option<u64>,
}

fn default_seed() -> u64 {
    1
}
fn default_chunk() -> u32 {
    16
}
fn default_metrics() -> Vec<MetricName> {
    use MetricName::{ExactMatch, F1, Gbr, GenAcc, Latency, Passages, Searches, Tokens};
    vec![GenAcc, ExactMatch, F1, Gbr, Searches, Passages, Tokens, Latency]
}

/// How an arm gathers passages and answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ArmMethod {
    /// A trained searcher.
    S3,
    /// No passages.
    #[default]
    Direct,
    /// No passages, step by step.
    ChainOfThought,
    /// The top passages of the raw question; with `budgetFrom` as many as another arm handed over.
    Rag,
    /// A rewritten query (arXiv 2503.00223).
    DeepRetrieval,
    /// Retrieval interleaved with reasoning (arXiv 2212.10509).
    IrCot,
    /// Search inside reasoning (arXiv 2501.05366).
    SearchO1,
    /// A model that searches and answers itself (arXiv 2503.09516).
    SearchR1,
    /// A model tuned to answer.
    Sft,
    /// A model trained to reason and answer.
    R1,
}

/// What is taken from a searcher to see what it is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Ablation {
    /// Nothing.
    #[default]
    None,
    /// No initial passages.
    NoInitial,
    /// All passages instead of the selected ones.
    NoSelection,
    /// Both.
    NoBoth,
}

/// Who answers an arm's questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AnswerBy {
    /// The run's generator, from the passages that the arm hands over.
    #[default]
    Generator,
    /// The arm's own model.
    Own,
}

/// What of a budget is equal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BudgetUnit {
    /// The number of passages.
    #[default]
    Passages,
    /// The number of their tokens, as near as whole passages come.
    Tokens,
}

/// One compared method.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[
    &rules::S3_NEEDS_SEARCHER, &rules::LOOP_SETTINGS, &rules::TOP_K_METHOD, &rules::RAG_NEEDS_COUNT, &rules::BUDGET_IS_RAG,
    &rules::BUDGET_BY_NEEDS_FROM, &rules::OWN_MODEL, &rules::OWN_ANSWER, &rules::ABLATION_IS_S3, &rules::LOOP_COMPATIBILITY,
])))]
pub struct Arm {
    /// Unique name, shown in tables.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-zA-Z0-9]([-_.a-zA-Z0-9]*[a-zA-Z0-9])?$"))]
    pub name: String,
    /// How it gathers passages.
    pub method: ArmMethod,
    /// Its index, when not the run's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retriever: Option<ArmRetriever>,
    /// Passages: of `Rag` in all, of other methods per search.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub top_k: Option<u32>,
    /// `Rag` with as many passages, question by question, as this arm handed over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub budget_from: Option<String>,
    /// What of that budget is equal; by default the number of passages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_by: Option<BudgetUnit>,
    /// The model that searches or answers: `S3`, `Sft` and `R1` need it; `SearchR1`, `SearchO1`, `IrCot` and
    /// `DeepRetrieval` take the generator's without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub searcher: Option<ArmSearcher>,
    /// Who answers. By default `SearchR1` answers itself, and the generator answers from what `SearchO1` and `IrCot`
    /// found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerBy>,
    /// The search loop; by default that of the searcher's job, for other methods their paper's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<Search>,
    /// Whose search loop is reproduced: `S3` for method `S3` (by default as the searcher's job), `SearchR1` for method
    /// `SearchR1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compatibility: Option<Compatibility>,
    /// What is taken from it.
    #[serde(default)]
    pub ablation: Ablation,
}

/// A retriever that is no index, for control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ControlRetriever {
    /// Finds nothing.
    #[default]
    Empty,
    /// Finds random passages.
    Random,
    /// Finds passages with a gold answer first, then what else the run's index ranks.
    Oracle,
    /// Finds the passages that the question's set marks as evidence first, then what else the run's index ranks.
    Evidence,
}

/// Where an arm searches. Exactly one member is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::ONE_ARM_RETRIEVER])))]
pub struct ArmRetriever {
    /// A `RetrieverIndex`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index_ref: Option<LocalRef>,
    /// A control; all but `Empty` draw from the run's index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<ControlRetriever>,
    /// Ranking.
    #[serde(default)]
    pub method: RetrievalMethod,
}

/// Which of a job's checkpoints is evaluated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CheckpointChoice {
    /// What the job exported when it was done.
    #[default]
    Final,
    /// The newest verified one at the time when the evaluation begins, also while the job runs. It is copied then,
    /// so that the evaluation goes on with the same one whatever the job does meanwhile.
    Latest,
    /// The one after the step that `step` names, which the job keeps because its `evaluation.runs` asks for it.
    Step,
    /// What the job's warm start exported: the searcher before reinforcement.
    WarmStart,
}

/// The searcher of an arm: a job's, or a model with an adapter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[
    &rules::ONE_SEARCHER, &rules::ADAPTER_NEEDS_MODEL, &rules::STEP_CHOICE, &rules::PIN_NEEDS_STEP,
])))]
pub struct ArmSearcher {
    /// The searcher that this `S3TrainingJob` trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job_ref: Option<LocalRef>,
    /// Which of the job's checkpoints.
    #[serde(default)]
    pub checkpoint: CheckpointChoice,
    /// The step of `checkpoint: Step`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub step: Option<u32>,
    /// Expected sha256 of that step's adapter; with it the evaluation need not wait for the end of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^[a-f0-9]{64}$"))]
    pub sha256: Option<String>,
    /// A model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<ModelSource>,
    /// Adapter (PEFT layout) over the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<DataSource>,
    /// Processor.
    #[serde(default)]
    pub device: Device,
    /// Arithmetic type.
    #[serde(default)]
    pub dtype: DType,
}

/// Which of the questions are asked. Nothing here looks at whether the baseline is right: gains would be free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Sample {
    /// Questions in all, in hash order; all by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub size: Option<u32>,
    /// Only questions that the index can answer: a gold answer stands in some passage, and not in the question.
    pub eligible: bool,
    /// Training jobs whose questions are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub exclude_training_of: Vec<LocalRef>,
}

/// How searchers decode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Decoding {
    /// Sampling temperature; 0 is greedy.
    #[schemars(range(min = 0, max = 10))]
    pub temperature: f64,
    /// Nucleus: only the likeliest tokens of this total probability are sampled; 1 is off.
    #[schemars(range(min = 0.01, max = 1))]
    pub top_p: f64,
    /// Episodes decoded together; part of what `determinism: Bitwise` fixes.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: u32,
}

impl Default for Decoding {
    fn default() -> Self {
        Self { temperature: 0.0, top_p: 1.0, batch: 16 }
    }
}

/// A column of the tables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum MetricName {
    /// Share of right answers: span, and the judge where there is one.
    #[default]
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
    /// Share of the set's marked evidence titles that was handed over; where it marks none, whether a passage that was
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
    /// Cost of the generator's tokens at the prices of `generator.budget`.
    Cost,
}

/// Correction for comparing many arms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Correction {
    /// None.
    None,
    /// Holm's step-down.
    #[default]
    Holm,
    /// Benjamini and Hochberg's false discovery rate.
    BenjaminiHochberg,
}

/// Intervals and tests.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Statistics {
    /// Confidence level.
    #[schemars(range(min = 0.5, max = 0.9999))]
    pub confidence: f64,
    /// Bootstrap resamples.
    #[schemars(range(min = 100, max = 10_000_000))]
    pub resamples: u32,
    /// Arm that gains (GBR) are measured against; by default the first `Rag` arm with a fixed count.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub baseline: Option<String>,
    /// Arms with which every other is compared in pairs, question by question.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub paired_against: Vec<String>,
    /// Correction for comparing many arms.
    pub correction: Correction,
}

impl Default for Statistics {
    fn default() -> Self {
        Self {
            confidence: 0.95,
            resamples: 10_000,
            baseline: None,
            paired_against: Vec::new(),
            correction: Correction::Holm,
        }
    }
}

/// The report page: one self-contained HTML file beside the results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Report {
    /// Whether it is written.
    pub enabled: bool,
    /// Attribution file of the data used (JSON list), shown on the page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attribution: Option<DataSource>,
    /// Shows the learning curves and episodes of the training jobs that arms name.
    pub training: bool,
}

impl Default for Report {
    fn default() -> Self {
        Self { enabled: true, attribution: None, training: true }
    }
}

/// What is known about an evaluation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct EvalRunStatus {
    /// Generation of the spec that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Questions × arms answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done: Option<u64>,
    /// Questions × arms in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// The arm with the highest GenAcc over all datasets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<BestArm>,
    /// Summary per arm and dataset; the full results are the artifact.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 200), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["arm", "dataset"]))]
    pub results: Vec<ArmResult>,
    /// Sha256 of the frozen question list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub questions_digest: Option<String>,
    /// Run digest, once the evaluation is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Full results.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact: Option<Artifact>,
    /// The report page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<String>,
    /// Attempts started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Seconds spent waiting in the queue, all waits that are over together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_wait_seconds: Option<u64>,
    /// Since when it waits in the queue, while it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_since: Option<Time>,
    /// When the first attempt started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When the run finished.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_time: Option<Time>,
    /// `Evaluating`, `Suspended`, `Succeeded`.
    #[schemars(schema_with = "condition_list")]
    pub conditions: Vec<Condition>,
}

/// The best arm, for the printed columns.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BestArm {
    /// Its name.
    pub arm: String,
    /// Its share of right answers.
    pub gen_acc: f64,
    /// Its gain over the baseline arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gbr: Option<f64>,
}

/// A value with its interval.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Estimate {
    /// The value.
    pub value: f64,
    /// Lower end of the interval.
    pub low: f64,
    /// Upper end of the interval.
    pub high: f64,
}

/// One arm on one dataset (`all` for all together).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ArmResult {
    /// The arm.
    pub arm: String,
    /// The dataset.
    pub dataset: String,
    /// Questions answered.
    pub questions: u64,
    /// Questions lost to failures of the infrastructure; in no figure.
    #[serde(default)]
    pub failed: u64,
    /// Share of right answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gen_acc: Option<Estimate>,
    /// Share of exact matches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exact_match: Option<Estimate>,
    /// Mean token F1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f1: Option<Estimate>,
    /// Gain over the baseline arm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gbr: Option<Estimate>,
    /// Searches per question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub searches: Option<f64>,
    /// Passages per question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passages: Option<f64>,
}
