//! Causal grouped-query attention over ragged rows, in two implementations of one meaning:
//! row by row on slices (no padding is computed), and padded to one batch of tensor operations
//! (few kernel launches). Keys are the cached ones followed by the new ones.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use crate::{
    cache::{KvCache, Store},
    config::DecoderConfig,
    cpu::{self, View},
    error::Result,
    ops::{Kernels, tensor, with_slice, with_slices},
};

/// Queries whose scores are held at once: keeps a block in the second-level cache.
const BLOCK: usize = 64;

/// New tokens of several rows, laid end to end.
pub(crate) struct Batch {
    /// New tokens of each row; none is empty.
    pub(crate) lens: Vec<usize>,
    /// Tokens already cached for each row.
    pub(crate) past: Vec<usize>,
    /// Each row's place in the cache.
    pub(crate) rows: Vec<usize>,
    /// Without a cache: an earlier row whose tokens come before this row's, so that what several rows begin
    /// with is computed once. That row itself continues none.
    parents: Vec<Option<usize>>,
    /// Position of every new token.
    pub(crate) positions: Vec<u32>,
    /// Position of every new token, on the device.
    pub(crate) position_index: Option<Tensor>,
    padding: Option<Padding>,
    #[cfg(feature = "cuda")]
    ragged: Option<crate::cuda::attention::Rows>,
}

/// What the padded implementation needs besides.
struct Padding {
    /// Rows of the padded layout: the batch's, or all of the cache's when most of them take part (computing
    /// an idle row costs less than copying the others' keys together).
    rows: usize,
    /// The cache rows of the layout, when it holds only some of them.
    chosen: Option<Tensor>,
    longest: usize,
    keys: usize,
    /// `[rows * longest]`: where a padded slot's token lies (some token for the padding).
    pad: Tensor,
    /// `[tokens]`: where a token's padded slot lies.
    unpad: Tensor,
    /// `[rows, 1, longest, keys]`: 0 or minus infinity, f32.
    mask: Tensor,
    place: Option<Place>,
    /// `[rows, 1, group * longest, 1]`: 1 for a token, 0 for padding; for the backward pass.
    real: Option<Tensor>,
}

/// Where new keys go in a padded cache. Every row of the cache takes part, so that the write is as parallel
/// as the cache is wide; a row without new tokens writes into its next free slot, which no query sees before
/// a real key takes it.
struct Place {
    /// `[cache rows * longest]`: which token a slot takes.
    source: Tensor,
    /// `[cache rows, kv_heads, longest, head_dim]`: its position.
    slots: Tensor,
    rows: usize,
}

impl Batch {
    pub(crate) fn new(
        config: &DecoderConfig,
        lens: Vec<usize>,
        rows: Vec<usize>,
        cache: Option<&KvCache>,
        kernels: Kernels,
        device: &Device,
    ) -> Result<Self> {
        let past: Vec<usize> = rows.iter().map(|&row| cache.map_or(0, |c| c.lens[row])).collect();
        let positions: Vec<u32> =
            lens.iter().zip(&past).flat_map(|(&len, &past)| (past..past + len).map(|p| p as u32)).collect();
        let parents = vec![None; lens.len()];
        let mut batch = Self::unpadded(lens, past, rows, parents, positions);
        if kernels == Kernels::Tensors {
            batch.position_index = Some(Tensor::from_slice(&batch.positions, batch.positions.len(), device)?);
            batch.padding = Some(batch.pad(config, cache, device)?);
        }
        #[cfg(feature = "cuda")]
        if kernels == Kernels::Fused {
            batch.position_index = Some(Tensor::from_slice(&batch.positions, batch.positions.len(), device)?);
            let rows = crate::cuda::attention::Rows::new(config, &batch.lens, &batch.past, &batch.rows, cache, device)?;
            batch.ragged = Some(rows);
        }
        Ok(batch)
    }

    /// Rows of which some continue others, for the slice kernels.
    pub(crate) fn continuing(lens: Vec<usize>, parents: Vec<Option<usize>>) -> Self {
        let past: Vec<usize> = parents.iter().map(|parent| parent.map_or(0, |row| lens[row])).collect();
        let positions: Vec<u32> =
            lens.iter().zip(&past).flat_map(|(&len, &past)| (past..past + len).map(|p| p as u32)).collect();
        let rows = (0..lens.len()).collect();
        Self::unpadded(lens, past, rows, parents, positions)
    }

