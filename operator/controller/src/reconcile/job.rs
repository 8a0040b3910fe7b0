//! `S3TrainingJob`.

use super::index::status_of;
use super::{Again, end, next_look, queue, refusal, schedule, service, sooner, stage, status};
use crate::clock;
use crate::key::Key;
use crate::operator::Shared;
use crate::scene::{Scene, conditions_of, suspends};
use crate::write::Trouble;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use s3_crds::{Artifact, FailurePolicy, Kind, S3TrainingJobStatus, condition, condition_type, is_true, reason};
use s3_plan::lifecycle::{
    Attempted, JobView, Move, Said, Supplies, Supply, Verdict, begins_anew, decide_job, fill_job, gpu_seconds,
};
use s3_plan::objects::{ClusterBinder, service_name};
use s3_plan::{Binder, Component, ComponentKind, PlanError, searcher_name};
use std::sync::Arc;
use std::time::Duration;

/// Secrets are not watched, so what is missing is looked for again.
pub const SECRET_PERIOD: Duration = Duration::from_secs(10);

/// Reconciles one.
pub async fn reconcile(shared: &Shared, key: &Key, namespace: &str, name: &str) -> Result<Again, Trouble> {
    let Some(mut scene) = Scene::read(shared, Kind::S3TrainingJob, namespace, name) else { return Ok(None) };
    let meta = scene.object.metadata.clone();
    let uid = scene.object.uid().unwrap_or_default();
    if meta.deletion_timestamp.is_some() {
        // Everything that it owns goes with it.
        shared.reports.forget(&uid);
        return Ok(None);
    }
    let old: S3TrainingJobStatus = status_of(&scene);
    let mut new = old.clone();
    new.observed_generation = meta.generation;
    let finished = is_true(&old.conditions, condition_type::SUCCEEDED);
    let index = scene.index_supply(shared, old.start_time.is_some());
    let plan = match planned(shared, &scene, &index).cloned() {
        Ok(plan) => plan,
        // What it was made from may have gone; it stays what it is.
        Err(_) if finished => return stays(shared, key, &scene, new).await,
        Err(said) => {
            status::say(&mut new.conditions, &said, &scene.object);
            return status::write(shared, key, scene.kind, &scene.object, &new).await;
        }
    };
    let Some(job) = scene.resources.jobs.get(name).map(|sourced| sourced.object.clone()) else {
        return Err(PlanError::Defect(format!("{} is neither planned nor refused", scene.title())).into());
    };
    let spec = &job.spec;
    let queued = queue::look(shared, &scene, &plan).await?;
    let own = scene.own_jobs().into_iter().cloned().collect::<Vec<_>>();
    let components: Vec<&Component> = own.iter().collect();
    let prints: Vec<Option<String>> = components.iter().map(|component| scene.print(component)).collect();
    let attempts: Vec<Vec<Attempted>> = components.iter().map(|component| scene.attempts_of(&component.name)).collect();
    let running = attempts.iter().flatten().any(Attempted::open);
    let other = start_supply(shared, &scene, old.start_time.is_some());
    let supplies = supplies(shared, &scene, index, other, running || finished || spec.suspend).await?;
    let stages = components
        .iter()
        .zip(&prints)
        .zip(&attempts)
        .map(|((component, print), attempts)| {
            (component.kind, stage::stage(scene.now, component, print.as_deref(), attempts, &spec.failure_policy, &uid))
        })
        .collect();
    let view = JobView {
        stages,
        supplies,
        queue: queued.grant.clone(),
        suspend: spec.suspend,
        deadline: spec.active_deadline_seconds,
        gpu_budget: spec.gpu_second_budget,
        now: scene.now,
    };
    let decision = decide_job(&view);

    let waited =
        queue::note(&decision.said, reason::TRAINING_QUEUED, &mut new.queued_since, &mut new.queue_wait_seconds);
    // Written before anything runs, so that nobody takes away what it uses.
    let starts = decision.moves.iter().any(|(.., step)| matches!(step, Move::Start { .. }));
    if starts && new.start_time.is_none() {
        new.start_time = Some(clock::now());
        status::say(&mut new.conditions, &decision.said, &scene.object);
        let again = status::write(shared, key, scene.kind, &scene.object, &new).await?;
        queue::count(key, waited);
        return Ok(again);
    }
    let paused = decision.said.iter().any(|(said, _)| *said == reason::JOB_PAUSED);
    let wanted = !decision.finished && !spec.suspend && !paused;
    let ready = [&view.supplies.index, &view.supplies.job, &view.supplies.secret].iter().all(|s| **s == Supply::Ready);
    queue::carry_out(shared, key, &scene, &queued, (wanted, ready), attempts.iter().flatten()).await?;
    if makes_pods(&decision.moves.iter().map(|(.., step)| step).collect::<Vec<_>>(), attempts.iter().flatten()) {
        scene.flavor = queue::flavor(shared, &scene, &queued).await?;
    }
    let tried = components.iter().copied().zip(&attempts).zip(&prints);
    scene.anew.extend(beginning_anew(tried, &decision.moves, &spec.failure_policy));
    let mut said = decision.said.clone();
    let steps = decision.moves.iter().filter_map(|(_, name, step)| {
        components.iter().find(|component| component.name == *name).map(|component| (*component, step))
    });
    let reasons = (reason::JOB_NAME_TAKEN, reason::JOB_INVALID);
    stage::all_of_resource(shared, key, &scene, steps, reasons, &mut said).await?;

    status::say(&mut new.conditions, &said, &scene.object);
    let all = || attempts.iter().flatten();
    new.gpu_seconds = Some(gpu_seconds(all(), scene.now)).filter(|seconds| *seconds > 0).or(new.gpu_seconds);
    let count = tries(&components, &attempts, &decision.moves);
    new.attempts = (count > 0).then_some(count);
    new.last_checkpoint = Attempted::newest_checkpoint(all()).cloned().or(new.last_checkpoint);
    for (component, attempts) in components.iter().zip(&attempts) {
        fill(shared, &scene, &plan, component, attempts, &uid, &mut new);
    }
    let trained = components.iter().position(|component| component.kind == ComponentKind::Training);
    let milestones = trained.map(|at| Attempted::milestones(attempts[at].iter())).unwrap_or_default();
    let schedule = schedule::hold(shared, key, &scene, spec, decision.finished, &milestones).await?;
    schedule::tell(schedule, &scene, &mut new);
    end::note(decision.finished, &new.conditions, &mut new.completion_time);
    if is_true(&new.conditions, condition_type::SUCCEEDED) {
        new.endpoint = serve(shared, key, &scene, &plan).await?;
    }
    let again = status::write(shared, key, scene.kind, &scene.object, &new).await?;
    queue::count(key, waited);
    let times = next_look(&scene, decision.again);
    let secrets = view.supplies.secret.missing().map(|_| SECRET_PERIOD);
    let expiry = if decision.finished { expire(shared, key, &scene, &new).await? } else { None };
    Ok(sooner(sooner(again, times), sooner(secrets, expiry)))
}

