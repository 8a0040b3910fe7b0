//! Guards, stop rules and a start from another training's checkpoint, with the real program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_artifacts::checkpoints;
use s3_telemetry::{ExitClass, Termination};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, run, spawn};

const TRAIN: &str = "rollout: {questions: 4, samples: 4, batch: 8, microBatch: 4, miniBatch: 8}";

fn message(folder: &Path) -> Termination {
    let text = std::fs::read_to_string(folder.join("message")).unwrap();
    Termination::parse(&text).unwrap_or_else(|| panic!("{text}"))
}

fn steps(folder: &Path) -> Vec<u32> {
    checkpoints(&folder.join("checkpoints")).unwrap().into_iter().map(|(step, _)| step).collect()
}

#[test]
fn patience_ends_a_training_and_a_checkpoint_is_gone_on_from() {
    let world = World::start();
    let root = world.dir.path().display().to_string();
    let probe =
        format!("{TRAIN}\nprobe: {{every: 1, datasets: [{{name: d, path: {root}/questions.jsonl}}], limit: 4}}");
    // a gain of 2 is never reached; patience is over at the latest at some step of many
    let stop = format!("steps: 40\n{probe}\nstop: {{targetGain: 2.0, patience: 2}}");
    let (code, _, stderr) = run("train", &world.attempt("stops", 1, &stop));
    assert_eq!(code, 0, "{stderr}");
    let outcome = world.outcome("stops");
    let ended = u32::try_from(outcome.summary["steps"].as_u64().unwrap()).unwrap();
    assert!((2..40).contains(&ended), "{}", outcome.summary);
    assert!(outcome.summary["stoppedEarly"].as_str().unwrap().starts_with("2 probes without"), "{}", outcome.summary);
    assert_eq!(steps(&world.dir.path().join("stops"))[0], ended, "the last step is kept");
    // killed anywhere it ends at the same step with the same digest
    world.behaviour.latency.store(20, Ordering::SeqCst);
    let killed = |epoch| world.attempt("stops-killed", epoch, &stop);
    for (epoch, delay) in [(1, 400), (2, 600), (3, 800)] {
        let mut child = spawn("train", &killed(epoch));
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    world.behaviour.latency.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &killed(4));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("stops-killed"), outcome);

    // another training goes on from a checkpoint of this one and ends where one that was never cut ends
    let whole = format!("steps: 5\n{TRAIN}");
    let (code, _, stderr) = run("train", &world.config("whole", &whole));
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = run("train", &world.attempt("first", 1, &format!("steps: 3\n{TRAIN}")));
    assert_eq!(code, 0, "{stderr}");
    for (name, from) in [
        ("folder", "first/checkpoints".to_owned()),
        ("one", {
            let all = checkpoints(&world.dir.path().join("first/checkpoints")).unwrap();
            all[0].1.strip_prefix(world.dir.path()).unwrap().display().to_string()
        }),
    ] {
        let (code, _, stderr) = run("train", &world.config(name, &format!("{whole}\nresumeFrom: {root}/{from}")));
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(world.outcome(name).digest, world.outcome("whole").digest);
    }
    let other = format!("{whole}\nresumeFrom: {root}/first/checkpoints");
    let other = world.config("other", &other);
    let text = std::fs::read_to_string(&other).unwrap().replace("rank: 4", "rank: 2");
    std::fs::write(&other, text).unwrap();
    let (code, _, stderr) = run("train", &other);
    assert!(code == 64 && stderr.contains("checkpoint is of another lora"), "{code} {stderr}");
    let none = world.config("none", &format!("{whole}\nresumeFrom: {root}/nowhere"));
    let (code, _, stderr) = run("train", &none);
    assert!(code == 69 && stderr.contains("there is no checkpoint to start from"), "{code} {stderr}");
}

#[test]
fn guards_warn_pause_and_go_back() {
    let world = World::start();
    let folder = |name: &str| world.dir.path().join(name);
    // the entropy of a random model is far above 0: every step is beyond the bound
    let guard = |action: &str, steps: u32| {
        format!("steps: 5\n{TRAIN}\nguards: [{{metric: Entropy, max: 0.0001, steps: {steps}, action: {action}}}]")
    };
    let (code, _, stderr) = run("train", &world.attempt("plain", 1, &format!("steps: 5\n{TRAIN}")));
    assert_eq!(code, 0, "{stderr}");
    let plain = world.outcome("plain").digest;

    let (code, _, stderr) = run("train", &world.attempt("warns", 1, &guard("Warn", 2)));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("warns").digest, plain, "a warning changes nothing");
    assert!(message(&folder("warns")).guard.unwrap().contains("above 0.0001 since step"));
    assert!(message(&folder("plain")).guard.is_none());

    // it pauses at step 3, though checkpoints are taken every second step, and goes on from there
    let (code, _, stderr) = run("train", &world.attempt("pauses", 1, &guard("Pause", 3)));
    assert_eq!(code, 78, "{stderr}");
    let said = message(&folder("pauses"));
    assert_eq!((said.class, said.checkpoint.unwrap().step), (Some(ExitClass::Paused), 3));
    let (code, _, stderr) = run("train", &world.attempt("pauses", 2, &guard("Pause", 3)));
    assert_eq!((code, world.outcome("pauses").digest), (0, plain.clone()), "{stderr}");

    let (code, _, stderr) = run("train", &world.attempt("none-before", 1, &guard("Rollback", 1)));
    assert_eq!(code, 78, "the first step is beyond the bound, and nothing is before it: {stderr}");
    assert!(stderr.contains("nothing to go back to"), "{stderr}");

    // from step 5 it goes back to the checkpoint of step 2, three times, and then pauses
    let rolls = |name: &str, epoch: u32| world.attempt(name, epoch, &guard("Rollback", 3));
    let (code, _, stderr) = run("train", &world.attempt("rolls", 1, &format!("steps: 2\n{TRAIN}")));
    assert_eq!(code, 0, "{stderr}");
    let (code, _, stderr) = run("train", &rolls("rolls", 2));
    assert_eq!(code, 78, "{stderr}");
    assert!(stderr.contains("not cured by going back"), "{stderr}");
    let aside: Vec<bool> =
        (1..=4).map(|n| folder("rolls").join(format!("state/training/rolled-back-{n}/done")).exists()).collect();
    assert_eq!(aside, [true, true, true, false]);
    let digest = |name: &str| message(&folder(name)).checkpoint.unwrap().digest;
    let undisturbed = digest("rolls");

    // killed anywhere it comes to the same checkpoint
    let (code, _, stderr) = run("train", &world.attempt("killed", 1, &format!("steps: 2\n{TRAIN}")));
    assert_eq!(code, 0, "{stderr}");
    world.behaviour.latency.store(30, Ordering::SeqCst);
    for (epoch, delay) in [(2, 300), (3, 500), (4, 700), (5, 900), (6, 1200)] {
        let mut child = spawn("train", &rolls("killed", epoch));
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    world.behaviour.latency.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &rolls("killed", 7));
    if code == 78 {
        assert_eq!(digest("killed"), undisturbed, "{stderr}");
    } else {
        // it had paused before a kill, and went on from there
        assert_eq!(code, 0, "{stderr}");
    }
}
