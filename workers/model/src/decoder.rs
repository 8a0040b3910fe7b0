//! Llama, Qwen2 and Qwen3 decoders: loading, the layer, and cached ragged decoding.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use candle_core::{DType, Device, Tensor};
use s3_config::{DTypeKind, ModelSpec};

use crate::{
    attention::{Batch, attend},
    cache::KvCache,
    config::DecoderConfig,
    device::{check_digest, device},
    error::{ModelError, Result},
    gguf::Gguf,
    linear::{Linear, Matrix},
    ops::{self, Kernels, Rope},
    packed::Packed,
    random::{self, Uniform},
    safetensors,
    tokenizer::TokenizerFile,
};

/// Names of a layer's linear modules, in the order of [`Layer::linears`].
pub(crate) const LINEARS: [&str; 7] = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
];
pub(crate) const Q: usize = 0;
pub(crate) const K: usize = 1;
pub(crate) const V: usize = 2;
pub(crate) const O: usize = 3;
pub(crate) const GATE: usize = 4;
pub(crate) const UP: usize = 5;
pub(crate) const DOWN: usize = 6;

/// New tokens processed at once: bounds the memory of activations and of padded scores.
const TOKENS_PER_PASS_SLICES: usize = 512;
const TOKENS_PER_PASS_TENSORS: usize = 32_768;

/// Layers' results that a training pass keeps on a GPU unless told otherwise.
const KEPT_BYTES_GPU: usize = 8 << 30;

#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) input_norm: Tensor,
    pub(crate) post_norm: Tensor,
    /// Norms of the heads of q and k, where the family has them.
    pub(crate) qk_norm: Option<[Tensor; 2]>,
    pub(crate) linears: [Linear; 7],
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trainable {
    /// Nothing.
    None,
    /// The low-rank pairs (and a value head); the weights are frozen.
    Lora,
    /// Every weight (and a value head); f32 only.
    Full,
}

/// A linear map of the last hidden state to a value (PPO's critic).
#[derive(Clone)]
pub(crate) struct ValueHead {
    /// `[1, hidden]`, f32.
    pub(crate) weight: Tensor,
    /// `[1]`, f32.
    pub(crate) bias: Tensor,
}

/// A decoder. Cloning shares the weights, so a frozen copy beside a trained adapter is cheap.
#[derive(Clone)]
pub struct Decoder {
    pub(crate) config: DecoderConfig,
    pub(crate) device: Device,
    pub(crate) dtype: DType,
    pub(crate) kernels: Kernels,
    pub(crate) embed: Matrix,
    pub(crate) layers: Vec<Layer>,
    pub(crate) norm: Tensor,
    pub(crate) head: Option<Matrix>,
    pub(crate) value: Option<ValueHead>,
    pub(crate) lora: Option<s3_config::LoraConfig>,
    pub(crate) trainable: Trainable,
    /// f32 copies of trained weights that the model computes with in bf16.
    pub(crate) masters: BTreeMap<String, Tensor>,
    pub(crate) kept_bytes: usize,
    pub(crate) rope: Rope,
}

/// What the backward pass of a layer needs of its forward pass.
pub(crate) struct Saved {
    /// The normed input; computed again where it is not kept.
    pub(crate) n1: Option<Tensor>,
    /// q and k before the norms of their heads.
    pub(crate) raw: Option<[Tensor; 2]>,
    pub(crate) q: Tensor,
    pub(crate) k: Tensor,
    pub(crate) v: Tensor,
    pub(crate) o: Tensor,
    /// Logarithms of the softmax's sums, where the kernel gives them.
    pub(crate) lse: Option<Tensor>,
    pub(crate) h: Tensor,
    pub(crate) n2: Option<Tensor>,
    pub(crate) gate: Tensor,
    pub(crate) up: Tensor,
    pub(crate) act: Option<Tensor>,
}

impl Saved {
    /// Without what one pass over memory gives again.
    pub(crate) fn lighter(self) -> Self {
        Self { n1: None, n2: None, act: None, ..self }
    }
}

impl Decoder {
    /// Loads a GGUF file or a Hugging Face folder, its tokenizer, and the adapter when one is
    /// named; digests are checked first. Quantised weights are dequantised once.
    pub fn load(spec: &ModelSpec) -> Result<(Self, TokenizerFile)> {
        Self::load_with(spec, false)
    }

