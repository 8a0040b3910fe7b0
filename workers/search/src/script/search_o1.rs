//! Search-o1 (arXiv 2501.05366): reasoning that pauses for searches, whose documents are first read aside.
//!
//! A query between `<|begin_search_query|>` and `<|end_search_query|>` is searched; a second conversation
//! (*reason in documents*) condenses what was found to what the reasoning needs, and only that is put into the
//! reasoning, between `<|begin_search_result|>` and `<|end_search_result|>`. The generator reads the condensed
//! notes, as in the reference's evaluation.

use super::{Frame, Move, Page, Place, Protocol, Tag, Write, invalid, prompt};
use crate::episode::SearchError;
use crate::text::normalize;
use crate::types::{Action, Passage, Question, StopReason};
use s3_config::SearchConfig;
use sha2::{Digest, Sha256};

/// A query.
pub const QUERY: Tag = Tag { open: "<|begin_search_query|>", close: "<|end_search_query|>" };
/// What comes back.
pub const RESULT: Tag = Tag { open: "<|begin_search_result|>", close: "<|end_search_result|>" };
/// Above what was read in documents.
pub const HEADING: &str = "**Final Information**";
/// Written under the heading when the documents do not help, and put in their place.
pub const NOTHING: &str = "No helpful information found.";

/// Steps of the reasoning that the reading aside is told: the first, and the last so many.
const LAST_STEPS: usize = 4;

fn instructions(searches: u32) -> String {
    format!(
        "You answer questions by reasoning, and you can search.\n\n\
To search, write {}words{} and stop. The results are read for you, and what matters of them comes back between {} and \
{}. You may search again whenever something is still unknown, at most {searches} times. Then go on reasoning.\n\n\
Think step by step. Write the final answer as \\boxed{{answer}}.\n\nQuestion: {{question}}\n",
        QUERY.open, QUERY.close, RESULT.open, RESULT.close
    )
}

#[derive(Debug)]
enum Due {
    Start,
    Search(String),
    /// A query's documents are read aside.
    Reason(String, Vec<Passage>),
    /// A result goes into the reasoning.
    Tell(String),
    End(StopReason),
}

/// The machine.
#[derive(Debug)]
pub struct SearchO1 {
    prompt: Page,
    question: String,
    max_searches: u32,
    due: Due,
    /// Queries that were asked, normalised.
    asked: Vec<String>,
    /// Whether the limit was said.
    told_limit: bool,
    /// What was written and what came back, in order.
    steps: Vec<String>,
    notes: Vec<Passage>,
}

