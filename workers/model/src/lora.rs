//! Low-rank adapters: attaching, and PEFT's files.

use std::{collections::BTreeMap, path::Path};

use candle_core::{DType, Device, Tensor};
use s3_config::LoraConfig;
use serde_json::json;

use crate::{
    decoder::{Decoder, LINEARS, Trainable, ValueHead, linear_shapes},
    error::{ModelError, Result},
    linear::LoraPair,
    random::{self, Uniform},
    safetensors::read_json,
};

/// PEFT's prefix before Hugging Face names.
const PREFIX: &str = "base_model.model.";

/// An adapter's tensors by PEFT name, from what is trained of it; a value head is left out.
pub fn adapter_of_trained(trained: BTreeMap<String, Tensor>) -> BTreeMap<String, Tensor> {
    let own = trained.into_iter().filter(|(name, _)| name.ends_with(".lora_A") || name.ends_with(".lora_B"));
    own.map(|(name, tensor)| (format!("{PREFIX}{name}.weight"), tensor)).collect()
}

impl Decoder {
    /// Puts fresh pairs beside every linear module and makes them the trained tensors: A normal
    /// with variance 1/in, B zero, so the model's function is unchanged. Equal seeds give equal bytes.
    pub fn attach_lora(&mut self, lora: &LoraConfig, seed: u64) -> Result<()> {
        if lora.rank == 0 {
            return Err(ModelError::invalid("the LoRA rank must be at least 1"));
        }
        let mut uniform = Uniform::new(seed, "lora");
        let shapes = linear_shapes(&self.config);
        for layer in &mut self.layers {
            for (linear, (out, input)) in layer.linears.iter_mut().zip(shapes) {
                let a = random::normal(&mut uniform, (lora.rank, input), 1.0 / (input as f32).sqrt())?;
                linear.lora = Some(LoraPair {
                    a: a.to_device(&self.device)?,
                    b: Tensor::zeros((out, lora.rank), DType::F32, &self.device)?,
                    scale: lora.alpha / lora.rank as f64,
                });
            }
        }
        self.lora = Some(lora.clone());
        self.trainable = Trainable::Lora;
        Ok(())
    }

    /// Adds a zero value head, trained with whatever else is trained.
    pub fn attach_value_head(&mut self) -> Result<()> {
        self.value = Some(ValueHead {
            weight: Tensor::zeros((1, self.config.hidden), DType::F32, &self.device)?,
            bias: Tensor::zeros(1, DType::F32, &self.device)?,
        });
        Ok(())
    }

    /// Makes every weight a trained tensor. bf16 would swallow small steps: a model that computes in bf16 with the
    /// GPU's kernels gets f32 copies, which are what is trained.
    pub fn train_all(&mut self) -> Result<()> {
        if self.dtype != DType::F32 && !self.kernels.fused() {
            return Err(ModelError::invalid(
                "training every weight needs dtype F32 on this device; use LoRA with Bf16",
            ));
        }
        if self.lora.is_some() {
            return Err(ModelError::invalid("training every weight with an adapter attached; merge it first"));
        }
        self.embed.dense()?;
        self.trainable = Trainable::Full;
        if self.dtype != DType::F32 {
            let working = self.trained_tensors();
            let copies = working.into_iter().map(|(name, t)| Ok((name, t.to_dtype(DType::F32)?)));
            self.masters = copies.collect::<Result<_>>()?;
        }
        Ok(())
    }

    /// What is trained.
    pub fn trainable(&self) -> Trainable {
        self.trainable
    }

    /// Adds the adapter into the weights and drops it: faster, for inference only.
    pub fn merge_adapter(&mut self) -> Result<()> {
        for linear in self.layers.iter_mut().flat_map(|layer| &mut layer.linears) {
            linear.merge()?;
        }
        self.lora = None;
        if self.trainable == Trainable::Lora {
            self.trainable = Trainable::None;
        }
        Ok(())
    }

    /// Removes the adapter: the frozen base, for instance as a reference policy.
    #[must_use]
    pub fn without_adapter(&self) -> Self {
        let mut base = self.clone();
        for linear in base.layers.iter_mut().flat_map(|layer| &mut layer.linears) {
            linear.lora = None;
        }
        base.lora = None;
        base.masters.clear();
        base.value = None;
        base.trainable = Trainable::None;
        base
    }

