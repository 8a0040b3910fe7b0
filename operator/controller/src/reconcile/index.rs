//! `RetrieverIndex`.

use super::{Again, next_look, refusal, service, sooner, stage, status};
use crate::key::Key;
use crate::ledger;
use crate::operator::Shared;
use crate::scene::{Scene, conditions_of, serves};
use crate::write::Trouble;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use s3_crds::{FailurePolicy, Kind, RetrieverIndexStatus, condition_type, is_true, reason};
use s3_plan::lifecycle::{IndexView, Move, Said, Serving, Verdict, decide_index, fill_index, holds};
use s3_plan::objects::service_name;
use s3_plan::{ComponentKind, PlanError, retriever_name};
use serde::de::DeserializeOwned;

/// Keeps an index from going while it is used.
pub const FINALIZER: &str = "searchagent.dev/in-use";

/// Reconciles one.
pub async fn reconcile(shared: &Shared, key: &Key, namespace: &str, name: &str) -> Result<Again, Trouble> {
    let Some(scene) = Scene::read(shared, Kind::RetrieverIndex, namespace, name) else { return Ok(None) };
    let meta = &scene.object.metadata;
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|finalizer| finalizer == FINALIZER);
    let terminating = meta.deletion_timestamp.is_some();
    // Nobody asks before it is to go.
    let users = if terminating { users(shared, namespace, name) } else { Vec::new() };
    if terminating && users.is_empty() {
        if held {
            release(shared, key, &scene, finalizers).await?;
        }
        shared.reports.forget(&scene.object.uid().unwrap_or_default());
        return Ok(None);
    }
    if !terminating && !held {
        finalizers.push(FINALIZER.to_owned());
        shared.writer.finalizers(key, scene.kind, meta, &finalizers).await?;
        // Decided from again with the version that this made.
        return Ok(None);
    }
    let mut now_status: RetrieverIndexStatus = status_of(&scene);
    let fresh = now_status.clone();
    now_status.observed_generation = meta.generation;
    let plan = match planned(&scene) {
        Ok(plan) => plan,
        Err(said) => {
            status::say(&mut now_status.conditions, &[said], &scene.object);
            return status::write(shared, key, scene.kind, &scene.object, &now_status).await;
        }
    };
    let fetch = scene.own_jobs().into_iter().find(|component| component.kind == ComponentKind::Fetch);
    let of = |kinds: &[ComponentKind]| plan.components.iter().find(|component| kinds.contains(&component.kind));
    let build = of(&[ComponentKind::IndexBuild]);
    let Some(server) = of(&[ComponentKind::Retriever, ComponentKind::WebSearch]) else {
        return Err(PlanError::Defect(format!("{} has no server", scene.title())).into());
    };

    let print = build.and_then(|build| scene.print(build));
    let attempts = build.map(|build| scene.attempts_of(&build.name)).unwrap_or_default();
    let fetch_print = fetch.and_then(|fetch| scene.print(fetch));
    let fetched = fetch.map(|fetch| scene.attempts_of(&fetch.name)).unwrap_or_default();
    let policy = FailurePolicy::default();
    let uid = scene.object.uid().unwrap_or_default();
    let wanted = plan.placements.of(server).replicas;
    let deployment = shared.world.deployments.get(namespace, &server.name);
    let view = IndexView {
        fetch: fetch.map(|fetch| stage::stage(scene.now, fetch, fetch_print.as_deref(), &fetched, &policy, &uid)),
        build: build.map(|build| stage::stage(scene.now, build, print.as_deref(), &attempts, &policy, &uid)),
        serving: serving(shared, &scene, deployment.as_deref(), server, wanted, &fresh),
        terminating,
        users: &users,
        served_before: fresh.digest.is_some() && deployment.is_some(),
    };
    let decision = decide_index(&view);

    let acted = async {
        if let Some((fetch, step)) = fetch.zip(decision.fetch.as_ref()) {
            stage::of_resource(shared, key, &scene, fetch, step).await?;
        }
        if let Some((build, step)) = build.zip(decision.build.as_ref()) {
            stage::of_resource(shared, key, &scene, build, step).await?;
        }
        if decision.serve {
            let owner = [scene.owner()];
            let objects = scene.render(server, 1, &owner)?;
            service::hold(shared, key, namespace, server, &objects, &owner).await?;
        }
        Ok::<(), Trouble>(())
    }
    .await;
    let mut said = decision.said;
    match autoscaled(shared, &plan.placements.of(server)) {
        Some(scaled) => said.push(scaled),
        None => now_status.conditions.retain(|condition| condition.type_ != condition_type::AUTOSCALED),
    }
    match acted {
        Ok(()) => {}
        Err(Trouble::NameTaken(what)) => said.push((reason::INDEX_NAME_TAKEN, what)),
        Err(Trouble::Plan(error @ PlanError::VolumeShape { .. })) => {
            said.push((reason::INDEX_VOLUME_SHAPE, error.to_string()));
        }
        Err(Trouble::Plan(error)) => said.push((reason::INDEX_INVALID, error.to_string())),
        Err(trouble) => return Err(trouble),
    }

    status::say(&mut now_status.conditions, &said, &scene.object);
    if let Some(Move::Done { attempt, digest }) = &decision.build {
        let entry = attempts.iter().find(|entry| entry.number == *attempt);
        if let Some(Verdict::Done { summary, .. }) = entry.and_then(|entry| entry.record.as_ref()).map(|r| &r.verdict) {
            fill_index(&mut now_status, digest, summary);
        }
        now_status.progress = Some("100%".into());
    } else if let Some(build) = build {
        let open = attempts.iter().rev().find(|attempt| attempt.open());
        let report = open.and_then(|open| shared.reports.of(&uid, &build.name, open.number));
        now_status.progress = report.and_then(|it| share(&it)).or(now_status.progress.filter(|p| p != "100%"));
    }
    now_status.ready_replicas = Some(view.serving.ready);
    if is_true(&now_status.conditions, condition_type::SERVING) {
        now_status.endpoint = Some(endpoint(server, namespace));
    }
    let again = status::write(shared, key, scene.kind, &scene.object, &now_status).await?;
    Ok(sooner(again, next_look(&scene, decision.again)))
}

