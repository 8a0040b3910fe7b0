//! Publishing a folder under its digest: files first, manifest last, then one rename.

use crate::{ArtifactError, digest_file, digest_json, verify_file};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

/// What a published folder holds; written as `manifest.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Manifest {
    /// Kind of artifact (`index`, `checkpoint`, `results`).
    pub kind: String,
    /// Version of the layout.
    pub format: u32,
    /// What identifies the artifact: inputs and parameters, never times or paths.
    pub identity: serde_json::Value,
    /// Facts that do not identify it.
    pub facts: serde_json::Value,
    /// sha256 of every file, by relative path.
    pub files: BTreeMap<String, String>,
}

impl Manifest {
    /// Digest of the identity.
    pub fn digest(&self) -> Result<String, ArtifactError> {
        digest_json(&(&self.kind, self.format, &self.identity))
    }

    /// Digest of the content.
    pub fn content_digest(&self) -> Result<String, ArtifactError> {
        digest_json(&self.files)
    }
}

const MANIFEST: &str = "manifest.json";

/// Replaces a file atomically and durably, creating its folder.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ArtifactError> {
    let io = |action| move |source| ArtifactError::io(action, path, source);
    let dir = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(dir).map_err(io("create folder of"))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = std::fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    if let Err(source) = written {
        // leave no half file behind; the error that counts is the first
        let _ = std::fs::remove_file(&temporary);
        return Err(ArtifactError::io("write", path, source));
    }
    std::fs::rename(&temporary, path).map_err(io("publish"))?;
    sync_folder(dir)
}

pub(crate) fn sync_folder(dir: &Path) -> Result<(), ArtifactError> {
    std::fs::File::open(dir).and_then(|file| file.sync_all()).map_err(|e| ArtifactError::io("sync folder", dir, e))
}

/// Publishes the files of `staging` (flat or nested) as `target` and returns the manifest.
///
/// `staging` must lie on the same file system. A `target` that exists with the same identity and whole
/// files stays; a broken one is replaced.
pub fn publish_folder(
    staging: &Path,
    target: &Path,
    kind: &str,
    format: u32,
    identity: serde_json::Value,
    facts: serde_json::Value,
) -> Result<Manifest, ArtifactError> {
    let mut files = BTreeMap::new();
    collect(staging, staging, &mut files)?;
    let manifest = Manifest { kind: kind.to_owned(), format, identity, facts, files };
    write_atomic(&staging.join(MANIFEST), serde_json::to_string_pretty(&manifest)?.as_bytes())?;
    let parent = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| ArtifactError::io("create folder", parent, e))?;
    if target.exists() {
        if load_manifest(target, kind).is_ok_and(|present| present == manifest) {
            std::fs::remove_dir_all(staging).map_err(|e| ArtifactError::io("remove", staging, e))?;
            return Ok(manifest);
        }
        std::fs::remove_dir_all(target).map_err(|e| ArtifactError::io("replace", target, e))?;
    }
    std::fs::rename(staging, target).map_err(|e| ArtifactError::io("publish", target, e))?;
    sync_folder(parent)?;
    Ok(manifest)
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, String>) -> Result<(), ArtifactError> {
    let entries = std::fs::read_dir(dir).map_err(|e| ArtifactError::io("list", dir, e))?;
    for entry in entries {
        let path = entry.map_err(|e| ArtifactError::io("list", dir, e))?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if let Ok(relative) = path.strip_prefix(root)
            && relative != Path::new(MANIFEST)
        {
            std::fs::File::open(&path)
                .and_then(|file| file.sync_all())
                .map_err(|e| ArtifactError::io("sync", &path, e))?;
            files.insert(relative.to_string_lossy().into_owned(), digest_file(&path)?);
        }
    }
    Ok(())
}

/// Loads a published folder's manifest and verifies every file against it.
pub fn load_manifest(folder: &Path, kind: &str) -> Result<Manifest, ArtifactError> {
    let path = folder.join(MANIFEST);
    let bytes = std::fs::read(&path).map_err(|e| ArtifactError::io("read", &path, e))?;
    let corrupt = |reason: String| ArtifactError::Corrupt { path: path.clone(), reason };
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|e| corrupt(format!("manifest is not readable ({e})")))?;
    if manifest.kind != kind {
        return Err(corrupt(format!("this is a {:?}, expected a {kind:?}", manifest.kind)));
    }
    for (name, expected) in &manifest.files {
        if Path::new(name).components().any(|part| !matches!(part, std::path::Component::Normal(_))) {
            return Err(corrupt(format!("file name {name:?} leaves the folder")));
        }
        verify_file(&folder.join(name), expected)?;
    }
    Ok(manifest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    #[test]
    fn published_folders_are_verified() {
        let dir = tempfile::tempdir().unwrap();
        let (staging, target) = (dir.path().join("s"), dir.path().join("out/t"));
        std::fs::create_dir_all(staging.join("sub")).unwrap();
        std::fs::write(staging.join("sub/data"), b"content").unwrap();
        let manifest = publish_folder(&staging, &target, "index", 1, json!({"k1": 0.9}), json!({})).unwrap();
        assert_eq!(load_manifest(&target, "index").unwrap(), manifest);
        assert!(load_manifest(&target, "checkpoint").is_err());
        for at in 0..7 {
            let mut bytes = b"content".to_vec();
            bytes[at] ^= 4;
            std::fs::write(target.join("sub/data"), &bytes).unwrap();
            assert!(matches!(load_manifest(&target, "index"), Err(ArtifactError::Digest { .. })));
        }
        std::fs::remove_file(target.join("sub/data")).unwrap();
        assert!(load_manifest(&target, "index").unwrap_err().is_io());
    }
}
