//! Why an evaluation cannot be run.

use s3_artifacts::ArtifactError;
use s3_questions::QuestionError;
use s3_rollout::RolloutError;
use s3_telemetry::{ExitClass, Failure};
use std::path::PathBuf;

/// Why an evaluation cannot be run, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(String),
    /// A question file or the corpus cannot be read as what it should be.
    #[error("{path} line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A question file cannot be read as what it should be.
    #[error(transparent)]
    Questions(#[from] QuestionError),
    /// The question set was chosen by whether the baseline is right.
    #[error(
        "{path}: {mark} says that these questions were filtered by whether the baseline answers them; where the baseline is always wrong every gain beyond it is free, so this set is refused: evaluate on the unfiltered questions"
    )]
    Filtered {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        mark: String,
    },
    /// The state folder belongs to another evaluation.
    #[error(
        "{path} was made for another evaluation ({what} changed); give this one its own runtime.stateDir, or remove the folder to start again"
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
    /// Another process works in the state folder.
    #[error("{path} is held by another process: this evaluation is already running; wait for it or stop it")]
    Busy {
        /// The lock.
        path: PathBuf,
    },
    /// A service stayed out of reach.
    #[error("arm {arm}, questions {first}-{last}: {reason}; what is done is kept, run again to continue")]
    Outage {
        /// The arm.
        arm: String,
        /// First question of the chunk, from 1.
        first: usize,
        /// Last question of the chunk.
        last: usize,
        /// The failure.
        reason: String,
    },
    /// The newest searcher of a training is asked for before there is one.
    #[error("{path}: no checkpoint is published there yet; run again once the training has one")]
    NoCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// The page could not be made.
    #[error("report page: {0}")]
    Page(#[from] minijinja::Error),
    /// A table could not be written.
    #[error("export: {0}")]
    Export(String),
    /// A file failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Playing or scoring failed.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
}

impl EvalError {
    /// Reading a file failed.
    pub(crate) fn read(path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Artifact(ArtifactError::Io { action: "read", path: path.to_owned(), source })
    }
}

impl From<EvalError> for Failure {
    fn from(error: EvalError) -> Self {
        let class = match error {
            EvalError::Rollout(error) => return error.into(),
            // an input that is not there is an input error: starting again changes nothing
            EvalError::Artifact(ArtifactError::Io { ref source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                ExitClass::Input
            }
            EvalError::Questions(QuestionError::Io { ref source, .. })
                if source.kind() != std::io::ErrorKind::NotFound =>
            {
                ExitClass::Io
            }
            EvalError::Artifact(ref error) if error.is_io() => ExitClass::Io,
            EvalError::Artifact(ref error) if error.is_fenced() => ExitClass::Fenced,
            EvalError::Outage { .. } | EvalError::Busy { .. } | EvalError::NoCheckpoint { .. } => {
                ExitClass::Unavailable
            }
            EvalError::Page(_) | EvalError::Export(_) => ExitClass::Internal,
            EvalError::Config(_)
            | EvalError::Line { .. }
            | EvalError::Questions(_)
            | EvalError::Filtered { .. }
            | EvalError::Changed { .. }
            | EvalError::Artifact(_) => ExitClass::Input,
        };
        Failure::new(class, error)
    }
}
