//! How far a worker is.

use crate::outcome::write_atomically;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The latest state of one worker, as read by `s3 run` and the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgressReport {
    /// What is being done (`embed passages`, `step 3: rollouts`).
    pub phase: String,
    /// Units done in this phase.
    pub done: u64,
    /// Units of this phase; 0 when unknown.
    pub total: u64,
    /// Figures worth showing (`gbr`, `step`).
    pub figures: BTreeMap<String, f64>,
    /// A service that answers, or a job past its start.
    pub ready: bool,
}

/// Reports progress to a file (at most five times a second) and to the log (at most every two seconds).
/// Clones report the same.
#[derive(Clone)]
pub struct Progress {
    path: Option<PathBuf>,
    state: Arc<Mutex<State>>,
}

struct State {
    report: ProgressReport,
    written: Option<Instant>,
    logged: Option<Instant>,
}

impl Progress {
    /// `path` is the configuration's `runtime.progress`.
    pub fn new(path: Option<PathBuf>) -> Self {
        let state = State { report: ProgressReport::default(), written: None, logged: None };
        Self { path, state: Arc::new(Mutex::new(state)) }
    }

    /// The state as of now.
    pub fn report(&self) -> ProgressReport {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner).report.clone()
    }

    /// Starts a phase of `total` units (0 when unknown).
    pub fn phase(&self, phase: impl Into<String>, total: u64) {
        let phase = phase.into();
        self.update(true, |report| {
            report.phase = phase;
            report.done = 0;
            report.total = total;
        });
    }

    /// Sets the units done.
    pub fn done(&self, done: u64) {
        self.update(false, |report| report.done = done);
    }

    /// Sets a figure.
    pub fn figure(&self, name: &str, value: f64) {
        self.update(false, |report| {
            report.figures.insert(name.to_owned(), value);
        });
    }

    /// Says that a service answers from now on.
    pub fn ready(&self) {
        self.update(true, |report| report.ready = true);
    }

    fn update(&self, now: bool, change: impl FnOnce(&mut ProgressReport)) {
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        change(&mut state.report);
        let finished = state.report.total > 0 && state.report.done >= state.report.total;
        let due =
            |last: Option<Instant>, every: u64| last.is_none_or(|at| at.elapsed() >= Duration::from_millis(every));
        if now || finished || due(state.logged, 2000) {
            let report = &state.report;
            tracing::info!(phase = %report.phase, done = report.done, total = report.total, "progress");
            state.logged = Some(Instant::now());
        }
        if now || finished || due(state.written, 200) {
            state.written = Some(Instant::now());
            if let Some(path) = &self.path {
                let text = serde_json::to_vec(&state.report).unwrap_or_default();
                // Progress is advice: work never stops because it could not be shown.
                if let Err(error) = write_atomically(path, &text) {
                    tracing::warn!(path = %path.display(), %error, "progress file not written");
                }
            }
        }
    }
}

/// The latest report of a worker; none before its first.
pub fn read_progress(path: &Path) -> Option<ProgressReport> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
