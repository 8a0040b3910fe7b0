//! Why something could not be fetched, and which exit that is.

use s3_artifacts::ArtifactError;
use s3_telemetry::{ExitClass, Failure, one_line};
use std::path::{Path, PathBuf};

/// Why something could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The other side has no such file.
    #[error("{what} is not there; check the address and the revision")]
    Missing {
        /// The file.
        what: String,
    },
    /// The other side refuses.
    #[error("{what} may not be read ({reason}); name a secret in tokenSecretRef that may")]
    Denied {
        /// The file.
        what: String,
        /// What was said.
        reason: String,
    },
    /// The other side does not answer, or stops in the middle.
    #[error("{what}: {reason}; what has come is kept, run again to go on")]
    Unavailable {
        /// The file.
        what: String,
        /// What happened.
        reason: String,
    },
    /// The content is another.
    #[error("{what} has sha256 {actual}, not {expected}; correct the digest or the address")]
    Digest {
        /// The file.
        what: String,
        /// Named in the configuration.
        expected: String,
        /// Fetched.
        actual: String,
    },
    /// The configuration cannot be followed.
    #[error("{0}")]
    Config(String),
    /// A file of one's own failed.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// Asked to stop.
    #[error("interrupted; run the same command again to continue")]
    Interrupted,
}

impl FetchError {
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Artifact(ArtifactError::Io { action, path: PathBuf::from(path), source })
    }

    pub(crate) fn store(what: &str, error: &object_store::Error) -> Self {
        let what = what.to_owned();
        let reason = one_line(error, std::error::Error::source(error));
        match error {
            object_store::Error::NotFound { .. } => Self::Missing { what },
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Self::Denied { what, reason }
            }
            _ => Self::Unavailable { what, reason },
        }
    }
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        let class = match &error {
            FetchError::Unavailable { .. } => ExitClass::Unavailable,
            FetchError::Artifact(inner) if inner.is_io() => ExitClass::Io,
            FetchError::Artifact(inner) if inner.is_fenced() => ExitClass::Fenced,
            FetchError::Interrupted => ExitClass::Interrupted,
            _ => ExitClass::Input,
        };
        Failure::new(class, error)
    }
}
