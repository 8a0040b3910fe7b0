//! One reconcile: read everything, decide (pure), write what differs, say what is.

mod end;
mod gateway;
mod index;
mod job;
mod queue;
mod run;
mod schedule;
mod service;
mod stage;
mod status;

pub use status::StatusClock;

use crate::key::Key;
use crate::operator::Shared;
use crate::scene::{Scene, value_of};
use crate::write::Trouble;
use s3_crds::{Kind, Reason};
use s3_plan::lifecycle::Said;
use std::time::Duration;

/// When to look again, if nothing happens before.
pub type Again = Option<Duration>;

/// Reconciles one key.
pub async fn reconcile(shared: &Shared, key: &Key) -> Result<Again, Trouble> {
    match key {
        Key::Gateways { namespace } => gateway::reconcile(shared, key, namespace).await,
        Key::Resource { kind: Kind::RetrieverIndex, namespace, name } => {
            index::reconcile(shared, key, namespace, name).await
        }
        Key::Resource { kind: Kind::S3TrainingJob, namespace, name } => {
            Box::pin(job::reconcile(shared, key, namespace, name)).await
        }
        Key::Resource { kind: Kind::EvalRun, namespace, name } => run::reconcile(shared, key, namespace, name).await,
    }
}

/// From now until a time in seconds since 1970, at least a moment.
fn until(at: i64, now: i64) -> Duration {
    Duration::from_millis(u64::try_from(at - now).unwrap_or(0).saturating_mul(1000).max(200))
}

/// The earlier of two times.
fn sooner(a: Again, b: Again) -> Again {
    a.into_iter().chain(b).min()
}

/// When to look again without any event: what was decided, or a pod that counts as fenced then.
fn next_look(scene: &Scene, decided: Option<i64>) -> Again {
    let fenced = scene.entries.values().flatten().filter_map(|entry| entry.fenced_at).min();
    decided.into_iter().chain(fenced).map(|at| until(at, scene.now)).min()
}

/// Why a resource takes no part in a plan, if it takes none.
fn refusal(scene: &Scene, unsupported: Reason, invalid: Reason) -> Option<Said> {
    let errors = scene.refused.get(&scene.title())?;
    let valid = s3_crds::validate(scene.kind, &value_of(&scene.object, scene.kind)).is_empty();
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    Some((if valid { unsupported } else { invalid }, lines.join("; ")))
}
