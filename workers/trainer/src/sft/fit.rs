//! Supervised fitting: token-mean cross entropy on the action tokens of traces.

use super::Trace;
use crate::checkpoint::{Checkpoints, Position};
use crate::identity::Identity;
use crate::run::Run;
use crate::train::Policies;
use s3_artifacts::{Journal, digest_bytes};
use s3_config::SftConfig;
use s3_model::{AdamW, Decoder, Gradients, ModelError, PolicyGrads, PolicyOutputs, TrainSequence};
use s3_rollout::RolloutError;
use s3_telemetry::Failure;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// Fits the decoder's trained tensors to the traces; resumes from the newest checkpoint.
pub fn fit(
    run: &Run,
    identity: &Identity,
    decoder: &mut Decoder,
    traces: &[Trace],
) -> Result<(AdamW, Position), Failure> {
    let config = &run.config;
    let checkpoints = Checkpoints::open(config, identity)?;
    let mut optimizer = AdamW::new(&config.optimizer);
    // nothing is played here
    let mut policies = Policies::new(0);
    let mut position = checkpoints.restore(decoder, &mut optimizer, &mut policies)?.unwrap_or_default();
    let steps = steps(&config.sft, traces.len());
    let curve = config.runtime.state_dir.join("sft").join("curve.journal");
    let mut curve: Journal<BTreeMap<String, f64>> = Journal::open(&curve).map_err(RolloutError::from)?;
    run.progress.phase("fit", u64::from(steps));
    run.progress.done(u64::from(position.step));
    while position.step < steps {
        checkpoints.check()?;
        if run.link.shutdown.requested() {
            checkpoints.save(decoder, &optimizer, &position, &policies)?;
            return Err(Failure::interrupted());
        }
        let started = std::time::Instant::now();
        let batch: Vec<&Trace> =
            places(&config.sft, config.seed, traces.len(), position.step).into_iter().map(|at| &traces[at]).collect();
        let (loss, mut gradients) = batch_gradients(decoder, &batch, config.sft.micro_batch)?;
        let norm = gradients.clip(config.optimizer.max_grad_norm).map_err(RolloutError::from)?;
        if !norm.is_finite() {
            return Err(RolloutError::NotANumber { what: "the gradient's norm" }.into());
        }
        let rate = config.optimizer.learning_rate * rate(config.optimizer.warmup_steps, position.step, steps);
        optimizer.step(decoder, &gradients, rate).map_err(RolloutError::from)?;
        position.step += 1;
        position.extend(&digest_bytes(&loss.to_le_bytes()));
        if position.summary.is_null() {
            position.summary = json!({"firstLoss": loss});
        }
        position.summary["lastLoss"] = json!(loss);
        let key = format!("{:06}", position.step);
        if curve.get(&key).is_none() {
            let seconds = started.elapsed().as_secs_f64();
            let figures = [("loss", loss), ("gradNorm", norm), ("learningRate", rate), ("secondsUpdate", seconds)];
            let figures = figures.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            curve.append(&key, figures).map_err(RolloutError::from)?;
        }
        run.progress.figure("loss", loss);
        run.progress.done(u64::from(position.step));
        tracing::debug!(step = position.step, loss, norm, "fit");
        if Checkpoints::due(&config.checkpoint, position.step, steps) {
            checkpoints.save(decoder, &optimizer, &position, &policies)?;
        }
    }
    Ok((optimizer, position))
}

/// Optimiser steps in all.
fn steps(config: &SftConfig, traces: usize) -> u32 {
    config.epochs * traces.div_ceil(config.batch.max(1)) as u32
}

/// Linear warm-up, then linear decay to nothing.
fn rate(warmup: u32, step: u32, steps: u32) -> f64 {
    if step < warmup {
        return f64::from(step + 1) / f64::from(warmup);
    }
    f64::from(steps - step) / f64::from((steps - warmup.min(steps)).max(1))
}

/// The traces of a step: every epoch in an order of its own.
fn places(config: &SftConfig, seed: u64, traces: usize, step: u32) -> Vec<usize> {
    let batch = config.batch.max(1);
    let per_epoch = traces.div_ceil(batch).max(1);
    let (epoch, at) = (step as usize / per_epoch, step as usize % per_epoch);
    let mut order: Vec<usize> = (0..traces).collect();
    order.sort_by_cached_key(|trace| {
        let mut hash = Sha256::new();
        for part in [seed, epoch as u64, *trace as u64] {
            hash.update(part.to_le_bytes());
        }
        <[u8; 32]>::from(hash.finalize())
    });
    order.into_iter().skip(at * batch).take(batch).collect()
}

fn batch_gradients(decoder: &Decoder, batch: &[&Trace], micro: usize) -> Result<(f64, Gradients), RolloutError> {
    let tokens = batch.iter().map(|trace| trace.positions.len()).sum::<usize>().max(1) as f64;
    let mut loss = 0.0;
    let mut gradients = Gradients::default();
    for part in batch.chunks(micro.max(1)) {
        let sequences: Vec<TrainSequence> = part
            .iter()
            .map(|trace| TrainSequence { tokens: trace.tokens.clone(), positions: trace.positions.clone() })
            .collect();
        let mut objective = |outputs: &PolicyOutputs| -> Result<PolicyGrads, ModelError> {
            loss -= outputs.logprob.iter().map(|x| f64::from(*x)).sum::<f64>() / tokens;
            let count = outputs.logprob.len();
            Ok(PolicyGrads { logprob: vec![(-1.0 / tokens) as f32; count], entropy: vec![0.0; count], value: None })
        };
        gradients.add(&decoder.train_pass(&sequences, 1.0, &mut objective)?)?;
    }
    Ok((loss, gradients))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_takes_every_trace_once() {
        let config = SftConfig { epochs: 2, batch: 4, ..SftConfig::default() };
        assert_eq!(steps(&config, 10), 6);
        let epoch = |first: u32| {
            let mut all: Vec<usize> = (first..first + 3).flat_map(|step| places(&config, 1, 10, step)).collect();
            let order = all.clone();
            all.sort_unstable();
            assert_eq!(all, (0..10).collect::<Vec<_>>());
            order
        };
        assert_ne!(epoch(0), epoch(3));
    }

    #[test]
    fn the_rate_rises_and_falls() {
        let rates: Vec<f64> = (0..6).map(|step| rate(2, step, 6)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        assert!((rate(0, 0, 1) - 1.0).abs() < 1e-12);
    }
}
