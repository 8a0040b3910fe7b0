//! What a resource asks of the servers that it shares with others, in a few letters.

use crate::{Component, ComponentKind, Plan, PlanError};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;

/// The gateways and model servers that a resource (`Kind/name`) wants in a plan of it and what it refers to, each with
/// a digest of all that it asks of them.
///
/// Resources with equal digests are served by one that was made for any of them: 500 jobs of equal generators are
/// planned as one. What is another for each of them, as a budget is, makes another digest.
pub fn shared_needs(plan: &Plan, resource: &str) -> Result<BTreeMap<String, String>, PlanError> {
    let shared = [ComponentKind::Gateway, ComponentKind::ModelServer];
    let own = plan.components.iter().filter(|c| shared.contains(&c.kind) && c.owners.contains(resource));
    own.map(|component| Ok((component.name.clone(), digest(plan, component)?))).collect()
}

fn digest(plan: &Plan, component: &Component) -> Result<String, PlanError> {
    let fetched = component.needs.iter().filter_map(|need| plan.component(need));
    let fetched = fetched.filter(|need| need.kind == ComponentKind::GatewayFetch);
    let parts: Vec<Component> = std::iter::once(component).chain(fetched).map(nobodys).collect();
    let text = serde_json::to_string(&parts).map_err(PlanError::defect)?;
    Ok(hex::encode(&Sha256::digest(text)[..8]))
}

/// A component without the resources that want it.
fn nobodys(component: &Component) -> Component {
    let mut component = component.clone();
    component.owners.clear();
    component.endpoints.iter_mut().for_each(|endpoint| endpoint.field.clear());
    component.inputs.iter_mut().for_each(|input| input.field.clear());
    component
}
