//! Hugging Face folders: `config.json` with `model.safetensors`, whole or sharded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::{
    config::{Architecture, DecoderConfig, SUPPORTED},
    error::{ModelError, Result},
};

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(ModelError::read(path))?;
    serde_json::from_str(&text).map_err(|e| ModelError::format(path, e))
}

/// The decoder's shape from `config.json` of `folder`.
pub fn config(folder: &Path) -> Result<DecoderConfig> {
    let path = folder.join("config.json");
    let json = read_json(&path)?;
    let name = json["architectures"][0].as_str().unwrap_or("(none)");
    let architecture = match name {
        "LlamaForCausalLM" => Architecture::Llama,
        "Qwen2ForCausalLM" => Architecture::Qwen2,
        "Qwen3ForCausalLM" => Architecture::Qwen3,
        other => {
            return Err(ModelError::Architecture { path, found: other.to_owned(), supported: SUPPORTED });
        }
    };
    let number = |key: &str| json[key].as_u64().map(|n| n as usize);
    let need =
        |key: &str| number(key).ok_or_else(|| ModelError::format(&path, format!("{key} is missing or no number")));
    let rope = ["rope_scaling", "rope_parameters"].map(|key| &json[key]);
    for scaling in rope {
        let kind = scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str()).unwrap_or("default");
        if kind != "default" {
            return Err(ModelError::format(
                &path,
                format!("rotary scaling {kind:?} is not supported; use a model without it"),
            ));
        }
    }
    if json["use_sliding_window"].as_bool() == Some(true) {
        return Err(ModelError::format(&path, "sliding-window attention is not supported; use a model without it"));
    }
    let activation = json["hidden_act"].as_str().unwrap_or("silu");
    if activation != "silu" {
        return Err(ModelError::format(&path, format!("activation {activation:?} is not supported, only silu")));
    }
    let (hidden, heads) = (need("hidden_size")?, need("num_attention_heads")?);
    let config = DecoderConfig {
        architecture,
        vocab: need("vocab_size")?,
        hidden,
        ffn: need("intermediate_size")?,
        layers: need("num_hidden_layers")?,
        heads,
        kv_heads: number("num_key_value_heads").unwrap_or(heads),
        head_dim: number("head_dim").unwrap_or(hidden / heads.max(1)),
        max_positions: need("max_position_embeddings")?,
        rope_theta: json["rope_theta"].as_f64().or_else(|| rope[1]["rope_theta"].as_f64()).unwrap_or(10_000.0),
        norm_eps: json["rms_norm_eps"].as_f64().unwrap_or(1e-6),
        qkv_bias: architecture == Architecture::Qwen2 || json["attention_bias"].as_bool().unwrap_or(false),
        tied: json["tie_word_embeddings"].as_bool().unwrap_or(false),
    };
    if architecture != Architecture::Qwen2 && config.qkv_bias {
        return Err(ModelError::format(&path, "attention biases (of o_proj too) are not supported in this family"));
    }
    config.check()?;
    Ok(config)
}

/// The weight files of `folder`, in name order.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let whole = folder.join("model.safetensors");
    if whole.exists() {
        return Ok(vec![whole]);
    }
    let index = folder.join("model.safetensors.index.json");
    if !index.exists() {
        return Err(ModelError::format(folder, "neither model.safetensors nor model.safetensors.index.json is there"));
    }
    let json = read_json(&index)?;
    let map = json["weight_map"].as_object().ok_or_else(|| ModelError::format(&index, "weight_map is missing"))?;
    let names: BTreeSet<&str> = map.values().filter_map(Value::as_str).collect();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// All tensors of `files` in `dtype` on `device`.
pub fn tensors(files: &[PathBuf], device: &Device, dtype: DType) -> Result<BTreeMap<String, Tensor>> {
    let mut out = BTreeMap::new();
    for path in files {
        let bytes = std::fs::read(path).map_err(ModelError::read(path))?;
        let loaded = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
            .map_err(|e| ModelError::format(path, format!("not safetensors or damaged: {e}")))?;
        let loaded: BTreeMap<String, Tensor> = loaded.into_iter().collect();
        for (name, tensor) in loaded {
            out.insert(name, tensor.to_dtype(dtype)?.to_device(device)?);
        }
    }
    Ok(out)
}
