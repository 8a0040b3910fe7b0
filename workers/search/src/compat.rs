//! The s3 reference's behaviour on text (`compatibility: S3`), exactly, weaknesses included.
//!
//! Its documents make a round trip through the transcript: whatever the searcher and the corpus
//! wrote is parsed again by regular expressions, so titles with parentheses are cut, titles with
//! inner quotes are lost and a passage that quotes the format splits. [`crate::Episode`] with the
//! default protocol has none of that; this module exists to serve checkpoints trained there.

use crate::pyjson::{self, Json};
use crate::score::Verdict;
use crate::text::{contains, normalize, span_tokens, strip};
use crate::types::Passage;
use regex::Regex;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::LazyLock;

/// Closes a query; the reference keeps nothing that a turn writes after it.
pub const QUERY_END: &str = "</query>";
/// Opens a query, as the correction for an unreadable turn already does.
const QUERY_OPENER: &str = "<query>\n";
/// The ids that the reference recognises in a selection.
const IDS: std::ops::RangeInclusive<u32> = 1..=8;

fn pattern(text: &str) -> Option<Regex> {
    Regex::new(text).ok()
}

// White space is Python's `\s`; the i of Title folds as Python's IGNORECASE folds it.
static DOCUMENT: LazyLock<Option<Regex>> = LazyLock::new(|| {
    pattern(r#"(?i)Doc[\s\x1c-\x1f]*(\d+)[\s\x1c-\x1f]*\(T[iİı]tle:[\s\x1c-\x1f]*"?([^")]+)"?\)[\s\x1c-\x1f]*"#)
});
static NEXT_DOCUMENT: LazyLock<Option<Regex>> =
    LazyLock::new(|| pattern(r"(?i)Doc[\s\x1c-\x1f]*\d+[\s\x1c-\x1f]*\(T[iİı]tle:"));
static NUMBER: LazyLock<Option<Regex>> = LazyLock::new(|| pattern(r"[0-9]+"));

/// What a turn asked for; the reference names the kinds `search` and `search_complete`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Execute the query.
    Search,
    /// Stop.
    SearchComplete,
}

impl Kind {
    /// The reference's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Search => "search",
            Kind::SearchComplete => "search_complete",
        }
    }
}

/// A parsed turn.
#[derive(Clone, Debug, PartialEq)]
pub struct ParsedAction {
    /// None: the turn is invalid.
    pub kind: Option<Kind>,
    /// The query of a search, else empty.
    pub query: String,
    /// Whether the turn said that the search is complete.
    pub complete: bool,
    /// The selection decoded as JSON, kept as history; empty when it is no JSON list.
    pub ids: Vec<Json>,
}

/// The first (non-greedy) `<tag>…</tag>` of `text` at or after `from`: (start, content, end).
fn tagged<'a>(text: &'a str, tag: &str, from: usize) -> Option<(usize, &'a str, usize)> {
    let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
    let start = from + text[from..].find(&open)?;
    let inner = start + open.len();
    let length = text[inner..].find(&close)?;
    Some((start, &text[inner..inner + length], inner + length + close.len()))
}

/// All such matches, left to right, not overlapping.
fn all_tagged<'a>(text: &'a str, tag: &str) -> Vec<(usize, &'a str, usize)> {
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(one) = tagged(text, tag, from) {
        from = one.2;
        found.push(one);
    }
    found
}

/// What of a response is kept: up to the first `</query>`; where that has no opener the
/// correction's opener is put before it. A response without `</query>` is kept whole.
pub fn kept_response(text: &str) -> String {
    let Some(end) = text.find(QUERY_END) else { return text.to_owned() };
    let kept = &text[..end + QUERY_END.len()];
    if kept.contains("<query>") { kept.to_owned() } else { format!("{QUERY_OPENER}{kept}") }
}

/// Parses a turn's text. A completed search wins over a query; of several tags the first counts.
pub fn parse_action(text: &str) -> ParsedAction {
    let complete = tagged(text, "search_complete", 0)
        .is_some_and(|(_, value, _)| matches!(strip(value).to_lowercase().as_str(), "true" | "yes" | "1" | "y"));
    let ids = match tagged(text, "important_info", 0).and_then(|(_, value, _)| pyjson::parse(strip(value))) {
        Some(Json::Array(ids)) => ids,
        _ => Vec::new(),
    };
    let query = tagged(text, "query", 0).map(|(_, content, _)| query_of(strip(content)));
    match query {
        _ if complete => ParsedAction { kind: Some(Kind::SearchComplete), query: String::new(), complete, ids },
        Some(query) => ParsedAction { kind: Some(Kind::Search), query, complete, ids },
        None => ParsedAction { kind: None, query: String::new(), complete, ids },
    }
}

/// The query in a tag's content: the value or first element of key `query`, else the raw text.
fn query_of(raw: &str) -> String {
    match pyjson::parse(raw).as_ref().and_then(|json| json.get("query")) {
        Some(Json::String(query)) => query.clone(),
        Some(Json::Array(items)) => items.first().map_or_else(|| raw.to_owned(), ToString::to_string),
        _ => raw.to_owned(),
    }
}

