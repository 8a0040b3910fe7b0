//! The gRPC service by which jobs say how far they are, and what they said last.

use crate::key::Key;
use crate::lease::Fence;
use crate::ledger::checkpoint_status;
use crate::queue::Queue;
use crate::world::World;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use s3_crds::{CheckpointStatus, Kind};
use s3_plan::objects::{ATTEMPT_LABEL, COMPONENT_LABEL, label_value};
use s3_proto::tonic::{Request, Response, Status};
use s3_proto::v1::progress_server::Progress;
use s3_proto::v1::{ProgressReply, ProgressReport, Standing};
use s3_telemetry::{CheckpointNote, metrics};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Progress alone moves a status at most this often.
pub const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// A token that was reviewed is taken again for so long.
const REVIEW_LASTS: Duration = Duration::from_secs(60);
/// Longest phase that is kept.
const PHASE_LIMIT: usize = 200;
/// Longest word of a guard that is kept.
const MESSAGE_LIMIT: usize = 1000;
/// Most adapters that are kept of one report; no schedule asks for so many.
const MILESTONES_LIMIT: usize = 200;

/// What one attempt said last.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// What is being done.
    pub phase: String,
    /// Units done of this phase.
    pub done: u64,
    /// Units of this phase.
    pub total: u64,
    /// Figures by name.
    pub figures: BTreeMap<String, f64>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
    /// Sha256 of the adapters that are kept for evaluations, by step.
    pub milestones: BTreeMap<u32, String>,
    /// What guards say of the policy.
    pub guard: Option<String>,
    /// Digest and summary of the outcome.
    pub outcome: Option<(String, Value)>,
}

/// Reports of first replicas, by uid, component and attempt. What is lost with the process is told again.
#[derive(Default)]
pub struct Reports(Mutex<HashMap<(String, String, u32), Report>>);

impl Reports {
    /// What an attempt said last.
    pub fn of(&self, uid: &str, component: &str, attempt: u32) -> Option<Report> {
        let reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        reports.get(&(uid.to_owned(), component.to_owned(), attempt)).cloned()
    }

    /// Takes a report. Returns whether it is more than progress: a checkpoint, an adapter or an outcome.
    pub fn take(&self, uid: &str, component: &str, attempt: u32, report: &Report) -> bool {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = reports.insert((uid.to_owned(), component.to_owned(), attempt), report.clone()).unwrap_or_default();
        old.checkpoint != report.checkpoint
            || old.outcome != report.outcome
            || old.milestones != report.milestones
            || old.guard.is_some() != report.guard.is_some()
    }

    /// Forgets a resource that is gone.
    pub fn forget(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|(of, ..), _| of != uid);
    }
}

/// The service.
pub struct ProgressService {
    client: Client,
    world: Arc<World>,
    queue: Arc<Queue>,
    reports: Arc<Reports>,
    fence: Fence,
    reviewed: Mutex<HashMap<String, (Pod, Instant)>>,
}

/// The pod that a token was made for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pod {
    namespace: String,
    name: String,
    uid: String,
}

impl ProgressService {
    /// A service that fills `reports`.
    pub fn new(client: Client, world: Arc<World>, queue: Arc<Queue>, reports: Arc<Reports>, fence: Fence) -> Self {
        Self { client, world, queue, reports, fence, reviewed: Mutex::default() }
    }

