//! Carrying out the moves of a job component.

use crate::key::Key;
use crate::ledger::{self, Entry};
use crate::operator::Shared;
use crate::scene::Scene;
use crate::write::Trouble;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use s3_crds::Reason;
use s3_plan::lifecycle::{Move, Said, Stage, Verdict, class_word};
use s3_plan::objects::Object;
use s3_plan::{Component, PlanError};
use s3_telemetry::metrics;

/// A stage of a component, without stop and supplies.
pub fn stage<'a>(
    now: i64,
    component: &'a Component,
    print: Option<&'a str>,
    attempts: &'a [s3_plan::lifecycle::Attempted],
    policy: &'a s3_crds::FailurePolicy,
    seed: &'a str,
) -> Stage<'a> {
    Stage { component: &component.name, print, attempts, policy, stop: None, may_start: true, now, seed }
}

/// A job component with everything that its moves are carried out with.
pub struct Work<'a> {
    /// It.
    pub component: &'a Component,
    /// Its attempts.
    pub entries: &'a [Entry],
    /// Owners of its objects.
    pub owners: &'a [OwnerReference],
    /// Makes the objects of an attempt.
    pub render: &'a (dyn Fn(u32) -> Result<Vec<Object>, PlanError> + Sync),
}

/// Does what was decided.
pub async fn carry_out(shared: &Shared, key: &Key, work: &Work<'_>, step: &Move) -> Result<(), Trouble> {
    let Work { component, entries, owners, render } = work;
    let entry = |number: u32| entries.iter().find(|entry| entry.attempt.number == number);
    match step {
        Move::Record { attempt, record } => {
            let Some(entry) = entry(*attempt) else { return Ok(()) };
            let annotation = ledger::record_annotation(record).map_err(|error| PlanError::Defect(error.to_string()))?;
            shared.writer.annotate(key, &entry.config_map.metadata, "ConfigMap", annotation).await?;
            let verdict = match &record.verdict {
                Verdict::Done { .. } => "Done",
                Verdict::Failed { class, .. } => class_word(*class),
                Verdict::Stopped { .. } => "Stopped",
            };
            metrics().operator_attempts.with_label_values(&[key.word(), verdict]).inc();
            tracing::info!(%key, component = component.name, attempt, verdict, "attempt ended");
        }
        Move::Remove { attempt } => {
            let Some(entry) = entry(*attempt) else { return Ok(()) };
            for job in &entry.jobs {
                shared.writer.delete(key, "Job", &job.metadata).await?;
            }
        }
        Move::Start { attempt } | Move::Run { attempt } => {
            let mut written = false;
            for object in render(*attempt)? {
                written |= shared.writer.hold(key, &object, owners).await?;
            }
            // Jobs of failed attempts stay for their logs until the next one is under way.
            for old in entries.iter().filter(|entry| entry.attempt.number < *attempt) {
                let done = old.attempt.record.as_ref().is_some_and(|r| matches!(r.verdict, Verdict::Done { .. }));
                for job in old.jobs.iter().filter(|_| !done) {
                    shared.writer.delete(key, "Job", &job.metadata).await?;
                }
            }
            if written && matches!(step, Move::Start { .. }) {
                tracing::info!(%key, component = component.name, attempt, "attempt started");
            }
        }
        Move::Done { .. } | Move::Wait(_) | Move::Fail(_) | Move::Stopped(_) => {}
    }
    Ok(())
}

/// Does what was decided for a component of one resource.
pub async fn of_resource(
    shared: &Shared,
    key: &Key,
    scene: &Scene,
    component: &Component,
    step: &Move,
) -> Result<(), Trouble> {
    let owners = [scene.owner()];
    let render = |number: u32| scene.render(component, number, &owners);
    let entries = scene.entries_of(&component.name);
    carry_out(shared, key, &Work { component, entries, owners: &owners, render: &render }, step).await
}

/// Does all that was decided for one resource; what cannot be done because of the resource is said.
pub async fn all_of_resource<'a>(
    shared: &Shared,
    key: &Key,
    scene: &Scene,
    steps: impl Iterator<Item = (&'a Component, &'a Move)>,
    (taken, invalid): (Reason, Reason),
    said: &mut Vec<Said>,
) -> Result<(), Trouble> {
    for (component, step) in steps {
        match of_resource(shared, key, scene, component, step).await {
            Ok(()) => {}
            Err(Trouble::NameTaken(what)) => said.push((taken, what)),
            Err(Trouble::Plan(error)) => said.push((invalid, error.to_string())),
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(())
}
