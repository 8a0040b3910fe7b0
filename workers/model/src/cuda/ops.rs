//! Norms, rotation, gating, biases, the embedding's gradient and `AdamW`, each one kernel of `kernels/rows.cu`
//! and `kernels/adamw.cu`.

use candle_core::{CudaDevice, DType, Device, Tensor};

use super::launch::{Arg, Shape, Side, arg, at, device_of, fresh, launch, product};
use crate::{
    cpu::AdamWStep,
    error::{ModelError, Result},
};

/// Most columns of a norm: 512 threads with four vectors of eight.
pub(crate) const WIDEST: usize = 512 * 4 * 8;

/// Blocks of a kernel that walks over rows, eight for each multiprocessor of the largest GPUs.
const WALKERS: usize = 1056;

fn threads(width: usize) -> u32 {
    [128, 256, 512].into_iter().find(|n| width <= 2 * 8 * *n as usize).unwrap_or(512)
}

pub(crate) fn rms_norm(x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
    let y = fresh(x.shape(), DType::BF16, &device_of(x)?)?;
    rms_norm_to(&y, x, w, eps)?;
    Ok(y)
}

/// [`rms_norm`] into `y`.
pub(crate) fn rms_norm_to(y: &Tensor, x: &Tensor, w: &Tensor, eps: f64) -> Result<()> {
    let (rows, width) = x.dims2()?;
    let args = [
        arg(x, DType::BF16)?,
        arg(w, DType::BF16)?,
        arg(y, DType::BF16)?,
        Arg::Int(width as i32),
        Arg::Float(eps as f32),
    ];
    launch(&device_of(x)?, "rows", "rms_norm", Shape::new((rows, 1, 1), threads(width)), &args)
}

/// `(dx + residual, dw)`, `dw` in f32 when wanted.
pub(crate) fn rms_norm_backward(
    x: &Tensor,
    w: &Tensor,
    eps: f64,
    dy: &Tensor,
    residual: Option<&Tensor>,
    want_dw: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (rows, width) = x.dims2()?;
    let device = device_of(x)?;
    let dx = fresh((rows, width), DType::BF16, &device)?;
    let blocks = rows.min(WALKERS);
    let partial = if want_dw { Some(fresh((blocks, width), DType::F32, &device)?) } else { None };
    let args = [
        arg(x, DType::BF16)?,
        arg(w, DType::BF16)?,
        arg(dy, DType::BF16)?,
        residual.map_or(Ok(Arg::At(0)), |r| arg(r, DType::BF16))?,
        arg(&dx, DType::BF16)?,
        partial.as_ref().map_or(Ok(Arg::At(0)), |p| arg(p, DType::F32))?,
        Arg::Int(rows as i32),
        Arg::Int(width as i32),
        Arg::Float(eps as f32),
    ];
    launch(&device, "rows", "rms_norm_backward", Shape::new((blocks, 1, 1), threads(width)), &args)?;
    let dw = partial.map(|partial| sum_partials(&partial, &device)).transpose()?;
    Ok((dx, dw))
}

fn sum_partials(partial: &Tensor, device: &CudaDevice) -> Result<Tensor> {
    let (blocks, width) = partial.dims2()?;
    let out = fresh(width, DType::F32, device)?;
    let args = [
        arg(partial, DType::F32)?,
        arg(&out, DType::F32)?,
        Arg::Int(blocks as i32),
        Arg::Int(width as i32),
        Arg::Int(0),
    ];
    let shape = Shape { block: (32, 32), ..Shape::new((width.div_ceil(32), 1, 1), 32) };
    launch(device, "rows", "sum_partials", shape, &args)?;
    Ok(out)
}

/// Sum over the rows, in f32.
pub(crate) fn column_sums(x: &Tensor) -> Result<Tensor> {
    let (rows, width) = x.dims2()?;
    let device = device_of(x)?;
    let strips = rows.div_ceil(32).clamp(1, 128);
    let partial = fresh((strips, width), DType::F32, &device)?;
    let args = [arg(x, DType::BF16)?, arg(&partial, DType::F32)?, Arg::Int(rows as i32), Arg::Int(width as i32)];
    launch(&device, "rows", "column_partials", Shape::new((width.div_ceil(256), strips, 1), 128), &args)?;
    sum_partials(&partial, &device)
}

