//! Matrices that stay in the blocks a GGUF file stores them in: a decoded token is bound by the bytes
//! of the weights, and these are a sixth of f32. Products use f32 activations: a few rows multiply the
//! codes directly, many rows unpack the matrix and take the same gemm as f32 weights do. Both differ
//! from dequantised weights by rounding only, and neither depends on the number of threads.
#![allow(unsafe_code)] // the widest instruction set is entered after asking for it

use candle_core::quantized::{GgmlDType, QTensor};
use half::f16;
use rayon::prelude::*;

use crate::{
    cpu::{self, View, widest},
    error::Result,
    lanes::{Lanes, total},
};
#[cfg(target_arch = "x86_64")]
mod x86 {
    //! The kernels for wider vectors.
    use super::{Kind, Part, multiply_with};
    use std::arch::x86_64::__m512;

    #[target_feature(enable = "avx2,avx512f")]
    pub(super) fn multiply_avx512(k: Kind, n: usize, out: &mut [f32], part: Part<'_>, x: &[f32], sums: &[f32]) {
        multiply_with::<__m512>(k, n, out, part, x, sums);
    }

    #[target_feature(enable = "avx2")]
    pub(super) fn multiply_avx2(k: Kind, n: usize, out: &mut [f32], part: Part<'_>, x: &[f32], sums: &[f32]) {
        multiply_with::<crate::lanes::Two>(k, n, out, part, x, sums);
    }
}

/// Weights that share a scale.
const BLOCK: usize = 32;
/// Rows of activations up to which the codes are multiplied as they are.
const FEW: usize = 32;
/// Rows of activations that share one reading of the codes.
const TOGETHER: usize = 4;
/// Rows of the matrix that a task multiplies.
const ROWS_PER_TASK: usize = 32;

/// How a block is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `scale * code + min`, codes 0 to 15, the first sixteen in the low halves.
    Nibbles,
    /// `scale * code`, signed bytes.
    Bytes,
}

/// A matrix `[rows, cols]` of blocks of 32 weights along its rows.
pub(crate) struct Packed {
    rows: usize,
    cols: usize,
    kind: Kind,
    codes: Vec<u8>,
    scales: Vec<f32>,
    /// Empty for [`Kind::Bytes`].
    mins: Vec<f32>,
}

impl Packed {
    /// Takes a tensor as it is stored, when its type is one that multiplies here (`Q4_0`, `Q4_1`, `Q8_0`).
    pub(crate) fn new(tensor: &QTensor) -> Result<Option<Self>> {
        let (header, kind) = match tensor.dtype() {
            GgmlDType::Q4_0 => (2, Kind::Nibbles),
            GgmlDType::Q4_1 => (4, Kind::Nibbles),
            GgmlDType::Q8_0 => (2, Kind::Bytes),
            _ => return Ok(None),
        };
        let &[rows, cols] = tensor.shape().dims() else { return Ok(None) };
        if cols % BLOCK != 0 {
            return Ok(None);
        }
        let per_block = if kind == Kind::Nibbles { BLOCK / 2 } else { BLOCK };
        let data = tensor.data()?;
        let blocks = rows * cols / BLOCK;
        let (mut codes, mut scales, mut mins) = (Vec::new(), Vec::new(), Vec::new());
        codes.reserve_exact(blocks * per_block);
        scales.reserve_exact(blocks);
        for block in data.chunks_exact(header + per_block) {
            let half = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
            scales.push(half(0));
            match (kind, header) {
                (Kind::Nibbles, 2) => mins.push(-8.0 * half(0)),
                (Kind::Nibbles, _) => mins.push(half(2)),
                (Kind::Bytes, _) => {}
            }
            codes.extend_from_slice(&block[header..]);
        }
        if scales.len() != blocks {
            return Ok(None);
        }
        Ok(Some(Self { rows, cols, kind, codes, scales, mins }))
    }

    pub(crate) fn dims(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.codes.len() + 4 * (self.scales.len() + self.mins.len())
    }

