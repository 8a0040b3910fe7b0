//! A linear layer with an optional low-rank update that stays beside the frozen weight.

use std::{collections::BTreeMap, sync::Arc};

use candle_core::{DType, Device, Tensor};

use crate::{
    cpu::{self, View},
    error::{ModelError, Result},
    ops::{Kernels, with_slice},
    packed::Packed,
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

/// A weight `[out, in]`.
#[derive(Clone)]
pub(crate) enum Matrix {
    /// As numbers.
    Dense(Tensor),
    /// In the blocks of a GGUF file, for inference on the CPU.
    Packed(Arc<Packed>),
}

impl Matrix {
    /// The numbers; refused for packed weights, which can be neither trained nor changed.
    pub(crate) fn dense(&self) -> Result<&Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor),
            Self::Packed(_) => Err(ModelError::invalid(
                "the weights are packed as their file stores them, for inference only; load the model unpacked to train, merge or export it",
            )),
        }
    }

    pub(crate) fn dense_mut(&mut self) -> Option<&mut Tensor> {
        match self {
            Self::Dense(tensor) => Some(tensor),
            Self::Packed(_) => None,
        }
    }

    pub(crate) fn is_packed(&self) -> bool {
        matches!(self, Self::Packed(_))
    }

    fn out(&self) -> Result<usize> {
        match self {
            Self::Dense(tensor) => Ok(tensor.dim(0)?),
            Self::Packed(packed) => Ok(packed.dims()[0]),
        }
    }

    /// Rows by index, `[ids, in]`.
    pub(crate) fn select(&self, ids: &[u32], device: &Device) -> Result<Tensor> {
        match self {
            Self::Dense(tensor) => Ok(tensor.index_select(&Tensor::from_slice(ids, ids.len(), device)?, 0)?),
            Self::Packed(packed) => {
                let width = packed.dims()[1];
                let mut rows = vec![0f32; ids.len() * width];
                for (row, &id) in rows.chunks_exact_mut(width).zip(ids) {
                    packed.row(id as usize, row);
                }
                Ok(Tensor::from_vec(rows, (ids.len(), width), device)?)
            }
        }
    }

    /// `start + x W^T` on slices.
    pub(crate) fn product(&self, x: &Tensor, start: Option<Vec<f32>>) -> Result<Vec<f32>> {
        match self {
            Self::Dense(weight) => product(x, weight, true, 1.0, start),
            Self::Packed(packed) => with_slice(x, |x| packed.product(x, start)),
        }
    }
}

/// `y = x W^T + bias + scale * (x A^T) B^T`.
#[derive(Clone)]
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(crate) weight: Matrix,
    pub(crate) bias: Option<Tensor>,
    pub(crate) lora: Option<LoraPair>,
}

/// Gradients by tensor name; see [`crate::Gradients`].
pub(crate) type Grads = BTreeMap<String, Gradient>;

/// A gradient that is being summed.
pub(crate) enum Gradient {
    /// Elements and shape; further terms are added in place.
    Slice(Vec<f32>, Vec<usize>),
    /// On any device.
    Tensor(Tensor),
}

impl Gradient {
    pub(crate) fn into_tensor(self) -> Result<Tensor> {
        match self {
            Self::Slice(data, shape) => Ok(Tensor::from_vec(data, shape, &Device::Cpu)?),
            Self::Tensor(tensor) => Ok(tensor),
        }
    }
}

/// Adds `gradient` to what is there under `name`.
pub(crate) fn add_gradient(grads: &mut Grads, name: &str, gradient: Tensor) -> Result<()> {
    match grads.get_mut(name) {
        Some(Gradient::Slice(sum, _)) => with_slice(&gradient, |gradient| cpu::add(sum, gradient))?,
        Some(Gradient::Tensor(sum)) => *sum = (&*sum + &gradient)?,
        None => {
            grads.insert(name.to_owned(), Gradient::Tensor(gradient));
        }
    }
    Ok(())
}

/// Adds row `i` of `gradient` to row `ids[i]` of the gradient of the table `like`.
pub(crate) fn add_rows(
    grads: &mut Grads,
    name: &str,
    kernels: Kernels,
    like: &Tensor,
    ids: &[u32],
    gradient: &Tensor,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if kernels == Kernels::Fused {
        if !grads.contains_key(name) {
            let zeros = Tensor::zeros(like.shape(), DType::F32, like.device())?;
            grads.insert(name.to_owned(), Gradient::Tensor(zeros));
        }
        return match grads.get(name) {
            Some(Gradient::Tensor(sum)) => crate::cuda::ops::add_rows(sum, ids, gradient),
            _ => Err(ModelError::invalid(format!("the gradient of {name} is not on the GPU"))),
        };
    }
    if kernels == Kernels::Tensors {
        let index = Tensor::from_slice(ids, ids.len(), like.device())?;
        return add_gradient(grads, name, like.zeros_like()?.index_add(&index, gradient, 0)?);
    }
    let width = like.dim(1)?;
    let (sum, _) = slice_sum(grads, name, like.dims())?;
    with_slice(gradient, |gradient| {
        for (&id, row) in ids.iter().zip(gradient.chunks_exact(width)) {
            cpu::add(&mut sum[id as usize * width..(id as usize + 1) * width], row);
        }
    })
}

