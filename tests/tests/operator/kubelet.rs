//! Plays the kubelet and the volumes' provisioner for one namespace: pods run and end as a test says.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How pods of a component's attempt behave.
#[derive(Clone, Debug)]
pub enum Play {
    /// They end well.
    Done { digest: String, summary: Value },
    /// They end well, and have kept searchers of these steps.
    Trained { milestones: Value },
    /// A guard has spoken, and paused them.
    Guarded { said: &'static str },
    /// They end with a code; the reason is the container's.
    Fail { code: i32, reason: &'static str, message: &'static str },
    /// They run until told otherwise.
    Run,
    /// Their image cannot be had.
    NoImage,
    /// They run and do not answer.
    Down,
    /// Their node is lost: they are there, and nobody hears of them.
    Lost,
}

#[derive(Default)]
struct Script {
    /// By component and attempt; attempt 0 stands for all others, the component "" for every baseline.
    plays: BTreeMap<(String, u32), Play>,
}

/// See the module.
pub struct Kubelet {
    script: Arc<Mutex<Script>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What ends well by default.
pub fn done(component: &str) -> Play {
    Play::Done { digest: format!("digest-of-{component}"), summary: json!({}) }
}

impl Kubelet {
    /// Begins to play.
    pub fn start(client: Client, namespace: &str) -> Self {
        let script = Arc::<Mutex<Script>>::default();
        let (shared, namespace) = (script.clone(), namespace.to_owned());
        let task = tokio::spawn(async move {
            loop {
                let start = Instant::now();
                // The API server may be away for a while.
                let _ = turn(&client, &namespace, &shared).await;
                // With hundreds of pods a turn is work: the cluster is not there for it alone.
                tokio::time::sleep(Duration::from_millis(50).max(start.elapsed() * 4)).await;
            }
        });
        Self { script, task }
    }

    /// Says how pods of a component behave, in all its attempts.
    pub fn play(&self, component: &str, play: Play) {
        self.play_attempt(component, 0, play);
    }

    /// Says how pods of one attempt behave.
    pub fn play_attempt(&self, component: &str, attempt: u32, play: Play) {
        self.script.lock().unwrap().plays.insert((component.to_owned(), attempt), play);
    }
}

async fn turn(client: &Client, namespace: &str, script: &Mutex<Script>) -> Result<(), kube::Error> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    for claim in claims.list(&ListParams::default().match_any()).await? {
        let pending = claim.status.as_ref().is_none_or(|status| status.phase.as_deref() != Some("Bound"));
        if pending && claim.metadata.deletion_timestamp.is_none() {
            provision(client, namespace, &claim).await?;
        }
    }
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    for pod in pods.list(&ListParams::default().match_any()).await? {
        let label = |name: &str| pod.labels().get(name).cloned();
        let component = label("searchagent.dev/component").unwrap_or_default();
        let attempt: u32 = label("searchagent.dev/attempt").and_then(|number| number.parse().ok()).unwrap_or(0);
        let play = {
            let script = script.lock().unwrap();
            let own = [attempt, 0].map(|attempt| (component.clone(), attempt));
            let play = own.iter().find_map(|key| script.plays.get(key));
            let all = script.plays.get(&(String::new(), 0)).filter(|_| component.ends_with("-baseline"));
            play.or(all).cloned().unwrap_or_else(|| if attempt == 0 { Play::Run } else { done(&component) })
        };
        if matches!(play, Play::Lost) {
            continue;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            ignore_gone(pods.delete(&pod.name_any(), &params).await.map(drop))?;
            continue;
        }
        if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
            continue;
        }
        let phase = pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
        let next = match (phase.as_str(), &play) {
            ("Pending", Play::NoImage) => {
                status("Pending", &json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}))
            }
            ("Running", Play::Down) if ready(&pod) => {
                let mut next = status("Running", &json!({"running": {}}));
                next["conditions"][0]["status"] = json!("False");
                next["conditions"][1]["status"] = json!("False");
                next
            }
            ("Pending", _) => status("Running", &json!({"running": {}})),
            ("Running", Play::Done { digest, summary }) => {
                let message = json!({"digest": digest, "summary": summary}).to_string();
                ended(0, "Completed", &message)
            }
            ("Running", Play::Trained { milestones }) => {
                let digest = format!("digest-of-{component}");
                ended(0, "Completed", &json!({"digest": digest, "summary": {}, "milestones": milestones}).to_string())
            }
            ("Running", Play::Guarded { said }) => {
                let checkpoint = json!({"step": 1, "digest": "c", "path": "/work/first-job-data/c"});
                let message = json!({"class": "Paused", "message": "paused", "guard": said, "checkpoint": checkpoint});
                ended(78, "Error", &message.to_string())
            }
            ("Running", Play::Fail { code, reason, message }) => {
                ended(*code, reason, &json!({"message": message}).to_string())
            }
            _ => continue,
        };
        let patch = Patch::Merge(json!({ "status": next }));
        ignore_gone(pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.map(drop))?;
    }
    Ok(())
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn status(phase: &str, state: &Value) -> Value {
    let ready = if phase == "Running" { "True" } else { "False" };
    let condition = |type_: &str| json!({"type": type_, "status": ready});
    json!({
        "phase": phase,
        "startTime": k8s_openapi::jiff::Timestamp::now().to_string(),
        "conditions": [condition("Ready"), condition("ContainersReady"), json!({"type": "PodScheduled", "status": "True"})],
        "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "restartCount": 0, "ready": ready == "True", "state": state}],
    })
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    let phase = if code == 0 { "Succeeded" } else { "Failed" };
    status(phase, &json!({"terminated": {"exitCode": code, "reason": reason, "message": message}, "running": null}))
}

/// A volume for a claim, bound by the cluster's own controller.
async fn provision(client: &Client, namespace: &str, claim: &PersistentVolumeClaim) -> Result<(), kube::Error> {
    // A claim that comes again under its name gets another volume, as from a real provisioner.
    let name = format!("{namespace}-{}-{}", claim.name_any(), &claim.uid().unwrap_or_default()[..8]);
    let spec = claim.spec.clone().unwrap_or_default();
    let volume = json!({
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Ti"},
            "accessModes": spec.access_modes,
            "persistentVolumeReclaimPolicy": "Delete",
            "storageClassName": spec.storage_class_name.unwrap_or_default(),
            "hostPath": {"path": "/nowhere"},
            "claimRef": {"namespace": namespace, "name": claim.name_any(), "uid": claim.metadata.uid},
        },
    });
    let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
    match Api::<PersistentVolume>::all(client.clone()).create(&PostParams::default(), &volume).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

fn ignore_gone(result: Result<(), kube::Error>) -> Result<(), kube::Error> {
    match result {
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        other => other,
    }
}
