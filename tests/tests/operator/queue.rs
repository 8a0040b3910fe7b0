//! Lives in queues of Kueue, which the tests play.

use crate::kubelet::{Play, done};
use crate::kueue;
use crate::scenario::{self, GATEWAY, NAME};
use crate::setup::Setup;
use crate::snapshot::{made, settled};
use kube::api::ListParams;
use s3_crds::Kind;
use serde_json::{Value, json};

const WORKLOAD: &str = "a-job-queue";

async fn begin(setup: &Setup, queue: Value) {
    scenario::data(setup).await;
    setup.apply(Kind::RetrieverIndex, &scenario::index()).await;
    let mut job = scenario::job();
    job["spec"]["queue"] = queue;
    job["spec"]["parallelism"] = json!({"gpusPerReplica": 2});
    setup.apply(Kind::S3TrainingJob, &job).await;
}

async fn status(setup: &Setup) -> Value {
    setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().data["status"].clone()
}

async fn until_gone(setup: &Setup, name: &str) {
    setup.until("the Workload is gone", async || kueue::workload(setup, name).await.is_none()).await;
}

async fn gateway(setup: &Setup) -> bool {
    setup.api("apps/v1", "Deployment").get_opt(GATEWAY).await.unwrap().is_some()
}

/// One Workload spans all attempts; nothing runs without it, what is taken back stops and queues again, and whatever
/// ends frees its quota.
#[tokio::test(flavor = "multi_thread")]
async fn a_workload_spans_all_attempts() {
    let setup = Setup::new("queue").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Run);
    begin(&setup, json!({"name": "gpus"})).await;
    let kind = Kind::S3TrainingJob;
    setup.until_reason(kind, NAME, "Training", "Queued").await;
    setup.until("its Workload is there", async || kueue::workload(&setup, WORKLOAD).await.is_some()).await;
    let workload = kueue::workload(&setup, WORKLOAD).await.unwrap();
    let set = &workload["spec"]["podSets"][0];
    let requests = &set["template"]["spec"]["containers"][0]["resources"]["requests"];
    assert_eq!((&workload["spec"]["queueName"], &set["count"]), (&json!("gpus"), &json!(1)));
    assert_eq!(requests["nvidia.com/gpu"], "2", "{workload}");
    kueue::hold_back(&setup, WORKLOAD, "2 more nvidia.com/gpu needed").await;
    setup
        .until("the job says why", async || {
            status(&setup).await.to_string().contains("to queue gpus: 2 more nvidia.com/gpu needed")
        })
        .await;
    assert!(!gateway(&setup).await, "nothing is there for what waits");
    let (state, _) = settled(&setup).await;
    let jobs = state["made"]["Job"].as_array().unwrap();
    assert!(!jobs.iter().any(|job| job.as_str().unwrap().starts_with("a-train")), "{state:#}");
    assert!(status(&setup).await["queuedSince"].is_string());

    kueue::admit(&setup, WORKLOAD).await;
    setup.until_reason(kind, NAME, "Training", "Stepping").await;
    let now = status(&setup).await;
    assert!(now["queuedSince"].is_null() && now["queueWaitSeconds"].as_u64() >= Some(3), "{now}");
    let jobs = setup.api("batch/v1", "Job").list(&ListParams::default()).await.unwrap();
    let train = jobs.iter().find(|job| job.metadata.name.as_deref() == Some("a-train-a1-r0")).unwrap();
    let pod = train.data.pointer("/spec/template/spec").unwrap();
    assert_eq!(pod["nodeSelector"], json!({"kubernetes.io/os": "linux"}), "where the queue found room");
    assert_eq!(pod["tolerations"][0]["key"], "gpu");
    let labels = train.metadata.labels.as_ref().unwrap();
    assert!(!labels.contains_key("kueue.x-k8s.io/queue-name"), "never by both ways");
    settled(&setup).await;

    kueue::preempt(&setup, WORKLOAD).await;
    setup.until("its quota is free", async || !kueue::holds_quota(&setup, WORKLOAD).await).await;
    setup.until_reason(kind, NAME, "Training", "Queued").await;
    setup.until("nothing of it runs", async || !gateway(&setup).await).await;
    let left = made(&setup).await;
    assert!(!left["Job"].iter().any(|job| job.starts_with("a-train")), "{left:?}");
    let workload = kueue::workload(&setup, WORKLOAD).await.unwrap();
    let conditions = workload["status"]["conditions"].as_array().unwrap();
    let of = |type_: &str| conditions.iter().find(|c| c["type"] == type_).unwrap()["status"].clone();
    assert_eq!((of("QuotaReserved"), of("Admitted"), of("Requeued")), (json!("False"), json!("False"), json!("True")));
    settled(&setup).await;

    kueue::admit(&setup, WORKLOAD).await;
    setup.until_reason(kind, NAME, "Succeeded", "StepsDone").await;
    until_gone(&setup, WORKLOAD).await;
    assert_eq!(status(&setup).await["attempts"], 2, "what was preempted is no failure");
    settled(&setup).await;
    setup.done().await;
}

