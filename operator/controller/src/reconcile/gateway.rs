//! The gateways that the jobs and evaluations of a namespace share, and the model servers behind them.
//!
//! One is there while somebody wants it ([`wants_gateway`](s3_plan::lifecycle::wants_gateway)). The operator takes it
//! down with the last that wants it; owners, none of them its controller, are for the garbage collector, for the time
//! in which no operator runs. So a few of the users do as owners, and what is written stays small however many there
//! are. The volume stays as long as any of the last owners does.

use super::stage::{self, Work, carry_out};
use super::{Again, service, sooner, until};
use crate::clock;
use crate::key::Key;
use crate::ledger;
use crate::operator::Shared;
use crate::scene::{Objects, SERVED, planned, render_attempt, standing, with_references};
use crate::sharing::{Needs, User};
use crate::write::{Trouble, owner_of};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use s3_crds::FailurePolicy;
use s3_plan::lifecycle::{Attempted, Move, Verdict, Waiting, next_move};
use s3_plan::objects::{MANAGER, Object};
use s3_plan::{ComponentKind, Finished, Observed, Plan, fingerprint};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Owners of a shared object at most. Uids are random, so the smallest of them are a fair sample of all users: that all
/// of these are deleted at once while others still work, and the garbage collector takes what those use, does not
/// happen by itself (when four of five users go, once in 10^6 times).
const OWNERS: usize = 64;

/// The users of a namespace, by `Kind/name`.
type Users = BTreeMap<String, User>;

/// Reconciles all gateways of a namespace.
pub async fn reconcile(shared: &Shared, key: &Key, namespace: &str) -> Result<Again, Trouble> {
    let mut users = shared.sharing.users(shared, namespace);
    let (plan, served) = joint_plan(shared, &users);
    users.retain(|_, user| served.contains(&user.needs));
    let surroundings = shared.surroundings_of(namespace, Some(&plan));
    let now = clock::seconds(&clock::now());
    let (mut kept, mut standings) = (BTreeSet::new(), BTreeMap::new());
    let mut again = None;
    let shared_servers = [ComponentKind::Gateway, ComponentKind::ModelServer];
    for gateway in plan.components.iter().filter(|component| shared_servers.contains(&component.kind)) {
        let (owners, needs) = (owners_of(&gateway.name, &users), needs_of(&gateway.name, &users));
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
        let mut objects = render_attempt(&plan, &observed, &surroundings, gateway, 1, &owners)?;
        for object in &mut objects {
            if let Object::Deployment(deployment) = object {
                deployment.metadata.annotations.get_or_insert_default().insert(SERVED.to_owned(), needs.clone());
            }
        }
        service::hold(shared, key, namespace, gateway, &objects, &owners).await?;
        standings.insert(gateway.name.clone(), standing(shared, namespace, gateway).unwrap_or_else(|why| why));
    }
    tracing::debug!(%key, users = users.len(), ?kept, "gateways");
    tell(shared, namespace, standings, &users);
    release(shared, key, namespace, &kept).await?;
    Ok(again)
}

/// The owners of a shared server's objects.
fn owners_of(server: &str, users: &Users) -> Vec<OwnerReference> {
    let users = users.values().filter(|user| user.needs.contains_key(server));
    let mut owners: Vec<OwnerReference> = users.map(|user| owner_of(user.object.as_ref(), user.kind, false)).collect();
    owners.sort_by(|a, b| a.uid.cmp(&b.uid));
    owners.truncate(OWNERS);
    owners
}

/// Everything that is asked of a shared server, as its annotation says it.
fn needs_of(server: &str, users: &Users) -> String {
    let needs: BTreeSet<&str> = users.values().filter_map(|user| user.needs.get(server)).map(String::as_str).collect();
    needs.into_iter().collect::<Vec<_>>().join(",")
}

/// The plan of all that is asked for, whoever and how many ask; and what it serves: of needs that cannot be planned
/// with the ones before them, none.
fn joint_plan(shared: &Shared, users: &Users) -> (Plan, BTreeSet<Arc<Needs>>) {
    let mut askers: BTreeMap<&Arc<Needs>, (&String, &User)> = BTreeMap::new();
    for (title, user) in users {
        askers.entry(&user.needs).or_insert((title, user));
    }
    let mut askers: Vec<_> = askers.into_values().collect();
    askers.sort_by_key(|(title, _)| *title);
    let mut all = Objects::new();
    for (_, user) in &askers {
        with_references(shared, user.kind, user.object.object(), &mut all);
    }
    if let Ok(plan) = planned(&all) {
        return (plan, askers.iter().map(|(_, user)| user.needs.clone()).collect());
    }
    let (mut taken, mut last, mut served) = (Objects::new(), Plan::default(), BTreeSet::new());
    for (title, user) in askers {
        let mut more = taken.clone();
        with_references(shared, user.kind, user.object.object(), &mut more);
        match planned(&more) {
            Ok(plan) => {
                (taken, last) = (more, plan);
                served.insert(user.needs.clone());
            }
            Err(error) => {
                tracing::warn!(resource = title, %error, "cannot share a gateway with the others of its namespace");
            }
        }
    }
    (last, served)
}

/// Asks those to look again that wait for a server which stands otherwise than it did.
fn tell(shared: &Shared, namespace: &str, standings: BTreeMap<String, String>, users: &Users) {
    for server in shared.sharing.news(namespace, standings) {
        for user in users.values().filter(|user| user.waits && user.needs.contains_key(&server)) {
            shared.queue.add(Key::resource(user.kind, namespace, &user.object.name_any()));
        }
    }
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
        service::take_down(shared, key, namespace, &name, |_| true).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::kept::Kept;
    use kube::api::DynamicObject;
    use s3_crds::Kind;
    use serde_json::json;

    fn users(count: usize) -> Users {
        (0..count)
            .map(|number| {
                // In another order than the names.
                let uid = format!("{:03}", (number * 37) % 101);
                let object = json!({"metadata": {"name": format!("job-{number}"), "uid": uid}, "spec": {}});
                let object: DynamicObject = serde_json::from_value(object).unwrap();
                let needs = Needs::from([("gateway".to_owned(), format!("need-{}", number % 2))]);
                let (object, needs) = (Arc::new(Kept::of(object)), Arc::new(needs));
                let user = User { kind: Kind::S3TrainingJob, object, waits: false, needs };
                (format!("S3TrainingJob/job-{number}"), user)
            })
            .collect()
    }

    #[test]
    fn a_few_own_what_all_use_and_the_same_few_whoever_came_last() {
        let all = owners_of("gateway", &users(3));
        assert_eq!(all.len(), 3);
        assert!(all.iter().all(|owner| owner.controller.is_none()));
        let few = owners_of("gateway", &users(101));
        let uids: Vec<String> = few.iter().map(|owner| owner.uid.clone()).collect();
        assert_eq!(uids, (0..OWNERS).map(|number| format!("{number:03}")).collect::<Vec<_>>());
        assert!(owners_of("another", &users(3)).is_empty());
        assert_eq!(needs_of("gateway", &users(50)), "need-0,need-1");
    }
}
