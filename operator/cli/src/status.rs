//! Status of each resource, as the operator would write it into the cluster.

use crate::state::State;
use crate::supervise::Phase;
use crate::table;
use crate::text::Problem;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use s3_crds::{
    Answerable, ArmResult, Artifact, BestArm, Estimate, EvalRunStatus, Quantity, Reason, RetrieverIndexStatus,
    S3TrainingJobStatus, reason, set_condition,
};
use s3_plan::{Component, ComponentKind, Observed, Plan};
use s3_telemetry::{Outcome, ProgressReport};
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::path::Path;

/// What is known of the components at one moment.
pub struct View<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The state folder.
    pub state: &'a State,
    /// Finished jobs.
    pub observed: &'a Observed,
    /// This run's processes.
    pub phases: &'a BTreeMap<String, Phase>,
    /// Latest reports.
    pub progress: &'a BTreeMap<String, ProgressReport>,
}

/// Writes the status files; keeps transition times from earlier writes and runs.
#[derive(Default)]
pub struct StatusWriter {
    failures: BTreeMap<String, String>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct File<S> {
    api_version: String,
    kind: String,
    metadata: Name,
    status: S,
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Name {
    name: String,
}

impl StatusWriter {
    /// Notes why a component failed for good.
    pub fn failed(&mut self, component: &str, why: &str) {
        self.failures.insert(component.to_owned(), why.to_owned());
    }

    /// Writes all files.
    pub fn write(&self, view: &View<'_>) -> Result<(), Problem> {
        for component in &view.plan.components {
            for owner in &component.owners {
                let Some((kind, name)) = owner.split_once('/') else { continue };
                // Each resource is written when its first component comes by; sharers come later.
                if first_of(view.plan, owner) != Some(component) {
                    continue;
                }
                match kind {
                    "RetrieverIndex" => self.save(view, kind, name, |s, w| w.index(view, owner, s))?,
                    "S3TrainingJob" => self.save(view, kind, name, |s, w| w.job(view, owner, s))?,
                    "EvalRun" => self.save(view, kind, name, |s, w| w.run(view, owner, s))?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    fn save<S: Serialize + DeserializeOwned + Default>(
        &self,
        view: &View<'_>,
        kind: &str,
        name: &str,
        fill: impl FnOnce(&mut S, &Self),
    ) -> Result<(), Problem> {
        let path = view.state.status(kind, name);
        let mut status = read::<S>(&path).unwrap_or_default();
        fill(&mut status, self);
        let file = File {
            api_version: s3_crds::API_VERSION.to_owned(),
            kind: kind.to_owned(),
            metadata: Name { name: name.to_owned() },
            status,
        };
        let text = serde_yaml_ng::to_string(&file).map_err(Problem::internal)?;
        s3_artifacts::write_atomic(&path, text.as_bytes()).map_err(Problem::artifact)
    }

    fn index(&self, view: &View<'_>, owner: &str, status: &mut RetrieverIndexStatus) {
        let (build, web) = (view.own(owner, ComponentKind::IndexBuild), view.own(owner, ComponentKind::WebSearch));
        let serve = view.own(owner, ComponentKind::Retriever).or(web);
        if web.is_some() {
            set(&mut status.conditions, (reason::INDEX_OF_THE_WEB, String::new()));
        }
        if let Some(build) = build {
            let done = view.outcome(build);
            let failed = self.failures.get(&build.name);
            let condition = match (&done, failed, view.runs(build)) {
                (Some(_), ..) => (reason::INDEX_BUILT, String::new()),
                (None, Some(why), _) => (reason::INDEX_BUILD_FAILED, why.clone()),
                (None, None, true) => (reason::INDEX_BUILDING, view.phase(build)),
                (None, None, false) => (reason::INDEX_BUILD_PENDING, String::new()),
            };
            set(&mut status.conditions, condition);
            status.progress = match (&done, view.share(build)) {
                (Some(_), _) => Some("100%".into()),
                (None, share) => share.map(|share| format!("{share}%")),
            };
            if let Some(outcome) = &done {
                status.digest = Some(outcome.digest.clone());
                fill_index(status, &outcome.summary);
                set(&mut status.conditions, (reason::RECALL_EXACT, String::new()));
            }
        }
        let serving = serve.map(|serve| (view.runs(serve), view.ready(serve)));
        let condition = match serving {
            Some((_, true)) => reason::SERVING_UP,
            Some((true, false)) => reason::SERVING_STARTING,
            _ => reason::SERVING_SCALED_TO_ZERO,
        };
        set(&mut status.conditions, (condition, String::new()));
        let ready = matches!(serving, Some((_, true)));
        status.ready_replicas = Some(u32::from(ready));
        set(&mut status.conditions, (if ready { reason::INDEX_READY } else { reason::INDEX_NOT_READY }, String::new()));
    }

    fn job(&self, view: &View<'_>, owner: &str, status: &mut S3TrainingJobStatus) {
        status.start_time.get_or_insert_with(now);
        let parts = [ComponentKind::Baseline, ComponentKind::WarmStart, ComponentKind::Training];
        let [baseline, warm, train] = parts.map(|kind| view.own(owner, kind));
        if let Some(baseline) = baseline {
            let outcome = view.outcome(baseline);
            let condition = match (&outcome, self.failures.get(&baseline.name), view.runs(baseline)) {
                (Some(_), ..) => (reason::BASELINE_COMPLETE, String::new()),
                (None, Some(why), _) => (reason::BASELINE_FAILED, why.clone()),
                (None, None, true) => (reason::BASELINE_COMPUTING, view.phase(baseline)),
                (None, None, false) => (reason::BASELINE_PENDING, String::new()),
            };
            set(&mut status.conditions, condition);
            let figure = |name| outcome.as_ref().and_then(|o| o.summary.get(name)?.as_f64());
            if let (Some(right), Some(all)) = (figure("right"), figure("questions")) {
                status.baseline_gen_acc = (all > 0.0).then(|| right / all);
            }
        }
        let last = train.or(warm);
        let outcome = last.and_then(|component| view.outcome(component));
        let failure = [baseline, warm, train].into_iter().flatten().find_map(|c| self.failures.get(&c.name));
        let running = |component: Option<&Component>| component.is_some_and(|component| view.runs(component));
        let condition = if outcome.is_some() {
            (reason::TRAINING_DONE, String::new())
        } else if running(train) {
            (reason::TRAINING_RUNNING, train.map(|c| view.phase(c)).unwrap_or_default())
        } else if running(warm) {
            (reason::TRAINING_WARM_START, warm.map(|c| view.phase(c)).unwrap_or_default())
        } else if [baseline, warm, train].into_iter().flatten().any(|c| view.pauses(c)) {
            (reason::TRAINING_BACKOFF, String::new())
        } else {
            (reason::TRAINING_WAITING_INDEX, String::new())
        };
        set(&mut status.conditions, condition);
        if let Some(report) = train.and_then(|component| view.progress.get(&component.name)) {
            let figure = |name: &str| report.figures.get(name).copied();
            status.step = figure("step").map(|step| step as u32).or(status.step);
            status.gbr = figure("gain").or(status.gbr);
            status.gen_acc = figure("accuracy").or(status.gen_acc);
            status.searches_per_question = figure("searches").or(status.searches_per_question);
        }
        let condition = match (&outcome, failure) {
            (Some(_), _) => (reason::JOB_SUCCEEDED, String::new()),
            (None, Some(why)) => (reason::JOB_INVALID_INPUT, why.clone()),
            (None, None) => (reason::JOB_PROGRESSING, String::new()),
        };
        set(&mut status.conditions, condition);
        if let (Some(outcome), Some(component)) = (outcome, last) {
            let export = view.state.work(&component.name).join("export");
            status.export =
                Some(Artifact { uri: format!("file://{}", export.display()), digest: outcome.digest.clone() });
            fill_job(status, &outcome.summary);
            status.digest = Some(outcome.digest);
            status.completion_time.get_or_insert_with(now);
        }
    }

    fn run(&self, view: &View<'_>, owner: &str, status: &mut EvalRunStatus) {
        status.start_time.get_or_insert_with(now);
        let Some(component) = view.own(owner, ComponentKind::Evaluation) else { return };
        if let Some(report) = view.progress.get(&component.name).filter(|report| report.total > 0) {
            (status.done, status.total) = (Some(report.done), Some(report.total));
        }
        let outcome = view.outcome(component);
        let running = view.runs(component);
        let (evaluating, succeeded) = match (&outcome, self.failures.get(&component.name)) {
            (Some(_), _) => ((reason::EVAL_DONE, String::new()), (reason::EVAL_SUCCEEDED, String::new())),
            (None, Some(why)) => ((reason::EVAL_DONE, String::new()), (reason::EVAL_INVALID_INPUT, why.clone())),
            (None, None) => {
                let now = if running {
                    (reason::EVAL_RUNNING, view.phase(component))
                } else if view.pauses(component) {
                    (reason::EVAL_BACKOFF, String::new())
                } else {
                    (reason::EVAL_WAITING_JOB, String::new())
                };
                (now, (reason::EVAL_PROGRESSING, String::new()))
            }
        };
        set(&mut status.conditions, evaluating);
        set(&mut status.conditions, succeeded);
        if let Some(outcome) = outcome {
            fill_run(status, &outcome);
            status.completion_time.get_or_insert_with(now);
        }
    }
}

impl View<'_> {
    fn own(&self, owner: &str, kind: ComponentKind) -> Option<&Component> {
        self.plan.components.iter().find(|component| component.kind == kind && component.owners.contains(owner))
    }

    /// The outcome of a finished job.
    fn outcome(&self, component: &Component) -> Option<Outcome> {
        self.observed.finished.get(&component.name)?;
        crate::observe::outcome(self.state, &component.name)
    }

    fn runs(&self, component: &Component) -> bool {
        matches!(self.phases.get(&component.name), Some(Phase::Running { .. }))
    }

    fn ready(&self, component: &Component) -> bool {
        matches!(self.phases.get(&component.name), Some(Phase::Running { ready: true, .. }))
    }

    fn pauses(&self, component: &Component) -> bool {
        matches!(self.phases.get(&component.name), Some(Phase::Pausing { .. }))
    }

    fn phase(&self, component: &Component) -> String {
        self.progress.get(&component.name).map(|report| report.phase.clone()).unwrap_or_default()
    }

    fn share(&self, component: &Component) -> Option<u64> {
        let report = self.progress.get(&component.name).filter(|report| report.total > 0)?;
        Some((report.done.min(report.total)) * 100 / report.total)
    }
}

fn first_of<'a>(plan: &'a Plan, owner: &str) -> Option<&'a Component> {
    plan.components.iter().find(|component| component.owners.contains(owner))
}

fn read<S: DeserializeOwned>(path: &Path) -> Option<S> {
    let text = std::fs::read_to_string(path).ok()?;
    // A status can always be made anew, so a file that cannot be read is simply replaced.
    serde_yaml_ng::from_str::<File<S>>(&text).ok().map(|file| file.status)
}

fn set(conditions: &mut Vec<Condition>, (reason, message): (Reason, String)) {
    set_condition(conditions, &reason, message, Some(1), &now());
}

fn now() -> Time {
    let seconds = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_secs());
    let stamp = k8s_openapi::jiff::Timestamp::from_second(i64::try_from(seconds).unwrap_or(0));
    Time(stamp.unwrap_or_default())
}

/// Takes from the build's summary what the status has room for; names differ between versions of workers.
fn fill_index(status: &mut RetrieverIndexStatus, summary: &serde_json::Value) {
    status.passages = summary.get("passages").and_then(serde_json::Value::as_u64);
    status.dimensions =
        summary.get("dimensions").and_then(serde_json::Value::as_u64).and_then(|d| u32::try_from(d).ok());
    status.content_digest = summary.get("contentDigest").and_then(|d| d.as_str()).map(str::to_owned);
    status.size = summary.get("bytes").and_then(serde_json::Value::as_u64).map(|b| Quantity(b.to_string()));
    if let Some(list) = summary.get("answerable") {
        status.answerable = serde_json::from_value::<Vec<Answerable>>(list.clone()).unwrap_or_default();
    }
    status.recall = Some(1.0);
}

/// Takes the last step's figures from a training's summary: the held-out ones where there are any.
fn fill_job(status: &mut S3TrainingJobStatus, summary: &serde_json::Value) {
    let figure = |name: &str| {
        let of = |part: &str| summary.pointer(&format!("/{part}/{name}")).and_then(serde_json::Value::as_f64);
        of("probeLast").or_else(|| of("last"))
    };
    status.step = summary.get("steps").and_then(serde_json::Value::as_u64).and_then(|steps| u32::try_from(steps).ok());
    status.gbr = figure("gain").or(status.gbr);
    status.gen_acc = figure("accuracy").or(status.gen_acc);
    status.searches_per_question = figure("searches").or(status.searches_per_question);
}

fn fill_run(status: &mut EvalRunStatus, outcome: &Outcome) {
    status.digest = Some(outcome.digest.clone());
    status.questions_digest = outcome.summary.get("questionsDigest").and_then(|d| d.as_str()).map(str::to_owned);
    let Ok(summary) = serde_json::from_value::<table::Summary>(outcome.summary.clone()) else { return };
    status.report = summary.report;
    let estimate = |e: table::Estimate| Estimate { value: e.value, low: e.low, high: e.high };
    status.results = summary
        .table
        .iter()
        .take(200)
        .map(|row| ArmResult {
            arm: row.arm.clone(),
            dataset: row.dataset.clone(),
            questions: row.n,
            failed: 0,
            gen_acc: Some(estimate(row.gen_acc)),
            exact_match: Some(estimate(row.em)),
            f1: Some(estimate(row.f1)),
            gbr: row.gbr.map(estimate),
            searches: Some(row.searches),
            passages: Some(row.passages),
        })
        .collect();
    let best = summary.table.iter().filter(|row| row.dataset == "all" || summary.table.len() == 1);
    status.best = best.max_by(|a, b| a.gen_acc.value.total_cmp(&b.gen_acc.value)).map(|row| BestArm {
        arm: row.arm.clone(),
        gen_acc: row.gen_acc.value,
        gbr: row.gbr.map(|gbr| gbr.value),
    });
}
