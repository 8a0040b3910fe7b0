//! `EvalRun`.

use super::index::status_of;
use super::job::{SECRET_PERIOD, makes_pods, supplies};
use super::{Again, end, next_look, queue, refusal, sooner, stage, status};
use crate::clock;
use crate::key::Key;
use crate::operator::Shared;
use crate::scene::{Scene, conditions_of, suspends};
use crate::world::references;
use crate::write::Trouble;
use kube::ResourceExt;
use s3_crds::{Artifact, EvalRunStatus, FailurePolicy, Kind, condition, condition_type, is_true, reason};
use s3_plan::lifecycle::{Attempted, Move, RunView, Said, Supply, Verdict, decide_run, fill_run};
use s3_plan::{Binder, ComponentKind, PlanError, objects::ClusterBinder};

/// Reconciles one.
pub async fn reconcile(shared: &Shared, key: &Key, namespace: &str, name: &str) -> Result<Again, Trouble> {
    let Some(mut scene) = Scene::read(shared, Kind::EvalRun, namespace, name) else { return Ok(None) };
    let meta = scene.object.metadata.clone();
    let uid = scene.object.uid().unwrap_or_default();
    if meta.deletion_timestamp.is_some() {
        shared.reports.forget(&uid);
        return Ok(None);
    }
    let old: EvalRunStatus = status_of(&scene);
    let mut new = old.clone();
    new.observed_generation = meta.generation;
    let finished = is_true(&old.conditions, condition_type::SUCCEEDED);
    let index = scene.index_supply(shared, old.start_time.is_some());
    let job = job_supply(shared, &scene);
    let plan = match planned(&scene, &index, &job).cloned() {
        Ok(plan) => plan,
        Err(_) if finished => {
            status::affirm(&mut new.conditions, &scene.object);
            let again = status::write(shared, key, scene.kind, &scene.object, &new).await?;
            return Ok(sooner(again, end::expire(shared, key, &scene, new.completion_time.as_ref()).await?));
        }
        Err(said) => {
            status::say(&mut new.conditions, &said, &scene.object);
            return status::write(shared, key, scene.kind, &scene.object, &new).await;
        }
    };
    let Some(run) = scene.resources.runs.get(name).map(|sourced| sourced.object.clone()) else {
        return Err(PlanError::Defect(format!("{} is neither planned nor refused", scene.title())).into());
    };
    let spec = &run.spec;
    let queued = queue::look(shared, &scene, &plan).await?;
    let own = scene.own_jobs().into_iter().cloned().collect::<Vec<_>>();
    let of = |kind: ComponentKind| own.iter().find(|component| component.kind == kind);
    let fetch = of(ComponentKind::Fetch);
    let Some(component) = of(ComponentKind::Evaluation) else {
        return Err(PlanError::Defect(format!("{} has no component", scene.title())).into());
    };
    let print = scene.print(component);
    let attempts = scene.attempts_of(&component.name);
    let fetch_print = fetch.and_then(|fetch| scene.print(fetch));
    let fetched = fetch.map(|fetch| scene.attempts_of(&fetch.name)).unwrap_or_default();
    let running = attempts.iter().chain(&fetched).any(Attempted::open);
    let supplies = supplies(shared, &scene, index, job, running || finished || spec.suspend).await?;
    let policy = FailurePolicy::default();
    let view = RunView {
        fetch: fetch.map(|fetch| stage::stage(scene.now, fetch, fetch_print.as_deref(), &fetched, &policy, &uid)),
        stage: stage::stage(scene.now, component, print.as_deref(), &attempts, &policy, &uid),
        supplies,
        queue: queued.grant.clone(),
        suspend: spec.suspend,
        deadline: spec.active_deadline_seconds,
    };
    let decision = decide_run(&view);
    let waited = queue::note(&decision.said, reason::EVAL_QUEUED, &mut new.queued_since, &mut new.queue_wait_seconds);
    let steps = || fetch.zip(decision.fetch.as_ref()).into_iter().chain([(component, &decision.step)]);
    if steps().any(|(_, step)| matches!(step, Move::Start { .. })) && new.start_time.is_none() {
        new.start_time = Some(clock::now());
        status::say(&mut new.conditions, &decision.said, &scene.object);
        let again = status::write(shared, key, scene.kind, &scene.object, &new).await?;
        queue::count(key, waited);
        return Ok(again);
    }
    let wanted = !decision.finished && !spec.suspend;
    let ready = [&view.supplies.index, &view.supplies.job, &view.supplies.secret].iter().all(|s| **s == Supply::Ready);
    let all = || attempts.iter().chain(&fetched);
    queue::carry_out(shared, key, &scene, &queued, (wanted, ready), all()).await?;
    if makes_pods(&steps().map(|(_, step)| step).collect::<Vec<_>>(), all()) {
        scene.flavor = queue::flavor(shared, &scene, &queued).await?;
    }
    let mut said = decision.said.clone();
    let reasons = (reason::EVAL_NAME_TAKEN, reason::EVAL_INVALID);
    stage::all_of_resource(shared, key, &scene, steps(), reasons, &mut said).await?;
    status::say(&mut new.conditions, &said, &scene.object);
    let count = attempts.len() + usize::from(matches!(decision.step, Move::Start { .. }));
    new.attempts = (count > 0).then_some(u32::try_from(count).unwrap_or(u32::MAX));
    if let Some(newest) = attempts.last()
        && let Some(report) = shared.reports.of(&uid, &component.name, newest.number).filter(|report| report.total > 0)
    {
        (new.done, new.total) = (Some(report.done), Some(report.total));
    }
    if let Move::Done { attempt, digest } = &decision.step {
        let record = attempts.iter().find(|entry| entry.number == *attempt).and_then(|entry| entry.record.as_ref());
        if let Some(Verdict::Done { summary, .. }) = record.map(|record| &record.verdict) {
            fill_run(&mut new, digest, summary);
            // Where a person finds it, not where the pod had it.
            new.report = new.report.as_deref().map(crate::ledger::claim_uri);
        }
        let binder = ClusterBinder::new(&plan, &scene.observed, &scene.surroundings, component);
        let folder = binder.work(&component.name, "").map(|path| crate::ledger::claim_uri(&path.display().to_string()));
        new.artifact = folder.ok().map(|uri| Artifact { uri, digest: digest.clone() });
        new.done = new.total.or(new.done);
    }
    end::note(decision.finished, &new.conditions, &mut new.completion_time);
    let again = status::write(shared, key, scene.kind, &scene.object, &new).await?;
    queue::count(key, waited);
    let times = next_look(&scene, decision.again);
    let secrets = view.supplies.secret.missing().map(|_| SECRET_PERIOD);
    let expiry =
        if decision.finished { end::expire(shared, key, &scene, new.completion_time.as_ref()).await? } else { None };
    Ok(sooner(sooner(again, times), sooner(secrets, expiry)))
}

