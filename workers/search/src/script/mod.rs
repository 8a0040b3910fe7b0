//! Other methods' protocols, as machines over text.
//!
//! A [`Protocol`] knows one paper's tags, prompts and limits, and no token: it says what is to be read and written
//! next ([`Move`]) and how what was written is to be understood. [`Scripted`] plays a protocol over token ids, as
//! [`crate::Episode`] plays s3: passages are cut to budgets, sampled tokens are kept as they are.
//!
//! | protocol | paper | wording |
//! |---|---|---|
//! | [`solo`] | chain of thought (arXiv 2201.11903), Sft, R1 without search | own |
//! | [`search_r1`] | Search-R1 (arXiv 2503.09516) | own, tags of the paper; its code's under `compatibility: SearchR1` |
//! | [`search_o1`] | Search-o1 (arXiv 2501.05366) | own, tags of the paper |
//! | [`ir_cot`] | `IRCoT` (arXiv 2212.10509) | own |
//! | [`deep_retrieval`] | `DeepRetrieval` (arXiv 2503.00223) | own, tags of the paper |
//!
//! No other prompt is a copy of a paper's; a checkpoint that was trained on other words gets them by
//! `search.promptTemplate`. [`qa_em`] scores answers as Search-R1 does.

pub mod deep_retrieval;
pub mod ir_cot;
mod page;
pub mod qa_em;
mod scripted;
pub mod search_o1;
pub mod search_r1;
pub mod solo;

pub use page::{Fit, Frame, Page};
pub use scripted::Scripted;
pub(crate) use scripted::limits;

use crate::episode::SearchError;
use crate::prompt::neutralise;
use crate::types::{Action, Passage, Question, StopReason};
use s3_config::{Compatibility, ProtocolKind, SearchConfig};
use std::fmt::Debug;

/// A pair of strings around something that is written; the second one ends a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Opens; empty where anything may stand before the end.
    pub open: &'static str,
    /// Closes.
    pub close: &'static str,
}

impl Tag {
    /// What stands between the last opening and its closing, or the end of a text that was cut off there.
    pub fn last<'a>(&self, text: &'a str) -> Option<&'a str> {
        let rest = &text[text.rfind(self.open)? + self.open.len()..];
        Some(rest[..rest.find(self.close).unwrap_or(rest.len())].trim())
    }

    /// Whether the text ends inside the tag.
    fn is_open(&self, text: &str) -> bool {
        !self.open.is_empty() && text.rfind(self.open).is_some_and(|at| !text[at..].contains(self.close))
    }
}

/// Puts back the end of a tag that a served model's stop string took away.
pub fn close(text: &str, stops: &[Tag]) -> String {
    let open = stops.iter().find(|tag| tag.is_open(text));
    open.map_or_else(|| text.to_owned(), |tag| format!("{text}{}", tag.close))
}

/// Where something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In a new conversation that takes the place of the last.
    New,
    /// Where the running conversation stands: what the environment says is put behind what was written.
    Next,
    /// In a conversation beside the running one, which then goes on.
    Aside,
}

/// Something to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where.
    pub place: Place,
    /// What is read before.
    pub page: Page,
    /// What ends it, beside the end of the turn.
    pub stops: Vec<Tag>,
}

/// What a protocol wants next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// A turn of the model; then [`Protocol::wrote`].
    Write(Write),
    /// Passages; then [`Protocol::found`].
    Retrieve {
        /// Words for the retriever.
        query: String,
        /// Whether this is the raw question's own search, which is not counted.
        raw: bool,
    },
    /// Nothing.
    Done(StopReason),
}

/// One paper's way from a question to passages or an answer.
pub trait Protocol: Debug + Send {
    /// What is to be done; the same until something is fed.
    fn next(&self) -> Move;
    /// How many of a page's passages were shown; called before the turn that reads them.
    fn shown(&mut self, _count: usize) {}
    /// Whether the token that ended a turn stays in the conversation.
    fn keeps_end(&self) -> bool {
        true
    }
    /// Takes what the model wrote, and says how it was read.
    fn wrote(&mut self, text: &str) -> Action;
    /// Takes what the retriever found, best first.
    fn found(&mut self, passages: Vec<Passage>);
    /// What goes to the generator, in order; repetitions are removed by whoever asks.
    fn passages(&self) -> Vec<Passage>;
    /// The method's own answer; empty when it gave none.
    fn answer(&self) -> String;
}

/// The machine of a method for one question.
pub fn protocol(
    kind: ProtocolKind,
    question: &Question,
    config: &SearchConfig,
) -> Result<Box<dyn Protocol>, SearchError> {
    Ok(match kind {
        ProtocolKind::ChainOfThought | ProtocolKind::Sft | ProtocolKind::R1 => {
            Box::new(solo::Solo::new(kind, question, config)?)
        }
        ProtocolKind::SearchR1 => Box::new(search_r1::SearchR1::new(question, config)?),
        ProtocolKind::SearchO1 => Box::new(search_o1::SearchO1::new(question, config)?),
        ProtocolKind::IrCot => Box::new(ir_cot::IrCot::new(question, config)?),
        ProtocolKind::DeepRetrieval => Box::new(deep_retrieval::DeepRetrieval::new(question, config)?),
    })
}

/// The words before and after the question: the user's template, else the built-in one. `{question}` must stand
/// exactly once.
fn around_question(config: &SearchConfig, built_in: &str) -> Result<(String, String), SearchError> {
    if config.prompt_text.is_none()
        && let Some(path) = &config.prompt_template
    {
        return Err(SearchError::Template(format!("the file {} was not loaded (promptText is empty)", path.display())));
    }
    let text = config.prompt_text.as_deref().unwrap_or(built_in);
    match text.split("{question}").collect::<Vec<_>>().as_slice() {
        [before, after] => Ok(((*before).to_owned(), (*after).to_owned())),
        _ => Err(SearchError::Template("{question} must stand exactly once in the template of this method".into())),
    }
}

/// A prompt of one page: the user's or the built-in words around the question.
fn prompt(question: &Question, config: &SearchConfig, built_in: &str) -> Result<Page, SearchError> {
    let (before, after) = around_question(config, built_in)?;
    let asked = asked(question, config);
    Ok(Page { before: format!("{before}{asked}{after}"), ..Page::default() })
}

/// The question as a prompt shows it: nothing in it opens a tag, unless a reference is reproduced that shows it raw.
fn asked(question: &Question, config: &SearchConfig) -> String {
    match config.compatibility {
        Compatibility::SearchR1 => question.question.clone(),
        Compatibility::None | Compatibility::S3 => neutralise(&question.question).into_owned(),
    }
}

fn invalid(reason: &str) -> Action {
    Action::Invalid { reason: reason.to_owned() }
}
