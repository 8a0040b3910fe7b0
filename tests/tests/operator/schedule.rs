//! Evaluations on a job's schedule.

use crate::kubelet::Play;
use crate::progress::{pod_of, report, token};
use crate::scenario::{self, NAME, TEMPLATE};
use crate::setup::Setup;
use crate::snapshot::{made, settled};
use kube::ResourceExt;
use s3_crds::Kind;
use s3_proto::v1::ProgressReport;
use serde_json::{Value, json};

async fn begin(setup: &Setup) {
    scenario::begin_with(setup, Kind::S3TrainingJob, |job| job["spec"]["evaluation"] = scenario::every(1)).await;
}

async fn status(setup: &Setup) -> Value {
    setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().data["status"].clone()
}

fn name(step: u32) -> String {
    format!("{NAME}-{TEMPLATE}-step-{step}")
}

/// What an evaluation leaves.
fn evaluated(gen_acc: f64) -> Play {
    let estimate = |value: f64| json!({"value": value, "low": 0.0, "high": 1.0});
    let row = json!({"arm": "s3", "dataset": "all", "n": 8, "genAcc": estimate(gen_acc), "em": estimate(0.1),
        "f1": estimate(0.2), "gbr": estimate(0.05)});
    Play::Done { digest: "evaluated".into(), summary: json!({"table": [row]}) }
}

/// They start while the job trains, stop and go on with it, and are there once, with what they found in the job's
/// status; the last of them may end after the job. They go with it.
#[tokio::test(flavor = "multi_thread")]
async fn evaluations_are_made_while_the_job_trains() {
    let setup = Setup::new("schedule").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Run);
    setup.kubelet.play_attempt("a-train", 2, Play::Trained { milestones: scenario::milestones(&[1, 2, 3]) });
    setup.kubelet.play(&format!("{}-eval", name(1)), evaluated(0.5));
    setup.kubelet.play_attempt(&format!("{}-eval", name(2)), 1, Play::Run);
    setup.apply(Kind::EvalRun, &scenario::template()).await;
    begin(&setup).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    let uid = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().uid().unwrap();
    let own = token(&setup, &pod_of(&setup, "a-train", 1).await, &uid).await;
    let said = |steps: &[u32]| ProgressReport {
        uid: uid.clone(),
        component: "a-train".into(),
        epoch: 1,
        milestones: steps.iter().map(|step| (*step, format!("{step:064x}"))).collect(),
        ..ProgressReport::default()
    };
    report(&setup, &own, said(&[1])).await.unwrap();
    setup.until_reason(Kind::EvalRun, &name(1), "Succeeded", "Complete").await;
    assert_eq!(setup.reason(Kind::S3TrainingJob, NAME, "Training").await.as_deref(), Some("Stepping"));
    setup
        .until("what it found stands in the job's status", async || {
            let told = &status(&setup).await["evaluations"][0];
            told["genAcc"] == 0.5 && told["gbr"] == 0.05 && told["reason"] == "Complete"
        })
        .await;
    let run = setup.resources(Kind::EvalRun).get(&name(1)).await.unwrap();
    let searcher = &run.data["spec"]["arms"][1]["searcher"];
    assert_eq!((&searcher["checkpoint"], &searcher["step"]), (&json!("Step"), &json!(1)), "{searcher}");
    assert_eq!(searcher["sha256"], format!("{:064x}", 1));
    let config = setup.api("v1", "ConfigMap").get(&format!("{}-eval-a1", name(1))).await.unwrap();
    let config = config.data["data"]["r0.yaml"].as_str().unwrap();
    assert!(config.contains("/milestones/step-000001"), "{config}");

    // the operator is killed between two of them, and hears of both
    report(&setup, &own, said(&[1, 2])).await.unwrap();
    setup.restart(0).await;
    setup.until("the new operator hears of it", async || report(&setup, &own, said(&[1, 2])).await.is_ok()).await;
    setup.until_reason(Kind::EvalRun, &name(2), "Evaluating", "Answering").await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": true}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Suspended", "Suspended").await;
    setup.until_reason(Kind::EvalRun, &name(2), "Suspended", "Suspended").await;
    settled(&setup).await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": false}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Evaluated", "Evaluated").await;
    let told = status(&setup).await["evaluations"].clone();
    let steps: Vec<&Value> = told.as_array().unwrap().iter().map(|told| &told["step"]).collect();
    assert_eq!(steps, [&json!(1), &json!(2), &json!(3)], "{told}");
    settled(&setup).await;

    // one that a person deletes is made again, and all go with the job
    setup.delete(Kind::EvalRun, &name(1)).await;
    setup.until_reason(Kind::EvalRun, &name(1), "Succeeded", "Complete").await;
    setup.delete(Kind::S3TrainingJob, NAME).await;
    setup.delete(Kind::RetrieverIndex, NAME).await;
    setup
        .until("nothing but the template is left", async || {
            let runs = setup.resources(Kind::EvalRun).list(&kube::api::ListParams::default()).await.unwrap();
            let left = made(&setup).await;
            runs.items.len() == 1 && left.len() == 1 && left["running pods"] == ["0"]
        })
        .await;
    setup.done().await;
}

