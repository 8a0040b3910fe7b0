//! What can go wrong with the other process.

use std::path::PathBuf;
use std::time::Duration;

/// Why FAISS gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum FaissError {
    /// The program is not installed.
    #[error("{0} is not there; it belongs beside this program: build it with `cargo build --workspace --bins`")]
    Missing(PathBuf),
    /// The program cannot be started.
    #[error("start {path}: {source}")]
    Start {
        /// The program.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The process ended while it was asked.
    #[error("FAISS' process ended ({how}) while it was to {task}{said}")]
    Ended {
        /// Its exit code or signal.
        how: String,
        /// What it was asked.
        task: &'static str,
        /// Its last words, where there were any.
        said: String,
    },
    /// It took too long and was ended.
    #[error("FAISS' process did not {task} within {limit:?} and was ended")]
    Late {
        /// What it was asked.
        task: &'static str,
        /// How long it was given.
        limit: Duration,
    },
    /// FAISS refuses: a damaged file, a factory string it does not know, too few vectors.
    #[error("FAISS cannot {task}: {reason}")]
    Refused {
        /// What it was asked.
        task: &'static str,
        /// What it said.
        reason: String,
    },
    /// An answer that does not fit the question.
    #[error("FAISS' process answered nonsense: {0}; its index is damaged")]
    Nonsense(String),
    /// The caller was asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Result of this crate.
pub type Result<T, E = FaissError> = std::result::Result<T, E>;