pub(crate) fn swiglu(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    let act = fresh(a.shape(), DType::BF16, &device_of(a)?)?;
    swiglu_to(&act, a, b)?;
    Ok(act)
}

/// [`swiglu`] into `act`.
pub(crate) fn swiglu_to(act: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let vectors = a.elem_count() / 8;
    let args = [arg(a, DType::BF16)?, arg(b, DType::BF16)?, arg(act, DType::BF16)?, Arg::Long(vectors as i64)];
    launch(&device_of(a)?, "rows", "swiglu", Shape::each(vectors), &args)
}

pub(crate) fn swiglu_backward(a: &Tensor, b: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let device = device_of(a)?;
    let (da, db) = (fresh(a.shape(), DType::BF16, &device)?, fresh(a.shape(), DType::BF16, &device)?);
    let vectors = a.elem_count() / 8;
    let args = [
        arg(a, DType::BF16)?,
        arg(b, DType::BF16)?,
        arg(dy, DType::BF16)?,
        arg(&da, DType::BF16)?,
        arg(&db, DType::BF16)?,
        Arg::Long(vectors as i64),
    ];
    launch(&device, "rows", "swiglu_backward", Shape::each(vectors), &args)?;
    Ok((da, db))
}

/// Adds the bias to every row, in place: only for a tensor that nothing else holds.
pub(crate) fn add_bias(x: &Tensor, bias: &Tensor) -> Result<()> {
    let vectors = x.elem_count() / 8;
    let args = [arg(x, DType::BF16)?, arg(bias, DType::BF16)?, Arg::Int(x.dim(1)? as i32), Arg::Long(vectors as i64)];
    launch(&device_of(x)?, "rows", "add_bias", Shape::each(vectors), &args)
}

/// Rotates in place: only for a tensor that nothing else holds.
pub(crate) fn rope(
    x: &Tensor,
    positions: &Tensor,
    (cos, sin): (&Tensor, &Tensor),
    half: usize,
    inverse: bool,
) -> Result<()> {
    let (tokens, width) = x.dims2()?;
    let args = [
        arg(x, DType::BF16)?,
        arg(positions, DType::U32)?,
        arg(cos, DType::F32)?,
        arg(sin, DType::F32)?,
        Arg::Int((width / (2 * half)) as i32),
        Arg::Int(half as i32),
        Arg::Float(if inverse { -1.0 } else { 1.0 }),
    ];
    launch(&device_of(x)?, "rows", "rope", Shape::new((tokens, 1, 1), 128), &args)
}

/// Adds row `i` of `x` to row `ids[i]` of `table` (f32), in place and in order.
pub(crate) fn add_rows(table: &Tensor, ids: &[u32], x: &Tensor) -> Result<()> {
    let device = device_of(x)?;
    let mut order: Vec<u32> = (0..ids.len() as u32).collect();
    order.sort_by_key(|&i| ids[i as usize]); // stable: equal ids stay in order
    let (mut distinct, mut starts) = (Vec::new(), Vec::new());
    for (place, &i) in order.iter().enumerate() {
        if distinct.last() != Some(&ids[i as usize]) {
            distinct.push(ids[i as usize]);
            starts.push(place as u32);
        }
    }
    starts.push(order.len() as u32);
    let upload = |values: &[u32]| Tensor::from_slice(values, values.len(), &Device::Cuda(device.clone()));
    let (ids, starts, order) = (upload(&distinct)?, upload(&starts)?, upload(&order)?);
    let args = [
        arg(x, DType::BF16)?,
        arg(&ids, DType::U32)?,
        arg(&starts, DType::U32)?,
        arg(&order, DType::U32)?,
        arg(table, DType::F32)?,
        Arg::Int(x.dim(1)? as i32),
    ];
    launch(&device, "rows", "add_rows", Shape::new((distinct.len(), 1, 1), 256), &args)
}

/// `out[index[i]] = rows[i]`, in place; the indices are distinct.
pub(crate) fn place_rows(out: &Tensor, index: &Tensor, rows: &Tensor) -> Result<()> {
    let (count, width) = rows.dims2()?;
    let args = [arg(rows, DType::BF16)?, arg(index, DType::U32)?, arg(out, DType::BF16)?, Arg::Int(width as i32)];
    launch(&device_of(rows)?, "rows", "place_rows", Shape::new((count, 1, 1), 128), &args)
}

