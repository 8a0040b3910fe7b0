//! Warm start, reinforcement learning and evaluation in the search world.

use super::play::{Policy, Rollout, play};
use super::task::{Puzzle, Retriever, Rng, Vocabulary};
use crate::learn::{EpisodeReturn, TokenBatch, advantages, importance, policy_loss, token_weights, value_loss};
use s3_config::{AlgorithmConfig, Estimator, ImportanceCorrection, OptimizerConfig};
use s3_model::{AdamW, Decoder, DecoderConfig, Gradients, ModelError, PolicyGrads, PolicyOutputs, TrainSequence};
use serde::Serialize;

/// Sizes and rates of the learning proof; its JSON keys the warm start's cache.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WorldConfig {
    /// Width of the decoder.
    pub hidden: usize,
    /// Layers of the decoder.
    pub layers: usize,
    /// Supervised steps of the warm start.
    pub warm_steps: u64,
    /// Episodes per warm-start step.
    pub warm_batch: usize,
    /// Probability that the warm start's teacher acts right.
    pub warm_quality: f64,
    /// Learning rate of the warm start.
    pub warm_rate: f64,
    /// Policy update steps.
    pub steps: u64,
    /// Questions per step.
    pub questions: usize,
    /// Samples per question.
    pub samples: usize,
    /// Learning rate of reinforcement learning.
    pub rate: f64,
    /// Questions of the evaluation.
    pub evaluation: usize,
}

impl Default for WorldConfig {
    fn default() -> Self {
        Self {
            hidden: 64,
            layers: 2,
            warm_steps: 1200,
            warm_batch: 256,
            warm_quality: 0.5,
            warm_rate: 2e-3,
            steps: 40,
            questions: 96,
            samples: 16,
            rate: 1e-3,
            evaluation: 2000,
        }
    }
}

/// What a run of reinforcement learning shows.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// (step, GBR on the evaluation questions), first before any step, last after all.
    pub gain: Vec<(u64, f64)>,
    /// Gradient norm before clipping, per step.
    pub gradient_norm: Vec<f64>,
}

pub(super) fn optimizer(rate: f64) -> OptimizerConfig {
    OptimizerConfig { learning_rate: rate, beta2: 0.99, ..OptimizerConfig::default() }
}

fn sequences(rollouts: &[Rollout]) -> Vec<TrainSequence> {
    rollouts.iter().map(|r| TrainSequence { tokens: r.tokens.clone(), positions: r.positions.to_vec() }).collect()
}

/// Teaches a fresh decoder the actions' form, and the task about as well as the teacher knows it.
pub fn warm_start(config: &WorldConfig, seed: u64, mut progress: impl FnMut(u64)) -> Result<Decoder, ModelError> {
    let vocabulary = Vocabulary::PROOF;
    let shape = DecoderConfig::tiny(vocabulary.size(), config.hidden, config.layers);
    let mut decoder = Decoder::random(shape, seed, &candle_core::Device::Cpu, candle_core::DType::F32)?;
    decoder.train_all()?;
    let mut adam = AdamW::new(&optimizer(config.warm_rate));
    for step in 0..config.warm_steps {
        let puzzles = draw(seed, "warm start", step, config.warm_batch);
        let teacher = Policy::Oracle { quality: config.warm_quality };
        let rollouts = play(&decoder, vocabulary, &puzzles, 1, teacher, Retriever::Working, (seed, step))?;
        let weight = -1.0 / (3 * rollouts.len()) as f32;
        let mut gradients = decoder.train_pass(&sequences(&rollouts), 1.0, &mut |out| {
            Ok(PolicyGrads {
                logprob: vec![weight; out.logprob.len()],
                entropy: vec![0.0; out.logprob.len()],
                value: None,
            })
        })?;
        gradients.clip(1.0)?;
        // linear decay: the last steps settle what the first ones found
        let rate = config.warm_rate * (1.0 - step as f64 / config.warm_steps as f64);
        adam.step(&mut decoder, &gradients, rate)?;
        progress(step + 1);
    }
    Ok(decoder)
}

pub(super) fn draw(seed: u64, purpose: &str, step: u64, count: usize) -> Vec<Puzzle> {
    let first = step * count as u64;
    (first..first + count as u64).map(|index| Puzzle::draw(Vocabulary::PROOF, seed, purpose, index)).collect()
}

/// Mean gain beyond RAG of the greedy policy on questions that no training step draws.
pub fn evaluate(config: &WorldConfig, decoder: &Decoder, retriever: Retriever, seed: u64) -> Result<f64, ModelError> {
    let greedy = Policy::Model { temperature: 0.0 };
    let puzzles = draw(seed, "evaluation", 0, config.evaluation);
    let mut sum = 0.0;
    for chunk in puzzles.chunks(250) {
        let rollouts = play(decoder, Vocabulary::PROOF, chunk, 1, greedy, retriever, (seed, 0))?;
        sum += rollouts.iter().map(Rollout::gain).sum::<f64>();
    }
    Ok(sum / config.evaluation as f64)
}

/// What surrounds a run of reinforcement learning. Evaluations ask the same retriever and a faultless judge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conditions {
    /// How queries are answered.
    pub retriever: Retriever,
    /// Share of samples whose verdict is lost in an outage: they are masked.
    pub outages: f64,
    /// Share of samples whose verdict is the opposite of the truth.
    pub flips: f64,
}

