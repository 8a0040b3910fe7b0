//! Kernels on plain f32 slices for the CPU: gemm with explicit strides, normalisation, rotation,
//! gating and softmax rows. Each row of a result depends on its own row of the input only, so
//! what else is in a batch changes nothing here.
#![allow(unsafe_code)] // gemm takes raw pointers; every call below checks its bounds first

use rayon::prelude::*;

/// Rows handled by one task: enough work to pay for the hand-over.
const ROWS_PER_TASK: usize = 16;

/// A matrix inside a slice: `data[r * row + c * col]`.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Elements.
    pub data: &'a [f32],
    /// Distance between rows.
    pub row: usize,
    /// Distance between columns.
    pub col: usize,
}

impl<'a> View<'a> {
    /// Row-major rows of `row` elements.
    pub fn rows(data: &'a [f32], row: usize) -> Self {
        Self { data, row, col: 1 }
    }
    /// The transpose of row-major rows of `row` elements.
    pub fn transposed(data: &'a [f32], row: usize) -> Self {
        Self { data, row: 1, col: row }
    }
    fn holds(&self, rows: usize, cols: usize) -> bool {
        rows == 0 || cols == 0 || (rows - 1) * self.row + (cols - 1) * self.col < self.data.len()
    }
}

/// `dst[m, n] = (accumulate ? dst : 0) + scale * lhs[m, k] rhs[k, n]`, `dst` row-major.
/// `threads` above one splits the work; the split is over rows and columns only, so it does not
/// change the result.
#[allow(clippy::too_many_arguments)]
pub fn gemm(
    dst: &mut [f32],
    (m, n, k): (usize, usize, usize),
    lhs: View,
    rhs: View,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    assert!(dst.len() >= m * n && lhs.holds(m, k) && rhs.holds(k, n), "gemm: operand too short");
    if m == 0 || n == 0 {
        return;
    }
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: the assertion above bounds every element that the strides reach.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            n as isize,
            accumulate,
            lhs.data.as_ptr(),
            lhs.col as isize,
            lhs.row as isize,
            rhs.data.as_ptr(),
            rhs.col as isize,
            rhs.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// e^x within two units in the last place for |x| < 87, saturating outside; branch-free so that
/// it vectorises (constants of the Cephes library's `expf`).
#[inline(always)]
#[allow(clippy::inline_always, clippy::excessive_precision)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    // Comparisons rather than min/max, so that a NaN stays one.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let p = ((((1.987_569_15e-4 * r + 1.398_199_950_7e-3) * r + 8.333_451_907_3e-3) * r + 4.166_579_589_4e-2) * r
        + 1.666_666_545_9e-1)
        * r
        + 5.000_000_120_1e-1;
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    (p * r * r + r + 1.0) * power
}

/// Sum in eight fixed lanes: vectorises, and the order never changes.
#[inline(always)]
#[allow(clippy::inline_always)]
fn lanes(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0f32; 8];
    let whole = len / 8 * 8;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(i + lane);
        }
        i += 8;
    }
    let tail: f32 = (whole..len).map(&term).sum();
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])) + tail
}

/// Dot product.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let len = a.len().min(b.len());
    let (a, b) = (&a[..len], &b[..len]);
    lanes(len, |i| a[i] * b[i])
}

/// Softmax of `row` in place.
pub fn softmax(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for x in row.iter_mut() {
        *x = exp(*x - max);
    }
    let scale = 1.0 / lanes(row.len(), |i| row[i]);
    for x in row.iter_mut() {
        *x *= scale;
    }
}

fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (lanes(row.len(), |i| row[i] * row[i]) / row.len() as f32 + eps).sqrt()
}

/// `y = x / rms(x) * w` for each row of `w.len()`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let width = w.len();
    let mut y = vec![0f32; x.len()];
    y.par_chunks_mut(width).zip(x.par_chunks(width)).with_min_len(ROWS_PER_TASK).for_each(|(y, x)| {
        let r = inverse_rms(x, eps);
        for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
            *y = x * r * w;
        }
    });
    y
}

