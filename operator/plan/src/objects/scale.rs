//! Servers that follow the load: a `HorizontalPodAutoscaler`, in whichever version the cluster serves.

use super::Context;
use crate::objects::Object;
use crate::{PlanError, Role};
use kube::core::DynamicObject;
use s3_crds::Autoscaling;
use serde_json::json;

/// The metric of the pods that is followed.
const METRIC: &str = "s3_retriever_waiting_queries";

/// How a component's servers follow the load, where they are asked to and something can make them.
pub(crate) fn of<'a>(context: &Context<'a>) -> Option<(&'a str, Autoscaling)> {
    let version = context.surroundings.autoscaling.as_deref()?;
    let scaling = context.plan.placements.of(context.component).autoscaling?;
    (context.component.role == Role::Service).then_some((version, scaling))
}

/// Pods that there may be at most.
pub(crate) fn most(context: &Context<'_>) -> u32 {
    let replicas = context.attempt.replicas;
    of(context).map_or(replicas, |(_, scaling)| scaling.max_replicas.max(replicas))
}

/// The autoscaler; the two versions that know metrics of pods have one form.
pub(crate) fn object(context: &Context<'_>) -> Result<Option<Object>, PlanError> {
    let Some((version, scaling)) = of(context) else { return Ok(None) };
    let name = context.component.name.clone();
    let object = json!({
        "apiVersion": format!("autoscaling/{version}"),
        "kind": "HorizontalPodAutoscaler",
        "metadata": context.metadata(name.clone(), context.labels(), context.owners.to_vec()),
        "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name },
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": [{
                "type": "Pods",
                "pods": {
                    "metric": { "name": METRIC },
                    "target": { "type": "AverageValue", "averageValue": scaling.target_queue_depth.to_string() },
                },
            }],
        },
    });
    let object: DynamicObject = serde_json::from_value(object).map_err(PlanError::defect)?;
    Ok(Some(Object::Other(Box::new(object))))
}
