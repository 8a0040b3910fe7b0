//! What the page's script works on: questions, passages, episodes and curves, each said once.

use super::Page;
use crate::results::{EpisodeRow, ResultRow};
use s3_rollout::record::TrainingRecord;
use s3_search::score::{Verdict, f1};
use s3_search::{Action, Passage, Question, StopReason};
use serde::Serialize;
use std::collections::BTreeMap;

/// Characters kept of a passage: enough to judge a selection by.
const PASSAGE_CHARS: usize = 1500;
/// Training episodes shown at most over all steps; the first of each step are kept.
const TRAINING_EPISODES: usize = 4000;

/// The embedded JSON. Short keys: there may be many thousand episodes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Data {
    accuracy: String,
    baseline: Option<usize>,
    arms: Vec<String>,
    questions: Vec<QuestionData>,
    /// Title and text.
    passages: Vec<(String, String)>,
    /// Per question of the evaluation, per arm.
    results: Vec<Vec<Option<ResultData>>>,
    sources: Vec<String>,
    episodes: Vec<EpisodeData>,
    left_out: usize,
    curves: Vec<CurveData>,
}

#[derive(Serialize)]
struct QuestionData {
    d: String,
    i: String,
    q: String,
    a: Vec<String>,
}

/// An answer: text, verdict, F1, passages, reason of a refusal.
#[derive(Clone, Serialize)]
struct ResultData(Option<String>, Option<u8>, Option<f64>, Vec<usize>, Option<String>);

#[derive(Serialize)]
struct EpisodeData {
    /// Source.
    s: usize,
    /// Question.
    q: usize,
    /// Sample of the question.
    n: u32,
    /// From the searcher's passages.
    a: ResultData,
    /// From the baseline's passages.
    b: Option<ResultData>,
    /// Turns.
    t: Vec<TurnData>,
    /// Why it ended.
    e: String,
    /// Searches.
    k: u32,
    /// Reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    r: Option<f64>,
}

#[derive(Serialize)]
struct TurnData {
    /// What was written.
    x: String,
    /// Search, complete or invalid.
    k: &'static str,
    /// Query or reason.
    y: String,
    /// Passages seen.
    w: Vec<usize>,
    /// Selected, as indices into `w`.
    c: Vec<usize>,
}

#[derive(Serialize)]
struct CurveData {
    name: String,
    /// By figure: (step, value) of the updates.
    train: BTreeMap<String, Vec<(u32, f64)>>,
    /// By figure: (step, value) of the held-out evaluations.
    probe: BTreeMap<String, Vec<(u32, f64)>>,
}

/// Gathers everything.
pub(super) fn of(page: &Page<'_>) -> Data {
    let arms = arm_names(page);
    let mut pool = Pool::default();
    for passage in page.results.passages.values() {
        pool.passage(passage);
    }
    for question in &page.results.questions.questions {
        pool.add_question(question);
    }
    let mut results: Vec<Vec<Option<ResultData>>> = vec![vec![None; arms.len()]; pool.questions.len()];
    for row in &page.results.rows {
        if let Some(arm) = arms.iter().position(|name| *name == row.arm) {
            results[row.place][arm] = Some(pool.result(row));
        }
    }
    let baseline = page.summary.baseline.as_ref().and_then(|name| arms.iter().position(|arm| arm == name));
    let (mut sources, mut episodes) = (Vec::new(), Vec::new());
    for (at, arm) in arms.iter().enumerate() {
        let rows: Vec<&ResultRow> = page.results.rows.iter().filter(|row| row.arm == *arm).collect();
        if rows.iter().any(|row| row.episode.is_some()) {
            let source = sources.len();
            sources.push(arm.clone());
            let mut rows = rows;
            rows.sort_by_key(|row| row.place);
            for row in rows {
                let Some(a) = results[row.place][at].clone() else { continue };
                let b = baseline.and_then(|baseline| results[row.place][baseline].clone());
                episodes.push(pool.episode(row, source, a, b));
            }
        }
    }
    let left_out = training(page, &mut pool, &mut sources, &mut episodes);
    Data {
        accuracy: page.summary.accuracy.clone(),
        baseline,
        arms,
        questions: pool.questions,
        passages: pool.passages,
        results,
        sources,
        episodes,
        left_out,
        curves: page.training.iter().map(curves).collect(),
    }
}

fn arm_names(page: &Page<'_>) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for row in &page.summary.table {
        if !names.contains(&row.arm) {
            names.push(row.arm.clone());
        }
    }
    names
}

/// The episodes of training runs, as many of each step as fit; returns how many were left out.
fn training(page: &Page<'_>, pool: &mut Pool, sources: &mut Vec<String>, episodes: &mut Vec<EpisodeData>) -> usize {
    let steps: Vec<_> = page.training.iter().flat_map(|run| run.steps.iter().map(move |step| (run, step))).collect();
    let parts: usize = steps
        .iter()
        .map(|(_, step)| usize::from(!step.episodes.is_empty()) + usize::from(!step.probe_episodes.is_empty()))
        .sum();
    let share = (TRAINING_EPISODES / parts.max(1)).max(1);
    let mut left_out = 0;
    for (run, step) in steps {
        let held_out = (&step.probe_episodes, format!("{} · held-out questions after step {}", run.name, step.step));
        for (records, name) in [(&step.episodes, format!("{} · step {}", run.name, step.step)), held_out] {
            if records.is_empty() {
                continue;
            }
            left_out += records.len().saturating_sub(share);
            let source = sources.len();
            sources.push(name);
            episodes.extend(records.iter().take(share).map(|record| pool.trained(record, source)));
        }
    }
    left_out
}

