//! Why episodes could not be played, and which exit that is.

use s3_artifacts::ArtifactError;
use s3_collective::CollectiveError;
use s3_model::ModelError;
use s3_proto::CallError;
use s3_search::{CodecError, SearchError};
use s3_telemetry::{ExitClass, Failure};

/// Why episodes could not be played or scored.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// Another worker did not answer or refused.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Another worker answered something else than was asked.
    #[error("{service}: {reason}")]
    Reply {
        /// Which worker.
        service: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Every sample of a unit of work failed: this is no longer a few masked samples.
    #[error("every sample failed ({reason}); nothing was recorded, run again once the service answers")]
    AllFailed {
        /// The first failure.
        reason: String,
        /// Whether the service was out of reach, as opposed to refusing.
        outage: bool,
    },
    /// Something that must be complete is not, because a service was out of reach for a part of it.
    #[error("{reason}; what was had is kept, run again once the service answers")]
    Incomplete {
        /// What is missing.
        reason: String,
    },
    /// Training has left the numbers.
    #[error("{what} is not a finite number; lower the learning rate, or train in F32")]
    NotANumber {
        /// What.
        what: &'static str,
    },
    /// The gateway makes no more calls for this caller.
    #[error("{reason}; what was had is kept, run again with a larger budget to go on")]
    Budget {
        /// What is spent; begins with `BudgetExhausted`.
        reason: String,
    },
    /// A thread of this process could not be started, or died.
    #[error("a thread: {reason}")]
    Thread {
        /// What happened.
        reason: String,
    },
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The search loop refused its input.
    #[error(transparent)]
    Search(#[from] SearchError),
    /// The tokenizer refused.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A file failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The replicas could not go on together.
    #[error(transparent)]
    Replicas(#[from] CollectiveError),
    /// Asked to stop.
    #[error("interrupted; run the same command again to continue")]
    Interrupted,
}

impl RolloutError {
    /// Whether a service was out of reach, so that the samples concerned are masked.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Call(error) if error.is_outage())
    }
}

impl From<RolloutError> for Failure {
    fn from(error: RolloutError) -> Self {
        let class = match &error {
            RolloutError::Call(call) if !call.is_outage() => ExitClass::Input,
            RolloutError::Call(_) | RolloutError::AllFailed { outage: true, .. } | RolloutError::Incomplete { .. } => {
                ExitClass::Unavailable
            }
            RolloutError::Artifact(artifact) if artifact.is_io() => ExitClass::Io,
            RolloutError::Artifact(artifact) if artifact.is_fenced() => ExitClass::Fenced,
            RolloutError::Thread { .. } => ExitClass::Internal,
            RolloutError::NotANumber { .. } => ExitClass::NotANumber,
            RolloutError::Model(model) => model_class(model),
            RolloutError::Replicas(error) => replica_class(error),
            RolloutError::Interrupted => ExitClass::Interrupted,
            RolloutError::AllFailed { .. }
            | RolloutError::Budget { .. }
            | RolloutError::Reply { .. }
            | RolloutError::Search(_)
            | RolloutError::Codec(_)
            | RolloutError::Artifact(_) => ExitClass::Input,
        };
        Failure::new(class, error)
    }
}

/// The exit class of replicas that cannot go on: the one that a replica left with, so that all say the same.
fn replica_class(error: &CollectiveError) -> ExitClass {
    match error {
        CollectiveError::Left { code, .. } => ExitClass::from_code(i32::from(*code)).unwrap_or(ExitClass::PeerLost),
        CollectiveError::Lost { .. } | CollectiveError::Rendezvous { .. } => ExitClass::PeerLost,
        CollectiveError::OutOfStep { .. } => ExitClass::Internal,
        CollectiveError::Input(_) => ExitClass::Input,
        CollectiveError::Interrupted => ExitClass::Interrupted,
    }
}

/// The exit class of a model error.
pub(crate) fn model_class(error: &ModelError) -> ExitClass {
    match error {
        ModelError::Write { .. } => ExitClass::Io,
        ModelError::Replicas(error) => replica_class(error),
        ModelError::Nccl(_) => ExitClass::PeerLost,
        ModelError::Tensor(_) => ExitClass::Internal,
        _ => ExitClass::Input,
    }
}
