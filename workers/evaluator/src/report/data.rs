//! What the page's script works on: questions, passages, episodes and curves, each said once.
//!
//! The index is what lists and filters need, column by column. Everything else lies in blocks that the page opens
//! when a person looks at something in them, so that a page of many episodes opens as fast as one of few.

use super::Page;
use super::why::why;
use crate::results::{EpisodeRow, ResultRow};
use s3_rollout::record::TrainingRecord;
use s3_search::score::{Verdict, f1};
use s3_search::{Action, Passage, Question, StopReason};
use serde::Serialize;
use std::collections::BTreeMap;

/// Characters kept of a passage: enough to judge a selection by.
const PASSAGE_CHARS: usize = 1500;
/// Things in one block.
pub(super) const BLOCK: usize = 256;
/// Training episodes shown at most over all steps; the first of each step are kept.
const TRAINING_EPISODES: usize = 4000;

/// The index, and blocks by name (`questions-0`, `episodes-0`, `passages-0`, …).
pub(super) struct Data {
    pub(super) index: Index,
    pub(super) questions: Vec<QuestionDetail>,
    pub(super) episodes: Vec<EpisodeDetail>,
    /// Title and text.
    pub(super) passages: Vec<(String, String)>,
}

/// Columns over all questions and episodes.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Index {
    accuracy: String,
    baseline: Option<usize>,
    arms: Vec<String>,
    sources: Vec<String>,
    datasets: Vec<String>,
    ends: Vec<String>,
    block: usize,
    questions: QuestionColumns,
    episodes: EpisodeColumns,
    /// Text of tokens, by id; empty where a searcher's tokenizer is not at hand.
    pieces: BTreeMap<u32, String>,
    left_out: usize,
    curves: Vec<CurveData>,
}

/// Dataset, id, text.
#[derive(Default, Serialize)]
struct QuestionColumns {
    d: Vec<usize>,
    i: Vec<String>,
    q: Vec<String>,
}

/// One entry an episode each.
#[derive(Default, Serialize)]
struct EpisodeColumns {
    /// Source.
    s: Vec<usize>,
    /// Question.
    q: Vec<usize>,
    /// Sample of the question.
    n: Vec<u32>,
    /// Verdict on the searcher's passages.
    v: Vec<Option<u8>>,
    /// On the baseline's.
    z: Vec<Option<u8>>,
    /// Searches.
    k: Vec<u32>,
    /// Answer.
    x: Vec<Option<String>>,
    /// Why it ended.
    e: Vec<usize>,
    /// Turns that could not be read.
    u: Vec<usize>,
    /// Reward.
    r: Vec<Option<f64>>,
}

/// What is shown of an opened question: gold answers, and every arm's answer.
#[derive(Serialize)]
pub(super) struct QuestionDetail {
    a: Vec<String>,
    r: Vec<Option<ResultData>>,
}

/// What is shown of an opened episode.
#[derive(Serialize)]
pub(super) struct EpisodeDetail {
    /// From the searcher's passages.
    a: ResultData,
    /// From the baseline's passages.
    b: Option<ResultData>,
    /// Turns.
    t: Vec<TurnData>,
}

/// An answer: text, verdict, F1, passages, reason of a refusal, why the verdict.
#[derive(Clone, Serialize)]
pub(super) struct ResultData(Option<String>, Option<u8>, Option<f64>, Vec<usize>, Option<String>, String);

/// An episode on its way into columns and details.
struct EpisodeData {
    s: usize,
    q: usize,
    n: u32,
    a: ResultData,
    b: Option<ResultData>,
    t: Vec<TurnData>,
    e: String,
    k: u32,
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
    /// Log-probabilities of its tokens, in thousandths.
    l: Vec<i32>,
    /// Its tokens, where their text is at hand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    i: Vec<u32>,
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
    let limit = page.identity["answers"]["maxAnswerTokens"].as_u64().map(|limit| limit as usize);
    let mut pool = Pool { limit, pieces: page.results.pieces.keys().copied().collect(), ..Pool::default() };
    for passage in page.results.passages.values() {
        pool.passage(passage);
    }
    for question in &page.results.questions.questions {
        pool.add_question(question);
    }
    let mut results: Vec<Vec<Option<ResultData>>> = vec![vec![None; arms.len()]; pool.questions.len()];
    let mut episodes_of: Vec<Vec<&ResultRow>> = vec![Vec::new(); arms.len()];
    for row in &page.results.rows {
        if let Some(arm) = arms.iter().position(|name| *name == row.arm) {
            results[row.place][arm] = Some(pool.result(row, &page.results.questions.questions[row.place].answers));
            episodes_of[arm].push(row);
        }
    }
    let baseline = page.summary.baseline.as_ref().and_then(|name| arms.iter().position(|arm| arm == name));
    let (mut sources, mut episodes) = (Vec::new(), Vec::new());
    for (at, mut rows) in episodes_of.into_iter().enumerate() {
        if !rows.iter().any(|row| row.episode.is_some()) {
            continue;
        }
        let source = sources.len();
        sources.push(arms[at].clone());
        rows.sort_by_key(|row| row.place);
        for row in rows {
            let Some(a) = results[row.place][at].clone() else { continue };
            let b = baseline.and_then(|baseline| results[row.place][baseline].clone());
            let logprobs = page.results.logprobs.get(&(row.arm.clone(), row.place)).map_or(&[][..], Vec::as_slice);
            episodes.push(pool.episode(row, source, a, b, logprobs));
        }
    }
    let left_out = training(page, &mut pool, &mut sources, &mut episodes);
    let (columns, ends, details) = columns(episodes);
    let mut questions = QuestionColumns::default();
    let mut datasets: Vec<String> = Vec::new();
    let mut golds = Vec::with_capacity(pool.questions.len());
    results.resize_with(pool.questions.len(), Vec::new);
    for (question, results) in pool.questions.into_iter().zip(results) {
        questions.d.push(place_of(&mut datasets, &question.dataset));
        questions.i.push(question.id);
        questions.q.push(question.question);
        golds.push(QuestionDetail { a: question.answers, r: results });
    }
    let index = Index {
        accuracy: page.summary.accuracy.clone(),
        baseline,
        arms,
        sources,
        datasets,
        ends,
        block: BLOCK,
        questions,
        episodes: columns,
        pieces: page.results.pieces.clone(),
        left_out,
        curves: page.training.iter().map(curves).collect(),
    };
    Data { index, questions: golds, episodes: details, passages: pool.passages }
}

