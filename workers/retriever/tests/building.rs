//! Building: killed anywhere it ends with the same index; wrong inputs and damaged files are refused.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "../../../tests/support/full_disk.rs"]
mod full_disk;

use common::{World, command, faiss_flat, read_json, refused, run};
use full_disk::full_disk;
use s3_retriever::index::Index;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Names in the output folder, sorted.
fn published(world: &World) -> Vec<String> {
    let entries = std::fs::read_dir(world.path("index")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn killed_at_any_time_ends_with_the_same_index() {
    killed_while_building(14);
}

#[test]
#[ignore = "sixty kills; minutes"]
fn killed_sixty_times_ends_with_the_same_index() {
    killed_while_building(60);
}

fn killed_while_building(kills_wanted: u32) {
    let world = World::new(1500);
    let started = Instant::now();
    let expected = world.build();
    let duration = started.elapsed();
    let digest = expected["digest"].as_str().unwrap();
    let mut names = [".lock", "CURRENT", digest].map(String::from);
    names.sort();
    assert_eq!(published(&world), names);

    let config = world.save("build.yaml", &world.build_config());
    let arguments = ["build", "--config", config.to_str().unwrap()];
    let (mut round, mut killed) = (0u32, 0);
    while killed < kills_wanted {
        round += 1;
        assert!(round < 4 * kills_wanted, "the build ends before it can be killed");
        std::fs::remove_dir_all(world.path("index")).unwrap();
        // two kills, the second while it goes on from the first; moments spread over the build's time
        for part in [1.0, 0.5] {
            let mut child = command(&arguments).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(duration.mul_f64(part * f64::from(round * 37 % 100) / 100.0));
            child.kill().unwrap();
            killed += u32::from(child.wait().unwrap().code().is_none());
            // whatever is published is whole
            if world.path("index/CURRENT").exists() {
                assert_eq!(Index::open_current(&world.path("index")).unwrap().digest, digest);
            }
        }
        assert_eq!(world.build(), expected, "round {round}");
        assert_eq!(published(&world), names);
        assert!(std::fs::read_dir(world.path("build-state")).unwrap().next().is_none(), "shards are left behind");
    }
}

/// Every file is cut off at many sizes, by an error of the write that would pass it and by a kill at that write.
/// Nothing torn is ever published, and the next build ends with the same index.
#[test]
fn failed_writes_publish_nothing_torn() {
    use std::os::unix::process::ExitStatusExt;
    let world = World::new(400);
    let mut config = world.build_config();
    config["dense"]["index"] = json!({"kind": "OneBit"});
    let path = world.save("build.yaml", &config);
    let arguments = ["build", "--config", path.to_str().unwrap()];
    assert_eq!(run(&arguments).0, 0);
    let expected = read_json(&world.path("build-result.json"));
    let digest = expected["digest"].as_str().unwrap();
    let program = env!("CARGO_BIN_EXE_s3-retriever");
    let (mut failed, mut killed) = (0, 0);
    for (trap, kib) in [0, 1, 2, 3, 4, 6, 9, 12, 16, 20, 24, 28, 32, 40, 64]
        .iter()
        .flat_map(|kib| [("", kib), ("trap '' XFSZ; ", kib)])
    {
        std::fs::remove_dir_all(world.path("index")).unwrap();
        // a file may not grow beyond the limit: the write fails, or kills where the signal is not ignored
        let script = format!("{trap}ulimit -c 0; ulimit -f {kib}; exec {program} build --config {}", path.display());
        let output = std::process::Command::new("bash").args(["-c", &script]).env("RUST_LOG", "warn").output().unwrap();
        match (output.status.code(), output.status.signal()) {
            (Some(0), _) => assert!(*kib >= 24, "nothing failed at {kib} KiB"),
            (Some(code), _) => {
                let error = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(code == 74 && error.contains("File too large"), "{kib} KiB, {code}: {error}");
                failed += 1;
            }
            (None, signal) => {
                assert_eq!(signal, Some(25), "SIGXFSZ");
                killed += 1;
            }
        }
        if world.path("index/CURRENT").exists() {
            assert_eq!(Index::open_current(&world.path("index")).unwrap().digest, digest);
        }
        assert_eq!(run(&arguments).0, 0, "{kib} KiB");
        assert_eq!(read_json(&world.path("build-result.json")), expected, "{kib} KiB");
    }
    assert!(failed >= 8 && killed >= 8, "{failed} failed, {killed} killed");
}

#[test]
fn a_full_disk_ends_in_one_line_and_loses_nothing() {
    let world = World::new(1500);
    let expected = world.build();
    let digest = expected["digest"].as_str().unwrap();
    let files = std::fs::read_dir(world.path("index").join(digest)).unwrap();
    let largest = files.map(|entry| entry.unwrap().metadata().unwrap().len()).max().unwrap() >> 10;
    let config = world.save("build.yaml", &world.build_config());
    let arguments = ["build", "--config", config.to_str().unwrap()];
    std::fs::remove_dir_all(world.path("index")).unwrap();
    // each goes on from what the one before left
    for kib in [1, largest / 8, largest / 2, largest - 1] {
        let output = full_disk(&command(&arguments), kib).stdin(Stdio::null()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(74), "{kib} KiB: {error}");
        assert_eq!(error.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{kib} KiB: {error}");
        assert!(!world.path("index/CURRENT").exists(), "{kib} KiB: a part was published");
    }
    assert_eq!(world.build(), expected);
    assert!(std::fs::read_dir(world.path("build-state")).unwrap().next().is_none(), "shards are left behind");
}

#[test]
fn the_same_inputs_change_nothing_and_other_inputs_make_another_version() {
    let world = World::new(60);
    let first = world.build();
    let manifest = world.path("index").join(first["digest"].as_str().unwrap()).join("manifest.json");
    let modified = std::fs::metadata(&manifest).unwrap().modified().unwrap();
    assert_eq!(world.build(), first);
    assert_eq!(std::fs::metadata(&manifest).unwrap().modified().unwrap(), modified);

    let mut digests = vec![first["digest"].clone()];
    for (pointer, value) in [
        ("/lexical/k1", json!(1.2)),
        ("/corpus/limit", json!(30)),
        ("/dense/passagePrefix", json!("actor ")),
        ("/dense/pooling", json!("Cls")),
        ("/dense/maxTokens", json!(8)),
    ] {
        let mut config = world.build_config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        let path = world.save("other.yaml", &config);
        assert_eq!(run(&["build", "--config", path.to_str().unwrap()]).0, 0, "{pointer}");
        let digest = read_json(&world.path("build-result.json"))["digest"].clone();
        assert!(!digests.contains(&digest), "{pointer} is not part of the identity");
        assert_eq!(Index::open_current(&world.path("index")).unwrap().digest, digest.as_str().unwrap());
        digests.push(digest);
    }
    // what a killed build of other inputs left behind is gone
    std::fs::create_dir_all(world.path("index/.staging-0123")).unwrap();
    let mut config = world.build_config();
    config["lexical"]["b"] = json!(0.75);
    let path = world.save("other.yaml", &config);
    assert_eq!(run(&["build", "--config", path.to_str().unwrap()]).0, 0);
    assert!(!world.path("index/.staging-0123").exists());
    // and back: the pointer moves, nothing is built
    assert_eq!(world.build(), first);
    assert_eq!(Index::open_current(&world.path("index")).unwrap().digest, first["digest"].as_str().unwrap());
}

/// Every file, one bit or length at a time; a version with codes, so that every kind of file is among them.
#[test]
fn every_damaged_file_is_refused() {
    damaged_files(40, &json!({"kind": "OneBit"}));
    damaged_files(10, &json!({"kind": "Hnsw", "structure": {"neighbors": 4}}));
}

#[test]
#[ignore = "10,000 damaged files; a minute or more"]
fn ten_thousand_damaged_files_are_refused() {
    assert!(damaged_files(usize::MAX, &json!({"kind": "OneBit"})) > 10_000);
    assert!(damaged_files(1000, &json!({"kind": "Hnsw"})) > 5_000);
}

fn damaged_files(each: usize, index: &Value) -> usize {
    let world = World::new(50);
    let mut config = world.build_config();
    config["dense"]["index"] = index.clone();
    let path = world.save("codes.yaml", &config);
    assert_eq!(run(&["build", "--config", path.to_str().unwrap()]).0, 0);
    let digest = read_json(&world.path("build-result.json"))["digest"].as_str().unwrap().to_owned();
    let output = world.path("index");
    Index::open_current(&output).unwrap();
    let folder = output.join(&digest);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.push(output.join("CURRENT"));
    assert_eq!(files.len(), 8);
    let mut mutations = 0;
    for path in files {
        let whole = std::fs::read(&path).unwrap();
        let mut damaged: Vec<Vec<u8>> =
            vec![Vec::new(), whole[..whole.len() - 1].to_vec(), [&whole[..], b"\n"].concat()];
        let step = (whole.len() / each).max(1);
        for at in (0..whole.len()).step_by(step).chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            damaged.push(bytes);
        }
        for bytes in damaged {
            std::fs::write(&path, &bytes).unwrap();
            assert!(Index::open_current(&output).is_err(), "{} damaged and served", path.display());
            mutations += 1;
        }
        std::fs::remove_file(&path).unwrap();
        assert!(Index::open_current(&output).is_err(), "{} missing and served", path.display());
        std::fs::write(&path, &whole).unwrap();
        Index::open_current(&output).unwrap();
    }
    assert!(mutations > each.min(25) * 8);

    // one line for whoever serves, and building again repairs
    std::fs::write(folder.join("lexical.bin"), b"x").unwrap();
    let serve = world.save("serve.yaml", &world.serve_config());
    assert_eq!(refused(&["serve", "--config", serve.to_str().unwrap()]).0, 64);
    assert_eq!(run(&["build", "--config", path.to_str().unwrap()]).0, 0);
    Index::open_current(&output).unwrap();
    mutations
}

/// Every kind finds what exact search finds, says its recall, and is another index than the others.
#[test]
fn every_kind_of_dense_index_is_built_and_searched() {
    let world = World::new(700);
    let mut digests = Vec::new();
    let mut rankings = Vec::new();
    let some = |factory: &str| json!({"factory": factory});
    for (kind, files, structure) in [
        ("Flat", 7, json!({})),
        ("ScalarQuantized", 8, json!({})),
        ("OneBit", 8, json!({})),
        ("IvfFlat", 8, json!({"lists": 12, "probes": 1})),
        ("IvfPq", 8, json!({"codeBytes": 8})),
        ("Hnsw", 8, json!({"neighbors": 8, "efConstruction": 60, "efSearch": 2})),
        ("Factory", 8, some("OPQ8,IVF4,PQ8np")),
        ("Factory", 8, some("SQ8")),
    ] {
        let mut config = world.build_config();
        config["dense"]["index"] = json!({"kind": kind, "recallTarget": 0.97, "structure": structure.clone()});
        let path = world.save("kind.yaml", &config);
        let (code, error) = run(&["build", "--config", path.to_str().unwrap()]);
        assert_eq!(code, 0, "{error}");
        let result = read_json(&world.path("build-result.json"));
        assert!(result["summary"]["recall"].as_f64().unwrap() >= 0.97, "{result}");
        let index = Index::open_current(&world.path("index")).unwrap();
        let entries = std::fs::read_dir(world.path("index").join(&index.digest)).unwrap().count();
        // one of them is the manifest
        assert_eq!(entries, files - 1, "{kind}");
        let dense = index.dense.unwrap();
        let queries: Vec<Vec<f32>> = (0..30).map(|at| dense.vector(at * 20)).collect();
        rankings.push(dense.search(&queries, 3, true).unwrap());
        let found = dense.search(&queries, 3, false).unwrap();
        let firsts =
            found.iter().zip(&rankings[0]).filter(|(a, b)| a[0].score.to_bits() == b[0].score.to_bits()).count();
        assert!(firsts >= 29, "{kind} {structure}: {firsts} of 30, {:?} where {:?}", found[0], rankings[0][0]);
        digests.push(index.digest);
    }
    assert!(rankings.iter().all(|ranking| *ranking == rankings[0]), "exact search depends on the kind");
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 8);

    for (index, says) in [
        (json!({"kind": "OneBit", "recallTarget": 1.5}), "recallTarget"),
        (json!({"kind": "IvfPq", "structure": {"codeBytes": 7}}), "codeBytes"),
        (json!({"kind": "Factory"}), "dense.index.factory"),
        (json!({"kind": "Factory", "structure": {"factory": "Nothing5"}}), "Nothing5"),
        (json!({"kind": "IvfFlat", "structure": {"lists": 701}}), "700"),
    ] {
        let mut config = world.build_config();
        config["dense"]["index"] = index;
        let path = world.save("kind.yaml", &config);
        let (code, error) = refused(&["build", "--config", path.to_str().unwrap()]);
        assert!(code == 64 && error.contains(says), "{says}: {error}");
    }
}

/// A FAISS index of kind Flat in parts, as the reference's is published, with the corpus beside it.
#[test]
fn published_flat_indices_are_imported() {
    let world = World::new(120);
    world.build();
    let index = Index::open_current(&world.path("index")).unwrap();
    let dense = index.dense.unwrap();
    let rows: Vec<f32> = (0..dense.len()).flat_map(|at| dense.vector(at)).collect();
    let file = faiss_flat(&rows, dense.dimensions());
    let sha256 = s3_artifacts::digest_bytes(&file);
    let names: Vec<PathBuf> = ["part_aa", "part_ab", "part_ac"].iter().map(|name| world.path(name)).collect();
    for (part, name) in file.chunks(file.len() / 3 + 1).zip(&names) {
        std::fs::write(name, part).unwrap();
    }
    let build = |parts: &[PathBuf], sha256: &str, corpus: &str| {
        let mut config = world.build_config();
        config["dense"]["vectors"] = json!({"path": parts[0], "parts": parts[1..], "sha256": sha256, "verify": 20});
        config["corpus"]["path"] = json!(world.path(corpus));
        let path = world.save("import.yaml", &config);
        run(&["build", "--config", path.to_str().unwrap()])
    };
    let (code, error) = build(&names, &sha256, "corpus.jsonl");
    assert_eq!(code, 0, "{error}");
    let imported = Index::open_current(&world.path("index")).unwrap();
    let queries: Vec<Vec<f32>> = (0..9).map(|at| dense.vector(at * 13)).collect();
    assert_eq!(imported.dense.unwrap().search(&queries, 7, false).unwrap(), dense.search(&queries, 7, false).unwrap());

    common::write_corpus(&world.path("longer.jsonl"), 121);
    for (parts, sha256, corpus, says) in [
        (&names[..2], sha256.as_str(), "corpus.jsonl", "name all its parts in order"),
        (&names[..], &"0".repeat(64), "corpus.jsonl", "sha256 of all parts is"),
        (&names[..], &sha256, "longer.jsonl", "120 vectors for 121 passages"),
    ] {
        // a published index stands without the file
        std::fs::remove_dir_all(world.path("index")).unwrap();
        let (code, error) = build(parts, sha256, corpus);
        assert!(code == 64 && error.contains(says), "{says}: {error}");
    }
}

/// A change of the configuration, and what the refusal says.
type Case<'a> = (&'a dyn Fn(&mut Value), &'a str);

#[test]
fn wrong_inputs_end_in_one_line() {
    let world = World::new(30);
    let build = |change: &dyn Fn(&mut Value)| {
        let mut config = world.build_config();
        change(&mut config);
        let path = world.save("refused.yaml", &config);
        refused(&["build", "--config", path.to_str().unwrap()])
    };
    std::fs::write(world.path("twice.jsonl"), "{\"id\":\"a\",\"text\":\"t\"}\n{\"id\":\"a\",\"text\":\"t\"}\n")
        .unwrap();
    let wrong = "0".repeat(64);
    let cases: [Case; 8] = [
        (&|c| c["corpus"]["path"] = json!(world.path("none.jsonl")), "none.jsonl is not there"),
        (&|c| c["corpus"]["sha256"] = json!(wrong), "sha256 is"),
        (&|c| c["corpus"]["path"] = json!(world.path("twice.jsonl")), "line 2: id \"a\" stands on an earlier line"),
        (&|c| c["corpus"]["colour"] = json!("red"), "unknown field `colour`"),
        (&|c| c["dense"]["encoderSha256"] = json!(wrong), "model.safetensors: sha256 is"),
        (&|c| c["dense"]["encoder"] = json!(world.path("nowhere")), "model.safetensors is not there"),
        (&|c| c["dense"]["maxTokens"] = json!(65), "3 to 64 tokens"),
        (&|c| c["audit"] = json!([{"name": "nq", "path": world.path("q.jsonl")}]), "q.jsonl is not there"),
    ];
    for (change, says) in cases {
        let (code, error) = build(change);
        assert_eq!(code, 64, "{error}");
        assert!(error.contains(says), "{error}");
    }
    assert!(!world.path("index/CURRENT").exists());
}

#[test]
fn audits_count_answerable_questions() {
    let world = World::new(30);
    let question =
        |id: &str, text: &str, answer: &str| json!({"id": id, "question": text, "answers": [answer]}).to_string();
    let lines = [
        question("1", "what flows", "River 0"),
        question("2", "which opera is it", "the opera"),
        question("3", "who", "Nobody Here"),
        question("4", "which art", "painter"),
    ];
    std::fs::write(world.path("q.jsonl"), lines.join("\n")).unwrap();
    let mut config = world.build_config();
    config["audit"] = json!([{"name": "few", "path": world.path("q.jsonl")}]);
    let path = world.save("audit.yaml", &config);
    for _ in 0..2 {
        assert_eq!(run(&["build", "--config", path.to_str().unwrap()]).0, 0);
        let summary = read_json(&world.path("build-result.json"))["summary"].clone();
        let found = &summary["answerable"]["few"];
        assert_eq!(found["questions"], 4);
        let titles: Vec<String> =
            std::fs::read_to_string(world.path("corpus.jsonl")).unwrap().lines().map(String::from).collect();
        let first = u64::from(titles[0].contains("\"river 0\""));
        assert_eq!(found["answerable"], 1 + first, "{found}");
    }
}

/// Vectors exported once are taken over by builds, and refused when they are another encoder's.
#[test]
fn exported_vectors_are_checked_and_taken() {
    let world = World::new(300);
    let computed = world.build();
    let config = world.save("build.yaml", &world.build_config());
    let file = world.path("v/vectors.safetensors");
    let arguments = ["embed", "--config", config.to_str().unwrap(), "--output", file.to_str().unwrap()];
    let mut child = command(&arguments).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(run(&arguments).0, 0);
    let sha256 = read_json(&world.path("build-result.json"))["digest"].as_str().unwrap().to_owned();
    assert_eq!(s3_artifacts::digest_file(&file).unwrap(), sha256);

    let build = |encoder: &str, corpus: &str| {
        let mut config = world.build_config();
        config["dense"]["vectors"] = json!({"path": file, "sha256": sha256, "verify": 20});
        config["dense"]["encoder"] = json!(world.path(encoder));
        config["corpus"]["path"] = json!(world.path(corpus));
        let path = world.save("taken.yaml", &config);
        run(&["build", "--config", path.to_str().unwrap()])
    };
    let vectors_of =
        |digest: &Value| std::fs::read(world.path("index").join(digest.as_str().unwrap()).join("vectors.f16")).unwrap();
    assert_eq!(build("encoder", "corpus.jsonl").0, 0);
    let taken = read_json(&world.path("build-result.json"));
    assert_ne!(taken["digest"], computed["digest"]);
    assert_eq!(vectors_of(&taken["digest"]), vectors_of(&computed["digest"]));

    common::write_encoder(&world.path("other"), 6);
    let (code, error) = build("other", "corpus.jsonl");
    assert!(code == 64 && error.contains("embed the corpus again"), "{error}");
    common::write_corpus(&world.path("longer.jsonl"), 301);
    let (code, error) = build("encoder", "longer.jsonl");
    assert!(code == 64 && error.contains("300 vectors for 301 passages"), "{error}");
    let mut bytes = std::fs::read(&file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&file, bytes).unwrap();
    // the published index stands without the file; building it again needs the right one
    assert_eq!(build("encoder", "corpus.jsonl").0, 0);
    std::fs::remove_dir_all(world.path("index")).unwrap();
    let (code, error) = build("encoder", "corpus.jsonl");
    assert!(code == 64 && error.contains("sha256 is"), "{error}");
}
