//! The Workload by which a queue of Kueue admits all of a resource at once.

use crate::clock;
use crate::key::Key;
use crate::operator::Shared;
use crate::scene::{Flavor, Scene};
use crate::world::Kueue;
use crate::write::{Trouble, fits, owner_of};
use k8s_openapi::api::core::v1::Toleration;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DynamicObject;
use kube::{Api, ResourceExt};
use s3_crds::Reason;
use s3_plan::lifecycle::{Admission, Attempted, Grant, QueueStep, Said, admission, queue_step};
use s3_plan::objects::{Object, Queueing, WORKER_SET, queue_of, workload, workload_name};
use s3_plan::{ComponentKind, Plan};
use s3_telemetry::metrics;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A resource's Workload: as it is, and as it should be.
pub struct Queued {
    /// What it says.
    pub grant: Grant,
    desired: Option<Object>,
    live: Option<(Arc<DynamicObject>, Admission)>,
}

/// Looks at the Workload of a scene's resource.
pub async fn look(shared: &Shared, scene: &Scene, plan: &Plan) -> Result<Queued, Trouble> {
    let (world, name, namespace) = (&shared.world, scene.object.name_any(), scene.namespace());
    let resource = (scene.kind.name(), name.as_str());
    let asked = queue_of(plan, resource);
    let uid = scene.object.uid();
    let own = |workload: &Arc<DynamicObject>| {
        let owners = workload.metadata.owner_references.as_deref().unwrap_or_default();
        owners.iter().any(|owner| Some(&owner.uid) == uid.as_ref())
    };
    let live = world.workloads.get(&namespace, &workload_name(resource)).filter(own);
    let said = |why: &str| Ok(Queued { grant: Grant::Unavailable(why.into()), desired: None, live: None });
    let desired = match (&asked, world.kueue.version()) {
        (None, _) => None,
        (Some(_), _) if !world.kueue.wanted => return said("the operator was installed without `kueue.enabled`"),
        (Some(_), None) => return said("the cluster serves no Workload of kueue.x-k8s.io"),
        (Some((_, class)), Some(version)) => {
            let priority = match class {
                Some(class) => priority(shared, scene, class).await?,
                None => None,
            };
            let owners = [owner_of(scene.object.as_ref(), scene.kind, true)];
            workload(plan, resource, &scene.surroundings, &owners, &Queueing { version, priority })?
        }
    };
    let live = match live {
        Some(live) => {
            let value = serde_json::to_value(live.as_ref()).unwrap_or_default();
            let fits = match &desired {
                Some(desired) => fits(&value["spec"], &desired.to_value()?["spec"]),
                None => true,
            };
            let admission = admission(&value, fits);
            Some((live, admission))
        }
        None => None,
    };
    let grant = match (&asked, &live) {
        (None, _) => Grant::NotAsked,
        (Some(_), _) if !world.knows_workloads() => Grant::Unknown,
        (Some(_), Some((_, admission))) => admission.grant.clone(),
        (Some((queue, _)), None) => Grant::Waiting(format!("enters queue {}", queue.name)),
    };
    Ok(Queued { grant, desired, live })
}

/// The value of a priority class; none while there is no such class.
async fn priority(shared: &Shared, scene: &Scene, class: &str) -> Result<Option<i32>, Trouble> {
    let api: Api<PriorityClass> = Api::all(shared.writer.client().clone());
    let found = api.get_opt(class).await.map_err(|source| Trouble::Api {
        what: format!("get PriorityClass {class} of {}", scene.title()),
        source: Box::new(source),
    })?;
    Ok(found.map(|class| class.value))
}

/// Where the queue has found room for the jobs of the resource. Asked for when pods are about to be made.
pub async fn flavor(shared: &Shared, scene: &Scene, queued: &Queued) -> Result<Flavor, Trouble> {
    let mut found = Flavor::default();
    let (Some((live, _)), Some(version), Grant::Admitted) = (&queued.live, shared.world.kueue.version(), &queued.grant)
    else {
        return Ok(found);
    };
    let sets = live.data.pointer("/status/admission/podSetAssignments").and_then(Value::as_array);
    let worker = sets.into_iter().flatten().find(|set| set["name"] == WORKER_SET);
    let flavors = worker.and_then(|set| set["flavors"].as_object());
    let names: BTreeSet<&str> = flavors.into_iter().flatten().filter_map(|(_, name)| name.as_str()).collect();
    let api: Api<DynamicObject> =
        Api::all_with(shared.writer.client().clone(), &Kueue::resource(version, "ResourceFlavor"));
    for name in names {
        let flavor = api.get_opt(name).await.map_err(|source| Trouble::Api {
            what: format!("get ResourceFlavor {name} of {}", scene.title()),
            source: Box::new(source),
        })?;
        let Some(flavor) = flavor else { continue };
        let part = |name: &str| flavor.data.pointer(&format!("/spec/{name}")).cloned().unwrap_or_default();
        // The server has checked what it gives.
        let labels: BTreeMap<String, String> = serde_json::from_value(part("nodeLabels")).unwrap_or_default();
        let tolerations: Vec<Toleration> = serde_json::from_value(part("tolerations")).unwrap_or_default();
        found.node_selector.extend(labels);
        found.tolerations.extend(tolerations);
    }
    Ok(found)
}

