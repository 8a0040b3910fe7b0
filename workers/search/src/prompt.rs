//! The prompt template, and information blocks cut to a token budget.

use crate::episode::SearchError;
use crate::script::Frame;
use crate::types::{Codec, Passage};
use regex::Regex;
use s3_config::SearchConfig;
use std::borrow::Cow;
use std::sync::LazyLock;

/// The built-in wording: short, because small searchers read every token of it in every episode.
pub const DEFAULT_TEMPLATE: &str = "Find documents that answer the question. \
First list the useful document numbers: <important_info>[1, 3]</important_info>. \
Then search again with <query>search words</query>, or stop with <search_complete>True</search_complete>.\n\n\
Question: {question}\n{documents}";

const QUESTION: &str = "{question}";
const DOCUMENTS: &str = "{documents}";

/// A validated template: literal text around the two slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: [String; 3],
    question_first: bool,
    payload: usize,
}

impl Template {
    /// The template that `config` names, or the built-in one.
    pub fn of(config: &SearchConfig) -> Result<Self, SearchError> {
        match (&config.prompt_text, &config.prompt_template) {
            (None, Some(path)) => Err(SearchError::Template(format!(
                "the file {} was not loaded into the configuration (promptText is empty)",
                path.display()
            ))),
            (text, _) => Self::parse(text.as_deref().unwrap_or(DEFAULT_TEMPLATE), config.marker_line.as_deref()),
        }
    }

    /// Splits `text` at its placeholders, each of which must stand exactly once. A `marker` must be
    /// exactly one whole line before both; the reference's transcript starts after it.
    pub fn parse(text: &str, marker: Option<&str>) -> Result<Self, SearchError> {
        let place = |slot: &str| {
            let mut found = text.match_indices(slot);
            match (found.next(), found.next()) {
                (Some((at, _)), None) => Ok(at),
                (None, _) => Err(SearchError::Template(format!("{slot} is missing; put it where it belongs"))),
                (Some(_), Some(_)) => Err(SearchError::Template(format!("{slot} stands more than once; keep one"))),
            }
        };
        let (question, documents) = (place(QUESTION)?, place(DOCUMENTS)?);
        let question_first = question < documents;
        let ((first, first_slot), (second, second_slot)) = if question_first {
            ((question, QUESTION), (documents, DOCUMENTS))
        } else {
            ((documents, DOCUMENTS), (question, QUESTION))
        };
        let payload = match marker {
            None => first,
            Some(marker) => marker_end(text, marker).filter(|end| *end <= first).ok_or_else(|| {
                SearchError::Template(format!(
                    "the marker line {marker:?} must stand exactly once, as a whole line before the placeholders"
                ))
            })?,
        };
        let parts = [
            text[..first].to_owned(),
            text[first + first_slot.len()..second].to_owned(),
            text[second + second_slot.len()..].to_owned(),
        ];
        Ok(Self { parts, question_first, payload })
    }

    /// Fills the slots. What is filled in is never searched for placeholders again.
    pub fn render(&self, question: &str, documents: &str) -> String {
        let [before, between, after] = &self.parts;
        let (first, second) = if self.question_first { (question, documents) } else { (documents, question) };
        [before, first, between, second, after].concat()
    }

    /// The part of a rendered prompt after the marker line (without one: from the first slot on).
    pub(crate) fn payload<'a>(&self, rendered: &'a str) -> &'a str {
        rendered.get(self.payload..).unwrap_or_default()
    }
}

fn marker_end(text: &str, marker: &str) -> Option<usize> {
    let mut end = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        at += line.len();
        if line.trim_end_matches(['\r', '\n']) == marker {
            if end.is_some() {
                return None;
            }
            end = Some(at);
        }
    }
    end
}

static MARKUP: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"<([/|!_A-Za-z])").ok());

/// Text that cannot open or close a tag or name a special token: `<` before a letter, `/`, `|`, `!`
/// or `_` becomes `&lt;`.
pub fn neutralise(text: &str) -> Cow<'_, str> {
    MARKUP.as_ref().map_or(Cow::Borrowed(text), |markup| markup.replace_all(text, "&lt;$1"))
}

/// [`neutralise`]d and on one line: a passage cannot forge the line of another.
fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    neutralise(&words.join(" ")).into_owned()
}

/// A block's passages, cut to budgets, and its text.
pub(crate) struct Block {
    /// Whole block, closed.
    pub text: String,
    /// How many of the passages are shown: the first so many.
    pub shown: usize,
}

