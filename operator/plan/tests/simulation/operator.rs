//! The operator of an execution: what it sees, what it decides by the real decisions, and what that does. The promises
//! are checked against what is, not against what it sees.

use crate::bugs::Bug;
use crate::world::{Broken, Cache, Pod, REPLICAS, Real, Replica, World, promise};
use s3_crds::{FailureAction, FailureClass};
use s3_plan::lifecycle::{
    Attempted, End, Failing, Live, Move, Record, Stage, StopCause, Verdict, Waiting, default_action, held_seconds,
    next_move,
};
use serde_json::json;

/// Pause after the first failure, seconds.
pub const PAUSE: i64 = 10;

impl World {
    fn view(&self) -> Vec<Attempted> {
        let seen = self.records.attempts.iter().filter(|real| real.known);
        seen.map(|real| {
            let of = |cache: &Cache| cache.attempts.iter().find(|other| other.number == real.number).cloned();
            let mut record = real.record.clone();
            if let Some(record) = &mut record {
                let stopped = matches!(record.verdict, Verdict::Stopped { .. });
                let left = of(&self.jobs).is_some_and(|real| real.replicas.iter().any(|replica| replica.job));
                if stopped && !left && self.has(Bug::SuspensionCounts) {
                    record.verdict = Verdict::Failed { class: FailureClass::Unknown, message: "stopped".to_owned() };
                }
                let failed = matches!(record.verdict, Verdict::Failed { .. });
                if failed && self.has(Bug::CountForgotten) && record.at < self.restarted_at {
                    record.verdict = Verdict::Stopped { cause: StopCause::Superseded };
                }
            }
            let print =
                if self.has(Bug::OutcomeOfOtherSettings) { self.print.unwrap_or(real.print) } else { real.print };
            Attempted {
                number: real.number,
                print: print.to_string(),
                started: real.started,
                anew: 0,
                gpus: 1,
                record,
                live: self.live_of(of(&self.jobs).as_ref(), of(&self.pods).as_ref()),
            }
        })
        .collect()
    }

    fn live_of(&self, jobs: Option<&Real>, pods: Option<&Real>) -> Live {
        let mut live = Live::default();
        let (mut done, mut failed) = (0, None);
        for which in 0..REPLICAS {
            let job = jobs.map(|real| real.replicas[which].clone()).unwrap_or_default();
            let pod = pods.map(|real| real.replicas[which].clone()).unwrap_or_default();
            let gone = job.ending && pod.pod.is_some_and(|pod| !pod.works());
            live.jobs += u32::from(job.job && !gone);
            live.unmade += u32::from(job.job && job.over.is_none() && pod.pod.is_none());
            live.since = match (live.since, pod.since) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            match pod.pod {
                Some(Pod::Pending | Pod::Running) => {
                    live.holding += 1;
                    live.running |= pod.pod == Some(Pod::Running);
                    if job.over.is_some() && self.has(Bug::LastWordsMissed) {
                        failed = Some(FailureClass::Unknown);
                    }
                }
                Some(Pod::Succeeded) => done += 1,
                Some(Pod::Failed(class)) => failed = Some(class),
                Some(Pod::Lost) if self.has(Bug::LostNodeHangs) => live.holding += 1,
                Some(Pod::Lost) => failed = Some(FailureClass::NodeLost),
                None if self.has(Bug::GoneIsDone) && job.made => done += 1,
                None if self.has(Bug::StalePodsAreLost) && job.made => failed = Some(FailureClass::NodeLost),
                // That the pod is not cached proves nothing until the cache is as new as the Job's end.
                None if job.over.is_some_and(|over| self.pods.as_of >= over) => failed = Some(FailureClass::NodeLost),
                None => {}
            }
        }
        live.end = match failed {
            Some(class) => Some(End::Failed { class, message: "m".to_owned() }),
            None if done == REPLICAS => Some(End::Done { digest: "d".to_owned(), summary: json!({}) }),
            None => None,
        };
        live
    }

