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
    /// `LoRA` adapter laid over the weights.
    #[serde(default)]
    pub adapter: Option<AdapterSpec>,
    /// Processor.
    #[serde(default)]
    pub device: DeviceKind,
    /// Arithmetic type.
    #[serde(default)]
    pub dtype: DTypeKind,
}

/// A `LoRA` adapter in PEFT's layout (`adapter_config.json`, `adapter_model.safetensors`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AdapterSpec {
    /// Folder of the adapter.
    pub path: PathBuf,
    /// Expected sha256 of `adapter_model.safetensors`, lower-case hex.
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