fn curves(training: &super::Training) -> CurveData {
    let mut curve = CurveData { name: training.name.clone(), train: BTreeMap::new(), probe: BTreeMap::new() };
    for step in &training.steps {
        for (figures, into) in [(&step.figures, &mut curve.train), (&step.probe, &mut curve.probe)] {
            for (name, value) in figures.iter().filter(|(_, value)| value.is_finite()) {
                into.entry(name.clone()).or_default().push((step.step, *value));
            }
        }
    }
    curve
}

/// Questions and passages, each once.
#[derive(Default)]
struct Pool {
    questions: Vec<QuestionData>,
    by_question: BTreeMap<(String, String, String), usize>,
    passages: Vec<(String, String)>,
    by_passage: BTreeMap<String, usize>,
}

impl Pool {
    /// Evaluated questions come first, each at its place, those with equal ids too.
    fn add_question(&mut self, question: &Question) -> usize {
        let place = self.questions.len();
        self.questions.push(QuestionData {
            d: question.dataset.clone(),
            i: question.id.clone(),
            q: question.question.clone(),
            a: question.answers.clone(),
        });
        self.by_question.insert(key(question), place);
        place
    }

    fn question(&mut self, question: &Question) -> usize {
        match self.by_question.get(&key(question)) {
            Some(place) => *place,
            None => self.add_question(question),
        }
    }

    fn passage(&mut self, passage: &Passage) -> usize {
        *self.by_passage.entry(passage.id.clone()).or_insert_with(|| {
            let text = match passage.text.char_indices().nth(PASSAGE_CHARS) {
                Some((end, _)) => format!("{}…", &passage.text[..end]),
                None => passage.text.clone(),
            };
            self.passages.push((passage.title.clone(), text));
            self.passages.len() - 1
        })
    }

    /// Places of passages that the results hold; every id that a row names is among them.
    fn places(&self, ids: &[String]) -> Vec<usize> {
        ids.iter().filter_map(|id| self.by_passage.get(id).copied()).collect()
    }

    fn result(&self, row: &ResultRow) -> ResultData {
        let refused = row.refused.clone();
        ResultData(row.answer.clone(), known(row.verdict), row.f1, self.places(&row.passages), refused)
    }

    fn episode(&self, row: &ResultRow, s: usize, a: ResultData, b: Option<ResultData>) -> EpisodeData {
        let turns = |episode: &EpisodeRow| {
            episode
                .turns
                .iter()
                .map(|turn| turn_data(&turn.text, &turn.action, self.places(&turn.window), &turn.selected))
                .collect()
        };
        EpisodeData {
            s,
            q: row.place,
            n: 0,
            a,
            b,
            t: row.episode.as_ref().map_or_else(Vec::new, turns),
            e: row.episode.as_ref().map(|episode| ended(&episode.stop)).unwrap_or_default(),
            k: row.searches,
            r: None,
        }
    }

    fn trained(&mut self, record: &TrainingRecord, source: usize) -> EpisodeData {
        let episode = &record.episode;
        let question = self.question(&episode.question);
        let passages = |pool: &mut Self, passages: &[Passage]| passages.iter().map(|one| pool.passage(one)).collect();
        let mut turns = Vec::new();
        for turn in &episode.turns {
            let window = passages(self, &turn.window);
            turns.push(turn_data(&turn.text, &turn.action, window, &turn.selected));
        }
        let outcome = record.outcome.as_ref();
        let scored = |scored: &s3_rollout::Scored, passages: Vec<usize>| {
            let share = scored.answer.as_ref().map(|answer| f1(answer, &episode.question.answers));
            let refused = scored.failure.as_ref().map(|missing| missing.reason.clone());
            ResultData(scored.answer.clone(), known(scored.verdict), share, passages, refused)
        };
        let selected: Vec<usize> = passages(self, &episode.selected);
        EpisodeData {
            s: source,
            q: question,
            n: episode.sample,
            a: match outcome {
                Some(outcome) => scored(&outcome.searcher, selected),
                None => ResultData(None, None, None, selected, Some("the step is not finished".into())),
            },
            b: outcome.map(|outcome| scored(&outcome.baseline, Vec::new())),
            t: turns,
            e: ended(&episode.stop),
            k: episode.searches,
            r: outcome.and_then(|outcome| outcome.reward),
        }
    }
}

fn key(question: &Question) -> (String, String, String) {
    (question.dataset.clone(), question.id.clone(), question.question.clone())
}

fn known(verdict: Verdict) -> Option<u8> {
    verdict.value().map(|_| u8::from(verdict == Verdict::Correct))
}

fn turn_data(text: &str, action: &Action, window: Vec<usize>, selected: &[usize]) -> TurnData {
    let (kind, detail) = match action {
        Action::Search { query } => ("search", query.clone()),
        Action::Complete => ("complete", String::new()),
        Action::Note => ("note", String::new()),
        Action::Invalid { reason } => ("invalid", reason.clone()),
    };
    TurnData { x: text.to_owned(), k: kind, y: detail, w: window, c: selected.to_vec() }
}

fn ended(stop: &StopReason) -> String {
    match stop {
        StopReason::Running => "it has not ended".into(),
        StopReason::Complete => "the searcher stopped".into(),
        StopReason::SearchLimit => "the search limit was reached".into(),
        StopReason::Unreadable => "too many unreadable turns".into(),
        StopReason::ContextFull => "the context was full".into(),
        StopReason::Failed { reason } => format!("infrastructure failed: {reason}"),
    }
}
