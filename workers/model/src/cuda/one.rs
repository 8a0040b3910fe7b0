//! A decoding step of one row without low-rank pairs as one kernel (`kernels/one.cu`), whose blocks wait for each other.
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)] // sizes of a model

use candle_core::{CudaDevice, DType, Tensor, cuda_backend::cudarc::driver::CudaSlice};

use super::launch::{Arg, Shape, arg, at, failed, launch, start, together};
use crate::{
    decoder::{Decoder, K, Q, V},
    error::{ModelError, Result},
};

/// As in the kernel: threads of a block, bytes of its rings, pieces of a head's keys at most.
const THREADS: u32 = 512;
const RINGS: usize = 16 * 3 * 128 * 16;
const PIECES: usize = 8;

/// Keys that a piece has at least.
const PIECE: usize = 32;

/// What the kernel works in.
pub(super) struct One {
    name: &'static str,
    shape: Shape,
    sizes: [usize; 8],
    /// Addresses of all layers.
    layers: CudaSlice<u64>,
    /// What blocks tell each other: new with each [`One`], for its marks count on.
    boxes: CudaSlice<u64>,
}

impl One {
    /// None where the GPU cannot hold a block on each of its multiprocessors.
    pub(super) fn new(
        decoder: &Decoder,
        device: &CudaDevice,
        cached: &[(Tensor, Tensor)],
        capacity: usize,
    ) -> Result<Option<Self>> {
        let c = &decoder.config;
        let (width, kv_width) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let name = if c.head_dim == 64 { "one_64" } else { "one_128" };
        let mut layers = Vec::new();
        for (layer, (keys, values)) in decoder.layers.iter().zip(cached) {
            for linear in &layer.linears {
                layers.push(at(linear.weight.dense()?)?);
            }
            layers.extend([at(&layer.input_norm)?, at(&layer.post_norm)?]);
            for i in [Q, K, V] {
                layers.push(layer.linears[i].bias.as_ref().map_or(Ok(0), at)?);
            }
            layers.extend([at(keys)?, at(values)?]);
        }
        // The most rows of a matrix that one of the blocks has.
        let rows = |rows: usize, blocks: usize| 2 * (rows / 2).div_ceil(blocks);
        let finished = |blocks| rows(c.ffn.max(c.hidden).max(width + 2 * kv_width), blocks);
        let shared = |blocks| {
            let sums = rows(c.vocab, blocks).max(2 * finished(blocks));
            (RINGS + 2 * width.max(c.hidden).max(c.ffn) + 8 * layers.len() + 4 * sums) as u32
        };
        let blocks = together(device, "one", name, THREADS, shared)?;
        if blocks == 0 || finished(blocks) > THREADS as usize {
            return Ok(None);
        }
        let pieces = (blocks / c.heads).clamp(1, PIECES);
        let chunk = capacity.div_ceil(pieces).max(PIECE);
        let boxes = c.hidden / 2 + width / 2 + kv_width + c.ffn / 2 + c.heads * PIECES * (c.head_dim + 2);
        Ok(Some(Self {
            name,
            shape: Shape::new((blocks, 1, 1), THREADS).with_shared(shared(blocks)).together(),
            sizes: [decoder.layers.len(), c.hidden, c.ffn, c.heads, c.kv_heads, c.vocab, capacity, chunk],
            layers: device.cuda_stream().clone_htod(&layers).map_err(|e| failed("copying", e))?,
            boxes: device.alloc_zeros(boxes)?,
        }))
    }

    /// Queues the step: `logits` of the token that follows `tokens` at the place `lens` in the cache's row `places`.
    pub(super) fn queue(
        &self,
        decoder: &Decoder,
        device: &CudaDevice,
        [lens, places]: [&CudaSlice<i32>; 2],
        tokens: &CudaSlice<u32>,
        logits: &Tensor,
    ) -> Result<()> {
        let Some((cos, sin)) = &decoder.rope.tables else {
            return Err(ModelError::invalid("the rotary tables are not on the GPU"));
        };
        let mut args = vec![Arg::At(start(&self.layers, device, 0))];
        for tensor in [decoder.embed.dense()?, &decoder.norm, decoder.output().dense()?] {
            args.push(arg(tensor, DType::BF16)?);
        }
        args.push(Arg::At(start(tokens, device, 0)));
        args.extend([arg(cos, DType::F32)?, arg(sin, DType::F32)?]);
        args.extend([lens, places].map(|slice| Arg::At(start(slice, device, 0))));
        args.extend([arg(logits, DType::BF16)?, Arg::At(start(&self.boxes, device, 0))]);
        args.extend(self.sizes.map(|n| Arg::Int(n as i32)));
        args.push(Arg::Float(decoder.config.norm_eps as f32));
        launch(device, "one", self.name, self.shape, &args)
    }
}