    /// As [`Self::load`], for inference alone: on the CPU quantised weights of a GGUF file stay packed, a
    /// sixth of the memory and several times the decoding speed, and differ from [`Self::load`]'s by
    /// rounding only. An adapter stays beside them. Elsewhere, and for other files, this is `load`.
    pub fn load_packed(spec: &ModelSpec) -> Result<(Self, TokenizerFile)> {
        Self::load_with(spec, true)
    }

    fn load_with(spec: &ModelSpec, pack: bool) -> Result<(Self, TokenizerFile)> {
        Self::load_to(spec, &device(spec.device)?, pack)
    }

    /// As [`Self::load`], onto a device that is open already.
    pub fn load_on(spec: &ModelSpec, device: &Device) -> Result<(Self, TokenizerFile)> {
        Self::load_to(spec, device, false)
    }

    fn load_to(spec: &ModelSpec, device: &Device, pack: bool) -> Result<(Self, TokenizerFile)> {
        let dtype = match spec.dtype {
            DTypeKind::F32 => DType::F32,
            DTypeKind::Bf16 if device.is_cuda() => DType::BF16,
            DTypeKind::Bf16 => {
                return Err(ModelError::invalid("dtype Bf16 needs a CUDA device; set dtype: F32 for the CPU"));
            }
        };
        let whole = spec.adapter.as_ref().filter(|adapter| adapter.is_whole());
        if let Some(adapter) = whole {
            // all weights are others; tokenizer and identity stay the model's
            check_model(&spec.path, spec.sha256.as_deref())?;
            check_digest(&adapter.tensors(), adapter.sha256.as_deref())?;
            return Ok((Self::from_folder(&adapter.path, device, dtype)?, TokenizerFile::of(spec)?));
        }
        let (mut decoder, tokenizer) = Self::load_from(&spec.path, spec.sha256.as_deref(), device, dtype, pack)?;
        if let Some(adapter) = &spec.adapter {
            check_digest(&adapter.tensors(), adapter.sha256.as_deref())?;
            decoder.load_adapter(&adapter.path)?;
        }
        Ok((decoder, tokenizer.told(spec)?))
    }

    /// The weights of a Hugging Face folder.
    fn from_folder(path: &Path, device: &Device, dtype: DType) -> Result<Self> {
        let config = safetensors::config(path)?;
        let tensors = safetensors::tensors(&safetensors::files(path)?, device, dtype)?;
        Self::from_tensors(path, config, tensors, device, dtype)
    }

    fn load_from(
        path: &Path,
        sha256: Option<&str>,
        device: &Device,
        dtype: DType,
        pack: bool,
    ) -> Result<(Self, TokenizerFile)> {
        check_model(path, sha256)?;
        if path.is_dir() {
            return Ok((Self::from_folder(path, device, dtype)?, TokenizerFile::from_folder(path)?));
        }
        let mut gguf = Gguf::open(path)?;
        let config = gguf.config()?;
        let tokenizer = TokenizerFile::from_gguf(&gguf)?;
        let pack = pack && Kernels::of(device, dtype) == Kernels::Slices;
        let (tensors, packed) = gguf.tensors(&config, device, dtype, pack)?;
        Ok((Self::assemble(path, config, tensors, packed, device, dtype)?, tokenizer))
    }

