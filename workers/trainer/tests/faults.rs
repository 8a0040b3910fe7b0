//! The real `s3-trainer` process against services over real sockets: killed anywhere, slow, failing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/support/full_disk.rs"]
mod full_disk;
mod support;

use full_disk::full_disk;
use s3_rollout::record::read_training;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, program, run, spawn};

const TRAIN: &str = "steps: 5\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4, miniBatch: 8}\n\
    probe: {every: 2, limit: 4, datasets: [{name: d, path: ROOT/questions.jsonl}]}";

fn train(world: &World) -> String {
    TRAIN.replace("ROOT", &world.dir.path().display().to_string())
}

/// Kills the program at random points of runs with jumbled latencies, until it was killed so many times.
fn killed(name: &str, more: &str, kills_wanted: usize) {
    killed_with(name, more, &[], kills_wanted);
}

fn killed_with(name: &str, more: &str, replace: &[(&str, &str)], kills_wanted: usize) {
    let world = World::start();
    let mut train = format!("{}\n{more}", train(&world));
    for (from, to) in replace {
        assert!(train.contains(from));
        train = train.replace(from, to);
    }
    let started = std::time::Instant::now();
    let (code, stdout, stderr) = run("train", &world.config("undisturbed", &train));
    assert_eq!(code, 0, "{stderr}");
    let whole = started.elapsed();
    let expected = world.outcome("undisturbed");
    assert!(stdout.ends_with(&format!("digest {}\n", expected.digest)), "{stdout}");
    let last = |key: &str| expected.summary["last"][key].as_f64().unwrap();
    assert!(last("gradNorm") > 0.0, "{}", expected.summary);
    assert!(last("staleness") > 0.0 || last("mismatchMax") <= 1e-5, "{}", expected.summary);

    let paid = world.behaviour.answered.swap(0, Ordering::SeqCst);
    world.behaviour.latency.store(15, Ordering::SeqCst);
    let mut random = 7u64;
    let (mut kills, mut runs) = (0, 0);
    while kills < kills_wanted {
        let disturbed = format!("{name}-{runs}");
        let config = world.config(&disturbed, &train);
        loop {
            let mut child = spawn("train", &config);
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = (random >> 40) as f64 / (1u64 << 24) as f64;
            std::thread::sleep(whole.mul_f64(0.02 + 0.8 * share) + Duration::from_millis(3));
            if child.try_wait().unwrap().is_some() {
                break;
            }
            child.kill().unwrap();
            child.wait().unwrap();
            kills += 1;
            let redone = updates_after_checkpoint(&world.dir.path().join(&disturbed));
            assert!(redone <= CHECKPOINT_EVERY, "{redone} steps of optimiser work are lost");
        }
        let (code, _, stderr) = run("train", &config);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(world.outcome(&disturbed).digest, expected.digest, "after {kills} kills in run {runs}");
        let steps = read_training(&world.dir.path().join(&disturbed).join("state/training")).unwrap();
        assert_eq!(steps.len(), 6);
        assert!(steps[1..].iter().all(|step| step.episodes.len() == 16 && step.figures.contains_key("gradNorm")));
        assert_eq!([0, 2, 4, 5].map(|at: usize| steps[at].probe_episodes.len()), [4, 4, 4, 4]);
        runs += 1;
    }
    // Only what was under way when the process died is asked again, and that the gateway's cache answers: at most
    // a chunk of each round that is played, and the parts of a baseline that are asked at once.
    let (asked, under_way) = (world.behaviour.answered.load(Ordering::SeqCst), 5 * 3 + 4 * 5);
    assert!(asked <= runs * paid + kills * under_way, "{asked} answers in {runs} runs of {paid} with {kills} kills");
}

const CHECKPOINT_EVERY: u32 = 2;

/// Policy updates of a run that its newest checkpoint does not hold.
fn updates_after_checkpoint(run: &std::path::Path) -> u32 {
    let steps = read_training(&run.join("state/training")).unwrap_or_default();
    let updated = steps.iter().filter(|step| !step.figures.is_empty()).map(|step| step.step).max().unwrap_or_default();
    let saved = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().filter_map(|entry| {
        entry.unwrap().file_name().to_string_lossy().strip_prefix("step-").and_then(|step| step.parse::<u32>().ok())
    });
    updated - saved.max().unwrap_or_default()
}

