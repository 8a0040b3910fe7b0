//! People who change their minds: generated sequences of what users of a cluster do, on a real API server.
//!
//! Whatever they did, once they stop the operator stops, too: what it made belongs to somebody who is there, every
//! status speaks of the newest spec, nothing is written any more, and nothing was touched that is not the operator's.
//! `S3_USER_SEQUENCES` sets how many sequences (6; `make soak` runs 80), `S3_USER_SEED` the first seed.

use crate::kubelet::{Play, done};
use crate::scenario;
use crate::setup::{PATIENCE, Setup};
use crate::snapshot::{MADE, describe, made, settled};
use futures_util::{FutureExt as _, StreamExt as _, stream};
use kube::ResourceExt;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use s3_crds::Kind;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

/// Operations of one sequence.
const LENGTH: usize = 25;
/// Sequences at the same time.
const SIDE_BY_SIDE: usize = 6;
/// A second job beside `a`, so that a gateway and an index are shared.
const OTHER: &str = "b";
/// Whose key the second job's generator asks with.
const SECRET: &str = "key";
/// What the operator must leave alone: its names are like the operator's own.
const FOREIGN: &str = "a-retriever-notes";

/// What a user does.
#[derive(Clone, Debug)]
enum Op {
    /// Applies a resource as it was first written, whether it is there or not.
    Create(Kind, bool),
    /// Changes a spec in one of several ways.
    Edit(Kind, bool, usize),
    Suspend(Kind, bool, bool),
    Delete(Kind, bool),
    /// Deletes and applies it again, without waiting for anything.
    Recreate(Kind, bool),
    /// Deletes by hand one of the objects that the operator made.
    DeleteChild(usize),
    /// Changes by hand what the operator holds.
    EditChild(usize),
    /// Puts another value into the secret, or takes it away and back.
    Rotate(bool),
    /// Labels and annotations on a resource or a child.
    Noise(usize),
    /// Workers of a component go on until the end of the sequence.
    Hold(usize),
    /// One of the pods dies.
    KillPod(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let kind =
        || prop_oneof![2 => Just(Kind::RetrieverIndex), 4 => Just(Kind::S3TrainingJob), 2 => Just(Kind::EvalRun)];
    let user = || prop_oneof![Just(Kind::S3TrainingJob), Just(Kind::EvalRun)];
    prop_oneof![
        5 => (kind(), any::<bool>()).prop_map(|(kind, other)| Op::Create(kind, other)),
        4 => (kind(), any::<bool>(), 0..4_usize).prop_map(|(kind, other, way)| Op::Edit(kind, other, way)),
        4 => (user(), any::<bool>(), any::<bool>()).prop_map(|(kind, other, yes)| Op::Suspend(kind, other, yes)),
        2 => (kind(), any::<bool>()).prop_map(|(kind, other)| Op::Delete(kind, other)),
        2 => (kind(), any::<bool>()).prop_map(|(kind, other)| Op::Recreate(kind, other)),
        3 => (0..1000_usize).prop_map(Op::DeleteChild),
        3 => (0..1000_usize).prop_map(Op::EditChild),
        1 => any::<bool>().prop_map(Op::Rotate),
        2 => (0..1000_usize).prop_map(Op::Noise),
        2 => (0..4_usize).prop_map(Op::Hold),
        1 => (0..1000_usize).prop_map(Op::KillPod),
    ]
}

/// A sequence: operations, and the pause before each in milliseconds.
fn sequence(seed: u64) -> Vec<(u64, Op)> {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let strategy = proptest::collection::vec((0..700_u64, op()), LENGTH);
    strategy.new_tree(&mut runner).unwrap().current()
}

/// There is one index; of the others there are two.
fn name(kind: Kind, other: bool) -> &'static str {
    if other && kind != Kind::RetrieverIndex { OTHER } else { scenario::NAME }
}

