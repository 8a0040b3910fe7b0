//! Model servers that the operator runs for gateways; no node here has a GPU, so the tests play them.

use crate::kubelet::Play;
use crate::kueue;
use crate::scenario::{self, NAME};
use crate::setup::Setup;
use crate::snapshot::{made, settled};
use s3_crds::Kind;
use serde_json::{Value, json};

/// Name of the only server of a namespace.
async fn server(setup: &Setup) -> Option<String> {
    made(setup).await.get("Deployment")?.iter().find(|name| name.starts_with("model-server-")).cloned()
}

/// A job whose generator is served beside it gets server, gateway and attempt in that order, and the quota of both at
/// once; a suspended one holds none of them.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_server_is_there_while_it_is_used() {
    let setup = Setup::new("server").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Run);
    scenario::data(&setup).await;
    setup.apply(Kind::RetrieverIndex, &scenario::index()).await;
    let kind = Kind::S3TrainingJob;
    let mut job = scenario::job();
    job["spec"]["generator"]["provider"] = json!({"managed": {
        "model": {"uri": "pvc://data/model"},
        "resources": {"requests": {"nvidia.com/gpu": "4"}},
        "pod": {"image": "example.org/vllm:1"},
    }});
    job["spec"]["queue"] = json!({"name": "gpus"});
    setup.apply(kind, &job).await;
    setup.until("its Workload is there", async || kueue::workload(&setup, "a-job-queue").await.is_some()).await;
    let workload = kueue::workload(&setup, "a-job-queue").await.unwrap();
    let sets = workload["spec"]["podSets"].as_array().unwrap();
    assert_eq!(sets.len(), 2, "{workload}");
    let requests = &sets[1]["template"]["spec"]["containers"][0]["resources"]["requests"];
    assert_eq!(requests["nvidia.com/gpu"], "4");
    assert_eq!(server(&setup).await, None, "no GPU is held before");

    kueue::admit(&setup, "a-job-queue").await;
    setup.until("its server is there", async || server(&setup).await.is_some()).await;
    let name = server(&setup).await.unwrap();
    setup.until_reason(kind, NAME, "Training", "Stepping").await;
    let deployment = setup.api("apps/v1", "Deployment").get(&name).await.unwrap();
    let pod = deployment.data.pointer("/spec/template/spec").unwrap();
    let container = &pod["containers"][0];
    assert_eq!(container["args"][0], "/volumes/data/model");
    assert_eq!(container["resources"]["limits"]["nvidia.com/gpu"], "4", "{container}");
    let maps = setup.api("v1", "ConfigMap").list(&kube::api::ListParams::default()).await.unwrap();
    let address = format!("http://{name}.{}.svc:8080/v1", setup.namespace);
    let points = |map: &kube::api::DynamicObject| map.data["data"].to_string().contains(&address);
    assert!(maps.iter().any(points), "no gateway points to {address}");
    settled(&setup).await;

    // A server that does not answer holds up the next attempt, and the message names it.
    setup.change(kind, NAME, json!({"spec": {"suspend": true}})).await;
    setup.until_reason(kind, NAME, "Suspended", "Suspended").await;
    setup.until("its server is gone", async || server(&setup).await.is_none()).await;
    setup.until("its quota is free", async || kueue::workload(&setup, "a-job-queue").await.is_none()).await;
    setup.kubelet.play(&name, Play::NoImage);
    setup.change(kind, NAME, json!({"spec": {"suspend": false}})).await;
    setup.until("it queues anew", async || kueue::workload(&setup, "a-job-queue").await.is_some()).await;
    kueue::admit(&setup, "a-job-queue").await;
    setup
        .until("the message names the server", async || {
            let job = setup.resources(kind).get(NAME).await.unwrap();
            let conditions = job.data["status"]["conditions"].as_array().unwrap();
            let waits = |c: &Value| c["reason"] == "WaitingForGenerator" && c["message"].to_string().contains(&name);
            conditions.iter().any(waits)
        })
        .await;
    setup.kubelet.play(&name, Play::Run);
    setup.until_reason(kind, NAME, "Succeeded", "StepsDone").await;
    setup.until("its server is gone", async || server(&setup).await.is_none()).await;
    settled(&setup).await;
    setup.done().await;
}
