//! FAISS' indices: imported as they were published, served, and what its process' end does to a server: nothing but the
//! searches that it was to answer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, World, read_json, run};
use s3_faiss::{Child, Patience};
use s3_retriever::dense::DenseIndex;
use s3_retriever::index::Index;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What somebody else built with FAISS over the vectors of an index.
fn published(dense: &DenseIndex, factory: &str, path: &Path) -> Vec<u8> {
    let patience = Patience::of(Duration::from_secs(100));
    let rows: Vec<f32> = (0..dense.len()).flat_map(|at| dense.vector(at)).collect();
    let mut child = Child::create(dense.dimensions(), factory, None, 1, patience).unwrap();
    if !child.about().trained {
        child.train([&rows[..]], patience).unwrap();
    }
    child.add(&rows, patience).unwrap();
    child.write(path, patience).unwrap();
    std::fs::read(path).unwrap()
}

fn import(world: &World, parts: &[PathBuf], sha256: &str, corpus: &str) -> (i32, String) {
    let mut config = world.build_config();
    config["dense"]["index"] = json!({"kind": "Imported", "recallTarget": 0.9});
    config["dense"]["vectors"] = json!({"path": parts[0], "parts": parts[1..], "sha256": sha256, "verify": 30});
    config["corpus"]["path"] = json!(world.path(corpus));
    let path = world.save("import.yaml", &config);
    run(&["build", "--config", path.to_str().unwrap()])
}

#[test]
fn published_indices_of_any_kind_are_imported_and_searched() {
    let world = World::new(600);
    world.build();
    let built = Index::open_current(&world.path("index")).unwrap().dense.unwrap();
    let queries: Vec<Vec<f32>> = (0..40).map(|at| built.vector(at * 13)).collect();
    let expected = built.search(&queries, 5, true).unwrap();
    let parts = ["part_aa", "part_ab"].map(|name| world.path(name));
    common::write_corpus(&world.path("longer.jsonl"), 601);
    common::write_corpus(&world.path("other.jsonl"), 600);
    let text = std::fs::read_to_string(world.path("other.jsonl")).unwrap();
    // the same passages in another order
    let turned: Vec<&str> = text.lines().rev().collect();
    std::fs::write(world.path("other.jsonl"), turned.join("\n") + "\n").unwrap();
    for (factory, exact, kept) in [
        ("IVF12,Flat", true, true),
        ("HNSW16,Flat", true, true),
        ("IVF4,PQ16np", false, true),
        ("SQ8", false, true),
        // read by this project's own reader, and searched exactly
        ("Flat", true, false),
    ] {
        let file = published(&built, factory, &world.path("published.index"));
        let sha256 = s3_artifacts::digest_bytes(&file);
        for (part, name) in file.chunks(file.len() / 2 + 1).zip(&parts) {
            std::fs::write(name, part).unwrap();
        }
        let (code, error) = import(&world, &parts, &sha256, "corpus.jsonl");
        assert_eq!(code, 0, "{factory}: {error}");
        let index = Index::open_current(&world.path("index")).unwrap();
        assert_eq!(world.path("index").join(&index.digest).join("vectors.faiss").exists(), kept, "{factory}");
        // the few passages of this world are learnt by heart, and 8 bits are enough for it
        assert!(index.fidelity.is_none(), "{factory}");
        let dense = index.dense.unwrap();
        let found = dense.search(&queries, 5, false).unwrap();
        let same = found.iter().zip(&expected).filter(|(a, b)| a[0].position == b[0].position).count();
        assert!(same >= if exact { 38 } else { 5 }, "{factory}: {same} of 40");
        if exact {
            let scores = found.iter().zip(&expected).filter(|(a, b)| a[0].score.to_bits() == b[0].score.to_bits());
            assert!(scores.count() >= 38, "{factory}");
        }
        for (parts, sha256, corpus, says) in [
            (&parts[..1], sha256.as_str(), "corpus.jsonl", "name all its parts"),
            (&parts[..], &"0".repeat(64), "corpus.jsonl", "sha256 of all parts is"),
            (&parts[..], &sha256, "longer.jsonl", "600 vectors for 601 passages"),
            (&parts[..], &sha256, "other.jsonl", "encoder"),
        ] {
            std::fs::remove_dir_all(world.path("index")).unwrap();
            let (code, error) = import(&world, parts, sha256, corpus);
            let cut = parts.len() == 1 && kept && error.contains("sha256 of all parts is");
            assert!(code == 64 && (cut || error.contains(says)), "{factory}, {says}: {error}");
        }
    }
    // damaged where the sha256 was taken: FAISS may crash on it, the build says so and publishes nothing
    let file = published(&built, "HNSW16,Flat", &world.path("published.index"));
    for round in 0..12 {
        let mut damaged = file.clone();
        let at = if round < 4 { 20 + 9 * round } else { file.len() * round / 13 };
        let end = (at + 300).min(file.len());
        damaged[at..end].fill(0x7d);
        std::fs::write(&parts[0], &damaged).unwrap();
        let (code, error) = import(&world, &parts[..1], &s3_artifacts::digest_bytes(&damaged), "corpus.jsonl");
        assert!(matches!(code, 0 | 64 | 69 | 75), "{round}, {code}: {error}");
        assert_eq!(code == 0, world.path("index/CURRENT").exists(), "{round}: {error}");
        let _ = std::fs::remove_dir_all(world.path("index"));
    }
}