/// A finished job that cannot be planned any more: it has seen its newest spec, and nothing follows from it.
async fn stays(shared: &Shared, key: &Key, scene: &Scene, mut status: S3TrainingJobStatus) -> Result<Again, Trouble> {
    status::affirm(&mut status.conditions, &scene.object);
    let again = status::write(shared, key, scene.kind, &scene.object, &status).await?;
    Ok(sooner(again, expire(shared, key, scene, &status).await?))
}

/// Components whose next attempt begins anew.
fn beginning_anew<'a>(
    tried: impl Iterator<Item = ((&'a Component, &'a Vec<Attempted>), &'a Option<String>)>,
    moves: &[(ComponentKind, String, Move)],
    policy: &FailurePolicy,
) -> Vec<String> {
    tried
        .filter(|((component, attempts), print)| {
            let starts =
                |(_, name, step): &(_, String, Move)| *name == component.name && matches!(step, Move::Start { .. });
            moves.iter().any(starts) && begins_anew(attempts, print.as_deref(), policy)
        })
        .map(|((component, _), _)| component.name.clone())
        .collect()
}

/// Whether Jobs are about to be made.
pub fn makes_pods<'a>(steps: &[&Move], mut attempts: impl Iterator<Item = &'a Attempted>) -> bool {
    steps.iter().any(|step| matches!(step, Move::Start { .. }))
        || attempts.any(|attempt| attempt.open() && attempt.live.jobs == 0)
}

/// Attempts of the training, or of the warm start where nothing else is trained.
fn tries(components: &[&Component], attempts: &[Vec<Attempted>], moves: &[(ComponentKind, String, Move)]) -> u32 {
    let of = |kind: ComponentKind| components.iter().position(|component| component.kind == kind);
    let Some(main) = of(ComponentKind::Training).or_else(|| of(ComponentKind::WarmStart)) else { return 0 };
    let starts =
        moves.iter().any(|(_, name, step)| *name == components[main].name && matches!(step, Move::Start { .. }));
    u32::try_from(attempts[main].len() + usize::from(starts)).unwrap_or(u32::MAX)
}

