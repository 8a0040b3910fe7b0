//! Evaluations on a job's schedule (`evaluation.runs`): one `EvalRun` for the searcher of each of these steps.

use super::Said;
use crate::names::join;
use s3_crds::{
    CheckpointChoice, EvalRunSpec, EvalRunStatus, S3TrainingJobSpec, ScheduledEvaluation, condition, condition_type,
    reason,
};
use std::collections::BTreeMap;

/// The steps of a job's schedule.
pub fn steps_of(spec: &S3TrainingJobSpec) -> impl Iterator<Item = u32> + use<> {
    let (steps, every) = (spec.steps, spec.evaluation.runs.as_ref().map(|runs| runs.every.max(1)));
    every.into_iter().flat_map(move |every| (1..=steps / every).map(move |count| count * every))
}

/// Name of the evaluation of a step.
pub fn scheduled_name(job: &str, template: &str, step: u32) -> String {
    join(&format!("{job}-{template}"), &format!("step-{step}"))
}

/// The evaluation of a step, after the template; or what keeps the template from being one.
pub fn scheduled_run(
    template: &EvalRunSpec,
    job: &str,
    step: u32,
    sha256: Option<&str>,
) -> Result<EvalRunSpec, String> {
    let mut spec = EvalRunSpec { suspend: false, ttl_seconds_after_finished: None, ..template.clone() };
    let mut any = false;
    for searcher in spec.arms.iter_mut().filter_map(|arm| arm.searcher.as_mut()) {
        let of_job = searcher.job_ref.as_ref().is_some_and(|reference| reference.name == job);
        if of_job && searcher.checkpoint != CheckpointChoice::WarmStart {
            searcher.checkpoint = CheckpointChoice::Step;
            (searcher.step, searcher.sha256) = (Some(step), sha256.map(str::to_owned));
            any = true;
        }
    }
    if any {
        Ok(spec)
    } else {
        Err(format!("no arm of the template evaluates the searcher of S3TrainingJob {job}; give one `searcher.jobRef`"))
    }
}

/// The first arm that takes the searcher of a step of the job, and the digest that it is pinned to.
fn pinned<'a>(spec: &'a EvalRunSpec, job: &str) -> Option<(&'a str, Option<&'a str>)> {
    spec.arms.iter().find_map(|arm| {
        let searcher = arm.searcher.as_ref().filter(|searcher| searcher.checkpoint == CheckpointChoice::Step)?;
        let of_job = searcher.job_ref.as_ref().is_some_and(|reference| reference.name == job);
        of_job.then_some((arm.name.as_str(), searcher.sha256.as_deref()))
    })
}

/// An `EvalRun` that has the name of a scheduled one.
#[derive(Clone, Debug)]
pub struct SeenRun {
    /// The job's own.
    pub ours: bool,
    /// It is being deleted.
    pub going: bool,
    /// None where it cannot be read.
    pub spec: Option<EvalRunSpec>,
    /// Its status.
    pub status: EvalRunStatus,
}

/// Everything that is decided from.
#[derive(Clone, Debug)]
pub struct ScheduleView<'a> {
    /// Name of the job.
    pub job: &'a str,
    /// Its spec.
    pub spec: &'a S3TrainingJobSpec,
    /// Nothing more of it will be trained.
    pub finished: bool,
    /// Sha256 of the searchers that it has kept, by step.
    pub milestones: &'a BTreeMap<u32, String>,
    /// The template, or why there is none.
    pub template: Result<&'a EvalRunSpec, String>,
    /// The `EvalRun`s that have the names of scheduled ones.
    pub runs: &'a BTreeMap<String, SeenRun>,
}