/// The plan, or what to say while there is none.
fn planned<'a>(scene: &'a Scene, index: &Supply, job: &Supply) -> Result<&'a s3_plan::Plan, Vec<Said>> {
    if let Some(said) = refusal(scene, reason::EVAL_INVALID, reason::EVAL_INVALID) {
        return Err(vec![said]);
    }
    scene.plan.as_ref().map_err(|error| match error {
        PlanError::Missing { .. } => {
            let waiting = match (index.missing(), job.missing()) {
                (Some(what), _) => (reason::EVAL_WAITING_INDEX, what.to_owned()),
                (None, what) => (reason::EVAL_WAITING_JOB, what.unwrap_or_default().to_owned()),
            };
            let suspended = if suspends(&scene.object) { reason::EVAL_SUSPENDED } else { reason::EVAL_NOT_SUSPENDED };
            vec![waiting, (reason::EVAL_PROGRESSING, String::new()), (suspended, String::new())]
        }
        error => vec![(reason::EVAL_INVALID, error.to_string())],
    })
}

/// What an evaluation waits for of a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    /// Of one whose questions are left out only the spec is read; what is pinned by its digest is there.
    Nothing,
    /// Any checkpoint.
    Checkpoint,
    /// What it exports in the end.
    End,
}

/// What the arms of a run want of a job.
fn wanted(arms: &[serde_json::Value], job: &str) -> Wanted {
    let text =
        |arm: &serde_json::Value, pointer: &str| arm.pointer(pointer).and_then(|v| v.as_str()).map(str::to_owned);
    let of_job = arms.iter().filter(|arm| text(arm, "/searcher/jobRef/name").as_deref() == Some(job));
    let wanted: Vec<Option<Wanted>> = of_job
        .map(|arm| match text(arm, "/searcher/checkpoint").as_deref() {
            Some("Step") if text(arm, "/searcher/sha256").is_some() => Some(Wanted::Nothing),
            Some("Latest") => Some(Wanted::Checkpoint),
            // Where anything of the training is there, the warm start is over.
            Some("WarmStart") => None,
            _ => Some(Wanted::End),
        })
        .collect();
    match wanted.iter().flatten().max() {
        Some(most) => *most,
        None if wanted.is_empty() => Wanted::Nothing,
        None => Wanted::End,
    }
}

