//! What comes after the end of a job or an evaluation: the time that is noted, and the resource that goes.

use super::{Again, until};
use crate::clock;
use crate::key::Key;
use crate::operator::Shared;
use crate::scene::Scene;
use crate::write::Trouble;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use s3_crds::{condition, condition_type};

/// Notes when it ended; takes that back when it goes on.
pub fn note(finished: bool, conditions: &[Condition], completion: &mut Option<Time>) {
    let over = condition(conditions, condition_type::SUCCEEDED).is_some_and(|c| c.status != "Unknown");
    if finished && over {
        completion.get_or_insert_with(clock::now);
    } else {
        *completion = None;
    }
}

/// Deletes a finished resource when its time is over.
pub async fn expire(shared: &Shared, key: &Key, scene: &Scene, end: Option<&Time>) -> Result<Again, Trouble> {
    let ttl = scene.object.data.pointer("/spec/ttlSecondsAfterFinished").and_then(serde_json::Value::as_i64);
    let (Some(ttl), Some(end)) = (ttl, end) else { return Ok(None) };
    let at = clock::seconds(end) + ttl;
    if at > scene.now {
        return Ok(Some(until(at, scene.now)));
    }
    shared.writer.delete(key, scene.kind.name(), &scene.object.metadata).await?;
    Ok(None)
}
