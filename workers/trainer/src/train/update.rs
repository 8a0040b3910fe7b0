//! One policy update from a round of scored episodes.
//!
//! Micro-batches are cut in question order and their gradients added in that order, so the sum does not depend
//! on who computed what.

use super::episodes::Played;
use crate::learn::{
    EpisodeReturn, TokenBatch, advantages, importance, kl_penalties, micro_weights, mismatch_kl, policy_loss,
    token_weights, value_loss, zero_variance,
};
use crate::team::{gather, gather_rows};
use s3_collective::share;
use s3_config::{
    AlgorithmConfig, Compatibility, Determinism, Estimator, ImportanceCorrection, KlPlacement, TrainerConfig,
};
use s3_model::{AdamW, Decoder, Gradients, ModelError, PolicyGrads, PolicyOutputs, Team, TrainSequence};
use s3_rollout::record::EpisodeRecord;
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
    /// The ranks among which the micro-batches are shared out.
    pub team: &'a Team,
}

/// What an update makes of one episode, with the policy before its first optimiser step.
pub struct Again {
    /// Of the policy that played it, as training computes them, per action token.
    pub logprobs: Vec<f32>,
    /// Per action token; empty when the episode is masked or was filtered out.
    pub advantage: Vec<f32>,
    /// The episode's part of its optimiser batch's loss; none without an advantage.
    pub loss: Option<f64>,
}

/// One episode ready to be learned from. "Chosen" are the tokens that the sequence's positions choose: the action
/// tokens, or all tokens of the response where the reference's critic is reproduced.
struct Sample {
    /// Its place in the round.
    episode: usize,
    sequence: TrainSequence,
    /// Which of the chosen tokens are action tokens; the others never enter the policy's loss.
    action: Vec<bool>,
    /// Whether the last chosen token stands for what follows the response.
    after: bool,
    question: usize,
    reward: f64,
    /// Per action token, at sampling.
    rollout: Vec<f32>,
    /// Per action token, before the update: at sampling, or the trainer's own under importance correction.
    old: Vec<f32>,
    /// Per action token.
    importance: Option<Vec<f32>>,
    /// Whether importance correction left it in the batch.
    keep: bool,
    /// Per action token.
    advantage: Vec<f32>,
    /// Per chosen token.
    penalties: Option<Vec<f64>>,
    /// Per chosen token.
    values: Option<Vec<f32>>,
    /// Per chosen token.
    returns: Option<Vec<f32>>,
}

impl Sample {
    /// The values of action tokens among those of chosen tokens.
    fn of_actions<T: Copy>(&self, chosen: &[T]) -> Vec<T> {
        chosen.iter().zip(&self.action).filter(|(_, action)| **action).map(|(value, _)| *value).collect()
    }

    /// The reverse: 0 where a chosen token is no action token.
    fn to_chosen<T: Copy + Default>(&self, actions: &[T]) -> Vec<T> {
        let mut values = actions.iter();
        self.action
            .iter()
            .map(|action| if *action { values.next().copied() } else { None }.unwrap_or_default())
            .collect()
    }
}

/// A sample with its tokens' shares of the optimiser batch: in the policy's loss (per action token) and in the
/// critic's (per chosen token).
struct Weighted<'a> {
    sample: &'a Sample,
    policy: Vec<f64>,
    critic: Vec<f64>,
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

impl Sums {
    /// Adds what the next micro-batch came to.
    fn add(&mut self, next: Self) {
        self.tokens += next.tokens;
        self.entropy += next.entropy;
        self.loss += next.loss;
        self.value_loss += next.value_loss;
        self.kl += next.kl;
        self.clipped += next.clipped;
        self.fresh.0.extend(next.fresh.0);
        self.fresh.1.extend(next.fresh.1);
    }

    /// As numbers that keep every bit, whatever they are.
    fn bits(&self) -> SumsBits {
        let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect();
        let sums = [self.entropy, self.loss, self.value_loss, self.kl].map(f64::to_bits);
        (self.tokens, self.clipped, sums, bits(&self.fresh.0), bits(&self.fresh.1))
    }

