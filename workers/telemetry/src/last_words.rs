//! What a process says of itself when it ends: a pod's termination message.
//!
//! One per process, like its exit code: parts of it are noted where they become known, and [`crate::finish`]
//! writes it. Without a file nothing is written.

use crate::{ExitClass, Failure, Outcome};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a kubelet reads of a termination message.
pub const TERMINATION_LIMIT: usize = 4096;

/// A published checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CheckpointNote {
    /// Steps done.
    pub step: u32,
    /// Digest of its content.
    pub digest: String,
    /// Its folder.
    pub path: PathBuf,
}

/// A process's end, as JSON in its termination message.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Termination {
    /// What kind of failure; none after a good end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<ExitClass>,
    /// The failure, one line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Digest of what was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Summary of what was made; left out when the message would be too long with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<serde_json::Value>,
    /// The newest checkpoint that this process published.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointNote>,
    /// Sha256 of the adapters that are kept for evaluations, by step; the oldest are left out when the message would
    /// be too long with them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub milestones: BTreeMap<u32, String>,
    /// What guards say of the policy; none while all values are within their bounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<String>,
}

impl Termination {
    /// Reads a termination message; none when it is not one of ours (the tail of a log).
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text.trim()).ok()
    }

    /// At most [`TERMINATION_LIMIT`] bytes: first the summary goes, then the end of the message.
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        let mut short = self.clone();
        let mut text = serde_json::to_string(&short)?;
        // They were reported while the work went on.
        while text.len() > TERMINATION_LIMIT && short.milestones.pop_first().is_some() {
            text = serde_json::to_string(&short)?;
        }
        if text.len() > TERMINATION_LIMIT {
            short.summary = None;
            text = serde_json::to_string(&short)?;
        }
        while text.len() > TERMINATION_LIMIT {
            let Some(message) = &mut short.message else { break };
            let keep = message.chars().count().saturating_sub(text.len() - TERMINATION_LIMIT + 1);
            *message = message.chars().take(keep).chain("…".chars()).collect();
            if keep == 0 {
                short.message = None;
            }
            text = serde_json::to_string(&short)?;
        }
        Ok(text)
    }
}

#[derive(Default)]
struct State {
    file: Option<PathBuf>,
    said: Termination,
    fenced: bool,
}

/// See [`last_words`].
#[derive(Default)]
pub struct LastWords(Mutex<State>);

static LAST_WORDS: LastWords = LastWords(Mutex::new(State {
    file: None,
    said: Termination {
        class: None,
        message: None,
        digest: None,
        summary: None,
        checkpoint: None,
        milestones: BTreeMap::new(),
        guard: None,
    },
    fenced: false,
}));

/// Those of this process.
pub fn last_words() -> &'static LastWords {
    &LAST_WORDS
}

impl LastWords {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where they are written; the configuration's `runtime.terminationMessage`.
    pub fn write_to(&self, file: Option<&Path>) {
        self.state().file = file.map(Path::to_owned);
    }

    /// Notes what was made.
    pub fn outcome(&self, outcome: &Outcome) {
        let mut state = self.state();
        state.said.digest = Some(outcome.digest.clone());
        state.said.summary = Some(outcome.summary.clone());
    }

    /// Notes a checkpoint.
    pub fn checkpoint(&self, checkpoint: CheckpointNote) {
        self.state().said.checkpoint = Some(checkpoint);
    }

    /// Notes an adapter that is kept for evaluations, by its sha256.
    pub fn milestone(&self, step: u32, sha256: &str) {
        self.state().said.milestones.insert(step, sha256.to_owned());
    }

    /// Forgets adapters of later steps: the training has gone back.
    pub fn milestones_until(&self, step: u32) {
        self.state().said.milestones.retain(|of, _| *of <= step);
    }

    /// Notes what guards say.
    pub fn guard(&self, said: Option<String>) {
        self.state().said.guard = said;
    }

    /// Notes that another process has taken over.
    pub fn fence(&self) {
        self.state().fenced = true;
    }

    /// Whether another process has taken over.
    pub fn fenced(&self) -> bool {
        self.state().fenced
    }

    /// What was noted so far.
    pub fn said(&self) -> Termination {
        self.state().said.clone()
    }

    /// Writes them, with the failure where there is one.
    pub fn write(&self, failure: Option<&Failure>) -> std::io::Result<()> {
        let state = self.state();
        let Some(file) = &state.file else { return Ok(()) };
        let mut termination = state.said.clone();
        if let Some(failure) = failure {
            termination.class = Some(failure.class);
            termination.message = Some(failure.message.clone());
            // An outcome that could not be handed over is none.
            (termination.digest, termination.summary) = (None, None);
        }
        // In place: the file is mounted into the container, so it cannot be replaced.
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(file)?;
        file.write_all(termination.to_text()?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn words(file: &Path) -> LastWords {
        let words = LastWords::default();
        words.write_to(Some(file));
        words
    }

    #[test]
    fn a_good_end_says_what_was_made_and_a_bad_one_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("message");
        std::fs::write(&file, "x".repeat(9000)).unwrap();
        let words = words(&file);
        let checkpoint = CheckpointNote { step: 3, digest: "ab".into(), path: "/work/step-3".into() };
        words.checkpoint(checkpoint.clone());
        words.outcome(&Outcome { digest: "cd".into(), summary: json!({"gbr": 0.1}) });
        words.write(None).unwrap();
        let read = || Termination::parse(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let good = read();
        assert_eq!((good.class, good.digest.as_deref(), good.summary), (None, Some("cd"), Some(json!({"gbr": 0.1}))));
        words.write(Some(&Failure::unavailable("no answer"))).unwrap();
        let bad = read();
        assert_eq!((bad.class, bad.message.as_deref()), (Some(ExitClass::Unavailable), Some("no answer")));
        assert_eq!((bad.digest, bad.checkpoint), (None, Some(checkpoint)));
        assert_eq!(Termination::parse("error: out of memory"), None);
    }

    #[test]
    fn it_never_outgrows_what_a_kubelet_reads() {
        for (message, summary) in [
            ("é\"".repeat(5000), json!("a")),
            ("short".into(), json!("b".repeat(5000))),
            ("\u{1}".repeat(4000), json!("b".repeat(5000))),
        ] {
            let termination = Termination {
                message: Some(message),
                summary: Some(summary),
                digest: Some("d".into()),
                ..Default::default()
            };
            let text = termination.to_text().unwrap();
            assert!(text.len() <= TERMINATION_LIMIT, "{}", text.len());
            assert_eq!(Termination::parse(&text).unwrap().digest.as_deref(), Some("d"));
        }
        let milestones = (1..=100).map(|step| (step, "e".repeat(64))).collect();
        let termination = Termination { summary: Some(json!({"steps": 100})), milestones, ..Default::default() };
        let read = Termination::parse(&termination.to_text().unwrap()).unwrap();
        assert!(read.summary.is_some() && read.milestones.len() > 40 && read.milestones.contains_key(&100));
    }
}
