//! Several replicas of the real `s3-trainer`, as threads and as processes: to the bit what one alone does, and never
//! a hang when one is lost.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use s3_artifacts::read_head;
use s3_rollout::record::read_training;
use s3_telemetry::{ExitClass, Termination};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{World, run, spawn};

/// Five micro-batches an optimiser step, so that no number of replicas divides them.
const RLOO: &str = "steps: 3\nrollout: {questions: 5, samples: 4, batch: 4, microBatch: 2, miniBatch: 10}\n\
    probe: {every: 2, limit: 4, exportBest: true, datasets: [{name: d, path: ROOT/questions.jsonl}]}\n";
/// A critic whose values are asked before the update, a reference, whitened advantages, several optimiser steps.
const PPO: &str = "algorithm: {estimator: Ppo, klCoefficient: 0.05, klPlacement: Reward, epochs: 2, \
    importance: {correction: TokenTruncated}}\n";

/// The configuration of one replica, with `team` as it stands in `runtime`.
fn config(world: &World, name: &str, replica: &str, more: &str, team: &str) -> PathBuf {
    let root = world.dir.path().display().to_string();
    let base = world.config(name, &more.replace("ROOT", &root));
    let text = std::fs::read_to_string(base).unwrap();
    assert!(text.contains("threads: 1}"));
    let told = format!("threads: 1, terminationMessage: {root}/{name}/message-{replica}{team}}}");
    // only the first one's outcome counts
    let text = text.replace("threads: 1}", &told).replace("result.json", &format!("result-{replica}.json"));
    let path = world.dir.path().join(format!("{name}-{replica}.yaml"));
    std::fs::write(&path, text).unwrap();
    std::fs::create_dir_all(world.dir.path().join(name)).unwrap();
    path
}

fn digest(world: &World, name: &str, replica: &str) -> String {
    let path = world.dir.path().join(name).join(format!("result-{replica}.json"));
    let outcome: s3_telemetry::Outcome = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    outcome.digest
}

/// Configurations of so many replicas over TCP. The ports lie below those that systems lend to outgoing connections.
fn replicas(world: &World, name: &str, more: &str, size: usize) -> Vec<PathBuf> {
    let first = 20_000 + (std::process::id() % 9_000) as u16;
    let free = (first..30_000).chain(20_000..first).filter_map(|port| TcpListener::bind(("127.0.0.1", port)).ok());
    let held: Vec<TcpListener> = free.take(size).collect();
    let members: Vec<String> = held.iter().map(|held| format!("'{}'", held.local_addr().unwrap())).collect();
    let members = members.join(", ");
    let token = world.dir.path().join("token");
    std::fs::write(&token, "between us\n").unwrap();
    let team = |rank: usize| {
        format!(
            ", team: {{rank: {rank}, members: [{members}], tokenFile: {}, togetherSeconds: 120, silenceSeconds: 30}}",
            token.display()
        )
    };
    (0..size).map(|rank| config(world, name, &rank.to_string(), more, &team(rank))).collect()
}

fn start(configs: &[PathBuf]) -> Vec<Child> {
    configs.iter().map(|config| spawn("train", config)).collect()
}

fn ends(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().unwrap()).collect()
}

