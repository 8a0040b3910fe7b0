//! Plans and their objects, for all tests.

use crate::common::{example, finished, gateway_of, quickstart, uid};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use s3_plan::objects::{Attempt, Image, Images, Network, Object, Surroundings, render};
use s3_plan::{Plan, PlanError, Resources, plan};
use std::collections::BTreeMap;

pub fn surroundings() -> Surroundings {
    let image = |name: &str| (name.to_owned(), Image { cpu: format!("example.org/{name}:1"), cuda: None });
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Surroundings {
        namespace: "search".into(),
        images: Images {
            by_binary: ["s3-retriever", "s3-generator-gateway", "s3-trainer", "s3-evaluator", "s3-fetch"]
                .map(image)
                .into(),
            pull_policy: Some("IfNotPresent".into()),
            pull_secrets: Vec::new(),
        },
        operator_address: Some("http://s3-operator.s3-system.svc:9000".into()),
        network: Network {
            enabled: true,
            operator_pods: map("app.kubernetes.io/name", "s3-operator"),
            ..Network::default()
        },
        ..Surroundings::default()
    }
}

pub fn try_planned(texts: &[String]) -> Result<Plan, PlanError> {
    let mut resources = Resources::default();
    for text in texts {
        resources.add_manifest("test.yaml", None, text).unwrap();
    }
    plan(&resources)
}

pub fn planned(texts: &[String]) -> Plan {
    try_planned(texts).unwrap()
}

pub fn owners(component: &s3_plan::Component) -> Vec<OwnerReference> {
    let reference = |owner: &String| {
        let (kind, name) = owner.split_once('/').unwrap();
        OwnerReference {
            api_version: s3_crds::API_VERSION.into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid(owner),
            ..OwnerReference::default()
        }
    };
    component.owners.iter().map(reference).collect()
}

pub fn rendered(plan: &Plan, around: &Surroundings) -> Result<Vec<Object>, PlanError> {
    let observed = finished(plan);
    let mut all = Vec::new();
    for component in &plan.components {
        let attempt = Attempt::of(plan, component, 3);
        all.extend(render(plan, &observed, component, &attempt, around, &owners(component))?);
    }
    Ok(all)
}

/// The quickstart's index, built by several workers on a volume of one kind.
pub fn built_by(workers: u32, mode: &str) -> String {
    let text = example("quickstart", "retrieverindex.yaml");
    let (head, rest) = text.split_once("        # made by").unwrap();
    let (_, rest) = rest.split_once("          verify: 64\n").unwrap();
    let build = format!("  source:\n    build:\n      workers: {workers}\n");
    let storage = format!("  storage:\n    accessMode: {mode}\n  serving:\n");
    format!("{head}{rest}").replace("  source:\n    build:\n", &build).replace("  serving:\n", &storage)
}

pub fn served_by_endpoint() -> Vec<String> {
    let built_in = gateway_of(&quickstart()[0]);
    let open = "      openAiCompatible:\n        endpoint: https://api.example.org/v1\n        model: m\n        apiKeySecretRef:\n          name: keys.example.org\n          key: token\n";
    quickstart().iter().map(|text| text.replace(&built_in, open)).collect()
}

pub fn pod(object: &Object) -> Option<&PodTemplateSpec> {
    match object {
        Object::Job(job) => Some(&job.spec.as_ref()?.template),
        Object::Deployment(deployment) => Some(&deployment.spec.as_ref()?.template),
        _ => None,
    }
}

pub fn pod_labels(object: &Object) -> Option<&BTreeMap<String, String>> {
    pod(object)?.metadata.as_ref()?.labels.as_ref()
}
