//! The chart's roles with queues of Kueue enabled, against what the operator asks of a real API server under them:
//! nothing is refused, and nothing is granted that has no use.
//!
//! Where the server guards owners that block deletion, as this one does, the right to update finalizers is looked up
//! at each creation and never asked for by a request; the same holds for creating what is applied.

use crate::kubelet::{Play, done};
use crate::kueue::{self, Queue};
use crate::progress::report;
use crate::proxy::Fault;
use crate::scenario::{self, NAME};
use crate::setup::{Setup, resource};
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::discovery::ApiResource;
use s3_crds::Kind;
use s3_proto::v1::ProgressReport;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// (verb, resource with its subresource)
type Right = (String, String);

/// The rules of the chart's roles: those of the cluster, and those of the leader in its namespace.
fn rules() -> [Vec<Value>; 2] {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/s3-operator");
    let enabled = "kueue.enabled=true,autoscaling.enabled=true";
    let arguments = ["template", "s3-operator", chart, "--set", enabled, "--show-only", "templates/rbac.yaml"];
    let rendered = std::process::Command::new("helm").args(arguments).output().expect("helm is in the kit's folder");
    assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
    let text = String::from_utf8(rendered.stdout).unwrap();
    let documents: Vec<Value> =
        text.split("\n---\n").map(|document| serde_yaml_ng::from_str(document).unwrap()).collect();
    ["s3-operator", "s3-operator-leader"].map(|name| {
        let role = documents.iter().find(|role| role["metadata"]["name"] == name && role["rules"].is_array()).unwrap();
        role["rules"].as_array().unwrap().clone()
    })
}

