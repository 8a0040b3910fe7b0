//! The teacher-forced pass: log-probability, entropy and value of chosen tokens, and the gradient
//! of any objective of them. Layer inputs are kept; a layer whose results do not fit into a fixed
//! budget is computed again when its gradient is due, so memory is bounded. Nothing is padded on the
//! CPU, what neighbouring sequences begin with is computed once there, and the vocabulary is touched
//! only at the chosen positions.

use candle_core::{DType, Device, Tensor};

use crate::{
    attention::{Batch, attend_backward},
    decoder::{DOWN, Decoder, GATE, K, LINEARS, O, Q, Saved, Trainable, UP, V},
    error::{ModelError, Result},
    gradients::Gradients,
    head::{self, Logits, TokenGrads, TokenStats},
    linear::{Grads, add_gradient, add_product, add_rows, product_back},
    ops::{self, Kernels},
};

/// Chosen positions whose logits are held at once.
const HEAD_CHUNK: usize = 512;

/// Elements of layers' intermediate results that are kept for the backward pass on the CPU (256 MiB).
const KEPT_ACTIVATIONS: usize = 1 << 26;

/// Fewest tokens at the beginning of two sequences that are worth computing once.
const SHARED_TOKENS: usize = 8;

/// Logits that are kept for the backward pass on the CPU (128 MiB).
const KEPT_LOGITS: usize = 1 << 25;

/// The same on a GPU (2.5 GiB).
#[cfg(feature = "cuda")]
const KEPT_LOGITS_GPU: usize = 5 << 28;

/// One sequence with the positions that count.
#[derive(Clone, Debug, Default)]
pub struct TrainSequence {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Index t asks for `log p(tokens[t] | tokens[..t])`; increasing, each in `1..tokens.len()`.
    pub positions: Vec<usize>,
}

/// Per chosen position, in the order of sequences and then of positions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyOutputs {
    /// Log-probability of the token at the temperature.
    pub logprob: Vec<f32>,
    /// Entropy of the distribution at the temperature, nats.
    pub entropy: Vec<f32>,
    /// Value of the state before the token, when the decoder has a value head.
    pub value: Option<Vec<f32>>,
}

/// Derivatives of the loss by each field of [`PolicyOutputs`], in the same order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PolicyGrads {
    /// d loss / d logprob.
    pub logprob: Vec<f32>,
    /// d loss / d entropy.
    pub entropy: Vec<f32>,
    /// d loss / d value; `None` is zero.
    pub value: Option<Vec<f32>>,
}

/// A batch ready to run.
struct Prepared {
    batch: Batch,
    tokens: Vec<u32>,
    /// Row of the hidden state that predicts each chosen token.
    sources: Vec<u32>,
    targets: Vec<u32>,
}

impl Decoder {
    /// Outputs of a batch without gradients; the same numbers as [`Self::train_pass`] sees.
    pub fn score(&self, batch: &[TrainSequence], temperature: f32) -> Result<PolicyOutputs> {
        let prepared = self.prepare(batch, temperature)?;
        if prepared.sources.is_empty() {
            return Ok(self.empty());
        }
        let mut x = self.embed_tokens(&prepared.tokens)?;
        for index in 0..self.layers.len() {
            x = self.layer(index, &x, &prepared.batch, None)?;
        }
        let last = x.index_select(&self.index(&prepared.sources)?, 0)?;
        let hidden = ops::rms_norm(self.kernels, &last, &self.norm, self.config.norm_eps)?;
        self.outputs(&hidden, &prepared.targets, temperature, None)
    }

