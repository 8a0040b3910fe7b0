//! A padded batch of texts through the encoder by tensor operations, on any device.

use super::weights::{Bert, Head, Layer, Linear, Norm, Shape};
use crate::error::Result;
use candle_core::{D, DType, Device, Tensor};
use s3_config::Pooling;

/// A padded batch's last states `[texts, width, hidden]` and its mask `[texts, width]`, both in the weights' precision;
/// of pairs the second segments begin at `second`.
fn states(
    bert: &Bert<Tensor>,
    shape: &Shape,
    batch: &[&[u32]],
    second: Option<&[usize]>,
    device: &Device,
) -> Result<(Tensor, Tensor)> {
    let (rows, dtype) = (batch.len(), bert.words.dtype());
    let width = batch.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
    let padded = |at: usize, tokens: &[u32]| tokens.get(at).copied().unwrap_or(0);
    let ids: Vec<u32> = batch.iter().flat_map(|tokens| (0..width).map(move |at| padded(at, tokens))).collect();
    let real: Vec<f32> =
        batch.iter().flat_map(|tokens| (0..width).map(|at| f32::from(u8::from(at < tokens.len())))).collect();
    let mask = Tensor::from_vec(real, (rows, width), device)?;
    // Added to attention scores: zero for tokens, far below any score for padding, within f16.
    let hidden = ((1.0 - &mask)? * -6e4)?.reshape((rows, 1, 1, width))?.to_dtype(dtype)?;
    let ids = Tensor::from_vec(ids, rows * width, device)?;
    let words = bert.words.index_select(&ids, 0)?.reshape((rows, width, shape.hidden))?;
    let mut x = words.broadcast_add(&bert.positions.narrow(0, 0, width)?)?;
    if let Some(second) = second {
        let kinds: Vec<f32> =
            second.iter().flat_map(|from| (0..width).map(|at| f32::from(u8::from(at >= *from)))).collect();
        let kinds = Tensor::from_vec(kinds, (rows, width, 1), device)?.to_dtype(dtype)?;
        x = (x + kinds.broadcast_mul(&bert.second)?)?;
    }
    let mut x = layer_norm(&x, &bert.norm, shape.eps)?;
    for layer in &bert.layers {
        x = transform(layer, shape, &x, &hidden)?;
    }
    Ok((x, mask))
}

/// The scores of a batch of pairs, whose second segments begin at `second`.
pub fn scores(
    bert: &Bert<Tensor>,
    head: &Head<Tensor>,
    shape: &Shape,
    batch: &[&[u32]],
    second: &[usize],
    device: &Device,
) -> Result<Vec<f32>> {
    let (x, _) = states(bert, shape, batch, Some(second), device)?;
    let first = x.narrow(1, 0, 1)?.contiguous()?;
    let pooled = linear(&first, &head.pooler)?.tanh()?;
    Ok(linear(&pooled, &head.classifier)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()?)
}

/// The pooled states, not yet normalised, in the batch's order.
pub fn forward(
    bert: &Bert<Tensor>,
    shape: &Shape,
    batch: &[&[u32]],
    pooling: Pooling,
    device: &Device,
) -> Result<Vec<Vec<f32>>> {
    let (x, mask) = states(bert, shape, batch, None, device)?;
    let x = x.to_dtype(DType::F32)?;
    let pooled = match pooling {
        Pooling::Cls => x.narrow(1, 0, 1)?.squeeze(1)?,
        Pooling::Mean => {
            let total = x.broadcast_mul(&mask.unsqueeze(2)?)?.sum(1)?;
            total.broadcast_div(&mask.sum_keepdim(1)?)?
        }
    };
    Ok(pooled.to_vec2()?)
}

fn linear(x: &Tensor, linear: &Linear<Tensor>) -> Result<Tensor> {
    let (rows, width, inner) = x.dims3()?;
    let y = x.reshape((rows * width, inner))?.matmul(&linear.weight.t()?)?.broadcast_add(&linear.bias)?;
    Ok(y.reshape((rows, width, ()))?)
}

fn layer_norm(x: &Tensor, norm: &Norm<Tensor>, eps: f64) -> Result<Tensor> {
    Ok(candle_nn::ops::layer_norm(&x.contiguous()?, &norm.weight, &norm.bias, eps as f32)?)
}

fn transform(layer: &Layer<Tensor>, shape: &Shape, x: &Tensor, hidden: &Tensor) -> Result<Tensor> {
    let (rows, width, h) = x.dims3()?;
    let per_head = h / shape.heads;
    let qkv = linear(x, &layer.qkv)?;
    let part = |kind: usize| -> Result<Tensor> {
        let part = qkv.narrow(2, kind * h, h)?.reshape((rows, width, shape.heads, per_head))?;
        Ok(part.transpose(1, 2)?.contiguous()?)
    };
    let scores = (part(0)?.matmul(&part(1)?.t()?)? / (per_head as f64).sqrt())?.broadcast_add(hidden)?;
    let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
    let mixed = weights.matmul(&part(2)?)?.transpose(1, 2)?.contiguous()?.reshape((rows, width, h))?;
    let x = layer_norm(&(linear(&mixed, &layer.attention)? + x)?, &layer.attention_norm, shape.eps)?;
    let up = linear(&x, &layer.up)?.gelu_erf()?;
    layer_norm(&(linear(&up, &layer.down)? + &x)?, &layer.norm, shape.eps)
}