/// How far a build is: of several workers the first one counts what all have embedded.
fn share(report: &crate::progress::Report) -> Option<String> {
    (report.total > 0).then(|| format!("{}%", report.done.min(report.total) * 100 / report.total))
}

/// Address of the servers' `POST /retrieve`.
fn endpoint(server: &s3_plan::Component, namespace: &str) -> String {
    let scheme = if server.config.value.get("tls").is_some() { "https" } else { "http" };
    format!("{scheme}://{}.{namespace}.svc:8080", service_name(&server.name))
}

/// Takes its servers down and lets it go. The garbage collector would leave those that somebody took the owner from, which
/// may be too recent to be seen.
async fn release(shared: &Shared, key: &Key, scene: &Scene, mut finalizers: Vec<String>) -> Result<(), Trouble> {
    let meta = &scene.object.metadata;
    let server = retriever_name(meta.name.as_deref().unwrap_or_default());
    let own = |object: &ObjectMeta| {
        let owners = object.owner_references.as_deref().unwrap_or_default();
        owners.is_empty() || owners.iter().any(|owner| Some(&owner.uid) == meta.uid.as_ref())
    };
    service::take_down(shared, key, &scene.namespace(), &server, own).await?;
    finalizers.retain(|finalizer| finalizer != FINALIZER);
    shared.writer.finalizers(key, scene.kind, meta, &finalizers).await
}

/// What to say of servers that are to follow the load.
fn autoscaled(shared: &Shared, placement: &s3_plan::Placement) -> Option<Said> {
    placement.autoscaling.as_ref()?;
    Some(match (shared.world.scaling_version(), shared.world.scaling) {
        (Some(_), _) => (reason::AUTOSCALED, String::new()),
        (None, false) => {
            (reason::AUTOSCALING_UNAVAILABLE, "the operator runs without --autoscaling; serving.replicas counts".into())
        }
        (None, true) => {
            let why = "the server serves neither autoscaling/v2 nor autoscaling/v2beta2; serving.replicas counts";
            (reason::AUTOSCALING_UNAVAILABLE, why.into())
        }
    })
}

/// The plan, or why there is none.
fn planned(scene: &Scene) -> Result<&s3_plan::Plan, Said> {
    if let Some(said) = refusal(scene, reason::INDEX_UNSUPPORTED, reason::INDEX_INVALID) {
        return Err(said);
    }
    scene.plan.as_ref().map_err(|error| (reason::INDEX_INVALID, error.to_string()))
}

fn serving(
    shared: &Shared,
    scene: &Scene,
    deployment: Option<&Deployment>,
    server: &s3_plan::Component,
    wanted: u32,
    old: &RetrieverIndexStatus,
) -> Serving {
    let was_up = is_true(&old.conditions, condition_type::SERVING)
        || s3_crds::condition(&old.conditions, condition_type::SERVING).is_some_and(|c| c.reason == "Unavailable");
    let Some(deployment) = deployment else { return Serving { wanted, was_up, ..Serving::default() } };
    let status = deployment.status.clone().unwrap_or_default();
    let count = |value: Option<i32>| u32::try_from(value.unwrap_or(0)).unwrap_or(0);
    let print = scene.print(server);
    let annotations = deployment.metadata.annotations.clone().unwrap_or_default();
    let applied = annotations.get(s3_plan::objects::FINGERPRINT_ANNOTATION).cloned();
    let ready = count(status.available_replicas);
    let current = applied.is_some()
        && applied == print
        && status.observed_generation >= deployment.metadata.generation
        && count(status.updated_replicas) == count(status.replicas)
        && ready == count(status.replicas);
    Serving {
        present: true,
        wanted,
        ready,
        current,
        was_up,
        trouble: ledger::trouble(&shared.world, &scene.namespace(), &server.name),
    }
}

/// The jobs and evaluations that hold an index.
fn users(shared: &Shared, namespace: &str, index: &str) -> Vec<String> {
    let wanted = (Kind::RetrieverIndex, index.to_owned());
    let mut users = Vec::new();
    for kind in [Kind::S3TrainingJob, Kind::EvalRun] {
        for object in shared.world.resources(kind).in_namespace(namespace) {
            if !object.refers.contains(&wanted) {
                continue;
            }
            let object = object.object();
            let begun = object.data.pointer("/status/startTime").is_some_and(|time| !time.is_null());
            if begun && holds(&conditions_of(&object), serves(&object)) {
                users.push(format!("{}/{}", kind.name(), object.name_any()));
            }
        }
    }
    users.sort();
    users
}

/// The status as the resource has it.
pub fn status_of<S: DeserializeOwned + Default>(scene: &Scene) -> S {
    let status = scene.object.data.get("status").cloned();
    // A status can always be made anew.
    status.and_then(|status| serde_json::from_value(status).ok()).unwrap_or_default()
}
