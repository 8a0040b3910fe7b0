//! A Kueue Workload that spans all attempts: what it says, and what is to be done with it.
//!
//! Kueue grants quota by the condition `Admitted` and asks for it back by `Evicted`; whoever owns the Workload stops
//! what runs and then takes the admission out of its status, so that the Workload queues again at its old place.

use super::attempt::StopCause;
use serde_json::Value;

/// What a resource's queue says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Grant {
    /// It asks for no Workload.
    #[default]
    NotAsked,
    /// Nothing is known yet: neither starts nor stops.
    Unknown,
    /// No Workload can be made, and why.
    Unavailable(String),
    /// It waits, and why.
    Waiting(String),
    /// It may run.
    Admitted,
    /// The quota is asked back, and why.
    Evicted(String),
}

impl Grant {
    /// Whether attempts may start.
    pub fn admits(&self) -> bool {
        matches!(self, Self::NotAsked | Self::Admitted)
    }

    /// Why it waits, if it does.
    pub fn waits(&self) -> Option<&str> {
        match self {
            Self::Unknown => Some("the state of its Workload is not known yet"),
            Self::Waiting(why) | Self::Evicted(why) => Some(why),
            Self::NotAsked | Self::Unavailable(_) | Self::Admitted => None,
        }
    }

    /// Whether what is under way has to stop: without quota nothing runs.
    pub fn stops(&self, under_way: bool) -> Option<StopCause> {
        (under_way && matches!(self, Self::Waiting(_) | Self::Evicted(_))).then_some(StopCause::Queue)
    }
}

/// A Workload as the API server shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admission {
    /// It holds quota.
    pub reserved: bool,
    /// It is being deleted.
    pub going: bool,
    /// It can never be admitted again, or asks for other pods than the spec does now.
    pub outdated: bool,
    /// Its quota is asked back.
    pub evicted: bool,
    /// What follows for attempts.
    pub grant: Grant,
}

/// Reads a Workload. `fits` says whether it asks for what is wanted now.
pub fn admission(workload: &Value, fits: bool) -> Admission {
    let of = |type_: &str| {
        let conditions = workload.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().find(|condition| condition["type"] == type_)
    };
    let holds = |type_: &str| of(type_).is_some_and(|condition| condition["status"] == "True");
    let message = |type_: &str| of(type_).and_then(|condition| condition["message"].as_str()).unwrap_or_default();
    let text = |pointer: &str| workload.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (name, queue) = (text("/metadata/name"), text("/spec/queueName"));
    let reserved = workload.pointer("/status/admission").is_some_and(|admission| !admission.is_null());
    let going = workload.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let (finished, evicted) = (holds("Finished"), holds("Evicted"));
    let waits = |said: &str| {
        let said = if said.is_empty() { String::new() } else { format!(": {said}") };
        format!("Workload {name} waits for admission to queue {queue}{said}")
    };
    let grant = if going || finished {
        Grant::Waiting(format!("Workload {name} is being replaced"))
    } else if evicted && reserved {
        Grant::Evicted(format!("queue {queue} took its quota back: {}", message("Evicted")))
    } else if evicted {
        Grant::Waiting(waits(message("Evicted")))
    } else if reserved && !fits {
        Grant::Evicted(format!("Workload {name} was admitted for other pods than the spec asks for now"))
    } else if holds("Admitted") {
        Grant::Admitted
    } else {
        Grant::Waiting(waits(message("QuotaReserved")))
    };
    Admission { reserved, going, outdated: finished || (reserved && !fits), evicted, grant }
}

/// What is to be done with a Workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueStep {
    /// Nothing now.
    Nothing,
    /// It is held as it should be.
    Hold,
    /// The quota is given back; it queues again.
    Clear,
    /// It goes, and the quota with it.
    Delete,
}

