//! The attempts of a component: records on their `ConfigMap`s, and what Jobs, pods and reports show.

use crate::clock;
use crate::operator::Shared;
use crate::progress::Report;
use crate::world::World;
use k8s_openapi::api::batch::v1::{Job, JobCondition};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use s3_crds::{CheckpointStatus, FailureClass};
use s3_plan::lifecycle::{Attempted, End, Grant, Live, PodEnd, Record, admission, cause, classify};
use s3_plan::objects::{ATTEMPT_LABEL, FINGERPRINT_ANNOTATION};
use s3_telemetry::{CheckpointNote, ExitClass, Termination};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Annotation with what became of an attempt.
pub const RECORD: &str = "searchagent.dev/record";
/// Annotation with what the attempt's needs were when it started.
pub const PINS: &str = "searchagent.dev/pins";
/// Annotation with the attempt with which the work began anew, where it did.
pub const ANEW: &str = "searchagent.dev/anew";
/// Annotation with the GPUs of all its pods.
pub const GPUS: &str = "searchagent.dev/gpus";
/// Seconds after the end of its grace at which a pod that is still there counts as fenced: its node is lost.
const LOST_AFTER: i64 = 30;

/// Seconds after the end of a Job at which a pod of it that is not seen counts as gone.
const VANISHED_AFTER: i64 = 10;

/// An attempt with the objects that it was read from.
#[derive(Clone, Debug)]
pub struct Entry {
    /// For decisions.
    pub attempt: Attempted,
    /// Its record's place.
    pub config_map: Arc<ConfigMap>,
    /// Its Jobs.
    pub jobs: Vec<Arc<Job>>,
    /// When a pod of it counts as fenced.
    pub fenced_at: Option<i64>,
}

impl Entry {
    /// What its needs were.
    pub fn pins(&self) -> Option<Value> {
        let text = self.config_map.metadata.annotations.as_ref()?.get(PINS)?;
        serde_json::from_str(text).ok()
    }
}

/// Annotation that holds a record.
pub fn record_annotation(record: &Record) -> Result<Value, serde_json::Error> {
    Ok(json!({ RECORD: serde_json::to_string(record)? }))
}

/// All attempts of a component that belong to the owner, oldest first; without an owner, to several resources.
pub fn read(shared: &Shared, namespace: &str, component: &str, uid: Option<&str>, now: i64) -> Vec<Entry> {
    let world = &shared.world;
    let numbered =
        |labels: Option<&BTreeMap<String, String>>| -> Option<u32> { labels?.get(ATTEMPT_LABEL)?.parse().ok() };
    let jobs = world.batch.group_of(namespace, component);
    let pods = world.pods.group_of(namespace, component);
    let mut entries: Vec<Entry> = world
        .config_maps
        .group_of(namespace, component)
        .into_values()
        .filter_map(|config_map| {
            let number = numbered(config_map.metadata.labels.as_ref())?;
            let owners = config_map.metadata.owner_references.as_deref().unwrap_or_default();
            let owned = uid.is_none_or(|uid| owners.iter().any(|owner| owner.uid == uid));
            if config_map.metadata.deletion_timestamp.is_some() || !owned {
                return None;
            }
            let of = |labels: Option<&BTreeMap<String, String>>| numbered(labels) == Some(number);
            let jobs: Vec<Arc<Job>> = jobs
                .values()
                .filter(|job| of(job.metadata.labels.as_ref()) && job.metadata.deletion_timestamp.is_none())
                .cloned()
                .collect();
            let pods: Vec<Arc<Pod>> = pods.values().filter(|pod| of(pod.metadata.labels.as_ref())).cloned().collect();
            let report = shared.reports.of(uid.unwrap_or_default(), component, number);
            let mut entry = entry(config_map, number, jobs, &pods, report.as_ref(), now);
            queued(&shared.world, namespace, &mut entry);
            Some(entry)
        })
        .collect();
    entries.sort_by_key(|entry| entry.attempt.number);
    entries
}