/// Does with the Workload what follows from where the resource is. `wanted`: it has something to run, now or later;
/// `ready`: all that it needs first is there, so that no quota is held for what cannot begin.
pub async fn carry_out<'a>(
    shared: &Shared,
    key: &Key,
    scene: &Scene,
    queued: &Queued,
    (wanted, ready): (bool, bool),
    attempts: impl Iterator<Item = &'a Attempted>,
) -> Result<(), Trouble> {
    if matches!(queued.grant, Grant::Unknown | Grant::Unavailable(_)) {
        return Ok(());
    }
    let live = queued.live.as_ref();
    let wanted = wanted && queued.desired.is_some() && (ready || live.is_some());
    let holding = live.is_some() && holding(shared, scene, attempts);
    let step = queue_step(wanted, holding, live.map(|(_, admission)| admission));
    match (step, &queued.desired, live) {
        (QueueStep::Hold, Some(desired), _) => {
            shared.writer.hold(key, desired, &[owner_of(scene.object.as_ref(), scene.kind, true)]).await?;
        }
        (QueueStep::Clear, _, Some((live, _))) => {
            shared.writer.workload_status(key, &live.metadata, cleared(&live.data)).await?;
            tracing::info!(%key, "quota given back");
        }
        (QueueStep::Delete, _, Some((live, _))) => shared.writer.delete(key, "Workload", &live.metadata).await?,
        _ => {}
    }
    Ok(())
}

/// Whether anything of the resource still runs on its quota.
fn holding<'a>(shared: &Shared, scene: &Scene, mut attempts: impl Iterator<Item = &'a Attempted>) -> bool {
    if attempts.any(|attempt| attempt.open() || attempt.live.holding > 0 || attempt.live.unmade > 0) {
        return true;
    }
    let (uid, title, namespace) = (scene.object.uid(), scene.title(), scene.namespace());
    let servers = scene.plan.iter().flat_map(|plan| &plan.components);
    servers.filter(|c| c.kind == ComponentKind::ModelServer && c.owners.contains(&title)).any(|server| {
        match shared.world.deployments.get(&namespace, &server.name) {
            Some(deployment) => {
                let owners = deployment.metadata.owner_references.as_deref().unwrap_or_default();
                owners.iter().any(|owner| Some(&owner.uid) == uid.as_ref())
            }
            None => !shared.world.pods.group_of(&namespace, &server.name).is_empty(),
        }
    })
}

/// The status of a Workload without its admission, so that Kueue queues it again.
fn cleared(workload: &Value) -> Value {
    let now = json!(clock::now());
    let mut conditions = workload.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
    let evicted = conditions.iter().find(|condition| condition["type"] == "Evicted").cloned().unwrap_or_default();
    let preempted = evicted["reason"] == "Preempted";
    let mut set = |type_: &str, status: bool, reason: &str| {
        let new = json!({
            "type": type_,
            "status": if status { "True" } else { "False" },
            "reason": reason,
            "message": evicted["message"].as_str().unwrap_or_default(),
            "lastTransitionTime": now,
        });
        match conditions.iter_mut().find(|condition| condition["type"] == type_) {
            Some(condition) => *condition = new,
            None => conditions.push(new),
        }
    };
    // What was preempted may be admitted again at once; what was evicted otherwise is Kueue's to say.
    set("Requeued", preempted, evicted["reason"].as_str().unwrap_or("Evicted"));
    set("QuotaReserved", false, "Pending");
    set("Admitted", false, "NoReservation");
    json!({ "admission": null, "conditions": conditions })
}

/// Notes in a status since when its resource waits, and how long it has waited once that is over. Returns the wait
/// that has ended now, seconds.
pub fn note(said: &[Said], queued: Reason, since: &mut Option<Time>, waited: &mut Option<u64>) -> Option<u64> {
    if said.iter().any(|(reason, _)| *reason == queued) {
        since.get_or_insert_with(clock::now);
        return None;
    }
    let begun = since.take()?;
    let seconds = u64::try_from(clock::seconds(&clock::now()) - clock::seconds(&begun)).unwrap_or(0);
    *waited = Some(waited.unwrap_or(0) + seconds);
    Some(seconds)
}

/// Counts a wait that is over and written down.
pub fn count(key: &Key, wait: Option<u64>) {
    if let Some(seconds) = wait {
        metrics().operator_queue_wait.with_label_values(&[key.word()]).observe(seconds as f64);
    }
}
