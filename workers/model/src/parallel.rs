//! One optimiser step of several ranks that share a batch.
//!
//! Each rank brings the gradients of its micro-batches. Every trained tensor has an owner; it gets the tensor's
//! gradient summed over all micro-batches in their order, holds the tensor's moments (and the f32 copy of a weight
//! that is trained in bf16) alone, steps it, and hands the new weight to the others (`ZeRO`, stage 1: arXiv
//! 1910.02054). On the CPU the sum is the one that a single process takes, to the bit; on GPUs NCCL sums, in an
//! order of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

#[cfg(feature = "cuda")]
use candle_core::DType;
use candle_core::{Device, Tensor};
use s3_collective::{Collective, CollectiveError, Local};

use crate::{
    cpu,
    decoder::Decoder,
    error::{ModelError, Result},
    gradients::Gradients,
    ops::with_slice,
    optimizer::AdamW,
};

/// The ranks that train one model.
pub struct Team {
    collective: Arc<dyn Collective>,
    #[cfg(feature = "cuda")]
    gpus: Option<crate::cuda::nccl::Nccl>,
}

/// A sum over all micro-batches, at the owners of its tensors.
pub struct Summed {
    /// This rank's.
    own: Gradients,
    /// Names that some rank has a gradient of, in name order.
    names: Vec<String>,
    /// Euclidean norm of all of them together.
    norm: f64,
}

impl Summed {
    /// Euclidean norm of the whole gradient, on every rank.
    pub fn norm(&self) -> f64 {
        self.norm
    }

    /// Whether no rank has a gradient.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

impl Team {
    /// A team of one: nothing is exchanged.
    pub fn alone() -> Self {
        Self {
            collective: Arc::new(Local::alone()),
            #[cfg(feature = "cuda")]
            gpus: None,
        }
    }

    /// Joins the ranks; on GPUs by NCCL as well, over which tensors then go.
    pub fn new(collective: Arc<dyn Collective>, device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        let gpus = match device {
            Device::Cuda(device) if collective.size() > 1 => {
                Some(crate::cuda::nccl::Nccl::join(collective.clone(), device)?)
            }
            _ => None,
        };
        #[cfg(not(feature = "cuda"))]
        let _ = device;
        Ok(Self {
            collective,
            #[cfg(feature = "cuda")]
            gpus,
        })
    }

    /// What else the ranks exchange.
    pub fn collective(&self) -> &dyn Collective {
        self.collective.as_ref()
    }

    /// This rank, from 0.
    pub fn rank(&self) -> usize {
        self.collective.rank()
    }

    /// Ranks in all.
    pub fn size(&self) -> usize {
        self.collective.size()
    }

    /// Whether tensors go from GPU to GPU.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::unused_self))] // there are none to ask
    fn direct(&self) -> bool {
        #[cfg(feature = "cuda")]
        return self.gpus.is_some();
        #[cfg(not(feature = "cuda"))]
        false
    }

    /// Whether gradients of this rank's micro-batches stay apart until [`Self::sum`], so that all are added in their
    /// order. The first rank's begin the sum and can be added at once.
    pub fn keeps_apart(&self, bitwise: bool) -> bool {
        bitwise && !self.direct() && self.rank() > 0
    }

    /// Trained tensors with their owners: contiguous in name order, about equally many elements each.
    fn owners(&self, decoder: &Decoder) -> BTreeMap<String, usize> {
        let trained = decoder.trained_tensors();
        let all: usize = trained.values().map(Tensor::elem_count).sum();
        let mut before = 0;
        let owner = |(name, tensor): (String, Tensor)| {
            let middle = before + tensor.elem_count() / 2;
            before += tensor.elem_count();
            (name, (middle * self.size() / all.max(1)).min(self.size() - 1))
        };
        trained.into_iter().map(owner).collect()
    }

    /// Share of all trained elements whose state the fullest rank holds.
    pub fn largest_share(&self, decoder: &Decoder) -> f64 {
        let (owners, trained) = (self.owners(decoder), decoder.trained_tensors());
        let mut held = vec![0usize; self.size()];
        for (name, tensor) in &trained {
            held[owners.get(name).copied().unwrap_or_default()] += tensor.elem_count();
        }
        let all: usize = held.iter().sum();
        held.into_iter().max().unwrap_or_default() as f64 / all.max(1) as f64
    }

    /// Drops what other ranks own.
    pub fn settle(&self, decoder: &mut Decoder, optimizer: &mut AdamW) {
        if self.size() == 1 {
            return;
        }
        let owners = self.owners(decoder);
        let mine = |name: &str| owners.get(name) == Some(&self.rank());
        optimizer.keep_only(mine);
        decoder.masters.retain(|name, _| mine(name));
    }