#[test]
fn killed_anywhere_the_digest_is_the_same() {
    killed("rloo", "", 12);
}

/// A critic, a reference policy and several optimiser steps a round.
const PPO: &str = "algorithm: {estimator: Ppo, klCoefficient: 0.05, epochs: 2, entropyCoefficient: 0.01}\n";

#[test]
fn killed_anywhere_with_critic_reference_and_several_optimiser_steps_a_round() {
    killed("ppo", PPO, 6);
}

#[test]
#[ignore = "two hundred kills; minutes"]
fn killed_two_hundred_times_the_digest_is_the_same() {
    killed("rloo", "", 100);
    killed("ppo", PPO, 60);
    killed_with("ahead", AHEAD, &[("batch: 8", "batch: 8, staleness: 2")], 40);
}

/// Rounds are played ahead by older policies, with the weights that correct for it.
const AHEAD: &str = "algorithm: {importance: {correction: TokenTruncated}}\n";

#[test]
fn killed_anywhere_while_rounds_are_played_ahead() {
    killed_with("ahead", AHEAD, &[("batch: 8", "batch: 8, staleness: 2")], 6);
}

/// Every call of every service takes a time of its own; who plays, how many threads and how many at once changes
/// nothing.
#[test]
fn workers_and_shuffled_latencies_change_nothing() {
    let world = World::start();
    let mut digests = std::collections::BTreeMap::new();
    for (staleness, workers, batch, latency) in [
        (0, 1, 16, 0),
        (0, 1, 8, 40),
        (0, 2, 16, 40),
        (0, 4, 5, 40),
        (1, 1, 16, 0),
        (1, 1, 8, 40),
        (1, 2, 16, 40),
        (1, 4, 16, 40),
    ] {
        world.behaviour.latency.store(latency, Ordering::SeqCst);
        let name = format!("s{staleness}-w{workers}-{batch}-{latency}");
        let of = format!("batch: 8, staleness: {staleness}, workers: {workers}");
        let config = world.config(&name, &format!("{}\n{AHEAD}", train(&world).replace("batch: 8", &of)));
        // `batch` is part of a run's identity, but of none of its results
        let text = std::fs::read_to_string(&config).unwrap().replace("batch: 8", &format!("batch: {batch}"));
        std::fs::write(&config, text).unwrap();
        let (code, _, stderr) = run("train", &config);
        assert_eq!(code, 0, "{stderr}");
        let outcome = world.outcome(&name);
        let last = &outcome.summary["last"];
        assert_eq!(last["staleness"].as_f64(), Some(f64::from(staleness)), "{last}");
        assert_eq!(last["stalenessOptimizerSteps"].as_f64().unwrap() > 0.0, staleness > 0, "{last}");
        let mismatch = last["mismatchKl"].as_f64().unwrap();
        assert!(if staleness == 0 { mismatch <= 1e-8 } else { mismatch > 1e-8 }, "{last}");
        assert_eq!(digests.entry(staleness).or_insert_with(|| outcome.digest.clone()), &outcome.digest, "{name}");
    }
    assert_ne!(digests[&0], digests[&1], "an older policy plays other episodes");
}

#[test]
fn an_outage_masks_samples_and_is_never_a_wrong_answer() {
    let world = World::start();
    world.behaviour.failing.store(4, Ordering::SeqCst);
    for name in ["first", "second"] {
        let (code, _, stderr) = run("train", &world.config(name, &train(&world)));
        assert_eq!(code, 0, "{stderr}");
    }
    let outcome = world.outcome("first");
    assert_eq!(outcome.digest, world.outcome("second").digest);
    assert!(outcome.summary["masked"].as_f64().unwrap() > 0.0, "{}", outcome.summary);
    let mut masked = 0;
    for step in read_training(&world.dir.path().join("first/state/training")).unwrap() {
        for record in step.episodes {
            let outcome = record.outcome.unwrap();
            let known = [&outcome.searcher, &outcome.baseline].iter().all(|scored| scored.answer.is_some());
            assert_eq!(outcome.reward.is_some(), known);
            masked += usize::from(!known);
        }
    }
    assert!((outcome.summary["masked"].as_f64().unwrap() - masked as f64).abs() < 0.5);
}

