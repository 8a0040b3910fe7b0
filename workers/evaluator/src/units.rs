//! Chunks of questions, evaluated once and journalled.
//!
//! A chunk of one arm is the unit of work: its batches are fixed by the configuration alone, so that a run
//! that was killed and continued computes what an uninterrupted one would. What an arm gathered and what it
//! answered are two entries: an episode is never played again because the generator went away.

use crate::arms::{Arm, Gathered};
use crate::calls::{Calls, Timer};
use crate::error::EvalError;
use s3_artifacts::Journal;
use s3_rollout::{AnswerSource, Ask, Link, RolloutError, Scored, Usage, all_failed, score_answers, score_own};
use s3_search::Question;
use s3_search::score::Verdict;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The journal's name in the state folder.
pub const UNITS: &str = "units.journal";
/// Rounds over a failed chunk; within each, every call is tried as often as its endpoint says.
const ROUNDS: u32 = 3;

/// One journal entry. Seconds are shown to people and enter no digest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Unit {
    /// Key `ARM/CHUNK/passages`.
    Gathered {
        /// Per question of the chunk.
        items: Vec<Gathered>,
        /// Wall-clock time.
        seconds: f64,
        /// Seconds of its calls.
        #[serde(default, skip_serializing_if = "Calls::is_empty")]
        calls: Calls,
    },
    /// Key `ARM/CHUNK/answers`.
    Scored {
        /// Per question of the chunk.
        items: Vec<Scored>,
        /// Wall-clock time.
        seconds: f64,
        /// What the answers used.
        #[serde(default)]
        usage: Usage,
        /// Seconds of their calls.
        #[serde(default, skip_serializing_if = "Calls::is_empty")]
        calls: Calls,
    },
}

/// Everything known of one arm, per question of the set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ArmResults {
    /// What it handed over.
    pub gathered: Vec<Gathered>,
    /// What that was worth.
    pub scored: Vec<Scored>,
    /// Wall-clock seconds of all chunks.
    pub seconds: f64,
    /// Seconds per question: those of its chunk, shared evenly.
    pub latencies: Vec<f64>,
    /// What the answers used.
    pub usage: Usage,
    /// Seconds of single calls.
    pub calls: Calls,
}

impl ArmResults {
    /// What a journal holds of an arm, up to the first chunk that is not finished.
    pub fn so_far(entries: &BTreeMap<String, Unit>, arm: &str) -> Self {
        let mut results = Self::default();
        for number in 0.. {
            let (
                Some(Unit::Gathered { items: gathered, seconds: before, calls: first }),
                Some(Unit::Scored { items, seconds, usage, calls: then }),
            ) = (entries.get(&key(arm, number, "passages")), entries.get(&key(arm, number, "answers")))
            else {
                return results;
            };
            results.add(gathered, items, before + seconds, *usage);
            for calls in [first, then] {
                results.calls.extend(calls);
            }
        }
        results
    }

    fn add(&mut self, gathered: &[Gathered], scored: &[Scored], seconds: f64, usage: Usage) {
        self.gathered.extend_from_slice(gathered);
        self.scored.extend_from_slice(scored);
        self.seconds += seconds;
        self.latencies.extend(scored.iter().map(|_| seconds / scored.len() as f64));
        self.usage += usage;
    }
}

/// The key of a unit.
fn key(arm: &str, number: usize, what: &str) -> String {
    format!("{arm}/{number:05}/{what}")
}

/// One arm's walk over the chunks.
pub struct ArmRun<'a> {
    /// Its name.
    pub name: &'a str,
    /// The whole set.
    pub questions: &'a [Question],
    /// Questions per chunk.
    pub chunk: usize,
    /// The generator, timed by `timer`.
    pub source: &'a dyn AnswerSource,
    /// Notes the seconds of calls to retriever, generator and judge.
    pub timer: &'a Timer,
    /// Says when to stop.
    pub link: &'a Link,
    /// Told the questions done.
    pub progress: &'a dyn Fn(usize),
}

