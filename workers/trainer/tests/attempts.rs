//! Several tries of one training: a newer one goes on where the older was, and the older publishes nothing more.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use s3_artifacts::{Head, load_manifest, read_head};
use s3_telemetry::{ExitClass, Termination};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use support::{World, run, spawn};

const TRAIN: &str = "steps: 5\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4, miniBatch: 8}";

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(300), "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn message(folder: &Path) -> Termination {
    let text = std::fs::read_to_string(folder.join("message")).unwrap();
    Termination::parse(&text).unwrap_or_else(|| panic!("{text}"))
}

/// What HEAD names, newest first.
fn published(checkpoints: &Path) -> Vec<u32> {
    read_head(checkpoints).unwrap().map(|head| head.published.iter().map(|p| p.step).collect()).unwrap_or_default()
}

#[test]
fn a_newer_attempt_fences_the_older_one_and_the_digest_stays() {
    let world = World::start();
    let (code, _, stderr) = run("train", &world.config("undisturbed", TRAIN));
    assert_eq!(code, 0, "{stderr}");
    let expected = world.outcome("undisturbed").digest;
    // The first attempt is frozen after its first checkpoint, as on a node that is cut off; one that came to its
    // end before that is followed by another.
    world.behaviour.latency.store(60, Ordering::SeqCst);
    let frozen = (0..20).find_map(|round| {
        let name = format!("tried-{round}");
        let folder = world.dir.path().join(&name);
        let mut zombie = spawn("train", &world.attempt(&name, 1, TRAIN));
        let checkpoints = folder.join("checkpoints");
        until("a checkpoint", || !published(&checkpoints).is_empty());
        let pid = Pid::from_raw(i32::try_from(zombie.id()).unwrap());
        kill(pid, Signal::SIGSTOP).unwrap();
        let ended = zombie.try_wait().unwrap().is_some() || folder.join("adapter").exists();
        if ended {
            zombie.kill().unwrap();
            zombie.wait().unwrap();
        }
        (!ended).then_some((name, folder, zombie, pid))
    });
    let (name, folder, zombie, pid) = frozen.expect("a process that is stopped in its work");
    let checkpoints = folder.join("checkpoints");
    // A newer one takes over elsewhere.
    let newer = Head::claim(&checkpoints, 2).unwrap();
    let before = newer.check().unwrap().published;
    kill(pid, Signal::SIGCONT).unwrap();
    let output = zombie.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(77), "{stderr}");
    let said = message(&folder);
    assert_eq!(said.class, Some(ExitClass::Fenced));
    assert!(said.message.unwrap().contains("attempt 1 is over"), "{stderr}");
    assert_eq!(newer.check().unwrap().published, before, "nothing more was published");
    assert!(!folder.join("result.json").exists() && !folder.join("adapter").exists());

    // Started again under its old number it does nothing at all; a newer attempt ends as if nothing had been.
    world.behaviour.latency.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &world.attempt(&name, 1, TRAIN));
    assert_eq!(code, 77, "{stderr}");
    let (code, _, stderr) = run("train", &world.attempt(&name, 3, TRAIN));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome(&name).digest, expected);
    let said = message(&folder);
    assert_eq!((said.class, said.digest), (None, Some(expected)));
    let checkpoint = said.checkpoint.unwrap();
    assert_eq!(checkpoint.step, 5);
    assert_eq!(load_manifest(&checkpoint.path, "checkpoint").unwrap().content_digest().unwrap(), checkpoint.digest);

    // What HEAD does not name is gone.
    assert_eq!(published(&checkpoints), [5, 4]);
    let folders = std::fs::read_dir(&checkpoints).unwrap().filter(|entry| {
        let name = entry.as_ref().unwrap().file_name().to_string_lossy().into_owned();
        name.starts_with("step-") || name.starts_with(".staging-")
    });
    assert_eq!(folders.count(), 2);
}

#[test]
fn a_failure_leaves_its_class_and_words() {
    let world = World::start();
    world.behaviour.failing.store(1, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &world.attempt("failing", 1, TRAIN));
    assert_eq!(code, 69, "{stderr}");
    let said = message(&world.dir.path().join("failing"));
    assert_eq!((said.class, said.digest), (Some(ExitClass::Unavailable), None));
    assert!(stderr.contains(&format!("error: {}", said.message.unwrap())), "{stderr}");
}
