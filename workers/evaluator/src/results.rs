//! Per-question results, and the artifact that holds them.
//!
//! The folder has `results.jsonl` (one row a question and arm, sorted by dataset, id, arm), `passages.jsonl`
//! (every passage that a row names, once), `logprobs.jsonl` and `pieces.json` (log-probabilities and text of the
//! tokens that searchers wrote), `questions.json` (the frozen list) and `summary.json`. Nothing in
//! these files depends on time or place; seconds and tokens paid for stand in the manifest's facts.

use crate::calls::Calls;
use crate::error::EvalError;
use crate::identity;
use crate::questions::QuestionSet;
use crate::report::data::thousandths;
use crate::statistics::percentiles::{Spread, spread};
use crate::summary::Summary;
use crate::units::{ArmResults, UNITS, Unit};
use s3_artifacts::{ArtifactError, Journal, canonical_json, digest_bytes, load_manifest, publish_folder, write_atomic};
use s3_config::EvaluatorConfig;
use s3_rollout::record::EpisodeRecord;
use s3_rollout::{Scored, Usage};
use s3_search::score::{Verdict, exact_match, f1, gbr};
use s3_search::{Action, Passage, Question, StopReason};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// Kind of the artifact.
pub const KIND: &str = "results";
const FORMAT: u32 = 1;
const RESULTS: &str = "results.jsonl";
const PASSAGES: &str = "passages.jsonl";
const QUESTIONS: &str = "questions.json";
const SUMMARY: &str = "summary.json";
const LOGPROBS: &str = "logprobs.jsonl";
const PIECES: &str = "pieces.json";

/// One question under one arm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ResultRow {
    /// Dataset.
    pub dataset: String,
    /// The question's id in its dataset.
    pub id: String,
    /// Arm.
    pub arm: String,
    /// Place in the frozen list; tells questions with equal ids apart.
    pub place: usize,
    /// The generator's answer; none where it refused.
    pub answer: Option<String>,
    /// Why there is none.
    pub refused: Option<String>,
    /// The judge's word.
    pub judge: Option<Verdict>,
    /// Why the judge did not decide; empty where it did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub judge_reason: String,
    /// Generation accuracy.
    pub verdict: Verdict,
    /// Equal to a gold answer after normalisation.
    pub exact_match: Option<bool>,
    /// Token F1 with the best gold answer.
    pub f1: Option<f64>,
    /// Gain beyond the baseline arm; none for it, without one, or where a verdict is missing.
    pub gain: Option<f64>,
    /// Searches beside the raw question's.
    pub searches: u32,
    /// Ids of the passages that the generator read, in order.
    pub passages: Vec<String>,
    /// The searcher's episode.
    pub episode: Option<EpisodeRow>,
}

/// An episode as it stands in a row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EpisodeRow {
    /// All token ids.
    pub tokens: Vec<u32>,
    /// Tokens before the first turn.
    pub prompt_tokens: usize,
    /// The turns.
    pub turns: Vec<TurnRow>,
    /// Why it ended.
    pub stop: StopReason,
}

/// One turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TurnRow {
    /// What the searcher wrote.
    pub text: String,
    /// How that was read.
    pub action: Action,
    /// Ids of the passages it saw.
    pub window: Vec<String>,
    /// What it selected, as indices into `window`.
    pub selected: Vec<usize>,
    /// Its tokens: `start..end` of the episode's.
    pub tokens: (usize, usize),
}

impl EpisodeRow {
    /// Keeps an episode; passages by id.
    pub fn new(record: &EpisodeRecord) -> Self {
        let turns = record.turns.iter().map(|turn| TurnRow {
            text: turn.text.clone(),
            action: turn.action.clone(),
            window: ids(&turn.window),
            selected: turn.selected.clone(),
            tokens: turn.tokens,
        });
        Self {
            tokens: record.tokens.clone(),
            prompt_tokens: record.prompt_tokens,
            turns: turns.collect(),
            stop: record.stop.clone(),
        }
    }

    /// Tokens that the searcher wrote.
    pub fn written(&self) -> usize {
        self.turns.iter().map(|turn| turn.tokens.1.saturating_sub(turn.tokens.0)).sum()
    }
}

/// The ids of passages.
pub fn ids(passages: &[Passage]) -> Vec<String> {
    passages.iter().map(|passage| passage.id.clone()).collect()
}

/// Everything an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// What was asked.
    pub questions: QuestionSet,
    /// Sorted by (dataset, id, arm, place).
    pub rows: Vec<ResultRow>,
    /// Every passage that the rows name, by id.
    pub passages: BTreeMap<String, Passage>,
    /// Log-probabilities of what searchers wrote, in thousandths, turn after turn: by arm and place.
    pub logprobs: BTreeMap<(String, usize), Vec<i32>>,
    /// Text of the tokens that searchers wrote, by id. Arms of one tokenizer share it; those of several have none.
    pub pieces: BTreeMap<u32, String>,
    /// What differs between two equal runs.
    pub facts: Facts,
}

