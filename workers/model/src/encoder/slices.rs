//! Texts through the encoder on f32 slices, on one thread.
//!
//! Several texts lie one after the other, nothing between them: what works token by token works on all of them at once,
//! attention on each by itself. A token's numbers do not depend on what lies beside its text.
// `widest` enters the widest instruction set that the processor has after asking for it
#![allow(unsafe_code)]

use super::weights::{Bert, Layer, Linear, Norm, Shape};
use crate::cpu::{View, gemm, softmax, widest};
use s3_config::Pooling;

/// The pooled state of every text, not yet normalised.
pub fn forward(bert: &Bert<Vec<f32>>, shape: &Shape, texts: &[&[u32]], pooling: Pooling) -> Vec<Vec<f32>> {
    let h = shape.hidden;
    let x = states(bert, shape, texts, None);
    let mut rest = &x[..];
    let pooled = |text: &&[u32]| {
        let (own, after) = rest.split_at(text.len() * h);
        rest = after;
        match pooling {
            Pooling::Cls => own[..h].to_vec(),
            Pooling::Mean => {
                let mut mean = vec![0f32; h];
                for row in own.chunks_exact(h) {
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
                }
                for x in &mut mean {
                    *x /= text.len() as f32;
                }
                mean
            }
        }
    };
    texts.iter().map(pooled).collect()
}

/// The last layer's states of all texts, `[tokens, hidden]`; of a pair the second segment begins at `second`.
pub fn states(bert: &Bert<Vec<f32>>, shape: &Shape, texts: &[&[u32]], second: Option<usize>) -> Vec<f32> {
    let h = shape.hidden;
    let tokens = texts.iter().flat_map(|text| text.iter().enumerate());
    let mut x = vec![0f32; texts.iter().map(|text| text.len()).sum::<usize>() * h];
    for (row, (at, token)) in x.chunks_exact_mut(h).zip(tokens) {
        let word = &bert.words[*token as usize * h..][..h];
        let position = &bert.positions[at * h..][..h];
        for ((x, word), position) in row.iter_mut().zip(word).zip(position) {
            *x = word + position;
        }
        if second.is_some_and(|second| at >= second) {
            row.iter_mut().zip(&bert.second).for_each(|(x, more)| *x += more);
        }
    }
    layer_norm(&mut x, &bert.norm.weight, &bert.norm.bias, shape.eps as f32);
    for layer in &bert.layers {
        x = transform(layer, shape, &x, texts);
    }
    x
}

fn transform(layer: &Layer<Vec<f32>>, shape: &Shape, x: &[f32], texts: &[&[u32]]) -> Vec<f32> {
    let norm = |x: &mut [f32], norm: &Norm<Vec<f32>>| layer_norm(x, &norm.weight, &norm.bias, shape.eps as f32);
    let qkv = linear(x, &layer.qkv, shape.hidden);
    let mut attended = vec![0f32; x.len()];
    let mut start = 0;
    for text in texts {
        let (from, to) = (start * shape.hidden, (start + text.len()) * shape.hidden);
        attend(&qkv[3 * from..3 * to], shape, &mut attended[from..to]);
        start += text.len();
    }
    let mut y = linear(&attended, &layer.attention, shape.hidden);
    add(&mut y, x);
    norm(&mut y, &layer.attention_norm);
    let mut up = linear(&y, &layer.up, shape.hidden);
    gelu(&mut up);
    let mut x = linear(&up, &layer.down, shape.ffn);
    add(&mut x, &y);
    norm(&mut x, &layer.norm);
    x
}

/// `x` `[tokens, inner]` → `[tokens, out]`, by a weight `[inner, out]`.
pub fn linear(x: &[f32], linear: &Linear<Vec<f32>>, inner: usize) -> Vec<f32> {
    let (tokens, out) = (x.len() / inner, linear.bias.len());
    if tokens == 1 {
        // a product with a vector sums in another order than one with a matrix
        let mut y = self::linear(&[x, x].concat(), linear, inner);
        y.truncate(out);
        return y;
    }
    let mut y = Vec::with_capacity(tokens * out);
    for _ in 0..tokens {
        y.extend_from_slice(&linear.bias);
    }
    gemm(&mut y, (tokens, out, inner), View::rows(x, inner), View::rows(&linear.weight, out), 1.0, true, 1);
    y
}

/// Full attention of every head over one text's `[tokens, query key value]`.
fn attend(qkv: &[f32], shape: &Shape, out: &mut [f32]) {
    let (h, width) = (shape.hidden, shape.hidden / shape.heads);
    let tokens = qkv.len() / (3 * h);
    let scale = 1.0 / (width as f32).sqrt();
    let mut weights = vec![0f32; tokens * tokens];
    let mut mixed = vec![0f32; tokens * width];
    for head in 0..shape.heads {
        let part = |kind: usize| &qkv[kind * h + head * width..];
        let [query, key, value] = [part(0), part(1), part(2)];
        let keys = View { data: key, row: 1, col: 3 * h };
        gemm(&mut weights, (tokens, tokens, width), View::rows(query, 3 * h), keys, scale, false, 1);
        weights.chunks_exact_mut(tokens).for_each(softmax);
        let (rows, values) = (View::rows(&weights, tokens), View::rows(value, 3 * h));
        gemm(&mut mixed, (tokens, width, tokens), rows, values, 1.0, false, 1);
        for (out, mixed) in out.chunks_exact_mut(h).zip(mixed.chunks_exact(width)) {
            out[head * width..][..width].copy_from_slice(mixed);
        }
    }
}

widest! {
    fn add(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    }

    fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        let width = weight.len();
        for row in x.chunks_exact_mut(width) {
            let mean = sum(row, |x| x) / width as f32;
            let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
                *x = (*x - mean) * scale * weight + bias;
            }
        }
    }

    /// `x Φ(x)` with the exact normal distribution, not the tanh approximation.
    fn gelu(x: &mut [f32]) {
        for x in x {
            *x = 0.5 * *x * (1.0 + erf(*x * std::f32::consts::FRAC_1_SQRT_2));
        }
    }
}

/// Sum in sixteen fixed lanes: it vectorises, and its order never changes.
#[inline(always)]
#[allow(clippy::inline_always)]
fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<16>();
    let mut sums = [0f32; 16];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += term(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| term(*x)).sum::<f32>()
}

/// The error function by a ratio of polynomials on [-4, 4], outside which it is ±1 in f32 (coefficients of
/// the Eigen library's `erf`); branch-free so that it vectorises.
#[inline(always)]
#[allow(clippy::inline_always)]
fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let z = x * x;
    let mut p = -2.726_142_3e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = p * z + c;
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_474e-2] {
        q = q * z + c;
    }
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reference: the Taylor series in f64, which converges everywhere.
    #[test]
    fn erf_is_accurate() {
        for at in -400..=400 {
            let x = f64::from(at) / 100.0;
            let (mut term, mut sum) = (x, x);
            for n in 1..200 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let truth = sum * 2.0 / std::f64::consts::PI.sqrt();
            assert!((f64::from(erf(x as f32)) - truth).abs() < 5e-7, "erf({x}) = {} not {truth}", erf(x as f32));
        }
        assert!((erf(9.0) - 1.0).abs() < 5e-7 && (erf(-9.0) + 1.0).abs() < 5e-7);
    }
}
