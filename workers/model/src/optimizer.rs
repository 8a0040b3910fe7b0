//! `AdamW` (arXiv 1711.05101) with f32 moments and a state that survives a restart bit for bit.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};
use s3_config::OptimizerConfig;

use crate::{
    cpu::{self, AdamWStep},
    decoder::{Decoder, LINEARS, Trainable},
    error::{ModelError, Result},
    gradients::Gradients,
    linear::Matrix,
    lora::{load_tensors, save_tensors},
    ops::with_slice,
};

/// Name of the step counter in the saved state.
const STEP: &str = "step";

/// The optimiser and its moments.
#[derive(Clone)]
pub struct AdamW {
    beta1: f64,
    beta2: f64,
    epsilon: f64,
    weight_decay: f64,
    step: u64,
    moments: BTreeMap<String, Moments>,
}

/// First and second moment of one tensor.
#[derive(Clone)]
enum Moments {
    /// On the CPU, changed in place.
    Slices { m: Vec<f32>, v: Vec<f32>, shape: Vec<usize> },
    /// On a GPU.
    Tensors { m: Tensor, v: Tensor },
}

impl Moments {
    fn zero(like: &Tensor) -> Result<Self> {
        if !like.device().is_cpu() {
            return Ok(Self::Tensors { m: like.zeros_like()?, v: like.zeros_like()? });
        }
        let n = like.elem_count();
        Ok(Self::Slices { m: vec![0f32; n], v: vec![0f32; n], shape: like.dims().to_vec() })
    }

    fn tensors(&self) -> Result<(Tensor, Tensor)> {
        match self {
            Self::Slices { m, v, shape } => Ok((
                Tensor::from_slice(m, shape.as_slice(), &Device::Cpu)?,
                Tensor::from_slice(v, shape.as_slice(), &Device::Cpu)?,
            )),
            Self::Tensors { m, v } => Ok((m.to_device(&Device::Cpu)?, v.to_device(&Device::Cpu)?)),
        }
    }
}

impl AdamW {
    /// A fresh optimiser. The learning rate is given to each step; clipping is
    /// [`Gradients::clip`]'s.
    pub fn new(config: &OptimizerConfig) -> Self {
        Self {
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            step: 0,
            moments: BTreeMap::new(),
        }
    }

    /// Drops the moments of all tensors but those that `mine` names.
    pub(crate) fn keep_only(&mut self, mine: impl Fn(&str) -> bool) {
        self.moments.retain(|name, _| mine(name));
    }

    /// Steps taken.
    pub fn steps(&self) -> u64 {
        self.step
    }

