//! A Kueue Workload that spans all attempts of a job, for `queue.mode: Workload`.

use super::labels::{MANAGER, label_value};
use super::{KIND_LABEL, NAME_LABEL, Object, Surroundings};
use crate::names::join;
use crate::{Component, Plan, PlanError, Role};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::DynamicObject;
use s3_crds::QueueMode;
use serde_json::{Value, json};

/// The Workload of a resource (`Kind`, name), when it asks for one.
///
/// Its pod sets are the resource's jobs: of those that run one after another the largest is admitted once, and
/// its place is kept for all of them and for every attempt. The Jobs themselves carry no queue label.
pub fn workload(
    plan: &Plan,
    (kind, name): (&str, &str),
    surroundings: &Surroundings,
    owners: &[OwnerReference],
) -> Result<Option<Object>, PlanError> {
    let owner = format!("{kind}/{name}");
    let jobs: Vec<&Component> =
        plan.components.iter().filter(|c| c.role == Role::Job && c.owners.contains(&owner)).collect();
    let size = |component: &&&Component| {
        let placement = plan.placements.of(component);
        (component.resources.gpus * placement.replicas, placement.replicas)
    };
    let Some(largest) = jobs.iter().max_by_key(size) else { return Ok(None) };
    let placement = plan.placements.of(largest);
    let Some(queue) = placement.queue.as_ref().filter(|queue| queue.mode == QueueMode::Workload) else {
        return Ok(None);
    };
    let mut requests = serde_json::to_value(&placement.resources.requests).map_err(PlanError::defect)?;
    if let (Value::Object(requests), true) = (&mut requests, largest.resources.gpus > 0) {
        requests.insert("nvidia.com/gpu".into(), json!(largest.resources.gpus.to_string()));
    }
    let template = json!({
        "spec": {
            "restartPolicy": "Never",
            "containers": [{ "name": "worker", "image": "worker", "resources": { "requests": requests } }],
            "nodeSelector": placement.pod.node_selector,
            "tolerations": placement.pod.tolerations,
        },
    });
    let mut labels = surroundings.labels.clone();
    for (key, value) in [("app.kubernetes.io/managed-by", MANAGER), (KIND_LABEL, kind), (NAME_LABEL, name)] {
        labels.insert(key.to_owned(), label_value(value));
    }
    let mut spec = json!({
        "queueName": queue.name,
        "podSets": [{ "name": "worker", "count": placement.replicas, "template": template }],
    });
    if let Some(class) = &placement.pod.priority_class_name {
        spec["priorityClassName"] = json!(class);
        spec["priorityClassSource"] = json!("scheduling.k8s.io/priorityclass");
    }
    let object = json!({
        "apiVersion": "kueue.x-k8s.io/v1beta1",
        "kind": "Workload",
        "metadata": {
            "name": join(name, "queue"),
            "namespace": surroundings.namespace,
            "labels": labels,
            "ownerReferences": owners,
        },
        "spec": spec,
    });
    let object: DynamicObject = serde_json::from_value(object).map_err(PlanError::defect)?;
    Ok(Some(Object::Other(Box::new(object))))
}
