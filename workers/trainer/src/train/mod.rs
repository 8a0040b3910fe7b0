//! Policy updates on real episodes.
//!
//! A step: the next questions, a group of episodes each, answers and rewards, advantages, optimiser steps, and
//! at intervals a greedy evaluation on held-out questions and a checkpoint. Everything that comes from outside
//! (episodes with their observations, answers, verdicts, failures) is journalled as it arrives; everything else
//! is a function of the configuration. So a run that is killed anywhere ends with the same digest as one that
//! is not.

mod best;
mod curriculum;
mod episodes;
mod figures;
mod milestones;
mod notes;
mod policies;
mod rollback;
mod start;
mod update;
mod watch;

use crate::baseline::{BaselineStore, Chosen, choose};
use crate::checkpoint::{Checkpoint, Checkpoints, Position, Whole, digest_tensors, export_adapter, other};
use crate::engine::Engine;
use crate::identity::{Identity, Peers};
use crate::run::Run;
use crate::team::{first, gather, tell};
use best::Best;
pub use curriculum::Curriculum;
use curriculum::Sequence;
use episodes::{Arena, Played, Round, results_digest};
pub(crate) use episodes::{again as round_again, rewarded};
use milestones::Milestones;
use notes::StepNotes;
pub(crate) use policies::Policies;
use s3_collective::Collective;
use s3_config::{GuardAction, TrainerConfig};
use s3_model::{AdamW, Decoder, Team};
use s3_rollout::record::{StepEntry, step_journal};
use s3_rollout::{Ahead, GeneratorPeer, Link, RolloutError, Sampling, policy_of};
use s3_telemetry::{ExitClass, Failure, Outcome, last_words};
use serde_json::{Value, json};
use start::{check, check_bits, plan_memory};
pub(crate) use start::{claim, lock, reference};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::Ordering;
pub(crate) use update::{Again, Updater, needs_critic};
use watch::Trip;
pub use watch::Watch;

