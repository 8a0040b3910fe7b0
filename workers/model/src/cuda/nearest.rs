//! The best rows of a table on the GPU for each query (`kernels/nearest.cu`): products in f16 with sums in f32, the
//! queries in two halves so that nothing of them is lost.

use candle_core::{CudaDevice, DType, Device, Tensor};
use half::f16;

use super::launch::{Arg, Shape, Side, arg, free_memory, fresh, launch, product};
use crate::error::{ModelError, Result};

/// Entries of a query's list before it is cut.
const CAPACITY: usize = 4096;
/// Rows offered to empty lists, which take them all.
const BEGIN: usize = 2048;
/// Rows of one tensor.
const PIECE: usize = 1 << 18;
/// Numbers of one step's scores: few enough for the second cache to hold many of them.
const SCORES: usize = 1 << 23;
/// Up to so many queries are multiplied in f32 by the kernel that lists.
const FEW: usize = 4;
/// Memory left to others.
const SPARE: u64 = 1 << 30;
/// The most rows kept for a query.
pub const KEEP: usize = 1024;

/// Rows kept for a query: numbers and approximate scores, the best first.
pub type Kept = Vec<(u32, f32)>;

/// A table of f16 rows on a GPU.
pub struct Nearest {
    device: CudaDevice,
    pieces: Vec<Tensor>,
    dimensions: usize,
    width: usize,
    rows: usize,
}

impl Nearest {
    /// An empty table that will hold `rows` rows; refuses a device without memory for them.
    pub fn new(device: &Device, rows: usize, dimensions: usize) -> Result<Self> {
        let Device::Cuda(device) = device else {
            return Err(ModelError::invalid("rows are searched here on a CUDA device only"));
        };
        // rows begin on boundaries of 16 bytes
        let width = dimensions.next_multiple_of(8);
        let (need, free) = ((rows * width * 2) as u64, free_memory(device)?);
        if need + SPARE > free {
            return Err(ModelError::invalid(format!(
                "{rows} vectors of {dimensions} take {} MiB of the GPU's memory, {} MiB are free; set device: Cpu",
                need >> 20,
                free >> 20
            )));
        }
        Ok(Self { device: device.clone(), pieces: Vec::new(), dimensions, width, rows: 0 })
    }

