//! The weights of a BERT encoder, by name, for either implementation.

use crate::error::{ModelError, Result};
use crate::safetensors::{read_json, tensors};
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Sizes and constants.
#[derive(Clone, Debug)]
pub struct Shape {
    pub vocab: usize,
    pub hidden: usize,
    pub heads: usize,
    pub layers: usize,
    pub ffn: usize,
    pub positions: usize,
    pub eps: f64,
}

/// `y = x weightᵀ + bias`; weight `[out, in]`.
pub struct Linear<T> {
    pub weight: T,
    pub bias: T,
}

/// Scale and shift of a layer norm.
pub struct Norm<T> {
    pub weight: T,
    pub bias: T,
}

/// One transformer layer, norms after the residual sums.
pub struct Layer<T> {
    /// Query, key and value in one: `[3 hidden, hidden]`.
    pub qkv: Linear<T>,
    pub attention: Linear<T>,
    pub attention_norm: Norm<T>,
    pub up: Linear<T>,
    pub down: Linear<T>,
    pub norm: Norm<T>,
}

/// All weights; `T` is a slice's owner or a tensor.
pub struct Bert<T> {
    /// `[vocab, hidden]`.
    pub words: T,
    /// `[positions, hidden]`, the embedding of the first segment added in.
    pub positions: T,
    /// What the embedding of the second segment has more than the first's, `[hidden]`.
    pub second: T,
    pub norm: Norm<T>,
    pub layers: Vec<Layer<T>>,
}

/// Shape and raw tensors (f32) of a folder.
pub fn read(folder: &Path, device: &Device) -> Result<(Shape, BTreeMap<String, Tensor>)> {
    let path = folder.join("config.json");
    let json = read_json(&path)?;
    let kind = json["model_type"].as_str().unwrap_or("(none)");
    if kind != "bert" {
        return Err(ModelError::Architecture { path, found: kind.to_owned(), supported: "bert (encoders)" });
    }
    for (key, supported) in [("hidden_act", "gelu"), ("position_embedding_type", "absolute")] {
        let found = json[key].as_str().unwrap_or(supported);
        if found != supported {
            return Err(ModelError::format(&path, format!("{key} {found:?} is not supported, only {supported:?}")));
        }
    }
    let need = |key: &str| {
        let number = json[key].as_u64().filter(|number| *number > 0);
        number.map(|n| n as usize).ok_or_else(|| ModelError::format(&path, format!("{key} is missing or no number")))
    };
    let shape = Shape {
        vocab: need("vocab_size")?,
        hidden: need("hidden_size")?,
        heads: need("num_attention_heads")?,
        layers: need("num_hidden_layers")?,
        ffn: need("intermediate_size")?,
        positions: need("max_position_embeddings")?,
        eps: json["layer_norm_eps"].as_f64().unwrap_or(1e-12),
    };
    if !shape.hidden.is_multiple_of(shape.heads) {
        return Err(ModelError::format(&path, "hidden_size is not a multiple of num_attention_heads"));
    }
    Ok((shape, tensors(&[folder.join("model.safetensors")], device, DType::F32)?))
}

