//! Answers without search: chain of thought, and models that were tuned (Sft) or trained (R1) to answer.

use super::{Move, Place, Protocol, Tag, Write, invalid, prompt};
use crate::episode::SearchError;
use crate::script::Page;
use crate::types::{Action, Passage, Question, StopReason};
use s3_config::{ProtocolKind, SearchConfig};

/// Where the final answer stands.
pub const ANSWER: Tag = Tag { open: "<answer>", close: "</answer>" };

const THINK: &str = "You answer questions.\n\n\
Think step by step. Then write the final answer, as short as it can be, between <answer> and </answer>.";

const R1: &str = "Answer the question. First reason between <think> and </think>; then write the answer alone, \
without any explanation, between <answer> and </answer>.\n\nQuestion: {question}\n";

/// One turn, and the answer in it.
#[derive(Debug)]
pub struct Solo {
    kind: ProtocolKind,
    page: Page,
    written: Option<String>,
}

impl Solo {
    /// Starts. Sft reads the question alone, as it was tuned on; the answer is all it writes.
    pub fn new(kind: ProtocolKind, question: &Question, config: &SearchConfig) -> Result<Self, SearchError> {
        let built_in = if kind == ProtocolKind::R1 { R1 } else { "{question}" };
        let mut page = prompt(question, config, built_in)?;
        if kind == ProtocolKind::ChainOfThought {
            page.system = Some(THINK.to_owned());
        }
        Ok(Self { kind, page, written: None })
    }
}

impl Protocol for Solo {
    fn next(&self) -> Move {
        match &self.written {
            Some(_) => Move::Done(StopReason::Complete),
            None => {
                let stops = if self.kind == ProtocolKind::Sft { Vec::new() } else { vec![ANSWER] };
                Move::Write(Write { place: Place::New, page: self.page.clone(), stops })
            }
        }
    }

    fn wrote(&mut self, text: &str) -> Action {
        self.written = Some(text.to_owned());
        match self.kind {
            ProtocolKind::R1 if ANSWER.last(text).is_none() => invalid("there is no <answer>"),
            _ => Action::Complete,
        }
    }

    fn found(&mut self, _passages: Vec<Passage>) {}

    fn passages(&self) -> Vec<Passage> {
        Vec::new()
    }

    fn answer(&self) -> String {
        let text = self.written.as_deref().unwrap_or_default();
        let tagged = ANSWER.last(text);
        match self.kind {
            ProtocolKind::Sft => text.trim(),
            ProtocolKind::R1 => tagged.unwrap_or_default(),
            // the reference takes the whole text where the tag is missing
            _ => tagged.unwrap_or(text.trim()),
        }
        .to_owned()
    }
}