/// Gradient of [`rms_norm`]: `(dx, dw)`; `dw` is summed in row order.
pub fn rms_norm_backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], want_dw: bool) -> (Vec<f32>, Option<Vec<f32>>) {
    let width = w.len();
    let mut dx = vec![0f32; x.len()];
    dx.par_chunks_mut(width).zip(x.par_chunks(width).zip(dy.par_chunks(width))).with_min_len(ROWS_PER_TASK).for_each(
        |(dx, (x, dy))| {
            let r = inverse_rms(x, eps);
            let mean = lanes(width, |i| dy[i] * w[i] * x[i]) * r * r / width as f32;
            for i in 0..width {
                dx[i] = r * (dy[i] * w[i] - x[i] * mean);
            }
        },
    );
    let dw = want_dw.then(|| {
        let mut dw = vec![0f32; width];
        for (x, dy) in x.chunks(width).zip(dy.chunks(width)) {
            let r = inverse_rms(x, eps);
            for i in 0..width {
                dw[i] += dy[i] * x[i] * r;
            }
        }
        dw
    });
    (dx, dw)
}

/// Rotary embedding in place: `x` is `[tokens, heads, 2 * half]`, the tables are `[positions, half]`;
/// `sign` -1 rotates back, which is also the gradient.
pub fn rope(x: &mut [f32], heads: usize, half: usize, positions: &[u32], cos: &[f32], sin: &[f32], sign: f32) {
    let width = heads * 2 * half;
    x.par_chunks_mut(width).zip(positions.par_iter()).with_min_len(ROWS_PER_TASK).for_each(|(token, &position)| {
        let at = position as usize * half;
        let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
        for head in token.chunks_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for i in 0..half {
                let (x, y, s) = (a[i], b[i], sin[i] * sign);
                a[i] = x * cos[i] - y * s;
                b[i] = y * cos[i] + x * s;
            }
        }
    });
}

/// `silu(a) * b`.
pub fn swiglu(a: &[f32], b: &[f32]) -> Vec<f32> {
    const BLOCK: usize = 1 << 14;
    let mut y = vec![0f32; a.len()];
    y.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK))).for_each(|(y, (a, b))| {
        for i in 0..y.len() {
            y[i] = a[i] / (1.0 + exp(-a[i])) * b[i];
        }
    });
    y
}

/// Gradient of [`swiglu`]: `(da, db)`.
pub fn swiglu_backward(a: &[f32], b: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    const BLOCK: usize = 1 << 14;
    let (mut da, mut db) = (vec![0f32; a.len()], vec![0f32; a.len()]);
    da.par_chunks_mut(BLOCK)
        .zip(db.par_chunks_mut(BLOCK))
        .zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK)).zip(dy.par_chunks(BLOCK)))
        .for_each(|((da, db), ((a, b), dy))| {
            for i in 0..da.len() {
                let gate = 1.0 / (1.0 + exp(-a[i]));
                let silu = a[i] * gate;
                db[i] = dy[i] * silu;
                da[i] = dy[i] * b[i] * (gate + silu - silu * gate);
            }
        });
    (da, db)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn exp_is_accurate_and_keeps_nan() {
        let mut worst = 0f64;
        for i in -8_600..8_600 {
            let x = i as f32 / 100.0 + 0.003;
            let truth = f64::from(x).exp();
            worst = worst.max(((f64::from(exp(x)) - truth) / truth).abs());
        }
        assert!(worst < 2.5e-7, "worst relative error {worst}");
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
    }

    #[test]
    fn gemm_reads_strides_and_accumulates() {
        let (a, b) = ([1f32, 2., 3., 4., 5., 6.], [1f32, 0., 2., 1., 0., 3.]);
        let mut dst = [10f32; 4];
        // a is 2x3 row-major, b the transpose of a 2x3 matrix.
        gemm(&mut dst, (2, 2, 3), View::rows(&a, 3), View::transposed(&b, 3), 2.0, true, 1);
        for (got, expected) in dst.iter().zip([10. + 14., 10. + 20., 10. + 32., 10. + 44.]) {
            assert!((got - expected).abs() < 1e-6);
        }
    }
}