    fn of_bits((tokens, clipped, sums, rollout, own): SumsBits) -> Self {
        let values = |bits: Vec<u32>| bits.into_iter().map(f32::from_bits).collect();
        let [entropy, loss, value_loss, kl] = sums.map(f64::from_bits);
        let fresh = (values(rollout), values(own));
        Self { tokens, entropy, loss, value_loss, kl, clipped, fresh, ..Self::default() }
    }
}

/// [`Sums`] of one micro-batch, between ranks.
type SumsBits = (usize, usize, [u64; 4], Vec<u32>, Vec<u32>);

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
        let (samples, filtered) = self.prepared(decoder, played)?;
        let all = samples.len() + filtered;
        let signal = samples.iter().filter(|sample| informative(sample)).count();
        let rejected = samples.iter().filter(|sample| !sample.keep).count();
        let weights: Vec<f64> =
            samples.iter().filter_map(|s| s.importance.as_ref()).flatten().map(|w| f64::from(*w)).collect();
        let importance = if weights.is_empty() { 1.0 } else { weights.iter().sum::<f64>() / weights.len() as f64 };
        let mut sums = Sums::default();
        for epoch in 0..algorithm.epochs.max(1) {
            for mini in samples.chunks(self.mini_batch(samples.len())) {
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
            ("informative".to_owned(), signal as f64 / all.max(1) as f64),
            ("filtered".to_owned(), filtered as f64),
            ("rejected".to_owned(), rejected as f64),
            ("importance".to_owned(), importance),
        ]))
    }

    /// What [`Self::update`] would make of one episode at its beginning; learns nothing. `player` is the policy that
    /// played it.
    pub fn again(
        &self,
        decoder: &Decoder,
        player: &Decoder,
        played: &Played,
        episode: usize,
    ) -> Result<Again, RolloutError> {
        let record = &played.episodes[episode];
        let sequence = TrainSequence { tokens: record.tokens.clone(), positions: record.action_positions() };
        let logprobs = player.score(&[sequence], self.temperature())?.logprob;
        let (samples, _) = self.prepared(decoder, played)?;
        let Some(at) = samples.iter().position(|sample| sample.episode == episode) else {
            return Ok(Again { logprobs, advantage: Vec::new(), loss: None });
        };
        let size = self.mini_batch(samples.len());
        let mini = samples.chunks(size).nth(at / size).unwrap_or_default();
        let weighted = self.weighted(mini);
        let one: Vec<Weighted<'_>> = weighted.into_iter().filter(|of| of.sample.episode == episode).collect();
        let mut sums = Sums::default();
        if !one.is_empty() {
            self.micro(decoder, &one, false, &mut sums)?;
        }
        Ok(Again { logprobs, advantage: samples[at].advantage.clone(), loss: Some(sums.loss) })
    }

    /// Episodes per optimiser step.
    fn mini_batch(&self, samples: usize) -> usize {
        match self.config.rollout.mini_batch {
            0 => samples,
            size => size,
        }
        .max(1)
    }

    /// The round's samples with their advantages, and how many were filtered out.
    fn prepared(&self, decoder: &Decoder, played: &Played) -> Result<(Vec<Sample>, usize), RolloutError> {
        let algorithm = &self.config.algorithm;
        let whole = self.whole_response().then(|| decoder.config().max_positions);
        let mut samples = samples(played, whole);
        let all = samples.len();
        if algorithm.filter_zero_variance {
            let questions: Vec<usize> = samples.iter().map(|sample| sample.question).collect();
            let rewards: Vec<f64> = samples.iter().map(|sample| sample.reward).collect();
            let mut flat = zero_variance(&questions, &rewards).into_iter();
            samples.retain(|_| !flat.next().unwrap_or_default());
        }
        let filtered = all - samples.len();
        self.score(decoder, &mut samples)?;
        let returns: Vec<EpisodeReturn> = samples
            .iter()
            .map(|sample| EpisodeReturn {
                question: sample.question,
                reward: sample.reward,
                tokens: sample.action.len(),
                penalties: sample.penalties.clone(),
                values: sample.values.clone(),
                after: sample.after,
            })
            .collect();
        let result = advantages(algorithm, &returns);
        let mut targets = result.returns.unwrap_or_default().into_iter();
        for (sample, advantage) in samples.iter_mut().zip(result.advantage) {
            sample.advantage = sample.of_actions(&advantage);
            sample.returns = targets.next();
        }
        Ok((samples, filtered))
    }

    /// Whether the critic sees all tokens of the response, as the references' does (its advantages are whitened
    /// over them, too). Search-R1 and s3 share their trainer.
    fn whole_response(&self) -> bool {
        self.config.algorithm.estimator == Estimator::Ppo && self.config.search.compatibility != Compatibility::None
    }

    /// Whether every backward pass takes a mean of its own, as the references' trainer does.
    fn means_apart(&self) -> bool {
        self.whole_response() || self.config.search.compatibility == Compatibility::SearchR1
    }

    /// What the models say of the episodes before the update: the critic's values, the trainer's own
    /// log-probabilities, and those of the reference policy; each only where it is asked for.
    fn score(&self, decoder: &Decoder, samples: &mut [Sample]) -> Result<(), RolloutError> {
        let algorithm = &self.config.algorithm;
        let corrected = algorithm.importance.correction != ImportanceCorrection::None;
        let critic = needs_critic(algorithm);
        let penalised = self.reference.filter(|_| algorithm.kl_placement == KlPlacement::Reward);
        if !corrected && !critic && penalised.is_none() {
            return Ok(());
        }
        let size = self.config.rollout.micro_batch.max(1);
        let mine = self.mine(samples.chunks(size).count());
        let mut rows = Vec::new();
        for micro in samples.chunks(size).skip(mine.start).take(mine.len()) {
            self.stop()?;
            let sequences: Vec<TrainSequence> = micro.iter().map(|sample| sample.sequence.clone()).collect();
            let outputs = if corrected || critic {
                decoder.score(&sequences, self.temperature())?
            } else {
                PolicyOutputs::default()
            };
            let fixed = match penalised {
                Some(reference) => reference.score(&sequences, self.temperature())?.logprob,
                None => Vec::new(),
            };
            rows.extend([outputs.logprob, outputs.value.unwrap_or_default(), fixed]);
        }
        let mut rows = gather_rows(self.team.collective(), rows)?.into_iter();
        for micro in samples.chunks_mut(size) {
            let mut row = || rows.next().unwrap_or_default().into_iter();
            let (mut logprobs, mut values, mut fixed) = (row(), row(), row());
            for sample in micro {
                let chosen = sample.action.len();
                if critic {
                    sample.values = Some(values.by_ref().take(chosen).collect());
                }
                let own: Vec<f32> = logprobs.by_ref().take(chosen).collect();
                if corrected {
                    sample.old = sample.of_actions(&own);
                    let mut weights = importance(&algorithm.importance, &[&sample.old], &[&sample.rollout]);
                    sample.importance = weights.weight.pop();
                    sample.keep = weights.keep.pop().unwrap_or_default();
                }
                if penalised.is_some() {
                    let fixed: Vec<f32> = fixed.by_ref().take(chosen).collect();
                    let fixed = sample.of_actions(&fixed);
                    let penalties = kl_penalties(algorithm.kl, algorithm.kl_coefficient, &sample.old, &fixed);
                    sample.penalties = Some(sample.to_chosen(&penalties));
                }
            }
        }
        Ok(())
    }

    /// Which of so many micro-batches this rank computes.
    fn mine(&self, count: usize) -> std::ops::Range<usize> {
        share(count, self.team.rank(), self.team.size())
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
        let mut logprobs = outputs.logprob.into_iter();
        for sample in micro {
            let own: Vec<f32> = logprobs.by_ref().take(sample.action.len()).collect();
            sums.fresh.0.extend_from_slice(&sample.rollout);
            sums.fresh.1.extend(sample.of_actions(&own));
        }
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
        let learned = self.weighted(mini);
        let micros: Vec<&[Weighted<'_>]> = learned.chunks(self.config.rollout.micro_batch.max(1)).collect();
        let apart = self.team.keeps_apart(self.config.determinism == Determinism::Bitwise);
        let (mut parts, mut seen): (Vec<Gradients>, Vec<SumsBits>) = (Vec::new(), Vec::new());
        for micro in &micros[self.mine(micros.len())] {
            self.stop()?;
            let mut own = Sums::default();
            let gradients = self.micro(decoder, micro, fresh, &mut own)?;
            seen.push(own.bits());
            match parts.last_mut() {
                Some(sum) if !apart => sum.add(&gradients)?,
                _ => parts.push(gradients),
            }
        }
        for own in gather(self.team.collective(), seen)?.into_iter().flatten() {
            sums.add(Sums::of_bits(own));
        }
        let summed = self.team.sum(decoder, parts)?;
        if summed.is_empty() {
            return Ok(());
        }
        let norm = summed.norm();
        // Before the step: a policy that has become NaN would be published as a checkpoint.
        if !norm.is_finite() {
            return Err(RolloutError::NotANumber { what: "the gradient's norm" });
        }
        sums.grad_norm += norm;
        sums.steps += 1;
        let rate = learning_rate(self.config, optimizer.steps());
        self.team.step(decoder, optimizer, summed, self.config.optimizer.max_grad_norm, rate)?;
        Ok(())
    }

    /// The samples of a mini-batch that have a gradient, with their tokens' shares.
    fn weighted<'s>(&self, mini: &'s [Sample]) -> Vec<Weighted<'s>> {
        let algorithm = &self.config.algorithm;
        let lengths = |of: &dyn Fn(&Sample) -> usize| -> Vec<usize> {
            mini.iter().map(|sample| if sample.keep { of(sample) } else { 0 }).collect()
        };
        let shares = |lengths: Vec<usize>| {
            if self.means_apart() {
                // the reference takes the mean of every backward pass
                micro_weights(algorithm, &lengths, self.config.rollout.micro_batch)
            } else {
                token_weights(algorithm, &lengths)
            }
        };
        let policy = shares(lengths(&|sample| sample.old.len()));
        let critic = shares(lengths(&|sample| sample.action.len()));
        // Without a term that moves every token, an episode whose advantages are all 0 has a gradient of
        // exactly 0: it counts in the weights, but need not be computed.
        let everything = needs_critic(algorithm)
            || (algorithm.kl_coefficient > 0.0 && algorithm.kl_placement == KlPlacement::Loss)
            || algorithm.entropy_coefficient.abs() > 0.0;
        mini.iter()
            .zip(policy.into_iter().zip(critic))
            .filter(|(sample, _)| sample.keep && (everything || informative(sample)))
            .map(|(sample, (policy, critic))| Weighted { sample, policy, critic })
            .collect()
    }

    fn micro(
        &self,
        decoder: &Decoder,
        micro: &[Weighted<'_>],
        fresh: bool,
        sums: &mut Sums,
    ) -> Result<Gradients, RolloutError> {
        let algorithm = &self.config.algorithm;
        let sequences: Vec<TrainSequence> = micro.iter().map(|of| of.sample.sequence.clone()).collect();
        let flat = |of: &dyn Fn(&Sample) -> &[f32]| -> Vec<f32> {
            micro.iter().flat_map(|weighted| of(weighted.sample).iter().copied()).collect()
        };
        let actions = |chosen: &[f32]| -> Vec<f32> {
            let mut rest = chosen;
            let mut out = Vec::with_capacity(chosen.len());
            for Weighted { sample, .. } in micro {
                let (own, after) = rest.split_at(sample.action.len().min(rest.len()));
                out.extend(sample.of_actions(own));
                rest = after;
            }
            out
        };
        let chosen = |actions: &[f32]| -> Vec<f32> {
            let mut rest = actions;
            let mut out = Vec::with_capacity(actions.len());
            for Weighted { sample, .. } in micro {
                let (own, after) = rest.split_at(sample.old.len().min(rest.len()));
                out.extend(sample.to_chosen(own));
                rest = after;
            }
            out
        };
        let lengths: Vec<usize> = micro.iter().map(|of| of.sample.old.len()).collect();
        let old = flat(&|sample| &sample.old);
        let rollout = flat(&|sample| &sample.rollout);
        let advantage = flat(&|sample| &sample.advantage);
        let importance = flat(&|sample| sample.importance.as_deref().unwrap_or_default());
        let values = flat(&|sample| sample.values.as_deref().unwrap_or_default());
        let returns = flat(&|sample| sample.returns.as_deref().unwrap_or_default());
        let weight: Vec<f64> = micro.iter().flat_map(|of| of.policy.iter().copied()).collect();
        let critic: Vec<f64> = micro.iter().flat_map(|of| of.critic.iter().copied()).collect();
        let reference = match self.reference.filter(|_| algorithm.kl_placement == KlPlacement::Loss) {
            Some(reference) => Some(actions(&reference.score(&sequences, self.temperature())?.logprob)),
            None => None,
        };
        let mut objective = |outputs: &PolicyOutputs| -> Result<PolicyGrads, ModelError> {
            let (new, entropy) = (actions(&outputs.logprob), actions(&outputs.entropy));
            let tokens = TokenBatch {
                lengths: &lengths,
                new: &new,
                old: &old,
                reference: reference.as_deref(),
                entropy: &entropy,
                advantage: &advantage,
                importance: Some(importance.as_slice()).filter(|weights| !weights.is_empty()),
                weight: &weight,
            };
            let policy = policy_loss(algorithm, tokens);
            sums.tokens += old.len();
            sums.entropy += entropy.iter().map(|x| f64::from(*x)).sum::<f64>();
            sums.loss += policy.loss;
            sums.kl += policy.kl;
            sums.clipped += policy.clipped;
            if fresh {
                sums.fresh.0.extend_from_slice(&rollout);
                sums.fresh.1.extend_from_slice(&new);
            }
            let value = outputs.value.as_ref().filter(|_| needs_critic(algorithm)).map(|value| {
                let loss = value_loss(algorithm, value, &values, &returns, &critic);
                sums.value_loss += loss.loss;
                loss.d_value
            });
            Ok(PolicyGrads { logprob: chosen(&policy.d_logprob), entropy: chosen(&policy.d_entropy), value })
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
///
/// `whole`: with all tokens of the response chosen, as the reference's critic sees them. It shifts its mask by one
/// token, so it also learns the value after a response that is shorter than the round's longest; that token is no
/// part of the episode, only its place is chosen (in contexts of at most so many tokens).
fn samples(played: &Played, whole: Option<usize>) -> Vec<Sample> {
    let response = |episode: &EpisodeRecord| episode.tokens.len() - episode.prompt_tokens.min(episode.tokens.len());
    let longest = played.episodes.iter().map(response).max().unwrap_or_default();
    let mut numbers: BTreeMap<String, usize> = BTreeMap::new();
    let mut samples = Vec::with_capacity(played.episodes.len());
    for (at, (episode, outcome)) in played.episodes.iter().zip(&played.outcomes).enumerate() {
        let next = numbers.len();
        let question = *numbers.entry(question_key(&episode.question)).or_insert(next);
        let Some(reward) = outcome.reward else { continue };
        let actions = episode.action_positions();
        if actions.is_empty() || actions.len() != episode.logprobs.len() {
            continue;
        }
        let mut tokens = episode.tokens.clone();
        let after = whole.is_some_and(|limit| response(episode) < longest && tokens.len() < limit);
        if after {
            tokens.extend(episode.tokens.last().copied());
        }
        let positions =
            if whole.is_some() { (episode.prompt_tokens.max(1)..tokens.len()).collect() } else { actions.clone() };
        let action: Vec<bool> = positions.iter().map(|at| actions.binary_search(at).is_ok()).collect();
        samples.push(Sample {
            episode: at,
            action,
            after,
            sequence: TrainSequence { tokens, positions },
            question,
            reward,
            rollout: episode.logprobs.clone(),
            old: episode.logprobs.clone(),
            importance: None,
            keep: true,
            advantage: Vec::new(),
            penalties: None,
            values: None,
            returns: None,
        });
    }
    samples
}

#[cfg(test)]
#[path = "update_tests.rs"]
mod tests;