    /// A decoder with random weights, the same for the same seed on every machine.
    pub fn random(config: DecoderConfig, seed: u64, device: &Device, dtype: DType) -> Result<Self> {
        config.check()?;
        let mut tensors = BTreeMap::new();
        let c = &config;
        let mut uniform = Uniform::new(seed, "decoder");
        let mut add = |name: String, shape: (usize, usize)| -> Result<()> {
            let std = 0.4 / (shape.1 as f32).sqrt();
            tensors.insert(name, random::normal(&mut uniform, shape, std)?);
            Ok(())
        };
        add("model.embed_tokens.weight".into(), (c.vocab, c.hidden))?;
        if !c.tied {
            add("lm_head.weight".into(), (c.vocab, c.hidden))?;
        }
        for layer in 0..c.layers {
            for (name, (out, input)) in LINEARS.iter().zip(linear_shapes(c)) {
                add(format!("model.layers.{layer}.{name}.weight"), (out, input))?;
            }
        }
        let ones = |n: usize| Tensor::ones(n, DType::F32, &Device::Cpu);
        for layer in 0..c.layers {
            for name in ["input_layernorm", "post_attention_layernorm"] {
                tensors.insert(format!("model.layers.{layer}.{name}.weight"), ones(c.hidden)?);
            }
            for name in ["q_norm", "k_norm"].iter().filter(|_| c.qk_norm()) {
                tensors.insert(format!("model.layers.{layer}.self_attn.{name}.weight"), ones(c.head_dim)?);
            }
            if c.qkv_bias {
                for (name, (out, _)) in LINEARS.iter().zip(linear_shapes(c)).take(3) {
                    let bias = random::normal(&mut uniform, (1, out), 0.1)?.squeeze(0)?;
                    tensors.insert(format!("model.layers.{layer}.{name}.bias"), bias);
                }
            }
        }
        tensors.insert("model.norm.weight".into(), ones(c.hidden)?);
        let tensors = tensors
            .into_iter()
            .map(|(name, t)| Ok((name, t.to_dtype(dtype)?.to_device(device)?)))
            .collect::<Result<_>>()?;
        Self::from_tensors(Path::new("(random)"), config, tensors, device, dtype)
    }

    /// From tensors by Hugging Face name. `origin` is named in errors.
    pub fn from_tensors(
        origin: &Path,
        config: DecoderConfig,
        tensors: BTreeMap<String, Tensor>,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        Self::assemble(origin, config, tensors, BTreeMap::new(), device, dtype)
    }

    fn assemble(
        origin: &Path,
        config: DecoderConfig,
        mut tensors: BTreeMap<String, Tensor>,
        mut packed: BTreeMap<String, Packed>,
        device: &Device,
        dtype: DType,
    ) -> Result<Self> {
        config.check()?;
        let wrong = |name: &str, found: &[usize], shape: &[usize]| {
            ModelError::format(origin, format!("tensor {name} has shape {found:?}, not {shape:?}"))
        };
        let mut take = |name: &str, shape: &[usize]| -> Result<Tensor> {
            let tensor =
                tensors.remove(name).ok_or_else(|| ModelError::format(origin, format!("tensor {name} is missing")))?;
            if tensor.dims() != shape {
                return Err(wrong(name, tensor.dims(), shape));
            }
            Ok(tensor.contiguous()?)
        };
        let mut matrix =
            |name: &str, shape: [usize; 2], take: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>| match packed
                .remove(name)
            {
                Some(packed) if packed.dims() == shape => Ok(Matrix::Packed(Arc::new(packed))),
                Some(packed) => Err(wrong(name, &packed.dims(), &shape)),
                None => take(name, &shape).map(Matrix::Dense),
            };
        let c = &config;
        let embed = matrix("model.embed_tokens.weight", [c.vocab, c.hidden], &mut take)?;
        let head = if c.tied { None } else { Some(matrix("lm_head.weight", [c.vocab, c.hidden], &mut take)?) };
        let norm = take("model.norm.weight", &[c.hidden])?;
        let mut layers = Vec::with_capacity(c.layers);
        for layer in 0..c.layers {
            let prefix = format!("model.layers.{layer}");
            let mut linears = Vec::with_capacity(7);
            for (i, (name, (out, input))) in LINEARS.iter().zip(linear_shapes(c)).enumerate() {
                let weight = matrix(&format!("{prefix}.{name}.weight"), [out, input], &mut take)?;
                let bias =
                    if c.qkv_bias && i <= V { Some(take(&format!("{prefix}.{name}.bias"), &[out])?) } else { None };
                linears.push(Linear::new(weight, bias));
            }
            let linears = linears.try_into().map_err(|_| ModelError::invalid("a layer has seven linear modules"))?;
            layers.push(Layer {
                input_norm: take(&format!("{prefix}.input_layernorm.weight"), &[c.hidden])?,
                post_norm: take(&format!("{prefix}.post_attention_layernorm.weight"), &[c.hidden])?,
                qk_norm: if c.qk_norm() {
                    let mut norm = |name: &str| take(&format!("{prefix}.self_attn.{name}.weight"), &[c.head_dim]);
                    Some([norm("q_norm")?, norm("k_norm")?])
                } else {
                    None
                },
                linears,
            });
        }
        let kernels = Kernels::of_decoder(&config, device, dtype);
        let rope = Rope::new(c.rope_theta, c.head_dim, c.max_positions, device, kernels)?;
        Ok(Self {
            device: device.clone(),
            dtype,
            kernels,
            embed,
            layers,
            norm,
            head,
            value: None,
            lora: None,
            trainable: Trainable::None,
            masters: BTreeMap::new(),
            kept_bytes: KEPT_BYTES_GPU,
            rope,
            config,
        })
    }

