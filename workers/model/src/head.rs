//! From logits to log-probability and entropy of the chosen tokens, and back.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use crate::{
    cpu::{self, SoftmaxStats},
    error::Result,
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

/// Logits of some rows.
pub(crate) enum Logits {
    /// On the CPU; turned into their gradient in place. With the softmax of each row, once known.
    Slice { data: Vec<f32>, vocab: usize, rows: Vec<SoftmaxStats> },
    /// On any device.
    Tensor(Tensor),
    /// In bf16 for the own kernels; turned into their gradient in place. With the statistics, once known.
    #[cfg(feature = "cuda")]
    Fused { logits: Tensor, stats: Option<Tensor> },
}

pub(crate) fn stats(logits: &mut Logits, targets: &[u32], temperature: f32) -> Result<TokenStats> {
    let (logprob, entropy) = match logits {
        Logits::Slice { data, vocab, rows } => {
            *rows = data.par_chunks(*vocab).map(|row| cpu::softmax_stats(row, temperature)).collect();
            let all = data.chunks(*vocab).zip(rows.iter()).zip(targets);
            all.map(|((row, stats), &target)| (stats.logprob(row[target as usize], temperature), stats.entropy as f32))
                .unzip()
        }
        Logits::Tensor(logits) => {
            let log_p = log_softmax(logits, temperature)?;
            let index = Tensor::from_slice(targets, (targets.len(), 1), logits.device())?;
            let logprob = log_p.gather(&index, 1)?.squeeze(1)?;
            let entropy = (log_p.exp()? * log_p)?.sum(D::Minus1)?.neg()?;
            (logprob.to_vec1()?, entropy.to_vec1()?)
        }
        #[cfg(feature = "cuda")]
        Logits::Fused { logits, stats } => {
            let (kept, found) = crate::cuda::head::stats(logits, targets, temperature)?;
            *stats = Some(kept);
            return Ok(found);
        }
    };
    Ok(TokenStats { logprob, entropy })
}

/// d loss / d logits: for logprob `(onehot - p) / T`, for entropy `-p (log p + H) / T`.
pub(crate) fn backward(logits: Logits, targets: &[u32], temperature: f32, by: &TokenGrads) -> Result<Tensor> {
    match logits {
        Logits::Slice { mut data, vocab, mut rows } => {
            if rows.len() != targets.len() {
                rows = data.par_chunks(vocab).map(|row| cpu::softmax_stats(row, temperature)).collect();
            }
            data.par_chunks_mut(vocab).zip(&rows).enumerate().for_each(|(i, (row, stats))| {
                let (by_l, by_h) = (by.logprob[i] / temperature, by.entropy[i] / temperature);
                cpu::softmax_backward(row, temperature, *stats, by_l, by_h);
                row[targets[i] as usize] += by_l;
            });
            Ok(Tensor::from_vec(data, (targets.len(), vocab), &Device::Cpu)?)
        }
        Logits::Tensor(logits) => {
            let n = targets.len();
            let log_p = log_softmax(&logits, temperature)?;
            let p = log_p.exp()?;
            let entropy = (&p * &log_p)?.sum_keepdim(D::Minus1)?.neg()?;
            let by_l = (Tensor::from_slice(by.logprob, (n, 1), logits.device())? / f64::from(temperature))?;
            let by_h = (Tensor::from_slice(by.entropy, (n, 1), logits.device())? / f64::from(temperature))?;
            let inner = log_p.broadcast_add(&entropy)?.broadcast_mul(&by_h)?.broadcast_add(&by_l)?;
            let d = (p * inner)?.neg()?;
            let index = Tensor::from_slice(targets, (n, 1), logits.device())?;
            Ok(d.scatter_add(&index, &by_l, 1)?)
        }
        #[cfg(feature = "cuda")]
        Logits::Fused { logits, stats } => {
            let stats = match stats {
                Some(stats) => stats,
                None => crate::cuda::head::stats(&logits, targets, temperature)?.0,
            };
            crate::cuda::head::backward(&logits, &stats, targets, temperature, by)?;
            Ok(logits)
        }
    }
}

fn log_softmax(logits: &Tensor, temperature: f32) -> Result<Tensor> {
    let z = (logits.to_dtype(DType::F32)? / f64::from(temperature))?;
    let z = z.broadcast_sub(&z.max_keepdim(D::Minus1)?)?;
    Ok(z.broadcast_sub(&z.exp()?.sum_keepdim(D::Minus1)?.log()?)?)
}
