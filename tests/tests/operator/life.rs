//! Whole lives without faults.

use crate::kubelet::Play;
use crate::scenario::{self, GATEWAY, NAME};
use crate::setup::Setup;
use crate::snapshot::{made, settled};
use s3_crds::Kind;
use serde_json::json;

/// Waits until no object of ours and no running pod is there.
async fn nothing_is_left(setup: &Setup) {
    setup
        .until("nothing is left", async || {
            let left = made(setup).await;
            left.len() == 1 && left["running pods"] == ["0"]
        })
        .await;
}

/// Each kind reaches its end, after which nothing is written; deleting it leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn each_kind_lives_settles_and_leaves_nothing() {
    for kind in Kind::ALL {
        let setup = Setup::new("life").await;
        setup.start().await;
        scenario::begin(&setup, kind).await;
        scenario::ended(&setup, kind).await;
        let (state, writes) = settled(&setup).await;
        println!("{}: {writes} writes\n{state:#}", kind.name());
        if kind != Kind::RetrieverIndex {
            setup.delete(kind, NAME).await;
        }
        setup.delete(Kind::RetrieverIndex, NAME).await;
        nothing_is_left(&setup).await;
        setup.done().await;
    }
}

/// A changed index is built beside the one that serves, and swapped in; one that is used goes only when it is free.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_swapped_and_protected() {
    let setup = Setup::new("swap").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-index", 2, Play::Run);
    setup.kubelet.play("a-train", Play::Run);
    scenario::begin(&setup, Kind::S3TrainingJob).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    let deployment = setup.api("apps/v1", "Deployment");
    let before = deployment.get("a-retriever").await.unwrap();

    setup.change(Kind::RetrieverIndex, NAME, json!({"spec": {"source": {"build": {"lexical": {"k1": 1.5}}}}})).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Built", "Rebuilding").await;
    assert_eq!(setup.reason(Kind::RetrieverIndex, NAME, "Serving").await.unwrap(), "Available");
    let during = deployment.get("a-retriever").await.unwrap();
    assert_eq!(before.metadata.generation, during.metadata.generation, "the old one serves on as it is");
    setup.kubelet.play_attempt("a-index", 2, Play::Done { digest: "second".into(), summary: json!({"passages": 7}) });
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "Ready").await;
    let index = setup.resources(Kind::RetrieverIndex).get(NAME).await.unwrap();
    assert_eq!((&index.data["status"]["digest"], &index.data["status"]["passages"]), (&json!("second"), &json!(7)));
    let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
    assert_eq!(job.data["status"]["attempts"], 1, "a job that has begun does not begin again: {}", job.data["status"]);

    setup.delete(Kind::RetrieverIndex, NAME).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "InUse").await;
    let mut late = scenario::job();
    late["metadata"]["name"] = json!("late");
    setup.apply(Kind::S3TrainingJob, &late).await;
    setup.until_reason(Kind::S3TrainingJob, "late", "Training", "WaitingForIndex").await;
    setup.delete(Kind::S3TrainingJob, "late").await;
    setup.kubelet.play("a-train", crate::kubelet::done("a-train"));
    setup.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
    setup
        .until("the index is gone", async || {
            setup.resources(Kind::RetrieverIndex).get_opt(NAME).await.unwrap().is_none()
        })
        .await;
    setup.done().await;
}

/// Several workers build an index on a volume that all of them mount; on one that mounts once it is said so.
#[tokio::test(flavor = "multi_thread")]
async fn an_index_is_built_by_several_workers() {
    let setup = Setup::new("workers").await;
    setup.start().await;
    setup.kubelet.play("a-index", Play::Run);
    scenario::data(&setup).await;
    let mut index = scenario::index();
    index["spec"]["source"]["build"]["workers"] = json!(3);
    index["spec"]["source"]["build"]["dense"] = json!({"encoder": {"model": {"uri": "pvc://data/e"}}});
    setup.apply(Kind::RetrieverIndex, &index).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "VolumeShape").await;
    setup.delete(Kind::RetrieverIndex, NAME).await;
    setup
        .until("it is gone", async || setup.resources(Kind::RetrieverIndex).get_opt(NAME).await.unwrap().is_none())
        .await;
    index["spec"]["storage"] = json!({"accessMode": "ReadWriteMany"});
    setup.apply(Kind::RetrieverIndex, &index).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Built", "Building").await;
    let jobs = ["a-index-a1-r0", "a-index-a1-r1", "a-index-a1-r2"];
    setup
        .until("all workers", async || {
            let made = made(&setup).await;
            jobs.iter().all(|job| made.get("Job").is_some_and(|names| names.contains(&(*job).to_owned())))
        })
        .await;
    setup.kubelet.play("a-index", crate::kubelet::done("a-index"));
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "Ready").await;
    // one worker fewer is the same work: nothing is built anew
    setup.change(Kind::RetrieverIndex, NAME, json!({"spec": {"source": {"build": {"workers": 2}}}})).await;
    settled(&setup).await;
    assert_eq!(setup.reason(Kind::RetrieverIndex, NAME, "Built").await.unwrap(), "Published");
    setup.done().await;
}