    /// Row `i` becomes what row `order[i]` was.
    pub(crate) fn reorder(self, order: &[usize]) -> Self {
        fn pick<T: Copy>(data: &[T], rows: usize, order: &[usize]) -> Vec<T> {
            let width = data.len() / rows;
            order.iter().flat_map(|&row| &data[row * width..(row + 1) * width]).copied().collect()
        }
        let rows = self.rows;
        Self {
            codes: pick(&self.codes, rows, order),
            scales: pick(&self.scales, rows, order),
            mins: pick(&self.mins, rows, order),
            ..self
        }
    }

    fn part(&self, from: usize, rows: usize) -> Part<'_> {
        let blocks = self.cols / BLOCK;
        let width = self.codes.len() / self.rows;
        let mins = if self.mins.is_empty() { &[][..] } else { &self.mins[from * blocks..(from + rows) * blocks] };
        Part {
            blocks,
            codes: &self.codes[from * width..(from + rows) * width],
            scales: &self.scales[from * blocks..(from + rows) * blocks],
            mins,
        }
    }

    /// Dequantised row, into `out`.
    pub(crate) fn row(&self, row: usize, out: &mut [f32]) {
        match self.kind {
            Kind::Nibbles => unpack_nibbles(out, self.part(row, 1)),
            Kind::Bytes => unpack_bytes(out, self.part(row, 1)),
        }
    }

    /// `start + x W^T`, `x` `[tokens, cols]`.
    pub(crate) fn product(&self, x: &[f32], start: Option<Vec<f32>>) -> Vec<f32> {
        let tokens = x.len() / self.cols;
        if tokens > FEW {
            return self.unpacked_product(x, tokens, start);
        }
        let mut y = start.unwrap_or_else(|| vec![0f32; tokens * self.rows]);
        let sums = block_sums(x);
        let blocks = self.cols / BLOCK;
        let mut at = 0;
        while at < tokens {
            let together = if tokens - at >= TOGETHER { TOGETHER } else { 1 };
            let (x, sums) =
                (&x[at * self.cols..(at + together) * self.cols], &sums[at * blocks..(at + together) * blocks]);
            let mut out = vec![0f32; together * self.rows];
            out.par_chunks_mut(ROWS_PER_TASK * together).enumerate().for_each(|(task, out)| {
                let part = self.part(task * ROWS_PER_TASK, out.len() / together);
                multiply(self.kind, together, out, part, x, sums);
            });
            for t in 0..together {
                let y = &mut y[(at + t) * self.rows..(at + t + 1) * self.rows];
                for (y, out) in y.iter_mut().zip(out.iter().skip(t).step_by(together)) {
                    *y += out;
                }
            }
            at += together;
        }
        y
    }

    fn unpacked_product(&self, x: &[f32], tokens: usize, start: Option<Vec<f32>>) -> Vec<f32> {
        let mut weight = vec![0f32; self.rows * self.cols];
        weight.par_chunks_mut(ROWS_PER_TASK * self.cols).enumerate().for_each(|(task, out)| {
            let part = self.part(task * ROWS_PER_TASK, out.len() / self.cols);
            match self.kind {
                Kind::Nibbles => unpack_nibbles(out, part),
                Kind::Bytes => unpack_bytes(out, part),
            }
        });
        let accumulate = start.is_some();
        let mut y = start.unwrap_or_else(|| vec![0f32; tokens * self.rows]);
        let threads = candle_core::utils::get_num_threads();
        let shape = (tokens, self.rows, self.cols);
        cpu::gemm(
            &mut y,
            shape,
            View::rows(x, self.cols),
            View::transposed(&weight, self.cols),
            1.0,
            accumulate,
            threads,
        );
        y
    }
}

/// Some rows of a matrix.
#[derive(Clone, Copy)]
struct Part<'a> {
    /// Blocks in a row.
    blocks: usize,
    codes: &'a [u8],
    scales: &'a [f32],
    mins: &'a [f32],
}

