//! From resources to a plan.

use crate::component::in_order;
use crate::gateway::Gateways;
use crate::{Component, Placements, Plan, PlanError, Resources, Symbol, evaluation, index, training};
use std::collections::BTreeMap;

/// Plans all resources together: what several share stands once.
///
/// The order of files and documents changes nothing.
pub fn plan(resources: &Resources) -> Result<Plan, PlanError> {
    let mut found: BTreeMap<String, Component> = BTreeMap::new();
    let mut add = |component: Component| match found.insert(component.name.clone(), component) {
        None => Ok(()),
        Some(twin) => Err(PlanError::Document {
            place: twin.owners.into_iter().collect::<Vec<_>>().join(", "),
            reason: format!("another resource makes a component of the name {}; rename one", twin.name),
        }),
    };
    let mut gateways = Gateways::default();
    for (name, index) in &resources.indices {
        index::components(name, index)?.into_iter().try_for_each(&mut add)?;
    }
    for (name, job) in &resources.jobs {
        training::components(name, job, resources, &mut gateways)?.into_iter().try_for_each(&mut add)?;
    }
    let scheduled = resources.scheduled()?;
    for (name, run) in resources.runs.iter().chain(&scheduled) {
        add(evaluation::component(name, run, resources, &mut gateways)?)?;
    }
    gateways.into_components()?.into_iter().try_for_each(&mut add)?;
    crate::fetch::split(&mut found)?;
    share_owners(&mut found);
    name_secrets(&mut found);
    let mut notices = resources.notices.clone();
    notices.sort();
    Ok(Plan { components: in_order(found)?, notices, placements: Placements::read(resources) })
}

/// Notes the secrets that a configuration names, whoever wrote it.
fn name_secrets(components: &mut BTreeMap<String, Component>) {
    for component in components.values_mut() {
        let named = component.config.symbols().into_iter().filter_map(|symbol| match symbol {
            Symbol::Secret { name, key } => Some(format!("{name}/{key}")),
            _ => None,
        });
        component.secrets.extend(named);
    }
}

/// A retriever and its build belong to everything that searches with them.
fn share_owners(components: &mut BTreeMap<String, Component>) {
    let users: Vec<(String, String)> = components
        .values()
        .flat_map(|user| {
            user.needs.iter().flat_map(move |need| user.owners.iter().map(move |o| (need.clone(), o.clone())))
        })
        .collect();
    for (need, owner) in users {
        if let Some(component) = components.get_mut(&need)
            && component.role == crate::Role::Service
        {
            component.owners.insert(owner);
        }
    }
}