    /// Computes the outputs, asks `objective` for the loss's derivatives by them, and returns the
    /// gradients of the trained tensors in f32. A batch without positions gives empty gradients
    /// and does not call `objective`.
    pub fn train_pass(
        &self,
        batch: &[TrainSequence],
        temperature: f32,
        objective: &mut dyn FnMut(&PolicyOutputs) -> Result<PolicyGrads>,
    ) -> Result<Gradients> {
        if self.trainable == Trainable::None && self.value.is_none() {
            return Err(ModelError::invalid("nothing is trained; attach LoRA, or choose to train every weight"));
        }
        let prepared = self.prepare(batch, temperature)?;
        let mut grads = Grads::new();
        if prepared.sources.is_empty() {
            return finished(grads);
        }
        let (kept_layers, whole) = self.layers_kept(prepared.tokens.len());
        let kept_from = self.layers.len() - kept_layers;
        let mut kept = Vec::new();
        let mut inputs = vec![self.embed_tokens(&prepared.tokens)?];
        for index in 0..self.layers.len() {
            let saved = self.layer_parts(index, &inputs[index], &prepared.batch, None)?;
            inputs.push(self.layer_end(index, &saved)?);
            if index >= kept_from {
                kept.push(if whole { saved } else { saved.lighter() });
            }
        }
        let full = self.trainable == Trainable::Full;
        let Some(top) = inputs.pop() else { return Err(ModelError::invalid("a decoder without layers")) };
        let sources = self.index(&prepared.sources)?;
        let last = top.index_select(&sources, 0)?;
        let hidden = ops::rms_norm(self.kernels, &last, &self.norm, self.config.norm_eps)?;
        let mut logits = self.logits_kept(prepared.targets.len()).then(Vec::new);
        let outputs = self.outputs(&hidden, &prepared.targets, temperature, logits.as_mut())?;
        let wanted = objective(&outputs)?;
        check_lengths(&wanted, &outputs)?;
        let d_hidden = self.head_backward(&hidden, &prepared.targets, temperature, &wanted, logits, &mut grads)?;
        let (d_last, d_norm) =
            ops::rms_norm_backward(self.kernels, &last, &self.norm, self.config.norm_eps, &d_hidden, None, full)?;
        if let Some(d_norm) = d_norm {
            add_gradient(&mut grads, "model.norm.weight", d_norm)?;
        }
        if self.trainable == Trainable::None {
            return finished(grads);
        }
        let mut dx = ops::spread(self.kernels, &top, &sources, &d_last)?;
        drop(top);
        for index in (0..self.layers.len()).rev() {
            let Some(x) = inputs.pop() else { return Err(ModelError::invalid("a layer input is missing")) };
            let saved = match kept.pop() {
                Some(saved) => saved,
                None => self.layer_parts(index, &x, &prepared.batch, None)?,
            };
            dx = self.layer_backward(index, &x, &saved, &dx, &prepared.batch, &mut grads)?;
        }
        if full {
            add_rows(
                &mut grads,
                "model.embed_tokens.weight",
                self.kernels,
                self.embed.dense()?,
                &prepared.tokens,
                &dx,
            )?;
        }
        finished(grads)
    }

    fn index(&self, values: &[u32]) -> Result<Tensor> {
        Ok(Tensor::from_slice(values, values.len(), &self.device)?)
    }

    fn empty(&self) -> PolicyOutputs {
        PolicyOutputs { value: self.value.as_ref().map(|_| Vec::new()), ..PolicyOutputs::default() }
    }

