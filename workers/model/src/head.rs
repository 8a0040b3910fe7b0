//! From logits to log-probability and entropy of the chosen tokens, and back.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use crate::{
    cpu,
    error::Result,
    ops::{Kernels, tensor, with_slice},
};

/// Of each row: log-probability of its target and entropy, at the temperature.
pub(crate) struct TokenStats {
    pub(crate) logprob: Vec<f32>,
    pub(crate) entropy: Vec<f32>,
}

/// Derivatives of the loss by [`TokenStats`].
pub(crate) struct TokenGrads<'a> {
    pub(crate) logprob: &'a [f32],
    pub(crate) entropy: &'a [f32],
}

/// Largest logit, log of the summed exponentials (both of logits / temperature, the sum relative
/// to the largest), and entropy of one row. Sums run in f64: a vocabulary is long.
fn row_stats(logits: &[f32], temperature: f32) -> (f32, f64, f64) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighted) = (0f64, 0f64);
    for z in logits {
        let z = (z - max) / temperature;
        let e = f64::from(cpu::exp(z));
        sum += e;
        weighted += e * f64::from(z);
    }
    let log_sum = sum.ln();
    (max, log_sum, log_sum - weighted / sum)
}

pub(crate) fn stats(kernels: Kernels, logits: &Tensor, targets: &[u32], temperature: f32) -> Result<TokenStats> {
    let vocab = logits.dim(D::Minus1)?;
    let (logprob, entropy) = match kernels {
        Kernels::Slices => with_slice(logits, |logits| {
            logits
                .par_chunks(vocab)
                .zip(targets)
                .map(|(row, &target)| {
                    let (max, log_sum, entropy) = row_stats(row, temperature);
                    let z = f64::from(row[target as usize] - max) / f64::from(temperature);
                    ((z - log_sum) as f32, entropy as f32)
                })
                .unzip()
        })?,
        Kernels::Tensors => {
            let log_p = log_softmax(logits, temperature)?;
            let index = Tensor::from_slice(targets, (targets.len(), 1), logits.device())?;
            let logprob = log_p.gather(&index, 1)?.squeeze(1)?;
            let entropy = (log_p.exp()? * log_p)?.sum(D::Minus1)?.neg()?;
            (logprob.to_vec1()?, entropy.to_vec1()?)
        }
    };
    Ok(TokenStats { logprob, entropy })
}

/// d loss / d logits: for logprob `(onehot - p) / T`, for entropy `-p (log p + H) / T`.
pub(crate) fn backward(
    kernels: Kernels,
    logits: &Tensor,
    targets: &[u32],
    temperature: f32,
    by: &TokenGrads,
) -> Result<Tensor> {
    let vocab = logits.dim(D::Minus1)?;
    match kernels {
        Kernels::Slices => {
            let mut data = with_slice(logits, <[f32]>::to_vec)?;
            data.par_chunks_mut(vocab).enumerate().for_each(|(i, row)| {
                let (max, log_sum, entropy) = row_stats(row, temperature);
                let (log_sum, entropy) = (log_sum as f32, entropy as f32);
                let (by_l, by_h) = (by.logprob[i] / temperature, by.entropy[i] / temperature);
                for z in row.iter_mut() {
                    let log_p = (*z - max) / temperature - log_sum;
                    *z = -cpu::exp(log_p) * (by_l + by_h * (log_p + entropy));
                }
                row[targets[i] as usize] += by_l;
            });
            tensor(data, logits)
        }
        Kernels::Tensors => {
            let n = targets.len();
            let log_p = log_softmax(logits, temperature)?;
            let p = log_p.exp()?;
            let entropy = (&p * &log_p)?.sum_keepdim(D::Minus1)?.neg()?;
            let by_l = (Tensor::from_slice(by.logprob, (n, 1), logits.device())? / f64::from(temperature))?;
            let by_h = (Tensor::from_slice(by.entropy, (n, 1), logits.device())? / f64::from(temperature))?;
            let inner = log_p.broadcast_add(&entropy)?.broadcast_mul(&by_h)?.broadcast_add(&by_l)?;
            let d = (p * inner)?.neg()?;
            let index = Tensor::from_slice(targets, (n, 1), logits.device())?;
            Ok(d.scatter_add(&index, &by_l, 1)?)
        }
    }
}

fn log_softmax(logits: &Tensor, temperature: f32) -> Result<Tensor> {
    let z = (logits.to_dtype(DType::F32)? / f64::from(temperature))?;
    let z = z.broadcast_sub(&z.max_keepdim(D::Minus1)?)?;
    Ok(z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
