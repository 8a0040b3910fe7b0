//! What travels between the loop, its drivers and the scorer.

use serde::{Deserialize, Serialize};

/// One indexed unit of the corpus.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passage {
    /// Unique in its corpus.
    pub id: String,
    /// Title without quotes around it.
    pub title: String,
    /// Body.
    pub text: String,
}

/// A question with the answers that count as right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Unique in its dataset.
    pub id: String,
    /// Dataset name; question files leave it out, whoever loads them fills it in.
    #[serde(default)]
    pub dataset: String,
    /// The question's text.
    pub question: String,
    /// Gold answers; any one is right.
    pub answers: Vec<String>,
}

/// Where a token came from. Only [`Role::Action`] tokens were sampled and are learned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Chat template, instructions, question and the initial block.
    Prompt,
    /// Sampled by the searcher.
    Action,
    /// Returned by the environment: an information block or a correction.
    Observation,
}

/// What a turn asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Search the index.
    Search {
        /// Words for the retriever.
        query: String,
    },
    /// Stop; what was selected goes to the generator.
    Complete,
    /// Writes something down for itself and goes on: what another method's reading aside does.
    Note,
    /// The turn could not be read.
    Invalid {
        /// Why, for reports.
        reason: String,
    },
}

/// Why an episode ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// It has not ended.
    Running,
    /// The searcher said so.
    Complete,
    /// It asked for one search more than allowed.
    SearchLimit,
    /// It wrote one unreadable turn more than is corrected.
    Unreadable,
    /// The next turn or block would not fit the context budget.
    ContextFull,
    /// Infrastructure failed. The sample is masked: it has no reward and is no wrong answer.
    Failed {
        /// What failed.
        reason: String,
    },
}

/// One turn of the searcher.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// What it wrote, decoded, without the end-of-turn token.
    pub text: String,
    /// How that was read.
    pub action: Action,
    /// The passages its ids refer to: the last block shown before it. Id n is `window[n - 1]`.
    pub window: Vec<Passage>,
    /// Accepted selections as indices into `window` (from 0), in the order written.
    pub selected: Vec<usize>,
    /// Its tokens: `start..end` in [`Trajectory::tokens`].
    pub tokens: (usize, usize),
}

/// One episode. `tokens`, `roles` and `logprobs` have one entry per token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trajectory {
    /// [`Question::id`].
    pub question_id: String,
    /// Which of the question's samples this is.
    pub sample: u32,
    /// All token ids: prompt, then turns and observations in order.
    pub tokens: Vec<u32>,
    /// Where each token came from.
    pub roles: Vec<Role>,
    /// Log-probability at sampling temperature of action tokens; 0.0 elsewhere.
    pub logprobs: Vec<f32>,
    /// The turns.
    pub turns: Vec<Turn>,
    /// The passages for the generator, in order.
    pub selected: Vec<Passage>,
    /// Why it ended.
    pub stop: StopReason,
    /// Searches executed.
    pub searches: u32,
}

impl Trajectory {
    /// The infrastructure failure that masks this sample, if there was one.
    pub fn failure(&self) -> Option<&str> {
        match &self.stop {
            StopReason::Failed { reason } => Some(reason),
            _ => None,
        }
    }

    /// Passages handed to the generator: m of the same-budget RAG arm, which takes the top m
    /// passages of the raw question.
    pub fn budget(&self) -> usize {
        self.selected.len()
    }

    /// Turns that could not be read.
    pub fn invalid_turns(&self) -> usize {
        self.turns.iter().filter(|turn| matches!(turn.action, Action::Invalid { .. })).count()
    }

    /// The queries that were searched, in order.
    pub fn queries(&self) -> Vec<&str> {
        let asked = self.turns.iter().filter_map(|turn| match &turn.action {
            Action::Search { query } => Some(query.as_str()),
            _ => None,
        });
        asked.take(self.searches as usize).collect()
    }
}

/// Who says a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Speaker {
    /// Standing instructions.
    System,
    /// The environment.
    User,
    /// The model.
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Message {
    /// Who says it.
    pub speaker: Speaker,
    /// What.
    pub text: String,
}

/// A tokenizer's refusal, e.g. of a chat template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct CodecError(
    /// What went wrong.
    pub String,
);

/// Text to token ids and back, injected so that the loop stays pure.
pub trait Codec {
    /// Token ids of `text`, without any special token added.
    fn encode(&self, text: &str) -> Vec<u32>;
    /// Text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    fn decode(&self, tokens: &[u32]) -> String;
    /// The chat template around one user message, ending with the generation prompt.
    fn chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>, CodecError>;
    /// The token that ends an assistant turn.
    fn end_of_turn(&self) -> u32;
}