    fn prepare(&self, batch: &[TrainSequence], temperature: f32) -> Result<Prepared> {
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(ModelError::invalid(format!(
                "log-probabilities need a temperature above 0, got {temperature}"
            )));
        }
        // Nothing after the last chosen token's predecessor can matter.
        let mut asked: Vec<(&TrainSequence, &[u32])> = Vec::new();
        for sequence in batch {
            let Some(&last) = sequence.positions.last() else { continue };
            let increasing = sequence.positions.windows(2).all(|pair| pair[0] < pair[1]);
            if !increasing || sequence.positions[0] == 0 || last >= sequence.tokens.len() {
                return Err(ModelError::invalid(format!(
                    "positions must increase within 1..{}, got {:?}",
                    sequence.tokens.len(),
                    sequence.positions
                )));
            }
            self.check_tokens(&sequence.tokens, 0)?;
            asked.push((sequence, &sequence.tokens[..last]));
        }
        let (mut tokens, mut sources, mut targets) = (Vec::new(), Vec::new(), Vec::new());
        let (mut lens, mut parents) = (Vec::new(), Vec::new());
        let mut rest = asked.as_slice();
        while !rest.is_empty() {
            let (count, shared) = if self.kernels == Kernels::Slices { sharing(rest) } else { (1, 0) };
            let (group, after) = rest.split_at(count);
            rest = after;
            let (parent, start) = (lens.len(), tokens.len());
            if shared > 0 {
                tokens.extend_from_slice(&group[0].1[..shared]);
                lens.push(shared);
                parents.push(None);
            }
            for (sequence, used) in group {
                let own = tokens.len();
                let place = |t: &usize| if *t <= shared { start + t - 1 } else { own + t - 1 - shared };
                sources.extend(sequence.positions.iter().map(|t| place(t) as u32));
                targets.extend(sequence.positions.iter().map(|&t| sequence.tokens[t]));
                if used.len() > shared {
                    tokens.extend_from_slice(&used[shared..]);
                    lens.push(used.len() - shared);
                    parents.push((shared > 0).then_some(parent));
                }
            }
        }
        let batch = match (self.kernels, lens.is_empty()) {
            (_, true) => Batch::new(&self.config, vec![1], vec![0], None, self.kernels, &self.device)?,
            (Kernels::Slices, false) => Batch::continuing(lens, parents),
            (_, false) => {
                let rows = (0..lens.len()).collect();
                Batch::new(&self.config, lens, rows, None, self.kernels, &self.device)?
            }
        };
        Ok(Prepared { batch, tokens, sources, targets })
    }

    /// Layers whose intermediate results are kept for the backward pass, and whether whole; the others compute
    /// them again, to the same bits. Without own kernels memory is scarcer than time on a GPU. With them, what one
    /// pass over memory gives again is kept only where all layers' fit.
    pub(crate) fn layers_kept(&self, tokens: usize) -> (usize, bool) {
        let c = &self.config;
        let attention = c.attention_width();
        let all = self.layers.len();
        let fit = |token: usize, budget: usize| all.min(budget / (token * tokens.max(1)));
        match self.kernels {
            Kernels::Slices => (fit(4 * c.hidden + attention + 3 * c.ffn, KEPT_ACTIVATIONS), true),
            Kernels::Tensors => (0, true),
            #[cfg(feature = "cuda")]
            Kernels::Fused => {
                let budget = self.kept_bytes / size_of::<half::bf16>();
                let whole = fit(3 * c.hidden + attention + 3 * c.ffn, budget) == all;
                (if whole { all } else { fit(c.hidden + attention + 2 * c.ffn, budget) }, whole)
            }
        }
    }

    /// Whether all logits are kept between the head's passes.
    pub(crate) fn logits_kept(&self, targets: usize) -> bool {
        let limit = match self.kernels {
            Kernels::Slices => KEPT_LOGITS,
            Kernels::Tensors => return false,
            #[cfg(feature = "cuda")]
            Kernels::Fused => KEPT_LOGITS_GPU,
        };
        targets * self.config.vocab <= limit
    }

    /// Chosen positions whose logits are held at once.
    pub(crate) fn head_chunk(&self, targets: usize) -> usize {
        match self.kernels {
            Kernels::Slices | Kernels::Tensors => HEAD_CHUNK.min(targets.max(1)),
            #[cfg(feature = "cuda")]
            Kernels::Fused if self.logits_kept(targets) => targets.max(1),
            #[cfg(feature = "cuda")]
            Kernels::Fused => HEAD_CHUNK,
        }
    }

    fn head_logits(&self, hidden: &Tensor) -> Result<Logits> {
        match self.kernels {
            Kernels::Slices => {
                let data = self.output().product(hidden, None)?;
                Ok(Logits::Slice { data, vocab: self.config.vocab, rows: Vec::new() })
            }
            Kernels::Tensors => Ok(Logits::Tensor(self.logits(hidden)?)),
            #[cfg(feature = "cuda")]
            Kernels::Fused => {
                let logits = crate::cuda::ops::linear(&hidden.contiguous()?, self.output().dense()?, None)?;
                Ok(Logits::Fused { logits, stats: None })
            }
        }
    }

    fn outputs(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        temperature: f32,
        mut keep: Option<&mut Vec<Logits>>,
    ) -> Result<PolicyOutputs> {
        let (mut logprob, mut entropy) = (Vec::new(), Vec::new());
        let size = self.head_chunk(targets.len());
        for (start, chunk) in targets.chunks(size).enumerate() {
            let mut logits = self.head_logits(&hidden.narrow(0, start * size, chunk.len())?)?;
            let TokenStats { logprob: l, entropy: h } = head::stats(&mut logits, chunk, temperature)?;
            logprob.extend(l);
            entropy.extend(h);
            if let Some(keep) = keep.as_deref_mut() {
                keep.push(logits);
            }
        }
        let value = match &self.value {
            Some(value) => {
                let product = hidden.to_dtype(DType::F32)?.matmul(&value.weight.t()?)?;
                Some(product.broadcast_add(&value.bias)?.squeeze(1)?.to_device(&Device::Cpu)?.to_vec1()?)
            }
            None => None,
        };
        Ok(PolicyOutputs { logprob, entropy, value })
    }

    /// Gradient by the normalised hidden states; adds those of the head and the value head.
    fn head_backward(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        temperature: f32,
        wanted: &PolicyGrads,
        kept: Option<Vec<Logits>>,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let full = self.trainable == Trainable::Full;
        let name = if self.head.is_some() { "lm_head.weight" } else { "model.embed_tokens.weight" };
        let mut parts = Vec::new();
        let mut kept = kept.into_iter().flatten();
        let active = wanted.logprob.iter().chain(&wanted.entropy).any(|g| g.abs() > 0.0);
        if active && self.trainable != Trainable::None {
            let size = self.head_chunk(targets.len());
            for (i, chunk) in targets.chunks(size).enumerate() {
                let at = i * size..i * size + chunk.len();
                let x = hidden.narrow(0, at.start, chunk.len())?;
                let logits = match kept.next() {
                    Some(logits) => logits,
                    None => self.head_logits(&x)?,
                };
                let by = TokenGrads { logprob: &wanted.logprob[at.clone()], entropy: &wanted.entropy[at] };
                let d_logits = head::backward(logits, chunk, temperature, &by)?.to_dtype(self.dtype)?;
                if full {
                    add_product(grads, name, self.kernels, &d_logits, &x, 1.0)?;
                }
                parts.push(product_back(self.kernels, &d_logits, self.output().dense()?, 1.0, None)?);
            }
        } else {
            if full {
                let zeros = self.output().dense()?.zeros_like()?.to_dtype(DType::F32)?;
                add_gradient(grads, name, zeros)?;
            }
            parts.push(hidden.zeros_like()?);
        }
        let mut d_hidden = Tensor::cat(&parts, 0)?;
        if let Some(head) = &self.value {
            let by = match &wanted.value {
                Some(by) => Tensor::from_slice(by, (by.len(), 1), &self.device)?,
                None => Tensor::zeros((targets.len(), 1), DType::F32, &self.device)?,
            };
            add_gradient(grads, "value_head.weight", by.t()?.matmul(&hidden.to_dtype(DType::F32)?)?)?;
            add_gradient(grads, "value_head.bias", by.sum(0)?)?;
            d_hidden = (d_hidden + by.matmul(&head.weight)?.to_dtype(self.dtype)?)?;
        }
        Ok(d_hidden)
    }

    fn normed(&self, x: &Tensor, kept: Option<&Tensor>, weight: &Tensor) -> Result<Tensor> {
        match kept {
            Some(kept) => Ok(kept.clone()),
            None => ops::rms_norm(self.kernels, x, weight, self.config.norm_eps),
        }
    }

    /// Gradient by a layer's input, from that by its output.
    fn layer_backward(
        &self,
        index: usize,
        x: &Tensor,
        s: &Saved,
        dy: &Tensor,
        batch: &Batch,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let (layer, kernels, eps) = (&self.layers[index], self.kernels, self.config.norm_eps);
        let full = self.trainable == Trainable::Full;
        let prefix = format!("model.layers.{index}");
        let back = |i: usize, x: &Tensor, dy: &Tensor, start: Option<&Tensor>, grads: &mut Grads| {
            layer.linears[i].backward(kernels, &format!("{prefix}.{}", LINEARS[i]), x, dy, start, full, grads)
        };
        let (act, n1, n2) = (
            self.act(s)?,
            self.normed(x, s.n1.as_ref(), &layer.input_norm)?,
            self.normed(&s.h, s.n2.as_ref(), &layer.post_norm)?,
        );
        let d_act = back(DOWN, &act, dy, None, grads)?;
        drop(act);
        let (d_gate, d_up) = ops::swiglu_backward(kernels, &s.gate, &s.up, &d_act)?;
        let d_n2 = back(GATE, &n2, &d_gate, None, grads)?;
        let d_n2 = back(UP, &n2, &d_up, Some(&d_n2), grads)?;
        let (d_h, d_norm) = ops::rms_norm_backward(kernels, &s.h, &layer.post_norm, eps, &d_n2, Some(dy), full)?;
        if let Some(d_norm) = d_norm {
            add_gradient(grads, &format!("{prefix}.post_attention_layernorm.weight"), d_norm)?;
        }
        let d_o = back(O, &s.o, &d_h, None, grads)?;
        let (d_q, d_k, d_v) = attend_backward(&self.config, batch, (&s.q, &s.k, &s.v), (&s.o, s.lse.as_ref()), &d_o)?;
        let (mut d_q, mut d_k) = (self.rotate(d_q, batch, true)?, self.rotate(d_k, batch, true)?);
        if let (Some(norms), Some(raw)) = (&layer.qk_norm, &s.raw) {
            for ((name, d), (norm, raw)) in ["q", "k"].iter().zip([&mut d_q, &mut d_k]).zip(norms.iter().zip(raw)) {
                let heads = ((), norm.elem_count());
                let (d_raw, d_norm) =
                    ops::rms_norm_backward(kernels, &raw.reshape(heads)?, norm, eps, &d.reshape(heads)?, None, full)?;
                *d = d_raw.reshape(raw.shape())?;
                if let Some(d_norm) = d_norm {
                    add_gradient(grads, &format!("{prefix}.self_attn.{name}_norm.weight"), d_norm)?;
                }
            }
        }
        let d_n1 = back(Q, &n1, &d_q, None, grads)?;
        let d_n1 = back(K, &n1, &d_k, Some(&d_n1), grads)?;
        let d_n1 = back(V, &n1, &d_v, Some(&d_n1), grads)?;
        let (d_x, d_norm) = ops::rms_norm_backward(kernels, x, &layer.input_norm, eps, &d_n1, Some(&d_h), full)?;
        if let Some(d_norm) = d_norm {
            add_gradient(grads, &format!("{prefix}.input_layernorm.weight"), d_norm)?;
        }
        Ok(d_x)
    }
}

