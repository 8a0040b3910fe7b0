//! Episodes that servers write: the same numbers as in this process, by the policy that learns, through their failures.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "support/engine.rs"]
mod server;
#[allow(dead_code)] // each test file uses its part
mod support;

use s3_artifacts::Journal;
use s3_rollout::record::{EpisodeRecord, StepEntry, step_journal};
use s3_telemetry::ExitClass;
use server::Server;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, run, spawn};

/// A training whose episodes servers write.
fn train(world: &World, servers: &[&str], name: &str, more: &str) -> String {
    let root = world.dir.path().display();
    let all = servers.iter().map(|address| format!("'{address}'")).collect::<Vec<_>>().join(", ");
    format!(
        "steps: 4\ndeterminism: Relaxed\n\
         rollout: {{questions: 4, samples: 4, batch: 8, microBatch: 4, \
         engine: {{endpoints: [{all}], dir: {root}/{name}/policies, deadlineMs: 20000, attempts: 4}}}}\n{more}"
    )
}

/// What the journal holds of a step.
fn entries(world: &World, name: &str, step: u32) -> Vec<(String, StepEntry)> {
    let path = step_journal(&world.dir.path().join(name).join("state/training"), step);
    Journal::<StepEntry>::read(&path).unwrap().into_iter().collect()
}

fn figure(world: &World, name: &str, step: u32, figure: &str) -> f64 {
    let figures = entries(world, name, step).into_iter().find_map(|(key, entry)| match entry {
        StepEntry::Figures { figures } if key == "figures" => Some(figures),
        _ => None,
    });
    figures.unwrap()[figure]
}

fn episodes(world: &World, name: &str, step: u32, prefix: &str) -> Vec<EpisodeRecord> {
    let mut found: Vec<EpisodeRecord> = entries(world, name, step)
        .into_iter()
        .filter(|(key, _)| key.starts_with(prefix))
        .filter_map(|(_, entry)| match entry {
            StepEntry::Episodes { episodes } => Some(episodes),
            _ => None,
        })
        .flatten()
        .collect();
    found.sort_by(|a, b| (&a.question.id, a.sample).cmp(&(&b.question.id, b.sample)));
    found
}

fn left(folder: &Path) -> usize {
    std::fs::read_dir(folder).unwrap().count()
}

#[test]
fn servers_write_by_the_policy_that_learns() {
    let world = World::start();
    let servers = [Server::start(&world), Server::start(&world)];
    let addresses: Vec<&str> = servers.iter().map(|server| server.address.as_str()).collect();
    let root = world.dir.path().display().to_string();
    let probe = format!("probe: {{every: 1, datasets: [{{name: d, path: {root}/questions.jsonl}}], limit: 6}}");
    let (code, _, stderr) = run("train", &world.config("served", &train(&world, &addresses, "served", &probe)));
    assert_eq!(code, 0, "{stderr}");
    for step in 1..=4 {
        // on f32, what is sampled by another process is what is trained, though every step's policy is another one
        let kl = figure(&world, "served", step, "mismatchKl");
        assert!(kl <= 1e-8, "step {step}: mismatch KL {kl}");
    }
    let moved = (1..=4).filter(|step| figure(&world, "served", *step, "gradNorm") > 0.0).count();
    assert!(moved >= 2, "{moved} of 4 updates changed the policy");
    for server in &servers {
        // the first policy and one a change, each loaded once by each server; the last ones stay
        let names = server.state.names.lock().unwrap().clone();
        let distinct: BTreeSet<&String> = names.iter().collect();
        assert!(names.len() == distinct.len() && (moved + 1..=5).contains(&names.len()), "{names:?}");
        assert_eq!(server.state.most.load(Ordering::SeqCst), 3, "those before are unloaded");
        assert!(server.state.turns.load(Ordering::SeqCst) > 0, "questions are shared out");
    }
    assert_eq!(left(&world.dir.path().join("served/policies/rank-0")), 2);
}

#[test]
fn greedy_episodes_are_those_of_this_process() {
    let world = World::start();
    let server = Server::start(&world);
    let root = world.dir.path().display().to_string();
    let probe = format!("probe: {{every: 9, datasets: [{{name: d, path: {root}/questions.jsonl}}], limit: 8}}");
    let one = |text: String| text.replace("steps: 4", "steps: 1");
    let (code, _, stderr) =
        run("train", &world.config("there", &one(train(&world, &[&server.address], "there", &probe))));
    assert_eq!(code, 0, "{stderr}");
    let here = format!("steps: 1\nrollout: {{questions: 4, samples: 4, batch: 8, microBatch: 4}}\n{probe}");
    let (code, _, stderr) = run("train", &world.config("here", &here));
    assert_eq!(code, 0, "{stderr}");
    let (here, there) = (episodes(&world, "here", 0, "probe/"), episodes(&world, "there", 0, "probe/"));
    assert_eq!((here.len(), there.len()), (8, 8));
    for (a, b) in here.iter().zip(&there) {
        assert_eq!((&a.question.id, &a.tokens, &a.selected), (&b.question.id, &b.tokens, &b.selected));
        assert!(a.logprobs.iter().zip(&b.logprobs).all(|(x, y)| (x - y).abs() <= 1e-5));
    }
}