fn entry(
    config_map: Arc<ConfigMap>,
    number: u32,
    jobs: Vec<Arc<Job>>,
    pods: &[Arc<Pod>],
    report: Option<&Report>,
    now: i64,
) -> Entry {
    let annotation = |name: &str| config_map.metadata.annotations.as_ref().and_then(|all| all.get(name)).cloned();
    let record = annotation(RECORD).and_then(|text| match serde_json::from_str::<Record>(&text) {
        Ok(record) => Some(record),
        Err(error) => {
            let name = config_map.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(config_map = name, %error, "the record of an attempt cannot be read; it counts as open");
            None
        }
    });
    let replicas = config_map.data.as_ref().map_or(1, BTreeMap::len);
    let (live, fenced_at) = live(&jobs, pods, replicas, report, record.is_none(), now);
    let attempt = Attempted {
        number,
        print: annotation(FINGERPRINT_ANNOTATION).unwrap_or_default(),
        started: config_map.metadata.creation_timestamp.as_ref().map_or(now, clock::seconds),
        gpus: annotation(GPUS).and_then(|gpus| gpus.parse().ok()).unwrap_or(0),
        anew: annotation(ANEW).and_then(|attempt| attempt.parse().ok()).unwrap_or(0),
        record,
        live,
    };
    Entry { attempt, config_map, jobs, fenced_at }
}

/// What Kueue says of the Jobs that it admits one by one (`queue.mode: Labels`).
fn queued(world: &World, namespace: &str, entry: &mut Entry) {
    let live = &mut entry.attempt.live;
    for job in &entry.jobs {
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        for workload in world.workloads.group_of(namespace, uid).values() {
            let Ok(value) = serde_json::to_value(workload.as_ref()) else { continue };
            if let Grant::Waiting(why) | Grant::Evicted(why) = admission(&value, true).grant {
                live.queued = Some(why);
            }
        }
    }
    // It has suspended its Job again, and pods went for that alone: no failure.
    live.evicted = live.queued.is_some() && matches!(live.end, Some(End::Failed { class: FailureClass::NodeLost, .. }));
}