    fn unpadded(
        lens: Vec<usize>,
        past: Vec<usize>,
        rows: Vec<usize>,
        parents: Vec<Option<usize>>,
        positions: Vec<u32>,
    ) -> Self {
        Self {
            lens,
            past,
            rows,
            parents,
            positions,
            position_index: None,
            padding: None,
            #[cfg(feature = "cuda")]
            ragged: None,
        }
    }

    /// Keys or values (`width` a token) of every row that continues another: that row's, then its own.
    fn continued(&self, data: &[f32], width: usize) -> Vec<Vec<f32>> {
        let starts = self.starts();
        let of = |row: usize| &data[starts[row] * width..(starts[row] + self.lens[row]) * width];
        let joined = |(row, parent): (usize, &Option<usize>)| match parent {
            Some(parent) => [of(*parent), of(row)].concat(),
            None => Vec::new(),
        };
        self.parents.par_iter().enumerate().map(joined).collect()
    }

    fn pad(&self, config: &DecoderConfig, cache: Option<&KvCache>, device: &Device) -> Result<Padding> {
        let longest = self.lens.iter().copied().max().unwrap_or(0);
        let idle = |cache: &KvCache| cache.lens.iter().max().map_or(0, |len| len + 1);
        let all = cache.filter(|cache| 2 * self.lens.len() >= cache.rows());
        let layout: Vec<(Option<usize>, usize)> = match all {
            Some(cache) => cache.lens.iter().zip(self.of_cache_rows(cache)).map(|(&len, i)| (i, len)).collect(),
            None => (0..self.lens.len()).map(|i| (Some(i), 0)).collect(),
        };
        let keys = self.lens.iter().zip(&self.past).map(|(len, past)| len + past).max().unwrap_or(0);
        let keys = keys.max(all.map_or(0, idle));
        let starts = self.starts();
        let (mut pad, mut query, mut unpad) = (Vec::new(), Vec::new(), vec![0u32; self.positions.len()]);
        for (row, &(i, idle)) in layout.iter().enumerate() {
            for t in 0..longest {
                let (token, position) = match i {
                    Some(i) => (starts[i] + t.min(self.lens[i] - 1), self.past[i] + t.min(self.lens[i] - 1)),
                    None => (0, idle),
                };
                pad.push(token as u32);
                query.push(position as u32);
            }
            if let Some(i) = i {
                for t in 0..self.lens[i] {
                    unpad[starts[i] + t] = (row * longest + t) as u32;
                }
            }
        }
        let rows = layout.len();
        let chosen = match (cache, all) {
            (Some(_), None) => {
                let rows: Vec<u32> = self.rows.iter().map(|&row| row as u32).collect();
                Some(Tensor::from_slice(&rows, rows.len(), device)?)
            }
            _ => None,
        };
        let query = Tensor::from_vec(query, (rows, 1, longest, 1), device)?;
        let key = Tensor::arange(0u32, keys as u32, device)?.reshape((1, 1, 1, keys))?;
        let visible = key.broadcast_le(&query)?;
        let shape = visible.shape().clone();
        let zero = Tensor::zeros(&shape, DType::F32, device)?;
        let hidden = Tensor::full(f32::NEG_INFINITY, &shape, device)?;
        let mask = visible.where_cond(&zero, &hidden)?;
        let place = cache.map(|cache| self.place(config, cache, longest, device)).transpose()?;
        let real = if cache.is_some() {
            None
        } else {
            let real =
                |&len: &usize| (0..config.group() * longest).map(move |i| f32::from(u8::from(i % longest < len)));
            let real: Vec<f32> = self.lens.iter().flat_map(real).collect();
            Some(Tensor::from_vec(real, (self.lens.len(), 1, config.group() * longest, 1), device)?)
        };
        let count = pad.len();
        Ok(Padding {
            rows,
            chosen,
            longest,
            keys,
            pad: Tensor::from_vec(pad, count, device)?,
            unpad: Tensor::from_vec(unpad, self.positions.len(), device)?,
            mask,
            place,
            real,
        })
    }

    /// For every row of the cache, its place in this batch.
    fn of_cache_rows(&self, cache: &KvCache) -> Vec<Option<usize>> {
        let mut of = vec![None; cache.rows()];
        for (i, &row) in self.rows.iter().enumerate() {
            of[row] = Some(i);
        }
        of
    }

