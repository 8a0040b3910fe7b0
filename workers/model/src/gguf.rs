//! GGUF files: metadata to a [`DecoderConfig`], quantised tensors dequantised once and renamed to
//! Hugging Face names.

use std::{
    collections::BTreeMap,
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use candle_core::{
    DType, Device, Tensor,
    quantized::gguf_file::{Content, Value},
};

use crate::{
    config::{Architecture, DecoderConfig, SUPPORTED},
    error::{ModelError, Result},
    packed::Packed,
};

/// An opened GGUF file: header parsed, tensors still on disk.
pub struct Gguf {
    path: PathBuf,
    content: Content,
    file: BufReader<File>,
}

impl Gguf {
    /// Opens the file and reads its header.
    pub fn open(path: &Path) -> Result<Self> {
        let mut file = BufReader::new(File::open(path).map_err(ModelError::read(path))?);
        let content = Content::read(&mut file)
            .map_err(|e| ModelError::format(path, format!("not a GGUF file or damaged: {e}")))?;
        Ok(Self { path: path.to_owned(), content, file })
    }

    fn bad(&self, reason: impl std::fmt::Display) -> ModelError {
        ModelError::format(&self.path, reason)
    }

    pub(crate) fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        match self.value(key) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }
    }

    /// An unsigned number of any stored width.
    pub(crate) fn number(&self, key: &str) -> Option<usize> {
        match self.value(key)? {
            Value::U8(n) => Some(usize::from(*n)),
            Value::U16(n) => Some(usize::from(*n)),
            Value::U32(n) => Some(*n as usize),
            Value::U64(n) => usize::try_from(*n).ok(),
            Value::I32(n) => usize::try_from(*n).ok(),
            Value::I64(n) => usize::try_from(*n).ok(),
            _ => None,
        }
    }

    fn float(&self, key: &str) -> Option<f64> {
        match self.value(key)? {
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            _ => None,
        }
    }

    pub(crate) fn strings(&self, key: &str) -> Result<Vec<&str>> {
        let Some(Value::Array(values)) = self.value(key) else {
            return Err(self.bad(format!("metadata {key} is missing or no list")));
        };
        values
            .iter()
            .map(|v| v.to_string().map(String::as_str).map_err(|e| self.bad(format!("metadata {key}: {e}"))))
            .collect()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn need(&self, key: &str) -> Result<usize> {
        self.number(key).ok_or_else(|| self.bad(format!("metadata {key} is missing or no number")))
    }

    /// The decoder's shape.
    pub fn config(&self) -> Result<DecoderConfig> {
        let name = self.text("general.architecture").unwrap_or("(none)");
        let architecture = match name {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            other => {
                return Err(ModelError::Architecture {
                    path: self.path.clone(),
                    found: other.to_owned(),
                    supported: SUPPORTED,
                });
            }
        };
        let key = |suffix: &str| format!("{name}.{suffix}");
        let scaling = self.text(&key("rope.scaling.type")).unwrap_or("none");
        if scaling != "none" || self.content.tensor_infos.contains_key("rope_freqs.weight") {
            return Err(self.bad(format!("rotary scaling ({scaling}) is not supported; use a model without it")));
        }
        let (hidden, heads) = (self.need(&key("embedding_length"))?, self.need(&key("attention.head_count"))?);
        let embedding = self.content.tensor_infos.get("token_embd.weight");
        let vocab = embedding
            .and_then(|info| info.shape.dims().first().copied())
            .ok_or_else(|| self.bad("tensor token_embd.weight is missing"))?;
        let config = DecoderConfig {
            architecture,
            vocab,
            hidden,
            ffn: self.need(&key("feed_forward_length"))?,
            layers: self.need(&key("block_count"))?,
            heads,
            kv_heads: self.number(&key("attention.head_count_kv")).unwrap_or(heads),
            head_dim: self.number(&key("attention.key_length")).unwrap_or(hidden / heads.max(1)),
            max_positions: self.need(&key("context_length"))?,
            rope_theta: self.float(&key("rope.freq_base")).unwrap_or(10_000.0),
            norm_eps: self
                .float(&key("attention.layer_norm_rms_epsilon"))
                .ok_or_else(|| self.bad("metadata attention.layer_norm_rms_epsilon is missing"))?,
            qkv_bias: self.content.tensor_infos.contains_key("blk.0.attn_q.bias"),
            tied: !self.content.tensor_infos.contains_key("output.weight"),
        };
        config.check()?;
        Ok(config)
    }

    /// All tensors by Hugging Face name, in `dtype` on `device`: dequantised, but with `pack` those matrices
    /// as they are that multiply so.
    pub(crate) fn tensors(
        &mut self,
        config: &DecoderConfig,
        device: &Device,
        dtype: DType,
        pack: bool,
    ) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, Packed>)> {
        let mut names: Vec<String> = self.content.tensor_infos.keys().cloned().collect();
        names.sort();
        let (mut out, mut all_packed) = (BTreeMap::new(), BTreeMap::new());
        for name in names {
            let Some(target) = hugging_face_name(&name) else {
                return Err(self.bad(format!("unexpected tensor {name}")));
            };
            // Dequantised on the CPU, where every GGUF type has a plain implementation.
            let raw = self
                .content
                .tensor(&mut self.file, &name, &Device::Cpu)
                .map_err(|e| ModelError::format(&self.path, format!("tensor {name}: {e}")))?;
            let heads = match config.architecture {
                Architecture::Llama if name.contains("attn_q.") => Some(config.heads),
                Architecture::Llama if name.contains("attn_k.") => Some(config.kv_heads),
                _ => None,
            };
            if let Some(packed) = if pack { Packed::new(&raw)? } else { None } {
                let packed = match heads {
                    Some(heads) => {
                        let order = rotary_order(packed.dims()[0], heads);
                        packed.reorder(&order)
                    }
                    None => packed,
                };
                all_packed.insert(target, packed);
                continue;
            }
            let mut tensor = raw.dequantize(&Device::Cpu)?;
            if let Some(heads) = heads {
                tensor = undo_rotary_permutation(&tensor, heads)?;
            }
            out.insert(target, tensor.to_dtype(dtype)?.to_device(device)?);
        }
        let bytes: usize = all_packed.values().map(Packed::bytes).sum();
        tracing::debug!(matrices = all_packed.len(), bytes, "weights stay packed");
        Ok((out, all_packed))
    }
}

