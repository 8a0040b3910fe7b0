//! Kernels on plain f32 slices for the CPU: gemm with explicit strides, normalisation, rotation,
//! gating and softmax rows. Each row of a result depends on its own row of the input only, so
//! what else is in a batch changes nothing here, and a processor with wider vectors gives the same
//! bits: the element kernels keep their order of operations and never contract into fused ones.
// gemm takes raw pointers, every call below checks its bounds first; and the widest instruction set
// that the processor has is entered after asking for it
#![allow(unsafe_code)]

use rayon::prelude::*;

/// Rows handled by one task: enough work to pay for the hand-over.
const ROWS_PER_TASK: usize = 16;

/// Compiles a kernel three times (AVX-512, AVX2, whatever the build targets) and runs the widest
/// that the processor has.
macro_rules! widest {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block)*) => {$(
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::inline_always, clippy::too_many_arguments)]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,avx512f,avx512bw,avx512dq,avx512vl")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
                #[target_feature(enable = "avx2")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $ty),*) $(-> $ret)? { portable($($arg),*) }
                if is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                {
                    // SAFETY: the processor has what the function was compiled for.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    )*};
}
pub(crate) use widest;

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

/// How many rows a product `[rows, k] [k, n]` needs at least, so that a row's bits do not depend on how many
/// others there are: with fewer, gemm takes other roads (dot products for up to 256 results, matrix-vector
/// products for one row, sums in other pieces for up to 64 rows and columns of a long sum).
fn enough_rows(n: usize, k: usize) -> usize {
    let rows = 2.max(256 / n.max(1) + 1);
    if n <= 64 && k > 512 { rows.max(65) } else { rows }
}

/// As [`gemm`] with row-major `lhs`, and every row of the result depends on its own row of `lhs` alone: equal
/// rows have equal bits whatever else is in the batch. A few rows cost as much as some more.
pub fn gemm_rows(
    dst: &mut [f32],
    (m, n, k): (usize, usize, usize),
    lhs: &[f32],
    rhs: View,
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    let rows = enough_rows(n, k);
    // one column is a road of its own for any number of rows
    if m == 0 || m >= rows || n <= 1 {
        return gemm(dst, (m, n, k), View::rows(lhs, k), rhs, scale, accumulate, threads);
    }
    let mut padded = vec![0f32; rows * k];
    padded[..m * k].copy_from_slice(&lhs[..m * k]);
    let mut out = vec![0f32; rows * n];
    if accumulate {
        out[..m * n].copy_from_slice(&dst[..m * n]);
    }
    gemm(&mut out, (rows, n, k), View::rows(&padded, k), rhs, scale, accumulate, threads);
    dst[..m * n].copy_from_slice(&out[..m * n]);
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

/// [`lanes`] in f64, for sums over a vocabulary.
#[inline(always)]
#[allow(clippy::inline_always)]
fn lanes_f64(len: usize, term: impl Fn(usize) -> f64) -> f64 {
    let mut sums = [0f64; 8];
    let whole = len / 8 * 8;
    let mut i = 0;
    while i < whole {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(i + lane);
        }
        i += 8;
    }
    let tail: f64 = (whole..len).map(&term).sum();
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])) + tail
}

/// Largest element in eight lanes; NaN where all are.
#[inline(always)]
#[allow(clippy::inline_always)]
fn largest(row: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; 8];
    let chunks = row.chunks_exact(8);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (best, x) in best.iter_mut().zip(chunk) {
            *best = if *x > *best { *x } else { *best };
        }
    }
    best.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// What the softmax of one row of logits at a temperature comes to.
#[derive(Clone, Copy)]
pub struct SoftmaxStats {
    /// Largest logit.
    pub max: f32,
    /// Log of the summed exponentials of `(z - max) / temperature`.
    pub log_sum: f64,
    /// Entropy, nats.
    pub entropy: f64,
}

impl SoftmaxStats {
    /// Log-probability of a logit of the row.
    pub fn logprob(&self, logit: f32, temperature: f32) -> f32 {
        (f64::from(logit - self.max) / f64::from(temperature) - self.log_sum) as f32
    }
}

/// Elements whose exponentials are held at once.
const EXPONENTIALS: usize = 512;

