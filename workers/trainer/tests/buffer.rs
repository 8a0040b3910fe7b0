//! The difficulty buffer with the real program: what it asks, and that nothing that happens on the way changes it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::float_cmp)] // counts

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_rollout::record::{StepRecord, read_training};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, run, spawn};

fn config(world: &World, name: &str, more: &str) -> PathBuf {
    let path = world.config(name, more);
    let text = std::fs::read_to_string(&path).unwrap();
    let with = text.replace("corpus.jsonl}", "corpus.jsonl, difficultyBuffer: {capacity: 6, share: 0.5}}");
    assert_ne!(with, text);
    std::fs::write(&path, with).unwrap();
    path
}

/// The questions of each step, and those of them whose samples were right in part.
fn asked(steps: &[StepRecord]) -> Vec<(Vec<String>, BTreeSet<String>)> {
    let of = |step: &StepRecord| {
        let (mut order, mut mixed) = (Vec::new(), BTreeSet::new());
        for group in step.episodes.chunks(4) {
            let id = group[0].episode.question.id.clone();
            let known: Vec<bool> = group.iter().filter_map(|one| one.outcome.as_ref().unwrap().right()).collect();
            let right = known.iter().filter(|right| **right).count();
            if right > 0 && right < known.len() {
                mixed.insert(id.clone());
            }
            order.push(id);
        }
        (order, mixed)
    };
    steps[1..].iter().map(of).collect()
}

#[test]
fn half_of_a_step_still_teaches_whatever_happens_on_the_way() {
    let world = World::start();
    for (name, staleness) in [("now", 0), ("ahead", 1)] {
        let rollout = format!("rollout: {{questions: 4, samples: 4, batch: 8, microBatch: 4, staleness: {staleness}}}");
        let importance = if staleness > 0 { "algorithm: {importance: {correction: TokenTruncated}}\n" } else { "" };
        let train = format!("steps: 7\n{importance}{rollout}");
        let (code, _, stderr) = run("train", &config(&world, name, &train));
        assert_eq!(code, 0, "{stderr}");
        let digest = world.outcome(name).digest;
        let steps = read_training(&world.dir.path().join(name).join("state/training")).unwrap();
        let rounds = asked(&steps);
        // the rule once more, from what the journals say
        let (mut buffer, mut again): (Vec<String>, usize) = (Vec::new(), 0);
        let mut settled: Vec<Vec<String>> = Vec::new();
        let draw = |buffer: &mut Vec<String>| buffer.drain(..buffer.len().min(2)).collect::<Vec<_>>();
        for _ in 0..=staleness {
            settled.push(draw(&mut buffer));
        }
        for (at, (order, mixed)) in rounds.iter().enumerate() {
            let drawn = &settled[at];
            assert_eq!(order[..drawn.len()], drawn[..], "{name}: step {}", at + 1);
            assert_eq!(steps[at + 1].figures["bufferDrawn"], drawn.len() as f64);
            assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 4, "each once");
            again += drawn.len();
            buffer.retain(|id| !order.contains(id));
            buffer.extend(order.iter().filter(|id| mixed.contains(*id)).cloned());
            let over = buffer.len().saturating_sub(6);
            buffer.drain(..over);
            assert_eq!(steps[at + 1].figures["bufferQuestions"], buffer.len() as f64);
            settled.push(draw(&mut buffer));
        }
        assert!(again > 4, "{name}: {rounds:?}");

        let several = train.replace("batch: 8", "batch: 8, workers: 2");
        let (code, _, stderr) = run("train", &config(&world, &format!("{name}-threads"), &several));
        assert_eq!((code, world.outcome(&format!("{name}-threads")).digest), (0, digest.clone()), "{stderr}");
        world.behaviour.latency.store(15, Ordering::SeqCst);
        let killed = config(&world, &format!("{name}-killed"), &train);
        for delay in [250, 500, 800, 1000] {
            let mut child = spawn("train", &killed);
            std::thread::sleep(Duration::from_millis(delay));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        world.behaviour.latency.store(0, Ordering::SeqCst);
        let (code, _, stderr) = run("train", &killed);
        assert_eq!((code, world.outcome(&format!("{name}-killed")).digest), (0, digest.clone()), "{stderr}");
        // another training goes on from the middle of one to the same end
        let first = config(&world, &format!("{name}-first"), &train.replace("steps: 7", "steps: 4"));
        assert_eq!(run("train", &first).0, 0);
        let root = world.dir.path().display();
        let rest = format!("{train}\nresumeFrom: {root}/{name}-first/checkpoints");
        let (code, _, stderr) = run("train", &config(&world, &format!("{name}-rest"), &rest));
        assert_eq!((code, world.outcome(&format!("{name}-rest")).digest), (0, digest), "{stderr}");
    }
    // the buffer belongs to what a run is
    let (code, _, stderr) =
        run("train", &world.config("now", "steps: 7\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4}"));
    assert!(code == 64 && stderr.contains("difficultyBuffer"), "{code} {stderr}");
    let (code, _, stderr) = run(
        "train",
        &config(&world, "single", "steps: 1\nalgorithm: {estimator: Reinforce}\nrollout: {questions: 4, samples: 1}"),
    );
    assert!(code == 64 && stderr.contains("compares the samples"), "{code} {stderr}");
}
