//! Searchers that are kept for evaluations: as many as the schedule says, however few checkpoints are kept, and the
//! same after any number of kills.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_artifacts::{checkpoints, load_manifest};
use s3_telemetry::Termination;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, run, spawn};

const TRAIN: &str = "steps: 5\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4, miniBatch: 8}";

fn told(folder: &Path) -> BTreeMap<u32, String> {
    let text = std::fs::read_to_string(folder.join("message")).unwrap();
    Termination::parse(&text).unwrap_or_else(|| panic!("{text}")).milestones
}

fn kept(folder: &Path, step: u32) -> String {
    let manifest = load_manifest(&folder.join(format!("milestones/step-{step:06}")), "adapter").unwrap();
    assert_eq!(manifest.identity["step"], step);
    manifest.files["adapter_model.safetensors"].clone()
}

#[test]
fn searchers_are_kept_and_survive_kills() {
    let world = World::start();
    let (code, _, stderr) = run("train", &world.config("plain", TRAIN));
    assert_eq!(code, 0, "{stderr}");
    let digest = world.outcome("plain").digest;

    let milestones = |name: &str| {
        format!("{TRAIN}\nmilestones: {{every: 2, dir: {}/{name}/milestones}}", world.dir.path().display())
    };
    let folder = |name: &str| world.dir.path().join(name);
    let (code, _, stderr) = run("train", &world.attempt("whole", 1, &milestones("whole")));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("whole").digest, digest, "what is kept changes nothing of what is learned");
    let whole = told(&folder("whole"));
    assert_eq!(whole, BTreeMap::from([(2, kept(&folder("whole"), 2)), (4, kept(&folder("whole"), 4))]));
    assert_ne!(whole[&2], whole[&4], "the policy moves");
    let left: Vec<u32> = checkpoints(&folder("whole/checkpoints")).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(left, [5, 4], "the checkpoint of step 2 has gone, its searcher has not");

    world.behaviour.latency.store(40, Ordering::SeqCst);
    let mut epoch = 0;
    for delay in [300, 500, 700, 900, 1100, 1300] {
        epoch += 1;
        let mut child = spawn("train", &world.attempt("killed", epoch, &milestones("killed")));
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    world.behaviour.latency.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run("train", &world.attempt("killed", epoch + 1, &milestones("killed")));
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((world.outcome("killed").digest, told(&folder("killed"))), (digest, whole.clone()));

    // one that is damaged is made again where its step is the newest
    std::fs::write(folder("killed/milestones/step-000004/adapter_model.safetensors"), b"lost").unwrap();
    let grown = milestones("killed").replace("steps: 5", "steps: 6");
    let (code, _, stderr) = run("train", &world.attempt("killed", epoch + 2, &grown));
    assert_eq!(code, 0, "{stderr}");
    let told = told(&folder("killed"));
    assert_eq!(told.keys().copied().collect::<Vec<_>>(), [2, 6], "a damaged one is told of no more");
    assert_eq!(told[&2], whole[&2]);
}
