//! Policy updates on real episodes.
//!
//! A step: the next questions, a group of episodes each, answers and rewards, advantages, optimiser steps, and
//! at intervals a greedy evaluation on held-out questions and a checkpoint. Everything that comes from outside
//! (episodes with their observations, answers, verdicts, failures) is journalled as it arrives; everything else
//! is a function of the configuration. So a run that is killed anywhere ends with the same digest as one that
//! is not.

mod best;
mod episodes;
mod figures;
mod notes;
mod update;

use crate::baseline::{BaselineStore, Chosen, choose};
use crate::checkpoint::{Checkpoints, Position, Whole, digest_tensors, export_adapter};
use crate::identity::{Identity, Peers};
use crate::run::Run;
use crate::team::{first, gather, tell};
use best::Best;
pub(crate) use episodes::again as round_again;
use episodes::{Arena, Played, Round, results_digest};
use notes::StepNotes;
use s3_artifacts::write_atomic;
use s3_collective::Collective;
use s3_config::{Determinism, TrainerConfig};
use s3_model::{AdamW, Decoder, Team, Workload};
use s3_rollout::record::{StepEntry, step_journal};
use s3_rollout::{RolloutError, Sampling};
use s3_search::Question;
use s3_search::eligible::sample;
use s3_telemetry::{ExitClass, Failure, Outcome};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
pub(crate) use update::{Again, Updater, needs_critic};

/// `s3-trainer train`.
pub fn command(run: &Run) -> Result<Outcome, Failure> {
    check(&run.config)?;
    let all = run.collective.as_ref();
    // what is on disk is the first rank's
    let _lock = if first(all) { Some(lock(&run.config.runtime.state_dir)?) } else { None };
    let (retriever, generator) = (run.retriever()?, run.generator()?);
    let mut store = if first(all) { Some(BaselineStore::open(run, &retriever, &generator)?) } else { None };
    let chosen = tell(all, || store.as_mut().map_or_else(|| Ok(Chosen::default()), |store| choose(run, store)))?;
    let (mut decoder, codec) = run.searcher()?;
    let reference = (run.config.algorithm.kl_coefficient > 0.0).then(|| decoder.clone());
    if needs_critic(&run.config.algorithm) {
        decoder.attach_value_head().map_err(RolloutError::from)?;
    }
    let config = &run.config;
    let team = Team::new(run.collective.clone(), decoder.device()).map_err(RolloutError::from)?;
    plan_memory(config, &decoder, &team)?;
    let more = json!({"reward": config.reward, "algorithm": config.algorithm, "rollout": config.rollout,
        "probe": config.probe.as_ref().map(|probe| (probe.every, probe.limit))});
    let peers = Peers { index: retriever.index_digest(), generator: Some(generator.digest()) };
    let identity = Identity::of(run, "train", &decoder, peers, [&chosen.train, &chosen.probe], more)?;
    let folder = config.runtime.state_dir.join("training");
    let same = tell(all, || Ok::<_, RolloutError>(identity.0.clone()))?;
    identity.check(&same, Path::new("the first replica"))?;
    if first(all) {
        claim(&folder, &identity)?;
    }
    let arena = Arena { run, codec: &codec, retriever: &retriever, generator: &generator };
    let training =
        Training { arena, chosen: &chosen, folder, identity: &identity, reference: reference.as_ref(), team: &team };
    training.run(decoder, store.as_mut())
}

/// Shows how much memory training takes when every episode fills its context, and refuses what cannot fit before
/// anything is spent on it. On a CPU, where memory is taken only as it is used, that is a warning.
fn plan_memory(config: &TrainerConfig, decoder: &Decoder, team: &Team) -> Result<(), Failure> {
    let tokens = decoder.config().max_positions.min(config.search.context_tokens as usize);
    let work = Workload {
        rows: config.rollout.batch.max(1),
        sequences: config.rollout.micro_batch.max(1),
        tokens,
        positions: tokens,
    };
    let mut plan = decoder.memory_plan(work);
    if team.size() > 1 {
        let episodes = config.rollout.questions * config.rollout.samples;
        let batch = if config.rollout.mini_batch == 0 { episodes } else { config.rollout.mini_batch.min(episodes) };
        let micros = batch.div_ceil(config.rollout.micro_batch.max(1)).div_ceil(team.size());
        let apart = if team.keeps_apart(config.determinism == Determinism::Bitwise) { micros } else { 1 };
        plan = plan.shared(team.largest_share(decoder), apart as u64);
    }
    tracing::info!(%plan, "memory");
    match plan.check(decoder.device()) {
        Ok(()) => Ok(()),
        Err(reason) if decoder.device().is_cpu() => {
            tracing::warn!(%reason, "if episodes fill their contexts");
            Ok(())
        }
        Err(reason) => Err(Failure::input(reason.to_string())),
    }
}