/// Searches that the reference executes under `max_turns`: one more than it says. One closing
/// generation follows, whose query is never executed.
pub fn executed_searches(max_turns: u32) -> u32 {
    max_turns.saturating_add(1)
}

/// Every integer 1 to 8 in a selection's content, in order, once; list syntax is not needed.
pub fn selected_ids(content: &str) -> Vec<u32> {
    let mut ids = Vec::new();
    for number in NUMBER.iter().flat_map(|pattern| pattern.find_iter(content)) {
        if let Ok(id) = number.as_str().parse::<u32>()
            && IDS.contains(&id)
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    ids
}

/// [`selected_ids`] of a turn's first selection.
pub fn first_selection(text: &str) -> Vec<u32> {
    tagged(text, "important_info", 0).map(|(_, content, _)| selected_ids(content)).unwrap_or_default()
}

/// A document as parsed back from a transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Document {
    number: Option<u32>,
    title: String,
    text: String,
}

fn documents(block: &str) -> Vec<Document> {
    let (Some(document), Some(next)) = (DOCUMENT.as_ref(), NEXT_DOCUMENT.as_ref()) else { return Vec::new() };
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(captures) = document.captures_at(block, from) {
        let Some(header) = captures.get(0) else { break };
        let end = next.find_at(block, header.end()).map_or(block.len(), |next| next.start());
        found.push(Document {
            number: captures[1].parse().ok(),
            title: strip(&captures[2]).to_owned(),
            text: strip(&block[header.end()..end]).to_owned(),
        });
        from = end;
    }
    found
}

/// The documents that the reference hands to the generator, as (title, text), from the transcript
/// after the prompt's marker line.
///
/// A selection binds to the block right before it unless an earlier selection took that block, and
/// takes the numbered documents in document order. Then follow, whole, the blocks to which no
/// selection was bound: the initial block too. Exact repetitions of a text are dropped.
pub fn extract_documents(transcript: &str) -> Vec<(String, String)> {
    let blocks = all_tagged(transcript, "information");
    let parsed: Vec<Vec<Document>> = blocks.iter().map(|(_, content, _)| documents(content)).collect();
    let mut bound = vec![false; blocks.len()];
    let mut order: Vec<&Document> = Vec::new();
    for (start, content, _) in all_tagged(transcript, "important_info") {
        let last_started = blocks.iter().rposition(|(block_start, _, _)| *block_start < start);
        let Some(block) = last_started else { continue };
        if bound[block] || blocks[block].2 > start {
            continue;
        }
        bound[block] = true;
        let ids = selected_ids(content);
        order.extend(parsed[block].iter().filter(|doc| doc.number.is_some_and(|n| ids.contains(&n))));
    }
    for (documents, bound) in parsed.iter().zip(&bound) {
        if !bound {
            order.extend(documents);
        }
    }
    let mut seen = BTreeSet::new();
    let unique = order.into_iter().filter(|doc| seen.insert(doc.text.as_str()));
    unique.map(|doc| (doc.title.clone(), doc.text.clone())).collect()
}

/// The generator's context: documents renumbered from 1, quotes removed from titles.
pub fn render_context(documents: &[(String, String)]) -> String {
    let mut out = String::new();
    for (index, (title, text)) in documents.iter().enumerate() {
        let title = title.replace('"', "");
        let _infallible = write!(out, "Doc {} (Title: {title})\n{text}\n\n", index + 1);
    }
    out
}

/// The initial block's documents as the prompt shows them.
pub fn render_initial(passages: &[Passage]) -> String {
    render(passages, " ")
}

/// An information block as the loop appends it.
pub fn render_observation(passages: &[Passage]) -> String {
    format!("\n\n<information>{}</information>\n\n", strip(&render(passages, "")))
}

fn render(passages: &[Passage], space: &str) -> String {
    let mut out = String::new();
    for (index, passage) in passages.iter().enumerate() {
        let _infallible = writeln!(out, "Doc {}{space}(Title: \"{}\") {}", index + 1, passage.title, passage.text);
    }
    out
}

/// The correction after an invalid turn; it leaves a query open. The wording is our own.
pub fn correction() -> String {
    format!("\nThis is not enough information yet. Write a new query as JSON.\n{QUERY_OPENER}")
}

/// Whether any gold's normalised tokens stand contiguously in the answer's. A gold that normalises
/// to nothing is always found; accents and negations are not seen through.
pub fn has_span(answer: &str, golds: &[String]) -> bool {
    let answer = span_tokens(answer);
    golds.iter().any(|gold| contains(&answer, &span_tokens(gold)))
}

/// Whether the normalised answer equals a normalised gold.
pub fn exact_match(answer: &str, golds: &[String]) -> bool {
    let answer = normalize(answer);
    golds.iter().any(|gold| normalize(gold) == answer)
}

/// The reference's bare rule: a span is right, else the judge decides; its silence is a no. Only a
/// judge that failed stays a failure, because an outage is no wrong answer.
pub fn gen_acc(answer: &str, golds: &[String], judge: Option<Verdict>) -> Verdict {
    match judge {
        _ if has_span(answer, golds) => Verdict::Correct,
        Some(Verdict::Correct) => Verdict::Correct,
        Some(Verdict::Failed) => Verdict::Failed,
        _ => Verdict::Incorrect,
    }
}