fn all_well(outputs: &[Output]) {
    for output in outputs {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn message(world: &World, name: &str, replica: usize) -> Termination {
    let path = world.dir.path().join(name).join(format!("message-{replica}"));
    let text = std::fs::read_to_string(path).unwrap();
    Termination::parse(&text).unwrap_or_else(|| panic!("{text}"))
}

fn steps(folder: &Path) -> usize {
    read_training(&folder.join("state/training")).map(|steps| steps.len()).unwrap_or_default()
}

/// What replicas keep beside the journals of steps that are not brought together.
fn parts(folder: &Path) -> usize {
    let names = std::fs::read_dir(folder.join("state/training")).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().contains(".part-")).count()
}

#[test]
fn any_number_of_replicas_ends_with_the_digest_of_one() {
    let world = World::start();
    world.behaviour.failing.store(9, Ordering::SeqCst);
    for (algorithm, more) in [("rloo", RLOO.to_owned()), ("ppo", format!("{RLOO}{PPO}"))] {
        let alone = format!("{algorithm}-1");
        let (code, _, stderr) = run("train", &config(&world, &alone, "0", &more, ""));
        assert_eq!(code, 0, "{stderr}");
        let expected = digest(&world, &alone, "0");
        for threads in [2, 4] {
            let name = format!("{algorithm}-threads-{threads}");
            let team = format!(", team: {{local: {threads}}}");
            let (code, _, stderr) = run("train", &config(&world, &name, "0", &more, &team));
            assert_eq!(code, 0, "{stderr}");
            assert_eq!(digest(&world, &name, "0"), expected, "{name}");
        }
        world.behaviour.latency.store(20, Ordering::SeqCst);
        let name = format!("{algorithm}-tcp");
        all_well(&ends(start(&replicas(&world, &name, &more, 2))));
        world.behaviour.latency.store(0, Ordering::SeqCst);
        for replica in ["0", "1"] {
            assert_eq!(digest(&world, &name, replica), expected, "{name}: all say the same");
        }
        // adapter and journals are those of one, too
        let file = |name: &str| world.dir.path().join(name).join("adapter/adapter_model.safetensors");
        assert_eq!(std::fs::read(file(&name)).unwrap(), std::fs::read(file(&alone)).unwrap());
        assert_eq!(steps(&world.dir.path().join(&name)), 4);
    }
}

#[test]
fn a_killed_replica_ends_the_attempt_and_the_next_one_goes_on() {
    let world = World::start();
    let (code, _, stderr) = run("train", &config(&world, "whole", "0", RLOO, ""));
    assert_eq!(code, 0, "{stderr}");
    let expected = digest(&world, "whole", "0");
    world.behaviour.latency.store(40, Ordering::SeqCst);
    for (victim, size) in [(1, 2), (0, 2), (1, 3)] {
        let name = format!("killed-{victim}-of-{size}");
        let folder = world.dir.path().join(&name);
        let configs = replicas(&world, &name, RLOO, size);
        let mut children = start(&configs);
        // in the midst of a step: its journal has begun
        let begun = Instant::now();
        while steps(&folder) < 2 {
            assert!(begun.elapsed() < Duration::from_secs(120), "no step begins");
            std::thread::sleep(Duration::from_millis(2));
        }
        kill(Pid::from_raw(i32::try_from(children[victim].id()).unwrap()), Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        children.remove(victim).wait().unwrap();
        for (output, replica) in ends(children).iter().zip((0..size).filter(|replica| *replica != victim)) {
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(76), "{name}: {stderr}");
            assert!(stderr.contains("was lost") || stderr.contains("ended"), "{stderr}");
            assert_eq!(message(&world, &name, replica).class, Some(ExitClass::PeerLost));
        }
        assert!(killed.elapsed() < Duration::from_secs(60), "nobody waits for the dead");
        // the next attempt may have another number of replicas
        if victim == 0 {
            let (code, _, stderr) = run("train", &config(&world, &name, "0", RLOO, ", team: {local: 3}"));
            assert_eq!(code, 0, "{stderr}");
        } else {
            all_well(&ends(start(&configs)));
        }
        assert_eq!(digest(&world, &name, "0"), expected, "{name}");
        assert_eq!(parts(&folder), 0, "{name}: the first replica's journals hold all");
    }
}

#[test]
fn what_ends_one_ends_all_with_its_class() {
    let world = World::start();
    // a replica with another configuration is named
    let mut configs = replicas(&world, "differ", RLOO, 2);
    let text = std::fs::read_to_string(&configs[1]).unwrap();
    std::fs::write(&configs[1], text.replace("seed: 11", "seed: 12")).unwrap();
    for output in ends(start(&configs)) {
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{stderr}");
        assert!(stderr.contains("seed: was 11, is 12"), "{stderr}");
    }
    // an outage is one, whoever met it
    world.behaviour.failing.store(1, Ordering::SeqCst);
    configs = replicas(&world, "outage", RLOO, 2);
    for (replica, output) in ends(start(&configs)).iter().enumerate() {
        assert_eq!(output.status.code(), Some(69), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(message(&world, "outage", replica).class, Some(ExitClass::Unavailable));
    }
    // asked to stop, all stop together and save; the next run goes on
    world.behaviour.failing.store(0, Ordering::SeqCst);
    world.behaviour.latency.store(30, Ordering::SeqCst);
    configs = replicas(&world, "stopped", RLOO, 2);
    let children = start(&configs);
    let begun = Instant::now();
    while steps(&world.dir.path().join("stopped")) < 2 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no step begins");
        std::thread::sleep(Duration::from_millis(2));
    }
    kill(Pid::from_raw(i32::try_from(children[1].id()).unwrap()), Signal::SIGTERM).unwrap();
    for output in ends(children) {
        assert_eq!(output.status.code(), Some(75), "{}", String::from_utf8_lossy(&output.stderr));
    }
    world.behaviour.latency.store(0, Ordering::SeqCst);
    all_well(&ends(start(&configs)));
    let (code, _, stderr) = run("train", &config(&world, "free", "0", RLOO, ""));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(digest(&world, "stopped", "0"), digest(&world, "free", "0"));
    assert!(read_head(&world.dir.path().join("stopped/checkpoints")).unwrap().is_none());
}

/// Guards, milestones and returns to an earlier checkpoint, with two ranks as with one.
#[test]
fn replicas_pause_go_back_and_keep_searchers_as_one_does() {
    let world = World::start();
    let root = world.dir.path().display().to_string();
    let rollout = "rollout: {questions: 5, samples: 4, batch: 4, microBatch: 2, miniBatch: 10}\n";
    let ended = |name: &str, team: &str| {
        let kept = format!("{rollout}milestones: {{every: 2, dir: {root}/{name}/milestones}}\n");
        let (code, _, stderr) = run("train", &config(&world, name, "0", &format!("steps: 2\n{kept}"), team));
        assert_eq!(code, 0, "{stderr}");
        // the entropy of a random model is far above the bound, so it goes back from step 5 to step 2 until it pauses
        let guard = "guards: [{metric: Entropy, max: 0.0001, steps: 3, action: Rollback}]\n";
        let (code, _, stderr) = run("train", &config(&world, name, "0", &format!("steps: 5\n{kept}{guard}"), team));
        assert_eq!(code, 78, "{stderr}");
        assert!(stderr.contains("not cured by going back"), "{stderr}");
        assert!(world.dir.path().join(name).join("state/training/rolled-back-3/done").exists());
        let said = message(&world, name, 0);
        let checkpoint = said.checkpoint.unwrap();
        assert_eq!((said.class, checkpoint.step), (Some(ExitClass::Paused), 5));
        assert_eq!(said.milestones.keys().copied().collect::<Vec<_>>(), [2, 4]);
        (checkpoint.digest, said.milestones)
    };
    let one = ended("guarded-1", "");
    assert_eq!(ended("guarded-2", ", team: {local: 2}"), one);

    // another number of replicas goes on from a checkpoint of one
    let from = format!("steps: 6\n{rollout}resumeFrom: {root}/guarded-1/checkpoints\n");
    let digests = [("from-1", ""), ("from-3", ", team: {local: 3}")].map(|(name, team)| {
        let (code, _, stderr) = run("train", &config(&world, name, "0", &from, team));
        assert_eq!(code, 0, "{stderr}");
        digest(&world, name, "0")
    });
    assert_eq!(digests[0], digests[1]);

    let ahead = "steps: 2\nrollout: {questions: 2, samples: 4, batch: 4, microBatch: 2, staleness: 1}\n";
    let (code, _, stderr) = run("train", &config(&world, "ahead", "0", ahead, ", team: {local: 2}"));
    assert!(code == 64 && stderr.contains("rollout.staleness plays rounds ahead"), "{code} {stderr}");
}