fn rights(rules: &[Vec<Value>]) -> BTreeSet<Right> {
    let words = |value: &Value| -> Vec<String> {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let of = |rule: &Value| -> Vec<Right> {
        let resources = words(&rule["resources"]);
        let verbs = words(&rule["verbs"]);
        resources.iter().flat_map(|of| verbs.iter().map(move |verb| (verb.clone(), of.clone()))).collect()
    };
    rules.iter().flatten().flat_map(of).collect()
}

/// Gives a user what the chart gives the operator.
async fn grant(setup: &Setup, user: &str, rules: &[Vec<Value>; 2]) {
    let group = "rbac.authorization.k8s.io";
    let subject = json!([{"kind": "User", "name": user, "apiGroup": group}]);
    let version = format!("{group}/v1");
    for (kind, rules, namespace) in [("ClusterRole", &rules[0], None), ("Role", &rules[1], Some(&setup.namespace))] {
        let binding = format!("{kind}Binding");
        let role = json!({"metadata": {"name": user}, "rules": rules});
        let bound = json!({"metadata": {"name": user}, "subjects": subject,
            "roleRef": {"kind": kind, "name": user, "apiGroup": group}});
        for (kind, mut object) in [(kind, role), (binding.as_str(), bound)] {
            (object["apiVersion"], object["kind"]) = (json!(version), json!(kind));
            let resource = resource(&version, kind);
            let api: Api<DynamicObject> = match namespace {
                Some(namespace) => Api::namespaced_with(setup.client.clone(), namespace, &resource),
                None => Api::all_with(setup.client.clone(), &resource),
            };
            let params = PatchParams::apply("setup").force();
            // The lease of a test has the name that it has everywhere.
            api.patch(user, &params, &Patch::Apply(&object)).await.unwrap();
        }
    }
}

async fn begin(name: &str, rules: &[Vec<Value>; 2], policies: bool) -> Setup {
    let mut setup = Setup::new(name).await;
    setup.settings = json!({"network": {"enabled": policies}});
    let user = format!("operator-of-{}", setup.namespace);
    grant(&setup, &user, rules).await;
    setup.proxy.impersonate(&user);
    setup.start().await;
    setup
}

/// What was asked for so far.
#[derive(Default)]
struct Used {
    rights: BTreeSet<Right>,
    refused: Vec<String>,
}

impl Used {
    async fn end(&mut self, setup: Setup) {
        self.rights.extend(setup.proxy.verbs().into_keys());
        self.refused.extend(setup.proxy.refused());
        setup.done().await;
    }
}

fn foreign(kind: &str, name: &str) -> DynamicObject {
    let version = if kind == "Job" { "batch/v1" } else { "v1" };
    let spec = match kind {
        "Job" => {
            json!({"suspend": true, "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "a", "image": "a"}]}}})
        }
        "PersistentVolumeClaim" => {
            json!({"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}})
        }
        _ => Value::Null,
    };
    let object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    serde_json::from_value(object).unwrap()
}

/// A whole life in a queue, with a secret, a class, two users of one gateway, a preemption, an event that repeats, and
/// an end by time.
async fn a_life(used: &mut Used, rules: &[Vec<Value>; 2]) {
    let setup = begin("rights", rules, true).await;
    let _queue = Queue::start(&setup);
    let key: DynamicObject = serde_json::from_value(
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"key": "a"}}),
    )
    .unwrap();
    setup.api("v1", "Secret").create(&PostParams::default(), &key).await.unwrap();
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "rights"}, "value": 1});
    let classes = resource("scheduling.k8s.io/v1", "PriorityClass");
    let classes: Api<DynamicObject> =
        Api::all_with(setup.client.clone(), &ApiResource { plural: "priorityclasses".into(), ..classes });
    classes.patch("rights", &PatchParams::apply("setup").force(), &Patch::Apply(&class)).await.unwrap();
    let generator = json!({"provider": {"openAiCompatible": {"endpoint": "http://10.1.1.1:80/v1", "model": "m",
        "apiKeySecretRef": {"name": "key", "key": "key"}}}});
    setup.kubelet.play("a-train", Play::Run);
    setup.kubelet.play("a-eval", Play::Run);
    let ask = |object: &mut Value| {
        object["spec"]["generator"] = generator.clone();
        object["spec"]["ttlSecondsAfterFinished"] = json!(1);
    };
    scenario::begin_with(&setup, Kind::S3TrainingJob, |job| {
        ask(job);
        job["spec"]["queue"] = json!({"name": "gpus"});
        job["spec"]["pod"] = json!({"priorityClassName": "rights"});
    })
    .await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    let refused =
        report(&setup, "nobody's", ProgressReport { uid: "nobody".into(), ..ProgressReport::default() }).await;
    assert!(refused.is_err(), "the token is nobody's");
    let mut run = scenario::run();
    ask(&mut run);
    setup.apply(Kind::EvalRun, &run).await;
    setup.until_reason(Kind::EvalRun, NAME, "Evaluating", "Answering").await;
    kueue::preempt(&setup, "a-job-queue").await;
    setup
        .until("it runs again", async || {
            let job = setup.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            let training = crate::setup::reason_of(&job.data, "Training");
            job.data["status"]["attempts"] == 2 && training.as_deref() == Some("Stepping")
        })
        .await;
    for component in ["a-train", "a-eval"] {
        setup.kubelet.play(component, done(component));
    }
    for kind in [Kind::S3TrainingJob, Kind::EvalRun] {
        setup.until("its time is over", async || setup.resources(kind).get_opt(NAME).await.unwrap().is_none()).await;
    }
    setup.change(Kind::RetrieverIndex, NAME, json!({"spec": {"source": {"build": {"lexical": {"k1": 1.5}}}}})).await;
    setup
        .until("it is built anew", async || {
            let index = setup.resources(Kind::RetrieverIndex).get(NAME).await.unwrap();
            index.data["status"]["observedGeneration"] == json!(index.metadata.generation)
        })
        .await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "Ready").await;
    setup.delete(Kind::RetrieverIndex, NAME).await;
    setup
        .until("the index is gone", async || {
            setup.resources(Kind::RetrieverIndex).get_opt(NAME).await.unwrap().is_none()
        })
        .await;
    used.end(setup).await;
}

/// Evaluations on a schedule, suspended with their job and made again when it begins anew; servers that follow the load,
/// and no longer.
async fn a_schedule(used: &mut Used, rules: &[Vec<Value>; 2]) {
    let setup = begin("schedule", rules, false).await;
    setup.kubelet.play("a-train", Play::Trained { milestones: scenario::milestones(&[1]) });
    setup.kubelet.play("a-full-step-1-eval", Play::Run);
    setup.apply(Kind::EvalRun, &scenario::template()).await;
    scenario::begin_with(&setup, Kind::S3TrainingJob, |job| {
        job["spec"]["evaluation"] = scenario::every(1);
        job["spec"]["steps"] = json!(1);
    })
    .await;
    setup.until_reason(Kind::EvalRun, "a-full-step-1", "Evaluating", "Answering").await;
    // a job that is over suspends nothing; one that gets more steps is not over
    setup.kubelet.play_attempt("a-train", 2, Play::Run);
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"steps": 2}})).await;
    setup.until_reason(Kind::S3TrainingJob, NAME, "Training", "Stepping").await;
    setup.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": true}})).await;
    setup.until_reason(Kind::EvalRun, "a-full-step-1", "Suspended", "Suspended").await;
    let scaling = json!({"minReplicas": 1, "maxReplicas": 1});
    setup.change(Kind::RetrieverIndex, NAME, json!({"spec": {"serving": {"autoscaling": scaling}}})).await;
    let scalers = setup.api("autoscaling/v2beta2", "HorizontalPodAutoscaler");
    setup.until("an autoscaler", async || scalers.get_opt("a-retriever").await.unwrap().is_some()).await;
    setup.change(Kind::RetrieverIndex, NAME, json!({"spec": {"serving": {"autoscaling": null}}})).await;
    setup.until("none", async || scalers.get_opt("a-retriever").await.unwrap().is_none()).await;
    used.end(setup).await;
}