#[test]
fn dead_services_end_in_one_line_and_lose_nothing() {
    let world = World::start();
    world.behaviour.failing.store(1, Ordering::SeqCst);
    let config = world.config("dead", &train(&world));
    let (code, _, stderr) = run("train", &config);
    assert_eq!(code, 69, "{stderr}");
    assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
    world.behaviour.failing.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &config);
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = run("train", &world.config("whole", &train(&world)));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("dead").digest, world.outcome("whole").digest);
}

#[test]
fn a_full_disk_ends_in_one_line_and_loses_nothing() {
    let world = World::start();
    let (code, _, stderr) = run("train", &world.config("whole", &train(&world)));
    assert_eq!(code, 0, "{stderr}");
    let config = world.config("full", &train(&world));
    let mut ends = 0;
    // journals, then checkpoints, then the export do not fit; each run goes on from what the one before left
    for kib in [1, 2, 4, 8, 16, 32, 64, 128, 256] {
        let output = full_disk(&program("train", &config), kib).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), Some(74), "{kib} KiB: {stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{kib} KiB: {stderr}");
        ends += 1;
    }
    assert!(ends > 1, "the disk was never full");
    let (code, _, stderr) = run("train", &config);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("full").digest, world.outcome("whole").digest);
}

#[test]
fn another_configuration_is_refused_by_name() {
    let world = World::start();
    let short = "steps: 1\nrollout: {questions: 2, samples: 2, batch: 4}";
    let (code, _, stderr) = run("train", &world.config("one", short));
    assert_eq!(code, 0, "{stderr}");
    let other = format!("{short}\nalgorithm: {{clipHigh: 0.3}}");
    let (code, _, stderr) = run("train", &world.config("one", &other));
    assert_eq!(code, 64, "{stderr}");
    assert!(stderr.contains("algorithm: was") && stderr.contains("another run"), "{stderr}");
    // more steps of the same run continue it
    let (code, _, stderr) = run("train", &world.config("one", &short.replace("steps: 1", "steps: 2")));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("one").summary["steps"], 2);
}

#[test]
fn asked_to_stop_it_saves_and_continues() {
    let world = World::start();
    world.behaviour.latency.store(60, Ordering::SeqCst);
    let config = world.config("stopped", &train(&world).replace("steps: 5", "steps: 3"));
    let (mut stops, mut saved) = (0, 0);
    loop {
        let child = spawn("train", &config);
        // longer each time, so that a slow machine gets to its end as well
        std::thread::sleep(Duration::from_millis(500 + 100 * stops));
        let pid = child.id().to_string();
        // the child may have ended already
        let _ = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        let output = child.wait_with_output().unwrap();
        match output.status.code() {
            Some(0) => break,
            Some(75) => {
                stops += 1;
                saved += 1;
            }
            // so early that it did not listen yet
            None => stops += 1,
            code => panic!("{code:?}: {}", String::from_utf8_lossy(&output.stderr)),
        }
        assert!(stops < 60, "no progress");
    }
    let (code, _, stderr) = run("train", &world.config("free", &train(&world).replace("steps: 5", "steps: 3")));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("stopped").digest, world.outcome("free").digest, "after {stops} stops");
    assert!(saved > 0);
}

