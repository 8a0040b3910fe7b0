//! The one error type of this crate. Every message says what to do.

use std::path::{Path, PathBuf};

/// Why a model could not be loaded, run or saved.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file is missing or unreadable.
    #[error("cannot read {path}: {source}; check the path or fetch the model with `make data`")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The file is not the one that the configuration names.
    #[error(
        "{path} has sha256 {found} but the configuration names {expected}; fetch the file again or correct the digest"
    )]
    Digest {
        /// The file.
        path: PathBuf,
        /// Digest in the configuration.
        expected: String,
        /// Digest of the file.
        found: String,
    },
    /// A known container with an architecture that is not implemented.
    #[error("architecture {found:?} of {path} is not supported; supported are: {supported}")]
    Architecture {
        /// The file.
        path: PathBuf,
        /// The architecture named there.
        found: String,
        /// What would be accepted.
        supported: &'static str,
    },
    /// The file is damaged or lacks something.
    #[error("{path} is not a usable model: {reason}")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A configuration or argument that cannot work.
    #[error("{0}")]
    Invalid(String),
    /// Text could not be encoded, decoded or rendered.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// Replicas could not do something together.
    #[error(transparent)]
    Replicas(s3_collective::CollectiveError),
    /// GPUs could not reach each other.
    #[error("NCCL: {0}; run with NCCL_DEBUG=INFO for its own words")]
    Nccl(String),
    /// A tensor operation failed (shapes, memory, device).
    #[error("tensor operation: {}", first_line(.0))]
    Tensor(#[from] candle_core::Error),
}

/// An error's own line: with `RUST_BACKTRACE` set, candle's errors go on for a screen.
fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Result of this crate.
pub type Result<T, E = ModelError> = std::result::Result<T, E>;

impl ModelError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Read { path: path.to_owned(), source }
    }
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Write { path: path.to_owned(), source }
    }
    pub(crate) fn format(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::Format { path: path.to_owned(), reason: first_line(&reason) }
    }
    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}
