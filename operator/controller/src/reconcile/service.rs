//! The servers of a component: held as the plan says, or taken down.

use crate::key::Key;
use crate::operator::Shared;
use crate::world::SCALER;
use crate::write::Trouble;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use s3_plan::Component;
use s3_plan::objects::{MANAGER, Object};

/// Holds the objects of a service, and drops the configurations that no server reads any more.
pub async fn hold(
    shared: &Shared,
    key: &Key,
    namespace: &str,
    server: &Component,
    objects: &[Object],
    owners: &[OwnerReference],
) -> Result<(), Trouble> {
    for object in objects {
        shared.writer.hold(key, object, owners).await?;
    }
    if let Some(scaler) = shared.world.autoscalers.get(namespace, &server.name)
        && !objects.iter().any(|object| object.kind() == SCALER)
    {
        shared.writer.delete(key, SCALER, &scaler.metadata).await?;
    }
    let Some(deployment) = shared.world.deployments.get(namespace, &server.name) else { return Ok(()) };
    let status = deployment.status.clone().unwrap_or_default();
    let spec = deployment.spec.clone().unwrap_or_default();
    let reads = serde_json::to_string(&spec.template).unwrap_or_default();
    let settled = status.observed_generation >= deployment.metadata.generation
        && status.replicas == status.updated_replicas
        && status.available_replicas == status.replicas;
    if !settled {
        return Ok(());
    }
    for (name, config_map) in shared.world.config_maps.group_of(namespace, &server.name) {
        if objects.iter().all(|object| object.name() != name) && !reads.contains(&format!("\"{name}\"")) {
            shared.writer.delete(key, "ConfigMap", &config_map.metadata).await?;
        }
    }
    Ok(())
}

/// Takes down the servers of a resource that goes: the garbage collector would leave those that somebody took the owner
/// from, which may be too recent to be seen.
pub async fn take_down_of(shared: &Shared, key: &Key, namespace: &str, name: &str, uid: &str) -> Result<(), Trouble> {
    let world = &shared.world;
    for service in world.services.group_of(namespace, name).values().filter(|service| own(&service.metadata, uid)) {
        shared.writer.delete(key, "Service", &service.metadata).await?;
    }
    for policy in world.policies.group_of(namespace, name).values().filter(|policy| own(&policy.metadata, uid)) {
        shared.writer.delete(key, "NetworkPolicy", &policy.metadata).await?;
    }
    for config in world.config_maps.group_of(namespace, name).values().filter(|config| own(&config.metadata, uid)) {
        shared.writer.delete(key, "ConfigMap", &config.metadata).await?;
    }
    let deployment = world.deployments.get(namespace, name).filter(|deployment| own(&deployment.metadata, uid));
    match deployment {
        Some(deployment) => shared.writer.delete(key, "Deployment", &deployment.metadata).await,
        None => Ok(()),
    }
}

/// Whether an object is the operator's, and of that owner or of nobody.
fn own(meta: &ObjectMeta, uid: &str) -> bool {
    let manager = meta.labels.as_ref().and_then(|labels| labels.get("app.kubernetes.io/managed-by"));
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    manager.is_some_and(|manager| manager == MANAGER)
        && (owners.is_empty() || owners.iter().any(|owner| owner.uid == uid))
}

/// Takes everything of a service down but its volume; its pods answer what they have taken, then go.
pub async fn take_down(shared: &Shared, key: &Key, deployment: &Deployment) -> Result<(), Trouble> {
    let (namespace, name) = (deployment.namespace().unwrap_or_default(), deployment.name_any());
    // The Deployment last: while it is there, what is left of the others is found again.
    for service in shared.world.services.group_of(&namespace, &name).values() {
        shared.writer.delete(key, "Service", &service.metadata).await?;
    }
    for policy in shared.world.policies.group_of(&namespace, &name).values() {
        shared.writer.delete(key, "NetworkPolicy", &policy.metadata).await?;
    }
    for config_map in shared.world.config_maps.group_of(&namespace, &name).values() {
        shared.writer.delete(key, "ConfigMap", &config_map.metadata).await?;
    }
    shared.writer.delete(key, "Deployment", &deployment.metadata).await
}
