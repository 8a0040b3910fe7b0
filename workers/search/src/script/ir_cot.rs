//! `IRCoT` (arXiv 2212.10509): a chain of thought, one sentence at a time, each of which is the next query.
//!
//! The question is searched first. Then sentence follows sentence, each written with everything found so far before
//! the model's eyes and searched in turn, until a sentence says the answer or `maxSearches` sentences are written.
//! All that was found goes to the generator, in the order found.

use super::{Frame, Move, Page, Place, Protocol, Tag, Write};
use crate::episode::SearchError;
use crate::protocol::says_yes;
use crate::types::{Action, Passage, Question, StopReason};
use s3_config::SearchConfig;

/// Ends a sentence that the model writes on a line.
const LINE: Tag = Tag { open: "", close: "\n" };
/// What the last sentence says.
pub const ANSWER_IS: &str = "answer is";
const COMPLETE: Tag = Tag { open: "<search_complete>", close: "</search_complete>" };

const TASK: &str = "Reason from the documents to the answer, one sentence at a time. Write only the next sentence. When \
the answer is known, write: So the answer is: ANSWER.";

#[derive(Debug)]
enum Due {
    Search { query: String, raw: bool },
    Think,
    End(StopReason),
}

/// The machine.
#[derive(Debug)]
pub struct IrCot {
    question: String,
    max_thoughts: usize,
    most: usize,
    due: Due,
    thoughts: Vec<String>,
    passages: Vec<Passage>,
}

impl IrCot {
    /// Starts. Its prompt is built in: passages and thoughts stand in it.
    pub fn new(question: &Question, config: &SearchConfig) -> Result<Self, SearchError> {
        if config.prompt_template.is_some() || config.prompt_text.is_some() {
            return Err(SearchError::Template("IrCot has a prompt of its own; leave promptTemplate out".to_owned()));
        }
        Ok(Self {
            question: super::asked(question, config),
            max_thoughts: config.max_searches as usize,
            most: config.max_passages as usize,
            due: Due::Search { query: question.question.clone(), raw: true },
            thoughts: Vec::new(),
            passages: Vec::new(),
        })
    }

    fn page(&self) -> Page {
        let thoughts = if self.thoughts.is_empty() {
            String::new()
        } else {
            format!("\nReasoning so far: {}", self.thoughts.join(" "))
        };
        Page {
            before: "Documents:\n".into(),
            passages: Some((Frame::LINES, self.passages.clone())),
            after: format!("\nQuestion: {}{thoughts}\n\n{TASK}", self.question),
            ..Page::default()
        }
    }
}

/// The first sentence: up to a mark that is followed by a blank and is not an initial's or a short title's.
pub fn sentence(text: &str) -> &str {
    let text = text.trim();
    let line = text.lines().next().unwrap_or_default();
    let mut rest = line.char_indices().peekable();
    while let Some((at, c)) = rest.next() {
        let followed = rest.peek().is_none_or(|(_, next)| next.is_whitespace());
        if !matches!(c, '.' | '!' | '?') || !followed {
            continue;
        }
        let word = line[..at].rsplit(char::is_whitespace).next().unwrap_or_default();
        let initial = c == '.' && word.chars().count() == 1 && word.chars().all(char::is_uppercase);
        let title = c == '.' && matches!(word, "Mr" | "Mrs" | "Ms" | "Dr" | "St" | "Jr" | "Sr" | "vs" | "No" | "Prof");
        if !initial && !title {
            return &line[..at + c.len_utf8()];
        }
    }
    line
}

/// What stands after "answer is", without the mark at its end.
fn stated(sentence: &str) -> Option<&str> {
    // lower-casing ASCII alone keeps every place
    let at = sentence.to_ascii_lowercase().rfind(ANSWER_IS)? + ANSWER_IS.len();
    Some(sentence[at..].trim_start_matches([':', ' ']).trim_end_matches(['.', ' ']).trim())
}

impl Protocol for IrCot {
    fn next(&self) -> Move {
        match &self.due {
            Due::Search { query, raw } => Move::Retrieve { query: query.clone(), raw: *raw },
            Due::Think => Move::Write(Write { place: Place::New, page: self.page(), stops: vec![LINE] }),
            Due::End(reason) => Move::Done(reason.clone()),
        }
    }

    fn wrote(&mut self, text: &str) -> Action {
        let complete = COMPLETE.last(text).is_some_and(says_yes);
        let thought = sentence(text).to_owned();
        if thought.is_empty() {
            self.due = Due::End(StopReason::Unreadable);
            return super::invalid("no sentence was written");
        }
        self.thoughts.push(thought.clone());
        if complete || stated(&thought).is_some() {
            self.due = Due::End(StopReason::Complete);
            return Action::Complete;
        }
        let query = crate::prompt::neutralise(&thought).into_owned();
        self.due = Due::Search { query: query.clone(), raw: false };
        Action::Search { query }
    }

    fn found(&mut self, passages: Vec<Passage>) {
        for passage in passages {
            if self.passages.len() < self.most && !self.passages.iter().any(|known| known.id == passage.id) {
                self.passages.push(passage);
            }
        }
        self.due =
            if self.thoughts.len() >= self.max_thoughts { Due::End(StopReason::SearchLimit) } else { Due::Think };
    }

    fn passages(&self) -> Vec<Passage> {
        self.passages.clone()
    }

    fn answer(&self) -> String {
        self.thoughts.last().and_then(|thought| stated(thought)).unwrap_or_default().to_owned()
    }
}