fn resource(kind: Kind, other: bool) -> Value {
    let mut object = match kind {
        Kind::RetrieverIndex => scenario::index(),
        Kind::S3TrainingJob => scenario::job(),
        Kind::EvalRun => scenario::run(),
    };
    object["metadata"]["name"] = json!(name(kind, other));
    if other && kind != Kind::RetrieverIndex {
        object["spec"]["generator"] = json!({"provider": {"openAiCompatible": {"endpoint": "http://10.1.1.1:80/v1",
            "model": "m", "apiKeySecretRef": {"name": SECRET, "key": "key"}}}});
    }
    object
}

fn edit(kind: Kind, way: usize) -> Value {
    let spec = match (kind, way) {
        (Kind::RetrieverIndex, 0) => json!({"source": {"build": {"lexical": {"k1": 1.5}}}}),
        (Kind::RetrieverIndex, 1) => json!({"source": {"build": {"lexical": {"k1": 1.2}}}}),
        (Kind::RetrieverIndex, 2) => json!({"serving": {"replicas": 2}}),
        (Kind::RetrieverIndex, _) | (Kind::S3TrainingJob, 2) => json!({"serving": {"replicas": 1}}),
        (Kind::S3TrainingJob, 0) => json!({"steps": 5}),
        (_, 1) => json!({"resources": {"requests": {"cpu": "2"}}}),
        (Kind::S3TrainingJob, _) => json!({"serving": null}),
        (Kind::EvalRun, 0) => json!({"chunk": 8}),
        (Kind::EvalRun, 2) => json!({"activeDeadlineSeconds": 3600}),
        (Kind::EvalRun, _) => json!({"activeDeadlineSeconds": null}),
    };
    json!({ "spec": spec })
}

/// What the operator made and nobody is deleting, in an order that names give.
async fn children(setup: &Setup, kinds: &[&str]) -> Vec<(&'static str, &'static str, DynamicObject)> {
    let mut all = Vec::new();
    for (version, kind) in MADE.into_iter().filter(|(_, kind)| kinds.contains(kind)) {
        for object in setup.api(version, kind).list(&ListParams::default()).await.unwrap() {
            let ours = object.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "s3-operator");
            if ours && object.metadata.deletion_timestamp.is_none() {
                all.push((version, kind, object));
            }
        }
    }
    all
}

/// What is gone, or what the server refuses by its rules, a user tries in vain.
fn in_vain<T>(result: Result<T, kube::Error>) {
    match result {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409 | 422) => {}
        Err(error) => panic!("{error}"),
    }
}

async fn secret(setup: &Setup, value: &str) {
    let object =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"key": value}});
    let params = PatchParams::apply("user").force();
    setup.api("v1", "Secret").patch(SECRET, &params, &Patch::Apply(&object)).await.unwrap();
}

async fn apply(setup: &Setup, kind: Kind, other: bool) {
    let params = PatchParams::apply("user").force();
    let object = resource(kind, other);
    in_vain(setup.resources(kind).patch(name(kind, other), &params, &Patch::Apply(&object)).await);
}

async fn merge(setup: &Setup, kind: Kind, other: bool, patch: &Value) {
    in_vain(setup.resources(kind).patch(name(kind, other), &PatchParams::default(), &Patch::Merge(patch)).await);
}

async fn take_away(setup: &Setup, kind: Kind, other: bool) {
    in_vain(setup.resources(kind).delete(name(kind, other), &DeleteParams::background()).await);
}

const HELD: [&str; 4] = ["a-train", "a-baseline", "b-train", "a-eval"];