/// Whether the jobs have made what is evaluated.
fn job_supply(shared: &Shared, scene: &Scene) -> Supply {
    let arms =
        scene.object.data.pointer("/spec/arms").and_then(serde_json::Value::as_array).cloned().unwrap_or_default();
    for (kind, name) in references(&scene.object) {
        if kind != Kind::S3TrainingJob {
            continue;
        }
        let Some(job) = shared.world.resource(kind, &scene.namespace(), &name) else {
            return Supply::Missing(format!("S3TrainingJob/{name} does not exist"));
        };
        if scene.refused.contains_key(&format!("S3TrainingJob/{name}")) {
            return Supply::Missing(format!("S3TrainingJob/{name} is not valid"));
        }
        let conditions = conditions_of(&job);
        let missing = match wanted(&arms, &name) {
            _ if is_true(&conditions, condition_type::SUCCEEDED) => continue,
            Wanted::Nothing => continue,
            Wanted::Checkpoint if job.data.pointer("/status/lastCheckpoint").is_some() => continue,
            Wanted::Checkpoint => "has no checkpoint yet",
            Wanted::End => "has not succeeded",
        };
        let state = condition(&conditions, condition_type::SUCCEEDED).map_or("Progressing", |c| c.reason.as_str());
        return Supply::Missing(format!("S3TrainingJob/{name} {missing} ({state})"));
    }
    Supply::Ready
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_evaluation_waits_for_no_more_than_its_arms_need() {
        let arm = |checkpoint: &str| json!({"searcher": {"jobRef": {"name": "a"}, "checkpoint": checkpoint}});
        let mut pinned = arm("Step");
        pinned["searcher"]["sha256"] = json!("d");
        let of = |arms: &[serde_json::Value]| wanted(arms, "a");
        assert!(of(&[]) == Wanted::Nothing && of(&[pinned.clone()]) == Wanted::Nothing);
        assert!(of(&[arm("Step")]) == Wanted::End && of(&[arm("WarmStart")]) == Wanted::End);
        assert!(of(&[arm("WarmStart"), pinned.clone()]) == Wanted::Nothing);
        assert!(of(&[pinned.clone(), arm("Latest")]) == Wanted::Checkpoint);
        assert!(of(&[arm("Latest"), json!({"searcher": {"jobRef": {"name": "a"}}})]) == Wanted::End);
        assert!(wanted(&[arm("Final")], "b") == Wanted::Nothing);
    }
}
