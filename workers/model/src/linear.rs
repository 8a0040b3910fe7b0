//! A linear layer with an optional low-rank update that stays beside the frozen weight.

use std::collections::BTreeMap;

use candle_core::{DType, Tensor};

use crate::{
    cpu::{self, View},
    error::Result,
    ops::{Kernels, with_slice},
};

/// `scale * B A`, added to a weight. Kept in f32 whatever the model's precision, because its
/// optimiser steps are smaller than bf16 resolves.
#[derive(Clone)]
pub(crate) struct LoraPair {
    /// `[rank, in]`.
    pub(crate) a: Tensor,
    /// `[out, rank]`.
    pub(crate) b: Tensor,
    pub(crate) scale: f64,
}

/// `y = x W^T + bias + scale * (x A^T) B^T`.
#[derive(Clone)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Tensor,
    pub(crate) bias: Option<Tensor>,
    pub(crate) lora: Option<LoraPair>,
}

/// Gradients by tensor name; see [`crate::Gradients`].
pub(crate) type Grads = BTreeMap<String, Tensor>;

/// Adds `gradient` to what is there under `name`.
pub(crate) fn accumulate(grads: &mut Grads, name: String, gradient: Tensor) -> Result<()> {
    let sum = match grads.get(&name) {
        Some(earlier) => (earlier + &gradient)?,
        None => gradient,
    };
    grads.insert(name, sum);
    Ok(())
}

/// `lhs rhs` (`transpose_rhs`: `lhs rhs^T`) times `scale`, plus `start`, on slices.
fn product(lhs: &Tensor, rhs: &Tensor, transpose_rhs: bool, scale: f64, start: Option<&Tensor>) -> Result<Tensor> {
    let (m, k) = lhs.dims2()?;
    let (rows, cols) = rhs.dims2()?;
    let n = if transpose_rhs { rows } else { cols };
    let mut dst = match start {
        Some(start) => with_slice(start, <[f32]>::to_vec)?,
        None => vec![0f32; m * n],
    };
    with_slice(lhs, |lhs| {
        with_slice(rhs, |rhs| {
            let rhs = if transpose_rhs { View::transposed(rhs, cols) } else { View::rows(rhs, cols) };
            let threads = candle_core::utils::get_num_threads();
            cpu::gemm(&mut dst, (m, n, k), View::rows(lhs, k), rhs, scale as f32, start.is_some(), threads);
        })
    })??;
    Ok(Tensor::from_vec(dst, (m, n), lhs.device())?)
}

impl Linear {
    pub(crate) fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// `[tokens, in]` to `[tokens, out]`, plus `residual`.
    pub(crate) fn forward(&self, kernels: Kernels, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match kernels {
            Kernels::Slices => {
                let start = match (&self.bias, residual) {
                    (None, residual) => residual.cloned(),
                    (Some(bias), None) => Some(bias.broadcast_as((x.dim(0)?, bias.elem_count()))?.contiguous()?),
                    (Some(bias), Some(residual)) => Some(residual.broadcast_add(bias)?),
                };
                let y = product(x, &self.weight, true, 1.0, start.as_ref())?;
                let Some(lora) = &self.lora else { return Ok(y) };
                product(&product(x, &lora.a, true, 1.0, None)?, &lora.b, true, lora.scale, Some(&y))
            }
            Kernels::Tensors => {
                let mut y = x.matmul(&self.weight.t()?)?;
                if let Some(bias) = &self.bias {
                    y = y.broadcast_add(bias)?;
                }
                if let Some(lora) = &self.lora {
                    let low = x.matmul(&lora.a.to_dtype(x.dtype())?.t()?)?;
                    y = (y + (low.matmul(&lora.b.to_dtype(x.dtype())?.t()?)? * lora.scale)?)?;
                }
                Ok(match residual {
                    Some(residual) => (y + residual)?,
                    None => y,
                })
            }
        }
    }

    /// Gradient: returns `dx` (plus `start`) and adds those of the trained tensors to `grads` under
    /// `name` — the low-rank pair where there is one, the weight and bias when `full`.
    #[allow(clippy::too_many_arguments)] // what a gradient is of, by, and where it goes
    pub(crate) fn backward(
        &self,
        kernels: Kernels,
        name: &str,
        x: &Tensor,
        dy: &Tensor,
        start: Option<&Tensor>,
        full: bool,
        grads: &mut Grads,
    ) -> Result<Tensor> {
        let matmul = |lhs: &Tensor, rhs: &Tensor, scale: f64, start: Option<&Tensor>| -> Result<Tensor> {
            match kernels {
                Kernels::Slices => product(lhs, rhs, false, scale, start),
                Kernels::Tensors => {
                    let y = lhs.matmul(rhs)?;
                    let y = if (scale - 1.0).abs() > 0.0 { (y * scale)? } else { y };
                    Ok(match start {
                        Some(start) => (y + start)?,
                        None => y,
                    })
                }
            }
        };
        let mut dx = matmul(dy, &self.weight, 1.0, start)?;
        if full {
            accumulate(grads, format!("{name}.weight"), dy.t()?.matmul(x)?.to_dtype(DType::F32)?)?;
            if self.bias.is_some() {
                accumulate(grads, format!("{name}.bias"), dy.to_dtype(DType::F32)?.sum(0)?)?;
            }
        }
        if let Some(lora) = &self.lora {
            let (a, b) = (lora.a.to_dtype(x.dtype())?, lora.b.to_dtype(x.dtype())?);
            let low = x.matmul(&a.t()?)?;
            let d_low = matmul(dy, &b, lora.scale, None)?;
            accumulate(grads, format!("{name}.lora_A"), d_low.t()?.matmul(x)?.to_dtype(DType::F32)?)?;
            let d_b = (dy.t()?.matmul(&low)?.to_dtype(DType::F32)? * lora.scale)?;
            accumulate(grads, format!("{name}.lora_B"), d_b)?;
            dx = matmul(&d_low, &a, 1.0, Some(&dx))?;
        }
        Ok(dx)
    }

    /// Adds the low-rank update into the weight and drops it.
    pub(crate) fn merge(&mut self) -> Result<()> {
        let Some(lora) = self.lora.take() else { return Ok(()) };
        let update = (lora.b.matmul(&lora.a)? * lora.scale)?;
        self.weight = (self.weight.to_dtype(DType::F32)? + update)?.to_dtype(self.weight.dtype())?;
        Ok(())
    }
}