    /// All dense weights by Hugging Face name, for tests.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn every_weight(&self) -> BTreeMap<String, Tensor> {
        let mut all = self.clone();
        all.trainable = Trainable::Full;
        all.trained_tensors()
    }

    /// Runs the portable tensor operations even where slice kernels exist: what a GPU runs, for
    /// tests of their equality.
    #[doc(hidden)]
    pub fn portable(mut self) -> Result<Self> {
        self.kernels = Kernels::Tensors;
        let c = &self.config;
        self.rope = Rope::new(c.rope_theta, c.head_dim, c.max_positions, &self.device, self.kernels)?;
        Ok(self)
    }

    /// The shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Where the weights are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Precision of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many bytes of layers' results a training pass on a GPU may keep; what does not fit is computed again.
    #[must_use]
    pub fn keeping(mut self, bytes: usize) -> Self {
        self.kept_bytes = bytes;
        self
    }

    /// Whether the weights are packed as their file stores them: for inference only.
    pub fn is_packed(&self) -> bool {
        self.embed.is_packed() || self.layers.iter().flat_map(|layer| &layer.linears).any(|l| l.weight.is_packed())
    }

    /// Whether what a row of a cache brings is the same to the last bit whatever rows are computed beside it, so
    /// that decoding may go on with whichever rows are ready.
    pub fn rows_stand_alone(&self) -> bool {
        self.kernels == Kernels::Slices
    }

    /// An empty cache with `rows` rows.
    pub fn cache(&self, rows: usize) -> Result<KvCache> {
        KvCache::new(&self.config, rows, self.kernels, &self.device, self.dtype)
    }

    /// Appends each row's new tokens (none for an empty list) and returns the logits after its last
    /// one: `[rows, vocab]` f32, zeros for rows without new tokens.
    pub fn step(&self, cache: &mut KvCache, new_tokens: &[Vec<u32>]) -> Result<Tensor> {
        if new_tokens.len() != cache.rows() {
            return Err(ModelError::invalid(format!(
                "{} rows of new tokens for a cache of {} rows",
                new_tokens.len(),
                cache.rows()
            )));
        }
        let active: Vec<(usize, &[u32])> =
            new_tokens.iter().enumerate().filter(|(_, t)| !t.is_empty()).map(|(row, t)| (row, t.as_slice())).collect();
        let logits = self.step_rows(cache, &active)?;
        if active.len() == new_tokens.len() {
            return Ok(logits);
        }
        let rows: Vec<u32> = active.iter().map(|&(row, _)| row as u32).collect();
        let index = Tensor::from_slice(&rows, rows.len(), &self.device)?;
        let zeros = Tensor::zeros((new_tokens.len(), self.config.vocab), DType::F32, &self.device)?;
        Ok(zeros.index_add(&index, &logits, 0)?)
    }

    /// Like [`Self::step`] for the named rows only: `[items, vocab]` f32 in their order. Each row
    /// at most once, with at least one token.
    pub fn step_rows(&self, cache: &mut KvCache, items: &[(usize, &[u32])]) -> Result<Tensor> {
        let hidden = self.advance(cache, items)?;
        self.logits(&hidden)
    }

    /// Appends tokens without computing logits.
    pub fn prefill(&self, cache: &mut KvCache, items: &[(usize, &[u32])]) -> Result<()> {
        self.advance(cache, items).map(|_| ())
    }

    /// Last hidden states `[items, hidden]` after the final norm. Runs on a thread of the pool, where each of
    /// the many small parallel parts begins without waking one.
    pub(crate) fn advance(&self, cache: &mut KvCache, items: &[(usize, &[u32])]) -> Result<Tensor> {
        rayon::scope(|_| self.advance_here(cache, items))
    }

    fn advance_here(&self, cache: &mut KvCache, items: &[(usize, &[u32])]) -> Result<Tensor> {
        let rows: Vec<usize> = items.iter().map(|&(row, _)| row).collect();
        cache.check_rows(&rows)?;
        let mut seen = vec![false; cache.rows()];
        for &(row, tokens) in items {
            if tokens.is_empty() || std::mem::replace(&mut seen[row], true) {
                return Err(ModelError::invalid(format!("row {row} is named twice or has no new token")));
            }
            self.check_tokens(tokens, cache.len(row))?;
        }
        let limit = match self.kernels {
            Kernels::Slices => TOKENS_PER_PASS_SLICES,
            Kernels::Tensors => TOKENS_PER_PASS_TENSORS,
            #[cfg(feature = "cuda")]
            Kernels::Fused => TOKENS_PER_PASS_TENSORS,
        };
        let mut outputs: Vec<Tensor> = Vec::new();
        for (pass, ends) in passes(items, limit) {
            let hidden = self.pass(cache, &pass)?;
            if !ends.is_empty() {
                let index = Tensor::from_slice(&ends, ends.len(), &self.device)?;
                outputs.push(hidden.index_select(&index, 0)?);
            }
        }
        if outputs.is_empty() {
            return Ok(Tensor::zeros((0, self.config.hidden), self.dtype, &self.device)?);
        }
        let last = Tensor::cat(&outputs, 0)?;
        ops::rms_norm(self.kernels, &last, &self.norm, self.config.norm_eps)
    }

    /// One pass over new tokens of some rows: hidden states `[tokens, hidden]` before the final norm.
    fn pass(&self, cache: &mut KvCache, items: &[(usize, &[u32])]) -> Result<Tensor> {
        let lens: Vec<usize> = items.iter().map(|(_, tokens)| tokens.len()).collect();
        let rows: Vec<usize> = items.iter().map(|&(row, _)| row).collect();
        let longest = items.iter().map(|(row, tokens)| cache.len(*row) + tokens.len()).max().unwrap_or(0);
        // rows without new tokens need one free slot, see `attention::Place`
        let idle = cache.lens.iter().max().map_or(0, |len| len + 1);
        cache.reserve(longest.max(idle))?;
        let batch = Batch::new(&self.config, lens, rows, Some(cache), self.kernels, &self.device)?;
        let tokens: Vec<u32> = items.iter().flat_map(|(_, tokens)| tokens.iter().copied()).collect();
        let mut x = self.embed_tokens(&tokens)?;
        for index in 0..self.layers.len() {
            x = self.layer(index, &x, &batch, Some(cache))?;
        }
        for &(row, tokens) in items {
            cache.lens[row] += tokens.len();
            cache.computed += tokens.len() as u64;
        }
        Ok(x)
    }

    pub(crate) fn embed_tokens(&self, tokens: &[u32]) -> Result<Tensor> {
        self.embed.select(tokens, &self.device)
    }

    /// One layer's output `[tokens, hidden]`.
    pub(crate) fn layer(&self, index: usize, x: &Tensor, batch: &Batch, cache: Option<&mut KvCache>) -> Result<Tensor> {
        let saved = self.layer_parts(index, x, batch, cache)?;
        self.layer_end(index, &saved)
    }

    /// The last product of a layer.
    pub(crate) fn layer_end(&self, index: usize, saved: &Saved) -> Result<Tensor> {
        self.layers[index].linears[DOWN].forward(self.kernels, &self.act(saved)?, Some(&saved.h))
    }

    pub(crate) fn act(&self, saved: &Saved) -> Result<Tensor> {
        match &saved.act {
            Some(act) => Ok(act.clone()),
            None => ops::swiglu(self.kernels, &saved.gate, &saved.up),
        }
    }

    /// Everything of a layer but its last product.
    pub(crate) fn layer_parts(
        &self,
        index: usize,
        x: &Tensor,
        batch: &Batch,
        cache: Option<&mut KvCache>,
    ) -> Result<Saved> {
        let (layer, kernels, eps) = (&self.layers[index], self.kernels, self.config.norm_eps);
        let n1 = ops::rms_norm(kernels, x, &layer.input_norm, eps)?;
        let linear = |i: usize, x: &Tensor| layer.linears[i].forward(kernels, x, None);
        let (mut q, mut k) = (linear(Q, &n1)?, linear(K, &n1)?);
        let raw = layer.qk_norm.as_ref().map(|_| [q.clone(), k.clone()]);
        if let Some(norms) = &layer.qk_norm {
            for (x, norm) in [&mut q, &mut k].into_iter().zip(norms) {
                let heads = x.reshape(((), norm.elem_count()))?;
                *x = ops::rms_norm(kernels, &heads, norm, eps)?.reshape(x.shape())?;
            }
        }
        let (q, k) = (self.rotate(q, batch, false)?, self.rotate(k, batch, false)?);
        let v = linear(V, &n1)?;
        let (o, lse) = attend(&self.config, batch, (&q, &k, &v), cache.map(|cache| (cache, index)))?;
        let h = layer.linears[O].forward(kernels, &o, Some(x))?;
        let n2 = ops::rms_norm(kernels, &h, &layer.post_norm, eps)?;
        let (gate, up) = (linear(GATE, &n2)?, linear(UP, &n2)?);
        let act = ops::swiglu(kernels, &gate, &up)?;
        Ok(Saved { n1: Some(n1), raw, q, k, v, o, lse, h, n2: Some(n2), gate, up, act: Some(act) })
    }

    pub(crate) fn rotate(&self, x: Tensor, batch: &Batch, inverse: bool) -> Result<Tensor> {
        self.rope.apply(x, &batch.positions, batch.position_index.as_ref(), inverse)
    }

    /// The output matrix `[vocab, hidden]`.
    pub(crate) fn output(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embed)
    }

    /// Logits `[n, vocab]` f32 of normalised hidden states.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        if hidden.dim(0)? == 0 {
            return Ok(Tensor::zeros((0, self.config.vocab), DType::F32, &self.device)?);
        }
        let output = Linear::new(self.output().clone(), None);
        Ok(output.forward(self.kernels, hidden, None)?.to_dtype(DType::F32)?)
    }

    /// Refuses tokens outside the vocabulary and contexts beyond the rotary tables.
    pub(crate) fn check_tokens(&self, tokens: &[u32], past: usize) -> Result<()> {
        let (vocab, limit) = (self.config.vocab, self.config.max_positions);
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(ModelError::invalid(format!("token {token} is outside the vocabulary of {vocab}")));
        }
        if past + tokens.len() > limit {
            return Err(ModelError::invalid(format!(
                "{} tokens are longer than the model's context of {limit}; lower the length budgets",
                past + tokens.len()
            )));
        }
        Ok(())
    }
}