fn place_of(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

fn columns(episodes: Vec<EpisodeData>) -> (EpisodeColumns, Vec<String>, Vec<EpisodeDetail>) {
    let (mut columns, mut ends) = (EpisodeColumns::default(), Vec::new());
    let mut details = Vec::with_capacity(episodes.len());
    for episode in episodes {
        columns.s.push(episode.s);
        columns.q.push(episode.q);
        columns.n.push(episode.n);
        columns.v.push(episode.a.1);
        columns.z.push(episode.b.as_ref().and_then(|b| b.1));
        columns.k.push(episode.k);
        columns.x.push(episode.a.0.clone());
        columns.e.push(place_of(&mut ends, &episode.e));
        columns.u.push(episode.t.iter().filter(|turn| turn.k == "invalid").count());
        columns.r.push(episode.r);
        details.push(EpisodeDetail { a: episode.a, b: episode.b, t: episode.t });
    }
    (columns, ends, details)
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
    questions: Vec<Question>,
    /// Words that an answer may have.
    limit: Option<usize>,
    /// Tokens whose text is at hand.
    pieces: std::collections::BTreeSet<u32>,
    by_question: BTreeMap<(String, String, String), usize>,
    passages: Vec<(String, String)>,
    by_passage: BTreeMap<String, usize>,
}

impl Pool {
    /// Evaluated questions come first, each at its place, those with equal ids too.
    fn add_question(&mut self, question: &Question) -> usize {
        let place = self.questions.len();
        self.questions.push(question.clone());
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

    fn result(&self, row: &ResultRow, golds: &[String]) -> ResultData {
        let refused = row.refused.clone();
        let reason = why(row.answer.as_deref(), golds, self.limit, (row.judge, &row.judge_reason), row.verdict);
        ResultData(row.answer.clone(), known(row.verdict), row.f1, self.places(&row.passages), refused, reason)
    }

    fn episode(
        &self,
        row: &ResultRow,
        s: usize,
        a: ResultData,
        b: Option<ResultData>,
        logprobs: &[i32],
    ) -> EpisodeData {
        let turns = |episode: &EpisodeRow| {
            let mut left = logprobs;
            let turn = |turn: &crate::results::TurnRow| {
                let tokens = episode.tokens.get(turn.tokens.0..turn.tokens.1).unwrap_or_default();
                let (own, rest) = left.split_at(tokens.len().min(left.len()));
                left = rest;
                let mut data = turn_data(&turn.text, &turn.action, self.places(&turn.window), &turn.selected);
                data.l = own.to_vec();
                if tokens.iter().all(|token| self.pieces.contains(token)) {
                    data.i = tokens.to_vec();
                }
                data
            };
            episode.turns.iter().map(turn).collect()
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
        let mut left = episode.logprobs.as_slice();
        for turn in &episode.turns {
            let window = passages(self, &turn.window);
            let mut data = turn_data(&turn.text, &turn.action, window, &turn.selected);
            let (own, rest) = left.split_at(turn.tokens.1.saturating_sub(turn.tokens.0).min(left.len()));
            left = rest;
            data.l = own.iter().map(|one| thousandths(*one)).collect();
            turns.push(data);
        }
        let outcome = record.outcome.as_ref();
        let scored = |scored: &s3_rollout::Scored, passages: Vec<usize>| {
            let share = scored.answer.as_ref().map(|answer| f1(answer, &episode.question.answers));
            let refused = scored.failure.as_ref().map(|missing| missing.reason.clone());
            let golds = &episode.question.answers;
            let reason =
                why(scored.answer.as_deref(), golds, None, (scored.judge, &scored.judge_reason), scored.verdict);
            ResultData(scored.answer.clone(), known(scored.verdict), share, passages, refused, reason)
        };
        let selected: Vec<usize> = passages(self, &episode.selected);
        EpisodeData {
            s: source,
            q: question,
            n: episode.sample,
            a: match outcome {
                Some(outcome) => scored(&outcome.searcher, selected),
                None => ResultData(None, None, None, selected, Some("the step is not finished".into()), String::new()),
            },
            b: outcome.map(|outcome| scored(&outcome.baseline, Vec::new())),
            t: turns,
            e: ended(&episode.stop),
            k: episode.searches,
            r: outcome.and_then(|outcome| outcome.reward),
        }
    }
}

/// A log-probability as pages and files keep it: whole thousandths.
pub(crate) fn thousandths(logprob: f32) -> i32 {
    (f64::from(logprob) * 1000.0).round() as i32
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
    TurnData { x: text.to_owned(), k: kind, y: detail, w: window, c: selected.to_vec(), l: Vec::new(), i: Vec::new() }
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