    /// The adapter's tensors by PEFT name, on the CPU.
    pub fn adapter_tensors(&self) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        for (index, layer) in self.layers.iter().enumerate() {
            for (name, linear) in LINEARS.iter().zip(&layer.linears) {
                if let Some(lora) = &linear.lora {
                    let stem = format!("{PREFIX}model.layers.{index}.{name}");
                    out.insert(format!("{stem}.lora_A.weight"), lora.a.to_device(&Device::Cpu)?);
                    out.insert(format!("{stem}.lora_B.weight"), lora.b.to_device(&Device::Cpu)?);
                }
            }
        }
        Ok(out)
    }

    /// Writes `adapter_config.json` and `adapter_model.safetensors` (f32, or bf16 when `compact`)
    /// into `folder`, which is made when missing. The bytes depend on the tensors only.
    pub fn save_adapter(&self, folder: &Path, compact: bool) -> Result<()> {
        if self.lora.is_none() {
            return Err(ModelError::invalid("there is no adapter to save; attach one first"));
        }
        self.save_adapter_config(folder)?;
        let dtype = if compact { DType::BF16 } else { DType::F32 };
        let tensors =
            self.adapter_tensors()?.into_iter().map(|(n, t)| Ok((n, t.to_dtype(dtype)?))).collect::<Result<_>>()?;
        save_tensors(&folder.join("adapter_model.safetensors"), &tensors)
    }

    /// Writes `adapter_config.json` into `folder`, which is made when missing; nothing without an adapter.
    pub fn save_adapter_config(&self, folder: &Path) -> Result<()> {
        let Some(lora) = &self.lora else { return Ok(()) };
        std::fs::create_dir_all(folder).map_err(ModelError::write(folder))?;
        let targets: Vec<&str> = LINEARS.iter().filter_map(|name| name.rsplit('.').next()).collect();
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": null, "bias": "none",
            "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true,
            "lora_alpha": lora.alpha, "lora_dropout": 0.0, "r": lora.rank, "target_modules": targets,
        });
        let text = format!("{config:#}\n");
        let path = folder.join("adapter_config.json");
        std::fs::write(&path, text).map_err(ModelError::write(&path))
    }

    /// Lays the adapter in `folder` over the weights and makes it the trained tensors.
    pub fn load_adapter(&mut self, folder: &Path) -> Result<()> {
        let path = folder.join("adapter_config.json");
        let json = read_json(&path)?;
        let need = |key: &str| json[key].as_f64().ok_or_else(|| ModelError::format(&path, format!("{key} is missing")));
        let lora = LoraConfig { rank: need("r")? as usize, alpha: need("lora_alpha")? };
        for key in ["use_rslora", "use_dora", "fan_in_fan_out"] {
            if json[key].as_bool() == Some(true) {
                return Err(ModelError::format(&path, format!("{key} is not supported")));
            }
        }
        if json["bias"].as_str().unwrap_or("none") != "none"
            || json["rank_pattern"].as_object().is_some_and(|m| !m.is_empty())
        {
            return Err(ModelError::format(&path, "adapters with biases or differing ranks are not supported"));
        }
        let path = folder.join("adapter_model.safetensors");
        let mut tensors = load_tensors(&path)?;
        let shapes = linear_shapes(&self.config);
        for (index, layer) in self.layers.iter_mut().enumerate() {
            for ((name, linear), (out, input)) in LINEARS.iter().zip(&mut layer.linears).zip(shapes) {
                let mut take = |half: &str, shape: (usize, usize)| -> Result<Tensor> {
                    let full = format!("{PREFIX}model.layers.{index}.{name}.{half}.weight");
                    match tensors.remove(&full) {
                        Some(t) if t.dims() == [shape.0, shape.1] => {
                            Ok(t.to_dtype(DType::F32)?.to_device(&self.device)?)
                        }
                        Some(t) => Err(ModelError::format(
                            &path,
                            format!(
                                "tensor {full} has shape {:?}, not {shape:?}: the adapter is for another model",
                                t.dims()
                            ),
                        )),
                        None => Err(ModelError::format(
                            &path,
                            format!("tensor {full} is missing; every linear module needs one"),
                        )),
                    }
                };
                let (a, b) = (take("lora_A", (lora.rank, input))?, take("lora_B", (out, lora.rank))?);
                linear.lora = Some(LoraPair { a, b, scale: lora.alpha / lora.rank as f64 });
            }
        }
        if let Some(name) = tensors.keys().next() {
            return Err(ModelError::format(&path, format!("unexpected tensor {name}")));
        }
        self.lora = Some(lora);
        self.trainable = Trainable::Lora;
        Ok(())
    }
}

/// Writes tensors as safetensors; equal tensors give equal bytes.
pub fn save_tensors(path: &Path, tensors: &BTreeMap<String, Tensor>) -> Result<()> {
    let on_cpu: Vec<(String, Tensor)> = tensors
        .iter()
        .map(|(name, t)| Ok((name.clone(), t.to_device(&Device::Cpu)?.contiguous()?)))
        .collect::<Result<_>>()?;
    let bytes = ::safetensors::serialize(on_cpu.iter().map(|(name, t)| (name.as_str(), t)), None)
        .map_err(|e| ModelError::format(path, e))?;
    std::fs::write(path, bytes).map_err(ModelError::write(path))
}

/// Reads safetensors onto the CPU.
pub fn load_tensors(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let bytes = std::fs::read(path).map_err(ModelError::read(path))?;
    let tensors = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu)
        .map_err(|e| ModelError::format(path, format!("not safetensors or damaged: {e}")))?;
    Ok(tensors.into_iter().collect())
}
