//! Manifests are read with their defaults; wrong ones end in one line that names document, field and way out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cases;

use cases::{broken, index, job, minimal, run, sorted_numbers, updates, with};
use proptest::prelude::*;
use s3_crds::{Kind, Resource, apply_defaults, parse_documents, validate, validate_update};
use serde_json::{Value, json};

fn errors(object: &Value) -> Vec<String> {
    parse_documents("f.yaml", &object.to_string()).err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn the_smallest_objects_are_accepted_and_defaulted_alike_by_schema_and_types() {
    for kind in Kind::ALL {
        let object = minimal(kind);
        assert_eq!(validate(kind, &object), [], "{kind:?}");
        let documents = parse_documents("f.yaml", &object.to_string()).unwrap();
        let typed = match &documents[0].resource {
            Resource::RetrieverIndex(r) => serde_json::to_value(&r.spec),
            Resource::S3TrainingJob(r) => serde_json::to_value(&r.spec),
            Resource::EvalRun(r) => serde_json::to_value(&r.spec),
            Resource::Secret(_) => unreachable!(),
        }
        .unwrap();
        let mut by_schema = object.clone();
        apply_defaults(kind, &mut by_schema);
        assert_eq!(sorted_numbers(&typed), sorted_numbers(&by_schema["spec"]), "{kind:?}");
        // and by the types alone, without the schema
        let by_types: Value = match kind {
            Kind::RetrieverIndex => serde_json::to_value(
                serde_json::from_value::<s3_crds::RetrieverIndexSpec>(object["spec"].clone()).unwrap(),
            ),
            Kind::S3TrainingJob => serde_json::to_value(
                serde_json::from_value::<s3_crds::S3TrainingJobSpec>(object["spec"].clone()).unwrap(),
            ),
            Kind::EvalRun => {
                serde_json::to_value(serde_json::from_value::<s3_crds::EvalRunSpec>(object["spec"].clone()).unwrap())
            }
        }
        .unwrap();
        assert_eq!(sorted_numbers(&by_types), sorted_numbers(&by_schema["spec"]), "{kind:?}");
    }
}

#[test]
fn wrong_inputs_end_in_one_line_that_names_the_field() {
    let at = |o: Value, p: &str, v: Value| with(o, p, v);
    let cases = [
        (
            at(job(), "/spec/rolout", json!({})),
            "f.yaml (document 1, S3TrainingJob/a): spec.rolout: unknown field; did you mean `rollout`?",
        ),
        (at(job(), "/spec/search", json!({"top_k": 3})), "spec.search.top_k: unknown field; did you mean `topK`?"),
        (
            at(job(), "/spec/algorithm", json!({"estimator": "GRPO"})),
            "spec.algorithm.estimator: `GRPO` is not one of Rloo, Ppo, Grpo, Reinforce",
        ),
        (at(job(), "/spec/steps", json!(-1)), "spec.steps: is -1; the least is 0"),
        (at(job(), "/spec/steps", json!("three")), "spec.steps: should be a whole number, found the text `three`"),
        (at(job(), "/spec/searcher", json!({})), "spec.searcher.model: is missing; set it (Its base weights)"),
        (
            at(job(), "/spec/searcher/model/uri", json!("/models/m.gguf")),
            "spec.searcher.model.uri: `/models/m.gguf` is not an address; write file://PATH",
        ),
        (
            at(job(), "/spec/searcher/model/sha256", json!("abc")),
            "spec.searcher.model.sha256: `abc` is not a sha256; write its 64 lower-case hex digits",
        ),
        (
            at(job(), "/spec/generator/limits", json!({"timeout": "soon"})),
            "spec.generator.limits.timeout: `soon` is not a duration; write for example 30s",
        ),
        (
            at(job(), "/spec/resources", json!({"limits": {"memory": "16 GB"}})),
            "spec.resources.limits.memory: `16 GB` is not a quantity; write for example 500m, 4 or 16Gi",
        ),
        (at(job(), "/spec/data/datasets", json!([])), "spec.data.datasets: has 0 entries; at least 1 is needed"),
        (
            at(job(), "/spec/reward", json!({"shaping": {"searchCost": 0.1}})),
            "spec.reward.shaping.searchCost: is 0.1; the most is 0",
        ),
        (at(job(), "/metadata", json!({})), "f.yaml (document 1, S3TrainingJob/?): metadata.name: is missing"),
        (at(job(), "/kind", json!("TrainingJob")), "kind: `TrainingJob` is not known here; known are RetrieverIndex"),
        (
            at(job(), "/apiVersion", json!("searchagent.dev/v1")),
            "apiVersion: is `searchagent.dev/v1`; write searchagent.dev/v1alpha1",
        ),
        (at(run(), "/spec/arms/1/name", json!("direct")), "spec.arms[1]: repeats the name of an earlier entry"),
    ];
    for (object, expected) in cases {
        let found = errors(&object);
        assert!(found.iter().any(|line| line.contains(expected)), "expected {expected}\nfound {found:#?}");
        assert!(found.iter().all(|line| !line.contains('\n')), "{found:?}");
    }
}

#[test]
fn unreadable_files_say_where() {
    let lines =
        |text: &str| parse_documents("f.yaml", text).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert!(lines("a: [1,\nb: 2")[0].contains("line 3"), "{:?}", lines("a: [1,\nb: 2"));
    assert!(
        lines("kind: EvalRun\nkind: EvalRun")[0].contains("duplicate entry"),
        "{:?}",
        lines("kind: EvalRun\nkind: EvalRun")
    );
    assert!(lines("apiVersion: v1")[0].contains("kind: is missing"));
    assert!(parse_documents("f.yaml", "# nothing\n---\n").unwrap().is_empty());
    let two = format!("{}\n---\n{}", index(), with(index(), "/spec/sorce", json!(1)));
    assert!(lines(&two)[0].starts_with("f.yaml (document 2, RetrieverIndex/a): spec.sorce"), "{:?}", lines(&two));
}

#[test]
fn secrets_are_read_and_never_printed() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\ndata: {a: aGlkZGVu}\nstringData: {b: plain}\n";
    let documents = parse_documents("f.yaml", text).unwrap();
    let Resource::Secret(secret) = &documents[0].resource else { panic!() };
    assert_eq!(secret.values["a"], b"hidden");
    assert_eq!(secret.values["b"], b"plain");
    assert!(!format!("{documents:?}").contains("hidden") && !format!("{documents:?}").contains("104"));
    let bad = parse_documents("f.yaml", &text.replace("aGlkZGVu", "not*base64")).unwrap_err()[0].to_string();
    assert!(bad.contains("base64") && !bad.contains("not*"), "{bad}");
}

