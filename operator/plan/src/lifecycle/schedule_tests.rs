#![allow(clippy::unwrap_used)]
use super::*;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use s3_crds::{ArmResult, Estimate, Kind, Reason, apply_defaults, set_condition};
use serde_json::{Value, json};

fn job(change: impl FnOnce(&mut Value)) -> S3TrainingJobSpec {
    let mut object = json!({"spec": {
        "searcher": {"model": {"uri": "pvc://d/m"}},
        "retriever": {"indexRef": {"name": "i"}},
        "generator": {"provider": {"builtIn": {"model": {"uri": "pvc://d/m"}}}},
        "data": {"datasets": [{"name": "nq", "uri": "pvc://d/q"}]},
        "steps": 7,
        "evaluation": {"runs": {"every": 2, "templateRef": {"name": "full"}}},
    }});
    change(&mut object["spec"]);
    apply_defaults(Kind::S3TrainingJob, &mut object);
    serde_json::from_value(object["spec"].clone()).unwrap()
}

fn template(arms: &Value) -> EvalRunSpec {
    let mut object = json!({"spec": {
        "arms": arms, "suspend": true, "ttlSecondsAfterFinished": 9,
        "generator": {"provider": {"builtIn": {"model": {"uri": "pvc://d/m"}}}},
        "datasets": [{"name": "nq", "uri": "pvc://d/q"}],
    }});
    apply_defaults(Kind::EvalRun, &mut object);
    serde_json::from_value(object["spec"].clone()).unwrap()
}

fn arms() -> Value {
    json!([
        {"name": "before", "method": "S3", "searcher": {"jobRef": {"name": "a"}, "checkpoint": "WarmStart"}},
        {"name": "ours", "method": "S3", "searcher": {"jobRef": {"name": "a"}}},
        {"name": "theirs", "method": "S3", "searcher": {"jobRef": {"name": "b"}}},
    ])
}

fn digest(of: &str) -> String {
    of.repeat(64)
}

fn reasons(decision: &ScheduleDecision) -> Vec<&str> {
    decision.said.iter().map(|(reason, _)| reason.name).collect()
}

fn ended(spec: EvalRunSpec, reason: Reason) -> SeenRun {
    let mut status = EvalRunStatus::default();
    let now = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
    set_condition(&mut status.conditions, &reason, "", None, &now);
    let estimate = |value| Some(Estimate { value, low: 0.0, high: 1.0 });
    let row = |arm: &str, dataset: &str, value| ArmResult {
        arm: arm.into(),
        dataset: dataset.into(),
        gen_acc: estimate(value),
        gbr: estimate(value / 2.0),
        ..ArmResult::default()
    };
    status.results = vec![row("ours", "nq", 0.1), row("ours", "all", 0.5), row("theirs", "all", 0.9)];
    SeenRun { ours: true, going: false, spec: Some(spec), status }
}

fn decide(
    spec: &S3TrainingJobSpec,
    milestones: &BTreeMap<u32, String>,
    template: Result<&EvalRunSpec, String>,
    runs: &BTreeMap<String, SeenRun>,
    finished: bool,
) -> ScheduleDecision {
    decide_schedule(&ScheduleView { job: "a", spec, finished, milestones, template, runs })
}