/// Holds the servers of the trained searcher, or takes them down; their address once one of them answers.
async fn serve(shared: &Shared, key: &Key, scene: &Scene, plan: &s3_plan::Plan) -> Result<Option<String>, Trouble> {
    let (title, namespace, owner) = (scene.title(), scene.namespace(), [scene.owner()]);
    let server = plan.components.iter().find(|c| c.kind == ComponentKind::Searcher && c.owners.contains(&title));
    let Some(server) = server else {
        let name = searcher_name(&scene.object.name_any());
        let uid = scene.object.uid().unwrap_or_default();
        let own = |deployment: &Arc<Deployment>| {
            deployment.metadata.owner_references.iter().flatten().any(|owner| owner.uid == uid)
        };
        if shared.world.deployments.get(&namespace, &name).as_ref().is_some_and(own) {
            service::take_down(shared, key, &namespace, &name, |_| true).await?;
        }
        return Ok(None);
    };
    let objects = scene.render(server, 1, &owner)?;
    service::hold(shared, key, &namespace, server, &objects, &owner).await?;
    let deployment = shared.world.deployments.get(&namespace, &server.name);
    let status = deployment.and_then(|deployment| deployment.status.clone());
    let answers = status.is_some_and(|status| status.available_replicas.unwrap_or(0) > 0);
    Ok(answers.then(|| format!("http://{}.{namespace}.svc:8080", service_name(&server.name))))
}

/// Whether the job is there, and works no more, whose checkpoint this one starts from. What has begun goes on from its
/// own.
fn start_supply(shared: &Shared, scene: &Scene, begun: bool) -> Supply {
    let name = scene.object.data.pointer("/spec/checkpoint/resumeFrom/jobRef/name").and_then(serde_json::Value::as_str);
    let Some(name) = name.filter(|_| !begun) else { return Supply::Ready };
    let Some(job) = shared.world.resource(Kind::S3TrainingJob, &scene.namespace(), name) else {
        return Supply::Missing(format!("S3TrainingJob/{name} does not exist"));
    };
    if scene.refused.contains_key(&format!("S3TrainingJob/{name}")) {
        return Supply::Missing(format!("S3TrainingJob/{name} is not valid"));
    }
    let conditions = conditions_of(&job);
    let over = condition(&conditions, condition_type::SUCCEEDED).is_some_and(|over| over.status != "Unknown");
    if !over && !is_true(&conditions, condition_type::SUSPENDED) {
        return Supply::Missing(format!("S3TrainingJob/{name} still works; it has to be over or suspended"));
    }
    if job.data.pointer("/status/lastCheckpoint").is_none() {
        return Supply::Missing(format!("S3TrainingJob/{name} has no checkpoint"));
    }
    Supply::Ready
}

/// The plan, or what to say while there is none.
fn planned<'a>(shared: &Shared, scene: &'a Scene, index: &Supply) -> Result<&'a s3_plan::Plan, Vec<Said>> {
    if let Some(said) = refusal(scene, reason::JOB_UNSUPPORTED, reason::JOB_INVALID) {
        return Err(vec![said]);
    }
    scene.plan.as_ref().map_err(|error| match error {
        PlanError::Missing { .. } => vec![
            if let Some(what) = index.missing() {
                (reason::TRAINING_WAITING_INDEX, what.to_owned())
            } else {
                let other = start_supply(shared, scene, false);
                (reason::TRAINING_WAITING_JOB, other.missing().unwrap_or_default().to_owned())
            },
            (reason::JOB_PROGRESSING, String::new()),
            (if suspends(&scene.object) { reason::JOB_SUSPENDED } else { reason::JOB_NOT_SUSPENDED }, String::new()),
        ],
        error => vec![(reason::JOB_INVALID, error.to_string())],
    })
}

/// What is needed, asked for in order: secrets only once the index is there, the gateway only after them.
pub async fn supplies(
    shared: &Shared,
    scene: &Scene,
    index: Supply,
    job: Supply,
    no_start: bool,
) -> Result<Supplies, Trouble> {
    let mut supplies = Supplies { index, job, ..Supplies::default() };
    if no_start || supplies.index != Supply::Ready || supplies.job != Supply::Ready {
        // Nothing new starts now, or something else is missing first.
        supplies.gateway = if no_start { scene.gateway_supply(shared) } else { Supply::Ready };
        return Ok(supplies);
    }
    supplies.secret = scene.secret_supply(shared).await.map_err(|source| Trouble::Api {
        what: format!("get secrets of {}", scene.title()),
        source: Box::new(source),
    })?;
    supplies.gateway = scene.gateway_supply(shared);
    Ok(supplies)
}