    /// The pod behind a token, when the token was made for that resource.
    async fn review(&self, token: &str, uid: &str) -> Result<Pod, Status> {
        let mark = crate::clock::digest(&serde_json::json!([token, uid]));
        {
            let mut reviewed = self.reviewed.lock().unwrap_or_else(PoisonError::into_inner);
            reviewed.retain(|_, (_, at)| at.elapsed() < REVIEW_LASTS);
            if let Some((pod, _)) = reviewed.get(&mark) {
                return Ok(pod.clone());
            }
        }
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![uid.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let review = Api::<TokenReview>::all(self.client.clone()).create(&PostParams::default(), &review).await;
        let review = review.map_err(|error| Status::unavailable(format!("the token cannot be reviewed: {error}")))?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(Status::unauthenticated("the API server does not know this token for this resource"));
        }
        // A server that knows no audiences would name none.
        if !status.audiences.unwrap_or_default().iter().any(|audience| audience == uid) {
            return Err(Status::unauthenticated("the token was made for somebody else"));
        }
        let user = status.user.unwrap_or_default();
        let extra = user.extra.unwrap_or_default();
        let first = |name: &str| extra.get(name).and_then(|values| values.first()).cloned();
        let account = user.username.unwrap_or_default();
        let namespace = account.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split(':').next());
        let (Some(namespace), Some(name), Some(uid)) =
            (namespace, first("authentication.kubernetes.io/pod-name"), first("authentication.kubernetes.io/pod-uid"))
        else {
            return Err(Status::unauthenticated("the token belongs to no pod"));
        };
        let pod = Pod { namespace: namespace.to_owned(), name, uid };
        let mut reviewed = self.reviewed.lock().unwrap_or_else(PoisonError::into_inner);
        reviewed.insert(mark, (pod.clone(), Instant::now()));
        Ok(pod)
    }

    /// The resource that a report speaks for, when the pod belongs to it and to the attempt that is named.
    fn place(&self, pod: &Pod, report: &ProgressReport) -> Result<(Key, u32), Status> {
        let denied = |what: &str| Status::permission_denied(what.to_owned());
        let known = self.world.pods.get(&pod.namespace, &pod.name);
        let known = known.ok_or_else(|| Status::unavailable("the pod is not known yet"))?;
        if known.metadata.uid.as_deref() != Some(pod.uid.as_str()) {
            return Err(denied("the token belongs to an older pod of that name"));
        }
        let labels = known.metadata.labels.clone().unwrap_or_default();
        let attempt = labels.get(ATTEMPT_LABEL).and_then(|number| number.parse::<u32>().ok());
        if labels.get(COMPONENT_LABEL) != Some(&label_value(&report.component)) || attempt != Some(report.epoch) {
            return Err(denied("the pod belongs to another component or attempt"));
        }
        let newest = self.world.config_maps.group_of(&pod.namespace, &report.component);
        let newest = newest.values().filter_map(|config_map| {
            let owners = config_map.metadata.owner_references.as_deref().unwrap_or_default();
            let owner = owners.iter().find(|owner| owner.uid == report.uid)?;
            let number = config_map.metadata.labels.as_ref()?.get(ATTEMPT_LABEL)?.parse::<u32>().ok()?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.name() == owner.kind)?;
            Some((number, Key::resource(kind, &pod.namespace, &owner.name)))
        });
        let (newest, key) = newest
            .max_by_key(|(number, _)| *number)
            .ok_or_else(|| denied("the component does not belong to that resource"))?;
        Ok((key, newest))
    }
}

#[s3_proto::tonic::async_trait]
impl Progress for ProgressService {
    async fn report(&self, request: Request<ProgressReport>) -> Result<Response<ProgressReply>, Status> {
        let counted = |result: &str| metrics().operator_reports.with_label_values(&[result]).inc();
        let bearer = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
        let report = request.into_inner();
        if !self.fence.leads() {
            // The next try may reach the leader.
            return Err(Status::unavailable("this process stands by"));
        }
        let answer = async {
            let token = token.ok_or_else(|| Status::unauthenticated("send the pod's token"))?;
            if report.uid.is_empty() {
                return Err(Status::unauthenticated("name the resource"));
            }
            let pod = self.review(&token, &report.uid).await?;
            self.place(&pod, &report)
        }
        .await;
        let (key, newest) = answer.inspect_err(|status| {
            counted("refused");
            tracing::warn!(component = report.component, code = ?status.code(), reason = status.message(), "report refused");
        })?;
        if report.epoch < newest {
            counted("fenced");
            return Ok(Response::new(ProgressReply { standing: Standing::Fenced.into(), epoch: newest }));
        }
        counted("taken");
        // Replicas say the same; the first speaks.
        if report.rank == 0 {
            let (uid, component, epoch) = (report.uid.clone(), report.component.clone(), report.epoch);
            let more = self.reports.take(&uid, &component, epoch, &taken(report));
            self.queue.add_after(key, if more { Duration::ZERO } else { Duration::from_secs(1) });
        }
        Ok(Response::new(ProgressReply { standing: Standing::Current.into(), epoch: newest }))
    }
}

fn taken(report: ProgressReport) -> Report {
    let note = |checkpoint: s3_proto::v1::CheckpointReport| CheckpointNote {
        step: checkpoint.step,
        digest: checkpoint.digest,
        path: checkpoint.path.into(),
    };
    Report {
        phase: report.phase.chars().take(PHASE_LIMIT).collect(),
        done: report.done,
        total: report.total,
        figures: report.figures.into_iter().filter(|(_, value)| value.is_finite()).take(64).collect(),
        checkpoint: report.checkpoint.map(|checkpoint| checkpoint_status(&note(checkpoint))),
        guard: Some(report.guard.chars().take(MESSAGE_LIMIT).collect::<String>()).filter(|said| !said.is_empty()),
        milestones: report.milestones.into_iter().take(MILESTONES_LIMIT).collect(),
        outcome: report
            .outcome
            .map(|outcome| (outcome.digest, serde_json::from_str(&outcome.summary_json).unwrap_or(Value::Null))),
    }
}