/// Compares a model's file with its digest: a GGUF file, the only file of a folder, or the index of several.
fn check_model(path: &Path, sha256: Option<&str>) -> Result<()> {
    if !path.is_dir() {
        return check_digest(path, sha256);
    }
    if sha256.is_none() {
        return Ok(());
    }
    match safetensors::files(path)?.as_slice() {
        [file] => check_digest(file, sha256),
        _ => check_digest(&path.join("model.safetensors.index.json"), sha256),
    }
}

/// `(out, in)` of the linear modules.
pub(crate) fn linear_shapes(c: &DecoderConfig) -> [(usize, usize); 7] {
    let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
    [
        (q, c.hidden),
        (kv, c.hidden),
        (kv, c.hidden),
        (c.hidden, q),
        (c.ffn, c.hidden),
        (c.ffn, c.hidden),
        (c.hidden, c.ffn),
    ]
}

type Pass<'a> = (Vec<(usize, &'a [u32])>, Vec<u32>);

/// Cuts work into passes of at most `limit` tokens: rows in order, a long row in pieces. Where a row is cut
/// depends on the row alone, so that the others of its batch change nothing in it. With each pass come the
/// places of the tokens that end a row.
fn passes<'a>(items: &[(usize, &'a [u32])], limit: usize) -> Vec<Pass<'a>> {
    let mut out: Vec<Pass<'a>> = Vec::new();
    let (mut pass, mut ends, mut used) = (Vec::new(), Vec::new(), 0);
    for &(row, tokens) in items {
        let mut rest = tokens;
        while !rest.is_empty() {
            if used > 0 && rest.len() > limit - used {
                out.push((std::mem::take(&mut pass), std::mem::take(&mut ends)));
                used = 0;
            }
            let (piece, after) = rest.split_at(rest.len().min(limit - used));
            used += piece.len();
            pass.push((row, piece));
            rest = after;
            if rest.is_empty() {
                ends.push(used as u32 - 1);
            }
        }
    }
    if !pass.is_empty() {
        out.push((pass, ends));
    }
    out
}
