//! What is to be done next for one job component.

use super::attempt::{Attempted, End, Record, StopCause, Verdict};
use super::classify::{class_word, default_action};
use s3_crds::{FailureAction, FailureClass, FailurePolicy};

/// Longest share of a pause that is added so that many jobs do not start at once.
const JITTER: f64 = 0.1;

/// A job component and everything that its next move depends on.
#[derive(Clone, Debug)]
pub struct Stage<'a> {
    /// The component.
    pub component: &'a str,
    /// Of its settings as asked for now; none while something it needs has no outcome.
    pub print: Option<&'a str>,
    /// Its attempts, oldest first.
    pub attempts: &'a [Attempted],
    /// How failures are answered.
    pub policy: &'a FailurePolicy,
    /// Why nothing of it may run.
    pub stop: Option<StopCause>,
    /// Whether a new attempt may start; the reason why not is the caller's.
    pub may_start: bool,
    /// Now, seconds since 1970.
    pub now: i64,
    /// What spreads pauses: the resource's uid.
    pub seed: &'a str,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Something it needs has no outcome yet, or is not ready.
    Needs,
    /// Pods of an older attempt are not gone yet.
    Pods {
        /// The attempt.
        attempt: u32,
        /// How many.
        count: u32,
    },
    /// A pause after a failure.
    Backoff {
        /// Its end, seconds since 1970.
        until: i64,
        /// The failure's class.
        class: FailureClass,
        /// The failure.
        message: String,
        /// The attempt that starts then.
        next: u32,
    },
}

/// Why it failed for good.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failing {
    /// Class of the last failure.
    pub class: FailureClass,
    /// It, and why nothing more is tried.
    pub message: String,
    /// Whether the class alone decided, as opposed to the number of attempts.
    pub by_class: bool,
}

/// The next move.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// The outcome stands.
    Done {
        /// The attempt that made it.
        attempt: u32,
        /// Its digest.
        digest: String,
    },
    /// Write down how an attempt ended.
    Record {
        /// The attempt.
        attempt: u32,
        /// What is written.
        record: Box<Record>,
    },
    /// Delete the Jobs of an attempt that is over.
    Remove {
        /// The attempt.
        attempt: u32,
    },
    /// A new attempt starts.
    Start {
        /// Its number.
        attempt: u32,
    },
    /// An attempt is under way; its objects are held as they should be.
    Run {
        /// The attempt.
        attempt: u32,
    },
    /// Nothing now.
    Wait(Waiting),
    /// Nothing more.
    Fail(Failing),
    /// Nothing runs, as was asked.
    Stopped(StopCause),
}

/// Decides.
pub fn next_move(stage: &Stage<'_>) -> Move {
    // Each attempt queues anew: what the queue took back is over, and no failure.
    if let Some(taken) = stage.attempts.iter().find(|attempt| attempt.open() && attempt.live.evicted) {
        return record(taken, Verdict::Stopped { cause: StopCause::Queue }, stage.now);
    }
    // What has ended is written down before anything else, whatever is asked for now.
    for attempt in stage.attempts.iter().filter(|attempt| attempt.open()) {
        let verdict = match &attempt.live.end {
            Some(End::Done { digest, summary }) => Verdict::Done { digest: digest.clone(), summary: summary.clone() },
            Some(End::Paused) => Verdict::Stopped { cause: StopCause::Guard },
            Some(End::Failed { class, message }) => Verdict::Failed { class: *class, message: message.clone() },
            None => continue,
        };
        return record(attempt, verdict, stage.now);
    }
    let newest = stage.attempts.iter().map(|attempt| attempt.number).max().unwrap_or(0);
    // Only the newest attempt may be open.
    for attempt in stage.attempts.iter().filter(|attempt| attempt.open()) {
        let outdated = stage.print.is_some_and(|print| attempt.print != print) || attempt.number < newest;
        if let Some(cause) = stage.stop.or(outdated.then_some(StopCause::Superseded)) {
            return record(attempt, Verdict::Stopped { cause }, stage.now);
        }
    }
    // What is over lets go of its pods, and of Jobs that would still make some. Other Jobs of a failed attempt stay
    // for their logs.
    for attempt in stage.attempts {
        let Some(record) = &attempt.record else { continue };
        let stopped = matches!(record.verdict, Verdict::Stopped { .. });
        if attempt.live.jobs > 0 && (stopped || attempt.live.holding > 0 || attempt.live.unmade > 0) {
            return Move::Remove { attempt: attempt.number };
        }
    }
    if let Some(done) = outcome(stage) {
        return done;
    }
    if let Some(paused) = paused(stage, newest) {
        // Asking for a suspension takes note of the guard; taking it back lets the next attempt start.
        if stage.stop == Some(StopCause::Suspended)
            && let Some(record) = &paused.record
        {
            let verdict = Verdict::Stopped { cause: StopCause::Suspended };
            let record = Record { verdict, ..record.clone() };
            return Move::Record { attempt: paused.number, record: Box::new(record) };
        }
        if stage.stop.is_none() && paused.live.holding == 0 {
            return Move::Stopped(StopCause::Guard);
        }
    }
    if let Some(open) = stage.attempts.iter().find(|attempt| attempt.open()) {
        let live = &open.live;
        // Its Job is not seen, its pods are: either the Job is about to be seen, or the pods are about to go.
        if live.jobs == 0 && live.holding > 0 {
            return Move::Wait(Waiting::Pods { attempt: open.number, count: live.holding });
        }
        return Move::Run { attempt: open.number };
    }
    let holding = stage.attempts.iter().find(|attempt| attempt.live.holding > 0);
    if let Some(attempt) = holding {
        return Move::Wait(Waiting::Pods { attempt: attempt.number, count: attempt.live.holding });
    }
    let pause = match stage.print.map(|print| after_failures(stage, print)) {
        Some(Err(failing)) => return Move::Fail(failing),
        Some(Ok(pause)) => pause,
        None => None,
    };
    if let Some(cause) = stage.stop {
        return Move::Stopped(cause);
    }
    if stage.print.is_none() {
        return Move::Wait(Waiting::Needs);
    }
    if let Some((until, class, message)) = pause.filter(|(until, ..)| *until > stage.now) {
        return Move::Wait(Waiting::Backoff { until, class, message, next: newest + 1 });
    }
    if stage.may_start { Move::Start { attempt: newest + 1 } } else { Move::Wait(Waiting::Needs) }
}