/// `s3-trainer train`.
pub fn command(run: &Run) -> Result<Outcome, Failure> {
    let all = run.collective.as_ref();
    check(&run.config, all.size())?;
    // what is on disk is the first rank's
    let _lock = if first(all) { Some(lock(&run.config.runtime.state_dir)?) } else { None };
    let retriever = run.retriever()?;
    let generator = if run.config.answers_itself() { None } else { Some(run.generator()?) };
    let mut store = match &generator {
        Some(generator) if first(all) => Some(BaselineStore::open(run, &retriever, generator)?),
        _ => None,
    };
    let chosen = tell(all, || choose(run, store.as_mut()))?;
    let (mut decoder, codec) = run.searcher()?;
    let reference = reference(&run.config, &decoder);
    if needs_critic(&run.config.algorithm) {
        decoder.attach_value_head().map_err(RolloutError::from)?;
    }
    let config = &run.config;
    check_bits(config, &decoder, all.size())?;
    let team = Team::new(run.collective.clone(), decoder.device()).map_err(RolloutError::from)?;
    plan_memory(config, &decoder, &team)?;
    // how many threads play changes no result, nor do the addresses of servers that write
    let rollout = s3_config::RolloutConfig { workers: 1, engine: None, ..config.rollout.clone() };
    let mut more = json!({"reward": config.reward, "algorithm": config.algorithm, "rollout": rollout,
        "probe": config.probe.as_ref().map(|probe| (probe.every, probe.limit))});
    if let Some(buffer) = &config.data.difficulty_buffer {
        more["difficultyBuffer"] = json!(buffer);
    }
    let peers = Peers { index: retriever.index_digest(), generator: generator.as_ref().map(GeneratorPeer::digest) };
    if config.rollout.engine.is_some() {
        more["engine"] = json!(true);
    }
    let identity = Identity::of(run, "train", &decoder, peers, [&chosen.train, &chosen.probe], more)?;
    let folder = config.runtime.state_dir.join("training");
    let same = tell(all, || Ok::<_, RolloutError>(identity.0.clone()))?;
    identity.check(&same, Path::new("the first replica"))?;
    if first(all) {
        claim(&folder, &identity)?;
    }
    let (retriever, generator) = (retriever.clone(), generator.clone());
    let store = store.map(Mutex::new);
    let engine = config.rollout.engine.as_ref();
    let engine = engine.map(|engine| Engine::open(run, engine, &codec, &identity)).transpose()?;
    let (engine, link) = (engine.as_ref(), run.link.clone());
    let arena = Arena { run, codec: &codec, retriever, generator, store: store.as_ref(), engine, link };
    let training =
        Training { arena, chosen: &chosen, folder, identity: &identity, reference: reference.as_ref(), team: &team };
    training.run(decoder)
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

    fn run(&self, mut decoder: Decoder) -> Result<Outcome, Failure> {
        let config = self.config();
        let checkpoints = if first(self.all()) { Some(Checkpoints::open(config, self.identity)?) } else { None };
        let checkpoints = checkpoints.as_ref();
        let mut optimizer = AdamW::new(&config.optimizer);
        let mut policies = Policies::new(config.rollout.staleness);
        let newest = || checkpoints.map_or(Ok(None), Checkpoints::newest);
        let restored = self.put_back(&mut decoder, &mut optimizer, &mut policies, newest)?;
        let mut saved = restored.as_ref().map(|position| position.step);
        let from_other = || config.resume_from.as_ref().map(|from| other(from, self.identity)).transpose();
        let position = match restored {
            Some(position) => Some(position),
            None => self.put_back(&mut decoder, &mut optimizer, &mut policies, from_other)?,
        };
        let mut position = position.unwrap_or_default();
        self.team.settle(&mut decoder, &mut optimizer);
        self.once(|| self.set_aside(&position))?;
        last_words().guard(position.watch.says());
        if position.step > config.steps {
            let reason =
                format!("the newest checkpoint is at step {}, steps is {}; raise steps", position.step, config.steps);
            return Err(Failure::input(reason));
        }
        let milestones = Milestones::of(config, self.identity);
        self.once(|| {
            milestones.tell(position.step)?;
            milestones.keep(&decoder, position.step)
        })?;
        let result = self.steps(&mut decoder, &mut optimizer, &mut policies, checkpoints, &mut position, &mut saved);
        if let Err(failure) = &result
            && failure.class == ExitClass::Interrupted
            && saved != Some(position.step)
            && optimizer.steps() == steps_at(&position)
            // others may be anywhere in the step: what several ranks hold is saved between steps alone
            && self.team.size() == 1
        {
            self.save(checkpoints, &decoder, &optimizer, &position, &policies)?;
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

    /// Does what is done once, by the first rank; all go on when it is done.
    fn once(&self, work: impl FnOnce() -> Result<(), Failure>) -> Result<(), Failure> {
        tell(self.all(), work)
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
            if let Some(why) = self.stops(position).filter(|_| position.step < config.steps) {
                summary.insert("stoppedEarly".into(), json!(why));
            }
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

    /// Saves a checkpoint of what all ranks hold; all go on when it is safe.
    fn save(
        &self,
        checkpoints: Option<&Checkpoints<'_>>,
        decoder: &Decoder,
        optimizer: &AdamW,
        position: &Position,
        policies: &Policies,
    ) -> Result<(), Failure> {
        let whole = self.whole(decoder, optimizer)?;
        self.once(|| match (checkpoints, whole) {
            (Some(checkpoints), Some(whole)) => checkpoints.save_tensors(decoder, &whole, position, policies).map(drop),
            _ => Ok(()),
        })
    }

    /// Puts a checkpoint back on every rank, which the first one finds; none when there is none.
    fn put_back(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        policies: &mut Policies,
        find: impl FnOnce() -> Result<Option<Checkpoint>, Failure>,
    ) -> Result<Option<Position>, Failure> {
        if self.team.size() == 1 {
            return find()?.map(|checkpoint| checkpoint.restore_all(decoder, optimizer, policies)).transpose();
        }
        // Several ranks play with the newest policy alone, so there are no earlier ones.
        let mut loaded = Whole::default();
        let position = tell(self.all(), || {
            let Some(checkpoint) = find()? else { return Ok(None) };
            loaded = checkpoint.whole()?;
            checkpoint.position().map(Some)
        })?;
        if position.is_some() {
            let policy = self.team.told(&loaded.policy).map_err(RolloutError::from)?;
            let state = self.team.told(&loaded.state).map_err(RolloutError::from)?;
            Whole { policy, state }.lay_over(&self.config().checkpoint.dir, decoder, optimizer)?;
            self.team.settle(decoder, optimizer);
        }
        Ok(position)
    }

    /// The journal of a step.
    fn notes(&self, step: u32) -> Result<StepNotes, RolloutError> {
        let attempt = self.config().runtime.attempt.as_ref().map_or(0, |attempt| attempt.epoch);
        StepNotes::open(self.arena.run.collective.as_ref(), &step_journal(&self.folder, step), attempt)
    }

    fn steps(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        policies: &mut Policies,
        checkpoints: Option<&Checkpoints<'_>>,
        position: &mut Position,
        saved: &mut Option<u32>,
    ) -> Result<(), Failure> {
        loop {
            let back = std::thread::scope(|scope| {
                let ahead = Ahead::new(scope, self.config().rollout.staleness, self.config().steps);
                self.steps_with(ahead, decoder, optimizer, policies, checkpoints, position, saved)
            })?;
            // No round is under way here, so nothing is played with what is gone back from.
            let Some((from, trip)) = back else { return Ok(()) };
            let earlier = self.roll_back(decoder, optimizer, policies, checkpoints, &from, trip.since)?;
            let Some(earlier) = earlier else {
                *position = from;
                policies.keep(position.step, decoder, optimizer.steps());
                self.save(checkpoints, decoder, optimizer, position, policies)?;
                let cure = "it was not cured by going back, or there is nothing to go back to";
                return Err(Failure::paused(&format!("{}; {cure}", trip.message)));
            };
            (*position, *saved) = (earlier, None);
            last_words().guard(position.watch.says());
        }
    }

    /// Makes steps until there are no more, or a guard asks to go back: then the position and what the guard says.
    #[allow(clippy::too_many_arguments)] // what a step reads and changes
    fn steps_with<'s>(
        &'s self,
        mut ahead: Ahead<'s, '_, (Played, StepNotes)>,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        policies: &mut Policies,
        checkpoints: Option<&Checkpoints<'_>>,
        position: &mut Position,
        saved: &mut Option<u32>,
    ) -> Result<Option<(Position, Trip)>, Failure> {
        let config = self.config();
        let milestones = Milestones::of(config, self.identity);
        if position.results.is_empty() {
            *position = Self::noted(position, optimizer, None);
            let mut journal = self.notes(0)?;
            self.probe(decoder, &mut journal, 0, position)?;
        }
        self.begin_curriculum(position);
        while position.step < config.steps && self.stops(position).is_none() {
            checkpoints.map_or(Ok(()), Checkpoints::check)?;
            let step = position.step + 1;
            policies.keep(position.step, decoder, optimizer.steps());
            self.start_due(&mut ahead, policies, position)?;
            let waited = std::time::Instant::now();
            self.arena.run.progress.phase(format!("step {step}/{}: episodes", config.steps), self.episodes());
            let (played, mut journal) = ahead.take(step, |done| self.arena.run.progress.done(done))?;
            let mut figures = figures::round_figures(&played);
            figures.insert("secondsWaited".into(), waited.elapsed().as_secs_f64());
            let policy = policy_of(step, config.rollout.staleness);
            figures.insert("staleness".into(), f64::from(step - 1 - policy));
            figures.insert("stalenessOptimizerSteps".into(), policies.behind(policy, optimizer.steps())? as f64);
            policies.release();
            self.arena.run.progress.phase(format!("step {step}/{}: update", config.steps), 0);
            let started = std::time::Instant::now();
            let shutdown = &self.arena.run.link.shutdown;
            let updater = Updater { config, reference: self.reference, shutdown, team: self.team };
            figures.extend(updater.update(decoder, optimizer, &played)?);
            figures.insert("secondsUpdate".into(), started.elapsed().as_secs_f64());
            let curriculum = self.curriculum_after(position, step, &played, &mut figures);
            let mut next = Self::noted(position, optimizer, Some(&figures));
            next.curriculum = curriculum;
            next.extend(&results_digest(&played)?);
            next.step = step;
            if journal.get("figures").is_none() {
                let entry = StepEntry::Figures { figures: figures.clone() };
                journal.append("figures", entry)?;
            }
            self.show(step, &figures);
            let trip = next.watch.stepped(step, &figures, &config.guards);
            let mut pause = None;
            if let Some(trip) = trip {
                tracing::warn!(step, action = ?trip.action, "{}", trip.message);
                match trip.action {
                    GuardAction::Warn => {}
                    GuardAction::Pause => pause = Some(trip.message),
                    GuardAction::Rollback => {
                        last_words().guard(next.watch.says());
                        return Ok(Some((next, trip)));
                    }
                }
            }
            last_words().guard(next.watch.says());
            if config
                .probe
                .as_ref()
                .is_some_and(|probe| step == config.steps || step.is_multiple_of(probe.every.max(1)))
            {
                // interrupted here, the journal brings a later run back to this very place
                self.probe(decoder, &mut journal, step, &mut next)?;
            }
            *position = next;
            let ends = pause.is_some() || self.stops(position).is_some();
            // All stop together, and where they save.
            let asked = gather(self.all(), shutdown.requested())?.contains(&true);
            let due = Checkpoints::due(&config.checkpoint, step, config.steps) || milestones.due(step);
            if ends || due || (asked && self.team.size() > 1) {
                let started = std::time::Instant::now();
                self.save(checkpoints, decoder, optimizer, position, policies)?;
                *saved = Some(step);
                let seconds = started.elapsed().as_secs_f64();
                s3_telemetry::metrics().training_phase_seconds.with_label_values(&["checkpoint"]).observe(seconds);
                self.once(|| milestones.keep(decoder, step))?;
            }
            if let Some(why) = pause {
                return Err(Failure::paused(&why));
            }
            if asked {
                return Err(Failure::interrupted());
            }
        }
        Ok(None)
    }

    /// Settles the steps that can start, where a difficulty buffer has its say.
    fn begin_curriculum(&self, position: &mut Position) {
        let config = self.config();
        let Some(rule) = &config.data.difficulty_buffer else {
            position.curriculum = None;
            return;
        };
        let all = &self.chosen.train;
        // that of another training counts in other questions
        let digest = s3_search::eligible::digest(all);
        let known = position.curriculum.take().filter(|known| known.is_of(&digest));
        let mut curriculum = known.unwrap_or_else(|| Curriculum::new(digest));
        let steps = position.step + 1..=position.step + 1 + config.rollout.staleness;
        curriculum.settle(rule, config.rollout.questions, &mut Sequence::new(all, config.seed), steps);
        position.curriculum = Some(curriculum);
    }

    /// The curriculum after a step's round, with the step settled that can start then.
    fn curriculum_after(
        &self,
        position: &Position,
        step: u32,
        played: &Played,
        figures: &mut BTreeMap<String, f64>,
    ) -> Option<Curriculum> {
        let config = self.config();
        let rule = config.data.difficulty_buffer.as_ref()?;
        let mut curriculum = position.curriculum.clone()?;
        figures.extend(curriculum.played(rule, step, config.rollout.samples, &played.outcomes));
        let steps = step + 1..=step + 1 + config.rollout.staleness;
        let mut sequence = Sequence::new(&self.chosen.train, config.seed);
        curriculum.settle(rule, config.rollout.questions, &mut sequence, steps);
        Some(curriculum)
    }

    /// Why training is done before its last step, if it is.
    fn stops(&self, position: &Position) -> Option<String> {
        position.watch.stops(self.config().stop.as_ref()?)
    }

    /// Episodes of a step.
    fn episodes(&self) -> u64 {
        let rollout = &self.config().rollout;
        (rollout.questions.min(self.chosen.train.len()) * rollout.samples) as u64
    }

    /// Starts the rounds whose policy is there, each with its own copy of it (which shares what is not trained).
    fn start_due<'s>(
        &'s self,
        ahead: &mut Ahead<'s, '_, (Played, StepNotes)>,
        policies: &Policies,
        position: &Position,
    ) -> Result<(), RolloutError> {
        let config = self.config();
        // After each return to an earlier checkpoint its episodes are other ones.
        let again = u64::from(position.watch.rollbacks).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        for step in ahead.due(position.step) {
            let decoder = policies.of(policy_of(step, config.rollout.staleness))?.clone();
            let link = Link { handle: self.arena.link.handle.clone(), shutdown: self.arena.link.shutdown.part() };
            let arena = self.arena.on(link.clone());
            let questions = match &position.curriculum {
                Some(curriculum) => curriculum.questions(step, &self.chosen.train),
                None => curriculum::consecutive(&self.chosen.train, config, step),
            };
            ahead.start(step, link.shutdown, move |_, done| {
                let mut journal = self.notes(step)?;
                let round = Round {
                    prefix: "",
                    questions: &questions,
                    samples: config.rollout.samples as u32,
                    sampling: Sampling {
                        temperature: config.rollout.temperature,
                        top_p: config.rollout.top_p,
                        seed: config.seed ^ again,
                        step: u64::from(step),
                    },
                };
                let played =
                    arena.round(&decoder, &mut journal, &round, &|over| done.store(over, Ordering::Relaxed))?;
                Ok((played, journal))
            })?;
        }
        Ok(())
    }

    /// Greedy evaluation on the held-out questions.
    fn probe(
        &self,
        decoder: &Decoder,
        journal: &mut StepNotes,
        step: u32,
        position: &mut Position,
    ) -> Result<(), Failure> {
        if self.config().probe.is_none() || self.chosen.probe.is_empty() {
            return Ok(());
        }
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: self.config().seed, step: u64::from(step) };
        let name = format!("step {step}/{}: held-out", self.config().steps);
        let round = Round { prefix: "probe/", questions: &self.chosen.probe, samples: 1, sampling };
        let progress = &self.arena.run.progress;
        progress.phase(name, round.len());
        let played: Played = self.arena.round(decoder, journal, &round, &|over| progress.done(over))?;
        let figures = figures::round_figures(&played);
        position.extend(&results_digest(&played)?);
        let known = ["gain", "accuracy", "baselineAccuracy", "searches", "selected"];
        let kept: BTreeMap<&str, f64> = known.iter().filter_map(|name| Some((*name, *figures.get(*name)?))).collect();
        let key = if position.summary["probeFirst"].is_null() { "probeFirst" } else { "probeLast" };
        position.summary[key] = json!(kept);
        position.watch.probed(figures["gain"]);
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