    /// Rows that a call of [`Nearest::push`] takes; all but the last have to have so many.
    pub fn piece() -> usize {
        PIECE
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Adds rows, run together.
    pub fn push(&mut self, values: &[f16]) -> Result<()> {
        let rows = values.len() / self.dimensions;
        let device = Device::Cuda(self.device.clone());
        let piece = if self.width == self.dimensions {
            Tensor::from_slice(values, (rows, self.width), &device)?
        } else {
            let mut padded = vec![f16::ZERO; rows * self.width];
            for (to, from) in padded.chunks_exact_mut(self.width).zip(values.chunks_exact(self.dimensions)) {
                to[..self.dimensions].copy_from_slice(from);
            }
            Tensor::from_vec(padded, (rows, self.width), &device)?
        };
        self.pieces.push(piece);
        self.rows += rows;
        Ok(())
    }

    /// The `keep` best rows for each query, at most [`KEEP`]; none for a query whose list was too short, which happens
    /// when the table's rows rise towards it.
    pub fn search(&self, queries: &[Vec<f32>], keep: usize) -> Result<Vec<Option<Kept>>> {
        let keep = keep.clamp(1, KEEP);
        let on = Device::Cuda(self.device.clone());
        let count = queries.len();
        if count == 0 || self.rows == 0 {
            return Ok(vec![Some(Vec::new()); count]);
        }
        let lists = Tensor::zeros((count, CAPACITY), DType::I64, &on)?;
        let (counts, over) = (Tensor::zeros(count, DType::U32, &on)?, Tensor::zeros(count, DType::U32, &on)?);
        let floors = Tensor::full(f32::NEG_INFINITY, count, &on)?;
        let asked = self.asked(queries, &on)?;
        let listed = [arg(&lists, DType::I64)?, arg(&counts, DType::U32)?, arg(&floors, DType::F32)?];
        let most = if count <= FEW { PIECE } else { (SCORES / (2 * count)).clamp(BEGIN, PIECE) };
        let mut seen = 0;
        for piece in &self.pieces {
            let (rows, mut from) = (piece.dim(0)?, 0);
            while from < rows {
                // so few that lists hold what is expected above their floors, several times over
                let step = if seen == 0 { BEGIN } else { seen * (CAPACITY / (4 * keep)).clamp(1, 8) };
                let part = piece.narrow(0, from, step.min(most).min(rows - from))?;
                self.offer(&part, &asked, count, seen, listed)?;
                let args = [
                    listed[0],
                    listed[1],
                    listed[2],
                    arg(&over, DType::U32)?,
                    Arg::Int(keep as i32),
                    Arg::Int(CAPACITY as i32),
                ];
                let shape = Shape::new((count, 1, 1), 512).with_shared((CAPACITY * 8) as u32);
                launch(&self.device, "nearest", "settle", shape, &args)?;
                from += part.dim(0)?;
                seen += part.dim(0)?;
            }
        }
        let found = lists.narrow(1, 0, keep)?.contiguous()?.to_vec2::<i64>()?;
        let (counts, over) = (counts.to_vec1::<u32>()?, over.to_vec1::<u32>()?);
        let one = |((list, count), over): ((Vec<i64>, u32), u32)| {
            (over == 0).then(|| list.iter().take(count as usize).map(|entry| read(entry.cast_unsigned())).collect())
        };
        Ok(found.into_iter().zip(counts).zip(over).map(one).collect())
    }

    /// The queries as they are multiplied: in f32 when they are few, else their upper and their lower halves in f16.
    fn asked(&self, queries: &[Vec<f32>], on: &Device) -> Result<Tensor> {
        let padded = queries
            .iter()
            .flat_map(|query| query.iter().copied().chain(std::iter::repeat_n(0.0, self.width - self.dimensions)));
        if queries.len() <= FEW {
            return Ok(Tensor::from_vec(padded.collect::<Vec<f32>>(), (queries.len(), self.width), on)?);
        }
        let upper: Vec<f16> = padded.clone().map(f16::from_f32).collect();
        let lower = padded.zip(&upper).map(|(x, upper)| f16::from_f32((x - upper.to_f32()) * 2048.0));
        let both: Vec<f16> = upper.iter().copied().chain(lower).collect();
        Ok(Tensor::from_vec(both, (2 * queries.len(), self.width), on)?)
    }

    fn offer(&self, part: &Tensor, asked: &Tensor, count: usize, first: usize, listed: [Arg; 3]) -> Result<()> {
        let n = part.dim(0)?;
        let int = |n: usize| i32::try_from(n).map(Arg::Int).map_err(|_| ModelError::invalid("too many rows for a GPU"));
        let [lists, counts, floors] = listed;
        if count <= FEW {
            let args = [
                arg(part, DType::F16)?,
                arg(asked, DType::F32)?,
                lists,
                counts,
                floors,
                int(n)?,
                int(self.width)?,
                int(count)?,
                int(first)?,
                int(CAPACITY)?,
            ];
            let shape = Shape::new((n.div_ceil(64).min(132 * 8), 1, 1), 256);
            let shape = shape.with_shared((FEW * self.width * 4) as u32);
            return launch(&self.device, "nearest", "offer_rows", shape, &args);
        }
        let scores = fresh((2 * count, n), DType::F32, &self.device)?;
        product(&scores, Side(asked, false), Side(part, true), 1.0, 0.0)?;
        let args =
            [arg(&scores, DType::F32)?, lists, counts, floors, int(n)?, int(count)?, int(first)?, int(CAPACITY)?];
        let shape = Shape::new((n.div_ceil(2048).min(128), count, 1), 256);
        launch(&self.device, "nearest", "offer_scores", shape, &args)
    }
}

/// An entry of `kernels/nearest.cu`.
fn read(entry: u64) -> (u32, f32) {
    let bits = (entry >> 32) as u32;
    let score = f32::from_bits(if bits & 0x8000_0000 == 0 { !bits } else { bits & 0x7fff_ffff });
    (!(entry as u32), score)
}
