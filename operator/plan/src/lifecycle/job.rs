//! `S3TrainingJob`: baseline and warm start, then training, by attempts.

use super::Said;
use super::attempt::{Attempted, Live, StopCause, Verdict};
use super::queue::Grant;
use super::stage::{Failing, Move, Stage, Waiting, gpu_seconds, held_seconds, next_move};
use super::supply::Supplies;
use crate::ComponentKind;
use k8s_openapi::jiff::Timestamp;
use s3_crds::{FailureClass, Reason, reason};

/// Everything that is decided from.
#[derive(Clone, Debug)]
pub struct JobView<'a> {
    /// Its job components in order. `stop` and `may_start` are decided here.
    pub stages: Vec<(ComponentKind, Stage<'a>)>,
    /// What it needs.
    pub supplies: Supplies,
    /// What its queue says.
    pub queue: Grant,
    /// `spec.suspend`.
    pub suspend: bool,
    /// `spec.activeDeadlineSeconds`.
    pub deadline: Option<u64>,
    /// `spec.gpuSecondBudget`.
    pub gpu_budget: Option<u64>,
    /// Now, seconds since 1970.
    pub now: i64,
}

/// The decision.
#[derive(Clone, Debug, PartialEq)]
pub struct JobDecision {
    /// What to do with each component.
    pub moves: Vec<(ComponentKind, String, Move)>,
    /// Conditions.
    pub said: Vec<Said>,
    /// When to look again, seconds since 1970.
    pub again: Option<i64>,
    /// Nothing more will happen unless the spec changes.
    pub finished: bool,
}

