//! Causal attention over ragged rows by `kernels/attention.cu`: nothing is padded, no score leaves the chip.

use std::f32::consts::LOG2_E;

use candle_core::{CudaDevice, DType, Device, Tensor};

use super::launch::{Arg, Shape, arg, device_of, fresh, launch};
use crate::{
    cache::{KvCache, Store},
    config::DecoderConfig,
    error::{ModelError, Result},
};

/// Queries, and keys, of a block.
const TILE: usize = 64;
const THREADS: u32 = 128;

/// Where the rows lie, on the device.
pub(crate) struct Rows {
    longest: usize,
    count: usize,
    /// `[rows + 1]`: where a row's queries begin.
    starts: Tensor,
    /// `[rows]`: keys before a row's queries.
    past: Tensor,
    /// `[rows]`: where a row's keys begin, in elements.
    offsets: Tensor,
    /// `[rows]`: which row of the cache it is.
    places: Tensor,
}

impl Rows {
    pub(crate) fn new(
        config: &DecoderConfig,
        lens: &[usize],
        past: &[usize],
        rows: &[usize],
        cache: Option<&KvCache>,
        device: &Device,
    ) -> Result<Self> {
        let mut starts = vec![0u32];
        for len in lens {
            starts.push(starts.last().copied().unwrap_or(0) + *len as u32);
        }
        let width = config.kv_heads * config.head_dim;
        let offsets: Vec<i64> = match cache.map(|cache| &cache.store) {
            Some(Store::Padded { capacity, .. }) => rows.iter().map(|row| (row * capacity * width) as i64).collect(),
            _ => starts.iter().take(lens.len()).map(|&start| i64::from(start) * width as i64).collect(),
        };
        let places: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
        let past: Vec<u32> = past.iter().map(|&n| n as u32).collect();
        Ok(Self {
            longest: lens.iter().copied().max().unwrap_or(0),
            count: lens.len(),
            starts: Tensor::from_slice(&starts, starts.len(), device)?,
            past: Tensor::from_slice(&past, past.len(), device)?,
            offsets: Tensor::from_slice(&offsets, offsets.len(), device)?,
            places: Tensor::from_slice(&places, places.len(), device)?,
        })
    }
}

fn named(head_dim: usize, of64: &'static str, of128: &'static str) -> Result<&'static str> {
    match head_dim {
        64 => Ok(of64),
        128 => Ok(of128),
        _ => Err(ModelError::invalid(format!("no GPU attention for heads of {head_dim}"))),
    }
}

/// Bytes of shared memory for `tiles` of `rows` rows.
fn shared(tiles: usize, rows: usize, head_dim: usize) -> u32 {
    (tiles * rows * (head_dim + 8) * 2) as u32
}

fn sizes(config: &DecoderConfig, tokens: usize) -> [Arg; 3] {
    [Arg::Int(config.heads as i32), Arg::Int(config.kv_heads as i32), Arg::Int(tokens as i32)]
}

fn scale(config: &DecoderConfig) -> f32 {
    1.0 / (config.head_dim as f32).sqrt()
}

/// Output and, by head and token, the logarithm of the softmax's sum.
pub(crate) fn attend(
    config: &DecoderConfig,
    rows: &Rows,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    cache: Option<(&mut KvCache, usize)>,
) -> Result<(Tensor, Tensor)> {
    let device = device_of(q)?;
    let (tokens, width) = q.dims2()?;
    let (d, kv_width) = (config.head_dim, config.kv_heads * config.head_dim);
    let (keys, values, stride, head_stride) = match cache {
        None => (k.clone(), v.clone(), kv_width, d),
        Some((cache, layer)) => {
            append(config, rows, (k, v), cache, layer, &device)?;
            let Store::Padded { layers, capacity } = &cache.store else {
                return Err(ModelError::invalid("the cache belongs to a model on another device"));
            };
            (layers[layer].k.clone(), layers[layer].v.clone(), d, *capacity * d)
        }
    };
    let (o, lse) = (fresh((tokens, width), DType::BF16, &device)?, fresh((config.heads, tokens), DType::F32, &device)?);
    let mut args = vec![
        arg(q, DType::BF16)?,
        arg(&keys, DType::BF16)?,
        arg(&values, DType::BF16)?,
        arg(&o, DType::BF16)?,
        arg(&lse, DType::F32)?,
        arg(&rows.starts, DType::U32)?,
        arg(&rows.past, DType::U32)?,
        arg(&rows.offsets, DType::I64)?,
        Arg::Long(stride as i64),
        Arg::Long(head_stride as i64),
    ];
    args.extend(sizes(config, tokens));
    args.push(Arg::Float(scale(config) * LOG2_E));
    let grid = (config.heads, rows.count, rows.longest.div_ceil(TILE));
    let shape = Shape::new(grid, THREADS).with_shared(shared(5, TILE, d));
    launch(&device, "attention", named(d, "attend_64", "attend_128")?, shape, &args)?;
    Ok((o, lse))
}

