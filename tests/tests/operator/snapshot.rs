//! What a namespace holds, without what differs between two equal lives.

use crate::setup::{PATIENCE, Setup};
use kube::ResourceExt;
use kube::api::ListParams;
use s3_crds::Kind;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Kinds of objects that an operator makes.
pub const MADE: [(&str, &str); 7] = [
    ("batch/v1", "Job"),
    ("apps/v1", "Deployment"),
    ("v1", "Service"),
    ("v1", "ConfigMap"),
    ("v1", "PersistentVolumeClaim"),
    ("networking.k8s.io/v1", "NetworkPolicy"),
    ("kueue.x-k8s.io/v1beta2", "Workload"),
];

/// Names of what the operator made, by kind; what belongs to the namespace itself is left out.
pub async fn made(setup: &Setup) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    for (version, kind) in MADE {
        let list = setup.api(version, kind).list(&ListParams::default()).await.unwrap();
        let ours = list.iter().filter(|object| {
            object.labels().get("app.kubernetes.io/managed-by").map(String::as_str) == Some("s3-operator")
        });
        let mut names: Vec<String> = ours.map(ResourceExt::name_any).collect();
        names.sort();
        if !names.is_empty() {
            all.insert(kind.to_owned(), names);
        }
    }
    let pods = setup.api("v1", "Pod").list(&ListParams::default()).await.unwrap();
    let count = pods.iter().filter(|pod| pod.data.pointer("/status/phase") == Some(&json!("Running"))).count();
    all.insert("running pods".into(), vec![count.to_string()]);
    all
}

/// The state of a namespace: statuses without times, and what was made.
pub async fn state(setup: &Setup) -> Value {
    let mut statuses = BTreeMap::new();
    for kind in Kind::ALL {
        for object in setup.resources(kind).list(&ListParams::default()).await.unwrap() {
            let mut status = object.data.get("status").cloned().unwrap_or_default();
            if let Some(fields) = status.as_object_mut() {
                for time in ["startTime", "completionTime", "gpuSeconds", "endpoint", "queuedSince", "queueWaitSeconds"]
                {
                    fields.remove(time);
                }
                for condition in fields.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
                    let condition = condition.as_object_mut().unwrap();
                    condition.remove("lastTransitionTime");
                }
            }
            statuses.insert(format!("{}/{}", kind.name(), object.name_any()), status);
        }
    }
    let text = json!({"statuses": statuses, "made": made(setup).await}).to_string();
    serde_json::from_str(&text.replace(&setup.namespace, "NAMESPACE")).unwrap()
}

/// For a person who looks at a failed test.
pub async fn describe(setup: &Setup) -> String {
    let pods = setup.api("v1", "Pod").list(&ListParams::default()).await.unwrap();
    let pods: Vec<String> = pods
        .iter()
        .map(|pod| format!("{} {}", pod.name_any(), pod.data.pointer("/status").cloned().unwrap_or_default()))
        .collect();
    let writes = setup.proxy.writes();
    let last: Vec<String> =
        writes[writes.len().saturating_sub(25)..].iter().map(|(method, path)| format!("{method} {path}")).collect();
    let state = serde_json::to_string_pretty(&state(setup).await).unwrap();
    format!("{state}\npods:\n{}\n{} writes, the last:\n{}", pods.join("\n"), writes.len(), last.join("\n"))
}

/// Waits until the state stays as it is over a resync, and returns it with the number of writes so far.
pub async fn settled(setup: &Setup) -> (Value, usize) {
    let end = Instant::now() + PATIENCE;
    loop {
        let (before, writes) = (state(setup).await, setup.proxy.writes().len());
        // two periods of the operator's resync
        tokio::time::sleep(Duration::from_secs(4)).await;
        if state(setup).await == before && setup.proxy.writes().len() == writes {
            return (before, writes);
        }
        let last = setup.proxy.writes();
        assert!(
            Instant::now() < end,
            "it never settles; last writes: {:?}\n{}",
            &last[last.len().saturating_sub(20)..],
            setup.tail()
        );
    }
}