    /// Sums the gradients of all ranks' micro-batches. `parts` are this rank's, in their order.
    pub fn sum(&self, decoder: &Decoder, parts: Vec<Gradients>) -> Result<Summed> {
        if self.size() == 1 {
            let own = added(parts)?;
            let norm = own.global_norm()?;
            return Ok(Summed { names: own.0.keys().cloned().collect(), own, norm });
        }
        let owners = self.owners(decoder);
        let foreign = |part: &Gradients| part.0.keys().find(|name| !owners.contains_key(*name)).cloned();
        if let Some(name) = parts.iter().find_map(foreign) {
            return Err(ModelError::invalid(format!("there is a gradient of {name}, which is not trained")));
        }
        #[cfg(feature = "cuda")]
        if let Some(gpus) = &self.gpus {
            return self.sum_on_gpus(gpus, decoder, &owners, added(parts)?);
        }
        let names: Vec<&String> = owners.keys().collect();
        let by: Vec<usize> = owners.values().copied().collect();
        let mut failed = None;
        let mut values = |at: usize| -> Vec<Vec<f32>> {
            let of = parts.iter().filter_map(|part| part.0.get(names[at]));
            of.map(|gradient| with_slice(gradient, <[f32]>::to_vec)).collect::<Result<_>>().unwrap_or_else(|error| {
                failed = Some(error);
                Vec::new()
            })
        };
        let sums = self.collective.fold(&by, &mut values)?;
        if let Some(error) = failed {
            return Err(error);
        }
        let trained = decoder.trained_tensors();
        let mut own = Gradients::default();
        for (name, sum) in names.iter().zip(sums) {
            let (Some(sum), Some(like)) = (sum, trained.get(*name)) else { continue };
            if sum.len() != like.elem_count() {
                return Err(ModelError::invalid(format!("the gradient of {name} has another size than the tensor")));
            }
            own.0.insert((*name).clone(), Tensor::from_vec(sum, like.shape(), &Device::Cpu)?);
        }
        let squares = own.0.values().map(|sum| with_slice(sum, cpu::sum_of_squares)).collect::<Result<Vec<_>>>()?;
        let squares = self.squares(own.0.keys().cloned().zip(squares))?;
        let norm = squares.values().sum::<f64>().sqrt();
        Ok(Summed { own, names: squares.into_keys().collect(), norm })
    }

    /// Squares by tensor of all ranks, in name order: added up so, they give what one process finds.
    fn squares(&self, own: impl Iterator<Item = (String, f64)>) -> Result<BTreeMap<String, f64>> {
        let own: Vec<(String, u64)> = own.map(|(name, square)| (name, square.to_bits())).collect();
        let mut all = BTreeMap::new();
        for bytes in self.collective.all_gather(serde_json::to_vec(&own).map_err(defect)?)? {
            let theirs: Vec<(String, u64)> = serde_json::from_slice(&bytes).map_err(defect)?;
            all.extend(theirs.into_iter().map(|(name, bits)| (name, f64::from_bits(bits))));
        }
        Ok(all)
    }

    /// Scales the gradient down to `max_norm` when its norm is above it, steps every tensor at its owner, and brings
    /// the new weights to all ranks.
    pub fn step(
        &self,
        decoder: &mut Decoder,
        optimizer: &mut AdamW,
        mut summed: Summed,
        max_norm: f64,
        rate: f64,
    ) -> Result<()> {
        if summed.norm > max_norm && max_norm > 0.0 {
            summed.own.scale(max_norm / summed.norm)?;
        }
        let owners = if self.size() == 1 { BTreeMap::new() } else { self.owners(decoder) };
        optimizer.step(decoder, &summed.own, rate)?;
        if self.size() == 1 {
            return Ok(());
        }
        drop(summed.own);
        #[cfg(feature = "cuda")]
        if let Some(gpus) = &self.gpus {
            return Self::exchange_on_gpus(gpus, decoder, &owners, &summed.names);
        }
        let (trained, owners, names) = (decoder.trained_tensors(), &owners, &summed.names);
        let of = |rank: usize| names.iter().filter(move |name| owners.get(*name) == Some(&rank));
        let mut own = Vec::new();
        for tensor in of(self.rank()).filter_map(|name| trained.get(name)) {
            with_slice(tensor, |values| own.extend_from_slice(values))?;
        }
        let all = self.collective.all_gather_values(&own)?;
        for (rank, values) in all.into_iter().enumerate().filter(|(rank, _)| *rank != self.rank()) {
            let mut rest = values.as_slice();
            for name in of(rank) {
                let Some(like) = trained.get(name) else { continue };
                let Some((values, after)) = rest.split_at_checked(like.elem_count()) else {
                    return Err(ModelError::invalid(format!("rank {rank} sent too few weights; run one version")));
                };
                rest = after;
                decoder.set_trained(name, Tensor::from_slice(values, like.shape(), &Device::Cpu)?)?;
            }
        }
        Ok(())
    }

