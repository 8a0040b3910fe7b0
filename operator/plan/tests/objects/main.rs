//! What a plan becomes in a cluster: two plans held by committed snapshots, and what holds for every rendering.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod check;
mod cluster;
#[path = "../common/mod.rs"]
mod common;
mod files;
mod jobs;
mod servers;
mod support;

use check::check;
use common::{example, quickstart};
use proptest::prelude::*;
use s3_plan::objects::Object;
use std::path::Path;
use support::{built_by, planned, rendered, served_by_endpoint, surroundings};

#[test]
fn the_objects_are_the_committed_ones() {
    committed(&quickstart(), "quickstart-objects.yaml");
    committed(&[built_by(2, "ReadWriteMany"), example("recipes", "web-search.yaml")], "index-objects.yaml");
}

fn committed(texts: &[String], golden: &str) {
    let objects = rendered(&planned(texts), &surroundings()).unwrap();
    let yaml = |object: &Object| format!("---\n{}", serde_yaml_ng::to_string(&object.to_value().unwrap()).unwrap());
    let text = objects.iter().map(yaml).collect::<Vec<_>>().concat();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    assert!(text == expected, "the objects changed; look at them and run again with UPDATE_GOLDEN=1:\n{text}");
}

#[test]
fn every_example_renders() {
    let recipe = |name: &str| vec![example("quickstart-gpu", "retrieverindex.yaml"), example("recipes", name)];
    let gpu =
        ["evalrun.yaml", "retrieverindex.yaml", "s3trainingjob.yaml"].map(|f| example("quickstart-gpu", f)).into();
    let methods = vec![example("quickstart", "retrieverindex.yaml"), example("recipes", "all-methods.yaml")];
    let alone = vec![example("recipes", "search-r1.yaml")];
    let web = vec![example("recipes", "web-search.yaml")];
    let recipes = [recipe("sft-searcher.yaml"), recipe("sft-generator.yaml"), methods, alone, web];
    for texts in [quickstart(), gpu, served_by_endpoint()].into_iter().chain(recipes) {
        check(&rendered(&planned(&texts), &surroundings()).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_names_render(
        index in "[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?",
        job in "[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?",
        claim in "[a-z0-9]([a-z0-9.-]{0,100}[a-z0-9])?",
        retrievers in 1_u32..4,
    ) {
        let texts: Vec<String> = quickstart()
            .iter()
            .map(|text| {
                text.replace("indexRef:\n      name: quickstart", &format!("indexRef:\n      name: \"{index}\""))
                    .replace("jobRef:\n          name: quickstart", &format!("jobRef:\n          name: \"{job}\""))
                    .replace("    excludeTrainingOf:\n      - name: quickstart", &format!("    excludeTrainingOf:\n      - name: \"{job}\""))
                    .replace("pvc://data/", &format!("pvc://{claim}/"))
                    .replace("kind: RetrieverIndex\nmetadata:\n  name: quickstart", &format!("kind: RetrieverIndex\nmetadata:\n  name: \"{index}\""))
                    .replace("kind: S3TrainingJob\nmetadata:\n  name: quickstart", &format!("kind: S3TrainingJob\nmetadata:\n  name: \"{job}\""))
                    .replace("  serving:\n", &format!("  storage:\n    accessMode: ReadWriteMany\n  serving:\n    replicas: {retrievers}\n"))
            })
            .collect();
        let plan = planned(&texts);
        check(&rendered(&plan, &surroundings()).unwrap());
    }
}
