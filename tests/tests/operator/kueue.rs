//! Kueue's part: its API, and a queue that admits and takes back when a test says so.

use crate::setup::{PATIENCE, Setup, resource};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const VERSION: &str = "kueue.x-k8s.io/v1beta2";
/// Where the queue finds room: labels that the fake nodes have.
pub const FLAVOR: &str = "linux";

/// Installs the API and the flavour.
pub async fn install(client: &Client) {
    let crds: Api<DynamicObject> =
        Api::all_with(client.clone(), &resource("apiextensions.k8s.io/v1", "CustomResourceDefinition"));
    for document in include_str!("fixtures/kueue.yaml").split("\n---\n") {
        let crd: Value = serde_yaml_ng::from_str(document).unwrap();
        let params = PatchParams::apply("setup").force();
        crds.patch(crd["metadata"]["name"].as_str().unwrap(), &params, &Patch::Apply(&crd)).await.unwrap();
    }
    serve(client).await;
    let flavors: Api<DynamicObject> = Api::all_with(client.clone(), &resource(VERSION, "ResourceFlavor"));
    let workloads: Api<DynamicObject> = Api::all_with(client.clone(), &resource(VERSION, "Workload"));
    let flavor = json!({"apiVersion": VERSION, "kind": "ResourceFlavor", "metadata": {"name": FLAVOR},
        "spec": {"nodeLabels": {"kubernetes.io/os": "linux"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}});
    let end = Instant::now() + PATIENCE;
    loop {
        let made = flavors.patch(FLAVOR, &PatchParams::apply("setup").force(), &Patch::Apply(&flavor)).await;
        if made.is_ok() && workloads.list(&ListParams::default().limit(1)).await.is_ok() {
            return;
        }
        assert!(Instant::now() < end, "Kueue's kinds are not served: {made:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Where CRDs are served by a server of their own, the group has to be told of, as ours is. Not before its kinds are
/// there: a group that cannot be discovered keeps namespaces from going.
async fn serve(client: &Client) {
    let services: Api<DynamicObject> =
        Api::all_with(client.clone(), &resource("apiregistration.k8s.io/v1", "APIService"));
    let Some(ours) = services.get_opt("v1alpha1.searchagent.dev").await.unwrap() else { return };
    let mut spec = ours.data["spec"].clone();
    if spec["service"].is_null() {
        return;
    }
    (spec["group"], spec["version"]) = (json!("kueue.x-k8s.io"), json!("v1beta2"));
    let name = "v1beta2.kueue.x-k8s.io";
    let service = json!({"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": name},
        "spec": spec});
    let service: DynamicObject = serde_json::from_value(service).unwrap();
    match services.create(&PostParams::default(), &service).await {
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        other => drop(other.unwrap()),
    }
}

pub fn workloads(setup: &Setup) -> Api<DynamicObject> {
    setup.api(VERSION, "Workload")
}

/// A Workload of the namespace, if it is there.
pub async fn workload(setup: &Setup, name: &str) -> Option<Value> {
    let found = workloads(setup).get_opt(name).await.unwrap()?;
    Some(json!({"metadata": found.metadata, "spec": found.data["spec"], "status": found.data["status"]}))
}

fn conditions(all: &[(&str, bool, &str, &str)]) -> Value {
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    all.iter()
        .map(|(type_, status, reason, message)| {
            json!({"type": type_, "status": if *status { "True" } else { "False" }, "reason": reason,
                "message": message, "lastTransitionTime": now})
        })
        .collect()
}

async fn set(setup: &Setup, name: &str, status: Value) {
    let patch = Patch::Merge(json!({ "status": status }));
    workloads(setup).patch_status(name, &PatchParams::default(), &patch).await.unwrap();
}

/// The status of a Workload whose quota is granted.
fn granted(spec: &Value) -> Value {
    let sets = spec["podSets"].as_array().unwrap().iter();
    let assignments: Vec<Value> =
        sets.map(|set| json!({"name": set["name"], "count": set["count"], "flavors": {"cpu": FLAVOR}})).collect();
    json!({
        "admission": {"clusterQueue": "cluster", "podSetAssignments": assignments},
        "conditions": conditions(&[
            ("QuotaReserved", true, "QuotaReserved", "quota reserved in cluster"),
            ("Admitted", true, "Admitted", "the workload is admitted"),
            ("Evicted", false, "QuotaReserved", "previously evicted"),
        ]),
    })
}

/// Grants the quota.
pub async fn admit(setup: &Setup, name: &str) {
    let live = workload(setup, name).await.unwrap();
    set(setup, name, granted(&live["spec"])).await;
}

/// A queue with room for everybody: what asks is admitted.
pub struct Queue(tokio::task::JoinHandle<()>);

impl Queue {
    /// Begins to admit.
    pub fn start(setup: &Setup) -> Self {
        let api = workloads(setup);
        Self(tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(100)).await;
                // The API server may be away for a while.
                let Ok(all) = api.list(&ListParams::default()).await else { continue };
                for workload in all.iter().filter(|workload| workload.data.pointer("/status/admission").is_none()) {
                    let status = json!({ "status": granted(&workload.data["spec"]) });
                    let _ =
                        api.patch_status(&workload.name_any(), &PatchParams::default(), &Patch::Merge(status)).await;
                }
            }
        }))
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Says why it is not granted yet.
pub async fn hold_back(setup: &Setup, name: &str, why: &str) {
    set(setup, name, json!({"conditions": conditions(&[("QuotaReserved", false, "Pending", why)])})).await;
}

/// Asks for the quota back; the admission stays until the Workload's owner takes it out.
pub async fn preempt(setup: &Setup, name: &str) {
    let taken = [
        ("QuotaReserved", true, "QuotaReserved", "quota reserved in cluster"),
        ("Admitted", true, "Admitted", "the workload is admitted"),
        ("Evicted", true, "Preempted", "preempted for something more important"),
    ];
    set(setup, name, json!({"conditions": conditions(&taken)})).await;
}

/// Whether a Workload holds quota.
pub async fn holds_quota(setup: &Setup, name: &str) -> bool {
    workload(setup, name).await.is_some_and(|live| !live["status"]["admission"].is_null())
}

/// Makes the Workload that Kueue makes for a Job with a queue's label.
pub async fn for_job(setup: &Setup, job: &DynamicObject) -> String {
    let name = format!("job-{}", job.name_any());
    let owner = OwnerReference {
        api_version: "batch/v1".into(),
        kind: "Job".into(),
        name: job.name_any(),
        uid: job.uid().unwrap(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    let object = json!({"apiVersion": VERSION, "kind": "Workload",
        "metadata": {"name": name, "labels": {"kueue.x-k8s.io/job-uid": job.uid()}, "ownerReferences": [owner]},
        "spec": {"queueName": "gpus", "podSets": [{"name": "main", "count": 1, "template": {"spec": {"containers": []}}}]}});
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    workloads(setup).create(&PostParams::default(), &object).await.unwrap();
    name
}