fn live(
    jobs: &[Arc<Job>],
    pods: &[Arc<Pod>],
    replicas: usize,
    report: Option<&Report>,
    open: bool,
    now: i64,
) -> (Live, Option<i64>) {
    let mut live = Live::default();
    let mut working: Vec<&Pod> = Vec::new();
    let mut fenced_at = None;
    let mut checkpoint = report.and_then(|report| report.checkpoint.clone());
    let mut milestones = report.map(|report| report.milestones.clone()).unwrap_or_default();
    let mut guard = report.and_then(|report| report.guard.clone());
    let mut paused = false;
    let mut done = Vec::new();
    let (mut failures, mut vanished_well) = (Vec::new(), 0);
    for pod in pods {
        let status = pod.status.clone().unwrap_or_default();
        if let Some(start) = &status.start_time {
            let start = clock::seconds(start);
            live.since = Some(live.since.map_or(start, |since| since.min(start)));
        }
        let phase = status.phase.as_deref().unwrap_or("Pending");
        let over = matches!(phase, "Succeeded" | "Failed");
        let lost = lost(pod);
        if !over && !lost {
            let until = pod.metadata.deletion_timestamp.as_ref().map(|time| clock::seconds(time) + LOST_AFTER);
            if until.is_none_or(|until| until > now) {
                live.holding += 1;
                working.push(pod);
                fenced_at = fenced_at.into_iter().chain(until).min();
            }
        }
        let said = termination(pod);
        checkpoint = [checkpoint, said.as_ref().and_then(|said| said.checkpoint.as_ref().map(checkpoint_status))]
            .into_iter()
            .flatten()
            .max_by_key(|checkpoint: &CheckpointStatus| checkpoint.step);
        paused |= said.as_ref().is_some_and(|said| said.class == Some(ExitClass::Paused));
        guard = said.as_ref().map_or(guard, |said| said.guard.clone());
        milestones.extend(said.iter().flat_map(|said| said.milestones.clone()));
        if phase == "Succeeded" {
            done.push((pod, said));
        } else if over || lost || pod.metadata.deletion_timestamp.is_some() {
            failures.push(classify(&pod_end(pod, said.as_ref(), lost)));
        } else if phase == "Running" {
            live.running = true;
        } else {
            (live.unschedulable, live.waiting) = waiting(pod);
        }
    }
    let mut failed = cause(failures);
    // The controller of Jobs tells of an end whose pod may be gone by now. That the pod is not cached proves
    // nothing at first: watches of Jobs and of pods run at their own pace.
    for job in jobs {
        // What admits Jobs (Kueue) starts them suspended.
        if job.spec.as_ref().is_some_and(|spec| spec.suspend == Some(true)) {
            let queue = job.metadata.labels.as_ref().and_then(|labels| labels.get("kueue.x-k8s.io/queue-name"));
            let queue = queue.map_or_else(String::new, |queue| format!(" to queue {queue}"));
            live.queued = Some(format!("waits for admission{queue}"));
        }
        let name = job.metadata.name.as_deref().unwrap_or_default();
        let made = pods.iter().any(|pod| of_job(pod, name));
        // One that is being deleted waits for its pod, even for one on a lost node: that is as good as gone.
        let gone = job.metadata.deletion_timestamp.is_some() && made && !working.iter().any(|pod| of_job(pod, name));
        live.jobs += u32::from(!gone);
        live.unmade += u32::from(!made && end_of(job).is_none());
        let Some(condition) = end_of(job).filter(|_| failed.is_none() && !pods.iter().any(|pod| of_job(pod, name)))
        else {
            continue;
        };
        let since = condition.last_transition_time.as_ref().map_or(now, clock::seconds);
        if now < since + VANISHED_AFTER {
            fenced_at = fenced_at.into_iter().chain([since + VANISHED_AFTER]).min();
            continue;
        }
        let reported = report.is_some_and(|report| report.outcome.is_some());
        if condition.type_ == "Failed" {
            let message = condition.message.clone().unwrap_or_default();
            failed = Some((
                FailureClass::NodeLost,
                format!("the pod of {name} vanished before its end was seen: {message}"),
            ));
        } else if reported {
            vanished_well += 1;
        } else {
            failed = Some((FailureClass::NodeLost, format!("the pod of {name} vanished before its outcome was read")));
        }
    }
    // A pod that belongs to nobody any more: its Job was deleted and the pod left. That no Job is cached proves
    // nothing: watches of Jobs and of pods run at their own pace.
    let orphan = |pod: &Arc<Pod>| pod.metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
    if open && jobs.is_empty() && pods.iter().any(orphan) {
        failed = failed.or_else(|| Some((FailureClass::NodeLost, "its Job was deleted".into())));
    }
    live.checkpoint = checkpoint;
    live.milestones = milestones;
    live.guard = guard;
    live.phase = report.map(|report| report.phase.clone()).unwrap_or_default();
    live.end = match failed {
        // One replica speaks for all: they measure the same.
        Some(_) if paused => Some(End::Paused),
        Some((class, message)) => Some(End::Failed { class, message }),
        None if replicas > 0 && done.len() + vanished_well >= replicas => Some(outcome(&done, report)),
        None => None,
    };
    (live, fenced_at)
}

/// The condition that says that a Job has ended.
fn end_of(job: &Job) -> Option<&JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|c| matches!(c.type_.as_str(), "Failed" | "Complete") && c.status == "True")
}

fn of_job(pod: &Pod, job: &str) -> bool {
    pod.metadata.labels.as_ref().and_then(|labels| labels.get("job-name")).map(String::as_str) == Some(job)
}

/// The outcome that the first replica left, or reported.
fn outcome(done: &[(&Arc<Pod>, Option<Termination>)], report: Option<&Report>) -> End {
    let reported = report.and_then(|report| report.outcome.clone());
    let said = done.iter().find_map(|(_, said)| {
        let said = said.as_ref()?;
        Some((said.digest.clone()?, said.summary.clone()))
    });
    match (said, reported) {
        // A summary that was too long for a termination message may have been reported.
        (Some((digest, None)), Some((reported, summary))) if reported == digest => End::Done { digest, summary },
        (Some((digest, summary)), _) => End::Done { digest, summary: summary.unwrap_or(Value::Null) },
        (None, Some((digest, summary))) => End::Done { digest, summary },
        (None, None) => {
            let (class, message) = classify(&PodEnd { exit_code: Some(0), ..PodEnd::default() });
            End::Failed { class, message }
        }
    }
}