/// llama.cpp stores the rows of q and k with the two rotary halves interleaved; Hugging Face (and
/// this crate) keep the halves side by side.
fn undo_rotary_permutation(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let dims = weight.dims().to_vec();
    let rest: usize = dims[1..].iter().product();
    Ok(weight.reshape((heads, dims[0] / heads / 2, 2, rest))?.transpose(1, 2)?.contiguous()?.reshape(dims)?)
}

/// The same for rows by number: row `i` of the result was row `order[i]`.
fn rotary_order(rows: usize, heads: usize) -> Vec<usize> {
    let width = rows / heads;
    let half = width / 2;
    (0..rows).map(|row| row / width * width + row % width % half * 2 + row % width / half).collect()
}

fn hugging_face_name(gguf: &str) -> Option<String> {
    match gguf {
        "token_embd.weight" => return Some("model.embed_tokens.weight".into()),
        "output_norm.weight" => return Some("model.norm.weight".into()),
        "output.weight" => return Some("lm_head.weight".into()),
        _ => {}
    }
    let (layer, rest) = gguf.strip_prefix("blk.")?.split_once('.')?;
    let (stem, kind) = rest.rsplit_once('.')?;
    let module = match stem {
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn rotary_rows_return_to_their_halves() {
        // One head of four rows: interleaved a0 b0 a1 b1 becomes a0 a1 b0 b1.
        let stored = Tensor::from_vec(vec![0f32, 10., 1., 11.], (4, 1), &Device::Cpu).unwrap();
        let undone = undo_rotary_permutation(&stored, 1).unwrap();
        assert_eq!(undone.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 10., 11.]);
        assert_eq!(rotary_order(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
    }
}
