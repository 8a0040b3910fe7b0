//! Digests, atomic publishing and resume journals: everything that must survive `kill -9`.

mod checkpoints;
mod digest;
mod head;
mod journal;
mod publish;

pub use checkpoints::{CHECKPOINT_KIND, POLICY_FILE, checkpoints};
pub use digest::{DigestWriter, canonical_json, digest_bytes, digest_file, digest_json, verify_file};
pub use head::{Head, HeadRecord, Published, read_head};
pub use journal::Journal;
pub(crate) use publish::sync_folder;
pub use publish::{Manifest, load_manifest, publish_folder, write_atomic};

use std::path::PathBuf;

/// Why an artifact was refused or could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// Reading or writing failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file's content is not the expected one.
    #[error("{path}: sha256 is {actual}, expected {expected}; fetch the file again or correct the digest")]
    Digest {
        /// The file.
        path: PathBuf,
        /// Named in the configuration or manifest.
        expected: String,
        /// Found.
        actual: String,
    },
    /// A file's form is broken.
    #[error("{path}: {reason}; remove it to start this part again")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Another process may publish here now.
    #[error("{path}: attempt {epoch} is over, attempt {by} goes on; nothing of this process counts any more")]
    Fenced {
        /// The folder.
        path: PathBuf,
        /// The try of this process.
        epoch: u32,
        /// The try that holds the folder.
        by: u32,
    },
    /// A value cannot be written as JSON.
    #[error("value cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl ArtifactError {
    pub(crate) fn io(action: &'static str, path: &std::path::Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// Whether another process has taken over.
    pub fn is_fenced(&self) -> bool {
        matches!(self, Self::Fenced { .. })
    }

    /// Whether the disk failed, as opposed to the content being wrong.
    pub fn is_io(&self) -> bool {
        matches!(self, Self::Io { .. })
    }
}