    /// Updates every tensor that has a gradient.
    pub fn step(&mut self, decoder: &mut Decoder, gradients: &Gradients, learning_rate: f64) -> Result<()> {
        self.step += 1;
        let power = i32::try_from(self.step).unwrap_or(i32::MAX);
        let (correct1, correct2) = (1.0 - self.beta1.powi(power), 1.0 - self.beta2.powi(power));
        let mut parameters = decoder.trained_tensors();
        for (name, gradient) in &gradients.0 {
            let Some(parameter) = parameters.remove(name) else {
                return Err(ModelError::invalid(format!("there is a gradient of {name}, which is not trained")));
            };
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), Moments::zero(gradient)?);
            }
            let Some(moments) = self.moments.get_mut(name) else {
                return Err(ModelError::invalid(format!("{name} has no moments")));
            };
            let keep = 1.0 - learning_rate * self.weight_decay;
            let step = AdamWStep {
                beta1: self.beta1 as f32,
                beta2: self.beta2 as f32,
                correct1: correct1 as f32,
                correct2: correct2 as f32,
                epsilon: self.epsilon as f32,
                keep: keep as f32,
                rate: learning_rate as f32,
            };
            let next = match moments {
                #[cfg(feature = "cuda")]
                Moments::Tensors { m, v } if parameter.dtype() == DType::F32 => {
                    let working = decoder.masters.contains_key(name);
                    let (next, m2, v2, w) = crate::cuda::ops::adamw(&parameter, gradient, (&*m, &*v), step, working)?;
                    (*m, *v) = (m2, v2);
                    if let Some(working) = w {
                        decoder.set_master(name, next, working)?;
                        continue;
                    }
                    next
                }
                Moments::Slices { m, v, .. } => {
                    let next = with_slice(&parameter, |p| with_slice(gradient, |g| cpu::adamw(p, g, m, v, step)))??;
                    Tensor::from_vec(next, parameter.shape(), &Device::Cpu)?
                }
                Moments::Tensors { m, v } => {
                    *m = ((&*m * self.beta1)? + (gradient * (1.0 - self.beta1))?)?;
                    *v = ((&*v * self.beta2)? + (gradient.sqr()? * (1.0 - self.beta2))?)?;
                    let denominator = ((&*v / correct2)?.sqrt()? + self.epsilon)?;
                    let update = ((&*m / correct1)? / denominator)?;
                    ((&parameter * keep)? - (update * learning_rate)?)?
                }
            };
            decoder.set_trained(name, next)?;
        }
        Ok(())
    }

    /// The state as tensors on the CPU: `m.NAME`, `v.NAME`, `step`.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (name, moments) in &self.moments {
            let (m, v) = moments.tensors()?;
            out.insert(format!("m.{name}"), m);
            out.insert(format!("v.{name}"), v);
        }
        out.insert(STEP.to_owned(), Tensor::from_slice(&[self.step as i64], 1, &Device::Cpu)?);
        Ok(out)
    }

    /// Restores [`Self::state`] onto the device of `decoder`.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, decoder: &Decoder) -> Result<()> {
        let bad = |what: String| {
            ModelError::invalid(format!("optimiser state: {what}; delete the checkpoint or take another"))
        };
        let step = state.get(STEP).ok_or_else(|| bad("step is missing".to_owned()))?.to_vec1::<i64>()?;
        let parameters = decoder.trained_tensors();
        let mut moments = BTreeMap::new();
        for (key, m) in state {
            let Some(name) = key.strip_prefix("m.") else { continue };
            let v = state.get(&format!("v.{name}")).ok_or_else(|| bad(format!("v.{name} is missing")))?;
            let parameter = parameters.get(name).ok_or_else(|| bad(format!("{name} is not trained")))?;
            if m.dims() != parameter.dims() || v.dims() != parameter.dims() {
                return Err(bad(format!("{name} has another shape")));
            }
            let restored = if decoder.device().is_cpu() {
                let shape = m.dims().to_vec();
                Moments::Slices { m: with_slice(m, <[f32]>::to_vec)?, v: with_slice(v, <[f32]>::to_vec)?, shape }
            } else {
                Moments::Tensors { m: m.to_device(decoder.device())?, v: v.to_device(decoder.device())? }
            };
            moments.insert(name.to_owned(), restored);
        }
        self.step = step.first().copied().unwrap_or(0).unsigned_abs();
        self.moments = moments;
        Ok(())
    }

    /// Writes the state as safetensors.
    pub fn save(&self, path: &Path) -> Result<()> {
        save_tensors(path, &self.state()?)
    }

    /// Reads what [`Self::save`] wrote.
    pub fn load(&mut self, path: &Path, decoder: &Decoder) -> Result<()> {
        self.restore(&load_tensors(path)?, decoder)
    }
}

impl Decoder {
    /// The trained tensors (f32) by the names that [`Gradients`] uses.
    pub fn trained_tensors(&self) -> BTreeMap<String, Tensor> {
        let mut out = BTreeMap::new();
        if let Some(value) = &self.value {
            out.insert("value_head.weight".to_owned(), value.weight.clone());
            out.insert("value_head.bias".to_owned(), value.bias.clone());
        }
        let full = self.trainable == Trainable::Full;
        if full {
            out.insert("model.norm.weight".to_owned(), self.norm.clone());
            let head = self.head.as_ref();
            for (name, matrix) in [("model.embed_tokens.weight", Some(&self.embed)), ("lm_head.weight", head)] {
                if let Some(Matrix::Dense(weight)) = matrix {
                    out.insert(name.to_owned(), weight.clone());
                }
            }
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let prefix = format!("model.layers.{index}");
            if full {
                out.insert(format!("{prefix}.input_layernorm.weight"), layer.input_norm.clone());
                out.insert(format!("{prefix}.post_attention_layernorm.weight"), layer.post_norm.clone());
                for (name, norm) in ["q_norm", "k_norm"].iter().zip(layer.qk_norm.iter().flatten()) {
                    out.insert(format!("{prefix}.self_attn.{name}.weight"), norm.clone());
                }
            }
            for (name, linear) in LINEARS.iter().zip(&layer.linears) {
                if let (Trainable::Lora, Some(lora)) = (self.trainable, &linear.lora) {
                    out.insert(format!("{prefix}.{name}.lora_A"), lora.a.clone());
                    out.insert(format!("{prefix}.{name}.lora_B"), lora.b.clone());
                }
                if let (true, Matrix::Dense(weight)) = (full, &linear.weight) {
                    out.insert(format!("{prefix}.{name}.weight"), weight.clone());
                    if let Some(bias) = &linear.bias {
                        out.insert(format!("{prefix}.{name}.bias"), bias.clone());
                    }
                }
            }
        }
        for (name, master) in &self.masters {
            out.insert(name.clone(), master.clone());
        }
        out
    }