/// Writes new keys and values behind those of the cache.
fn append(
    config: &DecoderConfig,
    rows: &Rows,
    (k, v): (&Tensor, &Tensor),
    cache: &KvCache,
    layer: usize,
    device: &CudaDevice,
) -> Result<()> {
    let Store::Padded { layers, capacity } = &cache.store else {
        return Err(ModelError::invalid("the cache belongs to a model on another device"));
    };
    for (from, to) in [(k, &layers[layer].k), (v, &layers[layer].v)] {
        let args = [
            arg(from, DType::BF16)?,
            arg(to, DType::BF16)?,
            arg(&rows.starts, DType::U32)?,
            arg(&rows.past, DType::U32)?,
            arg(&rows.places, DType::U32)?,
            Arg::Int(config.kv_heads as i32),
            Arg::Int(config.head_dim as i32),
            Arg::Int(*capacity as i32),
        ];
        launch(device, "decode", "append", Shape::new((rows.longest, rows.count, 1), 128), &args)?;
    }
    Ok(())
}

/// `(dq, dk, dv)` of [`attend`] without a cache.
pub(crate) fn backward(
    config: &DecoderConfig,
    rows: &Rows,
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    (o, lse): (&Tensor, &Tensor),
    d_o: &Tensor,
) -> Result<(Tensor, Tensor, Tensor)> {
    let device = device_of(q)?;
    let (tokens, d) = (q.dim(0)?, config.head_dim);
    let delta = fresh((config.heads, tokens), DType::F32, &device)?;
    let args = [
        arg(o, DType::BF16)?,
        arg(d_o, DType::BF16)?,
        arg(&delta, DType::F32)?,
        Arg::Int(config.heads as i32),
        Arg::Int(tokens as i32),
    ];
    let blocks = (config.heads * tokens).div_ceil(8);
    launch(&device, "attention", named(d, "delta_64", "delta_128")?, Shape::new((blocks, 1, 1), 256), &args)?;
    let like = |t: &Tensor| fresh(t.shape(), DType::BF16, &device);
    let (dq, dk, dv) = (like(q)?, like(k)?, like(v)?);
    let inputs = [q, k, v, d_o].map(|t| arg(t, DType::BF16)).into_iter().collect::<Result<Vec<_>>>()?;
    let after = [
        arg(&rows.starts, DType::U32)?,
        Arg::Int(config.heads as i32),
        Arg::Int(config.kv_heads as i32),
        Arg::Int(tokens as i32),
        Arg::Float(scale(config) * LOG2_E),
        Arg::Float(scale(config)),
    ];
    let stats = [arg(lse, DType::F32)?, arg(&delta, DType::F32)?];
    let blocks = rows.longest.div_ceil(TILE);
    let queries = if d == 64 { 64 } else { 32 }; // that pass by at once: what the registers hold
    let bytes = shared(2, TILE, d) + shared(4, queries, d) + 16 * queries as u32;
    let shape = Shape::new((config.heads, rows.count, blocks), THREADS).with_shared(bytes);
    let parts = || fresh((tokens, config.heads * d), DType::F32, &device);
    let (parts_k, parts_v) = (parts()?, parts()?);
    let args = [&inputs[..], &stats, &[arg(&parts_k, DType::F32)?, arg(&parts_v, DType::F32)?], &after].concat();
    launch(&device, "attention", named(d, "by_keys_64", "by_keys_128")?, shape, &args)?;
    for (parts, sum) in [(&parts_k, &dk), (&parts_v, &dv)] {
        let vectors = sum.elem_count() / 8;
        let args = [
            arg(parts, DType::F32)?,
            arg(sum, DType::BF16)?,
            Arg::Int(config.group() as i32),
            Arg::Int(d as i32),
            Arg::Long(vectors as i64),
        ];
        launch(&device, "attention", "sum_groups", Shape::each(vectors), &args)?;
    }
    let shape = Shape::new((config.heads, rows.count, blocks), THREADS).with_shared(shared(6, TILE, d));
    let args = [&inputs[..], &stats, &[arg(&dq, DType::BF16)?], &after].concat();
    launch(&device, "attention", named(d, "by_queries_64", "by_queries_128")?, shape, &args)?;
    Ok((dq, dk, dv))
}