impl<T> Bert<T> {
    /// Picks the tensors by their names, with or without `bert.` before them.
    pub fn assemble(
        folder: &Path,
        shape: &Shape,
        tensors: &BTreeMap<String, Tensor>,
        make: impl Fn(&Tensor) -> candle_core::Result<T>,
    ) -> Result<Self> {
        let path = folder.join("model.safetensors");
        let get = |name: &str, dims: &[usize]| -> Result<Tensor> {
            // older files call a norm's weight gamma and its bias beta
            let old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            let names = [name.to_owned(), format!("bert.{name}"), old.clone(), format!("bert.{old}")];
            let found = names.iter().find_map(|name| tensors.get(name));
            let tensor = found.ok_or_else(|| ModelError::format(&path, format!("tensor {name} is missing")))?;
            if tensor.dims() != dims {
                let reason = format!("tensor {name} is {:?}, config.json says {dims:?}", tensor.dims());
                return Err(ModelError::format(&path, reason));
            }
            Ok(tensor.clone())
        };
        let (h, f) = (shape.hidden, shape.ffn);
        let linear = |name: &str, out: usize, inner: usize| -> Result<Linear<T>> {
            Ok(Linear {
                weight: make(&get(&format!("{name}.weight"), &[out, inner])?)?,
                bias: make(&get(&format!("{name}.bias"), &[out])?)?,
            })
        };
        let norm = |name: &str| -> Result<Norm<T>> {
            Ok(Norm {
                weight: make(&get(&format!("{name}.weight"), &[h])?)?,
                bias: make(&get(&format!("{name}.bias"), &[h])?)?,
            })
        };
        let layer = |at: usize| -> Result<Layer<T>> {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            let joined = |kind: &str, dims: &[usize]| -> Result<T> {
                let parts = ["query", "key", "value"]
                    .map(|part| get(&name(&format!("attention.self.{part}.{kind}")), dims))
                    .into_iter()
                    .collect::<Result<Vec<_>>>()?;
                Ok(make(&Tensor::cat(&parts, 0)?)?)
            };
            Ok(Layer {
                qkv: Linear { weight: joined("weight", &[h, h])?, bias: joined("bias", &[h])? },
                attention: linear(&name("attention.output.dense"), h, h)?,
                attention_norm: norm(&name("attention.output.LayerNorm"))?,
                up: linear(&name("intermediate.dense"), f, h)?,
                down: linear(&name("output.dense"), h, f)?,
                norm: norm(&name("output.LayerNorm"))?,
            })
        };
        // Texts have one segment only, so its embedding can be added to every position once; pairs add the rest.
        let types = tensors.iter().find(|(name, _)| name.ends_with("embeddings.token_type_embeddings.weight"));
        let kinds = types.and_then(|(_, tensor)| tensor.dims().first().copied()).unwrap_or(2);
        let segments = get("embeddings.token_type_embeddings.weight", &[kinds, h])?;
        let segment = segments.narrow(0, 0, 1)?;
        let second = (segments.narrow(0, kinds.saturating_sub(1).min(1), 1)? - &segment)?.flatten_all()?;
        let positions = get("embeddings.position_embeddings.weight", &[shape.positions, h])?.broadcast_add(&segment)?;
        Ok(Self {
            words: make(&get("embeddings.word_embeddings.weight", &[shape.vocab, h])?)?,
            positions: make(&positions)?,
            second: make(&second)?,
            norm: norm("embeddings.LayerNorm")?,
            layers: (0..shape.layers).map(layer).collect::<Result<_>>()?,
        })
    }
}

impl Linear<Vec<f32>> {
    /// Turns the weight round, to `[in, out]`. A product with few tokens would sum rows that lie along `in` in another
    /// order than one with many.
    fn turn(&mut self) {
        let out = self.bias.len();
        let inner = self.weight.len() / out.max(1);
        let old = std::mem::take(&mut self.weight);
        self.weight = (0..inner * out).map(|at| old[at % out * inner + at / out]).collect();
    }
}

impl Bert<Vec<f32>> {
    /// Turns every weight to `[in, out]`.
    #[must_use]
    pub fn turned(mut self) -> Self {
        for layer in &mut self.layers {
            for linear in [&mut layer.qkv, &mut layer.attention, &mut layer.up, &mut layer.down] {
                linear.turn();
            }
        }
        self
    }
}

impl Head<Vec<f32>> {
    /// Turns every weight to `[in, out]`.
    #[must_use]
    pub fn turned(mut self) -> Self {
        self.pooler.turn();
        self.classifier.turn();
        self
    }
}

/// What scores a pair: the pooled first state, and the classifier over it.
pub struct Head<T> {
    /// `[hidden, hidden]`, followed by tanh.
    pub pooler: Linear<T>,
    /// `[1, hidden]`.
    pub classifier: Linear<T>,
}