/// A time of day for people.
pub(crate) fn clock(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

/// Why all of it has to stop, if it has to.
pub(crate) fn stop_cause(
    suspend: bool,
    deadline: Option<u64>,
    gpu_budget: Option<u64>,
    (held, gpus): (u64, u64),
) -> Option<StopCause> {
    if suspend {
        Some(StopCause::Suspended)
    } else if deadline.is_some_and(|deadline| held >= deadline) {
        Some(StopCause::Deadline)
    } else if gpu_budget.is_some_and(|budget| gpus >= budget) {
        Some(StopCause::Budget)
    } else {
        None
    }
}

/// When a running attempt uses up what is left, at the earliest.
pub(crate) fn used_up(
    open: &[&Attempted],
    deadline: Option<u64>,
    gpu_budget: Option<u64>,
    (held, gpus): (u64, u64),
    now: i64,
) -> Option<i64> {
    let running: Vec<_> = open.iter().filter(|attempt| attempt.live.since.is_some()).collect();
    let rate = u64::try_from(running.len()).unwrap_or(1);
    let gpu_rate: u64 = running.iter().map(|attempt| u64::from(attempt.gpus)).sum();
    let at =
        |left: u64, rate: u64| (rate > 0).then(|| now + i64::try_from(left.div_ceil(rate)).unwrap_or(i64::MAX / 4));
    let deadline = deadline.and_then(|deadline| at(deadline.saturating_sub(held), rate));
    let budget = gpu_budget.and_then(|budget| at(budget.saturating_sub(gpus), gpu_rate));
    deadline.into_iter().chain(budget).min()
}

/// Decides.
pub fn decide_job(view: &JobView<'_>) -> JobDecision {
    let all = || view.stages.iter().flat_map(|(_, stage)| stage.attempts.iter());
    let used = (held_seconds(all(), view.now), gpu_seconds(all(), view.now));
    let stop = stop_cause(view.suspend, view.deadline, view.gpu_budget, used)
        .or_else(|| view.queue.stops(all().any(Attempted::open)));
    let may_start = view.supplies.complete() && view.queue.admits();
    let moves: Vec<(ComponentKind, String, Move)> = view
        .stages
        .iter()
        .map(|(kind, stage)| {
            (*kind, stage.component.to_owned(), next_move(&Stage { stop, may_start, ..stage.clone() }))
        })
        .collect();
    let open: Vec<&Attempted> = all().filter(|attempt| attempt.open()).collect();
    let mut again = used_up(&open, view.deadline, view.gpu_budget, used, view.now);
    for (_, _, step) in &moves {
        if let Move::Wait(Waiting::Backoff { until, .. }) = step {
            again = Some(again.map_or(*until, |other: i64| other.min(*until)));
        }
    }

    let of = |kind: ComponentKind| moves.iter().find(|(of, ..)| *of == kind).map(|(.., step)| step);
    let done = moves.last().is_some_and(|(.., step)| matches!(step, Move::Done { .. }));
    let failing = moves.iter().find_map(|(kind, _, step)| match step {
        Move::Fail(failing) => Some((*kind, failing)),
        _ => None,
    });
    let stopped = moves.iter().all(|(.., step)| matches!(step, Move::Stopped(_) | Move::Done { .. }));
    let mut said = Vec::new();
    if let Some(step) = of(ComponentKind::Baseline) {
        let phase = phase_of(view, ComponentKind::Baseline);
        said.push(match step {
            Move::Done { .. } => (reason::BASELINE_COMPLETE, String::new()),
            Move::Fail(Failing { message, .. }) => (reason::BASELINE_FAILED, message.clone()),
            Move::Run { .. } | Move::Record { .. } => (reason::BASELINE_COMPUTING, phase),
            _ => (reason::BASELINE_PENDING, String::new()),
        });
    }
    said.push(match Attempted::newest_checkpoint(all()) {
        Some(checkpoint) => (reason::CHECKPOINT_VERIFIED, format!("step {}", checkpoint.step)),
        // What was exported has been read back and compared.
        None if done => (reason::CHECKPOINT_VERIFIED, String::new()),
        None => (reason::CHECKPOINT_NONE, String::new()),
    });
    said.push(if done || failing.is_some() {
        (reason::TRAINING_DONE, String::new())
    } else {
        working(view, &moves, stop)
    });
    let finished_by = match stop {
        _ if done => None,
        Some(StopCause::Deadline) if stopped => Some(reason::JOB_DEADLINE),
        Some(StopCause::Budget) if stopped => Some(reason::JOB_GPU_BUDGET),
        _ => None,
    };
    let paused = moves.iter().any(|(.., step)| *step == Move::Stopped(StopCause::Guard));
    said.push(match stop {
        _ if paused => (reason::JOB_PAUSED, String::new()),
        Some(StopCause::Suspended) if !done && failing.is_none() => {
            if stopped {
                (reason::JOB_SUSPENDED, String::new())
            } else {
                (reason::JOB_SUSPENDING, String::new())
            }
        }
        _ => (reason::JOB_NOT_SUSPENDED, String::new()),
    });
    let training = view.stages.iter().filter(|(kind, _)| *kind == ComponentKind::Training);
    said.push(match Attempted::guard(training.flat_map(|(_, stage)| stage.attempts.iter())) {
        Some(what) => (reason::COLLAPSE_SUSPECTED, what.to_owned()),
        None => (reason::COLLAPSE_NONE, String::new()),
    });
    said.push(match (done, failing, finished_by) {
        (true, ..) => match stopped_early(view, moves.last()) {
            Some(why) => (reason::JOB_STOPPED_EARLY, why),
            None => (reason::JOB_SUCCEEDED, String::new()),
        },
        (_, Some((_, failing)), _) => (failed(failing), failing.message.clone()),
        (_, _, Some(limit)) => (limit, format!("{} s held, {} GPU-seconds used", used.0, used.1)),
        _ => (reason::JOB_PROGRESSING, String::new()),
    });
    let finished = done || failing.is_some() || finished_by.is_some();
    JobDecision { moves, said, again: again.filter(|_| !finished), finished }
}

/// Which rule ended the training before its last step, if one did.
fn stopped_early(view: &JobView<'_>, last: Option<&(ComponentKind, String, Move)>) -> Option<String> {
    let (kind, _, Move::Done { attempt, .. }) = last? else { return None };
    let (_, stage) = view.stages.iter().find(|(of, _)| of == kind)?;
    let record = stage.attempts.iter().find(|entry| entry.number == *attempt)?.record.as_ref()?;
    let Verdict::Done { summary, .. } = &record.verdict else { return None };
    summary.get("stoppedEarly")?.as_str().map(str::to_owned)
}

fn failed(failing: &Failing) -> Reason {
    match failing.class {
        FailureClass::OutOfMemory if failing.by_class => reason::JOB_OUT_OF_MEMORY,
        FailureClass::NotANumber if failing.by_class => reason::JOB_NOT_A_NUMBER,
        FailureClass::InvalidInput if failing.by_class => reason::JOB_INVALID_INPUT,
        _ => reason::JOB_ATTEMPTS_EXHAUSTED,
    }
}

fn live<'a>(view: &'a JobView<'_>, kind: ComponentKind) -> Option<&'a Live> {
    let (_, stage) = view.stages.iter().find(|(of, _)| *of == kind)?;
    stage.attempts.iter().rev().find(|attempt| attempt.open()).map(|attempt| &attempt.live)
}

fn phase_of(view: &JobView<'_>, kind: ComponentKind) -> String {
    live(view, kind).map(|live| live.phase.clone()).unwrap_or_default()
}

/// What to say of training while it is neither done nor failed.
fn working(view: &JobView<'_>, moves: &[(ComponentKind, String, Move)], stop: Option<StopCause>) -> Said {
    // The latest component that does something speaks.
    let supplies = &view.supplies;
    for (kind, _, step) in moves.iter().rev() {
        let Move::Run { attempt } = step else { continue };
        let Some(live) = live(view, *kind) else { continue };
        if let Some(why) = &live.queued {
            return (reason::TRAINING_QUEUED, why.clone());
        }
        if let Some(why) = &live.unschedulable {
            return (reason::TRAINING_UNSCHEDULABLE, why.clone());
        }
        if !live.running {
            return (reason::TRAINING_STARTING, live.waiting.clone().unwrap_or_else(|| format!("attempt {attempt}")));
        }
        match kind {
            ComponentKind::Training => return (reason::TRAINING_RUNNING, live.phase.clone()),
            ComponentKind::WarmStart => return (reason::TRAINING_WARM_START, live.phase.clone()),
            _ => {}
        }
    }
    for (_, _, step) in moves {
        match step {
            Move::Wait(Waiting::Backoff { until, message, next, .. }) => {
                return (reason::TRAINING_BACKOFF, format!("{message}; attempt {next} starts at {}", clock(*until)));
            }
            Move::Wait(Waiting::Pods { attempt, count }) => {
                return (reason::TRAINING_STOPPING, format!("{count} pods of attempt {attempt} are not gone yet"));
            }
            _ => {}
        }
    }
    if stop.is_some() || moves.iter().any(|(.., step)| matches!(step, Move::Stopped(_))) {
        return (reason::TRAINING_STOPPING, String::new());
    }
    if let Some(what) = supplies.index.missing() {
        (reason::TRAINING_WAITING_INDEX, what.to_owned())
    } else if let Some(what) = supplies.job.missing() {
        (reason::TRAINING_WAITING_JOB, what.to_owned())
    } else if let Some(what) = supplies.secret.missing() {
        (reason::TRAINING_WAITING_SECRET, what.to_owned())
    } else if let Grant::Unavailable(why) = &view.queue {
        (reason::TRAINING_QUEUE_UNAVAILABLE, why.clone())
    } else if let Some(why) = view.queue.waits() {
        (reason::TRAINING_QUEUED, why.to_owned())
    } else if let Some(what) = supplies.gateway.missing() {
        (reason::TRAINING_WAITING_GATEWAY, what.to_owned())
    } else {
        (reason::TRAINING_STARTING, String::new())
    }
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
