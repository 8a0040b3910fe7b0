//! Files and volumes: what is fetched first, what is refused.

use crate::check::check;
use crate::common::quickstart;
use crate::support::{planned, rendered, surroundings};
use s3_crds::AccessMode;
use s3_plan::objects::Surroundings;
use s3_plan::{ComponentKind, PlanError};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Everything on a hub or in a bucket.
fn remote() -> Vec<String> {
    quickstart()
        .iter()
        .map(|text| {
            let text = text
                .replace("pvc://data/models/smollm2-135m-instruct/model.gguf", "hf://owner/small/model.gguf")
                .replace("pvc://data/models/e5-small", "hf://owner/e5")
                .replace("pvc://data/", "s3://bucket/")
                .replace("pvc://assets/", "gs://other/deep/");
            let secret = |indent: &str| format!("{indent}tokenSecretRef: {{name: hub, key: token}}\n");
            text.replace(
                "            uri: hf://owner/e5\n",
                &format!("            uri: hf://owner/e5\n            revision: v2\n{}", secret("            ")),
            )
        })
        .collect()
}

#[test]
fn what_lies_on_hubs_and_in_buckets_is_fetched_first() {
    let plan = planned(&remote());
    let fetchers: Vec<(&str, &str)> = plan
        .components
        .iter()
        .filter(|c| matches!(c.kind, ComponentKind::Fetch | ComponentKind::GatewayFetch))
        .map(|c| (c.name.as_str(), c.owners.iter().next().unwrap().as_str()))
        .collect();
    assert_eq!(
        fetchers,
        [
            ("gateway-built-in-fetch", "EvalRun/quickstart"),
            ("quickstart-index-fetch", "RetrieverIndex/quickstart"),
            ("quickstart-job-fetch", "S3TrainingJob/quickstart"),
            ("quickstart-run-fetch", "EvalRun/quickstart"),
        ]
    );
    for component in &plan.components {
        assert!(component.inputs.is_empty(), "{} reads what nobody fetches", component.name);
        assert!(!component.config.value.to_string().contains("fetch://"));
    }
    let index = plan.component("quickstart-index").unwrap();
    assert_eq!(index.needs.iter().collect::<Vec<_>>(), ["quickstart-index-fetch"]);
    let encoder = index.config.value["dense"]["encoder"].as_str().unwrap();
    let key = encoder.strip_prefix("work://quickstart-index-fetch/files/").unwrap();
    let fetch = plan.component("quickstart-index-fetch").unwrap();
    let sources = fetch.config.value["sources"].as_array().unwrap();
    let source = sources.iter().find(|source| source["key"] == key).unwrap();
    assert_eq!(source["location"], json!({"kind": "HuggingFace", "repository": "owner/e5", "revision": "v2"}));
    assert_eq!(source["tokenFile"], "secret://hub/token");
    assert_eq!(source["files"].as_array().unwrap().len(), 3);
    let weights = source["files"].as_array().unwrap().iter().find(|file| file["name"] == "model.safetensors").unwrap();
    assert!(weights["sha256"].as_str().unwrap().starts_with("33e8a825"));
    assert_eq!(fetch.secrets.iter().collect::<Vec<_>>(), ["hub/token"]);
    let corpus = index.config.value["corpus"]["path"].as_str().unwrap();
    assert!(corpus.ends_with("/wiki-vital.jsonl"), "{corpus}");
    check(&rendered(&plan, &surroundings()).unwrap());
}

#[test]
fn a_wrong_digest_harms_nobody_else() {
    let wrong = |text: &String| {
        if text.contains("kind: EvalRun") { text.replace("b179c9523d0e", "000000000000") } else { text.clone() }
    };
    let plan = planned(&remote().iter().map(wrong).collect::<Vec<_>>());
    let fetch = plan.component("gateway-built-in-fetch").unwrap();
    let sources = fetch.config.value["sources"].as_array().unwrap();
    let digests: BTreeSet<&str> =
        sources.iter().filter_map(|source| source["files"][0]["sha256"].as_str()).map(|sha| &sha[..12]).collect();
    assert_eq!(digests, BTreeSet::from(["000000000000", "b179c9523d0e"]), "each user's own");
    let other = plan.component("quickstart-job-fetch").unwrap().config.value.to_string();
    assert!(!other.contains("000000000000"));
}

#[test]
fn files_of_one_machine_are_refused() {
    let texts: Vec<String> = quickstart()
        .iter()
        .map(|text| text.replace("uri: pvc://data/corpus/wiki-vital.jsonl", "uri: file:///data/wiki-vital.jsonl"))
        .collect();
    let refused = rendered(&planned(&texts), &surroundings()).unwrap_err().to_string();
    assert!(refused.contains("source.build.corpus.uri") && refused.contains("pvc://CLAIM/PATH"), "{refused}");
}

#[test]
fn shapes_that_a_volume_cannot_serve_are_refused() {
    let with = |storage: &str, replicas: u32| -> Vec<String> {
        let storage = if storage.is_empty() { String::new() } else { format!("  storage:\n{storage}") };
        quickstart()
            .iter()
            .map(|text| text.replace("  serving:\n", &format!("{storage}  serving:\n    replicas: {replicas}\n")))
            .collect()
    };
    let shape = |texts: &[String], around: &Surroundings| match rendered(&planned(texts), around) {
        Ok(_) => None,
        Err(PlanError::VolumeShape { resource, field, .. }) => Some(format!("{resource} {field}")),
        Err(other) => panic!("{other}"),
    };
    let around = surroundings();
    let index = |field: &str| Some(format!("RetrieverIndex/quickstart {field}"));
    assert_eq!(shape(&with("", 1), &around), None);
    assert_eq!(shape(&with("", 2), &around), index("spec.storage.accessMode"));
    assert_eq!(shape(&with("    accessMode: ReadWriteMany\n", 2), &around), None);
    assert_eq!(shape(&with("    accessMode: ReadOnlyMany\n", 1), &around), index("spec.storage.accessMode"));
    assert_eq!(shape(&with("    mode: LocalCopy\n", 1), &around), index("spec.storage.mode"));
    // Of an existing claim only what is known counts.
    let mine = with("    claimName: mine\n", 2);
    assert_eq!(shape(&mine, &around), None);
    let known = |modes: &[AccessMode], claim: &str| Surroundings {
        claims: BTreeMap::from([(claim.to_owned(), modes.iter().copied().collect())]),
        ..surroundings()
    };
    assert_eq!(shape(&mine, &known(&[AccessMode::ReadWriteOnce], "mine")), index("spec.storage.accessMode"));
    assert_eq!(shape(&mine, &known(&[AccessMode::ReadOnlyMany], "mine")), index("spec.storage.claimName"));
    assert_eq!(shape(&mine, &known(&[AccessMode::ReadWriteMany], "mine")), None);
    let many = with("    accessMode: ReadWriteMany\n", 2);
    assert!(shape(&many, &known(&[AccessMode::ReadWriteOnce], "data")).unwrap().ends_with("pvc://data"));
    assert_eq!(shape(&many, &known(&[AccessMode::ReadOnlyMany], "data")), None);
}
