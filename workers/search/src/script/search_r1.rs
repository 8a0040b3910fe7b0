//! Search-R1 (arXiv 2503.09516): a model that searches with `<search>`, reads `<information>` and answers itself
//! with `<answer>`, all in one running text.
//!
//! By default `maxSearches` searches are executed, passages are dropped whole to fit their budget and markup in
//! them is broken. `compatibility: SearchR1` does as the reference's code: its prompt and its words after an unreadable
//! turn; `maxSearches` is its `max_turns`, which unreadable turns use up too and after which one closing turn follows in
//! which nothing is executed; what the environment says is cut like any text; the token that ends a turn leaves the
//! conversation. Two things stay: a turn ends with the first closing tag (the reference samples on, and throws away
//! what follows the first `</search>`, or else the first `</answer>`), and what no longer fits ends the episode (the
//! reference cuts the conversation's beginning away).

use super::solo::ANSWER;
use super::{Fit, Frame, Move, Page, Place, Protocol, Tag, Write, invalid, prompt};
use crate::episode::SearchError;
use crate::text::strip;
use crate::types::{Action, Passage, Question, StopReason};
use s3_config::{Compatibility, SearchConfig};

/// A search.
pub const SEARCH: Tag = Tag { open: "<search>", close: "</search>" };

const FRAME: Frame = Frame { open: "<information>", close: "</information>", gap: "" };

const PROMPT: &str = "Answer the question. Whenever you get new information, first reason between <think> and </think>. \
When you find that you lack some knowledge, call a search engine with <search> words </search>; it returns the best \
passages between <information> and </information>. You may search as often as you need. Once nothing more is needed, \
write the answer alone, without explanation, between <answer> and </answer>, as in <answer> Paris </answer>.\n\n\
Question: {question}\n";

const CORRECTION: &str = "\nThis could not be read. To search, put the words between <search> and </search>; to answer, \
put the answer between <answer> and </answer>.\n";

#[derive(Debug)]
enum Due {
    Start,
    Search(String),
    Read(Vec<Passage>),
    Correct,
    End(StopReason),
}

/// The reference's prompt (PeterGriffinJin/Search-R1, Apache-2.0), which its checkpoints were trained on.
pub const REFERENCE_PROMPT: &str = "Answer the given question. You must conduct reasoning inside <think> and </think> \
first every time you get new information. After reasoning, if you find you lack some knowledge, you can call a search \
engine by <search> query </search> and it will return the top searched results between <information> and \
</information>. You can search as many times as your want. If you find no further external knowledge needed, you can \
directly provide the answer inside <answer> and </answer>, without detailed illustrations. For example, <answer> \
Beijing </answer>. Question: {question}\n";

/// What the reference says after an unreadable turn.
const REFERENCE_CORRECTION: &str = "\nMy previous action is invalid. If I want to search, I should put the query \
between <search> and </search>. If I want to give the final answer, I should put the answer between <answer> and \
</answer>. Let me try again.\n";

/// The machine.
#[derive(Debug)]
pub struct SearchR1 {
    prompt: Page,
    max_searches: u32,
    max_corrections: u32,
    compat: bool,
    due: Due,
    turns: u32,
    searches: u32,
    corrections: u32,
    /// The last block that was found; as many as are shown are kept.
    last: Vec<Passage>,
    seen: Vec<Passage>,
    answer: String,
}

impl SearchR1 {
    /// Starts.
    pub fn new(question: &Question, config: &SearchConfig) -> Result<Self, SearchError> {
        let compat = config.compatibility == Compatibility::SearchR1;
        Ok(Self {
            prompt: prompt(question, config, if compat { REFERENCE_PROMPT } else { PROMPT })?,
            max_searches: config.max_searches,
            max_corrections: config.max_corrections,
            compat,
            due: Due::Start,
            turns: 0,
            searches: 0,
            corrections: 0,
            last: Vec::new(),
            seen: Vec::new(),
            answer: String::new(),
        })
    }
}

/// What the first tag that is opened and closed asks for. The reference takes the words as they stand, if there are
/// none too.
pub fn read(text: &str, compat: bool) -> Action {
    let tagged = |tag: Tag| {
        let mut opens = text.match_indices(tag.open).map(|(at, _)| at);
        opens.find_map(|at| {
            let start = at + tag.open.len();
            let end = start + text[start..].find(tag.close)?;
            Some((at, &text[start..end]))
        })
    };
    match (tagged(SEARCH), tagged(ANSWER)) {
        (Some((search, query)), answer) if answer.is_none_or(|(at, _)| search < at) => {
            if compat {
                return Action::Search { query: strip(query).to_owned() };
            }
            let words: Vec<&str> = query.split_whitespace().collect();
            if words.is_empty() {
                return invalid("the search is empty");
            }
            Action::Search { query: words.join(" ") }
        }
        (_, Some(_)) => Action::Complete,
        _ => invalid("neither a search nor an answer"),
    }
}

/// The answer of a turn that is read as one.
fn answered(text: &str) -> String {
    let start = text.find(ANSWER.open).map_or(0, |at| at + ANSWER.open.len());
    let rest = &text[start..];
    rest[..rest.find(ANSWER.close).unwrap_or(rest.len())].trim().to_owned()
}

impl Protocol for SearchR1 {
    fn next(&self) -> Move {
        let (fit, correction) =
            if self.compat { (Fit::Cut, REFERENCE_CORRECTION) } else { (Fit::Passages, CORRECTION) };
        let (place, page) = match &self.due {
            Due::Start => (Place::New, self.prompt.clone()),
            Due::Search(query) => return Move::Retrieve { query: query.clone(), raw: false },
            Due::End(reason) => return Move::Done(reason.clone()),
            Due::Read(passages) => {
                let passages = Some((FRAME, passages.clone()));
                (Place::Next, Page { system: None, before: "\n\n".into(), passages, after: "\n\n".into(), fit })
            }
            Due::Correct => (Place::Next, Page { before: correction.to_owned(), fit, ..Page::default() }),
        };
        Move::Write(Write { place, page, stops: vec![SEARCH, ANSWER] })
    }

    fn keeps_end(&self) -> bool {
        !self.compat
    }

    fn shown(&mut self, count: usize) {
        let read = std::mem::take(&mut self.last);
        self.seen.extend(read.into_iter().take(count));
    }

    fn wrote(&mut self, text: &str) -> Action {
        self.turns += 1;
        let closing = self.compat && self.turns > self.max_searches;
        let action = read(text, self.compat);
        self.due = match &action {
            Action::Complete => {
                self.answer = answered(text);
                Due::End(StopReason::Complete)
            }
            Action::Search { .. } if closing || (!self.compat && self.searches >= self.max_searches) => {
                Due::End(StopReason::SearchLimit)
            }
            Action::Search { query } => Due::Search(query.clone()),
            _ if closing || (!self.compat && self.corrections >= self.max_corrections) => {
                Due::End(StopReason::Unreadable)
            }
            _ => {
                self.corrections += 1;
                Due::Correct
            }
        };
        action
    }

    fn found(&mut self, passages: Vec<Passage>) {
        self.searches += 1;
        self.last.clone_from(&passages);
        self.due = Due::Read(passages);
    }

    fn passages(&self) -> Vec<Passage> {
        self.seen.clone()
    }

    fn answer(&self) -> String {
        self.answer.clone()
    }
}