    /// Replaces the trained tensor `name`.
    pub fn set_trained(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        if self.masters.contains_key(name) {
            let tensor = tensor.to_device(&self.device)?.to_dtype(DType::F32)?;
            let working = tensor.to_dtype(self.dtype)?;
            return self.set_master(name, tensor, working);
        }
        self.set_working(name, tensor)
    }

    /// Replaces a trained weight and the copy that the model computes with.
    fn set_master(&mut self, name: &str, master: Tensor, working: Tensor) -> Result<()> {
        self.set_working(name, working)?;
        self.masters.insert(name.to_owned(), master);
        Ok(())
    }

    /// A trained weight as the model computes with it.
    #[cfg(feature = "cuda")]
    pub(crate) fn working(&mut self, name: &str) -> Result<Tensor> {
        let unknown = || ModelError::invalid(format!("{name} is not a trained tensor"));
        Ok(self.trained_slot(name).ok_or_else(unknown)?.clone())
    }

    pub(crate) fn set_working(&mut self, name: &str, tensor: Tensor) -> Result<()> {
        let unknown = || ModelError::invalid(format!("{name} is not a trained tensor"));
        let slot = self.trained_slot(name).ok_or_else(unknown)?;
        if slot.dims() != tensor.dims() {
            return Err(ModelError::invalid(format!(
                "{name} has shape {:?}, the new tensor {:?}",
                slot.dims(),
                tensor.dims()
            )));
        }
        *slot = if tensor.device().same_device(slot.device()) { tensor } else { tensor.to_device(slot.device())? };
        Ok(())
    }

    fn trained_slot(&mut self, name: &str) -> Option<&mut Tensor> {
        match name {
            "value_head.weight" => return self.value.as_mut().map(|v| &mut v.weight),
            "value_head.bias" => return self.value.as_mut().map(|v| &mut v.bias),
            _ => {}
        }
        let (full, lora) = (self.trainable == Trainable::Full, self.trainable == Trainable::Lora);
        match name {
            "model.embed_tokens.weight" if full => return self.embed.dense_mut(),
            "model.norm.weight" if full => return Some(&mut self.norm),
            "lm_head.weight" if full => return self.head.as_mut().and_then(Matrix::dense_mut),
            _ => {}
        }
        let (index, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
        let layer = self.layers.get_mut(index.parse::<usize>().ok()?)?;
        match rest {
            "input_layernorm.weight" if full => return Some(&mut layer.input_norm),
            "post_attention_layernorm.weight" if full => return Some(&mut layer.post_norm),
            "self_attn.q_norm.weight" if full => return layer.qk_norm.as_mut().map(|[q, _]| q),
            "self_attn.k_norm.weight" if full => return layer.qk_norm.as_mut().map(|[_, k]| k),
            _ => {}
        }
        let (module, part) = rest.rsplit_once('.')?;
        let linear = &mut layer.linears[LINEARS.iter().position(|name| *name == module)?];
        match part {
            "lora_A" if lora => linear.lora.as_mut().map(|pair| &mut pair.a),
            "lora_B" if lora => linear.lora.as_mut().map(|pair| &mut pair.b),
            "weight" if full => linear.weight.dense_mut(),
            "bias" if full => linear.bias.as_mut(),
            _ => None,
        }
    }
}
