//! Operations of a decoder on tensors, with their gradients. Each has two implementations: slices
//! of [`crate::cpu`] for f32 on the CPU, and compositions of tensor operations that run on every
//! device. The gradients are written out, because candle's fused kernels drop them silently.

use candle_core::{CpuStorage, D, DType, Device, Storage, Tensor};

use crate::{config::DecoderConfig, cpu, error::Result};

/// Which implementation runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernels {
    /// Slices on the CPU, f32.
    Slices,
    /// Tensor operations on any device.
    Tensors,
    /// Own kernels for bf16 on NVIDIA GPUs.
    #[cfg(feature = "cuda")]
    Fused,
}

impl Kernels {
    /// The fastest for this device and precision.
    pub(crate) fn of(device: &Device, dtype: DType) -> Self {
        if device.is_cpu() && dtype == DType::F32 { Self::Slices } else { Self::Tensors }
    }

    /// The fastest for a decoder of this shape.
    pub(crate) fn of_decoder(config: &DecoderConfig, device: &Device, dtype: DType) -> Self {
        #[cfg(feature = "cuda")]
        if device.is_cuda() && dtype == DType::BF16 && Self::fit(config) {
            return Self::Fused;
        }
        let _ = config;
        Self::of(device, dtype)
    }

    /// Whether these are the GPU's own kernels.
    pub(crate) fn fused(self) -> bool {
        !matches!(self, Self::Slices | Self::Tensors)
    }

    /// Whether the own kernels run this shape: vectors of eight, two widths of heads, no norms of heads.
    #[cfg(feature = "cuda")]
    fn fit(config: &DecoderConfig) -> bool {
        if config.qk_norm() {
            return false;
        }
        let eights = [config.hidden, config.ffn, config.vocab].iter().all(|n| n.is_multiple_of(8));
        eights && config.hidden <= crate::cuda::ops::WIDEST && matches!(config.head_dim, 64 | 128)
    }
}

/// Calls `f` with the elements of a contiguous f32 CPU tensor.
pub(crate) fn with_slice<R>(tensor: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let contiguous = tensor.contiguous()?;
    let (storage, layout) = contiguous.storage_and_layout();
    let Storage::Cpu(CpuStorage::F32(data)) = &*storage else {
        return Err(candle_core::Error::Msg("a slice kernel got a tensor that is not f32 on the CPU".into())
            .bt()
            .into());
    };
    let start = layout.start_offset();
    Ok(f(&data[start..start + layout.shape().elem_count()]))
}

/// [`with_slice`] of five tensors at once.
pub(crate) fn with_slices<R>([a, b, c, d, e]: [&Tensor; 5], f: impl FnOnce([&[f32]; 5]) -> R) -> Result<R> {
    with_slice(a, |a| {
        with_slice(b, |b| with_slice(c, |c| with_slice(d, |d| with_slice(e, |e| f([a, b, c, d, e])))))
    })????
}

pub(crate) fn tensor(data: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, like.shape(), &Device::Cpu)?)
}

/// `x / rms(x) * w` over the last dimension.
pub(crate) fn rms_norm(kernels: Kernels, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    match kernels {
        Kernels::Slices => {
            let y = with_slice(x, |x| with_slice(w, |w| cpu::rms_norm(x, w, eps as f32)))??;
            tensor(y, x)
        }
        Kernels::Tensors => Ok(candle_nn::ops::rms_norm(&x.contiguous()?, w, eps as f32)?),
        #[cfg(feature = "cuda")]
        Kernels::Fused => crate::cuda::ops::rms_norm(&x.contiguous()?, w, eps),
    }
}

/// Gradient of [`rms_norm`]: `(dx, dw)`, `dx` plus the residual, `dw` in f32 and only when wanted.
pub(crate) fn rms_norm_backward(
    kernels: Kernels,
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    dy: &Tensor,
    residual: Option<&Tensor>,
    want_dw: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    match kernels {
        Kernels::Slices => {
            let (dx, dw) = with_slice(x, |x| {
                with_slice(w, |w| with_slice(dy, |dy| cpu::rms_norm_backward(x, w, eps as f32, dy, want_dw)))
            })???;
            Ok((with_residual(tensor(dx, x)?, residual)?, dw.map(|dw| tensor(dw, w)).transpose()?))
        }
        Kernels::Tensors => {
            let width = w.elem_count();
            let (xf, dyf, wf) = (x.to_dtype(DType::F32)?, dy.to_dtype(DType::F32)?, w.to_dtype(DType::F32)?);
            let r = ((xf.sqr()?.sum_keepdim(D::Minus1)? / width as f64)? + eps)?.sqrt()?.recip()?;
            let normal = xf.broadcast_mul(&r)?;
            let dw = if want_dw { Some((&dyf * &normal)?.reshape(((), width))?.sum(0)?) } else { None };
            let scaled = dyf.broadcast_mul(&wf)?;
            let mean = ((&scaled * &normal)?.sum_keepdim(D::Minus1)? / width as f64)?;
            let dx = (scaled - normal.broadcast_mul(&mean)?)?.broadcast_mul(&r)?;
            Ok((with_residual(dx.to_dtype(x.dtype())?, residual)?, dw))
        }
        #[cfg(feature = "cuda")]
        Kernels::Fused => crate::cuda::ops::rms_norm_backward(x, w, eps, dy, residual, want_dw),
    }
}

