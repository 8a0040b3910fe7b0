//! Failures and what becomes of them: every reason of the catalogue is reached.

use crate::kubelet::Play;
use crate::scenario::{self, NAME};
use crate::setup::Setup;
use crate::snapshot::settled;
use futures_util::StreamExt as _;
use futures_util::future::{FutureExt as _, LocalBoxFuture};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim};
use kube::Api;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt as _, watcher};
use s3_crds::Kind;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Kind, condition and reason.
type Seen = BTreeSet<(String, String, String)>;

/// Collects every reason that a namespace's resources ever show.
fn collect(setup: &Setup, seen: &Arc<Mutex<Seen>>) -> Vec<tokio::task::JoinHandle<()>> {
    Kind::ALL
        .into_iter()
        .map(|kind| {
            let (api, seen) = (setup.resources(kind), seen.clone());
            tokio::spawn(async move {
                let mut events = watcher(api, watcher::Config::default()).default_backoff().touched_objects().boxed();
                while let Some(event) = events.next().await {
                    let Ok(object) = event else { continue };
                    let conditions = object.data.pointer("/status/conditions").and_then(Value::as_array).cloned();
                    for condition in conditions.into_iter().flatten() {
                        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
                        seen.lock().unwrap().insert((kind.name().to_owned(), text("type"), text("reason")));
                    }
                }
            })
        })
        .collect()
}

fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
    for (path, value) in changes {
        let mut at = &mut object["spec"];
        for part in path.split('.') {
            at = &mut at[part];
        }
        *at = value.clone();
    }
    object
}

fn fail(code: i32, reason: &'static str) -> Play {
    Play::Fail { code, reason, message: "as the test says" }
}

type Story = fn(&Setup) -> LocalBoxFuture<'_, ()>;

/// An index that ends otherwise than well.
async fn index(setup: &Setup, changes: &[(&str, Value)], condition: &str, reason: &str) {
    scenario::data(setup).await;
    setup.apply(Kind::RetrieverIndex, &with(scenario::index(), changes)).await;
    setup.until_reason(Kind::RetrieverIndex, NAME, condition, reason).await;
}

/// A job or evaluation over a good index.
async fn user(setup: &Setup, kind: Kind, changes: &[(&str, Value)], condition: &str, reason: &str) {
    scenario::data(setup).await;
    setup.apply(Kind::RetrieverIndex, &scenario::index()).await;
    let object = if kind == Kind::S3TrainingJob { scenario::job() } else { scenario::run() };
    setup.apply(kind, &with(object, changes)).await;
    setup.until_reason(kind, NAME, condition, reason).await;
}

async fn foreign(setup: &Setup, name: &str) {
    let object: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
    Api::namespaced(setup.client.clone(), &setup.namespace).create(&PostParams::default(), &object).await.unwrap();
}

