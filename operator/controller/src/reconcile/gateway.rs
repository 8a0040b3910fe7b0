//! The gateways that the jobs and evaluations of a namespace share, and the model servers behind them.
//!
//! One is there while somebody wants it ([`wants_gateway`]); all that want it are its owners, none its controller, so
//! the garbage collector takes it with the last of them. Its volume stays as long as any resource that used it does.

use super::stage::{self, Work, carry_out};
use super::{Again, service, sooner, until};
use crate::clock;
use crate::key::Key;
use crate::ledger;
use crate::operator::Shared;
use crate::scene::{Objects, admitted_whole, conditions_of, render_attempt, serves, value_of, with_references};
use crate::write::{Trouble, owner_of};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::DynamicObject;
use s3_crds::{FailurePolicy, Kind};
use s3_plan::lifecycle::{Attempted, Move, Verdict, Waiting, next_move, wants_gateway};
use s3_plan::objects::MANAGER;
use s3_plan::{Component, ComponentKind, Finished, Observed, Plan, PlanError, Resources, fingerprint, plan};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Reconciles all gateways of a namespace.
pub async fn reconcile(shared: &Shared, key: &Key, namespace: &str) -> Result<Again, Trouble> {
    let users = users(shared, namespace);
    let plan = joint_plan(shared, &users);
    let surroundings = shared.surroundings_of(namespace, Some(&plan));
    let now = clock::seconds(&clock::now());
    let mut kept = BTreeSet::new();
    let mut again = None;
    let shared_servers = [ComponentKind::Gateway, ComponentKind::ModelServer];
    for gateway in plan.components.iter().filter(|component| shared_servers.contains(&component.kind)) {
        let owners = owners_of(gateway, &users);
        if owners.is_empty() {
            continue;
        }
        kept.insert(gateway.name.clone());
        let mut observed = Observed::default();
        let fetch =
            plan.components.iter().find(|c| c.kind == ComponentKind::GatewayFetch && gateway.needs.contains(&c.name));
        if let Some(fetch) = fetch {
            let entries = ledger::read(shared, namespace, &fetch.name, None, now);
            let attempts: Vec<Attempted> = entries.iter().map(|entry| entry.attempt.clone()).collect();
            let print = fingerprint(&plan, fetch, &observed).ok();
            let policy = FailurePolicy::default();
            let step = next_move(&stage::stage(now, fetch, print.as_deref(), &attempts, &policy, &gateway.name));
            let none = Observed::default();
            let render = |number: u32| render_attempt(&plan, &none, &surroundings, fetch, number, &owners);
            let work = Work { component: fetch, entries: &entries, owners: &owners, render: &render };
            carry_out(shared, key, &work, &step).await?;
            if let Move::Wait(Waiting::Backoff { until: at, .. }) = &step {
                again = sooner(again, Some(until(*at, now)));
            }
            again = sooner(again, entries.iter().filter_map(|entry| entry.fenced_at).min().map(|at| until(at, now)));
            let done = attempts.iter().rev().find_map(|attempt| match &attempt.record.as_ref()?.verdict {
                Verdict::Done { digest, .. } if Some(&attempt.print) == print.as_ref() => Some(digest.clone()),
                _ => None,
            });
            // Until everything is fetched that is asked for now, what serves goes on with what it has.
            let (Some(fingerprint), Some(digest)) = (print, done) else { continue };
            observed.finished.insert(fetch.name.clone(), Finished { fingerprint, digest });
        }
        let objects = render_attempt(&plan, &observed, &surroundings, gateway, 1, &owners)?;
        service::hold(shared, key, namespace, gateway, &objects, &owners).await?;
    }
    tracing::debug!(%key, users = ?users.keys().collect::<Vec<_>>(), ?kept, "gateways");
    release(shared, key, namespace, &kept).await?;
    Ok(again)
}

/// The jobs and evaluations that want a gateway now, by `Kind/name`.
fn users(shared: &Shared, namespace: &str) -> BTreeMap<String, (Kind, Arc<DynamicObject>)> {
    let of = |kind: Kind| {
        let all = shared.world.resources(kind).in_namespace(namespace);
        all.into_iter()
            .filter(|object| {
                object.metadata.deletion_timestamp.is_none()
                    && wants_gateway(&conditions_of(object), serves(object), admitted_whole(object))
            })
            .map(move |object| (format!("{}/{}", kind.name(), object.name_any()), (kind, object)))
    };
    of(Kind::S3TrainingJob).chain(of(Kind::EvalRun)).collect()
}

fn owners_of(gateway: &Component, users: &BTreeMap<String, (Kind, Arc<DynamicObject>)>) -> Vec<OwnerReference> {
    let users = gateway.owners.iter().filter_map(|owner| users.get(owner));
    users.map(|(kind, object)| owner_of(object, *kind, false)).collect()
}

/// The plan of all users; of those that cannot be planned with the ones before them, none.
fn joint_plan(shared: &Shared, users: &BTreeMap<String, (Kind, Arc<DynamicObject>)>) -> Plan {
    let planned = |objects: &Objects| -> Result<Plan, PlanError> {
        let values = objects.iter().map(|((kind, _), object)| (*kind, value_of(object, *kind)));
        plan(&Resources::from_cluster(values).0)
    };
    let mut all = Objects::new();
    for (kind, object) in users.values() {
        with_references(shared, *kind, object.clone(), &mut all);
    }
    if let Ok(plan) = planned(&all) {
        return plan;
    }
    let (mut taken, mut last) = (Objects::new(), Plan::default());
    for (title, (kind, object)) in users {
        let mut more = taken.clone();
        with_references(shared, *kind, object.clone(), &mut more);
        match planned(&more) {
            Ok(plan) => (taken, last) = (more, plan),
            Err(error) => {
                tracing::warn!(resource = title, %error, "cannot share a gateway with the others of its namespace");
            }
        }
    }
    last
}

/// Takes down the gateways that nobody wants.
async fn release(shared: &Shared, key: &Key, namespace: &str, kept: &BTreeSet<String>) -> Result<(), Trouble> {
    for deployment in shared.world.deployments.in_namespace(namespace) {
        let labels = deployment.metadata.labels.clone().unwrap_or_default();
        let is = |name: &str, value: &str| labels.get(name).is_some_and(|found| found == value);
        let name = deployment.name_any();
        let kind = ["gateway", "model-server"].into_iter().any(|kind| is("app.kubernetes.io/component", kind));
        let ours = is("app.kubernetes.io/managed-by", MANAGER) && kind;
        if !ours || kept.contains(&name) {
            continue;
        }
        service::take_down(shared, key, &deployment).await?;
    }
    Ok(())
}
