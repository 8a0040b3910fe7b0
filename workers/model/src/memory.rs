//! How much memory training takes, before it starts.

use candle_core::{DType, Device};

use crate::{
    decoder::{Decoder, Trainable},
    error::{ModelError, Result},
    ops::Kernels,
};

/// Sizes of the work: what is held besides the weights.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Rows that generate together.
    pub rows: usize,
    /// Sequences of one training pass.
    pub sequences: usize,
    /// Tokens of a row or sequence, at most.
    pub tokens: usize,
    /// Positions of a sequence whose log-probabilities count, at most.
    pub positions: usize,
}

/// Bytes that training holds, by what for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The model as loaded, with its adapter and value head.
    pub model: u64,
    /// f32 copies of weights that are trained in bf16.
    pub copies: u64,
    /// Moments of the optimiser.
    pub optimizer: u64,
    /// Other policies than the one that is trained, where they share nothing with it.
    pub policies: u64,
    /// Keys and values while rows generate.
    pub cache: u64,
    /// Gradients.
    pub gradients: u64,
    /// Gradients of micro-batches that are kept apart, so that several replicas add them in one order.
    pub apart: u64,
    /// Results of layers, kept or passing, in a training pass.
    pub activations: u64,
    /// Logits and attention scores in a training pass.
    pub logits: u64,
}

impl MemoryPlan {
    /// Most that is held at once: generating and training take turns.
    pub fn peak(&self) -> u64 {
        self.model
            + self.copies
            + self.optimizer
            + self.policies
            + self.cache.max(self.gradients + self.apart + self.activations + self.logits)
    }

    /// The plan of one of several replicas: of the optimiser's state and the f32 copies it holds `share` at most, and
    /// it keeps the gradients of `parts` micro-batches.
    #[must_use]
    pub fn shared(mut self, share: f64, parts: u64) -> Self {
        let trained = self.optimizer / 2;
        let of = |bytes: u64| (bytes as f64 * share).ceil() as u64;
        (self.optimizer, self.copies) = (of(self.optimizer), of(self.copies));
        self.apart = trained * parts.saturating_sub(1);
        self
    }

    /// The plan with so many fixed and earlier policies kept beside the trained one. Low-rank weights share all else
    /// with it; earlier ones may be trained again, fixed ones not.
    #[must_use]
    pub fn beside(mut self, fixed: u64, earlier: u64, trainable: Trainable) -> Self {
        let all = fixed * self.model + earlier * (self.model + self.copies);
        self.policies = if trainable == Trainable::Full { all } else { 0 };
        self
    }

    /// What is held whatever the episodes turn out to be, beside the model.
    pub fn certain(&self) -> u64 {
        self.copies + self.optimizer + self.policies + self.gradients + self.apart
    }

    /// Refuses a plan that does not fit beside what the device holds already; the model is loaded.
    pub fn check(&self, device: &Device) -> Result<()> {
        self.check_bytes(self.peak() - self.model, device)
    }

    /// As [`Self::check`], of what is certain alone.
    pub fn check_certain(&self, device: &Device) -> Result<()> {
        self.check_bytes(self.certain(), device)
    }

    fn check_bytes(&self, more: u64, device: &Device) -> Result<()> {
        #[cfg(feature = "cuda")]
        let free = match device {
            Device::Cuda(device) => Some(crate::cuda::launch::free_memory(device)?),
            _ => host_memory(),
        };
        #[cfg(not(feature = "cuda"))]
        let free = host_memory();
        let Some(free) = free else { return Ok(()) };
        if more <= free {
            return Ok(());
        }
        Err(ModelError::invalid(format!(
            "training needs {} more memory on {} than the model, and {} are free ({self}); lower the micro-batch, the rows that generate together or the context, or take a larger device",
            gib(more),
            if device.is_cuda() { "the GPU" } else { "this machine" },
            gib(free)
        )))
    }
}

impl std::fmt::Display for MemoryPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("model", self.model),
            ("f32 copies", self.copies),
            ("optimiser", self.optimizer),
            ("other policies", self.policies),
            ("generating: cache", self.cache),
            ("or training: gradients", self.gradients),
            ("gradients apart", self.apart),
            ("activations", self.activations),
            ("logits", self.logits),
        ];
        write!(f, "{} at most", gib(self.peak()))?;
        for (name, bytes) in parts.into_iter().filter(|(_, bytes)| *bytes > 0) {
            write!(f, ", {name} {}", gib(bytes))?;
        }
        Ok(())
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1u32 << 30))
}

/// Memory that a process can still take on this machine; none where the system does not tell.
fn host_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let host = text.lines().find_map(|line| {
        let kib: u64 = line.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    });
    let number = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse().ok()
    };
    // "max" is no number: no limit
    let group = number("memory.max").map(|limit| limit.saturating_sub(number("memory.current").unwrap_or(0)));
    match (host, group) {
        (Some(host), Some(group)) => Some(host.min(group)),
        (host, group) => host.or(group),
    }
}