/// `x W^T (+ residual)`.
pub(crate) fn linear(x: &Tensor, weight: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
    let shape = (x.dim(0)?, weight.dim(0)?);
    let y = match residual {
        Some(residual) => residual.copy()?,
        None => fresh(shape, DType::BF16, &device_of(x)?)?,
    };
    product(&y, Side(x, false), Side(weight, true), 1.0, f32::from(u8::from(residual.is_some())))?;
    Ok(y)
}

/// `y += scale * low B^T`, in place: only for a tensor that nothing else holds.
pub(crate) fn add_low_rank(y: &Tensor, low: &Tensor, b: &Tensor, scale: f64) -> Result<()> {
    product(y, Side(low, false), Side(b, true), scale as f32, 1.0)
}

/// `scale * dy W (+ start)`, added to `start` in place where there is one: nothing else may hold it.
pub(crate) fn linear_back(dy: &Tensor, weight: &Tensor, scale: f64, start: Option<&Tensor>) -> Result<Tensor> {
    let shape = (dy.dim(0)?, weight.dim(1)?);
    let dx = match start {
        Some(start) => start.clone(),
        None => fresh(shape, DType::BF16, &device_of(dy)?)?,
    };
    product(&dx, Side(dy, false), Side(weight, false), scale as f32, f32::from(u8::from(start.is_some())))?;
    Ok(dx)
}

/// `sum += scale * dy^T x` in f32, in place; a new sum when there is none.
pub(crate) fn weight_gradient(sum: Option<&Tensor>, dy: &Tensor, x: &Tensor, scale: f64) -> Result<Option<Tensor>> {
    let (out, keep) = match sum {
        Some(sum) => (sum.clone(), 1.0),
        None => (fresh((dy.dim(1)?, x.dim(1)?), DType::F32, &device_of(dy)?)?, 0.0),
    };
    product(&out, Side(dy, true), Side(x, false), scale as f32, keep)?;
    Ok(sum.is_none().then_some(out))
}

/// New `(parameter, m, v)` and, when asked for, the parameter in bf16.
pub(crate) fn adamw(
    parameter: &Tensor,
    gradient: &Tensor,
    (m, v): (&Tensor, &Tensor),
    step: AdamWStep,
    working: bool,
) -> Result<(Tensor, Tensor, Tensor, Option<Tensor>)> {
    let device = device_of(parameter)?;
    let n = parameter.elem_count();
    if gradient.elem_count() != n || m.elem_count() != n || v.elem_count() != n {
        return Err(ModelError::invalid("the optimiser's tensors differ in size"));
    }
    let new = |dtype| fresh(parameter.shape(), dtype, &device);
    let (p2, m2, v2) = (new(DType::F32)?, new(DType::F32)?, new(DType::F32)?);
    let w = if working { Some(new(DType::BF16)?) } else { None };
    let gradient = gradient.contiguous()?;
    let parameter = parameter.contiguous()?;
    let mut args = Vec::new();
    for tensor in [&parameter, &gradient, m, v, &p2, &m2, &v2] {
        args.push(arg(tensor, DType::F32)?);
    }
    args.push(Arg::At(w.as_ref().map_or(Ok(0), at)?));
    args.push(Arg::Long(n as i64));
    let AdamWStep { beta1, beta2, correct1, correct2, epsilon, keep, rate } = step;
    args.extend([beta1, beta2, correct1, correct2, epsilon, keep, rate].map(Arg::Float));
    launch(&device, "adamw", "adamw", Shape::each(n.div_ceil(4)), &args)?;
    Ok((p2, m2, v2, w))
}

/// Sum of the squares of f32 tensors, tensor by tensor in f64.
pub(crate) fn sum_of_squares(tensors: &[&Tensor]) -> Result<f64> {
    const BLOCKS: usize = 256;
    let Some(first) = tensors.first() else { return Ok(0.0) };
    let device = device_of(first)?;
    let partial = fresh((tensors.len(), BLOCKS), DType::F64, &device)?;
    for (i, tensor) in tensors.iter().enumerate() {
        let row = partial.narrow(0, i, 1)?;
        let args = [arg(tensor, DType::F32)?, arg(&row, DType::F64)?, Arg::Long(tensor.elem_count() as i64)];
        launch(&device, "adamw", "sum_of_squares", Shape::new((BLOCKS, 1, 1), 256), &args)?;
    }
    Ok(partial.flatten_all()?.to_vec1::<f64>()?.iter().sum())
}
