//! One reconcile: read everything, decide (pure), write what differs, say what is.

mod gateway;
mod index;
mod job;
mod run;
mod stage;
mod status;

pub use status::StatusClock;

use crate::key::Key;
use crate::operator::Shared;
use crate::write::Trouble;
use s3_crds::Kind;
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
            job::reconcile(shared, key, namespace, name).await
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