    pub fn decide(&mut self) -> Result<(Move, bool), Broken> {
        self.decisions += 1;
        let attempts = self.view();
        let print = self.print.map(|print| print.to_string());
        let held = if self.has(Bug::DeadlineCountsQueue) {
            attempts.iter().map(|attempt| u64::try_from(self.now - attempt.started).unwrap_or(0)).sum()
        } else {
            held_seconds(attempts.iter(), self.now)
        };
        let stop = if self.suspend {
            Some(StopCause::Suspended)
        } else {
            self.deadline.filter(|deadline| held >= *deadline).map(|_| StopCause::Deadline)
        };
        let stop = stop.filter(|_| !self.has(Bug::StartsSuspended));
        let seed = self.seed.to_string();
        let stage = Stage {
            component: "c",
            print: print.as_deref(),
            attempts: &attempts,
            policy: &self.policy,
            stop,
            may_start: self.ready,
            now: self.now,
            seed: &seed,
        };
        let step = self.mistaken(next_move(&stage), &stage);
        let wrote = self.carry_out(&step, &attempts)?;
        Ok((step, wrote))
    }

    /// The decision as an operator with the bug makes it.
    fn mistaken(&self, step: Move, stage: &Stage<'_>) -> Move {
        let Some(bug) = self.bug else { return step };
        let newest = stage.attempts.iter().map(|attempt| attempt.number).max().unwrap_or(0);
        let open = stage.attempts.iter().find(|attempt| attempt.open());
        let stopped = |attempt: &Attempted, cause| Move::Record {
            attempt: attempt.number,
            record: Box::new(Record::new(Verdict::Stopped { cause }, self.now, 0)),
        };
        let failed = |number: u32| {
            let record = stage.attempts.iter().find(|attempt| attempt.number == number)?.record.as_ref()?;
            match &record.verdict {
                Verdict::Failed { class, .. } => Some(*class),
                _ => None,
            }
        };
        let failing = |class| Move::Fail(Failing { class, message: "m".to_owned(), by_class: true });
        match (bug, step) {
            (Bug::FailedKeepsPods, Move::Remove { attempt }) => match failed(attempt) {
                Some(class) if default_action(class) == FailureAction::Fail && self.failures().len() == 1 => {
                    failing(class)
                }
                _ => Move::Remove { attempt },
            },
            (Bug::TerminalBeforeRetry, Move::Wait(Waiting::Backoff { class, .. })) => failing(class),
            (Bug::RetriesWrongInput, Move::Fail(failing)) if failing.by_class => Move::Start { attempt: newest + 1 },
            (Bug::NoPause, Move::Wait(Waiting::Backoff { next, .. })) => Move::Start { attempt: next },
            (Bug::StartsBesideOldPods, Move::Wait(Waiting::Pods { .. }))
                if open.is_none() && stage.may_start && stage.stop.is_none() && stage.print.is_some() =>
            {
                Move::Start { attempt: newest + 1 }
            }
            (Bug::NeitherTerminalNorActed, Move::Fail(_)) => Move::Wait(Waiting::Needs),
            (Bug::OutcomeLostBySuspension, Move::Record { attempt, record }) => match (stage.stop, open) {
                (Some(cause), Some(open)) => stopped(open, cause),
                _ => Move::Record { attempt, record },
            },
            (Bug::DeletesBeforeRecord, Move::Record { attempt, record }) => match record.verdict {
                Verdict::Stopped { .. } if open.is_some_and(|open| open.live.jobs > 0) => Move::Remove { attempt },
                _ => Move::Record { attempt, record },
            },
            (Bug::RecordOverwritten, Move::Wait(Waiting::Backoff { .. })) => stage
                .attempts
                .last()
                .map_or(Move::Wait(Waiting::Needs), |attempt| stopped(attempt, StopCause::Superseded)),
            (_, step) => step,
        }
    }