#[test]
fn every_rule_refuses_what_breaks_it() {
    let mut said = String::new();
    for (object, expected) in broken() {
        let found = errors(&object);
        assert!(found.iter().any(|line| line.contains(expected)), "expected {expected}\nfound {found:#?}");
        said.push_str(&found.join("\n"));
    }
    let updates = updates();
    for (old, new, expected) in updates {
        let kind = Kind::from_name(new["kind"].as_str().unwrap()).unwrap();
        assert_eq!(validate(kind, &new), [], "{expected}");
        assert_eq!(validate_update(kind, &old, &old), [], "{expected}");
        let found: Vec<String> = validate_update(kind, &new, &old).iter().map(ToString::to_string).collect();
        assert!(found.iter().any(|line| line.contains(expected)), "expected {expected}\nfound {found:?}");
        said.push_str(&found.join("\n"));
    }
    // a rule without a case here would be a rule that nobody has seen refuse
    for kind in Kind::ALL {
        let text = s3_crds::crd(kind).to_string();
        for message in text.split("\"message\":\"").skip(1).map(|rest| rest.split("\",\"rule\"").next().unwrap()) {
            assert!(said.contains(&message.replace("\\\"", "\"")), "no case breaks: {message}");
        }
    }
    assert_eq!(validate_update(Kind::S3TrainingJob, &with(job(), "/spec/steps", json!(40)), &job()), []);
}

#[test]
fn the_examples_are_accepted() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut found = 0;
    for example in std::fs::read_dir(folder).unwrap().flatten() {
        for file in std::fs::read_dir(example.path()).into_iter().flatten().flatten() {
            let path = file.path();
            if path.extension().is_some_and(|e| e == "yaml") {
                let name = path.display().to_string();
                for document in parse_documents(&name, &std::fs::read_to_string(&path).unwrap())
                    .unwrap_or_else(|e| panic!("{e:#?}"))
                {
                    let written = document.written.unwrap();
                    let kind = Kind::from_name(written["kind"].as_str().unwrap()).unwrap();
                    assert_eq!(s3_crds::refuse_unsupported(kind, &written), [], "{name}");
                    found += 1;
                }
            }
        }
    }
    assert!(found >= 3, "{found} example documents");
}

proptest! {
    /// Whatever stands in a file, reading it ends in documents or in lines, never in a panic.
    #[test]
    fn reading_never_panics(pointer in 0usize..12, value in any::<i64>(), text in ".{0,12}") {
        let places = ["/spec", "/spec/arms", "/spec/arms/0", "/spec/arms/0/name", "/spec/generator", "/spec/datasets", "/spec/seed",
            "/spec/statistics", "/metadata", "/kind", "/spec/sample", "/spec/report"];
        for value in [json!(value), json!(text), json!([text]), json!({text.as_str(): value}), json!(true)] {
            let lines = errors(&with(run(), places[pointer], value));
            prop_assert!(lines.iter().all(|line| line.starts_with("f.yaml (document 1")));
        }
    }
}