impl Decoder {
    /// What training this decoder, as it is set up, takes for `work`.
    pub fn memory_plan(&self, work: Workload) -> MemoryPlan {
        let (c, size) = (&self.config, self.dtype.size_in_bytes() as u64);
        let (mut model, mut largest) = (0u64, 0u64);
        let mut add = |tensor: Option<&candle_core::Tensor>| {
            let Some(tensor) = tensor else { return };
            model += (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        };
        for layer in &self.layers {
            add(Some(&layer.input_norm));
            add(Some(&layer.post_norm));
            for linear in &layer.linears {
                add(linear.weight.dense().ok());
                add(linear.bias.as_ref());
                add(linear.lora.as_ref().map(|pair| &pair.a));
                add(linear.lora.as_ref().map(|pair| &pair.b));
            }
        }
        add(Some(&self.norm));
        add(self.embed.dense().ok());
        add(self.head.as_ref().and_then(|head| head.dense().ok()));
        let (mut trained, mut head_gradient) = (0u64, 0u64);
        for (name, tensor) in self.trained_tensors() {
            let bytes = (tensor.elem_count() * DType::F32.size_in_bytes()) as u64;
            trained += bytes;
            largest = largest.max(bytes);
            if name == "lm_head.weight" || name == "model.embed_tokens.weight" {
                head_gradient = bytes;
            }
        }
        let all = |n: usize, elements: usize| n as u64 * elements as u64 * size;
        let tokens = work.sequences * work.tokens;
        let attention = c.attention_width();
        let inputs = all(tokens, (c.layers + 1) * c.hidden);
        let (kept, whole) = self.layers_kept(tokens);
        let layer = if whole { 3 * c.hidden + 3 * c.ffn } else { c.hidden + 2 * c.ffn } + attention;
        let kept = all(tokens, kept * layer);
        // a layer going back: its results, and the gradients of the widest of them
        let passing = all(tokens, 4 * c.hidden + attention + 6 * c.ffn);
        let positions = work.sequences * work.positions;
        let chunk = self.head_chunk(positions).min(positions.max(1));
        let held = if self.logits_kept(positions) { positions } else { chunk };
        // composed of tensor operations, the head and attention hold several f32 copies
        let copies: u64 = if self.kernels == Kernels::Tensors { 4 } else { 1 };
        let width = if self.kernels == Kernels::Tensors { 4 } else { size };
        let scores =
            if self.kernels == Kernels::Tensors { work.sequences * c.heads * work.tokens * work.tokens } else { 0 };
        let logits = held as u64 * c.vocab as u64 * width * copies + scores as u64 * 4 * copies;
        // Gradients grow while what was kept shrinks; the optimiser then replaces tensor by tensor.
        let start = kept + inputs + logits + head_gradient;
        let end = trained + passing.max(largest * 7 / 2);
        let gradients = if start > end { head_gradient } else { trained };
        let logits = if start > end { logits } else { 0 };
        let activations = start.max(end) - gradients - logits;
        let copies = if self.trainable == Trainable::Full && self.dtype != DType::F32 { trained } else { 0 };
        MemoryPlan {
            model,
            copies,
            optimizer: 2 * trained,
            policies: 0,
            cache: all(work.rows * work.tokens, 2 * c.layers * c.kv_heads * c.head_dim),
            gradients,
            apart: 0,
            activations,
            logits,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::DecoderConfig;
    use s3_config::LoraConfig;

    const WORK: Workload = Workload { rows: 8, sequences: 4, tokens: 128, positions: 32 };

    fn decoder() -> Decoder {
        let mut decoder = Decoder::random(DecoderConfig::tiny(512, 64, 2), 1, &Device::Cpu, DType::F32).unwrap();
        decoder.attach_lora(&LoraConfig { rank: 4, alpha: 8.0 }, 1).unwrap();
        decoder
    }

    #[test]
    fn a_plan_counts_what_is_there_and_grows_with_the_work() {
        let decoder = decoder();
        let plan = decoder.memory_plan(WORK);
        let adapter: usize = decoder.trained_tensors().values().map(|t| t.elem_count() * 4).sum();
        assert_eq!(plan.optimizer, 2 * adapter as u64);
        assert_eq!(plan.copies, 0);
        // 2 layers, keys and values of 2 heads of 16
        assert_eq!(plan.cache, 8 * 128 * 2 * 2 * 32 * 4);
        let more = decoder.memory_plan(Workload { sequences: 8, ..WORK });
        assert!(more.activations > plan.activations && more.peak() > plan.peak());
        assert!(plan.peak() > plan.model + plan.optimizer);
        assert!(plan.check(&Device::Cpu).is_ok());
    }

    #[test]
    fn every_weight_takes_moments_gradients_and_policies_of_its_own() {
        let mut all = Decoder::random(DecoderConfig::tiny(512, 64, 2), 1, &Device::Cpu, DType::F32).unwrap();
        all.train_all().unwrap();
        let plan = all.memory_plan(WORK).beside(1, 1, all.trainable());
        assert_eq!((plan.optimizer, plan.policies), (2 * plan.model, 2 * plan.model));
        assert!(plan.certain() >= 4 * plan.model && plan.certain() <= plan.peak());
        assert!(plan.check_certain(&Device::Cpu).is_ok());
        let large = MemoryPlan { optimizer: 1 << 60, ..plan };
        assert!(large.check_certain(&Device::Cpu).unwrap_err().to_string().contains("other policies"));
        // an adapter's policies share the weights
        assert_eq!(decoder().memory_plan(WORK).beside(1, 1, Trainable::Lora).policies, 0);
    }

    #[test]
    fn a_plan_that_cannot_fit_is_refused_with_its_numbers() {
        let plan = MemoryPlan { cache: 1 << 60, ..decoder().memory_plan(WORK) };
        let message = plan.check(&Device::Cpu).unwrap_err().to_string();
        assert!(message.contains("lower the micro-batch") && message.contains("cache 1073741824.00 GiB"), "{message}");
    }
}
