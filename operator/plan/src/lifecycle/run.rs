//! `EvalRun`: one component, alone or after the jobs whose searchers it evaluates.

use super::Said;
use super::attempt::{Attempted, Live, StopCause};
use super::job::{clock, stop_cause, used_up};
use super::queue::Grant;
use super::stage::{Move, Stage, Waiting, gpu_seconds, held_seconds, next_move};
use super::supply::Supplies;
use s3_crds::{FailureClass, reason};

/// Everything that is decided from.
#[derive(Clone, Debug)]
pub struct RunView<'a> {
    /// What fetches its data and models, where they lie in hubs and buckets.
    pub fetch: Option<Stage<'a>>,
    /// Its component. `stop` and `may_start` are decided here.
    pub stage: Stage<'a>,
    /// What it needs.
    pub supplies: Supplies,
    /// What its queue says.
    pub queue: Grant,
    /// `spec.suspend`.
    pub suspend: bool,
    /// `spec.activeDeadlineSeconds`.
    pub deadline: Option<u64>,
}

/// The decision.
#[derive(Clone, Debug, PartialEq)]
pub struct RunDecision {
    /// What to do with the fetch, where there is one.
    pub fetch: Option<Move>,
    /// What to do.
    pub step: Move,
    /// Conditions.
    pub said: Vec<Said>,
    /// When to look again, seconds since 1970.
    pub again: Option<i64>,
    /// Nothing more will happen unless the spec changes.
    pub finished: bool,
}