/// `out[row * T + t]` is the product of a row and of activations `t`. What a row and a token come to
/// does not depend on `T`, nor on the processor.
#[inline(always)]
#[allow(clippy::inline_always)]
fn nibbles<L: Lanes, const T: usize>(out: &mut [f32], part: Part<'_>, x: &[f32], sums: &[f32]) {
    let (blocks, cols) = (part.blocks, part.blocks * BLOCK);
    for (row, out) in out.chunks_exact_mut(T).enumerate() {
        let scales = &part.scales[row * blocks..(row + 1) * blocks];
        let mins = &part.mins[row * blocks..(row + 1) * blocks];
        let codes = part.codes[row * blocks * 16..(row + 1) * blocks * 16].as_chunks::<16>().0;
        let mut acc = [L::splat(0.0); T];
        for (b, (codes, scale)) in codes.iter().zip(scales).enumerate() {
            let (first, second) = L::nibbles(codes);
            let scale = L::splat(*scale);
            for t in 0..T {
                let x = x[t * cols + b * BLOCK..t * cols + (b + 1) * BLOCK].as_chunks::<16>().0;
                let sum = L::add(L::mul(first, L::load(&x[0])), L::mul(second, L::load(&x[1])));
                acc[t] = L::add(acc[t], L::mul(scale, sum));
            }
        }
        for t in 0..T {
            let (mins, rest) = mins.as_chunks::<16>();
            let (sums, rest_sums) = sums[t * blocks..(t + 1) * blocks].as_chunks::<16>();
            for (mins, sums) in mins.iter().zip(sums) {
                acc[t] = L::add(acc[t], L::mul(L::load(mins), L::load(sums)));
            }
            let rest: f32 = rest.iter().zip(rest_sums).map(|(min, sum)| min * sum).sum();
            out[t] = total(&acc[t].store()) + rest;
        }
    }
}

/// As [`nibbles`], for signed bytes.
#[inline(always)]
#[allow(clippy::inline_always)]
fn bytes<L: Lanes, const T: usize>(out: &mut [f32], part: Part<'_>, x: &[f32]) {
    let (blocks, cols) = (part.blocks, part.blocks * BLOCK);
    for (row, out) in out.chunks_exact_mut(T).enumerate() {
        let scales = &part.scales[row * blocks..(row + 1) * blocks];
        let codes = part.codes[row * cols..(row + 1) * cols].as_chunks::<16>().0.as_chunks::<2>().0;
        let mut acc = [L::splat(0.0); T];
        for (b, ([first, second], scale)) in codes.iter().zip(scales).enumerate() {
            let (first, second, scale) = (L::bytes(first), L::bytes(second), L::splat(*scale));
            for t in 0..T {
                let x = x[t * cols + b * BLOCK..t * cols + (b + 1) * BLOCK].as_chunks::<16>().0;
                let sum = L::add(L::mul(first, L::load(&x[0])), L::mul(second, L::load(&x[1])));
                acc[t] = L::add(acc[t], L::mul(scale, sum));
            }
        }
        for t in 0..T {
            out[t] = total(&acc[t].store());
        }
    }
}

/// Rows of a matrix times one or [`TOGETHER`] rows of activations.
fn multiply(kind: Kind, together: usize, out: &mut [f32], part: Part<'_>, x: &[f32], sums: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has what the function was compiled for.
            return unsafe { x86::multiply_avx512(kind, together, out, part, x, sums) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            return unsafe { x86::multiply_avx2(kind, together, out, part, x, sums) };
        }
    }
    multiply_with::<[f32; 16]>(kind, together, out, part, x, sums);
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn multiply_with<L: Lanes>(kind: Kind, together: usize, out: &mut [f32], part: Part<'_>, x: &[f32], sums: &[f32]) {
    match (kind, together) {
        (Kind::Nibbles, 1) => nibbles::<L, 1>(out, part, x, sums),
        (Kind::Nibbles, _) => nibbles::<L, TOGETHER>(out, part, x, sums),
        (Kind::Bytes, 1) => bytes::<L, 1>(out, part, x),
        (Kind::Bytes, _) => bytes::<L, TOGETHER>(out, part, x),
    }
}

