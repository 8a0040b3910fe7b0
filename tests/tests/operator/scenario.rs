//! Resources of the tests and the ends of their lives.

use crate::setup::Setup;
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::Api;
use kube::api::PostParams;
use s3_crds::Kind;
use serde_json::{Value, json};

/// Name of every resource.
pub const NAME: &str = "a";
/// The gateway of models built in.
pub const GATEWAY: &str = "gateway-built-in";

fn object(kind: Kind, spec: &Value) -> Value {
    json!({"apiVersion": s3_crds::API_VERSION, "kind": kind.name(), "metadata": {"name": NAME}, "spec": spec})
}

fn generator() -> Value {
    json!({"provider": {"builtIn": {"model": {"uri": "pvc://data/m.gguf"}}}})
}

/// A small index.
pub fn index() -> Value {
    object(
        Kind::RetrieverIndex,
        &json!({"source": {"build": {"corpus": {"uri": "pvc://data/c.jsonl"}, "lexical": {}}}}),
    )
}

/// A job of three steps.
pub fn job() -> Value {
    object(
        Kind::S3TrainingJob,
        &json!({
            "searcher": {"model": {"uri": "pvc://data/m.gguf"}},
            "retriever": {"indexRef": {"name": NAME}},
            "generator": generator(),
            "data": {"datasets": [{"name": "nq", "uri": "pvc://data/nq.jsonl"}]},
            "steps": 3,
            "failurePolicy": {"backoff": "1s", "maxBackoff": "1s", "maxAttempts": 3},
        }),
    )
}

/// An evaluation without a trained searcher.
pub fn run() -> Value {
    object(
        Kind::EvalRun,
        &json!({
            "arms": [{"name": "direct", "method": "Direct"}, {"name": "rag", "method": "Rag", "topK": 3}],
            "retriever": {"indexRef": {"name": NAME}},
            "generator": generator(),
            "datasets": [{"name": "nq", "uri": "pvc://data/nq.jsonl"}],
        }),
    )
}

/// Name of the template of a schedule.
pub const TEMPLATE: &str = "full";

/// An evaluation of the job's searcher that is a template alone.
pub fn template() -> Value {
    let mut run = run();
    run["metadata"]["name"] = json!(TEMPLATE);
    run["spec"]["suspend"] = json!(true);
    run["spec"]["arms"] = json!([
        {"name": "rag", "method": "Rag", "topK": 3},
        {"name": "s3", "method": "S3", "searcher": {"jobRef": {"name": NAME}}},
    ]);
    run
}

/// A schedule after the template.
pub fn every(steps: u32) -> Value {
    json!({"runs": {"every": steps, "templateRef": {"name": TEMPLATE}}})
}

/// Searchers that a training says it has kept, by step.
pub fn milestones(steps: &[u32]) -> Value {
    steps.iter().map(|step| (step.to_string(), json!(format!("{step:064x}")))).collect::<serde_json::Map<_, _>>().into()
}

/// The claim with a person's own files.
pub async fn data(setup: &Setup) {
    let claim = json!({
        "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": ""},
    });
    let claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
    Api::namespaced(setup.client.clone(), &setup.namespace).create(&PostParams::default(), &claim).await.unwrap();
}

/// A resource and what it needs.
pub async fn begin(setup: &Setup, kind: Kind) {
    begin_with(setup, kind, |_| {}).await;
}

/// The same with a change of the resource.
pub async fn begin_with(setup: &Setup, kind: Kind, change: impl FnOnce(&mut Value)) {
    data(setup).await;
    setup.apply(Kind::RetrieverIndex, &index()).await;
    let mut object = match kind {
        Kind::RetrieverIndex => return,
        Kind::S3TrainingJob => job(),
        Kind::EvalRun => run(),
    };
    change(&mut object);
    setup.apply(kind, &object).await;
}

/// The good end of a resource.
pub async fn ended(setup: &Setup, kind: Kind) {
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "Ready").await;
    match kind {
        Kind::RetrieverIndex => {}
        Kind::S3TrainingJob => setup.until_reason(kind, NAME, "Succeeded", "StepsDone").await,
        Kind::EvalRun => setup.until_reason(kind, NAME, "Succeeded", "Complete").await,
    }
    // a finished user needs no gateway
    setup
        .until("the gateway is gone", async || {
            setup.api("apps/v1", "Deployment").get_opt(GATEWAY).await.unwrap().is_none()
        })
        .await;
}
