//! Two arms, of one evaluation or of two, question by question: won, lost, both right, neither.

use crate::error::EvalError;
use crate::export::frame::{Frame, Kind};
use crate::results::{ResultRow, Results};
use crate::statistics::{Interval, bootstrap, mcnemar};
use serde::Serialize;
use std::collections::BTreeMap;

/// Confidence of the intervals.
pub const CONFIDENCE: f64 = 0.95;
/// Bootstrap resamples.
pub const RESAMPLES: usize = 10_000;
/// Seed of the bootstrap: a comparison of two files is a function of the files.
const SEED: u64 = 1;

/// One side: results, and which arm of them.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// The results.
    pub results: &'a Results,
    /// The arm.
    pub arm: &'a str,
}

/// Who is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum Quadrant {
    /// Only the first.
    Won,
    /// Only the second.
    Lost,
    /// Both.
    Both,
    /// None.
    Neither,
}

impl Quadrant {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Won => "won",
            Self::Lost => "lost",
            Self::Both => "both",
            Self::Neither => "neither",
        }
    }
}

/// One question on both sides.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Compared {
    /// Dataset.
    pub dataset: String,
    /// The question's id.
    pub id: String,
    /// The question.
    pub question: String,
    /// Who is right.
    pub quadrant: Quadrant,
    /// The first's answer.
    pub answer: Option<String>,
    /// The second's.
    pub other: Option<String>,
    /// Searches of both.
    pub searches: (u32, u32),
    /// Passages of both.
    pub passages: (usize, usize),
}

/// What the comparison says.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// Questions that both sides have a verdict for.
    pub n: usize,
    /// Questions that only one side was asked, or that lack a verdict on one side: in no figure.
    pub unpaired: usize,
    /// Only the first is right.
    pub won: usize,
    /// Only the second.
    pub lost: usize,
    /// Both.
    pub both: usize,
    /// None.
    pub neither: usize,
    /// Difference in accuracy, paired `BCa` bootstrap over questions.
    pub difference: Interval,
    /// Difference in token F1, likewise.
    pub f1: Interval,
    /// Exact `McNemar` test, two-sided.
    pub p: f64,
    /// The questions, in the first's order.
    pub questions: Vec<Compared>,
}

/// Compares two sides. Questions are the same when dataset, id and text are; of several equal ones the first is
/// compared with the first, the second with the second.
pub fn compare(first: Side<'_>, second: Side<'_>) -> Result<Comparison, EvalError> {
    let (mut theirs, mut unpaired) = (by_question(second)?, 0);
    let mut questions = Vec::new();
    let (mut gains, mut f1) = (Vec::new(), Vec::new());
    for (key, rows) in by_question(first)? {
        let others = theirs.remove(&key).unwrap_or_default();
        unpaired += rows.len().abs_diff(others.len());
        for (row, other) in rows.into_iter().zip(others) {
            let (Some(a), Some(b)) = (row.verdict.value(), other.verdict.value()) else {
                unpaired += 1;
                continue;
            };
            let quadrant = match (a > 0.5, b > 0.5) {
                (true, false) => Quadrant::Won,
                (false, true) => Quadrant::Lost,
                (true, true) => Quadrant::Both,
                (false, false) => Quadrant::Neither,
            };
            gains.push(a - b);
            f1.extend(row.f1.zip(other.f1).map(|(a, b)| a - b));
            questions.push((
                row.place,
                Compared {
                    dataset: key.0.to_owned(),
                    id: key.1.to_owned(),
                    question: key.2.to_owned(),
                    quadrant,
                    answer: row.answer.clone(),
                    other: other.answer.clone(),
                    searches: (row.searches, other.searches),
                    passages: (row.passages.len(), other.passages.len()),
                },
            ));
        }
    }
    unpaired += theirs.values().map(Vec::len).sum::<usize>();
    if questions.is_empty() {
        return Err(EvalError::Config(
            "the two have no question in common: compare evaluations of the same datasets and seed".into(),
        ));
    }
    questions.sort_by_key(|(place, _)| *place);
    let questions: Vec<Compared> = questions.into_iter().map(|(_, one)| one).collect();
    let count = |quadrant| questions.iter().filter(|one| one.quadrant == quadrant).count();
    let (won, lost) = (count(Quadrant::Won), count(Quadrant::Lost));
    Ok(Comparison {
        n: questions.len(),
        unpaired,
        won,
        lost,
        both: count(Quadrant::Both),
        neither: count(Quadrant::Neither),
        difference: bootstrap::mean(&gains, 1.0, CONFIDENCE, RESAMPLES, SEED),
        f1: bootstrap::mean(&f1, 1.0, CONFIDENCE, RESAMPLES, SEED),
        p: mcnemar::p_value(won, lost),
        questions,
    })
}