async fn carry_out(setup: &Setup, op: &Op) {
    match op {
        Op::Create(kind, other) => apply(setup, *kind, *other).await,
        Op::Edit(kind, other, way) => merge(setup, *kind, *other, &edit(*kind, *way)).await,
        Op::Suspend(kind, other, yes) => merge(setup, *kind, *other, &json!({"spec": {"suspend": yes}})).await,
        Op::Delete(kind, other) => take_away(setup, *kind, *other).await,
        Op::Recreate(kind, other) => {
            take_away(setup, *kind, *other).await;
            apply(setup, *kind, *other).await;
        }
        Op::DeleteChild(which) => {
            let all = children(setup, &["Job", "Deployment", "Service", "ConfigMap", "NetworkPolicy"]).await;
            let Some((version, kind, object)) = all.get(which % all.len().max(1)) else { return };
            let params = DeleteParams::background();
            in_vain(setup.api(version, kind).delete(&object.name_any(), &params).await);
        }
        Op::EditChild(which) => {
            let all = children(setup, &["Deployment", "Service", "NetworkPolicy"]).await;
            let Some((version, kind, object)) = all.get(which % all.len().max(1)) else { return };
            let change = match *kind {
                // A searcher whose job goes before its server is taken up again is left, as anything orphaned is.
                "Deployment" if object.name_any().ends_with("-searcher") => json!({"spec": {"replicas": 3}}),
                "Deployment" => json!({"spec": {"replicas": 3}, "metadata": {"ownerReferences": []}}),
                "Service" => json!({"spec": {"selector": {"searchagent.dev/component": "nobody"}}}),
                _ => json!({"spec": {"egress": []}}),
            };
            let patch = Patch::Merge(&change);
            in_vain(setup.api(version, kind).patch(&object.name_any(), &PatchParams::default(), &patch).await);
        }
        Op::Rotate(away) => {
            if *away {
                in_vain(setup.api("v1", "Secret").delete(SECRET, &DeleteParams::default()).await);
            }
            let moment = k8s_openapi::jiff::Timestamp::now();
            secret(setup, &format!("value-{moment}")).await;
        }
        Op::Noise(which) => {
            let noise = json!({"metadata": {"labels": {"team": format!("t{which}")}, "annotations": {"note": "n"}}});
            let all = children(setup, &MADE.map(|(_, kind)| kind)).await;
            match all.get(which % (all.len() + 4)) {
                Some((version, kind, object)) => {
                    let patch = Patch::Merge(&noise);
                    in_vain(setup.api(version, kind).patch(&object.name_any(), &PatchParams::default(), &patch).await);
                }
                None => merge(setup, Kind::ALL[which % 3], which % 2 == 0, &noise).await,
            }
        }
        Op::Hold(which) => setup.kubelet.play(HELD[*which], Play::Run),
        Op::KillPod(which) => {
            let pods = setup.api("v1", "Pod");
            let all = pods.list(&ListParams::default()).await.unwrap().items;
            let Some(pod) = all.get(which % all.len().max(1)) else { return };
            in_vain(pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await);
        }
    }
}

/// What stands in the cluster and should not, one line each.
async fn wrong(setup: &Setup) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut there = BTreeSet::new();
    for kind in Kind::ALL {
        for object in setup.resources(kind).list(&ListParams::default()).await.unwrap() {
            let title = format!("{}/{}", kind.name(), object.name_any());
            there.insert(object.uid().unwrap());
            let generation = json!(object.metadata.generation);
            let status = object.data.get("status").cloned().unwrap_or_default();
            if status["observedGeneration"] != generation {
                wrong.push(format!("{title}: status of generation {} of {generation}", status["observedGeneration"]));
            }
            let conditions = || status["conditions"].as_array().into_iter().flatten();
            // Without what it refers to, nothing can be told of its progress: what was told stays, of the older spec.
            if conditions().any(|condition| condition["message"].as_str().unwrap().ends_with("does not exist")) {
                continue;
            }
            for condition in conditions() {
                if condition["observedGeneration"] != generation {
                    wrong.push(format!("{title}: {} speaks of {}", condition["type"], condition["observedGeneration"]));
                }
            }
        }
    }
    let mut jobs = BTreeSet::new();
    for (version, kind) in MADE {
        for object in setup.api(version, kind).list(&ListParams::default()).await.unwrap() {
            if object.labels().get("app.kubernetes.io/managed-by").is_none_or(|by| by != "s3-operator") {
                continue;
            }
            if kind == "Job" {
                jobs.insert(object.name_any());
            }
            if object.owner_references().iter().all(|owner| !there.contains(&owner.uid)) {
                wrong.push(format!("{kind}/{} belongs to nobody who is there", object.name_any()));
            }
        }
    }
    for pod in setup.api("v1", "Pod").list(&ListParams::default()).await.unwrap() {
        if pod.labels().get("job-name").is_some_and(|job| !jobs.contains(job)) {
            wrong.push(format!("Pod/{} of no Job", pod.name_any()));
        }
    }
    wrong
}

