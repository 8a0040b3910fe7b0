//! What a training run leaves behind, for resuming and for the report.
//!
//! A run keeps one journal a policy update step, `step-000001.journal`, in its folder; `step-000000` holds the
//! probe before the first update. A journal's lines are `<16 hex digits of the JSON's sha256> <JSON>` where the
//! JSON is `[key, entry]` and the entry a [`StepEntry`]. [`read_training`] puts a whole run together.

use crate::error::RolloutError;
use crate::score::Scored;
use s3_artifacts::{ArtifactError, digest_bytes};
use s3_search::score::Verdict;
use s3_search::{Action, Passage, Question, Role, StopReason, Trajectory, Turn};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A trajectory as it is kept: roles follow from the turns, log-probabilities stand for action tokens only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EpisodeRecord {
    /// The question.
    pub question: Question,
    /// Which sample of the question.
    pub sample: u32,
    /// All token ids.
    pub tokens: Vec<u32>,
    /// Tokens before the first turn.
    pub prompt_tokens: usize,
    /// Log-probabilities of the action tokens, turn after turn.
    pub logprobs: Vec<f32>,
    /// The turns; `turn.tokens` are ranges of `tokens`.
    pub turns: Vec<Turn>,
    /// What the generator reads.
    pub selected: Vec<Passage>,
    /// Why the episode ended.
    pub stop: StopReason,
    /// Searches executed.
    pub searches: u32,
}

impl EpisodeRecord {
    /// Keeps a finished trajectory.
    pub fn new(question: &Question, trajectory: &Trajectory) -> Self {
        let action = |at: &usize| trajectory.roles[*at] == Role::Action;
        Self {
            question: question.clone(),
            sample: trajectory.sample,
            prompt_tokens: trajectory.roles.iter().take_while(|role| **role == Role::Prompt).count(),
            logprobs: (0..trajectory.tokens.len()).filter(action).map(|at| trajectory.logprobs[at]).collect(),
            tokens: trajectory.tokens.clone(),
            turns: trajectory.turns.clone(),
            selected: trajectory.selected.clone(),
            stop: trajectory.stop.clone(),
            searches: trajectory.searches,
        }
    }

    /// Positions of the action tokens, in order: those that are learned from.
    pub fn action_positions(&self) -> Vec<usize> {
        self.turns.iter().flat_map(|turn| turn.tokens.0..turn.tokens.1).collect()
    }

    /// The infrastructure failure that masks this episode, if there was one.
    pub fn failure(&self) -> Option<&str> {
        match &self.stop {
            StopReason::Failed { reason } => Some(reason),
            _ => None,
        }
    }

    /// Turns that could not be read.
    pub fn invalid_turns(&self) -> usize {
        self.turns.iter().filter(|turn| matches!(turn.action, Action::Invalid { .. })).count()
    }

    /// The trajectory again.
    pub fn trajectory(&self) -> Trajectory {
        let mut roles = vec![Role::Observation; self.tokens.len()];
        let prompt = self.prompt_tokens.min(roles.len());
        roles[..prompt].fill(Role::Prompt);
        let mut logprobs = vec![0.0; self.tokens.len()];
        for (at, logprob) in self.action_positions().into_iter().zip(&self.logprobs) {
            if at < roles.len() {
                roles[at] = Role::Action;
                logprobs[at] = *logprob;
            }
        }
        Trajectory {
            question_id: self.question.id.clone(),
            sample: self.sample,
            tokens: self.tokens.clone(),
            roles,
            logprobs,
            turns: self.turns.clone(),
            selected: self.selected.clone(),
            stop: self.stop.clone(),
            searches: self.searches,
        }
    }
}

/// What an episode was worth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// The generator's answer from the searcher's passages, and its verdict.
    pub searcher: Scored,
    /// The answer from the baseline's passages, and its verdict.
    pub baseline: Scored,
    /// Reward with shaping; none masks the sample.
    pub reward: Option<f64>,
}