/// What is to be done with one evaluation.
#[derive(Clone, Debug, PartialEq)]
pub enum ScheduleMove {
    /// It is made.
    Make {
        /// Its name.
        name: String,
        /// The step.
        step: u32,
        /// What it is.
        spec: Box<EvalRunSpec>,
    },
    /// It is suspended or goes on, as the job does.
    Suspend {
        /// Its name.
        name: String,
        /// Suspended.
        on: bool,
    },
    /// It evaluates what is no more: the training has begun anew.
    Remove {
        /// Its name.
        name: String,
    },
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScheduleDecision {
    /// What to do.
    pub moves: Vec<ScheduleMove>,
    /// For the status.
    pub evaluations: Vec<ScheduledEvaluation>,
    /// Conditions; empty without a schedule.
    pub said: Vec<Said>,
}

/// Decides.
pub fn decide_schedule(view: &ScheduleView<'_>) -> ScheduleDecision {
    let Some(runs) = &view.spec.evaluation.runs else { return ScheduleDecision::default() };
    let suspended = view.spec.suspend && !view.finished;
    let mut decision = ScheduleDecision::default();
    let (mut expected, mut over) = (0_usize, 0_usize);
    let mut failed: Vec<String> = Vec::new();
    let mut unfit = view.template.as_ref().err().cloned();
    let mut missing = false;
    for step in steps_of(view.spec) {
        let known = view.milestones.get(&step);
        // What a job that is over has not reached will not come.
        expected += usize::from(known.is_some() || !view.finished);
        let Some(sha256) = known else { continue };
        let name = scheduled_name(view.job, &runs.template_ref.name, step);
        let mut told =
            ScheduledEvaluation { step, name: name.clone(), sha256: Some(sha256.clone()), ..Default::default() };
        match view.runs.get(&name) {
            Some(run) if !run.ours => {
                missing = true;
                unfit.get_or_insert(format!(
                    "EvalRun/{name} exists and is not of this job's schedule; rename or delete it"
                ));
            }
            Some(run) if run.going => {}
            Some(run) => {
                let arm = run.spec.as_ref().and_then(|spec| pinned(spec, view.job));
                let succeeded = condition(&run.status.conditions, condition_type::SUCCEEDED);
                let ended = succeeded.is_some_and(|succeeded| succeeded.status != "Unknown");
                if arm.is_some_and(|(_, pin)| pin != Some(sha256)) {
                    decision.moves.push(ScheduleMove::Remove { name });
                } else {
                    if !ended && run.spec.as_ref().is_some_and(|spec| spec.suspend != suspended) {
                        decision.moves.push(ScheduleMove::Suspend { name: name.clone(), on: suspended });
                    }
                    over += usize::from(ended);
                    if succeeded.is_some_and(|succeeded| succeeded.status == "False") {
                        failed.push(name);
                    }
                    told.reason = succeeded.map(|succeeded| succeeded.reason.clone());
                    fill(&mut told, arm.map(|(arm, _)| arm), &run.status);
                }
            }
            None => {
                missing = true;
                match view.template.as_ref().map(|template| scheduled_run(template, view.job, step, Some(sha256))) {
                    Ok(Ok(spec)) if !suspended => {
                        decision.moves.push(ScheduleMove::Make { name, step, spec: Box::new(spec) });
                    }
                    Ok(Err(why)) => unfit = Some(why),
                    _ => {}
                }
            }
        }
        decision.evaluations.push(told);
    }
    let to_come = missing || decision.evaluations.len() < expected;
    decision.said.push(match unfit {
        Some(why) if to_come => (reason::SCHEDULE_TEMPLATE, why),
        _ if over < expected => (reason::SCHEDULE_GOING, format!("{over} of {expected} are finished")),
        _ if failed.is_empty() => (reason::SCHEDULE_DONE, format!("{over} evaluations")),
        _ => (reason::SCHEDULE_FAILED, format!("{} failed: {}", failed.len(), failed.join(", "))),
    });
    decision
}

/// Takes the figures of an arm.
fn fill(told: &mut ScheduledEvaluation, arm: Option<&str>, status: &EvalRunStatus) {
    let single = |arm: &str| status.results.iter().filter(|row| row.arm == arm).count() == 1;
    let row =
        arm.and_then(|arm| status.results.iter().find(|row| row.arm == arm && (row.dataset == "all" || single(arm))));
    let Some(row) = row else { return };
    told.gen_acc = row.gen_acc.as_ref().map(|estimate| estimate.value);
    told.gbr = row.gbr.as_ref().map(|estimate| estimate.value);
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