/// Decides.
pub fn decide_run(view: &RunView<'_>) -> RunDecision {
    let now = view.stage.now;
    let all = || view.fetch.iter().chain([&view.stage]).flat_map(|stage| stage.attempts.iter());
    let used = (held_seconds(all(), now), gpu_seconds(all(), now));
    let stop =
        stop_cause(view.suspend, view.deadline, None, used).or_else(|| view.queue.stops(all().any(Attempted::open)));
    let may_start = view.supplies.complete() && view.queue.admits();
    let of = |stage: &Stage<'_>| next_move(&Stage { stop, may_start, ..stage.clone() });
    let (fetch, step) = (view.fetch.as_ref().map(of), of(&view.stage));
    let open: Vec<&Attempted> = all().filter(|attempt| attempt.open()).collect();
    let mut again = used_up(&open, view.deadline, None, used, now);
    for step in fetch.iter().chain([&step]) {
        if let Move::Wait(Waiting::Backoff { until, .. }) = step {
            again = Some(again.map_or(*until, |other| other.min(*until)));
        }
    }
    let supplies = &view.supplies;
    let live = open.last().map(|attempt| &attempt.live);
    // The evaluation waits for what is fetched, so whatever holds that up speaks.
    let speaks = match &fetch {
        Some(fetch) if !matches!(fetch, Move::Done { .. }) => fetch,
        _ => &step,
    };
    let evaluating = match (speaks, live) {
        (Move::Done { .. } | Move::Fail(_), _) => (reason::EVAL_DONE, String::new()),
        (Move::Run { .. }, Some(Live { queued: Some(why), .. })) => (reason::EVAL_QUEUED, why.clone()),
        (Move::Run { .. } | Move::Record { .. }, Some(live)) if live.running => {
            (reason::EVAL_RUNNING, live.phase.clone())
        }
        (Move::Run { .. }, Some(live)) => {
            let why = live.unschedulable.clone().or_else(|| live.waiting.clone());
            (reason::EVAL_STARTING, why.unwrap_or_default())
        }
        (Move::Wait(Waiting::Backoff { until, message, .. }), _) => {
            (reason::EVAL_BACKOFF, format!("{message}; again at {}", clock(*until)))
        }
        (Move::Wait(Waiting::Pods { count, attempt }), _) => {
            (reason::EVAL_STOPPING, format!("{count} pods of attempt {attempt} are not gone yet"))
        }
        (Move::Stopped(_) | Move::Remove { .. }, _) => (reason::EVAL_STOPPING, String::new()),
        _ => {
            if let Some(what) = supplies.index.missing() {
                (reason::EVAL_WAITING_INDEX, what.to_owned())
            } else if let Some(what) = supplies.job.missing() {
                (reason::EVAL_WAITING_JOB, what.to_owned())
            } else if let Some(what) = supplies.secret.missing() {
                (reason::EVAL_WAITING_SECRET, what.to_owned())
            } else if let Grant::Unavailable(why) = &view.queue {
                (reason::EVAL_QUEUE_UNAVAILABLE, why.clone())
            } else if let Some(why) = view.queue.waits() {
                (reason::EVAL_QUEUED, why.to_owned())
            } else if let Some(what) = supplies.gateway.missing() {
                (reason::EVAL_WAITING_GATEWAY, what.to_owned())
            } else {
                (reason::EVAL_STARTING, String::new())
            }
        }
    };
    let suspended = matches!(speaks, Move::Stopped(StopCause::Suspended));
    let succeeded = match speaks {
        Move::Done { .. } if matches!(step, Move::Done { .. }) => (reason::EVAL_SUCCEEDED, String::new()),
        Move::Fail(failing) if failing.by_class && failing.class == FailureClass::InvalidInput => {
            (reason::EVAL_INVALID_INPUT, failing.message.clone())
        }
        Move::Fail(failing) => (reason::EVAL_ATTEMPTS_EXHAUSTED, failing.message.clone()),
        Move::Stopped(StopCause::Deadline) => (reason::EVAL_DEADLINE, format!("{} s held", used.0)),
        _ => (reason::EVAL_PROGRESSING, String::new()),
    };
    let finished = succeeded.0.status != "Unknown";
    let suspended = if suspended { reason::EVAL_SUSPENDED } else { reason::EVAL_NOT_SUSPENDED };
    let said = vec![evaluating, (suspended, String::new()), succeeded];
    RunDecision { fetch, step, said, again: again.filter(|_| !finished), finished }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::attempt::{Record, Verdict};
    use super::super::supply::Supply;
    use super::*;
    use s3_crds::FailurePolicy;

    fn reasons(attempts: &[Attempted], supplies: Supplies, suspend: bool, deadline: Option<u64>) -> Vec<&'static str> {
        let policy = FailurePolicy::default();
        let stage = Stage {
            component: "e",
            print: Some("p"),
            attempts,
            policy: &policy,
            stop: None,
            may_start: true,
            now: 100,
            seed: "u",
        };
        decide_run(&RunView { fetch: None, stage, supplies, queue: Grant::NotAsked, suspend, deadline })
            .said
            .into_iter()
            .map(|(reason, _)| reason.name)
            .collect()
    }

    fn attempt(verdict: Option<Verdict>) -> Attempted {
        let live = Live { jobs: 1, holding: 1, running: true, since: Some(90), ..Live::default() };
        let live = if verdict.is_some() { Live::default() } else { live };
        let record = verdict.map(|verdict| Record::new(verdict, 95, 5));
        Attempted { number: 1, print: "p".into(), started: 1, gpus: 0, anew: 0, record, live }
    }

    #[test]
    fn it_says_what_it_waits_for_in_order() {
        let missing = || Supply::Missing("x".into());
        let mut supplies = Supplies { index: missing(), job: missing(), secret: missing(), gateway: missing() };
        let mut seen = Vec::new();
        for part in 0..5 {
            seen.push(reasons(&[], supplies.clone(), false, None)[0]);
            match part {
                0 => supplies.index = Supply::Ready,
                1 => supplies.job = Supply::Ready,
                2 => supplies.secret = Supply::Ready,
                _ => supplies.gateway = Supply::Ready,
            }
        }
        assert_eq!(seen, ["WaitingForIndex", "WaitingForJob", "WaitingForSecret", "WaitingForGenerator", "Starting"]);
    }

    #[test]
    fn it_ends_in_one_of_its_ends() {
        let ready = Supplies::default;
        assert_eq!(reasons(&[attempt(None)], ready(), false, None), ["Answering", "NotSuspended", "Progressing"]);
        let done = Verdict::Done { digest: "d".into(), summary: serde_json::Value::Null };
        assert_eq!(reasons(&[attempt(Some(done))], ready(), false, None), ["Finished", "NotSuspended", "Complete"]);
        let wrong = Verdict::Failed { class: FailureClass::InvalidInput, message: "m".into() };
        assert_eq!(reasons(&[attempt(Some(wrong))], ready(), false, None)[2], "InvalidInput");
        let stopped = Verdict::Stopped { cause: StopCause::Deadline };
        assert_eq!(reasons(&[attempt(Some(stopped.clone()))], ready(), false, Some(5))[2], "DeadlineExceeded");
        assert_eq!(reasons(&[attempt(Some(stopped.clone()))], ready(), false, Some(500))[2], "Progressing");
        assert_eq!(reasons(&[attempt(Some(stopped))], ready(), true, None)[1], "Suspended");
    }
}