impl Outcome {
    /// Gain Beyond RAG, where both verdicts are known.
    pub fn gain(&self) -> Option<f64> {
        s3_search::score::gbr(self.searcher.verdict, self.baseline.verdict)
    }

    /// Whether the searcher's answer is right, where that is known.
    pub fn right(&self) -> Option<bool> {
        self.searcher.verdict.value().map(|_| self.searcher.verdict == Verdict::Correct)
    }
}

/// One line of a step's journal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum StepEntry {
    /// An episode; keys `rollout/000000` by its place in question order, or `probe/rollout/…` for the held-out
    /// evaluation.
    Episodes {
        /// One, or several that follow each other.
        episodes: Vec<EpisodeRecord>,
    },
    /// An answer, before it is joined to its episodes; keys `answer/000000` (`probe/…`) by the place of the first
    /// episode that asked for it.
    Answers {
        /// One for a (question, passages).
        answers: Vec<Scored>,
    },
    /// What each episode of the step was worth, in the episodes' order; keys `outcomes`, `probe/outcomes`.
    Outcomes {
        /// One an episode.
        outcomes: Vec<Outcome>,
    },
    /// The step's figures; keys `figures`, `probe/figures`. Last line of its kind: what has figures is finished.
    Figures {
        /// By name: reward, gain, accuracy, baselineAccuracy, searches, selected, invalidTurns, entropy,
        /// gradNorm, mismatchKl, clipFraction, loss, tokens, masked, seconds of each phase.
        figures: BTreeMap<String, f64>,
    },
}

/// One episode of a training run with its outcome.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingRecord {
    /// The episode.
    pub episode: EpisodeRecord,
    /// Its outcome; none while the step is not finished.
    pub outcome: Option<Outcome>,
}

/// One step of a training run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepRecord {
    /// Policy update step; 0 is before the first update.
    pub step: u32,
    /// Figures of the update; empty when there was none or it is not finished.
    pub figures: BTreeMap<String, f64>,
    /// The sampled episodes.
    pub episodes: Vec<TrainingRecord>,
    /// Figures of the held-out greedy evaluation after this step; empty when there was none.
    pub probe: BTreeMap<String, f64>,
    /// Its episodes.
    pub probe_episodes: Vec<TrainingRecord>,
}

/// File name of a step's journal.
pub fn step_journal(folder: &Path, step: u32) -> PathBuf {
    folder.join(format!("step-{step:06}.journal"))
}

/// Reads a training run's folder, step after step; never writes. A torn last line (the run is still going on)
/// is left out.
pub fn read_training(folder: &Path) -> Result<Vec<StepRecord>, RolloutError> {
    let io = |path: &Path, source| ArtifactError::Io { action: "read training journal", path: path.to_owned(), source };
    let mut steps = BTreeMap::new();
    for entry in std::fs::read_dir(folder).map_err(|e| io(folder, e))? {
        let name = entry.map_err(|e| io(folder, e))?.file_name();
        let name = name.to_string_lossy();
        let step = name.strip_prefix("step-").and_then(|rest| rest.strip_suffix(".journal"));
        if let Some(step) = step.and_then(|digits| digits.parse::<u32>().ok()) {
            let path = folder.join(name.as_ref());
            let text = std::fs::read_to_string(&path).map_err(|e| io(&path, e))?;
            steps.insert(step, step_record(step, &lines(&path, &text)?));
        }
    }
    Ok(steps.into_values().collect())
}

fn lines(path: &Path, text: &str) -> Result<BTreeMap<String, StepEntry>, RolloutError> {
    let mut entries = BTreeMap::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let Some(line) = line.strip_suffix('\n') else { break };
        let parsed = line
            .split_once(' ')
            .filter(|(check, json)| digest_bytes(json.as_bytes()).starts_with(check))
            .and_then(|(_, json)| serde_json::from_str::<(String, StepEntry)>(json).ok());
        let Some((key, entry)) = parsed else {
            let reason = format!("line {} is damaged", number + 1);
            return Err(ArtifactError::Corrupt { path: path.to_owned(), reason }.into());
        };
        entries.insert(key, entry);
    }
    Ok(entries)
}

