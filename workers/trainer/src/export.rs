//! Export: the adapter in PEFT's layout, and the model with the adapter merged in as a Hugging Face folder.

use crate::checkpoint::newest;
use crate::run::Run;
use s3_artifacts::{Manifest, digest_json, publish_folder};
use s3_config::{DTypeKind, DeviceKind};
use s3_model::{Architecture, Decoder, DecoderConfig, save_tensors};
use s3_rollout::RolloutError;
use s3_telemetry::{Failure, Outcome};
use serde_json::{Value, json};
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
            if spec.adapter.is_none() {
                decoder.attach_lora(&config.lora, config.seed).map_err(RolloutError::from)?;
            }
            let step = checkpoint.step;
            checkpoint.lay_over(&mut decoder)?;
            Some(step)
        }
        None if spec.adapter.is_some() => None,
        None => {
            let dir = config.checkpoint.dir.display();
            return Err(Failure::input(format!(
                "there is no checkpoint in {dir} and no searcher.adapter; run `train` or `sft` first"
            )));
        }
    };
    let staging = staging(&config.export)?;
    decoder.save_adapter(&staging, config.export_dtype == DTypeKind::Bf16).map_err(RolloutError::from)?;
    let merged = staging.join("merged");
    std::fs::create_dir_all(&merged).map_err(|e| Failure::io(format!("{}: {e}", merged.display())))?;
    let shape = decoder.config().clone();
    let mut whole = decoder;
    whole.merge_adapter().and_then(|()| whole.train_all()).map_err(RolloutError::from)?;
    let mut tensors = whole.trained_tensors();
    tensors.retain(|name, _| !name.starts_with("value_head."));
    save_tensors(&merged.join("model.safetensors"), &tensors).map_err(RolloutError::from)?;
    write_json(&merged.join("config.json"), &hugging_face(&shape))?;
    tokenizer.save(&merged).map_err(RolloutError::from)?;
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

fn write_json(path: &Path, value: &Value) -> Result<(), Failure> {
    std::fs::write(path, format!("{value:#}\n")).map_err(|e| Failure::io(format!("{}: {e}", path.display())))
}

/// `config.json` of a decoder, as Hugging Face writes it.
fn hugging_face(config: &DecoderConfig) -> Value {
    let (class, kind) = match config.architecture {
        Architecture::Llama => ("LlamaForCausalLM", "llama"),
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    json!({
        "architectures": [class],
        "model_type": kind,
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    })
}