/// A pod whose node is gone: whatever still runs there is fenced by its storage.
fn lost(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    let disrupted = status.conditions.iter().flatten().any(|condition| {
        condition.type_ == "DisruptionTarget"
            && condition.status == "True"
            && matches!(condition.reason.as_deref(), Some("DeletionByTaintManager" | "DeletionByPodGC"))
    });
    status.reason.as_deref() == Some("NodeLost") || (disrupted && pod.metadata.deletion_timestamp.is_some())
}

fn terminated(pod: &Pod) -> Option<&k8s_openapi::api::core::v1::ContainerStateTerminated> {
    pod.status
        .as_ref()?
        .container_statuses
        .as_ref()?
        .iter()
        .find_map(|status| status.state.as_ref()?.terminated.as_ref())
}

fn termination(pod: &Pod) -> Option<Termination> {
    Termination::parse(terminated(pod)?.message.as_deref()?)
}

fn pod_end(pod: &Pod, said: Option<&Termination>, lost: bool) -> PodEnd {
    let status = pod.status.clone().unwrap_or_default();
    let container = terminated(pod);
    let said = said.and_then(|said| said.message.clone());
    let last_line = |text: &String| text.lines().rev().find(|line| !line.trim().is_empty()).map(str::to_owned);
    PodEnd {
        exit_code: container.map(|container| container.exit_code),
        signal: container.and_then(|container| container.signal).filter(|signal| *signal > 0),
        container_reason: container.and_then(|container| container.reason.clone()),
        pod_reason: if lost { Some("NodeLost".into()) } else { status.reason },
        taken: pod.metadata.deletion_timestamp.is_some(),
        message: said.or_else(|| container?.message.as_ref().and_then(last_line)).or(status.message),
    }
}

/// Why no node takes it, or why its container does not start.
fn waiting(pod: &Pod) -> (Option<String>, Option<String>) {
    let Some(status) = &pod.status else { return (None, None) };
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let unschedulable = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    });
    let unschedulable =
        unschedulable.map(|condition| format!("{name}: {}", condition.message.clone().unwrap_or_default()));
    let waiting = status.container_statuses.iter().flatten().find_map(|status| {
        let waiting = status.state.as_ref()?.waiting.as_ref()?;
        let reason =
            waiting.reason.as_deref().filter(|reason| !matches!(*reason, "ContainerCreating" | "PodInitializing"))?;
        Some(format!("{name}: {reason}: {}", waiting.message.as_deref().unwrap_or_default()))
    });
    (unschedulable, waiting)
}

/// A pod's note of a checkpoint as status shows it.
pub fn checkpoint_status(note: &CheckpointNote) -> CheckpointStatus {
    let path = note.path.display().to_string();
    CheckpointStatus { uri: claim_uri(&path), digest: note.digest.clone(), step: note.step }
}

/// A path as pods see it, as the address of a claim.
pub fn claim_uri(path: &str) -> String {
    match path.strip_prefix("/work/").or_else(|| path.strip_prefix("/volumes/")) {
        Some(rest) => format!("pvc://{rest}"),
        None => format!("file://{path}"),
    }
}