type Key<'a> = (&'a str, &'a str, &'a str);

fn by_question<'a>(side: Side<'a>) -> Result<BTreeMap<Key<'a>, Vec<&'a ResultRow>>, EvalError> {
    let mut rows: Vec<&ResultRow> = side.results.rows.iter().filter(|row| row.arm == side.arm).collect();
    if rows.is_empty() {
        return Err(EvalError::Config(format!(
            "no arm {:?} here; there are {}",
            side.arm,
            arms(side.results).join(", ")
        )));
    }
    rows.sort_by_key(|row| row.place);
    let mut found: BTreeMap<Key<'a>, Vec<&ResultRow>> = BTreeMap::new();
    for row in rows {
        let question = &side.results.questions.questions[row.place].question;
        found.entry((&row.dataset, &row.id, question)).or_default().push(row);
    }
    Ok(found)
}

/// The arms of results, by name.
pub fn arms(results: &Results) -> Vec<String> {
    let names: std::collections::BTreeSet<&str> = results.rows.iter().map(|row| row.arm.as_str()).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// The arm that is meant when none is named: the only one, else the only one that searches.
pub fn usual_arm(results: &Results) -> Result<String, EvalError> {
    let searching = results.rows.iter().filter(|row| row.episode.is_some());
    let searching: std::collections::BTreeSet<&str> = searching.map(|row| row.arm.as_str()).collect();
    let all = arms(results);
    match (all.as_slice(), searching.len()) {
        ([only], _) => Ok(only.clone()),
        (_, 1) => Ok(searching.into_iter().collect()),
        _ => Err(EvalError::Config(format!("name the arm that is compared; there are {}", all.join(", ")))),
    }
}

/// The questions as a table.
pub fn frame(comparison: &Comparison) -> Frame {
    use Kind::{Text, Whole};
    let mut frame = Frame::new(&[
        ("dataset", Text),
        ("id", Text),
        ("question", Text),
        ("quadrant", Text),
        ("answer", Text),
        ("other_answer", Text),
        ("searches", Whole),
        ("other_searches", Whole),
        ("passages", Whole),
        ("other_passages", Whole),
    ]);
    for one in &comparison.questions {
        frame.rows.push(vec![
            one.dataset.as_str().into(),
            one.id.as_str().into(),
            one.question.as_str().into(),
            one.quadrant.name().into(),
            one.answer.clone().into(),
            one.other.clone().into(),
            one.searches.0.into(),
            one.searches.1.into(),
            one.passages.0.into(),
            one.passages.1.into(),
        ]);
    }
    frame
}

/// The comparison in sentences, and the questions of these quadrants, at most so many of each.
pub fn text(comparison: &Comparison, names: [&str; 2], show: &[Quadrant], limit: usize) -> String {
    let Comparison { n, won, lost, both, neither, unpaired, .. } = comparison;
    let points = |interval: &Interval| {
        let one = |value: f64| format!("{:+.1}", value * 100.0).replace('-', "−");
        format!("{} points [{}, {}]", one(interval.value), one(interval.low), one(interval.high))
    };
    let [first, second] = names;
    let mut lines = vec![
        format!("{n} questions with a verdict on both sides ({unpaired} without are left out)"),
        format!("  won      {won:>6}  only {first} is right"),
        format!("  lost     {lost:>6}  only {second} is right"),
        format!("  both     {both:>6}"),
        format!("  neither  {neither:>6}"),
        format!("accuracy   {}, paired bootstrap, 95 %", points(&comparison.difference)),
        format!("token F1   {}", points(&comparison.f1)),
        format!("McNemar    p = {:.4} (exact, two-sided)", comparison.p),
    ];
    for quadrant in show {
        let these: Vec<&Compared> = comparison.questions.iter().filter(|one| one.quadrant == *quadrant).collect();
        if these.is_empty() {
            continue;
        }
        lines.push(String::new());
        lines.push(format!("{} ({})", quadrant.name(), these.len()));
        for one in these.iter().take(limit) {
            let said = |answer: &Option<String>| answer.clone().unwrap_or_else(|| "no answer".into());
            lines.push(format!("  {} {}: {}", one.dataset, one.id, one.question));
            lines.push(format!("    {first}: {}   {second}: {}", said(&one.answer), said(&one.other)));
        }
        if these.len() > limit {
            lines.push(format!("  and {} more", these.len() - limit));
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
#[path = "compare_tests.rs"]
mod tests;
