//! Which model to load and how.

use crate::DeviceKind;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Arithmetic type of the weights in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DTypeKind {
    /// 32-bit floats: the only one for which Bitwise mode is guaranteed.
    #[default]
    F32,
    /// bfloat16 weights with f32 reductions, for GPUs.
    Bf16,
}

/// A model on disk: a GGUF file, or a folder with `config.json` and safetensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ModelSpec {
    /// GGUF file, or Hugging Face folder.
    pub path: PathBuf,
    /// Expected sha256 of the GGUF or of `model.safetensors`, lower-case hex.
    #[serde(default)]
    pub sha256: Option<String>,
    /// `LoRA` adapter laid over the weights, or all weights that stand in their place.
    #[serde(default)]
    pub adapter: Option<AdapterSpec>,
    /// File of a chat template (Jinja) instead of the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
    /// Processor.
    #[serde(default)]
    pub device: DeviceKind,
    /// Arithmetic type.
    #[serde(default)]
    pub dtype: DTypeKind,
}

impl ModelSpec {
    /// A model as it is.
    pub fn at(path: PathBuf, device: DeviceKind, dtype: DTypeKind) -> Self {
        Self { path, sha256: None, adapter: None, chat_template: None, device, dtype }
    }
}

/// What was trained of a model: a `LoRA` adapter in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`), or
/// all of its weights as a Hugging Face folder (`config.json`, `model.safetensors`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterSpec {
    /// Its folder.
    pub path: PathBuf,
    /// Expected sha256 of the file of its tensors, lower-case hex.
    #[serde(default)]
    pub sha256: Option<String>,
    /// `path` is a training's folder of checkpoints, of which the newest is taken when the work begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub latest: bool,
}

impl AdapterSpec {
    /// The adapter in a folder.
    pub fn at(path: PathBuf) -> Self {
        Self { path, sha256: None, latest: false }
    }

    /// Whether it is all weights, which stand in the place of the model's.
    pub fn is_whole(&self) -> bool {
        !self.path.join("adapter_config.json").exists() && self.path.join("model.safetensors").exists()
    }

    /// The file of its tensors.
    pub fn tensors(&self) -> PathBuf {
        self.path.join(if self.is_whole() { "model.safetensors" } else { "adapter_model.safetensors" })
    }
}

/// Low-rank adaptation (arXiv 2106.09685) of every linear layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LoraConfig {
    /// Rank r.
    #[serde(default = "default_rank")]
    pub rank: usize,
    /// Scale numerator: the update is multiplied by alpha / r.
    #[serde(default = "default_alpha")]
    pub alpha: f64,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: default_rank(), alpha: default_alpha() }
    }
}

fn default_rank() -> usize {
    16
}
fn default_alpha() -> f64 {
    32.0
}
