//! Bugs that other operators had, each as small as it was. `world.rs` asks at the place where each belongs.

/// A bug, and where it was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// A stale cache and generated names: the same attempt is started twice (kuberay#715, grove#122).
    StartsTwice,
    /// A suspended job is written again in every round (kuberay#4416).
    WritesForever,
    /// A job that failed for good keeps its pods, and with them its quota (kueue#13413).
    FailedKeepsPods,
    /// An error of a deletion is dropped, later rounds return early (trainer, `reconcileDeadline`).
    DeleteErrorDropped,
    /// A new attempt takes the name of the last one (rabbitmq-operator#648: deletes what has the name now).
    NameReused,
    /// Of two writes the one that finds the other comes last, and a crash lies between (nifikop#49).
    JobBeforeRecord,
    /// What has to be deleted is known to the process that saw the change only (cassandra-operator#398).
    DeletesOnlyOnEvents,
    /// The terminal state is written before it is decided whether to try again (langfuse#16491).
    TerminalBeforeRetry,
    /// Starts at once although it is suspended (trustyai#362).
    StartsSuspended,
    /// Pods of a lost node are waited for (trainer#2072).
    LostNodeHangs,
    /// What can never work is tried again (argo, retry on every error).
    RetriesWrongInput,
    /// Tries again without a pause (Stackable's constant requeue, controller-rs).
    NoPause,
    /// Being suspended counts as a failure (kueue#1844).
    SuspensionCounts,
    /// Failures are counted in memory, and forgotten by a restart (in-memory expectations).
    CountForgotten,
    /// A pod that is gone is taken for one that ended well.
    GoneIsDone,
    /// A Job that is over and whose pods are not in the cache yet is taken for lost (KEP-5647).
    StalePodsAreLost,
    /// A Job is over before its pod's last words are seen: the outcome counts as missing.
    LastWordsMissed,
    /// The record of an attempt is written again.
    RecordOverwritten,
    /// The next attempt does not wait for pods of the last one (two trainers on one checkpoint).
    StartsBesideOldPods,
    /// An outcome of other settings is taken for the one that is asked for (no observedGeneration).
    OutcomeOfOtherSettings,
    /// Time in the queue counts against the deadline (KEP-2899).
    DeadlineCountsQueue,
    /// A state that is neither terminal nor acted on (kuberay `ValidationFailed`).
    NeitherTerminalNorActed,
    /// Suspending wins over an outcome that stands already.
    OutcomeLostBySuspension,
    /// Deletes what works before it is written down why (trainer: JobSet first, status after).
    DeletesBeforeRecord,
    /// A deposed leader decides on what it saw before, without preconditions.
    DeposedLeaderWrites,
}

impl Bug {
    pub const ALL: [Self; 25] = [
        Self::StartsTwice,
        Self::WritesForever,
        Self::FailedKeepsPods,
        Self::DeleteErrorDropped,
        Self::NameReused,
        Self::JobBeforeRecord,
        Self::DeletesOnlyOnEvents,
        Self::TerminalBeforeRetry,
        Self::StartsSuspended,
        Self::LostNodeHangs,
        Self::RetriesWrongInput,
        Self::NoPause,
        Self::SuspensionCounts,
        Self::CountForgotten,
        Self::GoneIsDone,
        Self::StalePodsAreLost,
        Self::LastWordsMissed,
        Self::RecordOverwritten,
        Self::StartsBesideOldPods,
        Self::OutcomeOfOtherSettings,
        Self::DeadlineCountsQueue,
        Self::NeitherTerminalNorActed,
        Self::OutcomeLostBySuspension,
        Self::DeletesBeforeRecord,
        Self::DeposedLeaderWrites,
    ];
}