    fn place(&self, config: &DecoderConfig, cache: &KvCache, longest: usize, device: &Device) -> Result<Place> {
        let starts = self.starts();
        let (mut source, mut slots) = (Vec::new(), Vec::new());
        for (row, of) in self.of_cache_rows(cache).into_iter().enumerate() {
            for t in 0..longest {
                let (token, slot) = match of {
                    Some(i) => (starts[i] + t.min(self.lens[i] - 1), self.past[i] + t.min(self.lens[i] - 1)),
                    None => (0, cache.lens[row]),
                };
                source.push(token as u32);
                slots.push(slot as u32);
            }
        }
        let rows = cache.rows();
        let slots = Tensor::from_vec(slots, (rows, 1, longest, 1), device)?;
        let slots = slots.broadcast_as((rows, config.kv_heads, longest, config.head_dim))?.contiguous()?;
        Ok(Place { source: Tensor::from_vec(source, rows * longest, device)?, slots, rows })
    }

    /// Where each row's new tokens begin.
    fn starts(&self) -> Vec<usize> {
        let mut at = 0;
        let mut next = |len: &usize| {
            at += len;
            at - len
        };
        self.lens.iter().map(&mut next).collect()
    }
}

/// Attention of new queries over cached and new keys. `q` `[tokens, heads * head_dim]`, `k`, `v`
/// `[tokens, kv_heads * head_dim]`, all rotated; the new keys are appended to `layer` of the cache. With the output
/// come the logarithms of the softmax's sums, where the kernel gives them.
pub(crate) fn attend(
    config: &DecoderConfig,
    batch: &Batch,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    cache: Option<(&mut KvCache, usize)>,
) -> Result<(Tensor, Option<Tensor>)> {
    #[cfg(feature = "cuda")]
    if let Some(rows) = &batch.ragged {
        let (o, lse) = crate::cuda::attention::attend(config, rows, (q, k, v), cache)?;
        return Ok((o, Some(lse)));
    }
    let o = match &batch.padding {
        None => attend_slices(config, batch, (q, k, v), cache),
        Some(padding) => attend_padded(config, padding, (q, k, v), cache),
    }?;
    Ok((o, None))
}

/// Gradient of [`attend`] without a cache: `(dq, dk, dv)` from the output `o` and its gradient.
pub(crate) fn attend_backward(
    config: &DecoderConfig,
    batch: &Batch,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    (o, lse): (&Tensor, Option<&Tensor>),
    d_o: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    #[cfg(feature = "cuda")]
    if let (Some(rows), Some(lse)) = (&batch.ragged, lse) {
        return crate::cuda::attention::backward(config, rows, (q, k, v), (o, lse), d_o);
    }
    let _ = lse;
    match &batch.padding {
        None => backward_slices(config, batch, (q, k, v), o, d_o),
        Some(padding) => backward_padded(config, padding, (q, k, v), o, d_o),
    }
}

fn scale(config: &DecoderConfig) -> f32 {
    1.0 / (config.head_dim as f32).sqrt()
}

/// One key head's queries of one row: `[tokens, group, head_dim]`, times `factor`.
fn gather(source: &[f32], config: &DecoderConfig, kv_head: usize, factor: f32) -> Vec<f32> {
    let (width, group) = (config.heads * config.head_dim, config.group() * config.head_dim);
    let mut out = Vec::with_capacity(source.len() / config.kv_heads);
    for token in source.chunks(width) {
        out.extend(token[kv_head * group..(kv_head + 1) * group].iter().map(|x| x * factor));
    }
    out
}

/// Puts per-(row, key head) blocks `[tokens, width]` back into `[tokens, kv_heads * width]`.
fn scatter(blocks: &[Vec<f32>], lens: &[usize], kv_heads: usize, width: usize) -> Vec<f32> {
    let total: usize = lens.iter().sum();
    let mut out = Vec::with_capacity(total * kv_heads * width);
    for (row, &len) in lens.iter().enumerate() {
        let heads = &blocks[row * kv_heads..(row + 1) * kv_heads];
        for token in 0..len {
            for head in heads {
                out.extend_from_slice(&head[token * width..(token + 1) * width]);
            }
        }
    }
    out
}

/// Softmax probabilities of a block of queries: `p` is `[block * group, keys]`, query `i` of the
/// block sees keys `0..=first + i`.
fn causal_softmax(p: &mut [f32], keys: usize, group: usize, first: usize) {
    for (r, row) in p.chunks_mut(keys).enumerate() {
        let visible = first + r / group + 1;
        let (seen, hidden) = row.split_at_mut(visible);
        cpu::softmax(seen);
        hidden.fill(0.0);
    }
}