const INDEX_STORIES: &[(&str, Story)] = &[
    ("fails", |s| {
        async move {
            s.kubelet.play("a-index", fail(64, "Error"));
            index(s, &[], "Built", "BuildFailed").await;
        }
        .boxed_local()
    }),
    ("web-search", |s| {
        let web = ("source", json!({"webSearch": {"endpoint": "https://search.example/search"}}));
        async move { index(s, &[web], "Built", "WebSearch").await }.boxed_local()
    }),
    ("down", |s| {
        async move {
            index(s, &[], "Ready", "Ready").await;
            s.kubelet.play("a-retriever", Play::Down);
            s.until_reason(Kind::RetrieverIndex, NAME, "Serving", "Unavailable").await;
        }
        .boxed_local()
    }),
    ("none", |s| {
        let none = ("serving.replicas", json!(0));
        async move { index(s, &[none], "Serving", "ScaledToZero").await }.boxed_local()
    }),
    ("without-autoscaler", |s| {
        let scaling = ("serving.autoscaling", json!({"minReplicas": 2}));
        async move { index(s, &[scaling], "Autoscaled", "AutoscalingUnavailable").await }.boxed_local()
    }),
    ("scaled", |s| {
        let scaling = ("serving.autoscaling", json!({"minReplicas": 2, "maxReplicas": 3, "targetQueueDepth": 8}));
        let shared = ("storage.accessMode", json!("ReadWriteMany"));
        async move {
            index(s, &[scaling, shared], "Autoscaled", "Following").await;
            // the cluster's own controller raises it to the fewest, and nobody takes that back
            let replicas = async || {
                let deployment = s.api("apps/v1", "Deployment").get_opt("a-retriever").await.unwrap();
                deployment.and_then(|deployment| deployment.data["spec"]["replicas"].as_u64())
            };
            s.until("two servers", async || replicas().await == Some(2)).await;
            s.until_reason(Kind::RetrieverIndex, NAME, "Ready", "Ready").await;
            settled(s).await;
            assert_eq!(replicas().await, Some(2));
            let scalers = s.api("autoscaling/v2beta2", "HorizontalPodAutoscaler");
            let scaler = scalers.get("a-retriever").await.unwrap();
            assert_eq!(scaler.data["spec"]["metrics"][0]["pods"]["target"]["averageValue"], "8");
            // taken back, it goes, and `replicas` counts again
            s.change(Kind::RetrieverIndex, NAME, json!({"spec": {"serving": {"autoscaling": null}}})).await;
            s.until("one server and no autoscaler", async || {
                replicas().await == Some(1) && scalers.get_opt("a-retriever").await.unwrap().is_none()
            })
            .await;
            settled(s).await;
        }
        .boxed_local()
    }),
    ("invalid", |s| {
        let corpus = ("source.build.corpus.uri", json!("file:///nowhere.jsonl"));
        async move { index(s, &[corpus], "Ready", "InvalidSpec").await }.boxed_local()
    }),
    ("unsupported", |s| {
        let analyzer = ("source.build.lexical.analyzer", json!("Standard"));
        async move { index(s, &[analyzer], "Ready", "UnsupportedField").await }.boxed_local()
    }),
    ("taken", |s| {
        async move {
            foreign(s, "a-index-a1").await;
            index(s, &[], "Ready", "NameTaken").await;
        }
        .boxed_local()
    }),
    ("shape", |s| {
        let mode = ("storage.accessMode", json!("ReadOnlyMany"));
        async move { index(s, &[mode], "Ready", "VolumeShape").await }.boxed_local()
    }),
    ("in-use", |s| {
        async move {
            s.kubelet.play("a-baseline", Play::Run);
            user(s, Kind::S3TrainingJob, &[], "BaselineReady", "Computing").await;
            s.change(Kind::RetrieverIndex, NAME, json!({"spec": {"source": {"build": {"lexical": {"k1": 1.5}}}}}))
                .await;
            s.delete(Kind::RetrieverIndex, NAME).await;
            s.until_reason(Kind::RetrieverIndex, NAME, "Ready", "InUse").await;
        }
        .boxed_local()
    }),
    ("rebuild", |s| {
        async move {
            index(s, &[], "Ready", "Ready").await;
            s.kubelet.play_attempt("a-index", 2, Play::Run);
            s.change(Kind::RetrieverIndex, NAME, json!({"spec": {"source": {"build": {"lexical": {"k1": 1.5}}}}}))
                .await;
            s.until_reason(Kind::RetrieverIndex, NAME, "Built", "Rebuilding").await;
        }
        .boxed_local()
    }),
];

