//! One policy update from a round of scored episodes.
//!
//! Micro-batches are cut in question order and their gradients added in that order, so the sum does not depend
//! on who computed what.

use super::episodes::Played;
use crate::learn::{EpisodeReturn, TokenBatch, advantages, mismatch_kl, policy_loss, token_weights, value_loss};
use s3_config::{AlgorithmConfig, Estimator, TrainerConfig};
use s3_model::{AdamW, Decoder, Gradients, ModelError, PolicyGrads, PolicyOutputs, TrainSequence};
use s3_rollout::{RolloutError, question_key};
use s3_telemetry::Shutdown;
use std::collections::BTreeMap;

/// What an update needs besides the episodes.
pub struct Updater<'a> {
    /// Algorithm, optimiser and batch sizes.
    pub config: &'a TrainerConfig,
    /// The fixed policy of the KL term; none when the term is off.
    pub reference: Option<&'a Decoder>,
    /// Looked at between micro-batches.
    pub shutdown: &'a Shutdown,
}

/// One episode ready to be learned from; all arrays are over its action tokens.
struct Sample {
    sequence: TrainSequence,
    question: usize,
    reward: f64,
    old: Vec<f32>,
    advantage: Vec<f32>,
    values: Option<Vec<f32>>,
    returns: Option<Vec<f32>>,
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    entropy: f64,
    loss: f64,
    value_loss: f64,
    kl: f64,
    clipped: usize,
    steps: usize,
    grad_norm: f64,
    /// Log-probabilities at sampling and in training, before any update of this round.
    fresh: (Vec<f32>, Vec<f32>),
}