/// Output `[tokens, group * head_dim]` of one row and key head over `keys` token-major keys.
fn row_head(q: &[f32], k: &[f32], v: &[f32], past: usize, config: &DecoderConfig) -> Vec<f32> {
    let (d, group, width) = (config.head_dim, config.group(), config.kv_heads * config.head_dim);
    let tokens = q.len() / (group * d);
    let mut out = vec![0f32; q.len()];
    let mut p = Vec::new();
    for from in (0..tokens).step_by(BLOCK) {
        let to = (from + BLOCK).min(tokens);
        let (rows, keys) = ((to - from) * group, past + to);
        p.clear();
        p.resize(rows * keys, 0.0);
        let queries = &q[from * group * d..to * group * d];
        cpu::gemm(&mut p, (rows, keys, d), View::rows(queries, d), View::transposed(k, width), 1.0, false, 1);
        causal_softmax(&mut p, keys, group, past + from);
        let o = &mut out[from * group * d..to * group * d];
        cpu::gemm(o, (rows, d, keys), View::rows(&p, keys), View::rows(v, width), 1.0, false, 1);
    }
    out
}

// the cache is borrowed for the call, as in `attend`
#[allow(clippy::needless_pass_by_value)]
fn attend_slices(
    config: &DecoderConfig,
    batch: &Batch,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    cache: Option<(&mut KvCache, usize)>,
) -> Result<Tensor> {
    let starts = batch.starts();
    let (qw, kw, d) = (config.heads * config.head_dim, config.kv_heads * config.head_dim, config.head_dim);
    let blocks = with_slice(q, |q| {
        with_slice(k, |k| {
            with_slice(v, |v| {
                let span = |data: &[f32], i: usize, width: usize| -> (usize, usize) {
                    debug_assert!(data.len() >= (starts[i] + batch.lens[i]) * width);
                    (starts[i] * width, (starts[i] + batch.lens[i]) * width)
                };
                let run = |i: usize, kv_head: usize, keys: &[f32], values: &[f32]| {
                    let (from, to) = span(q, i, qw);
                    let queries = gather(&q[from..to], config, kv_head, scale(config));
                    row_head(&queries, &keys[kv_head * d..], &values[kv_head * d..], batch.past[i], config)
                };
                let tasks = (0..batch.lens.len() * config.kv_heads).into_par_iter();
                let at = |task: usize| (task / config.kv_heads, task % config.kv_heads);
                if let Some((KvCache { store: Store::Rows(layers), .. }, layer)) = cache {
                    let cached = &mut layers[layer];
                    for (i, &row) in batch.rows.iter().enumerate() {
                        let (from, to) = span(k, i, kw);
                        cached[row].k.extend_from_slice(&k[from..to]);
                        cached[row].v.extend_from_slice(&v[from..to]);
                    }
                    let cached = &*cached;
                    tasks
                        .map(|task| {
                            let (i, head) = at(task);
                            let kv = &cached[batch.rows[i]];
                            run(i, head, &kv.k, &kv.v)
                        })
                        .collect::<Vec<_>>()
                } else {
                    let (long_k, long_v) = (batch.continued(k, kw), batch.continued(v, kw));
                    tasks
                        .map(|task| {
                            let (i, head) = at(task);
                            if batch.parents[i].is_some() {
                                return run(i, head, &long_k[i], &long_v[i]);
                            }
                            let (from, to) = span(k, i, kw);
                            run(i, head, &k[from..to], &v[from..to])
                        })
                        .collect()
                }
            })
        })
    })???;
    tensor(scatter(&blocks, &batch.lens, config.kv_heads, config.group() * d), q)
}

