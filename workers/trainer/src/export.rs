//! Export: the adapter in PEFT's layout, and the model with the adapter merged in as a Hugging Face folder; of a training
//! of all weights that folder alone.

use crate::checkpoint::newest;
use crate::run::Run;
use s3_artifacts::{Manifest, digest_json, publish_folder};
use s3_config::{AdapterSpec, DTypeKind, DeviceKind};
use s3_model::Decoder;
use s3_rollout::RolloutError;
use s3_telemetry::{Failure, Outcome};
use serde_json::json;
use std::path::{Path, PathBuf};

/// `s3-trainer export`: writes `export` (the adapter) and `export/merged` (the whole model), from the newest
/// checkpoint, or from the configured adapter when there is no checkpoint.
pub fn command(run: &Run) -> Result<Outcome, Failure> {
    let config = &run.config;
    run.progress.phase("export", 0);
    let mut spec = config.searcher.clone();
    // merging is arithmetic on weights; it needs neither speed nor a GPU
    spec.device = DeviceKind::Cpu;
    spec.dtype = DTypeKind::F32;
    let (mut decoder, tokenizer) = Decoder::load(&spec).map_err(RolloutError::from)?;
    let step = match newest(&config.checkpoint.dir)? {
        Some(checkpoint) => {
            if config.full {
                decoder.train_all().map_err(RolloutError::from)?;
            } else if spec.adapter.as_ref().is_none_or(AdapterSpec::is_whole) {
                decoder.attach_lora(&config.lora, config.seed).map_err(RolloutError::from)?;
            }
            let step = checkpoint.step;
            checkpoint.lay_over(&mut decoder)?;
            Some(step)
        }
        None if spec.adapter.is_some() => {
            if config.full {
                decoder.train_all().map_err(RolloutError::from)?;
            }
            None
        }
        None => {
            let dir = config.checkpoint.dir.display();
            return Err(Failure::input(format!(
                "there is no checkpoint in {dir} and no searcher.adapter; run `train` or `sft` first"
            )));
        }
    };
    let staging = staging(&config.export)?;
    let compact = config.export_dtype == DTypeKind::Bf16;
    decoder.save_trained(&staging, &tokenizer, compact).map_err(RolloutError::from)?;
    if !config.full {
        let mut whole = decoder;
        whole.merge_adapter().and_then(|()| whole.train_all()).map_err(RolloutError::from)?;
        whole.save_trained(&staging.join("merged"), &tokenizer, false).map_err(RolloutError::from)?;
    }
    let manifest: Manifest = publish_folder(&staging, &config.export, "adapter", 1, json!({ "step": step }), json!({}))
        .map_err(RolloutError::from)?;
    let digest = digest_json(&manifest.files).map_err(RolloutError::from)?;
    Ok(Outcome { digest, summary: json!({ "step": step, "files": manifest.files.len() }) })
}

fn staging(target: &Path) -> Result<PathBuf, Failure> {
    let mut staging = target.as_os_str().to_owned();
    staging.push(".staging");
    let staging = PathBuf::from(staging);
    if staging.exists() {
        std::fs::remove_dir_all(&staging).map_err(|e| Failure::io(format!("{}: {e}", staging.display())))?;
    }
    Ok(staging)
}