    fn carry_out(&mut self, step: &Move, view: &[Attempted]) -> Result<bool, Broken> {
        match step {
            Move::Start { attempt } => self.start(*attempt),
            Move::Run { attempt } => Ok(self.run(*attempt)),
            Move::Record { attempt, record } => self.record(*attempt, record, view),
            Move::Remove { attempt } => self.remove(*attempt),
            Move::Done { attempt, .. } => {
                let real = self.truth.iter().find(|real| real.number == *attempt);
                let fits = real.is_some_and(|real| {
                    Some(real.print) == self.print
                        && matches!(real.record, Some(Record { verdict: Verdict::Done { .. }, .. }))
                });
                promise!(fits, "done by attempt {attempt}, which is no outcome of what is asked for: {real:?}");
                Ok(false)
            }
            Move::Fail(failing) => {
                let failures = self.failures();
                let last = failures.last().map(|(class, _)| *class);
                let justified = last.is_some_and(|class| {
                    default_action(class) == FailureAction::Fail || failures.len() >= self.policy.max_attempts as usize
                });
                promise!(justified, "failed by {failing:?} after {failures:?} of {}", self.policy.max_attempts);
                Ok(false)
            }
            Move::Stopped(_) if self.has(Bug::WritesForever) => {
                self.changed();
                Ok(true)
            }
            Move::Stopped(_) | Move::Wait(_) => Ok(false),
        }
    }

    /// Failures of what is asked for, and when.
    fn failures(&self) -> Vec<(FailureClass, i64)> {
        let of = |real: &Real| match (&real.record, Some(real.print) == self.print) {
            (Some(Record { verdict: Verdict::Failed { class, .. }, at, .. }), true) => Some((*class, *at)),
            _ => None,
        };
        self.truth.iter().filter_map(of).collect()
    }

    fn start(&mut self, number: u32) -> Result<bool, Broken> {
        let newest = self.truth.iter().filter(|real| real.known).map(|real| real.number).max().unwrap_or(0);
        let number = match self.bug {
            // A name that the server makes up is always free.
            Some(Bug::StartsTwice | Bug::DeposedLeaderWrites) => newest + 1,
            Some(Bug::NameReused) => newest.max(1),
            _ => number,
        };
        let Some(print) = self.print else { return Err("started without settings".into()) };
        promise!(!self.suspend, "started while suspended");
        promise!(self.ready, "started before what it needs is ready");
        promise!(number == newest + 1, "attempt {number} started after attempt {newest}");
        let failures = self.failures();
        promise!(
            failures.len() < self.policy.max_attempts as usize,
            "a new attempt after {} failures of {}",
            failures.len(),
            self.policy.max_attempts
        );
        if let Some((class, at)) = failures.last() {
            promise!(default_action(*class) != FailureAction::Fail, "tried again after {class:?}");
            promise!(self.now >= at + PAUSE, "tried again {} s after a failure", self.now - at);
        }
        let done = |real: &Real| {
            real.print == print && matches!(real.record, Some(Record { verdict: Verdict::Done { .. }, .. }))
        };
        promise!(!self.truth.iter().any(done), "started although the outcome stands");
        let crashes = self.below(8) == 0;
        let mut real = Real {
            number,
            print,
            started: self.now,
            known: true,
            record: None,
            replicas: vec![Replica::default(); REPLICAS],
        };
        let jobs_first = self.has(Bug::JobBeforeRecord);
        if jobs_first || !crashes {
            real.replicas.iter_mut().for_each(|replica| replica.job = true);
        }
        real.known = !(jobs_first && crashes);
        if let Some(orphan) = self.truth.iter_mut().find(|other| other.number == number) {
            // The Jobs are there already, under this name.
            orphan.known = true;
            promise!(orphan.print == print, "attempt {number} runs with settings that its record does not name");
        } else {
            self.truth.push(real);
        }
        self.changed();
        if crashes {
            self.crash();
        } else {
            self.see_own();
        }
        Ok(true)
    }