#[test]
fn a_server_that_stays_behind_is_seen() {
    let world = World::start();
    let server = Server::start(&world);
    server.state.stale.store(true, Ordering::SeqCst);
    let guard = "guards: [{metric: MismatchKl, max: 0.000001, steps: 2, action: Warn}]";
    let (code, _, stderr) = run("train", &world.config("stale", &train(&world, &[&server.address], "stale", guard)));
    assert_eq!(code, 0, "{stderr}");
    // the first round is of the first policy; afterwards the measure tells
    assert!(figure(&world, "stale", 1, "mismatchKl") <= 1e-8);
    assert!(figure(&world, "stale", 4, "mismatchKl") > 1e-6, "{}", figure(&world, "stale", 4, "mismatchKl"));
    assert!(stderr.contains("mismatch KL"), "{stderr}");
}

#[test]
fn failures_of_servers_cost_no_episode() {
    let world = World::start();
    let (one, other) = (Server::start(&world), Server::start(&world));
    // overloaded now and then, started again in the middle, and an address where nothing answers
    one.state.failing.store(7, Ordering::SeqCst);
    other.state.forgets.store(20, Ordering::SeqCst);
    *one.state.key.lock().unwrap() = Some("the-key".into());
    *other.state.key.lock().unwrap() = Some("the-key".into());
    let key = world.dir.path().join("key");
    std::fs::write(&key, "the-key\n").unwrap();
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        format!("http://{}/v1", listener.local_addr().unwrap())
    };
    let servers = [one.address.as_str(), &nobody, &other.address];
    let text = train(&world, &servers, "faults", "");
    let text = text.replace("attempts: 4", &format!("attempts: 4, apiKeyFile: {}", key.display()));
    let (code, _, stderr) = run("train", &world.config("faults", &text));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("faults").summary["masked"].as_f64(), Some(0.0), "{}", world.outcome("faults").summary);
    assert!(stderr.contains("overloaded for the test") && stderr.contains("cannot connect"), "{stderr}");
    assert!(!stderr.contains("the-key"));
    let loads = other.state.names.lock().unwrap().clone();
    let again = loads.windows(2).any(|pair| pair[0] == pair[1]);
    assert!(again, "what was forgotten is loaded again: {loads:?}");

    // with a wrong key it ends at once, and says so
    std::fs::write(&key, "another").unwrap();
    let text = train(&world, &[&one.address], "refused", "");
    let text = text.replace("attempts: 4", &format!("attempts: 4, apiKeyFile: {}", key.display()));
    let (code, _, stderr) = run("train", &world.config("refused", &text));
    assert_eq!(code, i32::from(ExitClass::Input.code()), "{stderr}");
    assert!(stderr.contains("status 401"), "{stderr}");

    // with nobody there it can be tried again later
    let (code, _, stderr) = run("train", &world.config("nobody", &train(&world, &[&nobody], "nobody", "")));
    assert_eq!(code, i32::from(ExitClass::Unavailable.code()), "{stderr}");
    assert!(stderr.contains("rollout-engine at"), "{stderr}");

    // without run-time adapters the message says how they are had
    let plain = Server::start(&world);
    plain.state.closed.store(true, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &world.config("plain", &train(&world, &[&plain.address], "plain", "")));
    assert_eq!(code, i32::from(ExitClass::Input.code()), "{stderr}");
    assert!(stderr.contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"), "{stderr}");
}

#[test]
fn a_killed_training_goes_on_and_leaves_no_policy_behind() {
    let world = World::start();
    let server = Server::start(&world);
    let config = world.config("killed", &train(&world, &[&server.address], "killed", ""));
    world.behaviour.latency.store(30, Ordering::SeqCst);
    let mut child = spawn("train", &config);
    // killed once it has played something
    while server.state.turns.load(Ordering::SeqCst) < 20 {
        assert!(child.try_wait().unwrap().is_none(), "it ended first");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = server.state.names.lock().unwrap().clone();
    let (code, _, stderr) = run("train", &config);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("killed").summary["steps"].as_u64(), Some(4));
    assert!(left(&world.dir.path().join("killed/policies/rank-0")) <= 2);
    assert!(server.state.most.load(Ordering::SeqCst) <= 3, "those of the killed process were unloaded");
    assert!(!before.is_empty());
}

#[test]
fn what_an_engine_cannot_keep_is_refused_at_the_start() {
    let world = World::start();
    let refused = |name: &str, from: &str, to: &str, says: &str| {
        let text = train(&world, &["http://127.0.0.1:9/v1"], name, "").replace(from, to);
        let (code, _, stderr) = run("train", &world.config(name, &text));
        assert_eq!(code, i32::from(ExitClass::Input.code()), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    };
    refused("bitwise", "Relaxed", "Bitwise", "determinism Bitwise cannot hold");
    refused("hot", "samples: 4", "samples: 4, temperature: 0.7", "rollout.temperature to 1");
    refused("full", "steps: 4", "steps: 4\nfull: true", "it is handed adapters");
    refused("address", "http://127.0.0.1:9/v1", "ftp://somewhere/v1", "another scheme");
}
