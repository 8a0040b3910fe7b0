//! Estimators and losses against verl's and TRL's own functions on random masked cases (`fixtures/generate*.py`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use s3_config::{Aggregation, AlgorithmConfig, Estimator, ImportanceConfig, ImportanceCorrection, KlKind, Surrogate};
use s3_trainer::learn::{
    Advantages, EpisodeReturn, TokenBatch, advantages, importance, micro_weights, policy_loss, token_weights,
    value_loss,
};
use serde::Deserialize;
use std::collections::BTreeMap;

/// Values of the action tokens of each episode.
type Rows = Vec<Vec<f32>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    questions: Vec<usize>,
    rewards: Vec<f64>,
    old: Rows,
    new: Rows,
    reference: Rows,
    advantage: Rows,
    correction: Rows,
    values: Rows,
    returns: Rows,
    predicted: Rows,
    advantages: BTreeMap<String, Rows>,
    losses: BTreeMap<String, Loss>,
    importance: BTreeMap<String, Rows>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Loss {
    loss: f64,
    gradient: Rows,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = serde_json::from_str(include_str!("fixtures/parity.json")).unwrap();
    assert!(cases.len() >= 50);
    cases
}

/// Equal to 1e-5, of 1 or of the value where that is larger.
fn same(what: &str, ours: f64, theirs: f64) {
    assert!((ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0), "{what}: {ours} is not {theirs}");
}

fn same_rows(what: &str, ours: impl IntoIterator<Item = f32>, theirs: &Rows) {
    let ours: Vec<f32> = ours.into_iter().collect();
    assert_eq!(ours.len(), theirs.iter().map(Vec::len).sum::<usize>(), "{what}");
    for (a, b) in ours.iter().zip(theirs.iter().flatten()) {
        same(what, f64::from(*a), f64::from(*b));
    }
}

fn estimated(case: &Case, estimator: Estimator) -> Advantages {
    let config = AlgorithmConfig { estimator, gamma: 0.9, lambda: 0.8, ..AlgorithmConfig::default() };
    let episode = |at: usize| EpisodeReturn {
        question: case.questions[at],
        reward: case.rewards[at],
        tokens: case.old[at].len(),
        values: (estimator == Estimator::Ppo).then(|| case.values[at].clone()),
        ..EpisodeReturn::default()
    };
    advantages(&config, &(0..case.questions.len()).map(episode).collect::<Vec<_>>())
}

#[test]
fn advantages_are_those_of_verl() {
    let estimators = [
        ("gae", Estimator::Ppo),
        ("rloo", Estimator::Rloo),
        ("grpo", Estimator::Grpo),
        ("drGrpo", Estimator::DrGrpo),
        ("opo", Estimator::Opo),
        ("reinforcePlusPlus", Estimator::ReinforcePlusPlus),
        ("reinforcePlusPlusBaseline", Estimator::ReinforcePlusPlusBaseline),
    ];
    for (number, case) in cases().iter().enumerate() {
        for (name, estimator) in estimators {
            let ours = estimated(case, estimator);
            if name == "rloo" {
                // a group of one: verl keeps its reward; without a baseline there is nothing to learn from, so ours is 0
                for (at, question) in case.questions.iter().enumerate() {
                    let alone = case.questions.iter().filter(|other| *other == question).count() == 1;
                    let theirs: Rows =
                        vec![case.advantages[name][at].iter().map(|a| if alone { 0.0 } else { *a }).collect()];
                    same_rows(&format!("{name} of case {number}"), ours.advantage[at].clone(), &theirs);
                }
                continue;
            }
            same_rows(
                &format!("{name} of case {number}"),
                ours.advantage.into_iter().flatten(),
                &case.advantages[name],
            );
            if let Some(returns) = ours.returns {
                same_rows("returns", returns.into_iter().flatten(), &case.advantages["gaeReturns"]);
            }
        }
        assert_eq!(case.advantages.len(), estimators.len() + 1);
    }
}

