//! `DeepRetrieval` (arXiv 2503.00223): a model rewrites the question into a query; the top passages of that query
//! go to the generator.
//!
//! A rewriting that cannot be read is searched as the raw question, as in the reference, and shows as an unreadable
//! turn.

use super::solo::ANSWER;
use super::{Move, Page, Place, Protocol, Write, invalid, prompt};
use crate::episode::SearchError;
use crate::protocol;
use crate::types::{Action, Passage, Question, StopReason};
use s3_config::{RetrievalMethod, SearchConfig};

const BOOLEAN: &str = " The search engine matches words: AND, OR and parentheses may be used.";

fn instructions(lexical: bool) -> String {
    format!(
        "Rewrite the question into a query that finds the passages which answer it.{} Reason first, between <think> and \
</think>; then write the query as JSON between <answer> and </answer>: <answer>{{\"query\": \"words\"}}</answer>.\n\n\
Question: {{question}}\n",
        if lexical { BOOLEAN } else { "" }
    )
}

#[derive(Debug)]
enum Due {
    Rewrite,
    Search { query: String, raw: bool },
    End,
}

/// The machine.
#[derive(Debug)]
pub struct DeepRetrieval {
    prompt: Page,
    question: String,
    due: Due,
    passages: Vec<Passage>,
}

impl DeepRetrieval {
    /// Starts.
    pub fn new(question: &Question, config: &SearchConfig) -> Result<Self, SearchError> {
        Ok(Self {
            prompt: prompt(question, config, &instructions(config.method == RetrievalMethod::Lexical))?,
            question: question.question.clone(),
            due: Due::Rewrite,
            passages: Vec::new(),
        })
    }
}

/// The query in a rewriting.
pub fn read(text: &str) -> Action {
    match ANSWER.last(text) {
        Some(content) => protocol::query(content),
        None => invalid("there is no <answer>"),
    }
}

impl Protocol for DeepRetrieval {
    fn next(&self) -> Move {
        match &self.due {
            Due::Rewrite => Move::Write(Write { place: Place::New, page: self.prompt.clone(), stops: vec![ANSWER] }),
            Due::Search { query, raw } => Move::Retrieve { query: query.clone(), raw: *raw },
            Due::End => Move::Done(StopReason::Complete),
        }
    }

    fn wrote(&mut self, text: &str) -> Action {
        let action = read(text);
        self.due = match &action {
            Action::Search { query } => Due::Search { query: query.clone(), raw: false },
            _ => Due::Search { query: self.question.clone(), raw: true },
        };
        action
    }

    fn found(&mut self, passages: Vec<Passage>) {
        self.passages = passages;
        self.due = Due::End;
    }

    fn passages(&self) -> Vec<Passage> {
        self.passages.clone()
    }

    fn answer(&self) -> String {
        String::new()
    }
}