fn with_residual(x: Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    Ok(match residual {
        Some(residual) => (residual + x)?,
        None => x,
    })
}

/// `silu(a) * b`.
pub(crate) fn swiglu(kernels: Kernels, a: &Tensor, b: &Tensor) -> Result<Tensor> {
    match kernels {
        Kernels::Slices => tensor(with_slice(a, |a| with_slice(b, |b| cpu::swiglu(a, b)))??, a),
        Kernels::Tensors => Ok((a.silu()? * b)?),
        #[cfg(feature = "cuda")]
        Kernels::Fused => crate::cuda::ops::swiglu(a, b),
    }
}

/// Gradient of [`swiglu`]: `(da, db)`.
pub(crate) fn swiglu_backward(kernels: Kernels, a: &Tensor, b: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    match kernels {
        Kernels::Slices => {
            let (da, db) = with_slice(a, |a| with_slice(b, |b| with_slice(dy, |dy| cpu::swiglu_backward(a, b, dy))))???;
            Ok((tensor(da, a)?, tensor(db, a)?))
        }
        Kernels::Tensors => {
            let gate = candle_nn::ops::sigmoid(a)?;
            let silu = (a * &gate)?;
            let db = (dy * &silu)?;
            let slope = (&gate + (&silu - (&silu * &gate)?)?)?;
            Ok((((dy * b)? * slope)?, db))
        }
        #[cfg(feature = "cuda")]
        Kernels::Fused => crate::cuda::ops::swiglu_backward(a, b, dy),
    }
}

/// Gradient by all hidden states (shaped as `like`), from that by some distinct rows of them.
pub(crate) fn spread(kernels: Kernels, like: &Tensor, sources: &Tensor, rows: &Tensor) -> Result<Tensor> {
    let zeros = like.zeros_like()?;
    match kernels {
        Kernels::Slices | Kernels::Tensors => Ok(zeros.index_add(sources, rows, 0)?),
        #[cfg(feature = "cuda")]
        Kernels::Fused => {
            crate::cuda::ops::place_rows(&zeros, sources, rows)?;
            Ok(zeros)
        }
    }
}

/// Rotary tables in f32: built in f64 and never in the model's precision, where positions above
/// 256 would collapse in bf16.
#[derive(Clone)]
pub(crate) struct Rope {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    pub(crate) tables: Option<(Tensor, Tensor)>,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code))]
    kernels: Kernels,
}

impl Rope {
    pub(crate) fn new(
        theta: f64,
        head_dim: usize,
        positions: usize,
        device: &Device,
        kernels: Kernels,
    ) -> Result<Self> {
        let half = head_dim / 2;
        let angles = (0..positions).flat_map(|p| {
            // The frequency is rounded to f32 first, as the reference implementations do.
            (0..half).map(move |i| {
                let frequency = (1.0 / theta.powf(2.0 * i as f64 / head_dim as f64)) as f32;
                f64::from(p as f32 * frequency)
            })
        });
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
        let table = |values: &[f32]| Tensor::from_slice(values, (positions, half), device);
        let tables = if kernels == Kernels::Slices { None } else { Some((table(&cos)?, table(&sin)?)) };
        Ok(Self { half, cos, sin, tables, kernels })
    }

    /// Rotates `x` `[tokens, heads * head_dim]` by each token's position, or back when `inverse`
    /// (which is the gradient of the rotation).
    /// Nothing else may hold `x`: some kernels rotate in place.
    #[cfg_attr(not(feature = "cuda"), allow(clippy::needless_pass_by_value))] // so that nothing else holds it
    pub(crate) fn apply(&self, x: Tensor, positions: &[u32], index: Option<&Tensor>, inverse: bool) -> Result<Tensor> {
        let (tokens, width) = x.dims2()?;
        let heads = width / (2 * self.half);
        let (Some((cos, sin)), Some(index)) = (&self.tables, index) else {
            let mut data = with_slice(&x, <[f32]>::to_vec)?;
            let sign = if inverse { -1.0 } else { 1.0 };
            cpu::rope(&mut data, heads, self.half, positions, &self.cos, &self.sin, sign);
            return tensor(data, &x);
        };
        #[cfg(feature = "cuda")]
        if self.kernels == Kernels::Fused {
            crate::cuda::ops::rope(&x, index, (cos, sin), self.half, inverse)?;
            return Ok(x);
        }
        let dtype = x.dtype();
        let cos = cos.index_select(index, 0)?.unsqueeze(1)?;
        let sin = sin.index_select(index, 0)?.unsqueeze(1)?;
        let sin = if inverse { sin.neg()? } else { sin };
        let x = x.to_dtype(DType::F32)?.reshape((tokens, heads, 2 * self.half))?;
        let (a, b) = (x.narrow(2, 0, self.half)?, x.narrow(2, self.half, self.half)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
        Ok(Tensor::cat(&[first, second], 2)?.reshape((tokens, width))?.to_dtype(dtype)?)
    }
}