/// How many of the first sequences begin alike, and for how many tokens: samples of one question share its
/// prompt, which is then computed once. A sequence that shares much less than those before it stays out.
fn sharing(sequences: &[(&TrainSequence, &[u32])]) -> (usize, usize) {
    let Some(((_, first), others)) = sequences.split_first() else { return (0, 0) };
    let (mut count, mut shared) = (1, 0);
    for (_, other) in others {
        let most = if count == 1 { first.len() } else { shared };
        let common = first[..most].iter().zip(*other).take_while(|(a, b)| a == b).count();
        if common < SHARED_TOKENS || (count > 1 && common * 4 < shared * 3) {
            break;
        }
        shared = common;
        count += 1;
    }
    (count, shared)
}

fn finished(grads: Grads) -> Result<Gradients> {
    let grads = grads.into_iter().map(|(name, gradient)| Ok((name, gradient.into_tensor()?)));
    Ok(Gradients(grads.collect::<Result<_>>()?))
}

fn check_lengths(wanted: &PolicyGrads, outputs: &PolicyOutputs) -> Result<()> {
    let n = outputs.logprob.len();
    let value = wanted.value.as_ref().is_none_or(|v| v.len() == n && outputs.value.is_some());
    if wanted.logprob.len() == n && wanted.entropy.len() == n && value {
        return Ok(());
    }
    Err(ModelError::invalid(format!("the objective must return {n} derivatives of each output that exists")))
}
