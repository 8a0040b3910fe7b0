//! What was trained of a decoder, as others load it: an adapter in PEFT's layout, or all weights as a Hugging Face folder.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Tensor};
use serde_json::{Value, json};

use crate::{
    config::{Architecture, DecoderConfig},
    decoder::{Decoder, Trainable},
    error::{ModelError, Result},
    lora::save_tensors,
    tokenizer::TokenizerFile,
};

/// A model's tensors by Hugging Face name, from what is trained of it where that is every weight; a value head is left out.
pub fn whole_of_trained(mut trained: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    trained.retain(|name, _| !name.starts_with("value_head."));
    trained
}

impl Decoder {
    /// Writes what is trained into `folder`, which is made when missing: the adapter, or, where every weight is trained,
    /// the whole model with its tokenizer. f32, or bf16 when `compact`. The bytes depend on the tensors only.
    pub fn save_trained(&self, folder: &Path, tokenizer: &TokenizerFile, compact: bool) -> Result<()> {
        if self.trainable != Trainable::Full {
            return self.save_adapter(folder, compact);
        }
        std::fs::create_dir_all(folder).map_err(ModelError::write(folder))?;
        let dtype = if compact { DType::BF16 } else { DType::F32 };
        let all = whole_of_trained(self.trained_tensors());
        let all = all.into_iter().map(|(name, tensor)| Ok((name, tensor.to_dtype(dtype)?))).collect::<Result<_>>()?;
        save_tensors(&folder.join("model.safetensors"), &all)?;
        self.config.save(folder, compact)?;
        tokenizer.save(folder)
    }

    /// Writes the shape of what is trained into `folder`: `adapter_config.json`, or `config.json` of the whole model.
    pub fn save_trained_config(&self, folder: &Path) -> Result<()> {
        if self.trainable == Trainable::Full {
            self.config.save(folder, false)
        } else {
            self.save_adapter_config(folder)
        }
    }
}

impl DecoderConfig {
    /// Writes `config.json`, as Hugging Face does, for weights in bf16 when `compact`.
    pub fn save(&self, folder: &Path, compact: bool) -> Result<()> {
        let path = folder.join("config.json");
        let text = format!("{:#}\n", self.hugging_face(if compact { "bfloat16" } else { "float32" }));
        std::fs::write(&path, text).map_err(ModelError::write(&path))
    }

    fn hugging_face(&self, dtype: &str) -> Value {
        let (class, kind) = match self.architecture {
            Architecture::Llama => ("LlamaForCausalLM", "llama"),
            Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
            Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
        };
        json!({
            "architectures": [class],
            "model_type": kind,
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_positions,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tied,
            "hidden_act": "silu",
            "torch_dtype": dtype,
        })
    }
}
