//! Every wrong input ends in one clear line, before anything is started, and loses nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{MANIFEST, World, digest, errors};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

/// Runs and returns the only error line; nothing may have been started.
fn refused(world: &World, code: i32, more: &[&str]) -> String {
    let output = world.s3(&[&World::RUN[..], more].concat());
    let lines = errors(&output);
    assert_eq!(output.status.code(), Some(code), "{lines:?}");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(world.events(), [], "nothing is started");
    lines.into_iter().next().unwrap()
}

#[test]
fn a_missing_file_is_named_with_its_field() {
    let world = World::new();
    std::fs::remove_file(world.path("data/train.jsonl")).unwrap();
    let line = refused(&world, 64, &[]);
    assert!(line.contains("S3TrainingJob/small data.datasets[train].uri") && line.contains("no such file"), "{line}");
    // Put right, it runs.
    std::fs::write(world.path("data/train.jsonl"), "a").unwrap();
    digest(&world.run());
}

#[test]
fn a_wrong_digest_shows_both() {
    let world = World::new();
    std::fs::write(world.path("data/corpus.jsonl"), "tampered").unwrap();
    let line = refused(&world, 64, &[]);
    assert!(line.contains("has sha256") && line.contains("fetch the file again"), "{line}");
}

#[test]
fn a_managed_model_server_is_for_clusters() {
    let world = World::new();
    let built_in = "      builtIn:\n        model:\n          uri: pvc://data/model.gguf\n";
    assert!(MANIFEST.contains(built_in));
    world.manifest(&MANIFEST.replace(built_in, "      managed:\n        model:\n          uri: hf://org/model\n"));
    let line = refused(&world, 64, &[]);
    assert!(line.contains("served in clusters only") && line.contains("openAiCompatible.endpoint"), "{line}");
}

#[test]
fn an_unknown_field_is_named() {
    let world = World::new();
    world.manifest(&MANIFEST.replace("  steps: 2", "  step: 2"));
    let line = refused(&world, 64, &[]);
    assert!(line.contains("S3TrainingJob/small") && line.contains("step"), "{line}");
}

#[test]
fn a_missing_manifest_volume_reference_or_program_is_named() {
    let world = World::new();
    let line = errors(&world.s3(&["run", "none.yaml"])).join("\n");
    assert_eq!(line, "none.yaml: no such file or folder");
    let line = errors(&world.s3(&["run", "run.yaml"])).join("\n");
    assert!(line.contains("add --volume data=DIR"), "{line}");
    let line = errors(&world.s3(&["run", "run.yaml", "--volume", "data=nowhere"])).join("\n");
    assert!(line.starts_with("--volume data=nowhere: "), "{line}");
    world.manifest(&MANIFEST.replace("    indexRef:\n      name: small", "    indexRef:\n      name: other"));
    let line = refused(&world, 64, &[]);
    assert!(line.contains("RetrieverIndex/other"), "{line}");
    world.manifest(MANIFEST);
    std::fs::remove_file(world.path("bin/s3-trainer")).unwrap();
    let line = refused(&world, 64, &[]);
    assert!(line.contains("cargo build -p s3-trainer"), "{line}");
}

#[test]
fn a_port_in_use_is_refused_when_asked_for_and_avoided_otherwise() {
    let world = World::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let line = refused(&world, 64, &["--port", &format!("small-retriever/http={port}")]);
    assert!(line.contains("choose a free port"), "{line}");
    let line = refused(&world, 64, &["--port", "small-retriever/htp=4000"]);
    assert!(line.contains("small-retriever/http"), "{line}");
    drop(taken);

    digest(&world.run());
    let ports = |world: &World| -> std::collections::BTreeMap<String, u16> {
        serde_json::from_str(&common::read(&world.path(".s3/run/ports.json"))).unwrap()
    };
    let before = ports(&world);
    let _taken = TcpListener::bind(("127.0.0.1", before["small-retriever/grpc"])).unwrap();
    digest(&world.run());
    let after = ports(&world);
    assert_ne!(before["small-retriever/grpc"], after["small-retriever/grpc"]);
    assert_eq!(before["small-retriever/http"], after["small-retriever/http"]);
}

const BUILT_IN: &str = "      builtIn:\n        model:\n          uri: pvc://data/model.gguf";

fn with_endpoint(address: &str) -> String {
    MANIFEST.replace(
        BUILT_IN,
        &format!(
            "      openAiCompatible:\n        endpoint: {address}\n        model: m\n        apiKeySecretRef: {{name: llm, key: token}}"
        ),
    )
}

#[test]
fn a_dead_generator_endpoint_and_a_missing_secret_are_named() {
    let world = World::new();
    // Bound and not listening: it refuses, and nobody else gets its port.
    let mute = tokio::net::TcpSocket::new_v4().unwrap();
    mute.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let closed = mute.local_addr().unwrap();
    world.manifest(&with_endpoint(&format!("http://{closed}/v1")));
    let line = refused(&world, 64, &[]);
    assert!(line.contains("--secret llm/token=env:VARIABLE"), "{line}");
    std::fs::write(world.path("key"), "k").unwrap();
    let line = refused(&world, 69, &["--secret", "llm/token=file:key"]);
    assert!(line.contains("Connection refused") && line.contains("openAiCompatible.endpoint"), "{line}");

    // An endpoint that lives, and the secret from a manifest.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let secret = "---\napiVersion: v1\nkind: Secret\nmetadata: {name: llm}\nstringData: {token: t0p}\n";
    world.manifest(&(with_endpoint(&format!("http://{address}/v1")) + secret));
    digest(&world.run());
    let key = world.path(".s3/run/secrets/llm/token");
    assert_eq!(common::read(&key), "t0p");
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn all_problems_are_told_at_once() {
    let world = World::new();
    std::fs::remove_file(world.path("data/train.jsonl")).unwrap();
    std::fs::remove_file(world.path("data/test.jsonl")).unwrap();
    let output = world.run();
    assert_eq!(errors(&output).len(), 2, "{:?}", errors(&output));
}