/// Loss and gradient under a configuration; `corrected` with importance weights, `kl` the penalty alone.
fn losses(case: &Case, config: &AlgorithmConfig, corrected: bool, kl: bool) -> (f64, Vec<f32>) {
    let flat = |rows: &Rows| rows.concat();
    let lengths: Vec<usize> = case.old.iter().map(Vec::len).collect();
    let weight: Vec<f64> = token_weights(config, &lengths).concat();
    let (new, old, reference) = (flat(&case.new), flat(&case.old), flat(&case.reference));
    let advantage = if kl { vec![0.0; new.len()] } else { flat(&case.advantage) };
    let (entropy, correction) = (vec![0.0; new.len()], flat(&case.correction));
    let out = policy_loss(
        config,
        TokenBatch {
            lengths: &lengths,
            new: &new,
            old: &old,
            reference: kl.then_some(&reference[..]),
            entropy: &entropy,
            advantage: &advantage,
            importance: corrected.then_some(&correction[..]),
            weight: &weight,
        },
    );
    (out.loss, out.d_logprob)
}

#[test]
fn losses_and_their_gradients_are_those_of_verl() {
    let base = AlgorithmConfig {
        clip_low: 0.2,
        clip_high: 0.28,
        kl_coefficient: 0.0,
        entropy_coefficient: 0.0,
        horizon: 16,
        value_clip: 0.5,
        value_coefficient: 0.5,
        ..AlgorithmConfig::default()
    };
    let with = |aggregation| AlgorithmConfig { aggregation, ..base.clone() };
    let mean = with(Aggregation::TokenMean);
    let surrogate = |surrogate, aggregation| AlgorithmConfig { surrogate, ..with(aggregation) };
    let kl = |kind| AlgorithmConfig { kl: kind, kl_coefficient: 1.0, ..mean.clone() };
    let policies = [
        ("clipTokenMean", mean.clone(), false, false),
        ("clipSequenceMean", with(Aggregation::SequenceMean), false, false),
        ("clipSequenceSum", with(Aggregation::SequenceSum), false, false),
        ("dualClip", AlgorithmConfig { dual_clip: 1.5, ..mean.clone() }, false, false),
        ("corrected", mean.clone(), true, false),
        ("sequenceClip", surrogate(Surrogate::SequenceClip, Aggregation::SequenceMean), false, false),
        ("weightClip", surrogate(Surrogate::WeightClip, Aggregation::TokenMean), false, false),
        ("k1", kl(KlKind::K1), false, true),
        ("k2", kl(KlKind::K2), false, true),
        ("k3", kl(KlKind::K3), false, true),
    ];
    for (number, case) in cases().iter().enumerate() {
        for (name, config, corrected, kl) in &policies {
            let (loss, gradient) = losses(case, config, *corrected, *kl);
            same(&format!("{name} of case {number}"), loss, case.losses[*name].loss);
            same_rows(&format!("gradient of {name} of case {number}"), gradient, &case.losses[*name].gradient);
        }
        let lengths: Vec<usize> = case.old.iter().map(Vec::len).collect();
        let weight = token_weights(&mean, &lengths).concat();
        let ours = value_loss(&mean, &case.predicted.concat(), &case.values.concat(), &case.returns.concat(), &weight);
        same("value", ours.loss, case.losses["value"].loss);
        same_rows("gradient of value", ours.d_value, &case.losses["value"].gradient);
        assert_eq!(case.losses.len(), policies.len() + 1);
    }
}

