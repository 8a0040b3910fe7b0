//! Why a set cannot be read.

use std::path::PathBuf;

/// Why a set cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum QuestionError {
    /// The file cannot be read.
    #[error("read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A row is not what it should be.
    #[error("{path} line {number}: {reason}")]
    Row {
        /// The file.
        path: PathBuf,
        /// From 1.
        number: usize,
        /// What is wrong.
        reason: String,
    },
    /// No row belongs to the set.
    #[error("{path}: no question here belongs to this set ({passed_over} belong to others); look at set and split")]
    Nothing {
        /// The file.
        path: PathBuf,
        /// Rows of other sets and splits.
        passed_over: usize,
    },
    /// No such set.
    #[error("no public set is called {0}")]
    Set(String),
}