/// Joins a journal's entries; `prefix` is empty or `probe/`.
fn part(entries: &BTreeMap<String, StepEntry>, prefix: &str) -> (BTreeMap<String, f64>, Vec<TrainingRecord>) {
    let rollouts = format!("{prefix}rollout/");
    let episodes = entries
        .range(rollouts.clone()..)
        .take_while(|(key, _)| key.starts_with(&rollouts))
        .filter_map(|(_, entry)| match entry {
            StepEntry::Episodes { episodes } => Some(episodes),
            _ => None,
        })
        .flatten();
    let outcomes: &[Outcome] = match entries.get(&format!("{prefix}outcomes")) {
        Some(StepEntry::Outcomes { outcomes }) => outcomes,
        _ => &[],
    };
    let records = episodes
        .enumerate()
        .map(|(at, episode)| TrainingRecord { episode: episode.clone(), outcome: outcomes.get(at).cloned() })
        .collect();
    let figures = match entries.get(&format!("{prefix}figures")) {
        Some(StepEntry::Figures { figures }) => figures.clone(),
        _ => BTreeMap::new(),
    };
    (figures, records)
}

fn step_record(step: u32, entries: &BTreeMap<String, StepEntry>) -> StepRecord {
    let (figures, episodes) = part(entries, "");
    let (probe, probe_episodes) = part(entries, "probe/");
    StepRecord { step, figures, episodes, probe, probe_episodes }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_artifacts::Journal;

    fn episode(id: &str) -> (Question, Trajectory) {
        let question = Question { id: id.into(), dataset: "d".into(), question: "q".into(), answers: vec![] };
        let turn = |text: &str, tokens| Turn {
            text: text.into(),
            action: Action::Complete,
            window: vec![],
            selected: vec![],
            tokens,
        };
        let trajectory = Trajectory {
            question_id: id.into(),
            sample: 3,
            tokens: (0..7).collect(),
            roles: [
                Role::Prompt,
                Role::Prompt,
                Role::Action,
                Role::Action,
                Role::Observation,
                Role::Action,
                Role::Action,
            ]
            .to_vec(),
            logprobs: vec![0.0, 0.0, -0.5, -1.0, 0.0, -2.0, -0.25],
            turns: vec![turn("a", (2, 4)), turn("b", (5, 7))],
            selected: vec![],
            stop: StopReason::Complete,
            searches: 1,
        };
        (question, trajectory)
    }

    #[test]
    fn trajectories_come_back_whole() {
        let (question, trajectory) = episode("x");
        let record = EpisodeRecord::new(&question, &trajectory);
        assert_eq!(record.action_positions(), [2, 3, 5, 6]);
        assert_eq!(record.trajectory(), trajectory);
    }

    #[test]
    fn a_run_is_read_while_it_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = step_journal(dir.path(), 2);
        let mut journal = Journal::<StepEntry>::open(&path).unwrap();
        for (at, id) in ["x", "y"].iter().enumerate() {
            let (question, trajectory) = episode(id);
            let episodes = vec![EpisodeRecord::new(&question, &trajectory)];
            journal.append(&format!("rollout/{at:04}"), StepEntry::Episodes { episodes }).unwrap();
        }
        let figures = BTreeMap::from([("gain".to_owned(), 0.25)]);
        journal.append("probe/figures", StepEntry::Figures { figures: figures.clone() }).unwrap();
        std::fs::write(&path, [std::fs::read(&path).unwrap(), b"0123 torn".to_vec()].concat()).unwrap();
        let steps = read_training(dir.path()).unwrap();
        assert_eq!(steps.len(), 1);
        assert_eq!((steps[0].step, &steps[0].probe), (2, &figures));
        assert_eq!(steps[0].episodes.iter().map(|r| r.episode.question.id.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        std::fs::write(&path, b"0123 {}\nrest\n").unwrap();
        assert!(read_training(dir.path()).is_err());
    }
}