struct Training<'a> {
    arena: Arena<'a>,
    chosen: &'a Chosen,
    /// Journals of the steps.
    folder: PathBuf,
    identity: &'a Identity,
    reference: Option<&'a Decoder>,
    team: &'a Team,
}

impl Training<'_> {
    fn config(&self) -> &TrainerConfig {
        &self.arena.run.config
    }

    fn run(&self, mut decoder: Decoder, store: Option<&mut BaselineStore<'_>>) -> Result<Outcome, Failure> {
        let config = self.config();
        let checkpoints = if first(self.all()) { Some(Checkpoints::open(config, self.identity)?) } else { None };
        let mut optimizer = AdamW::new(&config.optimizer);
        let restored = self.restore(checkpoints.as_ref(), &mut decoder, &mut optimizer)?;
        self.team.settle(&mut decoder, &mut optimizer);
        let mut saved = restored.as_ref().map(|position| position.step);
        let mut position = restored.unwrap_or_default();
        if position.step > config.steps {
            let reason =
                format!("the newest checkpoint is at step {}, steps is {}; raise steps", position.step, config.steps);
            return Err(Failure::input(reason));
        }
        let checkpoints = checkpoints.as_ref();
        let result = self.steps(&mut decoder, &mut optimizer, store, checkpoints, &mut position, &mut saved);
        if let Err(failure) = &result
            && failure.class == ExitClass::Interrupted
            && saved != Some(position.step)
            && optimizer.steps() == steps_at(&position)
            // others may be anywhere in the step: what several ranks hold is saved between steps alone
            && self.team.size() == 1
        {
            self.save(checkpoints, &decoder, &optimizer, &position)?;
        }
        result?;
        let whole = self.whole(&decoder, &optimizer)?;
        tell(self.all(), || match (checkpoints, whole) {
            (Some(checkpoints), Some(whole)) => self.hand_over(checkpoints, &decoder, &whole, &position),
            _ => Err(Failure::internal("the first replica brings the run to its end")),
        })
    }

    fn all(&self) -> &dyn Collective {
        self.team.collective()
    }

    /// Exports the searcher and says what the run came to.
    fn hand_over(
        &self,
        checkpoints: &Checkpoints<'_>,
        decoder: &Decoder,
        whole: &Whole,
        position: &Position,
    ) -> Result<Outcome, Failure> {
        let config = self.config();
        checkpoints.check()?;
        let adapter = match Best::of(position) {
            Some(best) => {
                let mut chosen = decoder.clone();
                best.lay_over(&self.folder, &mut chosen)?;
                export_adapter(&chosen, self.identity, best.step, config)?
            }
            None => export_adapter(decoder, self.identity, position.step, config)?,
        };
        let mut summary = position.summary.clone();
        if let Value::Object(summary) = &mut summary {
            summary.insert("steps".into(), json!(position.step));
            summary.insert("questions".into(), json!(self.chosen.train.len()));
            summary.insert("solvedAndLeftOut".into(), json!(self.chosen.solved));
            summary.insert("adapterSha256".into(), json!(adapter));
        }
        Ok(Outcome { digest: digest_tensors(whole, position)?, summary })
    }

    /// The tensors of all ranks, on the first.
    fn whole(&self, decoder: &Decoder, optimizer: &AdamW) -> Result<Option<Whole>, RolloutError> {
        Ok(self.team.whole(decoder, optimizer)?.map(|(policy, state)| Whole { policy, state }))
    }

    /// Saves a checkpoint of what all ranks hold.
    fn save(
        &self,
        checkpoints: Option<&Checkpoints<'_>>,
        decoder: &Decoder,
        optimizer: &AdamW,
        position: &Position,
    ) -> Result<(), Failure> {
        match (checkpoints, self.whole(decoder, optimizer)?) {
            (Some(checkpoints), Some(whole)) => checkpoints.save_tensors(&whole, position).map(drop),
            _ => Ok(()),
        }
    }

    /// Restores the newest checkpoint, which the first rank reads, on every rank.
    fn restore(
        &self,
        checkpoints: Option<&Checkpoints<'_>>,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
    ) -> Result<Option<Position>, Failure> {
        if let (Some(checkpoints), 1) = (checkpoints, self.team.size()) {
            return checkpoints.restore(decoder, optimizer);
        }
        let mut loaded = Whole::default();
        let position = tell(self.all(), || {
            let Some(checkpoints) = checkpoints else { return Ok(None) };
            let found = checkpoints.load()?;
            Ok::<_, Failure>(found.map(|(whole, position, _)| {
                loaded = whole;
                position
            }))
        })?;
        if position.is_some() {
            let policy = self.team.told(&loaded.policy).map_err(RolloutError::from)?;
            let state = self.team.told(&loaded.state).map_err(RolloutError::from)?;
            Whole { policy, state }.lay_over(&self.config().checkpoint.dir, decoder, optimizer)?;
        }
        Ok(position)
    }

    fn steps(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        mut store: Option<&mut BaselineStore<'_>>,
        checkpoints: Option<&Checkpoints<'_>>,
        position: &mut Position,
        saved: &mut Option<u32>,
    ) -> Result<(), Failure> {
        let config = self.config();
        if position.results.is_empty() {
            *position = Self::noted(position, optimizer, None);
            let mut journal = StepNotes::open(self.all(), &step_journal(&self.folder, 0))?;
            self.probe(decoder, store.as_deref_mut(), &mut journal, 0, position)?;
        }
        while position.step < config.steps {
            if let Some(checkpoints) = checkpoints {
                checkpoints.check()?;
            }
            let step = position.step + 1;
            let mut journal = StepNotes::open(self.all(), &step_journal(&self.folder, step))?;
            let questions = step_questions(&self.chosen.train, config, step);
            let played =
                self.arena.round(decoder, store.as_deref_mut(), &mut journal, &self.round(&questions, step))?;
            let mut figures = figures::round_figures(&played);
            self.arena.run.progress.phase(format!("step {step}/{}: update", config.steps), 0);
            let started = std::time::Instant::now();
            let updater =
                Updater { config, reference: self.reference, shutdown: &self.arena.run.link.shutdown, team: self.team };
            figures.extend(updater.update(decoder, optimizer, &played)?);
            figures.insert("secondsUpdate".into(), started.elapsed().as_secs_f64());
            let mut next = Self::noted(position, optimizer, Some(&figures));
            next.extend(&results_digest(&played)?);
            next.step = step;
            if journal.get("figures").is_none() {
                let entry = StepEntry::Figures { figures: figures.clone() };
                journal.append("figures", entry)?;
            }
            self.show(step, &figures);
            if config
                .probe
                .as_ref()
                .is_some_and(|probe| step == config.steps || step.is_multiple_of(probe.every.max(1)))
            {
                // interrupted here, the journal brings a later run back to this very place
                self.probe(decoder, store.as_deref_mut(), &mut journal, step, &mut next)?;
            }
            *position = next;
            // All stop together, and where they save.
            let asked = gather(self.all(), self.arena.run.link.shutdown.requested())?.contains(&true);
            if Checkpoints::due(&config.checkpoint, step, config.steps) || (asked && self.team.size() > 1) {
                let started = std::time::Instant::now();
                self.save(checkpoints, decoder, optimizer, position)?;
                *saved = Some(step);
                let seconds = started.elapsed().as_secs_f64();
                s3_telemetry::metrics().training_phase_seconds.with_label_values(&["checkpoint"]).observe(seconds);
            }
            if asked {
                return Err(Failure::interrupted());
            }
        }
        Ok(())
    }

    fn round<'q>(&self, questions: &'q [Question], step: u32) -> Round<'q> {
        let config = self.config();
        Round {
            prefix: "",
            name: format!("step {step}/{}", config.steps),
            questions,
            samples: config.rollout.samples as u32,
            sampling: Sampling {
                temperature: config.rollout.temperature,
                top_p: config.rollout.top_p,
                seed: config.seed,
                step: u64::from(step),
            },
        }
    }

    /// Greedy evaluation on the held-out questions.
    fn probe(
        &self,
        decoder: &Decoder,
        store: Option<&mut BaselineStore<'_>>,
        journal: &mut StepNotes,
        step: u32,
        position: &mut Position,
    ) -> Result<(), Failure> {
        if self.config().probe.is_none() || self.chosen.probe.is_empty() {
            return Ok(());
        }
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: self.config().seed, step: u64::from(step) };
        let name = format!("step {step}/{}: held-out", self.config().steps);
        let round = Round { prefix: "probe/", name, questions: &self.chosen.probe, samples: 1, sampling };
        let played: Played = self.arena.round(decoder, store, journal, &round)?;
        let figures = figures::round_figures(&played);
        position.extend(&results_digest(&played)?);
        let known = ["gain", "accuracy", "baselineAccuracy", "searches", "selected"];
        let kept: BTreeMap<&str, f64> = known.iter().filter_map(|name| Some((*name, *figures.get(*name)?))).collect();
        let key = if position.summary["probeFirst"].is_null() { "probeFirst" } else { "probeLast" };
        position.summary[key] = json!(kept);
        tracing::info!(step, gain = figures["gain"], accuracy = figures["accuracy"], "held-out");
        if self.config().probe.as_ref().is_some_and(|probe| probe.export_best) {
            let folder = first(self.all()).then_some(self.folder.as_path());
            best::note(position, step, figures["gain"], decoder, folder)?;
        }
        self.arena.run.progress.figure("heldOutGain", figures["gain"]);
        if journal.get("probe/figures").is_none() {
            journal.append("probe/figures", StepEntry::Figures { figures })?;
        }
        Ok(())
    }

    /// The position with what the summary keeps of a step; no times.
    fn noted(position: &Position, optimizer: &AdamW, figures: Option<&BTreeMap<String, f64>>) -> Position {
        let mut next = position.clone();
        if next.summary.is_null() {
            next.summary = json!({});
        }
        next.summary["optimizerSteps"] = json!(optimizer.steps());
        if let Some(figures) = figures {
            let kept: BTreeMap<&String, &f64> =
                figures.iter().filter(|(name, _)| !name.starts_with("seconds")).collect();
            let key = if next.summary["first"].is_null() { "first" } else { "last" };
            next.summary[key] = json!(kept);
            let masked = next.summary["masked"].as_f64().unwrap_or_default();
            next.summary["masked"] = json!(masked + figures.get("masked").copied().unwrap_or_default());
        }
        next
    }

    fn show(&self, step: u32, figures: &BTreeMap<String, f64>) {
        if !first(self.all()) {
            return;
        }
        figures::publish(step, figures);
        let figure = |name: &str| figures.get(name).copied().unwrap_or_default();
        tracing::info!(
            step,
            reward = figure("reward"),
            gain = figure("gain"),
            accuracy = figure("accuracy"),
            baseline = figure("baselineAccuracy"),
            searches = figure("searches"),
            invalid = figure("invalidTurns"),
            entropy = figure("entropy"),
            grad_norm = figure("gradNorm"),
            mismatch_kl = figure("mismatchKl"),
            masked = figure("masked"),
            seconds_episodes = figure("secondsEpisodes"),
            seconds_answers = figure("secondsAnswers"),
            seconds_update = figure("secondsUpdate"),
            "step"
        );
        let progress = &self.arena.run.progress;
        progress.figure("step", f64::from(step));
        for name in ["reward", "gain", "accuracy", "gradNorm", "searches"] {
            progress.figure(name, figure(name));
        }
    }
}

