//! The shape of a decoder, read from GGUF metadata or a Hugging Face `config.json`.

use serde::{Deserialize, Serialize};

use crate::error::{ModelError, Result};

/// Architectures this crate runs.
pub const SUPPORTED: &str =
    "llama, qwen2, qwen3 (GGUF); LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM (safetensors)";

/// Family of a decoder; the families differ in biases, norms of heads and in how GGUF stores rotary rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Architecture {
    /// Llama 2/3 and `SmolLM2`: no biases; GGUF interleaves the rotary halves of q and k.
    Llama,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: every head of q and k is normed before it is rotated; no biases.
    Qwen3,
}

/// Sizes and constants of a decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecoderConfig {
    /// Family.
    pub architecture: Architecture,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Longest context in tokens.
    pub max_positions: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added under the root of RMS norms.
    pub norm_eps: f64,
    /// Whether q, k and v have biases.
    pub qkv_bias: bool,
    /// Whether the output head is the embedding matrix.
    pub tied: bool,
}

impl DecoderConfig {
    /// A small Llama shape for tests and the search world: `layers` layers of `hidden` width with
    /// heads of 16, two query heads a key head where that divides, tied embeddings.
    pub fn tiny(vocab: usize, hidden: usize, layers: usize) -> Self {
        let heads = (hidden / 16).max(1);
        Self {
            architecture: Architecture::Llama,
            vocab,
            hidden,
            ffn: hidden * 8 / 3 / 8 * 8,
            layers,
            heads,
            kv_heads: if heads.is_multiple_of(2) { heads / 2 } else { heads },
            head_dim: hidden / heads,
            max_positions: 1024,
            rope_theta: 10_000.0,
            norm_eps: 1e-5,
            qkv_bias: false,
            tied: true,
        }
    }

    /// Refuses shapes that the kernels cannot run.
    pub fn check(&self) -> Result<()> {
        let sizes = [
            self.vocab,
            self.hidden,
            self.ffn,
            self.layers,
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.max_positions,
        ];
        if sizes.contains(&0) {
            return Err(ModelError::invalid(format!("a size of the model is zero: {self:?}")));
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(ModelError::invalid(format!(
                "{} query heads cannot share {} key heads evenly",
                self.heads, self.kv_heads
            )));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(ModelError::invalid(format!(
                "rotary embedding needs an even head width, got {}",
                self.head_dim
            )));
        }
        Ok(())
    }

    /// Whether every head of q and k is normed before it is rotated.
    pub fn qk_norm(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }

    /// Elements a token that attention keeps for its backward pass.
    pub(crate) fn attention_width(&self) -> usize {
        let qk = (self.heads + self.kv_heads) * self.head_dim;
        // q and k, o and v; q and k once more before their norms
        2 * qk + if self.qk_norm() { qk } else { 0 }
    }

    /// Number of query heads that share a key head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}