/// The sum under `name` as a slice, and whether it is new (and zero).
fn slice_sum<'a>(grads: &'a mut Grads, name: &str, shape: &[usize]) -> Result<(&'a mut [f32], bool)> {
    let fresh = !grads.contains_key(name);
    let gradient = grads
        .entry(name.to_owned())
        .or_insert_with(|| Gradient::Slice(vec![0f32; shape.iter().product()], shape.to_vec()));
    if let Gradient::Tensor(sum) = gradient {
        *gradient = Gradient::Slice(with_slice(sum, <[f32]>::to_vec)?, shape.to_vec());
    }
    match gradient {
        Gradient::Slice(sum, _) => Ok((sum, fresh)),
        Gradient::Tensor(_) => Err(ModelError::invalid(format!("the gradient of {name} is not on the CPU"))),
    }
}

/// Adds `scale * dy^T x`, the gradient of a matrix that maps `x` to `y`, to what is there under `name`.
pub(crate) fn add_product(
    grads: &mut Grads,
    name: &str,
    kernels: Kernels,
    dy: &Tensor,
    x: &Tensor,
    scale: f64,
) -> Result<()> {
    #[cfg(feature = "cuda")]
    if kernels == Kernels::Fused {
        let sum = match grads.get(name) {
            Some(Gradient::Tensor(sum)) => Some(sum),
            Some(Gradient::Slice(..)) => {
                return Err(ModelError::invalid(format!("the gradient of {name} is not on the GPU")));
            }
            None => None,
        };
        if let Some(new) = crate::cuda::ops::weight_gradient(sum, dy, x, scale)? {
            grads.insert(name.to_owned(), Gradient::Tensor(new));
        }
        return Ok(());
    }
    if kernels == Kernels::Tensors {
        let mut gradient = dy.t()?.matmul(x)?.to_dtype(DType::F32)?;
        if (scale - 1.0).abs() > 0.0 {
            gradient = (gradient * scale)?;
        }
        return add_gradient(grads, name, gradient);
    }
    let ((tokens, out), (_, input)) = (dy.dims2()?, x.dims2()?);
    let (sum, fresh) = slice_sum(grads, name, &[out, input])?;
    let threads = candle_core::utils::get_num_threads();
    with_slice(dy, |dy| {
        with_slice(x, |x| {
            let (dy, x) = (View::transposed(dy, out), View::rows(x, input));
            cpu::gemm(sum, (out, input, tokens), dy, x, scale as f32, !fresh, threads);
        })
    })?
}

/// Adds `gradient` to what is there under `name`, of finished sums.
pub(crate) fn accumulate(grads: &mut BTreeMap<String, Tensor>, name: String, gradient: Tensor) -> Result<()> {
    let sum = match grads.get(&name) {
        Some(earlier) => (earlier + &gradient)?,
        None => gradient,
    };
    grads.insert(name, sum);
    Ok(())
}

/// `lhs rhs` (`transpose_rhs`: `lhs rhs^T`) times `scale`, added to `start`, on slices.
fn product(lhs: &Tensor, rhs: &Tensor, transpose_rhs: bool, scale: f64, start: Option<Vec<f32>>) -> Result<Vec<f32>> {
    let (m, k) = lhs.dims2()?;
    let (rows, cols) = rhs.dims2()?;
    let n = if transpose_rhs { rows } else { cols };
    let accumulate = start.is_some();
    let mut dst = start.unwrap_or_else(|| vec![0f32; m * n]);
    with_slice(lhs, |lhs| {
        with_slice(rhs, |rhs| {
            let rhs = if transpose_rhs { View::transposed(rhs, cols) } else { View::rows(rhs, cols) };
            let threads = candle_core::utils::get_num_threads();
            cpu::gemm_rows(&mut dst, (m, n, k), lhs, rhs, scale as f32, accumulate, threads);
        })
    })??;
    Ok(dst)
}

/// `dy W` (times `scale`, plus `start`).
pub(crate) fn product_back(
    kernels: Kernels,
    dy: &Tensor,
    weight: &Tensor,
    scale: f64,
    start: Option<&Tensor>,
) -> Result<Tensor> {
    if kernels == Kernels::Slices {
        let start = start.map(|start| with_slice(start, <[f32]>::to_vec)).transpose()?;
        let y = product(dy, weight, false, scale, start)?;
        return Ok(Tensor::from_vec(y, (dy.dim(0)?, weight.dim(1)?), &Device::Cpu)?);
    }
    #[cfg(feature = "cuda")]
    if kernels == Kernels::Fused {
        return crate::cuda::ops::linear_back(dy, weight, scale, start);
    }
    let y = dy.matmul(weight)?;
    let y = if (scale - 1.0).abs() > 0.0 { (y * scale)? } else { y };
    Ok(match start {
        Some(start) => (y + start)?,
        None => y,
    })
}

