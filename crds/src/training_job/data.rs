//! Training questions, the warm start, and evaluation while training.

use crate::{Dataset, LocalRef, Optimizer, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Training questions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrainingData {
    /// Question sets; all are used together.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub datasets: Vec<Dataset>,
    /// Only this part of the questions, by hash: `0/2` and `1/2` are halves that never overlap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32), regex(pattern = r"^[0-9]{1,6}/[1-9][0-9]{0,5}$"), extend("x-kubernetes-validations" = rules::attach(&[&rules::PART_RANGE])))]
    pub part: Option<String>,
    /// Questions kept at most, in hash order; all by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub limit: Option<u64>,
    /// Which questions are left out.
    #[serde(default)]
    pub filters: DataFilters,
}

/// Which training questions are left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DataFilters {
    /// Those that the baseline already answers. (Never for evaluation: gains would be free there.)
    pub drop_baseline_solved: bool,
    /// Those answered by yes, no, true or false.
    pub drop_yes_no: bool,
    /// Those that no passage of the index can answer.
    pub drop_unanswerable: bool,
    /// Prefers questions whose last episodes were neither all right nor all wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difficulty_buffer: Option<DifficultyBuffer>,
}

impl Default for DataFilters {
    fn default() -> Self {
        Self { drop_baseline_solved: false, drop_yes_no: true, drop_unanswerable: false, difficulty_buffer: None }
    }
}

/// Prefers questions that still teach: a question whose samples of a step were right in part is asked again, the longest
/// unasked first, until they are all right or all wrong. The rest of a step goes through all questions in turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DifficultyBuffer {
    /// Questions remembered; the oldest are let go.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub capacity: u32,
    /// Share of each step's questions that is drawn from it, at most.
    #[schemars(range(min = 0, max = 1))]
    pub share: f64,
}

impl Default for DifficultyBuffer {
    fn default() -> Self {
        Self { capacity: 1024, share: 0.5 }
    }
}

/// What supervised training teaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WarmStartTask {
    /// The search protocol, from traces made of training questions.
    #[default]
    Protocol,
    /// Short answers from passages, for the built-in generator.
    ShortAnswer,
}

/// Supervised training before the first policy update step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WarmStart {
    /// What is taught.
    pub task: WarmStartTask,
    /// Passes over the traces.
    #[schemars(range(min = 1, max = 1000))]
    pub epochs: u32,
    /// Traces per optimiser step.
    #[schemars(range(min = 1, max = 65_536))]
    pub batch: u32,
    /// Traces per backward pass.
    #[schemars(range(min = 1, max = 65_536))]
    pub micro_batch: u32,
    /// Share of traces that search; the rest stop at once.
    #[schemars(range(min = 0, max = 1))]
    pub search_share: f64,
    /// Queries tried for one searching trace.
    #[schemars(range(min = 1, max = 10_000))]
    pub query_trials: u32,
    /// Also tries, and prefers, the question's words with a gold answer after them: the searcher learns to search
    /// for what it believes.
    pub hindsight: bool,
    /// Where a set marks evidence (supporting titles), traces follow it. A searcher asks for the titles one after another,
    /// each that no passage has shown yet, and so learns to read the next hop out of what it found; a generator reads all
    /// of them.
    pub evidence: bool,
    /// Traces at most; by default as many as the questions give.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000_000))]
    pub limit: Option<u32>,
    /// AdamW of the warm start; by default the job's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<Optimizer>,
}

impl Default for WarmStart {
    fn default() -> Self {
        Self {
            task: WarmStartTask::Protocol,
            epochs: 2,
            batch: 32,
            micro_batch: 8,
            search_share: 0.5,
            query_trials: 40,
            hindsight: false,
            evidence: false,
            limit: None,
            optimizer: None,
        }
    }
}

/// Evaluation while training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct TrainingEvaluation {
    /// Greedy evaluation inside the trainer, on few held-out questions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// Full evaluations of checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<ScheduledRuns>,
}

/// Which searcher a job with a probe exports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProbeExport {
    /// That of the last step.
    #[default]
    Last,
    /// That of the step with the highest gain on the held-out questions, the earliest of equals.
    Best,
}

/// Greedy evaluation on held-out questions inside the trainer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Every so many steps, and before the first and after the last.
    #[serde(default = "default_every")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub every: u32,
    /// Held-out questions.
    #[schemars(length(min = 1, max = 32), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub datasets: Vec<Dataset>,
    /// How many of them, in hash order.
    #[serde(default = "default_limit")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: u32,
    /// Which searcher the job exports.
    #[serde(default)]
    pub export: ProbeExport,
}

fn default_every() -> u32 {
    5
}
fn default_limit() -> u32 {
    64
}

/// Full evaluations of checkpoints while training goes on: an `EvalRun` of its own for each, owned by the job.
///
/// The searcher of each of these steps is kept beside the checkpoints until the job goes, however few checkpoints are
/// kept. While the job is suspended, its evaluations are, too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ScheduledRuns {
    /// Every so many steps.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub every: u32,
    /// An `EvalRun` whose spec is the template; its arms that name this job take the checkpoint. It is an evaluation
    /// itself, of what the job exports in the end; with `suspend: true` it is a template alone. Its `suspend` and
    /// `ttlSecondsAfterFinished` are not copied.
    pub template_ref: LocalRef,
}