    /// Holds the objects of the attempt that is under way.
    fn run(&mut self, number: u32) -> bool {
        let Some(real) = self.truth.iter_mut().find(|real| real.number == number) else { return false };
        let mut wrote = false;
        for replica in &mut real.replicas {
            // A Job that was there and is gone is not made again: its pod may still work.
            if !replica.job && !replica.made {
                replica.job = true;
                wrote = true;
            }
        }
        if wrote {
            self.changed();
            self.see_own();
        }
        wrote
    }

    fn record(&mut self, number: u32, record: &Record, view: &[Attempted]) -> Result<bool, Broken> {
        let unguarded = self.has(Bug::RecordOverwritten) || self.has(Bug::DeposedLeaderWrites);
        let Some(real) = self.truth.iter_mut().find(|real| real.number == number) else {
            return Err(format!("a record of attempt {number}, which is not there"));
        };
        if real.record.is_some() {
            promise!(!unguarded, "the record of attempt {number} is written again");
            // The precondition fails; the cache catches up.
            self.see_own();
            return Ok(false);
        }
        let seen = view.iter().find(|attempt| attempt.number == number).and_then(|attempt| attempt.live.end.as_ref());
        let pods: Vec<Option<Pod>> = real.replicas.iter().map(|replica| replica.pod).collect();
        match &record.verdict {
            Verdict::Done { .. } => {
                let done = pods.iter().all(|pod| *pod == Some(Pod::Succeeded));
                promise!(done, "attempt {number} counts as done with pods {pods:?}");
            }
            Verdict::Failed { class, .. } => {
                let gone = real.replicas.iter().any(|replica| replica.made && replica.pod.is_none());
                let fits = gone || pods.iter().any(|pod| matches!(pod, Some(Pod::Failed(_) | Pod::Lost)));
                promise!(fits, "attempt {number} counts as failed ({class:?}) with pods {pods:?}");
            }
            Verdict::Stopped { cause } => {
                let lost = matches!(seen, Some(End::Done { .. }));
                promise!(!lost, "attempt {number} was done, and counts as stopped");
                if let (StopCause::Deadline, Some(deadline)) = (cause, self.deadline) {
                    let now = self.now;
                    let held: i64 = self
                        .truth
                        .iter()
                        .map(|real| match &real.record {
                            Some(record) => i64::try_from(record.seconds).unwrap_or(0),
                            None => real.replicas.iter().filter_map(|r| r.since).min().map_or(0, |since| now - since),
                        })
                        .sum();
                    promise!(held >= deadline as i64, "its deadline of {deadline} s came after {held} s");
                }
            }
        }
        let Some(real) = self.truth.iter_mut().find(|real| real.number == number) else { return Ok(false) };
        real.record = Some(record.clone());
        self.seen_ending.push(number);
        self.changed();
        // Before the write it would have been as if nothing had been decided.
        if self.below(8) == 0 {
            self.crash();
        } else {
            self.see_own();
        }
        Ok(true)
    }

    fn remove(&mut self, number: u32) -> Result<bool, Broken> {
        if self.has(Bug::DeletesOnlyOnEvents) && !self.seen_ending.contains(&number) || self.given_up {
            return Ok(false);
        }
        // The server may refuse or not answer.
        if self.below(6) == 0 {
            self.given_up = self.has(Bug::DeleteErrorDropped);
            return Ok(true);
        }
        let Some(real) = self.truth.iter_mut().find(|real| real.number == number) else { return Ok(false) };
        promise!(real.record.is_some(), "attempt {number} is deleted before it is written down why");
        if real.replicas.iter().all(|replica| !replica.job || replica.ending) {
            return Ok(false);
        }
        for replica in real.replicas.iter_mut().filter(|replica| replica.job) {
            replica.ending = true;
            replica.made = true;
            replica.going |= replica.pod.is_some_and(Pod::works);
        }
        self.changed();
        self.see_own();
        Ok(true)
    }
}