/// What begins anew has other searchers: the evaluations of the old ones are made again.
#[tokio::test(flavor = "multi_thread")]
async fn a_training_that_begins_anew_is_evaluated_anew() {
    let setup = Setup::new("schedule-anew").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Run);
    let mut others = scenario::milestones(&[1, 2, 3]);
    others["1"] = json!("f".repeat(64));
    setup.kubelet.play_attempt("a-train", 2, Play::Trained { milestones: others });
    setup.apply(Kind::EvalRun, &scenario::template()).await;
    scenario::begin_with(&setup, Kind::S3TrainingJob, |job| {
        job["spec"]["evaluation"] = scenario::every(1);
        job["spec"]["failurePolicy"]["rules"] = json!([{"class": "NotANumber", "action": "Restart", "limit": 2}]);
    })
    .await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    let uid = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().uid().unwrap();
    let own = token(&setup, &pod_of(&setup, "a-train", 1).await, &uid).await;
    let milestones = [(1, format!("{:064x}", 1))].into();
    let said = ProgressReport { uid, component: "a-train".into(), epoch: 1, milestones, ..ProgressReport::default() };
    report(&setup, &own, said).await.unwrap();
    setup.until_reason(Kind::EvalRun, &name(1), "Succeeded", "Complete").await;
    let first = setup.resources(Kind::EvalRun).get(&name(1)).await.unwrap().uid();
    setup.kubelet.play_attempt("a-train", 1, Play::Fail { code: 65, reason: "Error", message: "loss is NaN" });
    setup.until_reason(Kind::S3TrainingJob, NAME, "Evaluated", "Evaluated").await;
    let again = setup.resources(Kind::EvalRun).get(&name(1)).await.unwrap();
    assert_ne!(again.uid(), first);
    assert_eq!(again.data["spec"]["arms"][1]["searcher"]["sha256"], "f".repeat(64));
    settled(&setup).await;
    setup.done().await;
}

/// The newest searcher of a job that still trains is evaluated as soon as there is one.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_checkpoint_is_evaluated_while_the_job_trains() {
    let setup = Setup::new("latest").await;
    setup.start().await;
    setup.kubelet.play("a-train", Play::Run);
    scenario::begin(&setup, Kind::S3TrainingJob).await;
    let mut run = scenario::run();
    run["spec"]["arms"] = json!([
        {"name": "s3", "method": "S3", "searcher": {"jobRef": {"name": NAME}, "checkpoint": "Latest"}},
    ]);
    setup.apply(Kind::EvalRun, &run).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    setup.until_reason(Kind::EvalRun, NAME, "Evaluating", "WaitingForJob").await;
    let uid = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().uid().unwrap();
    let own = token(&setup, &pod_of(&setup, "a-train", 1).await, &uid).await;
    let checkpoint = s3_proto::v1::CheckpointReport { step: 1, digest: "c".into(), path: "/work/a/c".into() };
    let said = ProgressReport {
        uid,
        component: "a-train".into(),
        epoch: 1,
        checkpoint: Some(checkpoint),
        ..ProgressReport::default()
    };
    report(&setup, &own, said).await.unwrap();
    setup.until_reason(Kind::EvalRun, NAME, "Succeeded", "Complete").await;
    assert_eq!(setup.reason(Kind::S3TrainingJob, NAME, "Training").await.as_deref(), Some("Stepping"));
    let config = setup.api("v1", "ConfigMap").get("a-eval-a1").await.unwrap();
    let config = config.data["data"]["r0.yaml"].as_str().unwrap().to_owned();
    assert!(config.contains("latest: true") && config.contains("/checkpoints"), "{config}");
    // what the job does meanwhile changes nothing of it
    setup.kubelet.play("a-train", crate::kubelet::done("a-train"));
    scenario::ended(&setup, Kind::S3TrainingJob).await;
    settled(&setup).await;
    let attempts = setup.resources(Kind::EvalRun).get(NAME).await.unwrap().data["status"]["attempts"].clone();
    assert_eq!(attempts, 1);
    setup.done().await;
}