/// A line of the log-probabilities' file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LogprobRow {
    arm: String,
    place: usize,
    thousandths: Vec<i32>,
}

/// What differs between two equal runs, by arm: in no digest and no file but the manifest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Wall-clock seconds.
    pub seconds: BTreeMap<String, f64>,
    /// Seconds per question.
    pub latency: BTreeMap<String, Spread>,
    /// Tokens of the answers.
    pub usage: BTreeMap<String, Usage>,
    /// Seconds per call.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub calls: BTreeMap<String, CallSpreads>,
}

/// How long calls took; none of a kind that was not made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallSpreads {
    /// To the retriever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub search: Option<Spread>,
    /// To the generator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<Spread>,
    /// To the judge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judge: Option<Spread>,
}

impl CallSpreads {
    /// Of these calls.
    fn of(calls: &Calls) -> Self {
        Self { search: spread(&calls.search), generation: spread(&calls.generation), judge: spread(&calls.judge) }
    }
}

impl Results {
    /// Puts the arms' results together. Gains are measured against the arm `baseline`.
    pub fn collect(questions: QuestionSet, arms: &[(String, ArmResults)], baseline: Option<&str>) -> Self {
        let base: Option<&[Scored]> =
            arms.iter().find(|(name, _)| Some(name.as_str()) == baseline).map(|(_, arm)| arm.scored.as_slice());
        let mut rows = Vec::new();
        let (mut passages, mut logprobs) = (BTreeMap::new(), BTreeMap::new());
        for (name, results) in arms {
            let against = base.filter(|_| Some(name.as_str()) != baseline);
            // an arm that is still running has results for the first questions
            let done = questions.questions.iter().zip(&results.gathered).zip(&results.scored).enumerate();
            for (place, ((question, gathered), scored)) in done {
                let seen = gathered.episode.iter().flat_map(|episode| &episode.turns).flat_map(|turn| &turn.window);
                for passage in gathered.passages.iter().chain(seen) {
                    passages.entry(passage.id.clone()).or_insert_with(|| passage.clone());
                }
                if let Some(episode) = gathered.episode.as_ref().filter(|episode| !episode.logprobs.is_empty()) {
                    let values = episode.logprobs.iter().map(|one| thousandths(*one)).collect();
                    logprobs.insert((name.clone(), place), values);
                }
                rows.push(ResultRow {
                    dataset: question.dataset.clone(),
                    id: question.id.clone(),
                    arm: name.clone(),
                    place,
                    gain: against.and_then(|base| gbr(scored.verdict, base.get(place)?.verdict)),
                    searches: gathered.searches,
                    passages: ids(&gathered.passages),
                    episode: gathered.episode.as_ref().map(EpisodeRow::new),
                    ..scored_row(question, scored)
                });
            }
        }
        rows.sort_by(|a, b| (&a.dataset, &a.id, &a.arm, a.place).cmp(&(&b.dataset, &b.id, &b.arm, b.place)));
        let mut facts = Facts::default();
        for (name, arm) in arms {
            facts.seconds.insert(name.clone(), arm.seconds);
            facts.latency.extend(spread(&arm.latencies).map(|spread| (name.clone(), spread)));
            if !arm.calls.is_empty() {
                facts.calls.insert(name.clone(), CallSpreads::of(&arm.calls));
            }
            if arm.usage != Usage::default() {
                facts.usage.insert(name.clone(), arm.usage);
            }
        }
        Self { questions, rows, passages, logprobs, pieces: BTreeMap::new(), facts }
    }

    /// What a run that is going on, or was stopped, has found so far.
    pub fn so_far(config: &EvaluatorConfig) -> Result<Self, EvalError> {
        let state = &config.runtime.state_dir;
        let path = state.join(identity::QUESTIONS);
        let bytes = std::fs::read(&path).map_err(|error| EvalError::read(&path, error))?;
        let questions = serde_json::from_slice(&bytes)
            .map_err(|error| ArtifactError::Corrupt { path, reason: error.to_string() })?;
        let units = Journal::<Unit>::read(&state.join(UNITS))?;
        let arms: Vec<(String, ArmResults)> =
            config.arms.iter().map(|arm| (arm.name.clone(), ArmResults::so_far(&units, &arm.name))).collect();
        Ok(Self::collect(questions, &arms, config.statistics.baseline.as_deref()))
    }

    /// Digest over the rows in order: answers, verdicts, episode token ids. Never seconds.
    pub fn digest(&self) -> Result<String, EvalError> {
        Ok(digest_bytes(lines(&self.rows)?.as_bytes()))
    }

