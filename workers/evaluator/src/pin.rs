//! Searchers that are the newest of a training which may go on: each is copied once, and stays.

use crate::error::EvalError;
use s3_artifacts::{ArtifactError, CHECKPOINT_KIND, POLICY_FILE, checkpoints, load_manifest, publish_folder};
use s3_config::EvaluatorConfig;
use s3_model::{adapter_of_trained, load_tensors, save_tensors, whole_of_trained};
use s3_rollout::RolloutError;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const KIND: &str = "adapter";
const FORMAT: u32 = 1;
const TENSORS: &str = "adapter_model.safetensors";
const SHAPE: &str = "adapter_config.json";
/// Of a training of all weights.
const WHOLE: [&str; 2] = ["model.safetensors", "config.json"];
/// Looks before it counts as an outage that a checkpoint went while it was being read: a training goes on meanwhile.
const LOOKS: u32 = 10;

/// The configuration with each newest checkpoint replaced by the copy that this evaluation has taken.
pub fn pinned(config: &EvaluatorConfig) -> Result<EvaluatorConfig, EvalError> {
    let mut config = config.clone();
    let mut taken: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for arm in &mut config.arms {
        let Some(adapter) = arm.method.searcher_mut().and_then(|model| model.adapter.as_mut()) else { continue };
        if !adapter.latest {
            continue;
        }
        // By order, not by path: arms of one job share one copy, and a training that begins anew elsewhere changes
        // nothing of what was taken.
        let number = taken.len();
        let copy = match taken.get(&adapter.path) {
            Some(copy) => copy.clone(),
            None => config.runtime.state_dir.join("pinned").join(number.to_string()),
        };
        if !copy.exists() {
            take(&adapter.path, &copy)?;
        }
        let manifest = load_manifest(&copy, KIND)?;
        taken.insert(std::mem::replace(&mut adapter.path, copy), adapter.path.clone());
        adapter.sha256 = manifest.files.get(TENSORS).or(manifest.files.get(WHOLE[0])).cloned();
        adapter.latest = false;
        tracing::info!(arm = arm.name, checkpoint = %manifest.identity, sha256 = adapter.sha256, "searcher pinned");
    }
    Ok(config)
}

/// Copies the newest whole checkpoint's searcher.
fn take(dir: &Path, copy: &Path) -> Result<(), EvalError> {
    let mut last = None;
    for _ in 0..LOOKS {
        let all = checkpoints(dir)?;
        if all.is_empty() {
            return Err(EvalError::NoCheckpoint { path: dir.to_owned() });
        }
        // A damaged one is passed over; one that went while it was read is looked for again.
        for (step, folder) in all {
            match copy_of(step, &folder, copy) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, step, "checkpoint is passed over");
                    last = Some(error);
                }
            }
        }
    }
    Err(last.unwrap_or(EvalError::NoCheckpoint { path: dir.to_owned() }))
}

fn copy_of(step: u32, folder: &Path, copy: &Path) -> Result<(), EvalError> {
    let manifest = load_manifest(folder, CHECKPOINT_KIND)?;
    let mut staging = copy.as_os_str().to_owned();
    staging.push(".staging");
    let staging = PathBuf::from(staging);
    let io = |action| move |source| ArtifactError::Io { action, path: folder.to_owned(), source };
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(io("clear the copy of"))?;
    }
    std::fs::create_dir_all(&staging).map_err(io("copy"))?;
    let whole = manifest.files.contains_key(WHOLE[1]);
    let (tensors, shape) = if whole { (WHOLE[0], WHOLE[1]) } else { (TENSORS, SHAPE) };
    if !manifest.files.contains_key(shape) {
        let reason = "it does not say the shape of its adapter: an older version made it".to_owned();
        return Err(ArtifactError::Corrupt { path: folder.to_owned(), reason }.into());
    }
    std::fs::copy(folder.join(shape), staging.join(shape)).map_err(io("copy"))?;
    let trained = load_tensors(&folder.join(POLICY_FILE)).map_err(RolloutError::from)?;
    let own = if whole { whole_of_trained(trained) } else { adapter_of_trained(trained) };
    save_tensors(&staging.join(tensors), &own).map_err(RolloutError::from)?;
    let identity = json!({ "checkpoint": manifest.content_digest()?, "step": step });
    publish_folder(&staging, copy, KIND, FORMAT, identity, json!({}))?;
    Ok(())
}