widest! {
    /// Dot product.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        let len = a.len().min(b.len());
        let (a, b) = (&a[..len], &b[..len]);
        lanes(len, |i| a[i] * b[i])
    }

    /// Sum of squares in f64.
    pub fn sum_of_squares(x: &[f32]) -> f64 {
        lanes_f64(x.len(), |i| f64::from(x[i]) * f64::from(x[i]))
    }

    /// Softmax of `row` in place.
    pub fn softmax(row: &mut [f32]) {
        let max = largest(row);
        for x in row.iter_mut() {
            *x = exp(*x - max);
        }
        let scale = 1.0 / lanes(row.len(), |i| row[i]);
        for x in row.iter_mut() {
            *x *= scale;
        }
    }

    /// Largest logit, log of the summed exponentials and entropy of one row. Sums run in f64: a
    /// vocabulary is long.
    pub fn softmax_stats(logits: &[f32], temperature: f32) -> SoftmaxStats {
        let max = largest(logits);
        let (mut sum, mut weighted) = (0f64, 0f64);
        let (mut z, mut e) = ([0f32; EXPONENTIALS], [0f32; EXPONENTIALS]);
        for part in logits.chunks(EXPONENTIALS) {
            let (z, e) = (&mut z[..part.len()], &mut e[..part.len()]);
            for i in 0..part.len() {
                z[i] = (part[i] - max) / temperature;
                e[i] = exp(z[i]);
            }
            sum += lanes_f64(e.len(), |i| f64::from(e[i]));
            weighted += lanes_f64(e.len(), |i| f64::from(e[i] * z[i]));
        }
        let log_sum = sum.ln();
        SoftmaxStats { max, log_sum, entropy: log_sum - weighted / sum }
    }

    /// From one row of logits to the gradient by them, in place: `by_l` and `by_h` are the derivatives
    /// by log-probability and entropy over the temperature; the target's own term is the caller's.
    pub fn softmax_backward(row: &mut [f32], temperature: f32, stats: SoftmaxStats, by_l: f32, by_h: f32) {
        let (log_sum, entropy) = (stats.log_sum as f32, stats.entropy as f32);
        for z in row.iter_mut() {
            let log_p = (*z - stats.max) / temperature - log_sum;
            *z = -exp(log_p) * (by_l + by_h * (log_p + entropy));
        }
    }

    /// `exp((z - max) / temperature)` of each logit.
    pub fn softmax_weights(logits: &[f32], temperature: f32, out: &mut Vec<f32>) {
        let max = largest(logits);
        out.clear();
        out.extend(logits.iter().map(|z| exp((z - max) / temperature)));
    }

    fn rms_norm_rows(y: &mut [f32], x: &[f32], w: &[f32], eps: f32) {
        for (y, x) in y.chunks_exact_mut(w.len()).zip(x.chunks_exact(w.len())) {
            let r = inverse_rms(x, eps);
            for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                *y = x * r * w;
            }
        }
    }

    fn rms_norm_rows_backward(dx: &mut [f32], x: &[f32], w: &[f32], eps: f32, dy: &[f32], inverse: &mut [f32]) {
        let width = w.len();
        let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(dy.chunks_exact(width));
        for (((dx, x), dy), inverse) in rows.zip(inverse) {
            let r = inverse_rms(x, eps);
            *inverse = r;
            let mean = lanes(width, |i| dy[i] * w[i] * x[i]) * r * r / width as f32;
            for i in 0..width {
                dx[i] = r * (dy[i] * w[i] - x[i] * mean);
            }
        }
    }

    fn rms_norm_weight(dw: &mut [f32], x: &[f32], dy: &[f32], inverse: &[f32]) {
        let width = dw.len();
        for ((x, dy), r) in x.chunks_exact(width).zip(dy.chunks_exact(width)).zip(inverse) {
            for i in 0..width {
                dw[i] += dy[i] * x[i] * r;
            }
        }
    }

    fn rope_row(token: &mut [f32], half: usize, cos: &[f32], sin: &[f32], sign: f32) {
        let (cos, sin) = (&cos[..half], &sin[..half]);
        for head in token.chunks_exact_mut(2 * half) {
            let (a, b) = head.split_at_mut(half);
            for i in 0..half {
                let (x, y, s) = (a[i], b[i], sin[i] * sign);
                a[i] = x * cos[i] - y * s;
                b[i] = y * cos[i] + x * s;
            }
        }
    }

    fn swiglu_block(y: &mut [f32], a: &[f32], b: &[f32]) {
        for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
            *y = a / (1.0 + exp(-a)) * b;
        }
    }

    fn swiglu_block_backward(da: &mut [f32], db: &mut [f32], a: &[f32], b: &[f32], dy: &[f32]) {
        let n = da.len();
        let (db, a, b, dy) = (&mut db[..n], &a[..n], &b[..n], &dy[..n]);
        for i in 0..n {
            let gate = 1.0 / (1.0 + exp(-a[i]));
            let silu = a[i] * gate;
            db[i] = dy[i] * silu;
            da[i] = dy[i] * b[i] * (gate + silu - silu * gate);
        }
    }

    /// Gradient by scores from that by probabilities, in place: `ds = p * (ds - mean)`.
    pub fn softmax_gradient(ds: &mut [f32], p: &[f32], mean: f32) {
        for (ds, p) in ds.iter_mut().zip(p) {
            *ds = p * (*ds - mean);
        }
    }

    /// `y += x`.
    pub fn add(y: &mut [f32], x: &[f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    }

    fn adamw_block(next: &mut [f32], p: &[f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: AdamWStep) {
        let n = next.len();
        let (p, g, m, v) = (&p[..n], &g[..n], &mut m[..n], &mut v[..n]);
        for i in 0..n {
            m[i] = c.beta1 * m[i] + (1.0 - c.beta1) * g[i];
            v[i] = c.beta2 * v[i] + (1.0 - c.beta2) * (g[i] * g[i]);
            let denominator = (v[i] / c.correct2).sqrt() + c.epsilon;
            next[i] = c.keep * p[i] - c.rate * (m[i] / c.correct1 / denominator);
        }
    }
}

/// Constants of one optimiser step.
#[derive(Clone, Copy)]
pub struct AdamWStep {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second.
    pub beta2: f32,
    /// `1 - beta1^step`.
    pub correct1: f32,
    /// `1 - beta2^step`.
    pub correct2: f32,
    /// Added under the update.
    pub epsilon: f32,
    /// What weight decay leaves of the parameter.
    pub keep: f32,
    /// Learning rate.
    pub rate: f32,
}

/// Elements handled by one task of an elementwise kernel.
const BLOCK: usize = 1 << 14;

/// One `AdamW` step: the moments in place, the parameter as a new vector (others may share the old).
pub fn adamw(p: &[f32], g: &[f32], m: &mut [f32], v: &mut [f32], step: AdamWStep) -> Vec<f32> {
    let mut next = vec![0f32; p.len()];
    next.par_chunks_mut(BLOCK)
        .zip(p.par_chunks(BLOCK).zip(g.par_chunks(BLOCK)))
        .zip(m.par_chunks_mut(BLOCK).zip(v.par_chunks_mut(BLOCK)))
        .for_each(|((next, (p, g)), (m, v))| adamw_block(next, p, g, m, v, step));
    next
}

#[inline(always)]
#[allow(clippy::inline_always)]
fn inverse_rms(row: &[f32], eps: f32) -> f32 {
    1.0 / (lanes(row.len(), |i| row[i] * row[i]) / row.len() as f32 + eps).sqrt()
}

/// `y = x / rms(x) * w` for each row of `w.len()`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32) -> Vec<f32> {
    let rows = w.len() * ROWS_PER_TASK;
    let mut y = vec![0f32; x.len()];
    y.par_chunks_mut(rows).zip(x.par_chunks(rows)).for_each(|(y, x)| rms_norm_rows(y, x, w, eps));
    y
}