const JOB_STORIES: &[(&str, Story)] = &[
    ("queued", |s| {
        let queue = ("queue", json!({"name": "gpus"}));
        async move { user(s, Kind::S3TrainingJob, &[queue], "Training", "Queued").await }.boxed_local()
    }),
    ("without-kueue", |s| {
        let queue = ("queue", json!({"name": "gpus"}));
        async move { user(s, Kind::S3TrainingJob, &[queue], "Training", "QueueUnavailable").await }.boxed_local()
    }),
    ("memory", |s| {
        s.kubelet.play("a-train", fail(137, "OOMKilled"));
        user(s, Kind::S3TrainingJob, &[], "Succeeded", "OutOfMemory").boxed_local()
    }),
    ("nan", |s| {
        s.kubelet.play("a-train", fail(65, "Error"));
        user(s, Kind::S3TrainingJob, &[], "Succeeded", "NotANumber").boxed_local()
    }),
    ("input", |s| {
        s.kubelet.play("a-baseline", fail(64, "Error"));
        user(s, Kind::S3TrainingJob, &[], "Succeeded", "InvalidInput").boxed_local()
    }),
    ("outage", |s| {
        s.kubelet.play("a-train", fail(69, "Error"));
        user(s, Kind::S3TrainingJob, &[], "Succeeded", "AttemptsExhausted").boxed_local()
    }),
    ("resumes", |s| {
        s.kubelet.play_attempt("a-train", 1, fail(75, "Error"));
        user(s, Kind::S3TrainingJob, &[], "Succeeded", "StepsDone").boxed_local()
    }),
    ("deadline", |s| {
        s.kubelet.play("a-train", Play::Run);
        let limit = ("activeDeadlineSeconds", json!(2));
        async move { user(s, Kind::S3TrainingJob, &[limit], "Succeeded", "DeadlineExceeded").await }.boxed_local()
    }),
    ("budget", |s| {
        s.kubelet.play("a-train", Play::Run);
        let changes = [("gpuSecondBudget", json!(2)), ("parallelism.gpusPerReplica", json!(2))];
        async move { user(s, Kind::S3TrainingJob, &changes, "Succeeded", "GpuBudgetExhausted").await }.boxed_local()
    }),
    ("crowded", |s| {
        let huge = ("resources.requests.cpu", json!("1000"));
        async move { user(s, Kind::S3TrainingJob, &[huge], "Training", "Unschedulable").await }.boxed_local()
    }),
    ("image", |s| {
        async move {
            s.kubelet.play("a-train", Play::NoImage);
            user(s, Kind::S3TrainingJob, &[], "Training", "Starting").await;
            s.until("the message names the image", async || {
                let job = s.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
                job.data["status"].to_string().contains("ImagePullBackOff: no such image")
            })
            .await;
        }
        .boxed_local()
    }),
    ("warm", |s| {
        s.kubelet.play("a-sft", Play::Run);
        let warm = ("warmStart", json!({"task": "Protocol"}));
        async move { user(s, Kind::S3TrainingJob, &[warm], "Training", "WarmStart").await }.boxed_local()
    }),
    ("secret", |s| {
        let provider = json!({"openAiCompatible": {"endpoint": "http://10.1.1.1:80/v1", "model": "m",
            "apiKeySecretRef": {"name": "missing", "key": "key"}}});
        let generator = ("generator.provider", provider);
        async move { user(s, Kind::S3TrainingJob, &[generator], "Training", "WaitingForSecret").await }.boxed_local()
    }),
    ("no-index", |s| {
        async move {
            scenario::data(s).await;
            s.apply(Kind::S3TrainingJob, &scenario::job()).await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Training", "WaitingForIndex").await;
        }
        .boxed_local()
    }),
    ("invalid", |s| {
        let model = ("searcher.model.uri", json!("file:///m.gguf"));
        async move { user(s, Kind::S3TrainingJob, &[model], "Succeeded", "InvalidSpec").await }.boxed_local()
    }),
    ("taken", |s| {
        async move {
            foreign(s, "a-baseline-a1").await;
            user(s, Kind::S3TrainingJob, &[], "Succeeded", "NameTaken").await;
        }
        .boxed_local()
    }),
    ("suspend", |s| {
        async move {
            s.kubelet.play("a-train", Play::Run);
            user(s, Kind::S3TrainingJob, &[], "Training", "Stepping").await;
            s.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": true}})).await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Suspended", "Suspended").await;
        }
        .boxed_local()
    }),
    ("guards", |s| {
        async move {
            let text = "entropy is 0.01";
            s.kubelet.play_attempt("a-train", 1, Play::Guarded { said: text });
            let guards = ("guards", json!({"entropy": {"min": 0.1, "action": "Pause"}}));
            user(s, Kind::S3TrainingJob, &[guards], "Suspended", "PausedByGuard").await;
            let job = s.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            assert!(job.data["status"].to_string().contains(text), "{}", job.data["status"]);
            assert_eq!(s.reason(Kind::S3TrainingJob, NAME, "CollapseSuspected").await.as_deref(), Some("BoundPassed"));
            settled(s).await;
            // a person takes note and lets it go on
            s.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": true}})).await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Suspended", "Suspended").await;
            s.change(Kind::S3TrainingJob, NAME, json!({"spec": {"suspend": false}})).await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
            let job = s.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            assert_eq!(job.data["status"]["attempts"], 2, "{}", job.data["status"]);
            assert_eq!(s.reason(Kind::S3TrainingJob, NAME, "CollapseSuspected").await.as_deref(), Some("WithinBounds"));
        }
        .boxed_local()
    }),
    ("early", |s| {
        let summary = json!({"stoppedEarly": "2 probes without a higher held-out gain than 0.1"});
        s.kubelet.play("a-train", Play::Done { digest: "d".into(), summary });
        let evaluation = json!({"probe": {"datasets": [{"name": "held", "uri": "pvc://data/h.jsonl"}]}});
        let changes = [("evaluation", evaluation), ("stop", json!({"patience": 2}))];
        async move { user(s, Kind::S3TrainingJob, &changes, "Succeeded", "StoppedEarly").await }.boxed_local()
    }),
    ("resume-from", |s| {
        async move {
            let from = ("checkpoint", json!({"resumeFrom": {"jobRef": {"name": "first"}}}));
            user(s, Kind::S3TrainingJob, &[from], "Training", "WaitingForJob").await;
            s.kubelet.play("first-train", Play::Guarded { said: "entropy is 0.01" });
            let mut first = scenario::job();
            first["metadata"]["name"] = json!("first");
            s.apply(Kind::S3TrainingJob, &first).await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
            let config = s.api("v1", "ConfigMap").get("a-train-a1").await.unwrap();
            let config = config.data["data"]["r0.yaml"].as_str().unwrap();
            assert!(config.contains("resumeFrom: /work/first-job-data/first-train/"), "{config}");
            settled(s).await;
        }
        .boxed_local()
    }),
    ("schedule", |s| {
        async move {
            s.kubelet.play("a-train", Play::Trained { milestones: scenario::milestones(&[1, 2, 3]) });
            s.kubelet.play("a-full-step-2-eval", Play::Run);
            let evaluation = ("evaluation", scenario::every(1));
            user(s, Kind::S3TrainingJob, &[evaluation], "Evaluated", "TemplateUnfit").await;
            s.apply(Kind::EvalRun, &scenario::template()).await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Evaluated", "Scheduled").await;
            s.kubelet.play("a-full-step-2-eval", fail(64, "Error"));
            s.until_reason(Kind::S3TrainingJob, NAME, "Evaluated", "EvaluationFailed").await;
            s.kubelet.play("a-full-step-2-eval", crate::kubelet::done("a-full-step-2-eval"));
            s.delete(Kind::EvalRun, "a-full-step-2").await;
            s.until_reason(Kind::S3TrainingJob, NAME, "Evaluated", "Evaluated").await;
        }
        .boxed_local()
    }),
    ("lost", |s| {
        async move {
            // The node of the first attempt is lost: its pod stays, and the next one starts all the same.
            s.kubelet.play_attempt("a-train", 1, Play::Run);
            user(s, Kind::S3TrainingJob, &[], "Training", "Stepping").await;
            s.kubelet.play_attempt("a-train", 1, Play::Lost);
            let pods = s.api("v1", "Pod");
            let list = kube::api::ListParams::default().labels("searchagent.dev/component=a-train");
            let name = pods.list(&list).await.unwrap().items[0].metadata.name.clone().unwrap();
            let lost = json!({"status": {"reason": "NodeLost", "message": "the node is gone"}});
            let patch = kube::api::Patch::Merge(&lost);
            pods.patch_status(&name, &kube::api::PatchParams::default(), &patch).await.unwrap();
            s.until_reason(Kind::S3TrainingJob, NAME, "Succeeded", "StepsDone").await;
            let job = s.resources(Kind::S3TrainingJob).get(NAME).await.unwrap();
            assert_eq!(job.data["status"]["attempts"], 2, "{}", job.data["status"]);
        }
        .boxed_local()
    }),
];

