//! Log-probabilities from bf16 logits and the gradient by them, in place (`kernels/head.cu`).

use candle_core::{DType, Device, Tensor};

use super::launch::{Arg, Shape, arg, device_of, fresh, launch};
use crate::{
    error::Result,
    head::{TokenGrads, TokenStats},
};

/// Statistics `[rows, 3]` on the device: log-probability, entropy, log-sum-exp.
pub(crate) fn stats(logits: &Tensor, targets: &[u32], temperature: f32) -> Result<(Tensor, TokenStats)> {
    let (rows, vocab) = logits.dims2()?;
    let device = device_of(logits)?;
    let out = fresh((rows, 3), DType::F32, &device)?;
    let index = Tensor::from_slice(targets, targets.len(), &Device::Cuda(device.clone()))?;
    let args = [
        arg(logits, DType::BF16)?,
        arg(&index, DType::U32)?,
        arg(&out, DType::F32)?,
        Arg::Int(vocab as i32),
        Arg::Float(1.0 / temperature),
    ];
    launch(&device, "head", "token_stats", Shape::new((rows, 1, 1), 512), &args)?;
    let values = out.flatten_all()?.to_vec1::<f32>()?;
    let column = |c: usize| values.iter().skip(c).step_by(3).copied().collect();
    Ok((out, TokenStats { logprob: column(0), entropy: column(1) }))
}

/// Turns the logits into their gradient, in place.
pub(crate) fn backward(
    logits: &Tensor,
    stats: &Tensor,
    targets: &[u32],
    temperature: f32,
    by: &TokenGrads,
) -> Result<()> {
    let (rows, vocab) = logits.dims2()?;
    let device = device_of(logits)?;
    let on = Device::Cuda(device.clone());
    let pairs: Vec<f32> =
        by.logprob.iter().zip(by.entropy).flat_map(|(l, h)| [l / temperature, h / temperature]).collect();
    let (by, index) = (Tensor::from_vec(pairs, (rows, 2), &on)?, Tensor::from_slice(targets, rows, &on)?);
    let args = [
        arg(logits, DType::BF16)?,
        arg(&index, DType::U32)?,
        arg(stats, DType::F32)?,
        arg(&by, DType::F32)?,
        Arg::Int(vocab as i32),
        Arg::Float(1.0 / temperature),
    ];
    launch(&device, "head", "token_backward", Shape::new((rows, 1, 1), 512), &args)
}