/// Optimiser steps at a position: the decoder in memory is that position's policy only while they agree.
fn steps_at(position: &Position) -> u64 {
    position.summary["optimizerSteps"].as_u64().unwrap_or_default()
}

/// Refuses settings under which nothing could be learned.
fn check(config: &TrainerConfig) -> Result<(), Failure> {
    if config.rollout.temperature <= 0.0 {
        return Err(Failure::input("rollout.temperature must be above 0 for training; greedy episodes teach nothing"));
    }
    if config.rollout.questions == 0 || config.rollout.samples == 0 {
        return Err(Failure::input("rollout.questions and rollout.samples must be at least 1"));
    }
    let algorithm = &config.algorithm;
    if algorithm.estimator.needs_group() && config.rollout.samples < 2 {
        let estimator = algorithm.estimator;
        return Err(Failure::input(format!(
            "{estimator:?} compares the samples of a question; set rollout.samples to 2 or more"
        )));
    }
    if algorithm.filter_zero_variance && config.rollout.samples < 2 {
        return Err(Failure::input(
            "algorithm.filterZeroVariance compares the samples of a question; set rollout.samples to 2 or more",
        ));
    }
    if algorithm.dual_clip.abs() > 0.0 && algorithm.dual_clip <= 1.0 {
        return Err(Failure::input("algorithm.dualClip must be above 1, or 0 for no bound"));
    }
    s3_search::check(&config.search).map_err(Failure::input)
}

