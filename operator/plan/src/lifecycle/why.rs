//! Why a resource is where it is: one answer for every state, from the conditions that the decisions left.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use s3_crds::{Kind, REASONS, condition, condition_type};
use serde_json::Value;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// `Kind/name`.
    pub title: String,
    /// The condition that speaks, as `Type=status (Reason)`; none before the operator has looked.
    pub condition: Option<String>,
    /// What is the matter, with names.
    pub message: String,
    /// What a person does about it.
    pub action: String,
    /// The resources that it waits for.
    pub blocked_by: Vec<(Kind, String)>,
}

/// Explains a resource as the API server gives it.
pub fn why(kind: Kind, object: &Value) -> Why {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    let title = format!("{}/{name}", kind.name());
    let conditions = object.pointer("/status/conditions").cloned();
    let conditions: Vec<Condition> = conditions.and_then(|list| serde_json::from_value(list).ok()).unwrap_or_default();
    let Some(speaks) = speaker(kind, &conditions) else {
        let message = "the operator has not looked at it yet".to_owned();
        let action = "See whether the operator runs and serves this namespace.".to_owned();
        return Why { title, condition: None, message, action, blocked_by: Vec::new() };
    };
    let known = REASONS.iter().find(|r| r.kind == kind && r.condition == speaks.type_ && r.name == speaks.reason);
    let stale = object.pointer("/metadata/generation").and_then(Value::as_i64) > speaks.observed_generation;
    let mut message = speaks.message.clone();
    if let Some(known) = known.filter(|known| known.meaning != message) {
        message = format!("{message} ({})", known.meaning.trim_end_matches('.'));
    }
    if stale {
        message += "; the spec has changed since";
    }
    Why {
        title,
        condition: Some(format!("{}={} ({})", speaks.type_, speaks.status, speaks.reason)),
        message,
        action: known.map_or_else(String::new, |known| known.action.to_owned()),
        blocked_by: blocked_by(object, &speaks.reason),
    }
}

/// The condition that matters most now: an end, a hold, then what is under way.
fn speaker(kind: Kind, conditions: &[Condition]) -> Option<&Condition> {
    let of = |type_: &str| condition(conditions, type_);
    let is = |type_: &str, status: &str| of(type_).filter(|condition| condition.status == status);
    match kind {
        Kind::RetrieverIndex => {
            let ready = of(condition_type::READY)?;
            if ready.reason != "Progressing" {
                return Some(ready);
            }
            is(condition_type::BUILT, "False").or_else(|| is(condition_type::SERVING, "False")).or(Some(ready))
        }
        Kind::S3TrainingJob | Kind::EvalRun => {
            let work = if kind == Kind::EvalRun { condition_type::EVALUATING } else { condition_type::TRAINING };
            let end = of(condition_type::SUCCEEDED)?;
            if end.status != "Unknown" || end.reason != "Progressing" {
                return Some(end);
            }
            is(condition_type::SUSPENDED, "True").or_else(|| of(work)).or(Some(end))
        }
    }
}

fn blocked_by(object: &Value, reason: &str) -> Vec<(Kind, String)> {
    let text = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let arms = || object.pointer("/spec/arms").and_then(Value::as_array).into_iter().flatten();
    let of_arms = |pointer: &'static str| arms().filter_map(move |arm| text(arm, pointer));
    let mut found: Vec<(Kind, String)> = match reason {
        "WaitingForIndex" => {
            let indices = text(object, "/spec/retriever/indexRef/name").into_iter();
            indices.chain(of_arms("/retriever/indexRef/name")).map(|name| (Kind::RetrieverIndex, name)).collect()
        }
        "WaitingForJob" => of_arms("/searcher/jobRef/name").map(|name| (Kind::S3TrainingJob, name)).collect(),
        _ => Vec::new(),
    };
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use s3_crds::{Reason, reason, set_condition};
    use serde_json::json;

    fn object(said: &[(Reason, &str)]) -> Value {
        let mut list = Vec::new();
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        for (reason, message) in said {
            set_condition(&mut list, reason, *message, Some(1), &now);
        }
        json!({
            "metadata": {"name": "a", "generation": 1},
            "spec": {"retriever": {"indexRef": {"name": "wiki"}}, "arms": [{"searcher": {"jobRef": {"name": "j"}}}]},
            "status": {"conditions": list},
        })
    }

    #[test]
    fn the_most_important_condition_speaks() {
        let fresh = why(Kind::S3TrainingJob, &json!({"metadata": {"name": "a"}}));
        assert!(fresh.condition.is_none() && fresh.message.contains("not looked"));
        let waits =
            [(reason::JOB_PROGRESSING, ""), (reason::TRAINING_WAITING_INDEX, "RetrieverIndex/wiki does not exist")];
        let waits = why(Kind::S3TrainingJob, &object(&waits));
        assert_eq!(waits.condition.as_deref(), Some("Training=False (WaitingForIndex)"));
        assert_eq!(waits.blocked_by, [(Kind::RetrieverIndex, "wiki".to_owned())]);
        assert!(waits.message.starts_with("RetrieverIndex/wiki does not exist"), "{}", waits.message);
        let job = why(Kind::EvalRun, &object(&[(reason::EVAL_PROGRESSING, ""), (reason::EVAL_WAITING_JOB, "x")]));
        assert_eq!(job.blocked_by, [(Kind::S3TrainingJob, "j".to_owned())]);
        let over = [(reason::JOB_NOT_A_NUMBER, "loss"), (reason::TRAINING_DONE, "")];
        assert_eq!(why(Kind::S3TrainingJob, &object(&over)).condition.unwrap(), "Succeeded=False (NotANumber)");
        let building = [(reason::INDEX_NOT_READY, ""), (reason::INDEX_BUILDING, "embedding")];
        assert_eq!(why(Kind::RetrieverIndex, &object(&building)).condition.unwrap(), "Built=False (Building)");
        let mut changed = object(&building);
        changed["metadata"]["generation"] = json!(2);
        assert!(why(Kind::RetrieverIndex, &changed).message.ends_with("the spec has changed since"));
    }

    #[test]
    fn every_reason_that_can_speak_says_what_to_do() {
        for reason in REASONS {
            assert!(!reason.action.is_empty() && !reason.meaning.is_empty(), "{}", reason.name);
        }
    }
}