/// Why the pods of a Deployment do not start.
pub fn trouble(world: &World, namespace: &str, component: &str) -> Option<String> {
    world.pods.group_of(namespace, component).values().find_map(|pod| {
        let (unschedulable, waiting) = waiting(pod);
        unschedulable.or(waiting)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pod(status: &Value) -> Arc<Pod> {
        let value = json!({
            "metadata": {"name": "p", "labels": {"job-name": "j"},
                "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "1", "controller": true}]},
            "status": status,
        });
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn ended(code: i32, reason: &str, message: &str) -> Value {
        json!({"phase": if code == 0 { "Succeeded" } else { "Failed" }, "startTime": "2026-01-01T00:00:00Z",
            "containerStatuses": [{"name": "worker", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": code, "reason": reason, "message": message}}}]})
    }

    #[test]
    fn a_suspended_job_is_queued() {
        let value = json!({"metadata": {"name": "j", "labels": {"kueue.x-k8s.io/queue-name": "gpus"}},
            "spec": {"suspend": true, "template": {}}});
        let job: Arc<Job> = Arc::new(serde_json::from_value(value).unwrap());
        let seen = live(&[job], &[], 1, None, true, 0).0;
        assert_eq!(seen.queued.as_deref(), Some("waits for admission to queue gpus"));
        assert_eq!(seen.end, None);
    }

    fn job(condition: &str) -> Arc<Job> {
        let value = json!({"metadata": {"name": "j"}, "status": {"conditions": [
            {"type": condition, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn end(jobs: &[Arc<Job>], pods: &[Arc<Pod>]) -> Option<End> {
        live(jobs, pods, 1, None, true, 1_800_000_000).0.end
    }

    #[test]
    fn ends_are_read_from_pods_and_their_messages() {
        let good = pod(&ended(0, "Completed", r#"{"digest": "d", "summary": {"steps": 3}}"#));
        assert_eq!(end(&[], &[good]), Some(End::Done { digest: "d".into(), summary: json!({"steps": 3}) }));
        let silent = pod(&ended(0, "Completed", ""));
        assert!(matches!(end(&[], &[silent]), Some(End::Failed { class: FailureClass::Unknown, .. })));
        let memory = pod(&ended(137, "OOMKilled", ""));
        assert!(matches!(end(&[], &[memory]), Some(End::Failed { class: FailureClass::OutOfMemory, .. })));
        let wrong = pod(&ended(64, "Error", r#"{"class": "Input", "message": "no such file"}"#));
        let Some(End::Failed { class: FailureClass::InvalidInput, message }) = end(&[], &[wrong]) else { panic!() };
        assert!(message.ends_with("no such file"), "{message}");
        let log = pod(&ended(70, "Error", "a\nthread panicked\n"));
        let Some(End::Failed { message, .. }) = end(&[], &[log]) else { panic!() };
        assert!(message.ends_with("thread panicked"), "{message}");
    }

    #[test]
    fn jobs_whose_pods_are_gone_have_ended_too() {
        assert!(matches!(end(&[job("Failed")], &[]), Some(End::Failed { class: FailureClass::NodeLost, .. })));
        assert!(matches!(end(&[job("Complete")], &[]), Some(End::Failed { class: FailureClass::NodeLost, .. })));
        assert_eq!(end(&[job("Other")], &[]), None);
        // the pod's own end may be about to be seen
        let ended = end_of(&job("Failed")).and_then(|c| c.last_transition_time.clone()).unwrap();
        let (seen, again) = live(&[job("Failed")], &[], 1, None, true, clock::seconds(&ended) + 1);
        assert_eq!((seen.end, again), (None, Some(clock::seconds(&ended) + VANISHED_AFTER)));
    }

    #[test]
    fn a_pod_holds_until_it_is_gone_or_fenced() {
        let running = pod(&json!({"phase": "Running"}));
        assert_eq!(live(&[job("Other")], &[running], 1, None, true, 0).0.holding, 1);
        let mut going = Pod::clone(&pod(&json!({"phase": "Running"})));
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let at = clock::seconds(going.metadata.deletion_timestamp.as_ref().unwrap());
        let going = [Arc::new(going)];
        assert_eq!(live(&[], &going, 1, None, false, at).0.holding, 1);
        assert_eq!(live(&[], &going, 1, None, false, at).1, Some(at + LOST_AFTER));
        assert_eq!(live(&[], &going, 1, None, false, at + LOST_AFTER).0.holding, 0);
        let lost = pod(&json!({"phase": "Running", "reason": "NodeLost"}));
        let seen = live(&[job("Other")], &[lost], 1, None, true, 0).0;
        assert!(seen.holding == 0 && matches!(seen.end, Some(End::Failed { class: FailureClass::NodeLost, .. })));
        assert_eq!(claim_uri("/work/quickstart-data/a/b"), "pvc://quickstart-data/a/b");
    }
}