/// Decides. `wanted`: the resource has something to run, now or later. `holding`: something still runs on the quota.
pub fn queue_step(wanted: bool, holding: bool, live: Option<&Admission>) -> QueueStep {
    match live {
        None if wanted => QueueStep::Hold,
        None => QueueStep::Nothing,
        Some(live) if live.going => QueueStep::Nothing,
        Some(live) if !wanted || live.outdated => {
            if holding {
                QueueStep::Nothing
            } else {
                QueueStep::Delete
            }
        }
        Some(live) if live.evicted && live.reserved => {
            if holding {
                QueueStep::Nothing
            } else {
                QueueStep::Clear
            }
        }
        // What is admitted cannot be changed.
        Some(live) if live.reserved => QueueStep::Nothing,
        Some(_) => QueueStep::Hold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn workload(conditions: &[(&str, &str, &str)], reserved: bool) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(type_, status, message)| json!({"type": type_, "status": status, "message": message}))
            .collect();
        let admission = if reserved { json!({"clusterQueue": "c"}) } else { Value::Null };
        json!({"metadata": {"name": "w"}, "spec": {"queueName": "gpus"},
            "status": {"conditions": conditions, "admission": admission}})
    }

    #[test]
    fn a_workload_says_whether_attempts_may_run() {
        let waits = |value: &Value| admission(value, true).grant.waits().unwrap_or_default().to_owned();
        assert_eq!(waits(&workload(&[], false)), "Workload w waits for admission to queue gpus");
        let pending = workload(&[("QuotaReserved", "False", "insufficient quota")], false);
        assert!(waits(&pending).ends_with("gpus: insufficient quota"));
        // Quota alone is not enough: admission checks may still be open.
        assert!(!admission(&workload(&[("QuotaReserved", "True", "")], true), true).grant.admits());
        let admitted = [("QuotaReserved", "True", ""), ("Admitted", "True", "")];
        assert_eq!(admission(&workload(&admitted, true), true).grant, Grant::Admitted);
        assert!(matches!(admission(&workload(&admitted, true), false).grant, Grant::Evicted(_)));
        let evicted = workload(&[("Admitted", "True", ""), ("Evicted", "True", "preempted")], true);
        assert!(matches!(admission(&evicted, true).grant, Grant::Evicted(why) if why.ends_with("preempted")));
        let again = workload(&[("Admitted", "False", ""), ("Evicted", "True", "preempted")], false);
        assert!(matches!(admission(&again, true).grant, Grant::Waiting(_)));
    }

    #[test]
    fn quota_goes_back_only_when_nothing_runs_on_it() {
        let of = |conditions: &[(&str, &str, &str)], reserved| admission(&workload(conditions, reserved), true);
        let admitted = of(&[("Admitted", "True", "")], true);
        assert_eq!(queue_step(true, false, None), QueueStep::Hold);
        assert_eq!(queue_step(false, false, None), QueueStep::Nothing);
        assert_eq!(queue_step(true, true, Some(&admitted)), QueueStep::Nothing);
        assert_eq!(queue_step(true, false, Some(&of(&[], false))), QueueStep::Hold);
        assert_eq!(queue_step(false, true, Some(&admitted)), QueueStep::Nothing);
        assert_eq!(queue_step(false, false, Some(&admitted)), QueueStep::Delete);
        let evicted = of(&[("Evicted", "True", "")], true);
        assert_eq!(queue_step(true, true, Some(&evicted)), QueueStep::Nothing);
        assert_eq!(queue_step(true, false, Some(&evicted)), QueueStep::Clear);
        let finished = of(&[("Finished", "True", "")], false);
        assert_eq!(queue_step(true, false, Some(&finished)), QueueStep::Delete);
        assert_eq!(Grant::Unknown.stops(true), None);
        assert_eq!(admitted.grant.stops(true), None);
        assert_eq!(evicted.grant.stops(true), Some(StopCause::Queue));
        assert_eq!(evicted.grant.stops(false), None);
    }
}