/// What a product on slices starts from: the bias in every row, plus the residual.
fn start(bias: Option<&Tensor>, residual: Option<&Tensor>, rows: usize) -> Result<Option<Vec<f32>>> {
    let residual = residual.map(|residual| with_slice(residual, <[f32]>::to_vec)).transpose()?;
    let Some(bias) = bias else { return Ok(residual) };
    let start = with_slice(bias, |bias| match residual {
        None => bias.repeat(rows),
        Some(mut sum) => {
            sum.chunks_exact_mut(bias.len()).for_each(|row| cpu::add(row, bias));
            sum
        }
    })?;
    Ok(Some(start))
}

/// Sum over the rows, in f32.
fn column_sums(kernels: Kernels, dy: &Tensor) -> Result<Tensor> {
    if kernels == Kernels::Tensors {
        return Ok(dy.to_dtype(DType::F32)?.sum(0)?);
    }
    #[cfg(feature = "cuda")]
    if kernels == Kernels::Fused {
        return crate::cuda::ops::column_sums(dy);
    }
    let mut sum = vec![0f32; dy.dim(1)?];
    with_slice(dy, |dy| dy.chunks_exact(sum.len()).for_each(|row| cpu::add(&mut sum, row)))?;
    let width = sum.len();
    Ok(Tensor::from_vec(sum, width, &Device::Cpu)?)
}

impl Linear {
    pub(crate) fn new(weight: Matrix, bias: Option<Tensor>) -> Self {
        Self { weight, bias, lora: None }
    }

    /// `[tokens, in]` to `[tokens, out]`, plus `residual`.
    pub(crate) fn forward(&self, kernels: Kernels, x: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        match kernels {
            Kernels::Slices => {
                let rows = x.dim(0)?;
                let mut y = self.weight.product(x, start(self.bias.as_ref(), residual, rows)?)?;
                if let Some(lora) = &self.lora {
                    let low =
                        Tensor::from_vec(product(x, &lora.a, true, 1.0, None)?, (rows, lora.a.dim(0)?), x.device())?;
                    y = product(&low, &lora.b, true, lora.scale, Some(y))?;
                }
                Ok(Tensor::from_vec(y, (rows, self.weight.out()?), x.device())?)
            }
            Kernels::Tensors => {
                let mut y = x.matmul(&self.weight.dense()?.t()?)?;
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
            #[cfg(feature = "cuda")]
            Kernels::Fused => {
                let y = crate::cuda::ops::linear(x, self.weight.dense()?, residual)?;
                if let Some(bias) = &self.bias {
                    crate::cuda::ops::add_bias(&y, bias)?;
                }
                if let Some(lora) = &self.lora {
                    let (a, b) = (lora.a.to_dtype(DType::BF16)?, lora.b.to_dtype(DType::BF16)?);
                    let low = crate::cuda::ops::linear(x, &a, None)?;
                    crate::cuda::ops::add_low_rank(&y, &low, &b, lora.scale)?;
                }
                Ok(y)
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
        let mut dx = product_back(kernels, dy, self.weight.dense()?, 1.0, start)?;
        if full {
            add_product(grads, &format!("{name}.weight"), kernels, dy, x, 1.0)?;
            if self.bias.is_some() {
                add_gradient(grads, &format!("{name}.bias"), column_sums(kernels, dy)?)?;
            }
        }
        if let Some(lora) = &self.lora {
            let (a, b) = (lora.a.to_dtype(x.dtype())?, lora.b.to_dtype(x.dtype())?);
            let low = match kernels {
                Kernels::Slices => {
                    Tensor::from_vec(product(x, &a, true, 1.0, None)?, (x.dim(0)?, a.dim(0)?), x.device())?
                }
                Kernels::Tensors => x.matmul(&a.t()?)?,
                #[cfg(feature = "cuda")]
                Kernels::Fused => crate::cuda::ops::linear(x, &a, None)?,
            };
            let d_low = product_back(kernels, dy, &b, lora.scale, None)?;
            add_product(grads, &format!("{name}.lora_A"), kernels, &d_low, x, 1.0)?;
            add_product(grads, &format!("{name}.lora_B"), kernels, dy, &low, lora.scale)?;
            dx = product_back(kernels, &d_low, &a, 1.0, Some(&dx))?;
        }
        Ok(dx)
    }

    /// Adds the low-rank update into the weight and drops it.
    pub(crate) fn merge(&mut self) -> Result<()> {
        let Some(lora) = &self.lora else { return Ok(()) };
        let weight = self.weight.dense()?;
        let update = (lora.b.matmul(&lora.a)? * lora.scale)?;
        self.weight = Matrix::Dense((weight.to_dtype(DType::F32)? + update)?.to_dtype(weight.dtype())?);
        self.lora = None;
        Ok(())
    }
}