/// The questions of a step: consecutive ones of a sequence that goes through all of them again and again, each
/// time in another order. A question is asked once in a step.
fn step_questions(all: &[Question], config: &TrainerConfig, step: u32) -> Vec<Question> {
    let count = config.rollout.questions;
    let first = (step as usize - 1) * count;
    let mut seen = BTreeSet::new();
    let mut orders: BTreeMap<usize, Vec<Question>> = BTreeMap::new();
    (first..first + count)
        .filter_map(|place| {
            let (pass, at) = (place / all.len(), place % all.len());
            let order = orders.entry(pass).or_insert_with(|| {
                if pass == 0 {
                    return all.to_vec();
                }
                let salt = (pass as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                sample(all.to_vec(), config.seed ^ salt, all.len())
            });
            let question = order[at].clone();
            seen.insert((question.dataset.clone(), question.id.clone())).then_some(question)
        })
        .collect()
}

/// Makes sure that a folder's journals belong to this run.
pub(crate) fn claim(folder: &Path, identity: &Identity) -> Result<(), Failure> {
    let path = folder.join("run.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let found: Value = serde_json::from_slice(&bytes)
                .map_err(|e| Failure::input(format!("{}: {e}; remove the folder to start anew", path.display())))?;
            identity.check(&found, folder)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let text = serde_json::to_vec_pretty(&identity.0).map_err(Failure::internal)?;
            write_atomic(&path, &text).map_err(|e| RolloutError::from(e).into())
        }
        Err(error) => Err(Failure::io(format!("{}: {error}", path.display()))),
    }
}

