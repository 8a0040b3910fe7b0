//! Training of all weights with the real program: whole checkpoints, to the bit after kills, a model that others load.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_artifacts::checkpoints;
use s3_config::{AdapterSpec, DTypeKind, DeviceKind, ModelSpec};
use s3_model::{Decoder, TrainSequence, load_tensors};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, replay, run, spawn};

const TRAIN: &str =
    "full: true\nsteps: 4\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4, miniBatch: 8}\n";
/// A critic, a fixed reference that shares nothing with what is trained, several optimiser steps a round.
const PPO: &str = "algorithm: {estimator: Ppo, klCoefficient: 0.05, epochs: 2}\n";

fn load(path: &Path, adapter: Option<&Path>) -> Decoder {
    let adapter = adapter.map(|path| AdapterSpec::at(path.to_owned()));
    let spec = ModelSpec { adapter, ..ModelSpec::at(path.to_owned(), DeviceKind::Cpu, DTypeKind::F32) };
    Decoder::load(&spec).unwrap().0
}

fn logprobs(decoder: &Decoder) -> Vec<f32> {
    let sequence = TrainSequence { tokens: (40..90).collect(), positions: (1..50).collect() };
    decoder.score(&[sequence], 1.0).unwrap().logprob
}

#[test]
fn all_weights_are_trained_to_the_bit_and_exported_as_a_model() {
    let world = World::start();
    let root = world.dir.path();
    for (name, more) in [("rloo", ""), ("ppo", PPO)] {
        let train = format!("{TRAIN}{more}");
        let (code, _, stderr) = run("train", &world.config(name, &train));
        assert_eq!(code, 0, "{stderr}");
        let outcome = world.outcome(name);
        assert!(outcome.summary["last"]["gradNorm"].as_f64().unwrap() > 0.0, "{}", outcome.summary);
        assert!(outcome.summary["last"]["mismatchMax"].as_f64().unwrap() <= 1e-5, "{}", outcome.summary);

        // killed anywhere, by threads, by several ranks
        world.behaviour.latency.store(15, Ordering::SeqCst);
        let killed = world.config(&format!("{name}-killed"), &train);
        for delay in [200, 450, 700, 900] {
            let mut child = spawn("train", &killed);
            std::thread::sleep(Duration::from_millis(delay));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        world.behaviour.latency.store(0, Ordering::SeqCst);
        let (code, _, stderr) = run("train", &killed);
        assert_eq!((code, world.outcome(&format!("{name}-killed")).digest), (0, outcome.digest.clone()), "{stderr}");
        let ranks = world.config(&format!("{name}-ranks"), &train);
        let text = std::fs::read_to_string(&ranks).unwrap();
        std::fs::write(&ranks, text.replace("threads: 1}", "threads: 1, team: {local: 2}}")).unwrap();
        let (code, _, stderr) = run("train", &ranks);
        assert_eq!((code, world.outcome(&format!("{name}-ranks")).digest), (0, outcome.digest.clone()), "{stderr}");

        // what is exported is the policy of the last checkpoint, whole, and stands alone
        let folder = root.join(name).join("adapter");
        let exported = load_tensors(&folder.join("model.safetensors")).unwrap();
        let (_, last) = checkpoints(&root.join(name).join("checkpoints")).unwrap().remove(0);
        let mut policy = load_tensors(&last.join("policy.safetensors")).unwrap();
        assert_eq!(policy.contains_key("value_head.weight"), name == "ppo");
        policy.retain(|name, _| !name.starts_with("value_head."));
        assert!(policy.keys().eq(exported.keys()));
        let start = load_tensors(&root.join("model/model.safetensors")).unwrap();
        for (key, tensor) in &exported {
            let bits = |tensor: &candle_core::Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(bits(tensor), bits(&policy[key]), "{key}");
            assert_ne!(bits(tensor), bits(&start[key]), "{key} was not trained");
        }
        let alone = logprobs(&load(&folder, None));
        let beside = logprobs(&load(&root.join("model"), Some(&folder)));
        assert_eq!(alone, beside, "beside its model, as evaluations load it");
        assert_ne!(alone, logprobs(&load(&root.join("model"), None)));
        std::fs::remove_dir_all(&folder).unwrap();
        let (code, _, stderr) = run("export", &world.config(name, &train));
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(logprobs(&load(&folder, None)), alone);
        assert!(!folder.join("merged").exists() && !folder.join("adapter_config.json").exists());

        let (code, text, stderr) = replay(&world.config(name, &train), &an_episode(&root.join(name), 3));
        assert_eq!(code, 0, "{stderr}");
        assert!(text.contains("steps applied again"), "{text}");
    }
    // a training of an adapter is another run, and its checkpoints are of another searcher
    let lora = TRAIN.replace("full: true\n", "");
    let (code, _, stderr) = run("train", &world.config("rloo", &lora));
    assert!(code == 64 && stderr.contains("lora: was"), "{code} {stderr}");
    let from = format!("{lora}resumeFrom: {}/rloo/checkpoints\n", root.display());
    let (code, _, stderr) = run("train", &world.config("other", &from));
    assert!(code == 64 && stderr.contains("another lora"), "{code} {stderr}");
}

/// Some episode of a step that has a reward.
fn an_episode(run: &Path, step: u32) -> String {
    let steps = s3_rollout::record::read_training(&run.join("state/training")).unwrap();
    let record = steps.iter().find(|record| record.step == step).unwrap();
    let one = record.episodes.iter().find(|one| one.outcome.as_ref().unwrap().reward.is_some()).unwrap();
    format!("{step}/{}/{}", s3_rollout::question_key(&one.episode.question), one.episode.sample)
}

#[test]
fn a_warm_start_of_all_weights_is_gone_on_from() {
    let world = World::start();
    let root = world.dir.path().display();
    let warm = "full: true\nsteps: 0\nsft: {epochs: 1, batch: 8, microBatch: 4, queryTrials: 4, limit: 16}\n";
    let (code, _, stderr) = run("sft", &world.config("warm", warm));
    assert_eq!(code, 0, "{stderr}");
    assert!(world.dir.path().join("warm/adapter/model.safetensors").exists());
    let train = TRAIN.replace("steps: 4", "steps: 1");
    let path = world.config("train", &train);
    let text = std::fs::read_to_string(&path).unwrap();
    let with =
        text.replace("model, device: Cpu}", &format!("model, device: Cpu, adapter: {{path: {root}/warm/adapter}}}}"));
    assert_ne!(text, with);
    std::fs::write(&path, with).unwrap();
    let (code, _, stderr) = run("train", &path);
    assert_eq!(code, 0, "{stderr}");
    let weights = |name: &str| {
        let file = world.dir.path().join(name).join("model.safetensors");
        load_tensors(&file).unwrap()["model.layers.0.mlp.up_proj.weight"].clone()
    };
    let far = |a: &str, b: &str| {
        let squares = (weights(a) - weights(b)).unwrap().sqr().unwrap().sum_all().unwrap();
        squares.to_scalar::<f32>().unwrap()
    };
    // one step from the warm start, not from the model
    assert!(far("train/adapter", "warm/adapter") < far("train/adapter", "model"));
}
