//! `s3-evaluator run`: from a configuration to a published result.

use crate::arms::{self, Places, Surroundings};
use crate::calls::Timer;
use crate::error::EvalError;
use crate::results::Results;
use crate::statistics::detectable;
use crate::summary::{Summary, summarise};
use crate::units::{ArmResults, ArmRun, UNITS, Unit};
use crate::{identity, pieces, pin, questions, report};
use s3_artifacts::{ArtifactError, Journal};
use s3_config::EvaluatorConfig;
use s3_rollout::{AnswerSource, ChatSource, GeneratorPeer, Link};
use s3_telemetry::{Failure, Outcome, Progress};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Everything a command works with.
pub struct Run {
    /// The configuration, with prompt templates filled in.
    pub config: EvaluatorConfig,
    /// The way to other workers, and the request to stop.
    pub link: Link,
    /// Shown to people and to whoever started this.
    pub progress: Progress,
    /// What `/readyz` says.
    pub ready: Arc<AtomicBool>,
}

impl Run {
    /// From now on this process can be asked.
    pub fn ready(&self) {
        self.progress.ready();
        self.ready.store(true, Ordering::SeqCst);
    }
}

/// Evaluates all arms; continues what an earlier process left.
pub fn run(run: &Run) -> Result<Outcome, Failure> {
    let (results, summary) = evaluate(run)?;
    let summary = serde_json::to_value(summary).map_err(Failure::internal)?;
    Ok(Outcome { digest: results.digest()?, summary })
}

fn evaluate(run: &Run) -> Result<(Results, Summary), EvalError> {
    let _lock = lock(&run.config.runtime.state_dir)?;
    let config = &pin::pinned(&run.config)?;
    let state = &config.runtime.state_dir;
    let order = arms::order(&config.arms)?;
    check_statistics(config)?;
    run.progress.phase("choose questions", 0);
    let set = questions::choose(config)?;
    identity::freeze_questions(state, &set)?;
    let count = set.questions.len();
    tracing::info!(questions = count, sha256 = %set.sha256, "questions frozen");
    tracing::info!("{}", detectable::sentence(count, config.statistics.confidence));

    run.progress.phase("connect to retriever and generator", 0);
    let places = Places::connect(&run.link, config)?;
    let generator = GeneratorPeer::connect(&run.link, &config.generator, &config.runtime.name)?;
    let identity = identity::of(config, &set, &places, generator.digest())?;
    identity::freeze_identity(state, &identity)?;

    let mut journal: Journal<Unit> = Journal::open(&state.join(UNITS))?;
    let mut done: Vec<Option<ArmResults>> = vec![None; config.arms.len()];
    for (number, at) in order.into_iter().enumerate() {
        let arm = &config.arms[at];
        run.progress.phase(format!("arm {} ({} of {})", arm.name, number + 1, config.arms.len()), count as u64);
        let words = config.generator.passage_words;
        let budgets = arms::budget_from(arm)
            .and_then(|(from, by)| Some((config.arms.iter().position(|other| other.name == from)?, by)))
            .and_then(|(from, by)| Some(arms::budgets(done[from].as_ref()?, by, words)))
            .unwrap_or_default();
        let (place, timer) = (std::cell::OnceCell::new(), Timer::default());
        let (answers, chat) = (timer.of(&generator as &dyn AnswerSource), timer.of(&generator as &dyn ChatSource));
        let searched = std::cell::OnceCell::new();
        let walk = ArmRun {
            name: &arm.name,
            questions: &set.questions,
            chunk: config.chunk,
            source: &answers,
            timer: &timer,
            link: &run.link,
            progress: &|questions| run.progress.done(questions as u64),
        };
        // nothing is loaded for an arm that is done
        let open = || {
            let retriever = places.open(arm, &set)?;
            let around = Surroundings {
                retriever: searched.get_or_init(|| timer.of(&**place.get_or_init(|| retriever))),
                chat: &chat,
                passage_words: words,
                shutdown: &run.link.shutdown,
                seed: config.seed,
            };
            arms::open(arm, around, budgets)
        };
        done[at] = Some(walk.run(&mut journal, open)?);
    }
    run.progress.phase("statistics and report", 0);
    let arms: Vec<(String, ArmResults)> =
        config.arms.iter().map(|arm| arm.name.clone()).zip(done.into_iter().flatten()).collect();
    let mut results = Results::collect(set, &arms, config.statistics.baseline.as_deref());
    results.pieces = pieces::of(&config.arms, &results.rows)?;
    let summary = summarise(config, &results)?;
    results.publish(&config.output, &staging(config), &identity, &summary)?;
    if let Some(page) = &config.report {
        report::write(page, &results, &identity, &summary)?;
    }
    Ok((results, summary))
}

/// Held while this process lives: two would write one journal.
fn lock(state: &Path) -> Result<File, EvalError> {
    let path = state.join("lock");
    let io = |source| ArtifactError::Io { action: "lock", path: path.clone(), source };
    std::fs::create_dir_all(state).map_err(io)?;
    let file = File::create(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(EvalError::Busy { path }),
        Err(TryLockError::Error(source)) => Err(io(source).into()),
    }
}

/// Beside the target, so that publishing is one rename.
fn staging(config: &EvaluatorConfig) -> PathBuf {
    let mut path = config.output.clone().into_os_string();
    path.push(".staging");
    PathBuf::from(path)
}

fn check_statistics(config: &EvaluatorConfig) -> Result<(), EvalError> {
    let statistics = &config.statistics;
    let named = statistics.baseline.iter().map(|name| ("baseline", name));
    for (key, name) in named.chain(statistics.paired_against.iter().map(|name| ("pairedAgainst", name))) {
        if !config.arms.iter().any(|arm| arm.name == *name) {
            return Err(EvalError::Config(format!("statistics.{key} names no arm: {name:?}")));
        }
    }
    if !(statistics.confidence > 0.5 && statistics.confidence < 1.0) {
        let value = statistics.confidence;
        return Err(EvalError::Config(format!("statistics.confidence is {value}; it must be between 0.5 and 1")));
    }
    if statistics.resamples < 100 {
        let value = statistics.resamples;
        return Err(EvalError::Config(format!("statistics.resamples is {value}; at least 100 are needed")));
    }
    Ok(())
}
