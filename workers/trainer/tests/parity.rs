//! Estimators and losses against verl's own functions on random masked cases (`fixtures/generate.py`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use s3_config::{Aggregation, AlgorithmConfig, Estimator, ImportanceConfig, ImportanceCorrection, KlKind, Surrogate};
use s3_trainer::learn::{
    Advantages, EpisodeReturn, TokenBatch, advantages, importance, policy_loss, token_weights, value_loss,
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
