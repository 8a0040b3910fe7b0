//! A Kueue Workload that spans all attempts of a job, for `queue.mode: Workload`.

use super::labels::{MANAGER, label_value};
use super::{KIND_LABEL, NAME_LABEL, Object, Surroundings};
use crate::names::{join, short_digest};
use crate::{Component, ComponentKind, Placement, Plan, PlanError, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::DynamicObject;
use s3_crds::{Queue, QueueMode};
use serde_json::{Value, json};

/// Pod set of the resource's jobs.
pub const WORKER_SET: &str = "worker";
/// API group of Kueue.
pub const KUEUE: &str = "kueue.x-k8s.io";

/// What of a Workload only the cluster knows.
#[derive(Clone, Debug)]
pub struct Queueing<'a> {
    /// The version of Kueue's API (`v1beta2`); what is written is equal in all of them.
    pub version: &'a str,
    /// Value of the pods' priority class.
    pub priority: Option<i32>,
}

/// Name of the Workload of a resource (`Kind`, name).
pub fn workload_name((kind, name): (&str, &str)) -> String {
    join(name, if kind == "EvalRun" { "run-queue" } else { "job-queue" })
}

/// The queue that a resource (`Kind`, name) enters with a Workload, and the priority class of its pods.
pub fn queue_of(plan: &Plan, resource: (&str, &str)) -> Option<(Queue, Option<String>)> {
    let (_, placement) = largest(plan, resource)?;
    let queue = placement.queue.filter(|queue| queue.mode == QueueMode::Workload)?;
    Some((queue, placement.pod.priority_class_name))
}

/// Of the jobs that run one after another, the one that asks for most.
fn largest<'a>(plan: &'a Plan, (kind, name): (&str, &str)) -> Option<(&'a Component, Placement)> {
    let owner = format!("{kind}/{name}");
    let jobs = plan.components.iter().filter(|c| c.role == Role::Job && c.owners.contains(&owner));
    jobs.map(|component| (component, plan.placements.of(component)))
        .filter(|(_, placement)| placement.queue.is_some())
        .max_by_key(|(component, placement)| (component.resources.gpus * placement.replicas, placement.replicas))
}

/// The Workload of a resource (`Kind`, name), when it asks for one.
///
/// Its pod sets are the resource's job and the servers on GPUs that it works with, admitted together: of the jobs that
/// run one after another the largest is admitted once, and its place is kept for all of them and for every attempt.
/// The Jobs themselves carry no queue label. A server that several resources share counts in each of their Workloads.
pub fn workload(
    plan: &Plan,
    resource: (&str, &str),
    surroundings: &Surroundings,
    owners: &[OwnerReference],
    queueing: &Queueing<'_>,
) -> Result<Option<Object>, PlanError> {
    let (kind, name) = resource;
    let Some((queue, _)) = queue_of(plan, resource) else { return Ok(None) };
    let Some((job, placement)) = largest(plan, resource) else { return Ok(None) };
    let owner = format!("{kind}/{name}");
    let mut sets = vec![pod_set(WORKER_SET, job, &placement)?];
    let on_gpus = |c: &&Component| {
        matches!(c.kind, ComponentKind::ModelServer | ComponentKind::Retriever)
            && c.resources.gpus > 0
            && c.owners.contains(&owner)
    };
    for server in plan.components.iter().filter(on_gpus) {
        let placement = plan.placements.of(server);
        if placement.replicas > 0 {
            sets.push(pod_set(&set_name(&server.name), server, &placement)?);
        }
    }
    let mut labels = surroundings.labels.clone();
    for (key, value) in [("app.kubernetes.io/managed-by", MANAGER), (KIND_LABEL, kind), (NAME_LABEL, name)] {
        labels.insert(key.to_owned(), label_value(value));
    }
    let mut spec = json!({ "queueName": queue.name, "podSets": sets });
    if let Some(priority) = queueing.priority {
        spec["priority"] = json!(priority);
    }
    let object = json!({
        "apiVersion": format!("{KUEUE}/{}", queueing.version),
        "kind": "Workload",
        "metadata": {
            "name": workload_name(resource),
            "namespace": surroundings.namespace,
            "labels": labels,
            "ownerReferences": owners,
        },
        "spec": spec,
    });
    let object: DynamicObject = serde_json::from_value(object).map_err(PlanError::defect)?;
    Ok(Some(Object::Other(Box::new(object))))
}

/// A component's name as that of a pod set, which may not begin with a digit.
fn set_name(component: &str) -> String {
    if component.starts_with(|first: char| first.is_ascii_digit()) {
        return format!("s{}-{component}", short_digest(component));
    }
    component.to_owned()
}

fn pod_set(name: &str, component: &Component, placement: &Placement) -> Result<Value, PlanError> {
    let quantities = |map| -> Result<Value, PlanError> {
        let mut quantities = serde_json::to_value(map).map_err(PlanError::defect)?;
        if let (Value::Object(quantities), true) = (&mut quantities, component.resources.gpus > 0) {
            quantities.insert("nvidia.com/gpu".into(), json!(component.resources.gpus.to_string()));
        }
        Ok(quantities)
    };
    let (requests, limits) = (quantities(&placement.resources.requests)?, quantities(&placement.resources.limits)?);
    let mut spec = json!({
        "restartPolicy": if component.role == Role::Job { "Never" } else { "Always" },
        "containers": [{
            "name": "worker",
            "image": "worker",
            "resources": { "requests": requests, "limits": limits },
        }],
    });
    let pod = &placement.pod;
    if !pod.node_selector.is_empty() {
        spec["nodeSelector"] = json!(pod.node_selector);
    }
    if !pod.tolerations.is_empty() {
        spec["tolerations"] = json!(pod.tolerations);
    }
    if let Some(affinity) = &pod.affinity {
        spec["affinity"] = affinity.clone();
    }
    Ok(json!({ "name": name, "count": placement.replicas, "template": { "spec": spec } }))
}
