//! The real program over real sockets: resumed after SIGKILL, stopped by outages, refused inputs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../../tests/support/full_disk.rs"]
mod full_disk;
mod support;

use full_disk::full_disk;
use s3_evaluator::results::Results;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{QUESTIONS, World, program, run, spawn};

/// All but the one that is in the training file.
const ASKED: usize = QUESTIONS - 1;

fn kill_after(config: &Path, delay: u64) -> bool {
    let mut child = spawn(&["run"], config);
    std::thread::sleep(Duration::from_millis(delay));
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn a_killed_run_continues_to_the_same_digest() {
    let world = World::start();
    let (code, stdout, stderr) = run(&["run"], &world.config("whole", 1000, ""));
    assert_eq!(code, 0, "{stderr}");
    assert!(
        stderr.contains("minimum detectable effect") || stderr.contains("no difference can be relied on"),
        "{stderr}"
    );
    let whole = world.outcome("whole");
    assert_eq!(stdout.lines().last().unwrap(), format!("digest {}", whole.digest));

    world.behaviour.answered.lock().unwrap().clear();
    world.behaviour.latency.store(60, Ordering::SeqCst);
    let killed = world.config("killed", 1000, "");
    let interrupted = [150, 250, 350, 450, 550].into_iter().filter(|delay| kill_after(&killed, *delay)).count();
    assert!(interrupted >= 3, "the run is slow enough to be killed in the middle");
    let lock = std::fs::File::open(world.dir.path().join("killed/state/lock")).unwrap();
    lock.lock().unwrap();
    let (code, _, stderr) = run(&["run"], &killed);
    assert!(code == 69 && stderr.contains("already running"), "one process at a time: {code} {stderr}");
    drop(lock);
    let (code, _, stderr) = run(&["run"], &killed);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("killed").digest, whole.digest);
    // a chunk in flight when killed is asked again (the gateway's cache has its answers), nothing else is
    let asked: usize = world.behaviour.answered.lock().unwrap().values().sum();
    assert!(asked <= 4 * ASKED + 4 * interrupted, "{asked} answers for {interrupted} kills");

    // finished: nothing is asked again, and the digest stays
    world.behaviour.answered.lock().unwrap().clear();
    let (code, stdout, _) = run(&["run"], &killed);
    assert_eq!((code, stdout.lines().last().unwrap()), (0, format!("digest {}", whole.digest).as_str()));
    assert!(world.behaviour.answered.lock().unwrap().is_empty());
}

/// Kills runs at random points until so many were killed; every one ends with the same digest, and only what was under
/// way is asked again.
fn killed(kills_wanted: usize) {
    let world = World::start();
    let started = std::time::Instant::now();
    let (code, _, stderr) = run(&["run"], &world.config("whole", 1000, ""));
    assert_eq!(code, 0, "{stderr}");
    let whole = started.elapsed();
    let digest = world.outcome("whole").digest;
    world.behaviour.answered.lock().unwrap().clear();
    world.behaviour.latency.store(20, Ordering::SeqCst);
    let (mut kills, mut runs, mut random) = (0, 0, 3u64);
    while kills < kills_wanted {
        let name = format!("killed-{runs}");
        let config = world.config(&name, 1000, "");
        // up to twice the undisturbed time: answers take theirs
        for _ in 0..4 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let share = (random >> 40) as f64 / (1u64 << 24) as f64;
            kills += usize::from(kill_after(&config, whole.mul_f64(2.0 * share).as_millis() as u64));
        }
        let (code, _, stderr) = run(&["run"], &config);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(world.outcome(&name).digest, digest, "after {kills} kills in run {runs}");
        runs += 1;
        assert!(runs < 4 * kills_wanted, "the run ends before it can be killed");
    }
    let asked: usize = world.behaviour.answered.lock().unwrap().values().sum();
    assert!(asked <= runs * 4 * ASKED + 4 * kills, "{asked} answers in {runs} runs with {kills} kills");
}

#[test]
fn killed_anywhere_the_digest_is_the_same() {
    killed(6);
}

#[test]
#[ignore = "sixty kills; minutes"]
fn killed_sixty_times_the_digest_is_the_same() {
    killed(60);
}