#[test]
fn importance_weights_are_those_of_verl() {
    let kinds = [
        ("tokenTruncated", ImportanceCorrection::TokenTruncated),
        ("sequenceTruncated", ImportanceCorrection::SequenceTruncated),
        ("tokenMasked", ImportanceCorrection::TokenMasked),
        ("sequenceMasked", ImportanceCorrection::SequenceMasked),
    ];
    let mut dropped = 0;
    for (number, case) in cases().iter().enumerate() {
        for (name, correction) in kinds {
            let config = ImportanceConfig { correction, floor: 0.8, cap: 1.25 };
            let (new, old): (Vec<&[f32]>, Vec<&[f32]>) =
                case.new.iter().zip(&case.old).map(|(new, old)| (new.as_slice(), old.as_slice())).unzip();
            let ours = importance(&config, &new, &old);
            dropped += ours.keep.iter().filter(|keep| !**keep).count();
            // verl masks a sequence token by token
            let ours: Rows = ours
                .weight
                .iter()
                .zip(&ours.keep)
                .map(|(weight, keep)| weight.iter().map(|w| if *keep { *w } else { 0.0 }).collect())
                .collect();
            same_rows(&format!("{name} of case {number}"), ours.concat(), &case.importance[name]);
        }
        assert_eq!(case.importance.len(), kinds.len());
    }
    assert!(dropped > 20, "only {dropped} sequences were masked");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct TrlCase {
    questions: Vec<usize>,
    rewards: Vec<f64>,
    old: Rows,
    new: Rows,
    reference: Rows,
    correction: Rows,
    /// Per episode.
    advantage: Vec<f32>,
    advantages: BTreeMap<String, Vec<f32>>,
    losses: BTreeMap<String, Loss>,
}

/// TRL's own methods (`fixtures/generate_trl.py`).
#[test]
fn advantages_losses_and_gradients_are_those_of_trl() {
    let cases: Vec<TrlCase> = serde_json::from_str(include_str!("fixtures/parity-trl.json")).unwrap();
    assert!(cases.len() >= 50);
    let base = AlgorithmConfig {
        clip_low: 0.2,
        clip_high: 0.28,
        kl_coefficient: 0.0,
        entropy_coefficient: 0.0,
        horizon: 16,
        aggregation: Aggregation::SequenceMean,
        ..AlgorithmConfig::default()
    };
    let with = |aggregation| AlgorithmConfig { aggregation, ..base.clone() };
    let cispo = AlgorithmConfig {
        surrogate: Surrogate::WeightClip,
        // it has an upper bound alone, and says what it is instead of how far it is from 1
        clip_low: 1.0,
        clip_high: 0.25,
        ..with(Aggregation::TokenMean)
    };
    let losses = [
        ("grpo", base.clone()),
        ("grpoTwoSided", AlgorithmConfig { dual_clip: 1.5, ..base.clone() }),
        ("grpoKl", AlgorithmConfig { kl: KlKind::K3, kl_coefficient: 0.04, ..base.clone() }),
        ("grpoCorrected", base.clone()),
        ("bnpo", with(Aggregation::TokenMean)),
        ("drGrpo", with(Aggregation::SequenceSum)),
        ("dapo", with(Aggregation::TokenMean)),
        ("gspo", AlgorithmConfig { surrogate: Surrogate::SequenceClip, ..base.clone() }),
        ("cispo", cispo),
        // one ratio an episode, the product of its tokens': ours has one a token, equal on-policy
        ("rlooOnPolicy", AlgorithmConfig { horizon: 1, ..with(Aggregation::SequenceSum) }),
    ];
    for (number, case) in cases.iter().enumerate() {
        for (name, estimator) in [("grpo", Estimator::Grpo), ("drGrpo", Estimator::DrGrpo), ("rloo", Estimator::Rloo)] {
            let config = AlgorithmConfig { estimator, ..base.clone() };
            let episode = |at: usize| EpisodeReturn {
                question: case.questions[at],
                reward: case.rewards[at],
                tokens: 1,
                ..EpisodeReturn::default()
            };
            let ours = advantages(&config, &(0..case.rewards.len()).map(episode).collect::<Vec<_>>());
            for (at, ours) in ours.advantage.iter().enumerate() {
                // the constant beside the standard deviation is 1e-4 there, 1e-6 here and in verl
                let constant = if estimator == Estimator::Grpo {
                    let group: Vec<f64> = (0..case.rewards.len())
                        .filter(|other| case.questions[*other] == case.questions[at])
                        .map(|other| case.rewards[other])
                        .collect();
                    let mean = group.iter().sum::<f64>() / group.len() as f64;
                    let deviation =
                        (group.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (group.len() - 1) as f64).sqrt();
                    (deviation + 1e-6) / (deviation + 1e-4)
                } else {
                    1.0
                };
                let theirs = f64::from(case.advantages[name][at]);
                same(&format!("{name} of case {number}"), f64::from(ours[0]) * constant, theirs);
            }
        }
        assert_eq!(case.advantages.len(), 3);
        let lengths: Vec<usize> = case.old.iter().map(Vec::len).collect();
        let old = case.old.concat();
        let advantage: Vec<f32> =
            case.advantage.iter().zip(&lengths).flat_map(|(value, length)| vec![*value; *length]).collect();
        let (reference, correction, entropy) =
            (case.reference.concat(), case.correction.concat(), vec![0.0; old.len()]);
        for (name, config) in &losses {
            let on_policy = *name == "rlooOnPolicy";
            let new = if on_policy { old.clone() } else { case.new.concat() };
            let out = policy_loss(
                config,
                TokenBatch {
                    lengths: &lengths,
                    new: &new,
                    old: &old,
                    reference: (config.kl_coefficient > 0.0).then_some(&reference[..]),
                    entropy: &entropy,
                    advantage: &advantage,
                    importance: (*name == "grpoCorrected").then_some(&correction[..]),
                    weight: &token_weights(config, &lengths).concat(),
                },
            );
            let theirs = &case.losses[*name];
            if !on_policy {
                same(&format!("{name} of case {number}"), out.loss, theirs.loss);
            }
            same_rows(&format!("gradient of {name} of case {number}"), out.d_logprob, &theirs.gradient);
        }
        assert_eq!(case.losses.len(), losses.len());
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct S3Case {
    gamma: f64,
    lambda: f64,
    micro: usize,
    width: usize,
    rewards: Vec<f64>,
    action: Vec<Vec<bool>>,
    advantages: Rows,
    values: Rows,
    predicted: Rows,
    returns: Rows,
    critic_gradient: Rows,
    critic_loss: f64,
    old: Rows,
    new: Rows,
    policy_gradient: Rows,
    policy_loss: f64,
}

/// What the reference's critic and policy learn, with its masks (`fixtures/generate_s3.py`).
#[test]
fn the_critic_of_the_reference_is_reproduced() {
    let cases: Vec<S3Case> = serde_json::from_str(include_str!("fixtures/parity-s3.json")).unwrap();
    assert!(cases.len() >= 50);
    let mut after = 0;
    for (number, case) in cases.iter().enumerate() {
        let config = AlgorithmConfig {
            estimator: Estimator::Ppo,
            gamma: case.gamma,
            lambda: case.lambda,
            clip_low: 0.2,
            clip_high: 0.2,
            value_clip: 0.5,
            value_coefficient: 0.5,
            aggregation: Aggregation::TokenMean,
            kl_coefficient: 0.0,
            entropy_coefficient: 0.0,
            ..AlgorithmConfig::default()
        };
        let episode = |at: usize| EpisodeReturn {
            question: at,
            reward: case.rewards[at],
            tokens: case.values[at].len(),
            values: Some(case.values[at].clone()),
            after: case.action[at].len() < case.width,
            penalties: None,
        };
        let episodes: Vec<EpisodeReturn> = (0..case.rewards.len()).map(episode).collect();
        after += episodes.iter().filter(|episode| episode.after).count();
        let ours = advantages(&config, &episodes);
        same_rows(&format!("advantages of case {number}"), ours.advantage.concat(), &case.advantages);
        let returns = ours.returns.unwrap();
        same_rows(&format!("returns of case {number}"), returns.concat(), &case.returns);
        let seen: Vec<usize> = case.values.iter().map(Vec::len).collect();
        let weight = micro_weights(&config, &seen, case.micro).concat();
        let critic =
            value_loss(&config, &case.predicted.concat(), &case.values.concat(), &case.returns.concat(), &weight);
        same(&format!("critic's loss of case {number}"), critic.loss, case.critic_loss);
        same_rows(&format!("critic's gradient of case {number}"), critic.d_value, &case.critic_gradient);

        let lengths: Vec<usize> = case.old.iter().map(Vec::len).collect();
        let advantage: Vec<f32> = ours
            .advantage
            .iter()
            .zip(&case.action)
            .flat_map(|(row, action)| row.iter().zip(action).filter(|(_, action)| **action).map(|(a, _)| *a))
            .collect();
        let policy = policy_loss(
            &config,
            TokenBatch {
                lengths: &lengths,
                new: &case.new.concat(),
                old: &case.old.concat(),
                reference: None,
                entropy: &vec![0.0; advantage.len()],
                advantage: &advantage,
                importance: None,
                weight: &micro_weights(&config, &lengths, case.micro).concat(),
            },
        );
        same(&format!("policy's loss of case {number}"), policy.loss, case.policy_loss);
        same_rows(&format!("policy's gradient of case {number}"), policy.d_logprob, &case.policy_gradient);
    }
    assert!(after > 100, "only {after} responses are shorter than their round's longest");
}
