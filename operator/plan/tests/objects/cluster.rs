//! Plans of what a cluster holds: as a laptop plans it, whoever else is there.

use crate::common::{finished, quickstart};
use crate::support::planned;
use s3_crds::Kind;
use s3_plan::{ComponentKind, Resources, Role, fingerprint, plan};
use serde_json::{Value, json};
use std::collections::BTreeMap;

fn value_of(text: &str) -> (Kind, Value) {
    let value: Value = serde_yaml_ng::from_str(text).unwrap();
    (Kind::from_name(value["kind"].as_str().unwrap()).unwrap(), value)
}

#[test]
fn a_cluster_plans_what_a_laptop_plans_and_a_bad_object_harms_no_other() {
    let mut values: Vec<(Kind, Value)> = quickstart().iter().map(|text| value_of(text)).collect();
    for (_, value) in &mut values {
        value["metadata"]["uid"] = json!("1");
        value["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
        value["status"] = json!({"observedGeneration": 1});
    }
    let (resources, refused) = Resources::from_cluster(values.clone());
    assert_eq!(refused, BTreeMap::new());
    assert_eq!(plan(&resources).unwrap().components, planned(&quickstart()).components);

    for (name, change) in [("unsupported", json!({"stop": {"patience": 3}})), ("unknown", json!({"stepz": 3}))] {
        let mut bad = values.iter().find(|(kind, _)| *kind == Kind::S3TrainingJob).unwrap().clone();
        bad.1["metadata"]["name"] = json!(name);
        bad.1["spec"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        values.push(bad);
    }
    let (resources, refused) = Resources::from_cluster(values);
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["S3TrainingJob/unknown", "S3TrainingJob/unsupported"]);
    assert!(refused["S3TrainingJob/unknown"][0].to_string().contains("stepz"));
    assert_eq!(plan(&resources).unwrap().components, planned(&quickstart()).components);
}

#[test]
fn a_job_stays_what_it_is_while_others_come_and_share_its_gateway() {
    let mut values: Vec<(Kind, Value)> = quickstart().iter().map(|text| value_of(text)).collect();
    let mut other = values.iter().find(|(kind, _)| *kind == Kind::S3TrainingJob).unwrap().clone();
    other.1["metadata"]["name"] = json!("other");
    other.1["spec"]["generator"]["provider"]["builtIn"]["model"]["uri"] = json!("pvc://data/models/another.gguf");
    let identity = |values: &[(Kind, Value)], whole: bool| {
        let (resources, _) = Resources::from_cluster(values.to_vec());
        let part = if whole { resources } else { resources.around(Kind::S3TrainingJob, "quickstart") };
        let plan = plan(&part).unwrap();
        let train = plan.component("quickstart-train").unwrap();
        let gateway = plan.components.iter().find(|c| c.kind == ComponentKind::Gateway).unwrap();
        let providers = gateway.config.value["providers"].as_array().unwrap().len();
        (fingerprint(&plan, train, &finished(&plan)).unwrap(), providers)
    };
    let (alone, one) = identity(&values, true);
    let (part, _) = identity(&values, false);
    values.push(other);
    let (together, two) = identity(&values, true);
    assert_eq!((one, two), (1, 2), "the gateway serves both models");
    assert_eq!((&alone, &alone), (&part, &together));
}

#[test]
fn equal_needs_of_a_gateway_are_one_need_and_a_budget_is_another() {
    let values: Vec<(Kind, Value)> = quickstart().iter().map(|text| value_of(text)).collect();
    let needs = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut values = values.clone();
        values.retain(|(kind, _)| *kind != Kind::EvalRun);
        let (_, job) = values.iter_mut().find(|(kind, _)| *kind == Kind::S3TrainingJob).unwrap();
        job["metadata"]["name"] = json!(name);
        change(job);
        let plan = plan(&Resources::from_cluster(values).0).unwrap();
        s3_plan::shared_needs(&plan, &format!("S3TrainingJob/{name}")).unwrap()
    };
    let first = needs("first", &|_| {});
    assert_eq!(first.keys().collect::<Vec<_>>(), ["gateway-built-in"]);
    assert_eq!(first, needs("second", &|job| job["spec"]["steps"] = json!(7)), "whoever asks, and for what work");
    let model = |job: &mut Value| {
        job["spec"]["generator"]["provider"]["builtIn"]["model"]["uri"] = json!("pvc://data/models/another.gguf");
    };
    assert_ne!(first, needs("third", &model));
    let budget = |job: &mut Value| job["spec"]["generator"]["budget"] = json!({"calls": 100});
    assert_ne!(needs("first", &budget), needs("second", &budget), "each is charged by itself");
}

#[test]
fn the_part_around_a_resource_plans_it_as_the_whole_does() {
    let (resources, _) = Resources::from_cluster(quickstart().iter().map(|text| value_of(text)));
    let whole = plan(&resources).unwrap();
    for (kind, components) in [
        (Kind::RetrieverIndex, vec!["quickstart-index"]),
        (Kind::S3TrainingJob, vec!["quickstart-baseline", "quickstart-train"]),
        (Kind::EvalRun, vec!["quickstart-eval"]),
    ] {
        let part = plan(&resources.around(kind, "quickstart")).unwrap();
        for name in components {
            assert_eq!(part.component(name), whole.component(name));
            let component = whole.component(name).unwrap();
            assert_eq!(component.role, Role::Job);
            assert_eq!(
                fingerprint(&part, component, &finished(&part)),
                fingerprint(&whole, component, &finished(&whole)),
                "{name}"
            );
        }
        assert!(part.components.len() <= whole.components.len());
    }
}
