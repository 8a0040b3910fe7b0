//! What jobs and evaluations need before an attempt may start, and who needs what.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use s3_crds::{condition, condition_type, is_true, reason};

/// One thing that is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Supply {
    /// It is there.
    #[default]
    Ready,
    /// It is not, or not yet; the text names it and says why.
    Missing(String),
}

impl Supply {
    /// What is missing.
    pub fn missing(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Missing(what) => Some(what),
        }
    }
}

/// Everything that an attempt needs, in the order in which it is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Supplies {
    /// Indices that are searched.
    pub index: Supply,
    /// Jobs whose searchers are evaluated.
    pub job: Supply,
    /// Secrets and their keys.
    pub secret: Supply,
    /// The gateway.
    pub gateway: Supply,
}

impl Supplies {
    /// Whether an attempt may start.
    pub fn complete(&self) -> bool {
        [&self.index, &self.job, &self.secret, &self.gateway].into_iter().all(|supply| *supply == Supply::Ready)
    }
}

/// Whether a job or evaluation with these conditions needs its gateway now: not before what else it waits for
/// is there, not while it is suspended, and once it is over only while its searcher is served. What is `admitted` as
/// a whole (`queue.mode: Workload`) needs none while it waits in its queue.
pub fn wants_gateway(conditions: &[Condition], serves: bool, admitted_whole: bool) -> bool {
    if serves && is_true(conditions, condition_type::SUCCEEDED) {
        return true;
    }
    let mut early = vec!["WaitingForIndex", "WaitingForJob", "WaitingForSecret", "QueueUnavailable"];
    if admitted_whole {
        early.push("Queued");
    }
    let work =
        [condition_type::TRAINING, condition_type::EVALUATING].iter().find_map(|type_| condition(conditions, type_));
    unfinished(conditions)
        && !is_true(conditions, condition_type::SUSPENDED)
        && work.is_some_and(|work| !early.contains(&work.reason.as_str()))
}

/// Whether a job or evaluation with these conditions waits for its gateway and nothing else.
pub fn waits_for_gateway(conditions: &[Condition]) -> bool {
    let work = [condition_type::TRAINING, condition_type::EVALUATING];
    work.iter().filter_map(|type_| condition(conditions, type_)).any(|work| {
        [reason::TRAINING_WAITING_GATEWAY, reason::EVAL_WAITING_GATEWAY].iter().any(|reason| reason.name == work.reason)
    })
}

/// Whether a job or evaluation with these conditions, once it has begun, still holds what it uses: until it is over,
/// and after that while its searcher is served.
pub fn holds(conditions: &[Condition], serves: bool) -> bool {
    (serves && is_true(conditions, condition_type::SUCCEEDED)) || unfinished(conditions)
}

fn unfinished(conditions: &[Condition]) -> bool {
    condition(conditions, condition_type::SUCCEEDED).is_none_or(|condition| condition.status == "Unknown")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use s3_crds::{Reason, set_condition};

    fn said(reasons: &[Reason]) -> Vec<Condition> {
        let mut list = Vec::new();
        let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        for reason in reasons {
            set_condition(&mut list, reason, "", None, &now);
        }
        list
    }

    #[test]
    fn a_gateway_is_wanted_only_where_it_is_of_use() {
        for (reasons, wanted) in [
            (vec![], false),
            (vec![reason::TRAINING_WAITING_INDEX], false),
            (vec![reason::TRAINING_WAITING_GATEWAY], true),
            (vec![reason::TRAINING_RUNNING, reason::JOB_PROGRESSING], true),
            (vec![reason::TRAINING_BACKOFF, reason::JOB_PROGRESSING], true),
            (vec![reason::TRAINING_DONE, reason::JOB_SUCCEEDED], false),
            (vec![reason::TRAINING_DONE, reason::JOB_DEADLINE], false),
            (vec![reason::TRAINING_WAITING_GATEWAY, reason::JOB_SUSPENDED], false),
            (vec![reason::TRAINING_QUEUED, reason::JOB_PROGRESSING], false),
            (vec![reason::EVAL_WAITING_JOB], false),
            (vec![reason::EVAL_RUNNING], true),
        ] {
            assert_eq!(wants_gateway(&said(&reasons), false, true), wanted, "{reasons:?}");
        }
        assert!(wants_gateway(&said(&[reason::TRAINING_DONE, reason::JOB_SUCCEEDED]), true, false));
        assert!(!wants_gateway(&said(&[reason::TRAINING_DONE, reason::JOB_DEADLINE]), true, false));
        assert!(waits_for_gateway(&said(&[reason::EVAL_WAITING_GATEWAY])));
        assert!(!waits_for_gateway(&said(&[reason::TRAINING_WAITING_INDEX])) && !waits_for_gateway(&[]));
        let by_label = said(&[reason::TRAINING_QUEUED, reason::JOB_PROGRESSING]);
        assert!(wants_gateway(&by_label, false, false), "its Job may be admitted at any time");
        assert!(holds(&said(&[reason::JOB_SUCCEEDED]), true) && !holds(&said(&[reason::JOB_SUCCEEDED]), false));
    }
}
