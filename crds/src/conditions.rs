//! Conditions: how they are listed, set and asked for.

use crate::reasons::Reason;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator};

/// Condition types of the three kinds.
pub mod condition_type {
    /// The index files are published.
    pub const BUILT: &str = "Built";
    /// The measured recall reaches its target.
    pub const RECALL_VERIFIED: &str = "RecallVerified";
    /// At least one server answers.
    pub const SERVING: &str = "Serving";
    /// Servers follow the load.
    pub const AUTOSCALED: &str = "Autoscaled";
    /// The summary of a `RetrieverIndex`.
    pub const READY: &str = "Ready";
    /// Baseline answers are complete.
    pub const BASELINE_READY: &str = "BaselineReady";
    /// A verified checkpoint exists.
    pub const CHECKPOINTED: &str = "Checkpointed";
    /// Policy update steps are being made.
    pub const TRAINING: &str = "Training";
    /// The job holds nothing because it was asked to stop.
    pub const SUSPENDED: &str = "Suspended";
    /// A guard's bound is passed.
    pub const COLLAPSE_SUSPECTED: &str = "CollapseSuspected";
    /// The evaluations on a job's schedule are finished.
    pub const EVALUATED: &str = "Evaluated";
    /// Questions are being answered.
    pub const EVALUATING: &str = "Evaluating";
    /// The summary of `S3TrainingJob` and `EvalRun`.
    pub const SUCCEEDED: &str = "Succeeded";
}

/// Schema of a condition list: a map by `type`.
pub fn condition_list(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<Vec<Condition>>();
    schema.insert("x-kubernetes-list-type".into(), "map".into());
    schema.insert("x-kubernetes-list-map-keys".into(), serde_json::json!(["type"]));
    schema
}

/// Sets a condition from its catalogued reason; the transition time moves only when the status changes.
/// Returns whether anything changed.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    reason: &Reason,
    message: impl Into<String>,
    generation: Option<i64>,
    now: &Time,
) -> bool {
    let mut next = Condition {
        type_: reason.condition.to_owned(),
        status: reason.status.to_owned(),
        reason: reason.name.to_owned(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now.clone(),
    };
    let Some(old) = conditions.iter_mut().find(|c| c.type_ == next.type_) else {
        conditions.push(next);
        conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        return true;
    };
    if old.status == next.status {
        next.last_transition_time = old.last_transition_time.clone();
    }
    let changed = *old != next;
    *old = next;
    changed
}

/// The condition of a type.
pub fn condition<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.type_ == type_)
}

/// Whether a condition's status is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    condition(conditions, type_).is_some_and(|c| c.status == "True")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::reason;

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let at = |second: i64| Time::from(k8s_openapi::jiff::Timestamp::from_second(second).unwrap());
        let mut list = Vec::new();
        assert!(set_condition(&mut list, &reason::TRAINING_QUEUED, "third in line", Some(1), &at(1)));
        assert!(
            !set_condition(&mut list, &reason::TRAINING_QUEUED, "third in line", Some(1), &at(2)),
            "no change, no write"
        );
        assert!(set_condition(&mut list, &reason::TRAINING_UNSCHEDULABLE, "no GPU", Some(1), &at(3)));
        assert_eq!(list[0].last_transition_time, at(1), "False stays False");
        assert!(set_condition(&mut list, &reason::TRAINING_RUNNING, "", Some(2), &at(4)));
        assert_eq!((list[0].last_transition_time.clone(), list[0].observed_generation), (at(4), Some(2)));
        assert!(set_condition(&mut list, &reason::BASELINE_COMPLETE, "", Some(2), &at(4)));
        assert_eq!(list.iter().map(|c| c.type_.as_str()).collect::<Vec<_>>(), ["BaselineReady", "Training"]);
        assert!(is_true(&list, "Training") && !is_true(&list, "Succeeded"));
    }
}