#[test]
fn budgets_are_equal_and_every_question_counts() {
    let world = World::start();
    let (code, _, stderr) = run(&["run"], &world.config("e", 1000, ""));
    assert_eq!(code, 0, "{stderr}");
    let (results, _, summary) = Results::load(&world.dir.path().join("e/results")).unwrap();
    assert_eq!(results.questions.questions.len(), ASKED);
    assert_eq!((results.questions.in_training, results.questions.considered), (1, QUESTIONS));
    assert_eq!(results.rows.len(), 4 * ASKED, "the last question of the last chunk, and equal ids, too");
    let mut budgets = std::collections::BTreeSet::new();
    for place in 0..ASKED {
        let passages =
            |arm: &str| results.rows.iter().find(|row| row.place == place && row.arm == arm).unwrap().passages.len();
        assert_eq!(passages("same"), passages("s3"), "question {place}");
        assert_eq!((passages("rag"), passages("direct")), (3, 0));
        budgets.insert(passages("s3"));
    }
    assert!(budgets.len() > 1, "episodes differ: {budgets:?}");
    assert!(results.rows.iter().any(|row| row.searches > 0), "and some search");
    assert!(results.rows.iter().filter(|row| row.arm == "s3").all(|row| row.episode.is_some()));
    assert_eq!(summary.table.len(), 4);
    assert!(summary.table.iter().all(|row| row.n == ASKED));
    assert_eq!(summary.pairs.len(), 5, "three against rag, two more against same");
    let page = std::fs::read_to_string(world.dir.path().join("e/report.html")).unwrap();
    std::fs::remove_file(world.dir.path().join("e/report.html")).unwrap();
    let (code, _, stderr) = run(&["report"], &world.dir.path().join("e.yaml"));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(std::fs::read_to_string(world.dir.path().join("e/report.html")).unwrap(), page, "rendered again");
}

#[test]
fn an_outage_stops_the_run_and_is_never_a_wrong_answer() {
    let world = World::start();
    let (code, _, stderr) = run(&["run"], &world.config("whole", 12, ""));
    assert_eq!(code, 0, "{stderr}");
    world.behaviour.down_after.store(18, Ordering::SeqCst);
    let config = world.config("down", 12, "");
    let (code, stdout, stderr) = run(&["run"], &config);
    assert_eq!(code, 69, "{stdout} {stderr}");
    let line = stderr.lines().rev().find(|line| line.starts_with("error: ")).unwrap();
    assert!(line.contains("lost for the test") && line.contains("run again to continue"), "{line}");
    assert!(!world.dir.path().join("down/result.json").exists());
    world.behaviour.down_after.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run(&["run"], &config);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("down").digest, world.outcome("whole").digest);
}

#[test]
fn a_full_disk_ends_in_one_line_and_loses_nothing() {
    let world = World::start();
    let (code, _, stderr) = run(&["run"], &world.config("whole", 12, ""));
    assert_eq!(code, 0, "{stderr}");
    let config = world.config("full", 12, "");
    let mut ends = 0;
    // journals, then results, then the page do not fit; each run goes on from what the one before left
    for kib in [1, 4, 8, 16, 32, 64, 128, 256] {
        let output = full_disk(&program(&["run"], &config), kib).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), Some(74), "{kib} KiB: {stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{kib} KiB: {stderr}");
        ends += 1;
    }
    assert!(ends > 1, "the disk was never full");
    let (code, _, stderr) = run(&["run"], &config);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("full").digest, world.outcome("whole").digest);
}

#[test]
fn another_list_or_configuration_is_refused() {
    let world = World::start();
    assert_eq!(run(&["run"], &world.config("e", 8, "")).0, 0);
    let refused = |config: &Path, what: &str| {
        let (code, _, stderr) = run(&["run"], config);
        let line = stderr.lines().rev().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(code == 64 && line.contains(what), "{code} {stderr}");
    };
    refused(&world.config("e", 9, ""), "the list of questions: 8 with sha256");
    let path = world.config("e", 8, "");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("topK: 3}", "topK: 4}")).unwrap();
    refused(&path, "arm rag");
    std::fs::write(&path, text.replace("seed: 11", "seed: 11\nfilter: baselineWrong")).unwrap();
    refused(&path, "unknown field `filter`");

    let questions = world.dir.path().join("questions.jsonl");
    let rows = std::fs::read_to_string(&questions).unwrap();
    std::fs::write(&questions, rows.replacen("{\"answers\"", "{\"baseline_score\":0,\"answers\"", 1)).unwrap();
    refused(&world.config("filtered", 8, ""), "filtered by whether the baseline answers them");
    std::fs::write(&questions, rows.replacen("[\"answer", "\"answer", 1)).unwrap();
    refused(&world.config("broken", 8, ""), "line 1");
    std::fs::remove_file(&questions).unwrap();
    refused(&world.config("missing", 8, ""), "questions.jsonl");
}

#[test]
fn one_question_is_asked() {
    let world = World::start();
    let (code, stdout, stderr) = run(&["ask", "--question", "what is fact 3?"], &world.config("e", 8, ""));
    assert_eq!(code, 0, "{stderr}");
    let asked: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(asked["question"], "what is fact 3?");
    assert!(asked["answer"].is_string() && asked["failure"].is_null());
    assert_eq!(asked["turns"][0]["window"].as_array().unwrap().len(), 3);
    assert!(asked["seconds"].is_number() && asked["passages"].is_array());
}
