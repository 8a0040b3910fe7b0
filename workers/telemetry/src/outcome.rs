//! The outcome that a worker leaves behind: read by `s3 run` and by the operator.

use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::Path;

/// Written once, at the successful end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// Digest of what was made (index, adapter, results); enters the run digest.
    pub digest: String,
    /// Bounded summary for status and tables.
    pub summary: serde_json::Value,
}

/// Writes the outcome atomically, and notes it for the last words.
pub fn write_outcome(path: &Path, outcome: &Outcome) -> std::io::Result<()> {
    crate::last_words().outcome(outcome);
    write_atomically(path, serde_json::to_string_pretty(outcome)?.as_bytes())
}

/// Replaces a small file by rename, so that a reader sees the old or the new one.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
