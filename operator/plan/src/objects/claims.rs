//! The volumes that keep what components make: one claim per resource, one per gateway.

use super::Context;
use super::labels::belongs_to;
use crate::names::join;
use crate::objects::{Object, Surroundings};
use crate::{Component, ComponentKind, Plan, PlanError, Symbol};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimSpec, VolumeResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use s3_crds::{AccessMode, Storage, StorageMode};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of a claim beside what its components say they write.
const SPARE: u64 = 1 << 30;

/// The volume of a component's own folder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    /// Its name.
    pub name: String,
    /// Whether it is made here, as opposed to existing.
    pub made: bool,
    /// What was asked.
    pub storage: Storage,
    /// `Kind/name` of the resource whose field asks, or the gateway.
    pub resource: String,
    /// That field.
    pub field: &'static str,
}

/// The claim that keeps a component's folder; none for a component that keeps nothing.
pub(crate) fn claim_of(plan: &Plan, surroundings: &Surroundings, component: &Component) -> Option<Claim> {
    let (resource, storage, field, own) = match (component.kind, belongs_to(component)) {
        // Its servers read the index and keep nothing of their own.
        (ComponentKind::Retriever | ComponentKind::Searcher | ComponentKind::ModelServer, _) => return None,
        (ComponentKind::Gateway | ComponentKind::GatewayFetch, _) | (_, None) => {
            let gateway = gateway_of(plan, component);
            let own = format!("{gateway}-data");
            (gateway, surroundings.gateway_storage.clone(), "the operator's gateway storage", own)
        }
        (_, Some((kind, name))) => {
            let (suffix, field) = match kind {
                "RetrieverIndex" => ("index-data", "spec.storage"),
                "S3TrainingJob" => ("job-data", "spec.checkpoint.storage"),
                _ => ("run-data", "spec.storage"),
            };
            let resource = format!("{kind}/{name}");
            let storage = plan.placements.storage(&resource);
            (resource, storage, field, join(name, suffix))
        }
    };
    let made = storage.claim_name.is_none();
    Some(Claim { name: storage.claim_name.clone().unwrap_or(own), made, storage, resource, field })
}

/// Names of all claims that the components of a plan mount: their own, and those that the resources name.
pub fn claims_of_plan(plan: &Plan, surroundings: &Surroundings) -> BTreeSet<String> {
    let own = plan.components.iter().filter_map(|component| claim_of(plan, surroundings, component));
    let named = plan.components.iter().flat_map(|component| component.config.symbols());
    let named = named.filter_map(|symbol| match symbol {
        Symbol::Volume { name, .. } => Some(name),
        _ => None,
    });
    own.map(|claim| claim.name).chain(named).collect()
}

/// The gateway that a component is, or fetches for: both share one volume.
fn gateway_of(plan: &Plan, component: &Component) -> String {
    let user = plan.components.iter().find(|user| user.needs.contains(&component.name));
    match (component.kind, user) {
        (ComponentKind::GatewayFetch, Some(user)) => user.name.clone(),
        _ => component.name.clone(),
    }
}

/// Refuses what the claim cannot do for pods that mount it.
pub(crate) fn check(
    claim: &Claim,
    surroundings: &Surroundings,
    user: &Component,
    pods: u32,
    writes: bool,
) -> Result<(), PlanError> {
    let refuse =
        |field: String, reason: String| Err(PlanError::VolumeShape { resource: claim.resource.clone(), field, reason });
    if claim.storage.mode == StorageMode::LocalCopy {
        return refuse(format!("{}.mode", claim.field), "LocalCopy is not made yet; use Shared".into());
    }
    let wanted = claim.storage.access_mode;
    if claim.made && wanted == AccessMode::ReadOnlyMany {
        return refuse(
            format!("{}.accessMode", claim.field),
            "a claim that is made here must be written; use ReadWriteOnce or ReadWriteMany".into(),
        );
    }
    let known = if claim.made { Some([wanted].into()) } else { surroundings.claims.get(&claim.name).cloned() };
    let Some(known) = known else { return Ok(()) };
    if writes && !known.contains(&AccessMode::ReadWriteOnce) && !known.contains(&AccessMode::ReadWriteMany) {
        return refuse(
            format!("{}.claimName", claim.field),
            format!("{} writes, but the claim {} is read-only; name another claim", user.name, claim.name),
        );
    }
    if pods > 1 && !shared(&known, writes) {
        return refuse(
            format!("{}.accessMode", claim.field),
            format!(
                "{pods} pods of {} may run on several nodes, and {} mounts on one; use ReadWriteMany, or one replica",
                user.name, claim.name
            ),
        );
    }
    Ok(())
}