widest! {
    /// Sum of every block of activations.
    fn block_sums(x: &[f32]) -> Vec<f32> {
        x.chunks_exact(BLOCK)
            .map(|x| {
                let halves = x.as_chunks::<16>().0;
                total(&Lanes::add(halves[0], halves[1]))
            })
            .collect()
    }

    fn unpack_nibbles(out: &mut [f32], part: Part<'_>) {
        let blocks = part.codes.chunks_exact(16).zip(part.scales).zip(part.mins);
        for (out, ((codes, scale), min)) in out.chunks_exact_mut(BLOCK).zip(blocks) {
            let (first, second) = out.split_at_mut(16);
            for i in 0..16 {
                first[i] = f32::from(codes[i] & 15) * scale + min;
                second[i] = f32::from(codes[i] >> 4) * scale + min;
            }
        }
    }

    fn unpack_bytes(out: &mut [f32], part: Part<'_>) {
        let blocks = part.codes.chunks_exact(BLOCK).zip(part.scales);
        for (out, (codes, scale)) in out.chunks_exact_mut(BLOCK).zip(blocks) {
            for (out, code) in out.iter_mut().zip(codes) {
                *out = f32::from(*code as i8) * scale;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use candle_core::{Device, Tensor};

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step).sin() + 0.3 * (i as f32 * 0.11).cos()).collect()
    }

    #[test]
    fn products_equal_those_of_dequantised_weights_for_any_number_of_rows_and_threads() {
        let (rows, cols) = (70, 96);
        let weight = Tensor::from_vec(wave(rows * cols, 0.37), (rows, cols), &Device::Cpu).unwrap();
        for dtype in [GgmlDType::Q4_0, GgmlDType::Q4_1, GgmlDType::Q8_0] {
            let stored = QTensor::quantize(&weight, dtype).unwrap();
            let dense: Vec<f32> = stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let packed = Packed::new(&stored).unwrap().unwrap();
            let mut row = vec![0f32; cols];
            packed.row(13, &mut row);
            let worst = row.iter().zip(&dense[13 * cols..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{dtype:?}: a row differs by {worst}");
            for tokens in [1, 3, 4, 7, 40] {
                let x = wave(tokens * cols, 0.71);
                let start = wave(tokens * rows, 0.05);
                let y = packed.product(&x, Some(start.clone()));
                for t in 0..tokens {
                    for r in 0..rows {
                        let (x, w) = (&x[t * cols..(t + 1) * cols], &dense[r * cols..(r + 1) * cols]);
                        let truth: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                        let truth = truth + f64::from(start[t * rows + r]);
                        let got = f64::from(y[t * rows + r]);
                        assert!((got - truth).abs() < 2e-5, "{dtype:?}, {tokens} tokens: {got} against {truth}");
                    }
                }
                for threads in [1, 3] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let other = pool.install(|| packed.product(&x, Some(start.clone())));
                    assert!(y.iter().zip(&other).all(|(a, b)| a.to_bits() == b.to_bits()));
                }
            }
            let (x, sums, part) = (wave(cols, 0.2), block_sums(&wave(cols, 0.2)), packed.part(0, rows));
            let (mut plain, mut wide) = (vec![0f32; rows], vec![0f32; rows]);
            multiply_with::<[f32; 16]>(packed.kind, 1, &mut plain, part, &x, &sums);
            multiply(packed.kind, 1, &mut wide, part, &x, &sums);
            assert_eq!(plain, wide, "vectors give the bits of plain code");
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: asked for above.
                unsafe { x86::multiply_avx2(packed.kind, 1, &mut wide, part, &x, &sums) };
                assert_eq!(plain, wide, "vectors give the bits of plain code");
            }
            let x = wave(7 * cols, 0.71);
            let together = packed.product(&x, None);
            for t in 0..7 {
                let alone = packed.product(&x[t * cols..(t + 1) * cols], None);
                assert_eq!(alone, together[t * rows..(t + 1) * rows], "a row does not depend on its batch");
            }
            let order: Vec<usize> = (0..rows).rev().collect();
            assert_eq!(
                packed.product(&x[..cols], None).into_iter().rev().collect::<Vec<_>>(),
                packed.reorder(&order).product(&x[..cols], None)
            );
        }
        assert!(Packed::new(&QTensor::quantize(&weight, GgmlDType::F16).unwrap()).unwrap().is_none());
    }
}
