//! The search loop's limits and policies.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Whose behaviour the loop reproduces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compatibility {
    /// The repaired protocol of this project.
    #[default]
    None,
    /// The s3 reference, to the tag (arXiv 2505.14146 and its code).
    S3,
    /// Search-R1's tags and own answers.
    SearchR1,
}

/// What becomes of the initial block's passages that no turn selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum InitialPolicy {
    /// All go to the generator, after the selected ones.
    All,
    /// Only the selected ones; all of them when the whole episode selected nothing.
    #[default]
    Selected,
    /// Never any.
    None,
}

/// What becomes of a retrieved block of which nothing was selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnselectedPolicy {
    /// Its passages are dropped.
    #[default]
    Drop,
    /// Its passages go to the generator.
    Keep,
}

/// What is taken from a searcher to see what it is worth. The episode itself is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ablation {
    /// Nothing.
    #[default]
    None,
    /// The generator reads none of the initial passages.
    NoInitial,
    /// It reads all passages that were shown, selected or not.
    NoSelection,
    /// Both: all retrieved passages, and none of the initial ones.
    NoBoth,
}

/// How the retriever ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RetrievalMethod {
    /// What the index was configured to serve.
    #[default]
    Default,
    /// BM25 over the inverted index.
    Lexical,
    /// Inner product of embeddings.
    Dense,
    /// Reciprocal rank fusion of both.
    Hybrid,
}

/// Limits and policies of one episode. All lengths are tokens of the searcher's tokenizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct SearchConfig {
    /// Searches executed at most (the initial retrieval is not counted). Under `compatibility: S3`
    /// it is the reference's `max_turns`, which executes one more.
    pub max_searches: u32,
    /// Passages per search.
    pub top_k: u32,
    /// Passages of the raw question shown at the start.
    pub initial_top_k: u32,
    /// Ids accepted per selection; further ones are ignored.
    pub max_selected: u32,
    /// Passages handed to the generator at most.
    pub max_passages: u32,
    /// See [`InitialPolicy`].
    pub initial: InitialPolicy,
    /// See [`UnselectedPolicy`].
    pub unselected: UnselectedPolicy,
    /// Budget of one passage's text.
    pub passage_tokens: u32,
    /// Budget of one information block; whole passages are dropped from its end.
    pub observation_tokens: u32,
    /// New tokens per turn.
    pub turn_tokens: u32,
    /// Budget of the whole episode; a turn that cannot fit ends it.
    pub context_tokens: u32,
    /// Correction observations after unreadable turns, before the episode ends.
    pub max_corrections: u32,
    /// File with the prompt template: `{question}` and `{documents}` are filled in. None: built in.
    pub prompt_template: Option<PathBuf>,
    /// The template's text, filled from the file by whoever loads the configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_text: Option<String>,
    /// A whole line of the template, before its placeholders, after which the transcript starts
    /// that `compatibility: S3` parses. None: it starts at the first placeholder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub marker_line: Option<String>,
    /// Ranking used for searches.
    pub method: RetrievalMethod,
    /// See [`Compatibility`].
    pub compatibility: Compatibility,
    /// See [`Ablation`].
    #[serde(skip_serializing_if = "is_default")]
    pub ablation: Ablation,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Default for SearchConfig {
    fn default() -> Self {
        Self {
            max_searches: 3,
            top_k: 8,
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
            prompt_text: None,
            marker_line: None,
            method: RetrievalMethod::Default,
            compatibility: Compatibility::None,
            ablation: Ablation::None,
        }
    }
}