async fn foreign(setup: &Setup) -> Vec<(String, Option<String>)> {
    let mut all = Vec::new();
    for (version, kind) in [("v1", "ConfigMap"), ("v1", "Service"), ("v1", "PersistentVolumeClaim")] {
        for object in setup.api(version, kind).list(&ListParams::default()).await.unwrap() {
            let ours = object.labels().get("app.kubernetes.io/managed-by").is_some_and(|by| by == "s3-operator");
            // The cluster puts its certificate into each namespace when it comes to it.
            if !ours && !["data", "kube-root-ca.crt"].contains(&object.name_any().as_str()) {
                all.push((format!("{kind}/{}", object.name_any()), object.resource_version()));
            }
        }
    }
    all
}

async fn live(seed: u64) {
    let mut setup = Setup::new("users").await;
    println!("seed {seed} lives in {}", setup.namespace);
    // Nobody else leads here; a busy machine is no reason to begin anew.
    setup.lease_seconds = 15;
    setup.start().await;
    scenario::data(&setup).await;
    secret(&setup, "first").await;
    for (kind, spec) in [("ConfigMap", json!({})), ("Service", json!({"ports": [{"port": 80}]}))] {
        let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": FOREIGN, "labels":
            {"searchagent.dev/component": "a-retriever", "app.kubernetes.io/managed-by": "somebody"}}});
        if kind == "Service" {
            object["spec"] = spec;
        }
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        setup.api("v1", kind).create(&PostParams::default(), &object).await.unwrap();
    }
    let untouched = foreign(&setup).await;
    let ops = sequence(seed);
    for kind in [Kind::RetrieverIndex, Kind::S3TrainingJob] {
        apply(&setup, kind, false).await;
    }
    for (pause, op) in &ops {
        tokio::time::sleep(Duration::from_millis(*pause)).await;
        carry_out(&setup, op).await;
        setup.revive().await;
    }
    for component in HELD {
        setup.kubelet.play(component, done(component));
    }
    // What waits comes to its end, and what is to be collected is.
    let end = Instant::now() + PATIENCE;
    loop {
        setup.revive().await;
        settled(&setup).await;
        let wrong = wrong(&setup).await;
        if wrong.is_empty() {
            break;
        }
        if Instant::now() >= end {
            let state = describe(&setup).await;
            panic!("seed {seed}:\n{}\nafter {ops:#?}\n{state}\n{}", wrong.join("\n"), setup.tail());
        }
    }
    assert_eq!(foreign(&setup).await, untouched, "seed {seed}: what is not the operator's was touched");
    for kind in [Kind::EvalRun, Kind::S3TrainingJob, Kind::RetrieverIndex] {
        for other in [false, true] {
            take_away(&setup, kind, other).await;
        }
    }
    setup
        .until(&format!("seed {seed}: nothing is left after {ops:?}"), async || {
            let left = made(&setup).await;
            left.len() == 1 && left["running pods"] == ["0"]
        })
        .await;
    setup.done().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_users_do_the_operator_comes_to_rest() {
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let (count, first) = (number("S3_USER_SEQUENCES", 6), number("S3_USER_SEED", 1));
    let start = Instant::now();
    // The others go on when one does not come to rest.
    let lived = stream::iter(first..first + count)
        .map(|seed| AssertUnwindSafe(live(seed)).catch_unwind().map(move |lived| lived.is_err().then_some(seed)))
        .buffer_unordered(SIDE_BY_SIDE);
    let failed: Vec<u64> = lived.filter_map(async |failed| failed).collect().await;
    assert!(failed.is_empty(), "seeds {failed:?} of {first}..{}", first + count);
    let operations = count * LENGTH as u64;
    println!("{operations} operations from seed {first} in {:.0} s", start.elapsed().as_secs_f64());
}