fn backward_slices(
    config: &DecoderConfig,
    batch: &Batch,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    o: &Tensor,
    d_o: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let starts = batch.starts();
    let (qw, kw, d) = (config.heads * config.head_dim, config.kv_heads * config.head_dim, config.head_dim);
    let parts = with_slices([q, k, v, o, d_o], |[q, k, v, o, g]| {
        let (long_k, long_v) = (batch.continued(k, kw), batch.continued(v, kw));
        let run = |task: usize| {
            let (i, head) = (task / config.kv_heads, task % config.kv_heads);
            let (from, to) = (starts[i], starts[i] + batch.lens[i]);
            let queries = gather(&q[from * qw..to * qw], config, head, scale(config));
            let outputs = gather(&o[from * qw..to * qw], config, head, 1.0);
            let grads = gather(&g[from * qw..to * qw], config, head, 1.0);
            let (keys, values) = match batch.parents[i] {
                Some(_) => (&long_k[i][head * d..], &long_v[i][head * d..]),
                None => (&k[from * kw + head * d..to * kw], &v[from * kw + head * d..to * kw]),
            };
            row_head_backward(config, &queries, keys, values, batch.past[i], &outputs, &grads)
        };
        (0..batch.lens.len() * config.kv_heads).into_par_iter().map(run).collect::<Vec<_>>()
    })?;
    let heads = config.kv_heads;
    let [mut dq, mut dk, mut dv]: [Vec<Vec<f32>>; 3] = Default::default();
    for (task, (q, mut k, mut v)) in parts.into_iter().enumerate() {
        if let Some(parent) = batch.parents[task / heads] {
            // what the row's queries ask of the keys before it; in the order of rows, so always the same sum
            let (at, before) = (parent * heads + task % heads, batch.past[task / heads] * d);
            for (sum, part) in [(&mut dk, &mut k), (&mut dv, &mut v)] {
                let own = part.split_off(before);
                cpu::add(&mut sum[at], part);
                *part = own;
            }
        }
        dq.push(q);
        dk.push(k);
        dv.push(v);
    }
    Ok((
        tensor(scatter(&dq, &batch.lens, heads, config.group() * d), q)?,
        tensor(scatter(&dk, &batch.lens, heads, d), k)?,
        tensor(scatter(&dv, &batch.lens, heads, d), v)?,
    ))
}

/// Gradients `(dq, dk, dv)` of one row and key head after `past` tokens of another; `q` is already scaled.
/// Probabilities are computed again block by block, so nothing of size tokens squared is kept.
fn row_head_backward(
    config: &DecoderConfig,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    past: usize,
    o: &[f32],
    g: &[f32],
) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (d, group, width) = (config.head_dim, config.group(), config.kv_heads * config.head_dim);
    let tokens = q.len() / (group * d);
    let (mut dq, mut dk, mut dv) =
        (vec![0f32; q.len()], vec![0f32; (past + tokens) * d], vec![0f32; (past + tokens) * d]);
    for from in (0..tokens).step_by(BLOCK) {
        let to = (from + BLOCK).min(tokens);
        let (rows, keys) = ((to - from) * group, past + to);
        let part = from * group * d..to * group * d;
        let (queries, grads) = (&q[part.clone()], &g[part.clone()]);
        let mut p = vec![0f32; rows * keys];
        cpu::gemm(&mut p, (rows, keys, d), View::rows(queries, d), View::transposed(k, width), 1.0, false, 1);
        causal_softmax(&mut p, keys, group, past + from);
        cpu::gemm(&mut dv, (keys, d, rows), View::transposed(&p, keys), View::rows(grads, d), 1.0, true, 1);
        let mut ds = vec![0f32; rows * keys];
        cpu::gemm(&mut ds, (rows, keys, d), View::rows(grads, d), View::transposed(v, width), 1.0, false, 1);
        let outputs = &o[part.clone()];
        for r in 0..rows {
            let mean = cpu::dot(&grads[r * d..(r + 1) * d], &outputs[r * d..(r + 1) * d]);
            cpu::softmax_gradient(&mut ds[r * keys..(r + 1) * keys], &p[r * keys..(r + 1) * keys], mean);
        }
        cpu::gemm(&mut dk, (keys, d, rows), View::transposed(&ds, keys), View::rows(queries, d), 1.0, true, 1);
        cpu::gemm(&mut dq[part], (rows, d, keys), View::rows(&ds, keys), View::rows(k, width), scale(config), false, 1);
    }
    (dq, dk, dv)
}

/// `[tokens, kv_heads * n * head_dim]` to `[rows, kv_heads, n * longest, head_dim]`.
fn to_padded(x: &Tensor, padding: &Padding, config: &DecoderConfig) -> Result<Tensor> {
    let n = x.dim(1)? / (config.kv_heads * config.head_dim);
    let shape = (padding.rows, padding.longest, config.kv_heads, n, config.head_dim);
    let x = x.contiguous()?.index_select(&padding.pad, 0)?.reshape(shape)?.permute((0, 2, 3, 1, 4))?.contiguous()?;
    Ok(x.reshape((padding.rows, config.kv_heads, n * padding.longest, config.head_dim))?)
}

