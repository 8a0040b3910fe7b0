//! Starting a command: threads, runtime, signals, and the thread that computes.

use crate::replay::EpisodeName;
use crate::team::{Place, places};
use crate::{baseline, export, replay, sft, train};
use s3_collective::Collective;
use s3_config::{AdapterSpec, TrainerConfig, load};
use s3_model::{Decoder, TokenizerFile, device, gpu};
use s3_proto::Attempt;
use s3_rollout::{GeneratorPeer, Link, ModelCodec, RetrieverPeer, RolloutError};
use s3_telemetry::{ExitClass, Failure, Outcome, Progress, Shutdown, fix_threads, serve_admin, write_outcome};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::JoinHandle;

/// What the trainer was asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Naive-RAG answers.
    Baseline,
    /// Supervised warm start.
    Sft,
    /// Reinforcement learning.
    Train,
    /// Export.
    Export,
    /// One episode again.
    Replay(EpisodeName),
}

/// Everything that a command works with.
pub struct Run {
    /// The configuration, with the prompt template's text filled in.
    pub config: TrainerConfig,
    /// The way to other workers, and the request to stop.
    pub link: Link,
    /// Shown to people and to whoever started this.
    pub progress: Progress,
    /// The ranks that do this together.
    pub collective: Arc<dyn Collective>,
    /// Which of the process's GPUs this rank has.
    pub gpu: usize,
}

/// Deep recursion is not expected, but a decoder's buffers on the stack and debug builds need room.
const STACK: usize = 256 << 20;

/// Runs one command to its end.
pub fn start(command: &Command, config: &Path) -> Result<(), Failure> {
    let mut config: TrainerConfig = load(config).map_err(Failure::input)?;
    if matches!(command, Command::Replay(_)) {
        // it looks at a run and is no part of it
        let runtime = &mut config.runtime;
        (runtime.admin, runtime.progress, runtime.result, runtime.attempt) = (None, None, None, None);
        runtime.team = None;
    }
    fix_threads(config.runtime.threads)?;
    if let Some(path) = &config.search.prompt_template {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|e| Failure::input(format!("search.promptTemplate {}: {e}", path.display())))?;
        config.search.prompt_text = Some(text);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    let shutdown = {
        let _inside = runtime.enter();
        Shutdown::listen().map_err(Failure::internal)?
    };
    if let Some(address) = config.runtime.admin {
        let ready = Arc::new(AtomicBool::new(true));
        runtime.block_on(serve_admin(address, ready)).map_err(Failure::input)?;
    }
    let progress = Progress::new(config.runtime.progress.clone());
    let attempt = Attempt::begin(&config.runtime, &progress, &shutdown)?;
    let link = Link { handle: runtime.handle().clone(), shutdown };
    // only training is shared
    let team = config.runtime.team.take_if(|_| *command != Command::Train);
    if team.is_some() {
        tracing::info!("this command is done by one replica alone");
    }
    let mut ranks = Vec::new();
    // arithmetic never runs on the runtime's threads, so calls and signals are always served
    for (gpu, place) in places(&config.runtime, &link.shutdown)?.into_iter().enumerate() {
        let progress = if gpu == 0 { progress.clone() } else { Progress::new(None) };
        let seat = Seat { config: config.clone(), link: link.clone(), progress, gpu };
        let command = command.clone();
        let name = if gpu == 0 { "compute".to_owned() } else { format!("compute-{gpu}") };
        let compute = move || seat.work(&command, place);
        let rank = std::thread::Builder::new().name(name).stack_size(STACK).spawn(compute);
        ranks.push(rank.map_err(Failure::internal)?);
    }
    let outcome = joined(ranks).and_then(|outcome| {
        attempt.check()?;
        if let Some(path) = &config.runtime.result {
            write_outcome(path, &outcome).map_err(|e| Failure::io(format!("{}: {e}", path.display())))?;
        }
        tracing::info!(digest = %outcome.digest, summary = %outcome.summary, "done");
        Ok(outcome)
    });
    // the last report is sent while the runtime lives
    drop(attempt);
    runtime.shutdown_background();
    println!("digest {}", outcome?.digest);
    Ok(())
}

/// What one rank of this process starts with.
struct Seat {
    config: TrainerConfig,
    link: Link,
    progress: Progress,
    gpu: usize,
}

impl Seat {
    /// Meets the other ranks, works, and says goodbye to them.
    fn work(self, command: &Command, place: Place) -> Result<Outcome, Failure> {
        let Self { config, link, progress, gpu } = self;
        if config.runtime.team.is_some() {
            progress.phase("meet the other replicas", 0);
        }
        let collective = place.take().map_err(RolloutError::from)?;
        let run = Run { config, link, progress, collective, gpu };
        let result = match command {
            Command::Baseline => baseline::command(&run),
            Command::Sft => sft::command(&run),
            Command::Train => train::command(&run),
            Command::Export => export::command(&run),
            Command::Replay(episode) => replay::command(&run, episode),
        };
        match &result {
            Ok(_) => run.collective.leave(0, "it is done"),
            Err(failure) => run.collective.leave(failure.class.code(), &failure.message),
        }
        result
    }
}

/// The first rank's outcome, or the failure that the others' followed from.
fn joined(ranks: Vec<JoinHandle<Result<Outcome, Failure>>>) -> Result<Outcome, Failure> {
    let panicked = |_| Err(Failure::internal("the compute thread panicked; the message above says where"));
    let mut results: Vec<_> = ranks.into_iter().map(|rank| rank.join().unwrap_or_else(panicked)).collect();
    let followed = |failure: &Failure| failure.class == ExitClass::PeerLost || failure.message.starts_with("replica ");
    let cause = results.iter().position(|result| result.as_ref().is_err_and(|failure| !followed(failure)));
    let cause = cause.or_else(|| results.iter().position(Result::is_err)).unwrap_or_default();
    results.swap_remove(cause)
}

impl Run {
    /// Connects to the retriever.
    pub fn retriever(&self) -> Result<RetrieverPeer, RolloutError> {
        RetrieverPeer::connect(&self.link, &self.config.retriever)
    }

    /// Connects to the gateway.
    pub fn generator(&self) -> Result<GeneratorPeer, RolloutError> {
        GeneratorPeer::connect(&self.link, &self.config.generator, &self.config.runtime.name)
    }

    /// Loads the searcher with what is trained of it: its adapter, a fresh one, or all weights.
    pub fn searcher(&self) -> Result<(Decoder, ModelCodec), Failure> {
        self.progress.phase("load the searcher", 0);
        let spec = &self.config.searcher;
        let device = device(spec.device).map_err(RolloutError::from)?;
        let device = if device.is_cuda() && self.gpu > 0 { gpu(self.gpu).map_err(RolloutError::from)? } else { device };
        let (mut decoder, tokenizer): (Decoder, TokenizerFile) =
            Decoder::load_on(spec, &device).map_err(RolloutError::from)?;
        if self.config.full {
            decoder.train_all().map_err(RolloutError::from)?;
        } else if self.config.searcher.adapter.as_ref().is_none_or(AdapterSpec::is_whole) {
            decoder.attach_lora(&self.config.lora, self.config.seed).map_err(RolloutError::from)?;
        }
        Ok((decoder, ModelCodec::new(tokenizer)))
    }

    /// An error once the worker was asked to stop.
    pub fn check(&self) -> Result<(), RolloutError> {
        self.link.check()
    }
}
