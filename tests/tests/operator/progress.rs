//! Workers report with tokens of their own, and with nobody else's.

use crate::kubelet::Play;
use crate::scenario::{self, NAME};
use crate::setup::Setup;
use kube::ResourceExt;
use kube::api::ListParams;
use s3_crds::Kind;
use s3_proto::tonic::transport::Endpoint;
use s3_proto::tonic::{Code, Request, Status};
use s3_proto::v1::progress_client::ProgressClient;
use s3_proto::v1::{ProgressReply, ProgressReport, Standing};
use serde_json::{Value, json};
use std::collections::HashMap;

/// A token as the kubelet would mount it: of this pod, for this audience.
pub async fn token(setup: &Setup, pod: &str, audience: &str) -> String {
    let uid = setup.api("v1", "Pod").get(pod).await.unwrap().uid().unwrap();
    let body = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": [audience], "expirationSeconds": 600,
            "boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}},
    });
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/default/token", setup.namespace);
    let request =
        axum::http::Request::post(path).header("content-type", "application/json").body(body.to_string().into_bytes());
    let answer: Value = setup.client.request(request.unwrap()).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

pub async fn pod_of(setup: &Setup, component: &str, attempt: u32) -> String {
    let labels = format!("searchagent.dev/component={component},searchagent.dev/attempt={attempt}");
    let pods = setup.api("v1", "Pod").list(&ListParams::default().labels(&labels)).await.unwrap();
    pods.items[0].name_any()
}

pub async fn report(setup: &Setup, token: &str, report: ProgressReport) -> Result<ProgressReply, Status> {
    // an operator that was just started does not listen yet
    let channel = Endpoint::from_shared(setup.progress(0).await).unwrap().connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut client = ProgressClient::new(channel);
    let mut request = Request::new(report);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.report(request).await.map(s3_proto::tonic::Response::into_inner)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_moves_the_status_and_only_of_its_own_job() {
    let setup = Setup::new("progress").await;
    setup.start().await;
    setup.kubelet.play("a-train", Play::Run);
    setup.kubelet.play("b-train", Play::Run);
    scenario::begin(&setup, Kind::S3TrainingJob).await;
    let mut other = scenario::job();
    other["metadata"]["name"] = json!("b");
    setup.apply(Kind::S3TrainingJob, &other).await;
    for name in [NAME, "b"] {
        setup.until_reason(Kind::S3TrainingJob, name, "Training", "Stepping").await;
    }
    let uid = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().uid().unwrap();
    let said = |epoch: u32| ProgressReport {
        uid: uid.clone(),
        component: "a-train".into(),
        epoch,
        phase: "step 2/3: update".into(),
        figures: HashMap::from([("step".to_owned(), 2.0), ("gain".to_owned(), 0.25)]),
        ready: true,
        ..ProgressReport::default()
    };
    let (mine, theirs) = (pod_of(&setup, "a-train", 1).await, pod_of(&setup, "b-train", 1).await);

    let own = token(&setup, &mine, &uid).await;
    assert_eq!(report(&setup, &own, said(1)).await.unwrap().standing(), Standing::Current);
    setup
        .until("step and gain stand in the status", async || {
            let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            job.data["status"]["step"] == 2 && job.data["status"]["gbr"] == 0.25
        })
        .await;
    let condition = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap().data["status"].to_string();
    assert!(condition.contains("step 2/3: update"), "{condition}");

    // another audience, another job's pod, another attempt, no token
    let code = |answer: Result<ProgressReply, Status>| answer.unwrap_err().code();
    let elsewhere = token(&setup, &mine, "somebody-else").await;
    assert_eq!(code(report(&setup, &elsewhere, said(1)).await), Code::Unauthenticated);
    let other = token(&setup, &theirs, &uid).await;
    assert_eq!(code(report(&setup, &other, said(1)).await), Code::PermissionDenied);
    assert_eq!(code(report(&setup, &own, said(2)).await), Code::PermissionDenied);
    assert_eq!(code(report(&setup, "nonsense", said(1)).await), Code::Unauthenticated);

    // its node is lost and the next attempt runs: what still reports from there is told so
    setup.kubelet.play_attempt("a-train", 1, Play::Lost);
    let lost = json!({"status": {"reason": "NodeLost"}});
    let params = kube::api::PatchParams::default();
    setup.api("v1", "Pod").patch_status(&mine, &params, &kube::api::Patch::Merge(&lost)).await.unwrap();
    setup
        .until("the second attempt is there", async || {
            setup.api("batch/v1", "Job").get_opt("a-train-a2-r0").await.unwrap().is_some()
        })
        .await;
    let reply = report(&setup, &own, said(1)).await;
    // A pod whose deletion was asked for speaks on until it is gone.
    match reply {
        Ok(reply) => assert_eq!((reply.standing(), reply.epoch), (Standing::Fenced, 2)),
        Err(status) => panic!("{status}\n{}", setup.tail()),
    }
    let metrics = setup.metrics(0).await.unwrap();
    for result in ["taken", "refused", "fenced"] {
        assert!(metrics.contains(&format!("s3_operator_progress_reports_total{{result=\"{result}\"}}")), "{metrics}");
    }
    setup.done().await;
}
