//! One try of a job component: what is recorded of it, and what the cluster shows.

use s3_crds::{CheckpointStatus, FailureClass};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Why an attempt was stopped that had not ended by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopCause {
    /// `spec.suspend`.
    Suspended,
    /// `spec.activeDeadlineSeconds`.
    Deadline,
    /// `spec.gpuSecondBudget`.
    Budget,
    /// The settings that it worked with are no longer asked for.
    Superseded,
    /// Its queue wants the quota back, or never granted it.
    Queue,
    /// A guard has paused it.
    Guard,
}

/// What became of an attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It reached its outcome.
    #[serde(rename_all = "camelCase")]
    Done {
        /// Digest of the outcome.
        digest: String,
        /// The worker's bounded summary.
        summary: Value,
    },
    /// It failed.
    #[serde(rename_all = "camelCase")]
    Failed {
        /// How.
        class: FailureClass,
        /// One line.
        message: String,
    },
    /// The operator stopped it; the worker saves before it leaves.
    #[serde(rename_all = "camelCase")]
    Stopped {
        /// Why.
        cause: StopCause,
    },
}

/// The record of an ended attempt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// What became of it.
    pub verdict: Verdict,
    /// When that was seen, seconds since 1970.
    pub at: i64,
    /// Seconds that it held its pods.
    pub seconds: u64,
    /// The newest checkpoint that is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointStatus>,
    /// Sha256 of the adapters that it has kept for evaluations, by step.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub milestones: BTreeMap<u32, String>,
    /// What guards said of the policy at its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guard: Option<String>,
}

impl Record {
    /// Of an attempt that has left nothing.
    pub fn new(verdict: Verdict, at: i64, seconds: u64) -> Self {
        Self { verdict, at, seconds, checkpoint: None, milestones: BTreeMap::new(), guard: None }
    }
}

/// How an attempt ended, as the cluster shows it.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// All replicas are done.
    Done {
        /// Digest of the outcome.
        digest: String,
        /// The worker's summary.
        summary: Value,
    },
    /// A guard has paused it.
    Paused,
    /// One replica failed, and with it the attempt.
    Failed {
        /// How.
        class: FailureClass,
        /// One line.
        message: String,
    },
}

/// What the cluster shows of an attempt now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    /// Jobs of it that are there.
    pub jobs: u32,
    /// Jobs of it that are not over and whose pods are not there (yet).
    pub unmade: u32,
    /// Pods that may still work: not terminated, and not on a node that is lost.
    pub holding: u32,
    /// A replica works.
    pub running: bool,
    /// Why no node takes a pod.
    pub unschedulable: Option<String>,
    /// Why a container does not start.
    pub waiting: Option<String>,
    /// A queue has not admitted it yet.
    pub queued: Option<String>,
    /// A queue that had admitted its Jobs has suspended them again.
    pub evicted: bool,
    /// Since when its first pod holds what it asked for, seconds since 1970.
    pub since: Option<i64>,
    /// How it ended.
    pub end: Option<End>,
    /// The newest checkpoint that it reported.
    pub checkpoint: Option<CheckpointStatus>,
    /// Sha256 of the adapters that it says it has kept for evaluations, by step.
    pub milestones: BTreeMap<u32, String>,
    /// What guards say of the policy.
    pub guard: Option<String>,
    /// What is being done, as the worker reports it.
    pub phase: String,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempted {
    /// From 1; the epoch that fences older ones.
    pub number: u32,
    /// Of the component's own settings when it started, see [`crate::own_print`].
    pub print: String,
    /// When it was begun, seconds since 1970.
    pub started: i64,
    /// GPUs that all its pods together asked for.
    pub gpus: u32,
    /// The attempt with which the work that it goes on with began anew; 0 when none did.
    pub anew: u32,
    /// What became of it.
    pub record: Option<Record>,
    /// What the cluster shows.
    pub live: Live,
}

impl Attempted {
    /// Whether it may still do something.
    pub fn open(&self) -> bool {
        self.record.is_none()
    }

    /// Seconds that it held pods, so far.
    pub fn seconds(&self, now: i64) -> u64 {
        match (&self.record, self.live.since) {
            (Some(record), _) => record.seconds,
            (None, Some(since)) => u64::try_from(now - since).unwrap_or(0),
            (None, None) => 0,
        }
    }

    /// The record that ends it with this verdict.
    pub(crate) fn ended(&self, verdict: Verdict, now: i64) -> Record {
        let (checkpoint, milestones) = (self.live.checkpoint.clone(), self.live.milestones.clone());
        let guard = self.live.guard.clone();
        Record { checkpoint, milestones, guard, ..Record::new(verdict, now, self.seconds(now)) }
    }

    /// What guards say of the policy of the newest of several attempts.
    pub fn guard<'a>(attempts: impl Iterator<Item = &'a Self>) -> Option<&'a str> {
        let newest = attempts.max_by_key(|attempt| attempt.number)?;
        match &newest.record {
            Some(record) => record.guard.as_deref(),
            None => newest.live.guard.as_deref(),
        }
    }

    /// The newest checkpoint that is known of several attempts: what began anew counts before what was before.
    pub fn newest_checkpoint<'a>(attempts: impl Iterator<Item = &'a Self>) -> Option<&'a CheckpointStatus> {
        let known = attempts.filter_map(|attempt| Some((attempt.anew, attempt.checkpoint()?)));
        known.max_by_key(|(anew, checkpoint)| (*anew, checkpoint.step)).map(|(_, checkpoint)| checkpoint)
    }

    /// Sha256 of the adapters that several attempts have kept for evaluations, by step: only what began anew counts.
    pub fn milestones<'a>(attempts: impl Iterator<Item = &'a Self> + Clone) -> BTreeMap<u32, String> {
        let anew = attempts.clone().map(|attempt| attempt.anew).max().unwrap_or(0);
        let known = attempts.filter(|attempt| attempt.anew == anew).flat_map(|attempt| {
            let recorded = attempt.record.iter().flat_map(|record| &record.milestones);
            recorded.chain(&attempt.live.milestones)
        });
        known.map(|(step, sha256)| (*step, sha256.clone())).collect()
    }

    /// The newest checkpoint that is known of it.
    pub fn checkpoint(&self) -> Option<&CheckpointStatus> {
        let recorded = self.record.as_ref().and_then(|record| record.checkpoint.as_ref());
        [self.live.checkpoint.as_ref(), recorded].into_iter().flatten().max_by_key(|checkpoint| checkpoint.step)
    }
}