    /// Publishes the folder.
    pub fn publish(&self, target: &Path, staging: &Path, identity: &Value, summary: &Summary) -> Result<(), EvalError> {
        if staging.exists() {
            std::fs::remove_dir_all(staging).map_err(|source| ArtifactError::Io {
                action: "remove",
                path: staging.to_owned(),
                source,
            })?;
        }
        write_atomic(&staging.join(RESULTS), lines(&self.rows)?.as_bytes())?;
        write_atomic(&staging.join(PASSAGES), lines(self.passages.values())?.as_bytes())?;
        let logprobs = self.logprobs.iter().map(|((arm, place), thousandths)| LogprobRow {
            arm: arm.clone(),
            place: *place,
            thousandths: thousandths.clone(),
        });
        let logprobs: Vec<LogprobRow> = logprobs.collect();
        write_atomic(&staging.join(LOGPROBS), lines(&logprobs)?.as_bytes())?;
        write_atomic(&staging.join(PIECES), &pretty(&self.pieces)?)?;
        write_atomic(&staging.join(QUESTIONS), &pretty(&self.questions)?)?;
        write_atomic(&staging.join(SUMMARY), &pretty(&summary.timeless())?)?;
        let identity = serde_json::json!({ "evaluation": identity, "results": self.digest()? });
        let facts = serde_json::to_value(&self.facts).map_err(ArtifactError::from)?;
        publish_folder(staging, target, KIND, FORMAT, identity, facts)?;
        Ok(())
    }

    /// Reads a published folder, verified; also its identity and summary.
    pub fn load(folder: &Path) -> Result<(Self, Value, Summary), EvalError> {
        let manifest = load_manifest(folder, KIND)?;
        let parse = |name: &str| -> Result<Vec<u8>, EvalError> {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|error| EvalError::read(&path, error))
        };
        let corrupt = |name: &str, error: &dyn std::fmt::Display| ArtifactError::Corrupt {
            path: folder.join(name),
            reason: error.to_string(),
        };
        let questions = serde_json::from_slice(&parse(QUESTIONS)?).map_err(|e| corrupt(QUESTIONS, &e))?;
        let summary: Summary = serde_json::from_slice(&parse(SUMMARY)?).map_err(|e| corrupt(SUMMARY, &e))?;
        let rows = from_lines(&parse(RESULTS)?).map_err(|e| corrupt(RESULTS, &e))?;
        let passages: Vec<Passage> = from_lines(&parse(PASSAGES)?).map_err(|e| corrupt(PASSAGES, &e))?;
        let passages = passages.into_iter().map(|passage| (passage.id.clone(), passage)).collect();
        // results of an earlier version have neither
        let (mut logprobs, mut pieces) = (BTreeMap::new(), BTreeMap::new());
        if manifest.files.contains_key(LOGPROBS) {
            let rows: Vec<LogprobRow> = from_lines(&parse(LOGPROBS)?).map_err(|e| corrupt(LOGPROBS, &e))?;
            logprobs = rows.into_iter().map(|row| ((row.arm, row.place), row.thousandths)).collect();
            pieces = serde_json::from_slice(&parse(PIECES)?).map_err(|e| corrupt(PIECES, &e))?;
        }
        let facts: Facts = serde_json::from_value(manifest.facts.clone()).map_err(|e| corrupt("manifest.json", &e))?;
        let summary = summary.with_facts(&facts);
        let identity = manifest.identity["evaluation"].clone();
        Ok((Self { questions, rows, passages, logprobs, pieces, facts }, identity, summary))
    }
}

/// The part of a row that the answer decides.
fn scored_row(question: &Question, scored: &Scored) -> ResultRow {
    let golds = &question.answers;
    ResultRow {
        dataset: String::new(),
        id: String::new(),
        arm: String::new(),
        place: 0,
        answer: scored.answer.clone(),
        refused: scored.failure.as_ref().map(|missing| missing.reason.clone()),
        judge: scored.judge,
        judge_reason: scored.judge_reason.clone(),
        verdict: scored.verdict,
        exact_match: scored.answer.as_ref().map(|answer| exact_match(answer, golds)),
        f1: scored.answer.as_ref().map(|answer| f1(answer, golds)),
        gain: None,
        searches: 0,
        passages: Vec::new(),
        episode: None,
    }
}

fn lines<'a, T: Serialize + 'a>(rows: impl IntoIterator<Item = &'a T>) -> Result<String, EvalError> {
    let mut text = String::new();
    for row in rows {
        text.push_str(&canonical_json(row)?);
        text.push('\n');
    }
    Ok(text)
}

fn from_lines<T: DeserializeOwned>(bytes: &[u8]) -> Result<Vec<T>, serde_json::Error> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).map(serde_json::from_slice).collect()
}

fn pretty<T: Serialize>(value: &T) -> Result<Vec<u8>, EvalError> {
    Ok(serde_json::to_vec_pretty(value).map_err(ArtifactError::from)?)
}