/// Names that are taken, of each kind that is made once.
async fn taken(used: &mut Used, rules: &[Vec<Value>; 2], kind: &str, name: &str) {
    let setup = begin("taken", rules, false).await;
    let version = if kind == "Job" { "batch/v1" } else { "v1" };
    setup.api(version, kind).create(&PostParams::default(), &foreign(kind, name)).await.unwrap();
    scenario::begin(&setup, Kind::RetrieverIndex).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, "Ready", "NameTaken").await;
    used.end(setup).await;
}

/// What was written and went before anybody saw it is asked for.
async fn unseen(used: &mut Used, rules: &[Vec<Value>; 2]) {
    let at = [
        (Kind::RetrieverIndex, "retrieverindices"),
        (Kind::RetrieverIndex, "persistentvolumeclaims"),
        (Kind::S3TrainingJob, "s3trainingjobs/status"),
        (Kind::EvalRun, "evalruns/status"),
    ];
    for (kind, write) in at {
        let setup = begin("unseen", rules, false).await;
        setup.fault(Fault::BlindAfter(write));
        let object = match kind {
            Kind::RetrieverIndex => scenario::index(),
            Kind::S3TrainingJob => scenario::job(),
            Kind::EvalRun => scenario::run(),
        };
        setup.apply(kind, &object).await;
        setup.proxy.crashed().await;
        if kind == Kind::RetrieverIndex {
            setup.change(kind, NAME, json!({"metadata": {"finalizers": null}})).await;
        }
        setup.delete(kind, NAME).await;
        setup
            .until("it is gone", async || {
                let claim = setup.api("v1", "PersistentVolumeClaim").get_opt("a-index-data").await.unwrap();
                claim.is_none() && setup.resources(kind).get_opt(NAME).await.unwrap().is_none()
            })
            .await;
        setup.fault(Fault::None);
        let asked = ("get".to_owned(), write.trim_end_matches("/status").to_owned());
        // A list that comes in between says it first, and nobody need ask.
        let asks = setup.until("it is asked for", async || setup.proxy.verbs().contains_key(&asked));
        let _ = tokio::time::timeout(Duration::from_secs(10), asks).await;
        used.end(setup).await;
    }
}

/// What the server looks up by itself, without a request of its own; and what is asked for only when a write went unseen,
/// which a list may say first.
fn implied((verb, resource): &Right) -> bool {
    let unseen = ["retrieverindices", "persistentvolumeclaims", "s3trainingjobs", "evalruns"];
    let applied = ["deployments", "horizontalpodautoscalers", "networkpolicies", "services", "workloads"];
    (verb == "create" && applied.contains(&resource.as_str()))
        || (verb == "update" && resource.ends_with("/finalizers"))
        || (verb == "get" && unseen.contains(&resource.as_str()))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_chart_grants_is_what_is_used() {
    let rules = rules();
    let granted = rights(&rules);
    let mut used = Used::default();
    unseen(&mut used, &rules).await;
    a_life(&mut used, &rules).await;
    a_schedule(&mut used, &rules).await;
    taken(&mut used, &rules, "ConfigMap", "a-index-a1").await;
    taken(&mut used, &rules, "Job", "a-index-a1-r0").await;
    assert!(used.refused.is_empty(), "the roles lack: {:#?}", used.refused);
    let unused: Vec<&Right> = granted.difference(&used.rights).filter(|right| !implied(right)).collect();
    let beyond: Vec<&Right> = used.rights.difference(&granted).collect();
    println!("{} rights, {} used", granted.len(), granted.intersection(&used.rights).count());
    assert!(unused.is_empty() && beyond.is_empty(), "granted and never used: {unused:?}; not granted: {beyond:?}");
}
