//! A real API server and the client-side validation give the same verdicts and the same defaults.

use crate::cases::{broken, job, minimal, run, sorted_numbers, updates, with};
use crate::server::{Server, kind};
use s3_crds::{Kind, apply_defaults, parse_documents, validate, validate_update};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn yaml_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            yaml_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

fn drop_empty(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| value.as_str() != Some(""));
            map.values_mut().for_each(drop_empty);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

#[tokio::test]
async fn every_example_is_accepted() {
    let server = Server::connect().await;
    let (mut files, mut accepted) = (Vec::new(), 0);
    yaml_files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples"), &mut files);
    for file in files {
        let name = file.display().to_string();
        let text = std::fs::read_to_string(&file).unwrap();
        // other files of the examples are workers' configurations
        if !text.contains(s3_crds::API_VERSION) {
            continue;
        }
        for document in parse_documents(&name, &text).unwrap_or_else(|errors| panic!("{errors:#?}")) {
            let Some(written) = document.written else { continue };
            let answer = server.try_create(&written).await;
            assert!(answer.accepted, "{name}: {}", answer.message());
            accepted += 1;
        }
    }
    assert!(accepted >= 6, "{accepted} examples found");
}

#[tokio::test]
async fn defaults_are_the_same_on_both_sides() {
    let server = Server::connect().await;
    // the smallest object, and one with every optional branch that has defaults of its own
    let full = with(
        with(job(), "/spec/serving", json!({})),
        "/spec/warmStart",
        json!({"trajectories": {"uri": "pvc://data/t.jsonl"}}),
    );
    let more = if validate(Kind::S3TrainingJob, &full).is_empty() { vec![full] } else { Vec::new() };
    for object in Kind::ALL.map(minimal).into_iter().chain(more) {
        let answer = server.try_create(&object).await;
        assert!(answer.accepted, "{}", answer.message());
        let mut ours = object.clone();
        apply_defaults(kind(&object), &mut ours);
        let mut theirs = answer.body["spec"].clone();
        if !server.cel {
            // CRDs for old servers have no empty texts as defaults
            drop_empty(&mut ours);
            drop_empty(&mut theirs);
        }
        assert_eq!(sorted_numbers(&theirs), sorted_numbers(&ours["spec"]), "{}", kind(&object).name());
    }
}

#[tokio::test]
async fn what_breaks_a_rule_is_refused_with_the_rules_own_words() {
    let server = Server::connect().await;
    for (object, message) in broken() {
        assert_ne!(validate(kind(&object), &object), [], "{message}");
        let answer = server.try_create(&object).await;
        // without CEL such an object is stored, and the operator refuses it by the same validation
        assert_eq!(answer.accepted, !server.cel, "{message}: {}", answer.message());
        assert!(!server.cel || answer.message().contains(message), "expected {message}\nfound {}", answer.message());
    }
}

#[tokio::test]
async fn what_breaks_a_rule_of_updates_is_refused_with_the_rules_own_words() {
    let server = Server::connect().await;
    for (number, (old, new, message)) in updates().into_iter().enumerate() {
        let named = |object| with(object, "/metadata/name", json!(format!("update-{number}")));
        let (old, new) = (named(old), named(new));
        assert_ne!(validate_update(kind(&new), &new, &old), [], "{message}");
        let answer = server.try_update(&old, &new).await;
        assert_eq!(answer.accepted, !server.cel, "{message}: {}", answer.message());
        assert!(!server.cel || answer.message().contains(message), "expected {message}\nfound {}", answer.message());
    }
    // and what grows is taken
    let old = with(job(), "/metadata/name", json!("grows"));
    assert!(server.try_update(&old, &with(old.clone(), "/spec/steps", json!(40))).await.accepted);
}

#[tokio::test]
async fn what_breaks_the_schema_is_refused_on_both_sides() {
    let server = Server::connect().await;
    let cases: Vec<Value> = vec![
        with(job(), "/spec/algorithm", json!({"estimator": "GRPO"})),
        with(job(), "/spec/steps", json!(-1)),
        with(job(), "/spec/steps", json!("three")),
        with(job(), "/spec/searcher", json!({})),
        with(job(), "/spec/searcher/model/uri", json!("/models/m.gguf")),
        with(job(), "/spec/searcher/model/sha256", json!("abc")),
        with(job(), "/spec/generator/limits", json!({"timeout": "soon"})),
        with(job(), "/spec/resources", json!({"limits": {"memory": "16 GB"}})),
        with(job(), "/spec/data/datasets", json!([])),
        with(job(), "/spec/reward", json!({"shaping": {"searchCost": 0.1}})),
        with(run(), "/spec/arms/1/name", json!("direct")),
    ];
    for object in cases {
        let (ours, theirs) = (validate(kind(&object), &object), server.try_create(&object).await);
        assert!(!ours.is_empty() && !theirs.accepted, "ours {ours:?}\ntheirs {}: {object}", theirs.message());
    }
    // fields that nobody knows: old servers drop them without a word
    let unknown = with(job(), "/spec/rolout", json!({}));
    assert_ne!(validate(Kind::S3TrainingJob, &unknown), []);
    assert_eq!(server.try_create(&unknown).await.accepted, !server.cel);
}