/// Whether the next attempt begins anew, from the first step, because the last one failed so that a rule asks for it.
pub fn begins_anew(attempts: &[Attempted], print: Option<&str>, policy: &FailurePolicy) -> bool {
    let Some(last) = attempts.iter().max_by_key(|attempt| attempt.number) else { return false };
    let Some(Verdict::Failed { class, .. }) = last.record.as_ref().map(|record| &record.verdict) else { return false };
    print == Some(last.print.as_str()) && action(policy, *class) == FailureAction::Restart
}

fn action(policy: &FailurePolicy, class: FailureClass) -> FailureAction {
    let rule = policy.rules.iter().find(|rule| rule.class == class);
    rule.map_or_else(|| default_action(class), |rule| rule.action)
}

fn record(attempt: &Attempted, verdict: Verdict, now: i64) -> Move {
    Move::Record { attempt: attempt.number, record: Box::new(attempt.ended(verdict, now)) }
}

/// The newest attempt, where a guard has paused it and the settings are still the same.
fn paused<'a>(stage: &Stage<'a>, newest: u32) -> Option<&'a Attempted> {
    let attempt = stage.attempts.iter().find(|attempt| attempt.number == newest)?;
    let record = attempt.record.as_ref().filter(|_| stage.print.is_none_or(|print| print == attempt.print))?;
    (record.verdict == Verdict::Stopped { cause: StopCause::Guard }).then_some(attempt)
}

/// The newest outcome of the settings that are asked for.
fn outcome(stage: &Stage<'_>) -> Option<Move> {
    let print = stage.print?;
    stage.attempts.iter().rev().filter(|attempt| attempt.print == print).find_map(|attempt| {
        match &attempt.record.as_ref()?.verdict {
            Verdict::Done { digest, .. } => Some(Move::Done { attempt: attempt.number, digest: digest.clone() }),
            _ => None,
        }
    })
}

/// The pause that the last failure asks for (until when, class, message), or that nothing more is tried.
fn after_failures(stage: &Stage<'_>, print: &str) -> Result<Option<(i64, FailureClass, String)>, Failing> {
    let failures: Vec<(u32, FailureClass, &str, i64)> = stage
        .attempts
        .iter()
        .filter(|attempt| attempt.print == print)
        .filter_map(|attempt| {
            let record = attempt.record.as_ref()?;
            match &record.verdict {
                Verdict::Failed { class, message } => Some((attempt.number, *class, message.as_str(), record.at)),
                _ => None,
            }
        })
        .collect();
    let Some((number, class, message, at)) = failures.last().copied() else { return Ok(None) };
    let told = format!("attempt {number}: {}: {message}", class_word(class));
    let rule = stage.policy.rules.iter().find(|rule| rule.class == class);
    let lost = u32::try_from(failures.len()).unwrap_or(u32::MAX);
    if action(stage.policy, class) == FailureAction::Fail {
        return Err(Failing { class, message: told, by_class: true });
    }
    let of_class = failures.iter().filter(|(_, of, ..)| *of == class).count();
    if let Some(limit) = rule.and_then(|rule| rule.limit).filter(|limit| of_class >= *limit as usize) {
        let message = format!("{told} ({limit} attempts may be lost so)");
        return Err(Failing { class, message, by_class: false });
    }
    if lost >= stage.policy.max_attempts {
        let message = format!("{told} ({lost} of {} attempts failed)", stage.policy.max_attempts);
        return Err(Failing { class, message, by_class: false });
    }
    let pause = pause_after(stage.policy, lost, stage.seed);
    Ok(Some((at + i64::try_from(pause).unwrap_or(i64::MAX / 2), class, told)))
}

/// Seconds of pause after so many failures: doubled by each, bounded, and spread by up to a tenth.
pub fn pause_after(policy: &FailurePolicy, failures: u32, seed: &str) -> u64 {
    let doubled = policy.backoff.millis().saturating_mul(1 << failures.saturating_sub(1).min(30));
    let bounded = doubled.min(policy.max_backoff.millis());
    // The same for the same failure, so that deciding again decides the same.
    let mark = crate::names::short_digest(&format!("{seed}/{failures}"));
    let share = u32::from_str_radix(&mark, 16).map_or(0.0, |mark| f64::from(mark) / f64::from(u32::MAX));
    ((bounded as f64 * (1.0 + JITTER * share)) / 1000.0).ceil() as u64
}

/// GPU-seconds of all attempts, so far.
pub fn gpu_seconds<'a>(attempts: impl Iterator<Item = &'a Attempted>, now: i64) -> u64 {
    attempts.map(|attempt| attempt.seconds(now) * u64::from(attempt.gpus)).sum()
}

/// Seconds that attempts held pods, so far.
pub fn held_seconds<'a>(attempts: impl Iterator<Item = &'a Attempted>, now: i64) -> u64 {
    attempts.map(|attempt| attempt.seconds(now)).sum()
}

#[cfg(test)]
#[path = "stage_tests.rs"]
mod tests;
