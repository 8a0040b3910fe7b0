//! What is measured of one row beyond what stands in it: spans, evidence, words read, and what is known of its
//! question from all arms together.

use crate::questions::QuestionSet;
use crate::results::{ResultRow, Results};
use s3_search::Passage;
use s3_search::score::{Verdict, has_span, normalize};
use s3_search::text::{contains, span_tokens};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Of one row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measures {
    /// A gold answer's span stands in the answer; none without an answer.
    pub span: Option<bool>,
    /// The judge's word alone; none without one.
    pub judge: Option<bool>,
    /// Share of the marked evidence titles that was handed over; where the set marks none, whether a passage that was
    /// handed over holds a gold answer.
    pub evidence: f64,
    /// Words (white-space separated) of the passages that were handed over, titles too.
    pub words: usize,
}

/// What all arms together say of one question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Right without any passage: no search is needed to know it. None where no arm answers without passages.
    pub closed_book: Option<bool>,
    /// No passage that any arm saw holds a gold answer.
    pub unseen: bool,
}

/// The measures of every row, and the flags of every question by place.
pub fn measure(results: &Results, closed_book_arms: &BTreeSet<String>) -> (Vec<Measures>, Vec<Flags>) {
    let questions = &results.questions;
    let mut tokens = Tokens { passages: &results.passages, known: BTreeMap::new() };
    let golds: Vec<Vec<Vec<String>>> = questions
        .questions
        .iter()
        .map(|question| question.answers.iter().map(|gold| span_tokens(gold)).filter(|gold| !gold.is_empty()).collect())
        .collect();
    let mut flags = vec![Flags { closed_book: None, unseen: true }; questions.questions.len()];
    let mut measures = Vec::with_capacity(results.rows.len());
    for row in &results.rows {
        let golds = &golds[row.place];
        let handed = row.passages.iter().any(|id| tokens.holds(id, golds));
        let seen = || row.episode.iter().flat_map(|episode| &episode.turns).flat_map(|turn| &turn.window);
        let flag = &mut flags[row.place];
        flag.unseen &= !handed && !seen().any(|id| tokens.holds(id, golds));
        if closed_book_arms.contains(&row.arm) && row.verdict.value().is_some() {
            flag.closed_book = Some(flag.closed_book == Some(true) || row.verdict == Verdict::Correct);
        }
        measures.push(Measures {
            span: row.answer.as_ref().map(|answer| has_span(answer, &questions.questions[row.place].answers)),
            judge: row.judge.and_then(Verdict::value).map(|value| value > 0.5),
            evidence: titles(questions, row, &results.passages).unwrap_or(f64::from(u8::from(handed))),
            words: row.passages.iter().filter_map(|id| results.passages.get(id)).map(words).sum(),
        });
    }
    (measures, flags)
}

/// The arms that answer without passages, from a published identity.
pub fn closed_book_arms(identity: &Value) -> BTreeSet<String> {
    let closed = |arm: &Value| arm["method"] == "Direct" || arm["method"] == "ChainOfThought";
    let arms = identity.as_object().into_iter().flatten();
    arms.filter_map(|(key, arm)| Some(key.strip_prefix("arm ")?.to_owned()).filter(|_| closed(arm))).collect()
}

/// Words of a passage as the generator reads it.
pub fn words(passage: &Passage) -> usize {
    passage.title.split_whitespace().count() + passage.text.split_whitespace().count()
}

/// Share of the question's evidence titles among the passages; none where nothing is marked.
fn titles(questions: &QuestionSet, row: &ResultRow, passages: &BTreeMap<String, Passage>) -> Option<f64> {
    let wanted = questions.evidence.get(row.place).filter(|wanted| !wanted.is_empty())?;
    let found: BTreeSet<String> =
        row.passages.iter().filter_map(|id| passages.get(id)).map(|passage| normalize(&passage.title)).collect();
    let hits = wanted.iter().filter(|title| found.contains(&normalize(title))).count();
    Some(hits as f64 / wanted.len() as f64)
}

/// Span tokens of passages, made once each.
struct Tokens<'a> {
    passages: &'a BTreeMap<String, Passage>,
    known: BTreeMap<&'a str, Vec<String>>,
}

impl Tokens<'_> {
    fn holds(&mut self, id: &str, golds: &[Vec<String>]) -> bool {
        let Some((id, passage)) = self.passages.get_key_value(id) else { return false };
        let tokens =
            self.known.entry(id).or_insert_with(|| span_tokens(&format!("{}\n{}", passage.title, passage.text)));
        golds.iter().any(|gold| contains(tokens, gold))
    }
}