const RUN_STORIES: &[(&str, Story)] = &[
    ("queued", |s| {
        let queue = ("queue", json!({"name": "gpus"}));
        async move {
            user(s, Kind::EvalRun, &[queue], "Evaluating", "Queued").await;
            crate::kueue::admit(s, "a-run-queue").await;
            s.until_reason(Kind::EvalRun, NAME, "Succeeded", "Complete").await;
            settled(s).await;
        }
        .boxed_local()
    }),
    ("without-kueue", |s| {
        let queue = ("queue", json!({"name": "gpus"}));
        async move { user(s, Kind::EvalRun, &[queue], "Evaluating", "QueueUnavailable").await }.boxed_local()
    }),
    ("input", |s| {
        s.kubelet.play("a-eval", fail(64, "Error"));
        user(s, Kind::EvalRun, &[], "Succeeded", "InvalidInput").boxed_local()
    }),
    ("outage", |s| {
        s.kubelet.play("a-eval", fail(65, "Error"));
        user(s, Kind::EvalRun, &[], "Succeeded", "AttemptsExhausted").boxed_local()
    }),
    ("backoff", |s| {
        s.kubelet.play_attempt("a-eval", 1, fail(69, "Error"));
        user(s, Kind::EvalRun, &[], "Evaluating", "Backoff").boxed_local()
    }),
    ("deadline", |s| {
        s.kubelet.play("a-eval", Play::Run);
        let limit = ("activeDeadlineSeconds", json!(2));
        async move { user(s, Kind::EvalRun, &[limit], "Succeeded", "DeadlineExceeded").await }.boxed_local()
    }),
    ("suspend", |s| {
        async move {
            s.kubelet.play("a-eval", Play::Run);
            user(s, Kind::EvalRun, &[], "Evaluating", "Answering").await;
            s.change(Kind::EvalRun, NAME, json!({"spec": {"suspend": true}})).await;
            s.until_reason(Kind::EvalRun, NAME, "Suspended", "Suspended").await;
        }
        .boxed_local()
    }),
    ("secret", |s| {
        let provider = json!({"openAiCompatible": {"endpoint": "http://10.1.1.1:80/v1", "model": "m",
            "apiKeySecretRef": {"name": "missing", "key": "key"}}});
        let generator = ("generator.provider", provider);
        async move { user(s, Kind::EvalRun, &[generator], "Evaluating", "WaitingForSecret").await }.boxed_local()
    }),
    ("no-index", |s| {
        async move {
            scenario::data(s).await;
            s.apply(Kind::EvalRun, &scenario::run()).await;
            s.until_reason(Kind::EvalRun, NAME, "Evaluating", "WaitingForIndex").await;
        }
        .boxed_local()
    }),
    ("job", |s| {
        async move {
            s.kubelet.play("a-train", Play::Run);
            user(s, Kind::S3TrainingJob, &[], "Training", "Stepping").await;
            let arm = json!([{"name": "s3", "method": "S3", "searcher": {"jobRef": {"name": NAME}}}]);
            s.apply(Kind::EvalRun, &with(scenario::run(), &[("arms", arm)])).await;
            s.until_reason(Kind::EvalRun, NAME, "Evaluating", "WaitingForJob").await;
            s.kubelet.play("a-train", crate::kubelet::done("a-train"));
            s.until_reason(Kind::EvalRun, NAME, "Succeeded", "Complete").await;
            settled(s).await;
        }
        .boxed_local()
    }),
    ("invalid", |s| {
        let sets = ("datasets", json!([{"name": "nq", "uri": "file:///nq.jsonl"}]));
        async move { user(s, Kind::EvalRun, &[sets], "Succeeded", "InvalidSpec").await }.boxed_local()
    }),
    ("taken", |s| {
        async move {
            foreign(s, "a-eval-a1").await;
            user(s, Kind::EvalRun, &[], "Succeeded", "NameTaken").await;
        }
        .boxed_local()
    }),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_reason_is_reached() {
    let seen = Arc::<Mutex<Seen>>::default();
    let stories = INDEX_STORIES.iter().chain(JOB_STORIES).chain(RUN_STORIES);
    let lives = futures_util::stream::iter(stories).map(|(name, story)| {
        let seen = seen.clone();
        async move {
            let setup = Setup::new(&format!("story-{name}")).await;
            let collectors = collect(&setup, &seen);
            setup.autoscaling.store(!name.ends_with("without-autoscaler"), std::sync::atomic::Ordering::SeqCst);
            setup.kueue.store(!name.ends_with("without-kueue"), std::sync::atomic::Ordering::SeqCst);
            setup.start().await;
            story(&setup).await;
            setup.done().await;
            collectors.iter().for_each(tokio::task::JoinHandle::abort);
        }
    });
    lives.buffer_unordered(6).collect::<()>().await;
    let seen = seen.lock().unwrap();
    let missing: Vec<String> = s3_crds::REASONS
        .iter()
        // while everything in a kind's schema is honoured, nothing is refused for not being so
        .filter(|r| {
            r.name != "UnsupportedField" || s3_crds::UNSUPPORTED.iter().any(|f| f.kind.is_none_or(|k| k == r.kind))
        })
        .filter(|r| !seen.contains(&(r.kind.name().to_owned(), r.condition.to_owned(), r.name.to_owned())))
        .map(|reason| format!("{} {} {}", reason.kind.name(), reason.condition, reason.name))
        .collect();
    assert!(missing.is_empty(), "never reached:\n{}", missing.join("\n"));
}

/// A job that is finished goes when its time is over, and takes what it made along.
#[tokio::test(flavor = "multi_thread")]
async fn a_finished_job_goes_when_its_time_is_over() {
    let setup = Setup::new("ttl").await;
    setup.start().await;
    user(&setup, Kind::S3TrainingJob, &[("ttlSecondsAfterFinished", json!(3))], "Succeeded", "StepsDone").await;
    setup
        .until("the job and its volume are gone", async || {
            let claims: Api<PersistentVolumeClaim> = Api::namespaced(setup.client.clone(), &setup.namespace);
            setup.resources(Kind::S3TrainingJob).get_opt(NAME).await.unwrap().is_none()
                && claims.get_opt("a-job-data").await.unwrap().is_none_or(|c| c.metadata.deletion_timestamp.is_some())
        })
        .await;
    setup.done().await;
}