/// The inverse of [`to_padded`].
fn from_padded(x: &Tensor, padding: &Padding, config: &DecoderConfig) -> Result<Tensor> {
    let n = x.dim(2)? / padding.longest;
    let rows = padding.rows;
    let x = x.reshape((rows, config.kv_heads, n, padding.longest, config.head_dim))?.permute((0, 3, 1, 2, 4))?;
    let x = x.contiguous()?.reshape((rows * padding.longest, config.kv_heads * n * config.head_dim))?;
    Ok(x.index_select(&padding.unpad, 0)?)
}

/// Probabilities `[rows, kv_heads, group * longest, keys]` in f32.
fn padded_probabilities(config: &DecoderConfig, padding: &Padding, q: &Tensor, k: &Tensor) -> Result<Tensor> {
    let (rows, keys) = (padding.rows, k.dim(2)?);
    let scores = (q.matmul(&k.transpose(2, 3)?)?.to_dtype(DType::F32)? * f64::from(scale(config)))?;
    let scores = scores.reshape((rows, config.heads, padding.longest, keys))?.broadcast_add(&padding.mask)?;
    let p = candle_nn::ops::softmax_last_dim(&scores)?;
    Ok(p.reshape((rows, config.kv_heads, config.group() * padding.longest, keys))?)
}

fn attend_padded(
    config: &DecoderConfig,
    padding: &Padding,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    cache: Option<(&mut KvCache, usize)>,
) -> Result<Tensor> {
    let queries = to_padded(q, padding, config)?;
    let (keys, values) = match (cache, &padding.place) {
        (Some((cache, layer)), Some(place)) => {
            let Store::Padded { layers, .. } = &cache.store else {
                return Err(crate::ModelError::invalid("the cache belongs to a model on another device"));
            };
            let fill = |cached: &Tensor, new: &Tensor| -> Result<Tensor> {
                let shape = (place.rows, padding.longest, config.kv_heads, config.head_dim);
                let new = new.contiguous()?.index_select(&place.source, 0)?.reshape(shape)?.transpose(1, 2)?;
                cached.scatter_set(&place.slots, &new.contiguous()?, 2)?;
                let used = match &padding.chosen {
                    Some(rows) => cached.index_select(rows, 0)?,
                    None => cached.clone(),
                };
                Ok(used.narrow(2, 0, padding.keys)?)
            };
            (fill(&layers[layer].k, k)?, fill(&layers[layer].v, v)?)
        }
        _ => (to_padded(k, padding, config)?, to_padded(v, padding, config)?),
    };
    let p = padded_probabilities(config, padding, &queries, &keys)?;
    let o = p.to_dtype(values.dtype())?.matmul(&values)?;
    from_padded(&o, padding, config)
}

fn backward_padded(
    config: &DecoderConfig,
    padding: &Padding,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    o: &Tensor,
    d_o: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let pad = |x: &Tensor| to_padded(x, padding, config);
    let (queries, keys, values, outputs) = (pad(q)?, pad(k)?, pad(v)?, pad(o)?);
    // Padding repeats a row's last token: its gradient must not count again.
    let grads = match &padding.real {
        Some(real) => pad(d_o)?.broadcast_mul(&real.to_dtype(q.dtype())?)?,
        None => return Err(crate::ModelError::invalid("a backward pass through a cache is not possible")),
    };
    let p = padded_probabilities(config, padding, &queries, &keys)?;
    let dv = p.to_dtype(v.dtype())?.transpose(2, 3)?.matmul(&grads)?;
    let mean = (grads.to_dtype(DType::F32)? * outputs.to_dtype(DType::F32)?)?.sum_keepdim(D::Minus1)?;
    let dp = grads.matmul(&values.transpose(2, 3)?)?.to_dtype(DType::F32)?;
    let ds = ((p * dp.broadcast_sub(&mean)?)? * f64::from(scale(config)))?.to_dtype(q.dtype())?;
    let dq = ds.matmul(&keys)?;
    let dk = ds.transpose(2, 3)?.matmul(&queries)?;
    let back = |x: &Tensor| from_padded(x, padding, config);
    Ok((back(&dq)?, back(&dk)?, back(&dv)?))
}