impl SearchO1 {
    /// Starts.
    pub fn new(question: &Question, config: &SearchConfig) -> Result<Self, SearchError> {
        Ok(Self {
            prompt: prompt(question, config, &instructions(config.max_searches))?,
            question: super::asked(question, config),
            max_searches: config.max_searches,
            due: Due::Start,
            asked: Vec::new(),
            told_limit: false,
            steps: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// The reasoning so far, shortened as the paper does: the first step, and the last ones.
    fn reasoning(&self) -> String {
        let steps = &self.steps;
        if steps.len() <= LAST_STEPS + 1 {
            return steps.join("\n\n");
        }
        let last = steps[steps.len() - LAST_STEPS..].join("\n\n");
        format!("{}\n\n...\n\n{last}", steps[0])
    }

    fn aside(&self, query: &str, passages: &[Passage]) -> Page {
        let before = format!(
            "Question: {}\n\nReasoning so far:\n{}\n\nIts search query: {query}\n\nDocuments found:\n",
            self.question,
            self.reasoning()
        );
        let after = format!(
            "\nRead the documents and write what of them helps the reasoning to go on: facts, no advice. Begin with the \
line {HEADING}; if nothing helps, write under it: {NOTHING}"
        );
        let passages = Some((Frame::LINES, passages.to_vec()));
        Page { before, passages, after, ..Page::default() }
    }

    fn tell(&mut self, result: &str) {
        let told = format!("\n\n{}{result}{}\n\n", RESULT.open, RESULT.close);
        self.steps.push(told.trim().to_owned());
        self.due = Due::Tell(told);
    }

    /// What an aside wrote: everything under the heading.
    fn condensed(&mut self, query: &str, text: &str) -> Action {
        let note = text.rsplit_once(HEADING).map(|(_, rest)| rest.trim()).filter(|rest| !rest.is_empty());
        let helps = note.is_some_and(|note| !note.starts_with(NOTHING.trim_end_matches('.')));
        let note = crate::prompt::neutralise(note.unwrap_or(NOTHING)).into_owned();
        if helps {
            let id = Sha256::digest(format!("{query}\n{note}"));
            let id: String = id.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
            self.notes.push(Passage { id: format!("note-{id}"), title: query.to_owned(), text: note.clone() });
        }
        self.tell(&note);
        Action::Note
    }
}

/// What the reasoning asks for: its last query, or nothing more.
pub fn read(text: &str) -> Action {
    let Some(end) = text.rfind(QUERY.close) else {
        return if text.contains(QUERY.open) { invalid("the query is not closed") } else { Action::Complete };
    };
    let Some(start) = text[..end].rfind(QUERY.open) else { return invalid("a query is closed but not opened") };
    let words: Vec<&str> = text[start + QUERY.open.len()..end].split_whitespace().collect();
    if words.is_empty() { invalid("the query is empty") } else { Action::Search { query: words.join(" ") } }
}

/// The last boxed text, braces balanced.
pub fn boxed(text: &str) -> Option<&str> {
    const OPEN: &str = "\\boxed{";
    let start = text.rfind(OPEN)? + OPEN.len();
    let mut depth = 1;
    for (at, c) in text[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(text[start..start + at].trim());
        }
    }
    None
}

impl Protocol for SearchO1 {
    fn next(&self) -> Move {
        let write = match &self.due {
            Due::Start => Write { place: Place::New, page: self.prompt.clone(), stops: vec![QUERY] },
            Due::Search(query) => return Move::Retrieve { query: query.clone(), raw: false },
            Due::Reason(query, passages) => {
                Write { place: Place::Aside, page: self.aside(query, passages), stops: Vec::new() }
            }
            Due::Tell(result) => {
                let page = Page { before: result.clone(), ..Page::default() };
                Write { place: Place::Next, page, stops: vec![QUERY] }
            }
            Due::End(reason) => return Move::Done(reason.clone()),
        };
        Move::Write(write)
    }

    fn wrote(&mut self, text: &str) -> Action {
        if let Due::Reason(query, _) = &self.due {
            let query = query.clone();
            return self.condensed(&query, text);
        }
        self.steps.push(text.trim().to_owned());
        let action = read(text);
        match &action {
            Action::Search { query } => {
                let known = normalize(query);
                if self.asked.len() >= self.max_searches as usize {
                    if self.told_limit {
                        self.due = Due::End(StopReason::SearchLimit);
                    } else {
                        self.told_limit = true;
                        self.tell("The search limit is reached; answer from what is known.");
                    }
                } else if self.asked.contains(&known) {
                    // it counts, so that a loop of one query ends
                    self.asked.push(known);
                    self.tell("This was searched before; see the result above.");
                } else {
                    self.asked.push(known);
                    self.due = Due::Search(query.clone());
                }
            }
            Action::Complete | Action::Note => self.due = Due::End(StopReason::Complete),
            Action::Invalid { .. } => self.due = Due::End(StopReason::Unreadable),
        }
        action
    }

    fn found(&mut self, passages: Vec<Passage>) {
        let Due::Search(query) = &self.due else { return };
        if passages.is_empty() {
            self.tell(NOTHING);
        } else {
            self.due = Due::Reason(query.clone(), passages);
        }
    }

    fn passages(&self) -> Vec<Passage> {
        self.notes.clone()
    }

    fn answer(&self) -> String {
        let written = self.steps.iter().rev().find_map(|step| boxed(step));
        written.unwrap_or_default().to_owned()
    }
}
