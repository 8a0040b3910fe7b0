//! Writing a status only where it differs, and telling people of what changed.

use super::Again;
use crate::clock;
use crate::key::Key;
use crate::operator::Shared;
use crate::progress::STATUS_PERIOD;
use crate::scene::conditions_of;
use crate::write::Trouble;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::DynamicObject;
use kube::runtime::events::{Event, EventType};
use s3_crds::{Kind, set_condition};
use s3_plan::lifecycle::Said;
use serde_json::Value;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

/// When each status was written last.
#[derive(Default)]
pub struct StatusClock(Mutex<HashMap<Key, Instant>>);

/// Fields that move by progress alone.
const PROGRESS: [&str; 8] = ["step", "gbr", "genAcc", "searchesPerQuestion", "progress", "done", "total", "gpuSeconds"];

/// Sets conditions; the generation is the one that was decided from. What is said last of a condition counts, as if
/// nothing else had been said: a status that is taken back at once is no transition, and would be written for ever.
pub fn say(conditions: &mut Vec<Condition>, said: &[Said], object: &DynamicObject) {
    let now = clock::now();
    for (index, (reason, message)) in said.iter().enumerate() {
        if said[index + 1..].iter().any(|(later, _)| later.condition == reason.condition) {
            continue;
        }
        // A condition always says something, and old servers make nothing of an empty text that is applied.
        let message = if message.is_empty() { reason.meaning } else { message };
        // The server takes messages of 32,768 characters; nobody reads so many.
        let message: String = message.chars().take(1024).collect();
        set_condition(conditions, reason, message, object.metadata.generation, &now);
    }
}

/// What was said holds for the newest spec, too.
pub fn affirm(conditions: &mut [Condition], object: &DynamicObject) {
    for condition in conditions {
        condition.observed_generation = object.metadata.generation;
    }
}

/// Writes the status when it differs. Progress alone waits for its period.
pub async fn write(
    shared: &Shared,
    key: &Key,
    kind: Kind,
    object: &DynamicObject,
    status: &impl serde::Serialize,
) -> Result<Again, Trouble> {
    let mut status = serde_json::to_value(status).map_err(|error| s3_plan::PlanError::Defect(error.to_string()))?;
    round(&mut status);
    let old = object.data.get("status").cloned().unwrap_or(Value::Null);
    if s3_crds::same(&status, &old) {
        return Ok(None);
    }
    if s3_crds::same(&quiet(&status), &quiet(&old)) {
        let last = shared.statuses.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).copied();
        if let Some(left) =
            last.and_then(|last| STATUS_PERIOD.checked_sub(last.elapsed())).filter(|left| !left.is_zero())
        {
            return Ok(Some(left));
        }
    }
    tracing::debug!(%key, %status, "status");
    let echo = shared.writer.status(key, kind, &object.metadata, status).await?;
    shared.statuses.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.clone(), Instant::now());
    tell(shared, kind, object, &conditions_of(&echo));
    Ok(None)
}

/// Rounds figures to four digits, as people read them.
fn round(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(round),
        Value::Object(fields) => fields.values_mut().for_each(round),
        Value::Number(number) if number.is_f64() => {
            let rounded = number.as_f64().map(|figure| (figure * 1e4).round() / 1e4);
            if let Some(rounded) = rounded.and_then(serde_json::Number::from_f64) {
                *number = rounded;
            }
        }
        _ => {}
    }
}

/// Without what moves by progress alone: figures, and messages of conditions.
fn quiet(status: &Value) -> Value {
    let mut status = status.clone();
    if let Value::Object(fields) = &mut status {
        fields.retain(|field, _| !PROGRESS.contains(&field.as_str()));
        let conditions = fields.get_mut("conditions").and_then(Value::as_array_mut);
        for condition in conditions.into_iter().flatten() {
            if let Value::Object(fields) = condition {
                fields.remove("message");
            }
        }
    }
    status
}

/// An event for each condition whose reason changed.
fn tell(shared: &Shared, kind: Kind, object: &DynamicObject, conditions: &[Condition]) {
    let old = conditions_of(object);
    let reference = ObjectReference {
        api_version: Some(s3_crds::API_VERSION.to_owned()),
        kind: Some(kind.name().to_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        uid: object.uid(),
        ..ObjectReference::default()
    };
    for condition in conditions {
        let before = s3_crds::condition(&old, &condition.type_);
        if before.is_some_and(|before| before.reason == condition.reason) {
            continue;
        }
        let known = s3_crds::REASONS.iter().find(|reason| {
            reason.kind == kind && reason.condition == condition.type_ && reason.name == condition.reason
        });
        let calm = known.is_none_or(|reason| reason.action.starts_with("Nothing"));
        // That a new object is where every object begins is no news.
        if before.is_none() && calm && condition.status != "True" {
            continue;
        }
        let note = Some(condition.message.clone());
        let event = Event {
            type_: if calm { EventType::Normal } else { EventType::Warning },
            reason: condition.reason.clone(),
            note,
            action: condition.type_.clone(),
            secondary: None,
        };
        shared.teller.tell(event, reference.clone());
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_crds::reason;
    use serde_json::json;

    #[test]
    fn figures_are_rounded_and_counts_are_not() {
        let mut status = json!({"gbr": 1.0 / 12.0, "step": 123_456, "results": [{"f1": {"value": -0.333_333}}]});
        round(&mut status);
        assert_eq!(status, json!({"gbr": 0.0833, "step": 123_456, "results": [{"f1": {"value": -0.3333}}]}));
    }

    #[test]
    fn what_is_said_and_taken_back_is_no_transition() {
        let object: DynamicObject =
            serde_json::from_value(json!({"metadata": {"name": "a", "generation": 1}})).unwrap();
        let mut conditions = Vec::new();
        say(&mut conditions, &[(reason::INDEX_NAME_TAKEN, "Deployment a is there".into())], &object);
        conditions[0].last_transition_time.0 = k8s_openapi::jiff::Timestamp::UNIX_EPOCH;
        let before = conditions.clone();
        let said =
            [(reason::INDEX_READY, String::new()), (reason::INDEX_NAME_TAKEN, "Deployment a is there".to_owned())];
        say(&mut conditions, &said, &object);
        assert_eq!(conditions, before);
    }

    #[test]
    fn progress_is_told_from_transitions() {
        let status = |step: u32, reason: &str, message: &str| json!({"step": step, "attempts": 1, "conditions": [{"type": "Training", "reason": reason, "message": message}]});
        assert_eq!(quiet(&status(1, "Stepping", "a")), quiet(&status(2, "Stepping", "b")));
        assert_ne!(quiet(&status(1, "Stepping", "a")), quiet(&status(1, "Backoff", "a")));
    }
}