/// Whether pods on several nodes may mount a claim of these modes.
pub(crate) fn shared(modes: &BTreeSet<AccessMode>, writes: bool) -> bool {
    modes.contains(&AccessMode::ReadWriteMany) || (!writes && modes.contains(&AccessMode::ReadOnlyMany))
}

/// The claim of the component as an object, where it is made here.
pub(crate) fn claim_object(context: &Context<'_>) -> Result<Option<Object>, PlanError> {
    let Some(claim) = claim_of(context.plan, context.surroundings, context.component) else { return Ok(None) };
    check(&claim, context.surroundings, context.component, context.attempt.replicas, true)?;
    if !claim.made {
        return Ok(None);
    }
    // The claim is the resource's, not the component's: its labels and owner are the same for all of them.
    let mut labels = context.labels();
    let mut owners = context.owners.to_vec();
    if context.component.kind == ComponentKind::GatewayFetch {
        let gateway = gateway_of(context.plan, context.component);
        let Some(gateway) = context.plan.component(&gateway) else { return Ok(None) };
        labels = context.labels_of(gateway);
    }
    if let Some((kind, name)) = belongs_to(context.component) {
        for key in [super::COMPONENT_LABEL, "app.kubernetes.io/name", "app.kubernetes.io/component"] {
            labels.remove(key);
        }
        owners.retain(|owner| owner.kind == kind && owner.name == name);
    }
    let size = claim.storage.size.as_ref().map_or_else(|| estimate(context, &claim), |size| size.0.clone());
    let class = claim.storage.storage_class_name.clone().or_else(|| context.surroundings.storage_class.clone());
    let spec = PersistentVolumeClaimSpec {
        access_modes: Some(vec![mode_text(claim.storage.access_mode).to_owned()]),
        resources: Some(VolumeResourceRequirements {
            requests: Some(BTreeMap::from([("storage".to_owned(), Quantity(size))])),
            ..VolumeResourceRequirements::default()
        }),
        storage_class_name: class,
        ..PersistentVolumeClaimSpec::default()
    };
    let metadata = context.metadata(claim.name, labels, owners);
    Ok(Some(Object::PersistentVolumeClaim(Box::new(PersistentVolumeClaim {
        metadata,
        spec: Some(spec),
        ..PersistentVolumeClaim::default()
    }))))
}

/// Twice what the components of the claim write, and some: a rebuild lies beside what is served.
fn estimate(context: &Context<'_>, claim: &Claim) -> String {
    let written: u64 = context
        .plan
        .components
        .iter()
        .filter(|component| {
            claim_of(context.plan, context.surroundings, component).is_some_and(|theirs| theirs.name == claim.name)
        })
        .map(|component| component.resources.disk)
        .sum();
    format!("{}Gi", (2 * written + SPARE).div_ceil(1 << 30))
}

fn mode_text(mode: AccessMode) -> &'static str {
    match mode {
        AccessMode::ReadWriteOnce => "ReadWriteOnce",
        AccessMode::ReadOnlyMany => "ReadOnlyMany",
        AccessMode::ReadWriteMany => "ReadWriteMany",
    }
}