impl Conditions {
    /// Nothing goes wrong.
    pub const CLEAN: Self = Self { retriever: Retriever::Working, outages: 0.0, flips: 0.0 };

    /// The reward of an episode, or none when its verdict was lost.
    fn reward(self, rollout: &Rollout, rng: &mut Rng) -> Option<f64> {
        let (lost, flipped) = (rng.chance(self.outages), rng.chance(self.flips));
        let right = rollout.right != flipped;
        (!lost).then(|| f64::from(u8::from(right)) - f64::from(u8::from(rollout.baseline_right)))
    }
}

/// Improves the decoder by policy gradients on GBR alone.
pub fn reinforce(
    config: &WorldConfig,
    algorithm: &AlgorithmConfig,
    decoder: &mut Decoder,
    conditions: Conditions,
    seed: u64,
    mut progress: impl FnMut(u64),
) -> Result<Curve, ModelError> {
    let retriever = conditions.retriever;
    decoder.train_all()?;
    if algorithm.estimator == Estimator::Ppo {
        decoder.attach_value_head()?;
    }
    let mut adam = AdamW::new(&optimizer(config.rate));
    let mut curve = Curve { gain: vec![(0, evaluate(config, decoder, retriever, seed)?)], gradient_norm: Vec::new() };
    for step in 0..config.steps {
        let puzzles = draw(seed, "training", step, config.questions);
        let policy = Policy::Model { temperature: 1.0 };
        let played = play(decoder, Vocabulary::PROOF, &puzzles, config.samples, policy, retriever, (seed, step))?;
        let (mut rollouts, mut rewards) = (Vec::with_capacity(played.len()), Vec::with_capacity(played.len()));
        for (row, rollout) in played.into_iter().enumerate() {
            let mut rng = Rng::new(seed, "judge", step.wrapping_mul(1 << 20).wrapping_add(row as u64));
            if let Some(reward) = conditions.reward(&rollout, &mut rng) {
                rollouts.push(rollout);
                rewards.push(reward);
            }
        }
        let mut gradients = gradients(algorithm, decoder, &rollouts, &rewards)?;
        curve.gradient_norm.push(gradients.clip(1.0)?);
        adam.step(decoder, &gradients, config.rate)?;
        if (step + 1) % 10 == 0 || step + 1 == config.steps {
            curve.gain.push((step + 1, evaluate(config, decoder, retriever, seed)?));
        }
        progress(step + 1);
    }
    Ok(curve)
}

/// The gradients of one round.
pub(super) fn gradients(
    algorithm: &AlgorithmConfig,
    decoder: &Decoder,
    rollouts: &[Rollout],
    rewards: &[f64],
) -> Result<Gradients, ModelError> {
    let sequences = sequences(rollouts);
    let critic = algorithm.estimator == Estimator::Ppo;
    let corrected = algorithm.importance.correction != ImportanceCorrection::None;
    let before = if critic || corrected { decoder.score(&sequences, 1.0)? } else { PolicyOutputs::default() };
    let values = before.value.unwrap_or_default();
    let returns: Vec<EpisodeReturn> = rollouts
        .iter()
        .zip(rewards)
        .enumerate()
        .map(|(row, (rollout, reward))| EpisodeReturn {
            question: rollout.question,
            reward: *reward,
            tokens: 3,
            values: critic.then(|| values[3 * row..3 * row + 3].to_vec()),
            ..EpisodeReturn::default()
        })
        .collect();
    let result = advantages(algorithm, &returns);
    let advantage: Vec<f32> = result.advantage.into_iter().flatten().collect();
    let targets: Vec<f32> = result.returns.unwrap_or_default().into_iter().flatten().collect();
    let mut old: Vec<f32> = rollouts.iter().flat_map(|r| r.logprobs).collect();
    let mut lengths = vec![3; rollouts.len()];
    let mut correction = None;
    if corrected {
        let (own, sampled): (Vec<&[f32]>, Vec<&[f32]>) = before.logprob.chunks(3).zip(old.chunks(3)).unzip();
        let weights = importance(&algorithm.importance, &own, &sampled);
        lengths = weights.keep.iter().map(|keep| 3 * usize::from(*keep)).collect();
        correction = Some(weights.weight.concat());
        old = before.logprob;
    }
    // what is left out has no share
    let weights: Vec<f64> = token_weights(algorithm, &lengths)
        .into_iter()
        .flat_map(|of| if of.is_empty() { vec![0.0; 3] } else { of })
        .collect();
    let lengths = vec![3; rollouts.len()];
    decoder.train_pass(&sequences, 1.0, &mut |out| {
        let batch = TokenBatch {
            lengths: &lengths,
            new: &out.logprob,
            old: &old,
            reference: None,
            entropy: &out.entropy,
            advantage: &advantage,
            importance: correction.as_deref(),
            weight: &weights,
        };
        let loss = policy_loss(algorithm, batch);
        let value = out.value.as_ref().filter(|_| critic);
        let value = value.map(|value| value_loss(algorithm, value, &values, &targets, &weights).d_value);
        Ok(PolicyGrads { logprob: loss.d_logprob, entropy: loss.d_entropy, value })
    })
}