/// A web search is served at once, and jobs search with it as with any index.
#[tokio::test(flavor = "multi_thread")]
async fn a_web_search_takes_the_place_of_an_index() {
    let setup = Setup::new("web").await;
    setup.start().await;
    scenario::data(&setup).await;
    let mut index = scenario::index();
    index["spec"]["source"] = json!({"webSearch": {"endpoint": "https://search.example/search"}});
    setup.apply(Kind::RetrieverIndex, &index).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "Ready").await;
    assert_eq!(setup.reason(Kind::RetrieverIndex, NAME, "Built").await.unwrap(), "WebSearch");
    let left = made(&setup).await;
    assert!(left.get("Job").is_none_or(Vec::is_empty), "nothing is built: {left:?}");
    setup.apply(Kind::S3TrainingJob, &scenario::job()).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
    settled(&setup).await;
    setup.delete(Kind::S3TrainingJob, NAME).await;
    setup.delete(Kind::RetrieverIndex, NAME).await;
    nothing_is_left(&setup).await;
    setup.done().await;
}

/// Suspending stops and releases, going on starts another attempt, and the gateway is there only meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_job_holds_nothing_and_goes_on() {
    let setup = Setup::new("suspend").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Run);
    scenario::begin(&setup, Kind::S3TrainingJob).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": true}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Suspended", "Suspended").await;
    setup
        .until("its Jobs, pods and gateway are gone", async || {
            let left = made(&setup).await;
            let gateway = left.get("Deployment").is_some_and(|names| names.iter().any(|name| name == GATEWAY));
            let training = left.get("Job").is_some_and(|names| names.iter().any(|name| name.starts_with("a-train")));
            !gateway && !training
        })
        .await;
    settled(&setup).await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": false}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
    let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
    assert_eq!(job.data["status"]["attempts"], 2, "{}", job.data["status"]);
    setup.done().await;
}

/// A rule lets a failed training begin anew: from the first step, in a folder of its own, and it counts on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_failed_training_begins_anew_where_a_rule_says_so() {
    let setup = Setup::new("anew").await;
    setup.start().await;
    setup.kubelet.play_attempt("a-train", 1, Play::Fail { code: 65, reason: "Error", message: "loss is NaN" });
    setup.kubelet.play_attempt("a-train", 2, Play::Run);
    scenario::data(&setup).await;
    setup.apply(Kind::RetrieverIndex, &scenario::index()).await;
    let mut job = scenario::job();
    job["spec"]["failurePolicy"]["rules"] = json!([{"class": "NotANumber", "action": "Restart", "limit": 2}]);
    setup.apply(Kind::S3TrainingJob, &job).await;
    setup
        .until("the second attempt works", async || {
            let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            let training = crate::setup::reason_of(&job.data, "Training");
            job.data["status"]["attempts"] == 2 && training.as_deref() == Some("Stepping")
        })
        .await;
    let folder = async |attempt: u32| {
        let map = setup.api("v1", "ConfigMap").get(&format!("a-train-a{attempt}")).await.unwrap();
        let config: serde_json::Value = serde_yaml_ng::from_str(map.data["data"]["r0.yaml"].as_str().unwrap()).unwrap();
        config["checkpoint"]["dir"].as_str().unwrap().trim_end_matches("/checkpoints").to_owned()
    };
    let first = folder(1).await;
    assert_eq!(folder(2).await, format!("{first}-a2"), "what was before is kept aside");
    // A suspended one goes on where it began anew.
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": true}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Suspended", "Suspended").await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": false}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
    assert_eq!(folder(3).await, format!("{first}-a2"));
    let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
    let export = job.data["status"]["export"]["uri"].as_str().unwrap();
    assert!(export.contains("-a2/export"), "{export}");
    settled(&setup).await;
    setup.done().await;
}

/// A trained searcher is served while its spec asks for it, and holds its index and gateway meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_trained_searcher_is_served() {
    let setup = Setup::new("served").await;
    setup.start().await;
    scenario::begin(&setup, Kind::S3TrainingJob).await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"serving": {"replicas": 1}}})).await;
    setup
        .until("its address stands in the status", async || {
            let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            let expected = format!("http://a-searcher.{}.svc:8080", setup.namespace);
            job.data["status"]["endpoint"].as_str() == Some(&expected)
        })
        .await;
    let (state, _) = settled(&setup).await;
    let deployments = &state["made"]["Deployment"];
    assert_eq!(deployments, &json!(["a-retriever", "a-searcher", GATEWAY]), "{state:#}");
    setup.delete(Kind::RetrieverIndex, NAME).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "InUse").await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"serving": null}})).await;
    setup
        .until("searcher, gateway and index are gone", async || {
            let left = made(&setup).await;
            !left.contains_key("Deployment")
        })
        .await;
    setup.done().await;
}

/// A leader that is asked to end lets go of its lease, and the next one goes on at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_hands_over() {
    let setup = Setup::new("hand-over").await;
    setup.start().await;
    setup.kubelet.play("a-baseline", Play::Run);
    scenario::begin(&setup, Kind::S3TrainingJob).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "BaselineReady", "Computing").await;
    let leads = "s3_operator_leader 1";
    setup.start().await;
    setup
        .until("the second stands by", async || setup.metrics(1).await.is_some_and(|text| !text.contains(leads)))
        .await;
    setup.stop(0).await;
    setup.until("the second leads", async || setup.metrics(1).await.is_some_and(|text| text.contains(leads))).await;
    setup.kubelet.play("a-baseline", crate::kubelet::done("a-baseline"));
    scenario::ended(&setup, Kind::S3TrainingJob).await;
    setup.done().await;
}