impl ArmRun<'_> {
    /// Evaluates what is missing. `open` makes the arm when there is something to gather.
    pub fn run<'b>(
        &self,
        journal: &mut Journal<Unit>,
        open: impl FnOnce() -> Result<Box<dyn Arm + 'b>, EvalError>,
    ) -> Result<ArmResults, EvalError> {
        let mut results = ArmResults::default();
        let mut open = Some(open);
        let mut arm: Option<Box<dyn Arm + 'b>> = None;
        for (number, questions) in self.questions.chunks(self.chunk.max(1)).enumerate() {
            self.link.check()?;
            let first = number * self.chunk.max(1);
            let key = |what| key(self.name, number, what);
            if journal.get(&key("passages")).is_none() {
                if let Some(open) = open.take() {
                    arm = Some(open()?);
                }
                if let Some(arm) = &mut arm {
                    let (items, seconds) = self.rounds(first, questions.len(), || arm.gather(first, questions))?;
                    let calls = self.timer.take();
                    journal.append(&key("passages"), Unit::Gathered { items, seconds, calls })?;
                }
            }
            let (gathered, before) = match journal.get(&key("passages")) {
                Some(Unit::Gathered { items, seconds, calls }) if items.len() == questions.len() => {
                    results.calls.extend(calls);
                    (items.clone(), *seconds)
                }
                _ => return Err(self.mixed(number)),
            };
            if journal.get(&key("answers")).is_none() {
                let used = self.source.usage();
                let (items, seconds) = self.rounds(first, questions.len(), || self.answer(questions, &gathered))?;
                self.count(&items);
                let usage = self.source.usage().since(used);
                let calls = self.timer.take();
                journal.append(&key("answers"), Unit::Scored { items, seconds, usage, calls })?;
            }
            match journal.get(&key("answers")) {
                Some(Unit::Scored { items, seconds, usage, calls }) if items.len() == questions.len() => {
                    results.calls.extend(calls);
                    results.add(&gathered, items, before + seconds, *usage);
                }
                _ => return Err(self.mixed(number)),
            }
            (self.progress)(results.scored.len());
        }
        Ok(results)
    }

    /// Answers and verdicts. An outage of any item fails the chunk: it is asked again and never scored. What
    /// the provider refuses is refused every time; such an item stays without a verdict.
    fn answer(&self, questions: &[Question], gathered: &[Gathered]) -> Result<Vec<Scored>, RolloutError> {
        let mut scored: Vec<Option<Scored>> =
            gathered.iter().map(|one| one.refused.clone().map(|reason| Scored::missing(reason, false))).collect();
        let places = |own: bool| (0..gathered.len()).filter(move |&at| gathered[at].own.is_some() == own);
        let open = |at: &usize| gathered[*at].refused.is_none();
        let (owns, others): (Vec<usize>, Vec<usize>) = (places(true).collect(), places(false).filter(open).collect());
        let answers: Vec<String> = owns.iter().filter_map(|&at| gathered[at].own.clone()).collect();
        let asked: Vec<&Question> = owns.iter().map(|&at| &questions[at]).collect();
        for (at, one) in owns.iter().zip(score_own(self.source, &asked, &answers)?) {
            scored[*at] = Some(one);
        }
        let asks: Vec<Ask<'_>> =
            others.iter().map(|&at| Ask { question: &questions[at], passages: &gathered[at].passages }).collect();
        for (at, one) in others.iter().zip(score_answers(self.source, &asks)?) {
            scored[*at] = Some(one);
        }
        let scored: Vec<Scored> = scored.into_iter().flatten().collect();
        if let Some(error) = all_failed(&scored) {
            return Err(error);
        }
        for one in &scored {
            if let Some(missing) = one.failure.as_ref().filter(|missing| missing.outage) {
                return Err(RolloutError::AllFailed { reason: missing.reason.clone(), outage: true });
            }
            if one.judge == Some(Verdict::Failed) {
                let reason = "the judge gave no verdict".to_owned();
                return Err(RolloutError::AllFailed { reason, outage: true });
            }
        }
        Ok(scored)
    }

    /// Tries again after an outage, a few times; then the run stops and can be continued.
    fn rounds<T>(
        &self,
        first: usize,
        count: usize,
        mut work: impl FnMut() -> Result<T, RolloutError>,
    ) -> Result<(T, f64), EvalError> {
        let mut round = 1;
        loop {
            let started = Instant::now();
            let error = match work() {
                Ok(done) => return Ok((done, started.elapsed().as_secs_f64())),
                Err(error) => error,
            };
            let reason = match &error {
                RolloutError::AllFailed { reason, outage: true } => reason.clone(),
                other if other.is_outage() => other.to_string(),
                _ => return Err(error.into()),
            };
            let (arm, last) = (self.name.to_owned(), first + count);
            if round == ROUNDS {
                return Err(EvalError::Outage { arm, first: first + 1, last, reason });
            }
            tracing::warn!(arm, first = first + 1, last, round, reason, "chunk failed, trying again");
            self.pause(Duration::from_secs(1 << (round - 1)))?;
            round += 1;
        }
    }

    fn pause(&self, length: Duration) -> Result<(), RolloutError> {
        let until = Instant::now() + length;
        while Instant::now() < until {
            self.link.check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn count(&self, items: &[Scored]) {
        for one in items {
            let outcome = match one.verdict {
                Verdict::Correct => "right",
                Verdict::Incorrect => "wrong",
                Verdict::Undecided | Verdict::Failed => "failed",
            };
            s3_telemetry::metrics().eval_questions.with_label_values(&[self.name, outcome]).inc();
        }
    }

    fn mixed(&self, number: usize) -> EvalError {
        EvalError::Config(format!(
            "the journal's chunk {number} of arm {:?} has another size or kind; remove runtime.stateDir to start again",
            self.name
        ))
    }
}
