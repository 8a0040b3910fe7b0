//! What is settled before the first step: settings that can be kept, memory that suffices, a folder that is this run's.

use crate::identity::Identity;
use s3_artifacts::write_atomic;
use s3_config::{Determinism, TrainerConfig};
use s3_model::{Decoder, Team, Workload};
use s3_rollout::RolloutError;
use s3_search::Searching;
use s3_telemetry::Failure;
use serde_json::Value;
use std::path::Path;

/// The fixed policy of the KL term, where there is one.
pub(crate) fn reference(config: &TrainerConfig, decoder: &Decoder) -> Option<Decoder> {
    // of all weights it needs no f32 copies; an adapter's shares what is frozen
    let fixed = || if config.full { decoder.without_adapter() } else { decoder.clone() };
    (config.algorithm.kl_coefficient > 0.0).then(fixed)
}

/// Shows how much memory training takes when every episode fills its context, and refuses what cannot fit before
/// anything is spent on it. On a CPU, where memory is taken only as it is used, that is a warning.
pub(super) fn plan_memory(config: &TrainerConfig, decoder: &Decoder, team: &Team) -> Result<(), Failure> {
    let tokens = decoder.config().max_positions.min(config.search.context_tokens as usize);
    let work = Workload {
        // keys and values of episodes are the engine's, where there is one
        rows: if config.rollout.engine.is_some() { 0 } else { config.rollout.batch.max(1) },
        sequences: config.rollout.micro_batch.max(1),
        tokens,
        positions: tokens,
    };
    // beside the trained policy: the fixed one of the KL term, and those that rounds ahead are played with
    let fixed = u64::from(config.algorithm.kl_coefficient > 0.0);
    let plan = decoder.memory_plan(work);
    let mut plan = plan.beside(fixed, u64::from(config.rollout.staleness), decoder.trainable());
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
            plan.check_certain(decoder.device()).map_err(|reason| Failure::input(reason.to_string()))?;
            tracing::warn!(%reason, "if episodes fill their contexts");
            Ok(())
        }
        Err(reason) => Err(Failure::input(reason.to_string())),
    }
}

/// Refuses to promise bits that several ranks cannot keep.
pub(super) fn check_bits(config: &TrainerConfig, decoder: &Decoder, ranks: usize) -> Result<(), Failure> {
    if ranks > 1 && config.determinism == Determinism::Bitwise && !decoder.rows_stand_alone() {
        return Err(Failure::input(
            "determinism Bitwise does not hold for several replicas on this device: what a row becomes depends on those \
             beside it, and the device orders sums; set determinism to Relaxed, or use one replica with one GPU",
        ));
    }
    Ok(())
}

/// Refuses settings under which nothing could be learned.
pub(super) fn check(config: &TrainerConfig, ranks: usize) -> Result<(), Failure> {
    if ranks > 1 && config.rollout.staleness > 0 {
        return Err(Failure::input(
            "rollout.staleness plays rounds ahead, which several replicas do not; set it to 0, or use one replica with \
             one GPU",
        ));
    }
    if config.rollout.temperature <= 0.0 {
        return Err(Failure::input("rollout.temperature must be above 0 for training; greedy episodes teach nothing"));
    }
    if config.rollout.engine.is_some() {
        check_engine(config)?;
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
    if let Some(buffer) = &config.data.difficulty_buffer {
        if config.rollout.samples < 2 {
            return Err(Failure::input(
                "data.difficultyBuffer compares the samples of a question; set rollout.samples to 2 or more",
            ));
        }
        if buffer.capacity == 0 || !(0.0..=1.0).contains(&buffer.share) {
            return Err(Failure::input("data.difficultyBuffer wants a capacity of at least 1 and a share of 0 to 1"));
        }
    }
    if algorithm.dual_clip.abs() > 0.0 && algorithm.dual_clip <= 1.0 {
        return Err(Failure::input("algorithm.dualClip must be above 1, or 0 for no bound"));
    }
    Searching::check(&config.search).map_err(Failure::input)
}

/// Refuses what servers that write the episodes cannot keep.
fn check_engine(config: &TrainerConfig) -> Result<(), Failure> {
    let reason = if config.determinism == Determinism::Bitwise {
        "its arithmetic is another one, and determinism Bitwise cannot hold; set determinism to Relaxed"
    } else if config.full {
        "it is handed adapters; train one (LoRA)"
    } else if (config.rollout.temperature - 1.0).abs() > 0.0 {
        "it reports log-probabilities at temperature 1; set rollout.temperature to 1"
    } else {
        return Ok(());
    };
    Err(Failure::input(format!("rollout.engine: {reason}, or leave rollout.engine out")))
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