impl Updater<'_> {
    /// Learns from a round; returns its figures. A round without any signal (every advantage 0, and neither KL
    /// nor entropy term) leaves policy and optimiser as they are.
    pub fn update(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        played: &Played,
    ) -> Result<BTreeMap<String, f64>, RolloutError> {
        let algorithm = &self.config.algorithm;
        let mut samples = samples(played);
        if algorithm.estimator == Estimator::Ppo {
            self.value(decoder, &mut samples)?;
        }
        let returns: Vec<EpisodeReturn> = samples
            .iter()
            .map(|sample| EpisodeReturn {
                question: sample.question,
                reward: sample.reward,
                tokens: sample.old.len(),
                values: sample.values.clone(),
            })
            .collect();
        let result = advantages(algorithm, &returns);
        let mut targets = result.returns.unwrap_or_default().into_iter();
        for (sample, advantage) in samples.iter_mut().zip(result.advantage) {
            sample.advantage = advantage;
            sample.returns = targets.next();
        }
        let signal = samples.iter().filter(|sample| informative(sample)).count();
        let mut sums = Sums::default();
        let batch = match self.config.rollout.mini_batch {
            0 => samples.len(),
            size => size,
        };
        for epoch in 0..algorithm.epochs.max(1) {
            for mini in samples.chunks(batch.max(1)) {
                let fresh = epoch == 0 && sums.steps == 0;
                self.optimise(decoder, optimizer, mini, fresh, &mut sums)?;
            }
        }
        if sums.tokens == 0 {
            self.observe(decoder, &samples, &mut sums)?;
        }
        let tokens = sums.tokens.max(1) as f64;
        Ok(BTreeMap::from([
            ("gradNorm".to_owned(), sums.grad_norm / sums.steps.max(1) as f64),
            ("loss".to_owned(), sums.loss / sums.steps.max(1) as f64),
            ("valueLoss".to_owned(), sums.value_loss / sums.steps.max(1) as f64),
            ("referenceKl".to_owned(), sums.kl / sums.steps.max(1) as f64),
            ("entropy".to_owned(), sums.entropy / tokens),
            ("clipFraction".to_owned(), sums.clipped as f64 / tokens),
            ("mismatchKl".to_owned(), mismatch_kl(&sums.fresh.0, &sums.fresh.1)),
            ("mismatchMax".to_owned(), largest_difference(&sums.fresh.0, &sums.fresh.1)),
            ("optimizerSteps".to_owned(), sums.steps as f64),
            ("informative".to_owned(), signal as f64 / samples.len().max(1) as f64),
        ]))
    }

    /// The critic's values before the update.
    fn value(&self, decoder: &Decoder, samples: &mut [Sample]) -> Result<(), RolloutError> {
        for micro in samples.chunks_mut(self.config.rollout.micro_batch.max(1)) {
            self.stop()?;
            let sequences: Vec<TrainSequence> = micro.iter().map(|sample| sample.sequence.clone()).collect();
            let outputs = decoder.score(&sequences, self.temperature())?;
            let mut values = outputs.value.unwrap_or_default().into_iter();
            for sample in micro {
                sample.values = Some(values.by_ref().take(sample.old.len()).collect());
            }
        }
        Ok(())
    }

    /// Entropy and mismatch of the first micro-batch, for a round from which nothing was learned: a policy that
    /// stands still is watched all the same.
    fn observe(&self, decoder: &Decoder, samples: &[Sample], sums: &mut Sums) -> Result<(), RolloutError> {
        let micro = &samples[..samples.len().min(self.config.rollout.micro_batch.max(1))];
        if micro.is_empty() {
            return Ok(());
        }
        let sequences: Vec<TrainSequence> = micro.iter().map(|sample| sample.sequence.clone()).collect();
        let outputs = decoder.score(&sequences, self.temperature())?;
        sums.tokens = outputs.entropy.len();
        sums.entropy = outputs.entropy.iter().map(|x| f64::from(*x)).sum();
        sums.fresh = (micro.iter().flat_map(|sample| sample.old.iter().copied()).collect(), outputs.logprob);
        Ok(())
    }

    fn temperature(&self) -> f32 {
        self.config.rollout.temperature as f32
    }

    fn stop(&self) -> Result<(), RolloutError> {
        if self.shutdown.requested() { Err(RolloutError::Interrupted) } else { Ok(()) }
    }

    /// One optimiser step over a mini-batch.
    fn optimise(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        mini: &[Sample],
        fresh: bool,
        sums: &mut Sums,
    ) -> Result<(), RolloutError> {
        let algorithm = &self.config.algorithm;
        let lengths: Vec<usize> = mini.iter().map(|sample| sample.old.len()).collect();
        let weights = token_weights(algorithm.aggregation, &lengths);
        // Without a term that moves every token, an episode whose advantages are all 0 has a gradient of
        // exactly 0: it counts in the weights, but need not be computed.
        let everything = algorithm.estimator == Estimator::Ppo
            || algorithm.kl_coefficient > 0.0
            || algorithm.entropy_coefficient.abs() > 0.0;
        let learned: Vec<(&Sample, &Vec<f64>)> =
            mini.iter().zip(&weights).filter(|(sample, _)| everything || informative(sample)).collect();
        let mut gradients = Gradients::default();
        for micro in learned.chunks(self.config.rollout.micro_batch.max(1)) {
            self.stop()?;
            gradients.add(&self.micro(decoder, micro, fresh, sums)?)?;
        }
        if gradients.is_empty() {
            return Ok(());
        }
        let norm = gradients.clip(self.config.optimizer.max_grad_norm)?;
        // Before the step: a policy that has become NaN would be published as a checkpoint.
        if !norm.is_finite() {
            return Err(RolloutError::NotANumber { what: "the gradient's norm" });
        }
        sums.grad_norm += norm;
        sums.steps += 1;
        let rate = learning_rate(self.config, optimizer.steps());
        optimizer.step(decoder, &gradients, rate)?;
        Ok(())
    }

    fn micro(
        &self,
        decoder: &Decoder,
        micro: &[(&Sample, &Vec<f64>)],
        fresh: bool,
        sums: &mut Sums,
    ) -> Result<Gradients, RolloutError> {
        let algorithm = &self.config.algorithm;
        let sequences: Vec<TrainSequence> = micro.iter().map(|(sample, _)| sample.sequence.clone()).collect();
        let flat = |of: &dyn Fn(&Sample) -> &[f32]| -> Vec<f32> {
            micro.iter().flat_map(|(sample, _)| of(sample).iter().copied()).collect()
        };
        let old = flat(&|sample| &sample.old);
        let advantage = flat(&|sample| &sample.advantage);
        let values = flat(&|sample| sample.values.as_deref().unwrap_or_default());
        let returns = flat(&|sample| sample.returns.as_deref().unwrap_or_default());
        let weight: Vec<f64> = micro.iter().flat_map(|(_, weight)| weight.iter().copied()).collect();
        let reference = match self.reference {
            Some(reference) => Some(reference.score(&sequences, self.temperature())?.logprob),
            None => None,
        };
        let mut objective = |outputs: &PolicyOutputs| -> Result<PolicyGrads, ModelError> {
            let tokens = TokenBatch {
                new: &outputs.logprob,
                old: &old,
                reference: reference.as_deref(),
                entropy: &outputs.entropy,
                advantage: &advantage,
                weight: &weight,
            };
            let policy = policy_loss(algorithm, tokens);
            sums.tokens += old.len();
            sums.entropy += outputs.entropy.iter().map(|x| f64::from(*x)).sum::<f64>();
            sums.loss += policy.loss;
            sums.kl += policy.kl;
            sums.clipped += policy.clipped;
            if fresh {
                sums.fresh.0.extend_from_slice(&old);
                sums.fresh.1.extend_from_slice(&outputs.logprob);
            }
            let value = outputs.value.as_ref().filter(|_| algorithm.estimator == Estimator::Ppo).map(|value| {
                let loss = value_loss(algorithm, value, &values, &returns, &weight);
                sums.value_loss += loss.loss;
                loss.d_value
            });
            Ok(PolicyGrads { logprob: policy.d_logprob, entropy: policy.d_entropy, value })
        };
        Ok(decoder.train_pass(&sequences, self.temperature(), &mut objective)?)
    }
}

/// Linear warm-up to the configured rate; `done` optimiser steps are behind.
pub fn learning_rate(config: &TrainerConfig, done: u64) -> f64 {
    let warmup = u64::from(config.optimizer.warmup_steps);
    let share = if warmup == 0 { 1.0 } else { ((done + 1) as f64 / warmup as f64).min(1.0) };
    config.optimizer.learning_rate * share
}

/// Whether the estimator needs a value head.
pub fn needs_critic(config: &AlgorithmConfig) -> bool {
    config.estimator == Estimator::Ppo
}

fn informative(sample: &Sample) -> bool {
    sample.advantage.iter().any(|advantage| advantage.abs() > 0.0)
}

fn largest_difference(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max)
}

/// The episodes that have a reward and wrote something.
fn samples(played: &Played) -> Vec<Sample> {
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut samples = Vec::with_capacity(played.episodes.len());
    for (episode, outcome) in played.episodes.iter().zip(&played.outcomes) {
        let next = numbers.len();
        let question = *numbers.entry(question_key(&episode.question)).or_insert(next);
        let Some(reward) = outcome.reward else { continue };
        let positions = episode.action_positions();
        if positions.is_empty() || positions.len() != episode.logprobs.len() {
            continue;
        }
        samples.push(Sample {
            sequence: TrainSequence { tokens: episode.tokens.clone(), positions },
            question,
            reward,
            old: episode.logprobs.clone(),
            advantage: Vec::new(),
            values: None,
            returns: None,
        });
    }
    samples
}