/// A suspended job holds no quota and queues anew; one that is deleted takes its Workload along.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_run_holds_no_quota() {
    let setup = Setup::new("quota").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Run);
    begin(&setup, json!({"name": "gpus", "mode": "Workload"})).await;
    let kind = Kind::S3TrainingJob;
    setup.until("its Workload is there", async || kueue::workload(&setup, WORKLOAD).await.is_some()).await;
    kueue::admit(&setup, WORKLOAD).await;
    setup.until_reason(kind, NAME, "Training", "Stepping").await;
    setup.change(kind, NAME, json!({"spec": {"suspend": true}})).await;
    setup.until_reason(kind, NAME, "Suspended", "Suspended").await;
    until_gone(&setup, WORKLOAD).await;
    settled(&setup).await;
    setup.change(kind, NAME, json!({"spec": {"suspend": false}})).await;
    setup.until_reason(kind, NAME, "Training", "Queued").await;
    setup.until("it queues anew", async || kueue::workload(&setup, WORKLOAD).await.is_some()).await;
    // Other pods than were admitted are admitted anew.
    kueue::admit(&setup, WORKLOAD).await;
    setup.kubelet.play("a-train", Play::Run);
    setup.until_reason(kind, NAME, "Training", "Stepping").await;
    let before = kueue::workload(&setup, WORKLOAD).await.unwrap();
    setup.change(kind, NAME, json!({"spec": {"resources": {"requests": {"cpu": "3"}}}})).await;
    setup
        .until("another Workload takes its place", async || {
            let now = kueue::workload(&setup, WORKLOAD).await;
            now.is_some_and(|now| now["metadata"]["uid"] != before["metadata"]["uid"])
        })
        .await;
    setup.until_reason(kind, NAME, "Training", "Queued").await;
    setup.delete(kind, NAME).await;
    until_gone(&setup, WORKLOAD).await;
    setup.done().await;
}

/// By label every attempt queues by itself; the operator says what Kueue says of the Job.
#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_job_says_that_it_is_queued() {
    let setup = Setup::new("labels").await;
    setup.start().await;
    setup.kubelet.play("a-train", Play::Run);
    begin(&setup, json!({"name": "gpus", "mode": "Labels"})).await;
    let kind = Kind::S3TrainingJob;
    setup.until_reason(kind, NAME, "Training", "Stepping").await;
    assert!(kueue::workload(&setup, WORKLOAD).await.is_none(), "exactly one of the two ways");
    let job = setup.api("batch/v1", "Job").get("a-train-a1-r0").await.unwrap();
    assert_eq!(job.metadata.labels.as_ref().unwrap()["kueue.x-k8s.io/queue-name"], "gpus");
    let name = kueue::for_job(&setup, &job).await;
    kueue::hold_back(&setup, &name, "the cluster is full").await;
    setup.until_reason(kind, NAME, "Training", "Queued").await;
    assert!(gateway(&setup).await, "it may be admitted at any time");
    kueue::admit(&setup, &name).await;
    setup.until_reason(kind, NAME, "Training", "Stepping").await;
    setup.kubelet.play("a-train", done("a-train"));
    scenario::ended(&setup, kind).await;
    setup.done().await;
}