#[test]
fn baselines_are_computed_once() {
    let world = World::start();
    let more =
        "steps: 1\ndata: {datasets: [{name: d, path: ROOT/questions.jsonl}], dropBaselineSolved: true, limit: 6}"
            .replace("ROOT", &world.dir.path().display().to_string());
    let base = std::fs::read_to_string(world.config("base", "")).unwrap();
    let without_data: Vec<&str> = base.lines().filter(|line| !line.starts_with("data:")).collect();
    let config = world.dir.path().join("base.yaml");
    std::fs::write(&config, format!("{}\n{more}\n", without_data.join("\n"))).unwrap();
    world.behaviour.failing.store(5, Ordering::SeqCst);
    let (code, _, stderr) = run("baseline", &config);
    assert_eq!(code, 69, "{stderr}");
    let partial = world.behaviour.answered.load(Ordering::SeqCst);
    assert!(partial > 0);
    world.behaviour.failing.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("baseline", &config);
    assert_eq!(code, 0, "{stderr}");
    let outcome = world.outcome("base");
    assert_eq!((outcome.summary["questions"].as_u64(), outcome.summary["right"].as_u64()), (Some(6), Some(0)));
    let asked = world.behaviour.answered.load(Ordering::SeqCst);
    assert!(asked <= support::QUESTIONS, "no answer is asked twice: {asked}");
    let (code, _, stderr) = run("baseline", &config);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.behaviour.answered.load(Ordering::SeqCst), asked);
    assert_eq!(world.outcome("base"), outcome);
}

#[test]
fn warm_starts_lower_the_loss_and_resume() {
    let world = World::start();
    let more =
        |task: &str| format!("steps: 0\nsft: {{task: {task}, epochs: 3, batch: 8, microBatch: 4, queryTrials: 6}}");
    let wide = |name: &str, task: &str| {
        let config = world.config(name, &more(task));
        let text = std::fs::read_to_string(&config).unwrap().replace("turnTokens: 12", "turnTokens: 60");
        std::fs::write(&config, text).unwrap();
        config
    };
    for (name, task) in [("protocol", "Protocol"), ("answers", "ShortAnswer")] {
        let (code, _, stderr) = run("sft", &wide(name, task));
        assert_eq!(code, 0, "{stderr}");
        let summary = world.outcome(name).summary;
        let loss = |key: &str| summary[key].as_f64().unwrap();
        assert!(loss("lastLoss") < loss("firstLoss"), "{task}: {summary}");
        assert!(world.dir.path().join(name).join("adapter/adapter_model.safetensors").exists());
        let mut child = spawn("sft", &wide("killed", task));
        std::thread::sleep(Duration::from_millis(400));
        child.kill().unwrap();
        child.wait().unwrap();
        let (code, _, stderr) = run("sft", &wide("killed", task));
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(world.outcome("killed").digest, world.outcome(name).digest);
        std::fs::remove_dir_all(world.dir.path().join("killed")).unwrap();
    }
}

#[test]
fn the_exported_model_is_the_trained_one() {
    use s3_model::{Decoder, TrainSequence};
    let world = World::start();
    let config =
        world.config("out", "steps: 2\nrollout: {questions: 4, samples: 4, batch: 16}\nalgorithm: {estimator: Ppo}");
    let (code, _, stderr) = run("export", &config);
    assert_eq!((code, stderr.contains("no checkpoint")), (64, true), "{stderr}");
    for command in ["train", "export"] {
        let (code, _, stderr) = run(command, &config);
        assert_eq!(code, 0, "{stderr}");
    }
    let root = world.dir.path();
    let load = |value: serde_json::Value| {
        let spec: s3_config::ModelSpec = serde_json::from_value(value).unwrap();
        Decoder::load(&spec).unwrap()
    };
    let adapter = root.join("out/adapter");
    let (with_adapter, codec) = load(serde_json::json!({"path": root.join("model"), "adapter": {"path": adapter}}));
    let (merged, same_codec) = load(serde_json::json!({"path": adapter.join("merged")}));
    let (base, _) = load(serde_json::json!({"path": root.join("model")}));
    let tokens = codec.chat(None, "what is fact 3").unwrap();
    assert_eq!(tokens, same_codec.chat(None, "what is fact 3").unwrap());
    let positions: Vec<usize> = (1..tokens.len()).collect();
    let score = |decoder: &Decoder| {
        let sequence = TrainSequence { tokens: tokens.clone(), positions: positions.clone() };
        decoder.score(&[sequence], 1.0).unwrap().logprob
    };
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let trained = score(&with_adapter);
    assert!(distance(&trained, &score(&merged)) < 1e-4);
    assert!(distance(&trained, &score(&base)) > 1e-3, "training moved the policy");
}
