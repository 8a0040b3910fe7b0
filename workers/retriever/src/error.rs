//! The one error type of this crate. Every message is one line that says what to do.

use s3_faiss::FaissError;
use s3_generator_gateway::CacheError;
use s3_telemetry::{ExitClass, Failure};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Why an index could not be built or served.
#[derive(Debug, thiserror::Error)]
pub enum RetrieverError {
    /// A question file cannot be read.
    #[error(transparent)]
    Questions(#[from] s3_questions::QuestionError),
    /// A file is missing, unreadable or cannot be written.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An input file named in the configuration is not there.
    #[error("{what} {path} is not there; correct the path or fetch the data with `make data`")]
    Missing {
        /// Which input.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// A line of a jsonl file cannot be used.
    #[error("{path} line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Content that is not what its name or digest promises.
    #[error("{path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Configuration or request that cannot work.
    #[error("{0}")]
    Invalid(String),
    /// A server address that cannot be bound.
    #[error("{what} address {address}: {source}; stop the other process or choose a free port")]
    Bind {
        /// Which server.
        what: &'static str,
        /// The configured address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Another build holds the output folder.
    #[error("another build is writing to {0}; wait for it or choose another output")]
    Busy(PathBuf),
    /// Another process is this worker of the build.
    #[error("another process is worker {worker} of the build in {folder} already; end it first")]
    Twin {
        /// The worker's number.
        worker: usize,
        /// Where both would tell of themselves.
        folder: PathBuf,
    },
    /// A worker whose shards are waited for is gone.
    #[error(
        "worker {worker} ({member}) of this build was not heard of for {seconds} s; look at its log, and start the \
         build again: it goes on from the finished shards"
    )]
    Lost {
        /// The worker's number.
        worker: usize,
        /// Its name among the members.
        member: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Asked to stop; everything finished is on disk.
    #[error("interrupted")]
    Interrupted,
    /// The served index does not answer as it was built.
    #[error("self-query failed: {0}; build the index again")]
    SelfQuery(String),
    /// FAISS' process had no answer.
    #[error("{path}: {source}")]
    Faiss {
        /// The index file.
        path: PathBuf,
        /// What happened.
        source: FaissError,
    },
    /// Encoder trouble.
    #[error(transparent)]
    Model(#[from] s3_model::ModelError),
    /// Digests and publishing.
    #[error(transparent)]
    Artifact(#[from] s3_artifacts::ArtifactError),
    /// Certificates that cannot be used.
    #[error("tls: {0}")]
    Tls(#[from] s3_proto::TlsError),
    /// The kept results of a web search cannot be used.
    #[error("results: {0}")]
    Results(#[from] CacheError),
    /// A defect here: a thread died or a server ended by itself.
    #[error("internal: {0}")]
    Internal(String),
}

/// Result of this crate.
pub type Result<T, E = RetrieverError> = std::result::Result<T, E>;

impl RetrieverError {
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| Self::Io { action, path: path.to_owned(), source }
    }

    /// Opening an input: a missing file is the caller's mistake, anything else the disk's.
    pub(crate) fn open<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Self + 'a {
        move |source| match source.kind() {
            std::io::ErrorKind::NotFound => Self::Missing { what, path: path.to_owned() },
            _ => Self::Io { action: "open", path: path.to_owned(), source },
        }
    }

    pub(crate) fn content(path: &Path, reason: impl Into<String>) -> Self {
        Self::Content { path: path.to_owned(), reason: reason.into() }
    }
}

impl From<RetrieverError> for Failure {
    fn from(error: RetrieverError) -> Self {
        let class = match &error {
            RetrieverError::Interrupted | RetrieverError::Faiss { source: FaissError::Interrupted, .. } => {
                return Self::interrupted();
            }
            RetrieverError::Io { .. } | RetrieverError::Results(CacheError::Io { .. }) => ExitClass::Io,
            RetrieverError::Artifact(inner) if inner.is_io() => ExitClass::Io,
            RetrieverError::Artifact(inner) if inner.is_fenced() => ExitClass::Fenced,
            RetrieverError::Lost { .. } => ExitClass::PeerLost,
            RetrieverError::Busy(_)
            | RetrieverError::Twin { .. }
            | RetrieverError::Results(CacheError::InUse { .. })
            | RetrieverError::Faiss { source: FaissError::Ended { .. } | FaissError::Late { .. }, .. } => {
                ExitClass::Unavailable
            }
            RetrieverError::Internal(_) | RetrieverError::Model(s3_model::ModelError::Tensor(_)) => ExitClass::Internal,
            _ => ExitClass::Input,
        };
        Self::new(class, error)
    }
}