#[test]
fn each_step_is_made_once_pinned_to_what_was_kept() {
    let (spec, full) = (job(|_| {}), template(&arms()));
    assert_eq!(steps_of(&spec).collect::<Vec<_>>(), [2, 4, 6]);
    let mut runs = BTreeMap::new();
    assert_eq!(reasons(&decide(&spec, &BTreeMap::new(), Ok(&full), &runs, false)), ["Scheduled"]);
    let milestones = BTreeMap::from([(2, digest("a")), (4, digest("b")), (5, digest("f"))]);
    let decision = decide(&spec, &milestones, Ok(&full), &runs, false);
    let names: Vec<&str> = decision.evaluations.iter().map(|told| told.name.as_str()).collect();
    assert_eq!(names, ["a-full-step-2", "a-full-step-4"], "a step off the schedule is none of it");
    for step in &decision.moves {
        let ScheduleMove::Make { name, step, spec } = step else { panic!("{step:?}") };
        assert!(!spec.suspend && spec.ttl_seconds_after_finished.is_none());
        let choices: Vec<_> = spec.arms.iter().map(|arm| arm.searcher.clone().unwrap()).collect();
        assert_eq!(
            (choices[0].checkpoint, choices[2].checkpoint),
            (CheckpointChoice::WarmStart, CheckpointChoice::Final)
        );
        assert_eq!((choices[1].step, choices[1].sha256.as_ref()), (Some(*step), milestones.get(step)));
        runs.insert(name.clone(), ended((**spec).clone(), reason::EVAL_PROGRESSING));
    }
    let settled = decide(&spec, &milestones, Ok(&full), &runs, false);
    assert_eq!((settled.moves.len(), reasons(&settled)), (0, vec!["Scheduled"]));
    assert_eq!((settled.evaluations[0].gen_acc, settled.evaluations[0].gbr), (Some(0.5), Some(0.25)));
}

#[test]
fn it_is_over_when_the_job_is_and_every_evaluation_is() {
    let (spec, full) = (job(|_| {}), template(&arms()));
    let milestones = BTreeMap::from([(2, digest("a"))]);
    let made = scheduled_run(&full, "a", 2, Some(&digest("a"))).unwrap();
    let with = |reason| BTreeMap::from([("a-full-step-2".to_owned(), ended(made.clone(), reason))]);
    let of = |reason, finished| decide(&spec, &milestones, Ok(&full), &with(reason), finished);
    assert_eq!(reasons(&of(reason::EVAL_SUCCEEDED, false)), ["Scheduled"], "steps are to come");
    assert_eq!(reasons(&of(reason::EVAL_SUCCEEDED, true)), ["Evaluated"]);
    assert_eq!(reasons(&of(reason::EVAL_INVALID_INPUT, true)), ["EvaluationFailed"]);
    assert_eq!(reasons(&of(reason::EVAL_PROGRESSING, true)), ["Scheduled"]);
    // a template that is gone takes nothing from what was made after it
    let gone = decide(&spec, &milestones, Err("gone".into()), &with(reason::EVAL_SUCCEEDED), true);
    assert_eq!((gone.moves.len(), reasons(&gone)), (0, vec!["Evaluated"]));
    assert_eq!(reasons(&decide(&spec, &milestones, Err("gone".into()), &BTreeMap::new(), true)), ["TemplateUnfit"]);
    let unfit = template(&json!([{"name": "direct", "method": "Direct"}]));
    let decision = decide(&spec, &milestones, Ok(&unfit), &BTreeMap::new(), true);
    assert_eq!((decision.moves.len(), reasons(&decision)), (0, vec!["TemplateUnfit"]));
}

#[test]
fn it_is_suspended_with_its_job_and_removed_with_what_it_evaluates() {
    let (full, milestones) = (template(&arms()), BTreeMap::from([(2, digest("a")), (4, digest("b"))]));
    let made = scheduled_run(&full, "a", 2, Some(&digest("a"))).unwrap();
    let runs = BTreeMap::from([("a-full-step-2".to_owned(), ended(made.clone(), reason::EVAL_PROGRESSING))]);
    let spec = job(|spec| spec["suspend"] = json!(true));
    let suspended = decide(&spec, &milestones, Ok(&full), &runs, false);
    assert_eq!(suspended.moves, [ScheduleMove::Suspend { name: "a-full-step-2".into(), on: true }], "none is made");
    let anew = BTreeMap::from([(2, digest("c"))]);
    let removed = decide(&job(|_| {}), &anew, Ok(&full), &runs, false);
    assert_eq!(removed.moves, [ScheduleMove::Remove { name: "a-full-step-2".into() }]);
    let mut foreign = runs.clone();
    foreign.get_mut("a-full-step-2").unwrap().ours = false;
    let taken = decide(&job(|_| {}), &anew, Ok(&full), &foreign, false);
    assert_eq!((taken.moves.len(), reasons(&taken)), (0, vec!["TemplateUnfit"]));
    assert!(decide(&job(|spec| spec["evaluation"] = json!({})), &anew, Ok(&full), &runs, false).said.is_empty());
}
