//! One text through the encoder on f32 slices, on one thread.

use super::weights::{Bert, Layer, Linear, Norm, Shape};
use crate::cpu::{View, gemm, softmax};
use s3_config::Pooling;

/// The pooled state, not yet normalised.
pub fn forward(bert: &Bert<Vec<f32>>, shape: &Shape, tokens: &[u32], pooling: Pooling) -> Vec<f32> {
    let h = shape.hidden;
    let x = states(bert, shape, tokens, tokens.len());
    match pooling {
        Pooling::Cls => x[..h].to_vec(),
        Pooling::Mean => {
            let mut mean = vec![0f32; h];
            for row in x.chunks_exact(h) {
                mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x);
            }
            for x in &mut mean {
                *x /= tokens.len() as f32;
            }
            mean
        }
    }
}

/// The last layer's states `[tokens, hidden]`; from `second` on tokens are of the second segment.
pub fn states(bert: &Bert<Vec<f32>>, shape: &Shape, tokens: &[u32], second: usize) -> Vec<f32> {
    let h = shape.hidden;
    let mut x = vec![0f32; tokens.len() * h];
    for (at, (row, token)) in x.chunks_exact_mut(h).zip(tokens).enumerate() {
        let word = &bert.words[*token as usize * h..][..h];
        let position = &bert.positions[at * h..][..h];
        for ((x, word), position) in row.iter_mut().zip(word).zip(position) {
            *x = word + position;
        }
        if at >= second {
            row.iter_mut().zip(&bert.second).for_each(|(x, more)| *x += more);
        }
    }
    layer_norm(&mut x, &bert.norm, shape.eps);
    for layer in &bert.layers {
        x = transform(layer, shape, &x);
    }
    x
}

fn transform(layer: &Layer<Vec<f32>>, shape: &Shape, x: &[f32]) -> Vec<f32> {
    let attended = attend(&linear(x, &layer.qkv, shape.hidden), shape);
    let mut x = residual(linear(&attended, &layer.attention, shape.hidden), x);
    layer_norm(&mut x, &layer.attention_norm, shape.eps);
    let mut up = linear(&x, &layer.up, shape.hidden);
    for x in &mut up {
        *x = gelu(*x);
    }
    let mut x = residual(linear(&up, &layer.down, shape.ffn), &x);
    layer_norm(&mut x, &layer.norm, shape.eps);
    x
}

fn residual(mut y: Vec<f32>, x: &[f32]) -> Vec<f32> {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    y
}

/// `x` `[tokens, inner]` → `[tokens, out]`.
pub fn linear(x: &[f32], linear: &Linear<Vec<f32>>, inner: usize) -> Vec<f32> {
    let (tokens, out) = (x.len() / inner, linear.bias.len());
    let mut y = Vec::with_capacity(tokens * out);
    for _ in 0..tokens {
        y.extend_from_slice(&linear.bias);
    }
    gemm(&mut y, (tokens, out, inner), View::rows(x, inner), View::transposed(&linear.weight, inner), 1.0, true, 1);
    y
}

/// Full attention of every head over `[tokens, query key value]`.
fn attend(qkv: &[f32], shape: &Shape) -> Vec<f32> {
    let (h, width) = (shape.hidden, shape.hidden / shape.heads);
    let tokens = qkv.len() / (3 * h);
    let scale = 1.0 / (width as f32).sqrt();
    let mut out = vec![0f32; tokens * h];
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
    out
}

fn layer_norm(x: &mut [f32], norm: &Norm<Vec<f32>>, eps: f64) {
    let width = norm.weight.len();
    for row in x.chunks_exact_mut(width) {
        let mean = sum(row, |x| x) / width as f32;
        let variance = sum(row, |x| (x - mean) * (x - mean)) / width as f32;
        let scale = 1.0 / (variance + eps as f32).sqrt();
        for ((x, weight), bias) in row.iter_mut().zip(&norm.weight).zip(&norm.bias) {
            *x = (*x - mean) * scale * weight + bias;
        }
    }
}

/// Sum in eight fixed lanes: it vectorises, and its order never changes.
fn sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<8>();
    let mut sums = [0f32; 8];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += term(*x);
        }
    }
    sums.iter().sum::<f32>() + rest.iter().map(|x| term(*x)).sum::<f32>()
}

/// `x Φ(x)` with the exact normal distribution, not the tanh approximation.
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
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