/// Figures of a component's newest attempt.
fn fill(
    shared: &Shared,
    scene: &Scene,
    plan: &s3_plan::Plan,
    component: &Component,
    attempts: &[Attempted],
    uid: &str,
    status: &mut S3TrainingJobStatus,
) {
    let Some(newest) = attempts.last() else { return };
    let done = attempts.iter().rev().find_map(|attempt| match &attempt.record.as_ref()?.verdict {
        Verdict::Done { digest, summary } => Some((digest, summary)),
        _ => None,
    });
    match (component.kind, done) {
        (ComponentKind::Baseline, Some((_, summary))) => {
            let figure = |name: &str| summary.get(name).and_then(serde_json::Value::as_f64);
            if let (Some(right), Some(all)) = (figure("right"), figure("questions")) {
                status.baseline_gen_acc = (all > 0.0).then(|| right / all);
            }
        }
        (ComponentKind::Training | ComponentKind::WarmStart, done) => {
            if let Some(report) = shared.reports.of(uid, &component.name, newest.number) {
                let figure = |name: &str| report.figures.get(name).copied();
                status.step = figure("step").map(|step| step as u32).or(status.step);
                status.gbr = figure("gain").or(status.gbr);
                status.gen_acc = figure("accuracy").or(status.gen_acc);
                status.searches_per_question = figure("searches").or(status.searches_per_question);
            }
            let last = component.kind == ComponentKind::Training
                || !plan
                    .components
                    .iter()
                    .any(|c| c.kind == ComponentKind::Training && c.owners.contains(&scene.title()));
            if let (true, Some((digest, summary))) = (last, done) {
                fill_job(status, summary);
                status.digest = Some(digest.clone());
                let binder = ClusterBinder::new(plan, &scene.observed, &scene.surroundings, component);
                let uri = binder
                    .work(&component.name, "export")
                    .map(|path| crate::ledger::claim_uri(&path.display().to_string()));
                status.export = uri.ok().map(|uri| Artifact { uri, digest: digest.clone() });
            }
        }
        _ => {}
    }
}

/// Deletes a finished job when its time is over, never one whose last checkpoint is not verified.
async fn expire(shared: &Shared, key: &Key, scene: &Scene, status: &S3TrainingJobStatus) -> Result<Again, Trouble> {
    if !may_go(status) {
        return Ok(None);
    }
    // Its evaluations would go with it; the end of the last one looks here again.
    if condition(&status.conditions, condition_type::EVALUATED).is_some_and(|condition| condition.status == "Unknown") {
        return Ok(None);
    }
    end::expire(shared, key, scene, status.completion_time.as_ref()).await
}

/// Whether nothing is lost with a finished job: its last checkpoint is verified, or it never had one.
fn may_go(status: &S3TrainingJobStatus) -> bool {
    match condition(&status.conditions, condition_type::CHECKPOINTED) {
        Some(condition) if condition.status == "True" => true,
        Some(condition) if condition.reason != reason::CHECKPOINT_NONE.name => false,
        _ => status.last_checkpoint.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use s3_crds::{CheckpointStatus, set_condition};

    #[test]
    fn a_job_whose_checkpoint_is_not_verified_stays() {
        let checkpoint = CheckpointStatus { uri: "pvc://a".into(), digest: "d".into(), step: 3 };
        let mut status = S3TrainingJobStatus::default();
        assert!(may_go(&status), "it failed before it said anything of checkpoints");
        set_condition(&mut status.conditions, &reason::CHECKPOINT_NONE, "", None, &clock::now());
        assert!(may_go(&status));
        // What was seen once, and of which nothing tells any more whether it is whole.
        status.last_checkpoint = Some(checkpoint);
        assert!(!may_go(&status));
        set_condition(&mut status.conditions, &reason::CHECKPOINT_VERIFIED, "", None, &clock::now());
        assert!(may_go(&status));
        for said in ["Unknown", "False"] {
            status.conditions[0].status = said.into();
            status.conditions[0].reason = "Verifying".into();
            assert!(!may_go(&status), "{said}");
        }
        status.last_checkpoint = None;
        assert!(!may_go(&status));
    }
}
