//! The newest searcher of a training that goes on: taken once, named by its digest, and kept.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use s3_artifacts::{CHECKPOINT_KIND, Head, POLICY_FILE, Published, publish_folder};
use s3_config::{LoraConfig, ModelSpec};
use s3_evaluator::results::Results;
use s3_model::{Decoder, save_tensors};
use serde_json::json;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, run, spawn};

/// What a training leaves after a step; its adapter as it would be exported beside.
fn checkpoint(world: &World, head: &Head, step: u32) {
    let root = world.dir.path();
    let spec: ModelSpec = serde_json::from_value(json!({"path": root.join("model"), "device": "Cpu"})).unwrap();
    let (mut decoder, _) = Decoder::load(&spec).unwrap();
    decoder.attach_lora(&LoraConfig { rank: 4, alpha: 64.0 }, u64::from(step)).unwrap();
    // a fresh adapter changes nothing: give it something to say
    for (name, tensor) in decoder.trained_tensors() {
        if name.ends_with("lora_B") {
            let moved = (tensor.ones_like().unwrap() * (f64::from(step) * 0.02)).unwrap();
            decoder.set_trained(&name, moved).unwrap();
        }
    }
    decoder.save_adapter(&root.join(format!("exported-{step}")), false).unwrap();
    let (staging, dir) = (root.join("staging"), root.join("checkpoints"));
    decoder.save_adapter_config(&staging).unwrap();
    save_tensors(&staging.join(POLICY_FILE), &decoder.trained_tensors()).unwrap();
    let name = format!("step-{step:06}-e1.x");
    let identity = json!({"run": {}, "step": step});
    let manifest = publish_folder(&staging, &dir.join(&name), CHECKPOINT_KIND, 1, identity, json!({})).unwrap();
    let one = Published { name, step, digest: manifest.content_digest().unwrap() };
    head.publish(|list| *list = vec![one.clone()]).unwrap();
}

fn config(world: &World, name: &str, adapter: &str) -> std::path::PathBuf {
    let path = world.config(name, 12, "");
    let text = std::fs::read_to_string(&path).unwrap();
    let root = world.dir.path().display();
    let with = format!("searcher: {{path: {root}/model, device: Cpu, adapter: {adapter}}}");
    std::fs::write(&path, text.replace(&format!("searcher: {{path: {root}/model, device: Cpu}}"), &with)).unwrap();
    path
}

#[test]
fn the_newest_searcher_is_taken_once_and_kept() {
    let world = World::start();
    let (root, dir) = (world.dir.path().display().to_string(), world.dir.path().join("checkpoints"));
    let latest = format!("{{path: {root}/checkpoints, latest: true}}");
    let early = config(&world, "early", &latest);
    let (code, _, stderr) = run(&["run"], &early);
    assert!(code == 69 && stderr.contains("no checkpoint is published there yet"), "{code} {stderr}");

    let head = Head::claim(&dir, 1).unwrap();
    checkpoint(&world, &head, 2);
    let (code, _, stderr) = run(&["run"], &config(&world, "exported", &format!("{{path: {root}/exported-2}}")));
    assert_eq!(code, 0, "{stderr}");
    // killed in the middle, after which the training goes on and lets go of what was taken
    world.behaviour.latency.store(80, Ordering::SeqCst);
    let path = config(&world, "latest", &latest);
    let mut child = spawn(&["run"], &path);
    let taken = world.dir.path().join("latest/state/pinned/0/manifest.json");
    for _ in 0..3000 {
        if taken.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(taken.exists());
    child.kill().unwrap();
    child.wait().unwrap();
    world.behaviour.latency.store(0, Ordering::SeqCst);
    checkpoint(&world, &head, 4);
    std::fs::remove_dir_all(dir.join("step-000002-e1.x")).unwrap();
    let (code, _, stderr) = run(&["run"], &path);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("latest").digest, world.outcome("exported").digest);
    let adapter = |name: &str| {
        let (_, identity, _) = Results::load(&world.dir.path().join(name).join("results")).unwrap();
        identity["arm s3"]["adapter"].as_str().unwrap().to_owned()
    };
    assert_eq!(adapter("latest"), adapter("exported"), "the result names it by its digest");

    // another evaluation, begun now, takes what is the newest now
    let (code, _, stderr) = run(&["run"], &config(&world, "later", &latest));
    assert_eq!(code, 0, "{stderr}");
    assert_ne!(adapter("later"), adapter("latest"));
    assert!(Path::new(&world.dir.path().join("later/state/pinned/0")).exists());
}