/// Ids of the processes that a process has started.
fn children(parent: u32) -> Vec<i32> {
    let list = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut found: Vec<i32> = list.split_whitespace().map(|id| id.parse().unwrap()).collect();
    if found.is_empty() {
        // started by another thread than the first
        for thread in std::fs::read_dir(format!("/proc/{parent}/task")).unwrap() {
            let list = std::fs::read_to_string(thread.unwrap().path().join("children")).unwrap_or_default();
            found.extend(list.split_whitespace().map(|id| id.parse::<i32>().unwrap()));
        }
    }
    found
}

#[test]
fn the_process_may_end_and_the_server_goes_on() {
    let world = World::new(300);
    let mut config = world.build_config();
    config["dense"]["index"] = json!({"kind": "Hnsw"});
    let path = world.save("build.yaml", &config);
    let (code, error) = run(&["build", "--config", path.to_str().unwrap()]);
    assert_eq!(code, 0, "{error}");
    let summary = read_json(&world.path("build-result.json"))["summary"].clone();
    assert!(summary["effort"].as_u64().unwrap() >= 32 && summary["recall"].as_f64().unwrap() >= 0.95, "{summary}");

    let mut config = world.serve_config();
    config["method"] = json!("Dense");
    config["cacheEntries"] = json!(0);
    let served = Served::start(&world, &config);
    let question = json!({"queries": ["river actor"], "topk": 4, "return_scores": true});
    let (status, first) = served.retrieve(&question);
    assert_eq!(status, 200, "{first}");
    let kill = || {
        let ids = children(served.child.id());
        assert_eq!(ids.len(), 1);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(ids[0]), nix::sys::signal::Signal::SIGKILL).unwrap();
        let started = Instant::now();
        while Path::new(&format!("/proc/{}/exe", ids[0])).exists() {
            assert!(started.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    for round in 0..5 {
        kill();
        assert_eq!(served.retrieve(&question), (200, first.clone()), "after end {round}");
    }
    // too often: no more starting, but an answer that says so, and everything else goes on
    kill();
    let (status, said) = served.try_request("POST", "/retrieve", &question.to_string()).unwrap();
    assert!(status == 500 && said.contains("ended 5 times"), "{status} {said}");
    assert_eq!(served.try_request("GET", "/healthz", "").unwrap().0, 200);
    assert_eq!(children(served.child.id()).len(), 0);
    let _: Value = first;
}