    /// The trained tensors and the optimiser's state, whole, on the first rank; nothing on the others.
    #[allow(clippy::type_complexity)] // two maps of tensors, as checkpoints keep them
    pub fn whole(
        &self,
        decoder: &Decoder,
        optimizer: &AdamW,
    ) -> Result<Option<(BTreeMap<String, Tensor>, BTreeMap<String, Tensor>)>> {
        let (mut policy, mut state) = (decoder.trained_tensors(), optimizer.state()?);
        if self.size() == 1 {
            return Ok(Some((policy, state)));
        }
        let mut own: BTreeMap<String, Tensor> = state.iter().map(|(n, t)| (format!("s.{n}"), t.clone())).collect();
        own.extend(decoder.masters.iter().map(|(name, master)| (format!("w.{name}"), master.clone())));
        let bytes = if self.rank() == 0 { Vec::new() } else { to_bytes(&own)? };
        let all = self.collective.all_gather(bytes)?;
        if self.rank() > 0 {
            return Ok(None);
        }
        for bytes in &all[1..] {
            for (name, tensor) in from_bytes(bytes)? {
                match name.split_once('.') {
                    Some(("s", name)) => state.insert(name.to_owned(), tensor),
                    Some((_, name)) => policy.insert(name.to_owned(), tensor),
                    None => None,
                };
            }
        }
        Ok(Some((policy, state)))
    }

    /// The first rank's tensors, on every rank and on the CPU; only the first rank's argument is looked at.
    pub fn told(&self, tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Tensor>> {
        let bytes = if self.rank() == 0 { to_bytes(tensors)? } else { Vec::new() };
        from_bytes(&self.collective.broadcast(0, bytes)?)
    }
}

#[cfg(feature = "cuda")]
impl Team {
    fn sum_on_gpus(
        &self,
        gpus: &crate::cuda::nccl::Nccl,
        decoder: &Decoder,
        owners: &BTreeMap<String, usize>,
        mut own: Gradients,
    ) -> Result<Summed> {
        let names: Vec<&String> = own.0.keys().collect();
        let mut known = std::collections::BTreeSet::new();
        for bytes in self.collective.all_gather(serde_json::to_vec(&names).map_err(defect)?)? {
            known.extend(serde_json::from_slice::<Vec<String>>(&bytes).map_err(defect)?);
        }
        let trained = decoder.trained_tensors();
        let mut sums = Vec::new();
        for name in &known {
            let (Some(like), Some(owner)) = (trained.get(name), owners.get(name)) else {
                return Err(ModelError::invalid(format!(
                    "another rank trains {name}; give all the same configuration"
                )));
            };
            let gradient = match own.0.remove(name) {
                Some(gradient) => gradient.contiguous()?,
                None => Tensor::zeros(like.shape(), DType::F32, decoder.device())?,
            };
            sums.push((gradient, *owner));
        }
        let sums = gpus.reduce(sums)?;
        let own: BTreeMap<String, Tensor> =
            known.iter().cloned().zip(sums).filter_map(|(name, sum)| Some((name, sum?))).collect();
        let square = crate::cuda::ops::sum_of_squares(&own.values().collect::<Vec<_>>())?;
        let squares = self.squares(std::iter::once((format!("{:04}", self.rank()), square)))?;
        Ok(Summed {
            own: Gradients(own),
            names: known.into_iter().collect(),
            norm: squares.values().sum::<f64>().sqrt(),
        })
    }

    /// Weights as the model computes with them; a master stays with its owner.
    fn exchange_on_gpus(
        gpus: &crate::cuda::nccl::Nccl,
        decoder: &mut Decoder,
        owners: &BTreeMap<String, usize>,
        names: &[String],
    ) -> Result<()> {
        let mut sent = Vec::with_capacity(names.len());
        for name in names {
            let tensor = decoder.working(name)?;
            sent.push((tensor.contiguous()?, owners.get(name).copied().unwrap_or_default()));
        }
        for (name, tensor) in names.iter().zip(gpus.broadcast(sent)?) {
            if let Some(tensor) = tensor {
                decoder.set_working(name, tensor)?;
            }
        }
        Ok(())
    }
}

/// Gradients added in their order.
fn added(parts: Vec<Gradients>) -> Result<Gradients> {
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_default();
    parts.try_for_each(|part| sum.add(&part))?;
    Ok(sum)
}

#[allow(clippy::needless_pass_by_value)] // as `map_err` hands it over
fn defect(error: serde_json::Error) -> ModelError {
    ModelError::invalid(format!("a message between replicas: {error}; run the same version everywhere"))
}

fn to_bytes(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>> {
    let on_cpu = tensors.iter().map(|(name, t)| Ok((name, t.to_device(&Device::Cpu)?.contiguous()?)));
    let on_cpu: Vec<(&String, Tensor)> = on_cpu.collect::<Result<_>>()?;
    ::safetensors::serialize(on_cpu.iter().map(|(name, t)| (name.as_str(), t)), None)
        .map_err(|e| ModelError::invalid(format!("tensors for another replica: {e}")))
}

fn from_bytes(bytes: &[u8]) -> Result<BTreeMap<String, Tensor>> {
    Ok(candle_core::safetensors::load_buffer(bytes, &Device::Cpu)?.into_iter().collect())
}

impl From<CollectiveError> for ModelError {
    fn from(error: CollectiveError) -> Self {
        Self::Replicas(error)
    }
}
