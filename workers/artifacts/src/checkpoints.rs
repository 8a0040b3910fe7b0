//! A training's checkpoints as others find them.

use crate::{ArtifactError, read_head};
use std::path::{Path, PathBuf};

/// Kind of a checkpoint's manifest.
pub const CHECKPOINT_KIND: &str = "checkpoint";
/// The trained tensors of a checkpoint.
pub const POLICY_FILE: &str = "policy.safetensors";

/// Steps done and folders of the published checkpoints of a folder, newest first; they are not verified.
///
/// Where several tries share the folder, HEAD says which count; else those that lie there do.
pub fn checkpoints(dir: &Path) -> Result<Vec<(u32, PathBuf)>, ArtifactError> {
    if let Some(head) = read_head(dir)? {
        return Ok(head.published.into_iter().map(|one| (one.step, dir.join(one.name))).collect());
    }
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(ArtifactError::io("list", dir, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| ArtifactError::io("list", dir, e))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let step = name.strip_prefix("step-").and_then(|digits| digits.parse::<u32>().ok());
        found.extend(step.map(|step| (step, path.clone())));
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::{Head, Published};

    #[test]
    fn head_says_which_count_and_else_those_that_lie_there() {
        let dir = tempfile::tempdir().unwrap();
        assert!(checkpoints(&dir.path().join("none")).unwrap().is_empty());
        for name in ["step-000002", "step-000010", ".staging-000011", "other"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let steps = |dir: &Path| checkpoints(dir).unwrap().into_iter().map(|(step, _)| step).collect::<Vec<_>>();
        assert_eq!(steps(dir.path()), [10, 2]);
        let head = Head::claim(dir.path(), 1).unwrap();
        assert!(steps(dir.path()).is_empty());
        let one = Published { name: "step-000002".into(), step: 2, digest: "d".into() };
        head.publish(|list| list.push(one.clone())).unwrap();
        assert_eq!(checkpoints(dir.path()).unwrap(), [(2, dir.path().join("step-000002"))]);
    }
}
