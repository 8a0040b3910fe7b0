//! The search loop's limits and policies, and how its episodes are rewarded.

use crate::{ArmMethod, DataSource, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What becomes of the initial passages that no turn selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum InitialPolicy {
    /// All go to the generator, after the selected ones.
    All,
    /// Only selected ones; all of them when the whole episode selected nothing.
    #[default]
    Selected,
    /// Never any.
    None,
}

/// What becomes of a retrieved block of which nothing was selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum UnselectedPolicy {
    /// Its passages are dropped.
    #[default]
    Drop,
    /// Its passages go to the generator.
    Keep,
}

/// Limits and policies of one episode. Lengths are tokens of the searcher's tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::SEARCH_MAX_SELECTED, &rules::CONTEXT_HOLDS_TURN])))]
pub struct Search {
    /// Searches executed at most; the initial passages are not counted.
    #[schemars(range(max = 1000))]
    pub max_searches: u32,
    /// Passages per search; by default the retriever's `topK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub top_k: Option<u32>,
    /// Passages of the raw question shown at the start.
    #[schemars(range(max = 1000))]
    pub initial_top_k: u32,
    /// Passages that one turn may select; further ones are ignored.
    #[schemars(range(min = 1, max = 1000))]
    pub max_selected: u32,
    /// Passages handed to the generator at most.
    #[schemars(range(min = 1, max = 1000))]
    pub max_passages: u32,
    /// What becomes of initial passages that no turn selected.
    pub initial: InitialPolicy,
    /// What becomes of a retrieved block of which nothing was selected.
    pub unselected: UnselectedPolicy,
    /// Budget of one passage's text.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub passage_tokens: u32,
    /// Budget of one block of passages; whole passages are dropped from its end.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub observation_tokens: u32,
    /// New tokens of one turn.
    #[schemars(range(min = 1, max = 1_048_576))]
    pub turn_tokens: u32,
    /// Budget of the whole episode; a turn that cannot fit ends it.
    #[schemars(range(min = 1, max = 16_777_216))]
    pub context_tokens: u32,
    /// Corrections after unreadable turns before the episode ends.
    #[schemars(range(max = 1000))]
    pub max_corrections: u32,
    /// File of the prompt: `{question}` and `{documents}` are filled in. Built in by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_template: Option<DataSource>,
    /// A whole line of the prompt, before its placeholders, after which the transcript starts that
    /// `compatibility: S3` parses; by default it starts at the first placeholder.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub prompt_marker: Option<String>,
}

impl Default for Search {
    fn default() -> Self {
        Self {
            max_searches: 3,
            top_k: None,
            initial_top_k: 3,
            max_selected: 3,
            max_passages: 12,
            initial: InitialPolicy::Selected,
            unselected: UnselectedPolicy::Drop,
            passage_tokens: 256,
            observation_tokens: 1400,
            turn_tokens: 500,
            context_tokens: 8000,
            max_corrections: 1,
            prompt_template: None,
            prompt_marker: None,
        }
    }
}

/// The reward of one scored episode: a = searcher's passages right, z = baseline right.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RewardKind {
    /// a − z, the paper's Gain Beyond RAG. Group-relative estimators cancel z; filters and reports use it.
    #[default]
    GainBeyondRag,
    /// 2·a − z, what the reference's code trains on.
    ReferenceCode,
    /// a alone.
    GenerationAccuracy,
}

/// What a failure of the retriever, generator or judge does to a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnInfrastructureFailure {
    /// The sample leaves the batch; it never counts as a wrong answer.
    #[default]
    Mask,
    /// The attempt ends, and the failure policy decides. What was had is kept; the next attempt asks the rest.
    Fail,
}

/// How episodes are rewarded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Reward {
    /// The reward's formula.
    pub kind: RewardKind,
    /// Terms added to it.
    pub shaping: Shaping,
    /// What a failure of the infrastructure does to a sample.
    pub on_infrastructure_failure: OnInfrastructureFailure,
    /// What gains are measured against.
    pub baseline: Baseline,
    /// Under `compatibility: SearchR1`, the reward of an answer that is wrong.
    #[schemars(range(min = 0, max = 1))]
    pub format_score: f64,
}

/// Terms added to the reward.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Shaping {
    /// Added for each turn that could not be read; 0 or less.
    #[schemars(range(max = 0))]
    pub invalid_turn: f64,
    /// Added for each executed search; 0 or less.
    #[schemars(range(max = 0))]
    pub search_cost: f64,
}

/// What gains are measured against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::BASELINE_METHOD])))]
pub struct Baseline {
    /// How it gathers passages, or answers: `Rag` is naive RAG; the others are played by the generator's model, greedily and
    /// with their paper's limits, once per question. `S3`, `Sft` and `R1` are models, and a baseline has none of its own.
    pub method: ArmMethod,
    /// Passages: of `Rag` in all, of other methods per search.
    #[schemars(range(max = 1000))]
    pub top_k: u32,
}

impl Default for Baseline {
    fn default() -> Self {
        Self { method: ArmMethod::Rag, top_k: 3 }
    }
}