/// Gradient of [`rms_norm`]: `(dx, dw)`; `dw` is summed in row order.
pub fn rms_norm_backward(x: &[f32], w: &[f32], eps: f32, dy: &[f32], want_dw: bool) -> (Vec<f32>, Option<Vec<f32>>) {
    let rows = w.len() * ROWS_PER_TASK;
    let mut dx = vec![0f32; x.len()];
    let mut inverse = vec![0f32; x.len() / w.len()];
    dx.par_chunks_mut(rows)
        .zip(x.par_chunks(rows).zip(dy.par_chunks(rows)))
        .zip(inverse.par_chunks_mut(ROWS_PER_TASK))
        .for_each(|((dx, (x, dy)), inverse)| rms_norm_rows_backward(dx, x, w, eps, dy, inverse));
    let dw = want_dw.then(|| {
        let mut dw = vec![0f32; w.len()];
        rms_norm_weight(&mut dw, x, dy, &inverse);
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
        rope_row(token, half, &cos[at..at + half], &sin[at..at + half], sign);
    });
}

/// `silu(a) * b`.
pub fn swiglu(a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut y = vec![0f32; a.len()];
    y.par_chunks_mut(BLOCK)
        .zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK)))
        .for_each(|(y, (a, b))| swiglu_block(y, a, b));
    y
}

/// Gradient of [`swiglu`]: `(da, db)`.
pub fn swiglu_backward(a: &[f32], b: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut da, mut db) = (vec![0f32; a.len()], vec![0f32; a.len()]);
    da.par_chunks_mut(BLOCK)
        .zip(db.par_chunks_mut(BLOCK))
        .zip(a.par_chunks(BLOCK).zip(b.par_chunks(BLOCK)).zip(dy.par_chunks(BLOCK)))
        .for_each(|((da, db), ((a, b), dy))| swiglu_block_backward(da, db, a, b, dy));
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