/// Refuses to share a state folder with another process; the lock ends with the process.
pub(crate) fn lock(state: &Path) -> Result<std::fs::File, Failure> {
    let path = state.join("lock");
    let io = |e: std::io::Error| Failure::io(format!("{}: {e}", path.display()));
    std::fs::create_dir_all(state).map_err(io)?;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(Failure::input(format!(
            "{} is in use by another trainer; wait for it or choose another stateDir",
            state.display()
        ))),
        Err(std::fs::TryLockError::Error(error)) => Err(io(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn steps_go_through_all_questions_before_any_comes_again() {
        let all: Vec<Question> =
            (0..7).map(|i| Question { id: i.to_string(), question: format!("q{i}"), ..Question::default() }).collect();
        let text = "runtime: {name: t, stateDir: s}\nseed: 5\nsearcher: {path: m}\nretriever: {address: 'http://a'}\n\
            generator: {endpoint: {address: 'http://a'}}\ndata: {datasets: []}\nbaselineStore: b\nsteps: 9\n\
            checkpoint: {dir: c}\nexport: e\nrollout: {questions: 3}\n";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.yaml");
        std::fs::write(&path, text).unwrap();
        let config: TrainerConfig = s3_config::load(&path).unwrap();
        let ids = |step| step_questions(&all, &config, step).into_iter().map(|q| q.id).collect::<Vec<_>>();
        assert_eq!([ids(1), ids(2)].concat(), ["0", "1", "2", "3", "4", "5"]);
        let mut two_passes: Vec<String> = (1..=7).flat_map(ids).collect();
        assert!(two_passes.len() >= 20 && two_passes.len() <= 21, "a pass may end inside a step");
        two_passes.sort();
        two_passes.dedup();
        assert_eq!(two_passes.len(), 7);
        assert_eq!(ids(5), ids(5));
    }
}
