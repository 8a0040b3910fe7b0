//! The servers of a component: held as the plan says, or taken down.

use crate::key::Key;
use crate::operator::Shared;
use crate::world::SCALER;
use crate::write::Trouble;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use s3_plan::Component;
use s3_plan::objects::Object;

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

/// Takes down all of a service but its volume, as far as it `goes`; its pods answer what they have taken, then go.
pub async fn take_down(
    shared: &Shared,
    key: &Key,
    namespace: &str,
    name: &str,
    goes: impl Fn(&ObjectMeta) -> bool + Sync,
) -> Result<(), Trouble> {
    let world = &shared.world;
    for service in world.services.group_of(namespace, name).values().filter(|service| goes(&service.metadata)) {
        shared.writer.delete(key, "Service", &service.metadata).await?;
    }
    for policy in world.policies.group_of(namespace, name).values().filter(|policy| goes(&policy.metadata)) {
        shared.writer.delete(key, "NetworkPolicy", &policy.metadata).await?;
    }
    for config in world.config_maps.group_of(namespace, name).values().filter(|config| goes(&config.metadata)) {
        shared.writer.delete(key, "ConfigMap", &config.metadata).await?;
    }
    // The Deployment last: while it is there, what is left of the others is found again.
    match world.deployments.get(namespace, name).filter(|deployment| goes(&deployment.metadata)) {
        Some(deployment) => shared.writer.delete(key, "Deployment", &deployment.metadata).await,
        None => Ok(()),
    }
}