/// Renders the passages as one information block. Each text is cut to `passage_tokens`; passages
/// are dropped from the end until `fits` accepts the block (it answers by how many tokens it is too
/// long, 0 when it fits). The last one left is cut instead. `None`: not even an empty block fits.
pub(crate) fn block(
    passages: &[Passage],
    passage_tokens: usize,
    codec: &dyn Codec,
    excess: impl FnMut(&str) -> Result<usize, SearchError>,
) -> Result<Option<Block>, SearchError> {
    block_in(&Frame::INFORMATION, passages, passage_tokens, codec, excess)
}

/// [`block`] with other words around the passages.
pub(crate) fn block_in(
    frame: &Frame,
    passages: &[Passage],
    passage_tokens: usize,
    codec: &dyn Codec,
    mut excess: impl FnMut(&str) -> Result<usize, SearchError>,
) -> Result<Option<Block>, SearchError> {
    let line = |number, passage, limit| line(frame, number, passage, limit, codec);
    let mut lines: Vec<String> = Vec::with_capacity(passages.len());
    for (index, passage) in passages.iter().enumerate() {
        lines.push(line(index + 1, passage, passage_tokens));
    }
    let mut limit = passage_tokens;
    loop {
        let text = closed(frame, &lines);
        let over = excess(&text)?;
        if over == 0 {
            return Ok(Some(Block { text, shown: lines.len() }));
        }
        match (lines.len(), passages.first()) {
            (1, Some(first)) if limit > over => {
                limit -= over;
                lines[0] = line(1, first, limit);
            }
            (0, _) => return Ok(None),
            _ => {
                lines.pop();
            }
        }
    }
}

fn closed(frame: &Frame, lines: &[String]) -> String {
    format!("{}{}{}", frame.open, lines.concat(), frame.close)
}

fn line(frame: &Frame, number: usize, passage: &Passage, tokens: usize, codec: &dyn Codec) -> String {
    let title = cut(&one_line(&passage.title).replace('"', "'"), tokens, codec);
    let text = cut(&one_line(&passage.text), tokens, codec);
    format!("Doc {number}{}(Title: \"{title}\") {text}\n", frame.gap)
}

/// Every passage whole and as it is, for references that cut afterwards. The last line break falls away.
pub(crate) fn whole(passages: &[Passage], frame: &Frame) -> String {
    let lines = passages.iter().enumerate().map(|(index, passage)| {
        format!("Doc {}{}(Title: \"{}\") {}\n", index + 1, frame.gap, passage.title, passage.text)
    });
    format!("{}{}{}", frame.open, lines.collect::<String>().trim(), frame.close)
}

/// The longest prefix of `text`, in whole tokens and characters, of at most `limit` tokens.
fn cut(text: &str, limit: usize, codec: &dyn Codec) -> String {
    let mut kept = text.to_owned();
    let mut ids = codec.encode(&kept);
    let mut keep = limit;
    while ids.len() > limit {
        let prefix = codec.decode(&ids[..keep.min(ids.len() - 1)]);
        // a token may end inside a character
        prefix.trim_end_matches(char::REPLACEMENT_CHARACTER).trim_end().clone_into(&mut kept);
        ids = codec.encode(&kept);
        keep = keep.saturating_sub(1);
    }
    kept
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn templates_are_checked() {
        for (text, marker) in [
            ("no slots", None),
            ("{question}", None),
            ("{documents}", None),
            ("{question}{question}{documents}", None),
            ("{question}\n{documents}", Some("##")),
            ("##\n##\n{question}{documents}", Some("##")),
            ("{question}\n##\n{documents}", Some("##")),
            ("x ##\n{question}{documents}", Some("##")),
        ] {
            assert!(Template::parse(text, marker).is_err(), "{text}");
        }
        let template = Template::parse("a\n##\nD {documents} Q {question}.", Some("##")).unwrap();
        let text = template.render("{documents}", "{question}");
        assert_eq!(text, "a\n##\nD {question} Q {documents}.");
        assert_eq!(template.payload(&text), "D {question} Q {documents}.");
    }

    #[test]
    fn instructions_are_short() {
        // four characters a token is what English takes at the least in the searchers' vocabularies
        assert!(DEFAULT_TEMPLATE.split(|c: char| !c.is_alphanumeric()).count() < 120);
    }

    #[test]
    fn markup_is_neutral() {
        assert_eq!(
            neutralise("1 < 2 </information><|im_end|><<query>"),
            "1 < 2 &lt;/information>&lt;|im_end|><&lt;query>"
        );
    }
}