impl<T> Head<T> {
    /// Picks the tensors of a `BertForSequenceClassification` with one label.
    pub fn assemble(
        folder: &Path,
        shape: &Shape,
        tensors: &BTreeMap<String, Tensor>,
        make: impl Fn(&Tensor) -> candle_core::Result<T>,
    ) -> Result<Self> {
        let path = folder.join("model.safetensors");
        let get = |name: &str, dims: &[usize]| -> Result<T> {
            let found = tensors.get(name).or_else(|| tensors.get(&format!("bert.{name}")));
            let tensor = found.ok_or_else(|| {
                ModelError::format(&path, format!("tensor {name} is missing: a cross-encoder with one label is needed"))
            })?;
            if tensor.dims() != dims {
                let reason =
                    format!("tensor {name} is {:?}, a cross-encoder with one label has {dims:?}", tensor.dims());
                return Err(ModelError::format(&path, reason));
            }
            Ok(make(tensor)?)
        };
        let h = shape.hidden;
        Ok(Self {
            pooler: Linear { weight: get("pooler.dense.weight", &[h, h])?, bias: get("pooler.dense.bias", &[h])? },
            classifier: Linear { weight: get("classifier.weight", &[1, h])?, bias: get("classifier.bias", &[1])? },
        })
    }
}

#[cfg(test)]
pub mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    /// Writes a random encoder (2 layers of 16, 4 heads, letters as words) into `folder`.
    pub fn write_random(folder: &Path, prefix: &str, norm: [&str; 2]) {
        let (h, f) = (16, 24);
        let mut state = 7u32;
        let mut all = HashMap::new();
        let mut put = |name: String, dims: &[usize]| {
            let values: Vec<f32> = (0..dims.iter().product())
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 8) as f32 / (1 << 24) as f32 - 0.4
                })
                .collect();
            all.insert(format!("{prefix}{name}"), Tensor::from_vec(values, dims, &Device::Cpu).unwrap());
        };
        put("embeddings.word_embeddings.weight".into(), &[12, h]);
        put("embeddings.position_embeddings.weight".into(), &[16, h]);
        put("embeddings.token_type_embeddings.weight".into(), &[2, h]);
        let norms = ["embeddings.LayerNorm".to_owned()].into_iter().chain((0..2).flat_map(|at| {
            ["attention.output.LayerNorm", "output.LayerNorm"].map(|part| format!("encoder.layer.{at}.{part}"))
        }));
        for name in norms {
            put(format!("{name}.{}", norm[0]), &[h]);
            put(format!("{name}.{}", norm[1]), &[h]);
        }
        for at in 0..2 {
            for (part, out, inner) in [
                ("attention.self.query", h, h),
                ("attention.self.key", h, h),
                ("attention.self.value", h, h),
                ("attention.output.dense", h, h),
                ("intermediate.dense", f, h),
                ("output.dense", h, f),
            ] {
                put(format!("encoder.layer.{at}.{part}.weight"), &[out, inner]);
                put(format!("encoder.layer.{at}.{part}.bias"), &[out]);
            }
        }
        for (name, out) in [("pooler.dense", h), ("classifier", 1)] {
            put(format!("{name}.weight"), &[out, h]);
            put(format!("{name}.bias"), &[out]);
        }
        candle_core::safetensors::save(&all, folder.join("model.safetensors")).unwrap();
        let config = serde_json::json!({
            "model_type": "bert", "vocab_size": 12, "hidden_size": h, "num_attention_heads": 4, "num_hidden_layers": 2,
            "intermediate_size": f, "max_position_embeddings": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
        });
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "f", "g", "h"];
        let vocab: serde_json::Map<_, _> = words.iter().enumerate().map(|(at, w)| ((*w).into(), at.into())).collect();
        let special = |name: &str, id: u32| serde_json::json!({"id": name, "ids": [id], "tokens": [name]});
        let tokenizer = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
            "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                         {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                         {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
                "special_tokens": {"[CLS]": special("[CLS]", 2), "[SEP]": special("[SEP]", 3)},
            },
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
        });
        std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    }
}
