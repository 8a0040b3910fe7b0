//! Each kernel against its formula in f64 on random inputs, and a whole training pass against the CPU's.
//! Needs a GPU: `cargo test --release -p s3-model --features cuda --lib cuda::`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::many_single_char_names, clippy::needless_range_loop)]

use candle_core::{DType, Device, Tensor};
use s3_config::{DeviceKind, LoraConfig};

use super::{attention, head, launch, ops};
use crate::{
    AdamW, Architecture, Decoder, DecoderConfig, GenerateRequest, PolicyGrads, SampleKey, Sampling, TrainSequence,
    cpu::AdamWStep, generate, head::TokenGrads, random::Uniform,
};

fn gpu() -> Device {
    crate::device(DeviceKind::Cuda).unwrap()
}

/// Random numbers that bf16 holds exactly, and their tensor.
fn random(seed: u64, shape: &[usize], scale: f64, dtype: DType) -> (Vec<f64>, Tensor) {
    let mut uniform = Uniform::new(seed, "kernels");
    let n = shape.iter().product::<usize>();
    let values: Vec<f32> =
        (0..n).map(|_| half::bf16::from_f64((uniform.next() * 2.0 - 1.0) * scale).to_f32()).collect();
    let tensor = Tensor::from_slice(&values, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    (values.into_iter().map(f64::from).collect(), tensor.to_device(&gpu_once()).unwrap())
}

fn gpu_once() -> Device {
    static GPU: std::sync::OnceLock<Device> = std::sync::OnceLock::new();
    GPU.get_or_init(gpu).clone()
}

fn host(tensor: &Tensor) -> Vec<f64> {
    let values = tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    values.into_iter().map(f64::from).collect()
}

/// Relative distance, checked.
fn near(what: &str, got: &Tensor, want: &[f64], bound: f64) {
    let got = host(got);
    assert_eq!(got.len(), want.len(), "{what}");
    let (mut distance, mut size) = (0.0, 0.0);
    for (g, w) in got.iter().zip(want) {
        distance += (g - w) * (g - w);
        size += w * w;
    }
    let error = (distance / size).sqrt();
    println!("{what}: {error:.1e} (bound {bound:.0e})");
    assert!(error <= bound, "{what}: {error}");
}

const BF16: f64 = 4e-3;

#[test]
fn norms() {
    for (rows, width) in [(37, 896), (5, 3584), (300, 64), (2100, 2048)] {
        let (x, tx) = random(1, &[rows, width], 2.0, DType::BF16);
        let (w, tw) = random(2, &[width], 1.0, DType::BF16);
        let (dy, tdy) = random(3, &[rows, width], 1.0, DType::BF16);
        let (residual, tr) = random(4, &[rows, width], 1.0, DType::BF16);
        let (mut y, mut dx, mut dw) = (vec![0.0; rows * width], vec![0.0; rows * width], vec![0.0; width]);
        for row in 0..rows {
            let span = row * width..(row + 1) * width;
            let (x, dy) = (&x[span.clone()], &dy[span]);
            let r = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() / width as f64 + 1e-6).sqrt();
            let mean = (0..width).map(|i| w[i] * dy[i] * x[i]).sum::<f64>() / width as f64;
            for i in 0..width {
                y[row * width + i] = x[i] * r * w[i];
                dx[row * width + i] = r * (w[i] * dy[i] - x[i] * r * r * mean) + residual[row * width + i];
                dw[i] += dy[i] * x[i] * r;
            }
        }
        near("rms_norm", &ops::rms_norm(&tx, &tw, 1e-6).unwrap(), &y, BF16);
        let (got, got_dw) = ops::rms_norm_backward(&tx, &tw, 1e-6, &tdy, Some(&tr), true).unwrap();
        near("rms_norm dx", &got, &dx, BF16);
        near("rms_norm dw", &got_dw.unwrap(), &dw, 1e-5);
        let sums: Vec<f64> = (0..width).map(|c| (0..rows).map(|r| dy[r * width + c]).sum()).collect();
        near("column sums", &ops::column_sums(&tdy).unwrap(), &sums, 1e-5);
    }
}

#[test]
fn gating_rotation_and_bias() {
    let (rows, width) = (33, 4864);
    let (a, ta) = random(5, &[rows, width], 4.0, DType::BF16);
    let (b, tb) = random(6, &[rows, width], 1.0, DType::BF16);
    let (g, tg) = random(7, &[rows, width], 1.0, DType::BF16);
    let gate = |x: f64| 1.0 / (1.0 + (-x).exp());
    let act: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a * gate(*a) * b).collect();
    near("swiglu", &ops::swiglu(&ta, &tb).unwrap(), &act, BF16);
    let (da, db) = ops::swiglu_backward(&ta, &tb, &tg).unwrap();
    let slope = |x: f64| gate(x) * (1.0 + x * (1.0 - gate(x)));
    let want: Vec<f64> = (0..a.len()).map(|i| g[i] * b[i] * slope(a[i])).collect();
    near("swiglu da", &da, &want, BF16);
    let want: Vec<f64> = (0..a.len()).map(|i| g[i] * a[i] * gate(a[i])).collect();
    near("swiglu db", &db, &want, BF16);

    let (bias, tbias) = random(8, &[width], 1.0, DType::BF16);
    let x = ta.copy().unwrap();
    ops::add_bias(&x, &tbias).unwrap();
    let want: Vec<f64> = a.iter().enumerate().map(|(i, a)| a + bias[i % width]).collect();
    near("bias", &x, &want, BF16);

    let (tokens, heads, half) = (50usize, 7usize, 32usize);
    let (x, tx) = random(9, &[tokens, heads * 2 * half], 1.0, DType::BF16);
    let positions: Vec<u32> = (0..tokens as u32).map(|t| t * 37 % 997).collect();
    let index = Tensor::from_slice(&positions, tokens, &gpu_once()).unwrap();
    let rope = crate::ops::Rope::new(1e6, 2 * half, 1000, &gpu_once(), crate::ops::Kernels::Fused).unwrap();
    let (cos, sin) = rope.tables.as_ref().unwrap();
    let y = tx.copy().unwrap();
    ops::rope(&y, &index, (cos, sin), half, false).unwrap();
    let mut want = x.clone();
    for t in 0..tokens {
        for h in 0..heads {
            for i in 0..half {
                let angle = f64::from(positions[t]) / 1e6f64.powf(i as f64 / half as f64);
                let at = (t * heads + h) * 2 * half + i;
                want[at] = x[at] * angle.cos() - x[at + half] * angle.sin();
                want[at + half] = x[at + half] * angle.cos() + x[at] * angle.sin();
            }
        }
    }
    near("rope", &y, &want, BF16);
    ops::rope(&y, &index, (cos, sin), half, true).unwrap();
    near("rope and back", &y, &x, 2.0 * BF16);
}

/// Attention of one row and head in f64: output and the three gradients.
#[test]
fn attention_of_ragged_rows() {
    for (heads, kv_heads, d) in [(14, 2, 64), (4, 4, 64), (12, 2, 128), (8, 8, 128)] {
        let config = DecoderConfig { heads, kv_heads, head_dim: d, ..DecoderConfig::tiny(64, 64, 1) };
        let lens = [1usize, 130, 64, 200, 63];
        let total: usize = lens.iter().sum();
        let group = heads / kv_heads;
        let (q, tq) = random(10, &[total, heads * d], 2.0, DType::BF16);
        let (k, tk) = random(11, &[total, kv_heads * d], 2.0, DType::BF16);
        let (v, tv) = random(12, &[total, kv_heads * d], 1.0, DType::BF16);
        let (g, tg) = random(13, &[total, heads * d], 1.0, DType::BF16);
        let (mut o, mut dq) = (vec![0.0; q.len()], vec![0.0; q.len()]);
        let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; k.len()]);
        let scale = 1.0 / (d as f64).sqrt();
        let mut start = 0;
        for len in lens {
            for h in 0..heads {
                let at = |t: usize| (start + t) * heads * d + h * d;
                let kat = |t: usize| (start + t) * kv_heads * d + h / group * d;
                for t in 0..len {
                    let dot =
                        |x: &[f64], i: usize, y: &[f64], j: usize| (0..d).map(|c| x[i + c] * y[j + c]).sum::<f64>();
                    let s: Vec<f64> = (0..=t).map(|j| dot(&q, at(t), &k, kat(j)) * scale).collect();
                    let most = s.iter().copied().fold(f64::MIN, f64::max);
                    let sum: f64 = s.iter().map(|s| (s - most).exp()).sum();
                    let p: Vec<f64> = s.iter().map(|s| (s - most).exp() / sum).collect();
                    let dp: Vec<f64> = (0..=t).map(|j| dot(&g, at(t), &v, kat(j))).collect();
                    let mean: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                    for j in 0..=t {
                        let ds = p[j] * (dp[j] - mean) * scale;
                        for c in 0..d {
                            o[at(t) + c] += p[j] * v[kat(j) + c];
                            dv[kat(j) + c] += p[j] * g[at(t) + c];
                            dq[at(t) + c] += ds * k[kat(j) + c];
                            dk[kat(j) + c] += ds * q[at(t) + c];
                        }
                    }
                }
            }
            start += len;
        }
        let rows = attention::Rows::new(&config, &lens, &[0; 5], &[0, 1, 2, 3, 4], None, &gpu_once()).unwrap();
        let (to, lse) = attention::attend(&config, &rows, (&tq, &tk, &tv), None).unwrap();
        println!("{heads} heads of {d} over {kv_heads}");
        near("attention", &to, &o, 6e-3);
        let (tdq, tdk, tdv) = attention::backward(&config, &rows, (&tq, &tk, &tv), (&to, &lse), &tg).unwrap();
        near("attention dq", &tdq, &dq, 1e-2);
        near("attention dk", &tdk, &dk, 1e-2);
        near("attention dv", &tdv, &dv, 6e-3);
        let again = attention::backward(&config, &rows, (&tq, &tk, &tv), (&to, &lse), &tg).unwrap();
        for (a, b) in [(&tdq, &again.0), (&tdk, &again.1), (&tdv, &again.2)] {
            assert_eq!(host(a), host(b), "the same inputs gave other bits");
        }
    }
}

#[test]
fn token_statistics_and_their_gradient() {
    let (rows, vocab, temperature) = (19, 3200, 0.7f64);
    let (z, tz) = random(14, &[rows, vocab], 8.0, DType::BF16);
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 163 % vocab as u32).collect();
    let (by_l, _) = random(15, &[rows], 1.0, DType::F32);
    let (by_h, _) = random(16, &[rows], 1.0, DType::F32);
    let (mut logprob, mut entropy, mut gradient) = (Vec::new(), Vec::new(), Vec::new());
    for row in 0..rows {
        let z: Vec<f64> = z[row * vocab..(row + 1) * vocab].iter().map(|z| z / temperature).collect();
        let most = z.iter().copied().fold(f64::MIN, f64::max);
        let lse = most + z.iter().map(|z| (z - most).exp()).sum::<f64>().ln();
        let h: f64 = -z.iter().map(|z| (z - lse).exp() * (z - lse)).sum::<f64>();
        logprob.push(z[targets[row] as usize] - lse);
        entropy.push(h);
        for (i, z) in z.iter().enumerate() {
            let p = (z - lse).exp();
            let hit = f64::from(u8::from(i == targets[row] as usize));
            gradient.push((by_l[row] * (hit - p) - by_h[row] * p * (z - lse + h)) / temperature);
        }
    }
    let (stats, found) = head::stats(&tz, &targets, temperature as f32).unwrap();
    let column = |x: &[f32]| Tensor::from_slice(x, x.len(), &Device::Cpu).unwrap();
    near("log-probability", &column(&found.logprob), &logprob, 1e-5);
    near("entropy", &column(&found.entropy), &entropy, 1e-5);
    let f32s = |x: &[f64]| x.iter().map(|x| *x as f32).collect::<Vec<_>>();
    let (by_l, by_h) = (f32s(&by_l), f32s(&by_h));
    let by = TokenGrads { logprob: &by_l, entropy: &by_h };
    head::backward(&tz, &stats, &targets, temperature as f32, &by).unwrap();
    near("gradient by logits", &tz, &gradient, BF16);
}

#[test]
fn products_rows_and_adamw() {
    let (t, i, o) = (130, 72, 200);
    let (x, tx) = random(17, &[t, i], 1.0, DType::BF16);
    let (w, tw) = random(18, &[o, i], 1.0, DType::BF16);
    let (dy, tdy) = random(19, &[t, o], 1.0, DType::BF16);
    let (r, tr) = random(20, &[t, o], 1.0, DType::BF16);
    let mut y = r.clone();
    let (mut dx, mut dw) = (vec![0.0; t * i], vec![0.0; o * i]);
    for a in 0..t {
        for b in 0..o {
            for c in 0..i {
                y[a * o + b] += x[a * i + c] * w[b * i + c];
                dx[a * i + c] += dy[a * o + b] * w[b * i + c] * 0.5;
                dw[b * i + c] += dy[a * o + b] * x[a * i + c] * 2.0;
            }
        }
    }
    near("x W^T + residual", &ops::linear(&tx, &tw, Some(&tr)).unwrap(), &y, BF16);
    near("dy W", &ops::linear_back(&tdy, &tw, 0.5, None).unwrap(), &dx, BF16);
    let sum = ops::weight_gradient(None, &tdy, &tx, 1.0).unwrap().unwrap();
    assert!(ops::weight_gradient(Some(&sum), &tdy, &tx, 1.0).unwrap().is_none());
    near("dy^T x twice", &sum, &dw, 1e-5);

    let table = Tensor::zeros((50, i), DType::F32, &gpu_once()).unwrap();
    let ids: Vec<u32> = (0..t as u32).map(|n| n * 7 % 13).collect();
    ops::add_rows(&table, &ids, &tx).unwrap();
    let mut want = vec![0.0; 50 * i];
    for (n, &id) in ids.iter().enumerate() {
        (0..i).for_each(|c| want[id as usize * i + c] += x[n * i + c]);
    }
    near("rows by id", &table, &want, 1e-6);

    let n = 1003;
    let (p, tp) = random(21, &[n], 1.0, DType::F32);
    let (g, tg) = random(22, &[n], 1.0, DType::F32);
    let (m, tm) = random(23, &[n], 1.0, DType::F32);
    let (v, tv) = random(24, &[n], 1.0, DType::F32);
    let (v, tv) = (v.iter().map(|v| v.abs()).collect::<Vec<_>>(), tv.abs().unwrap());
    let step =
        AdamWStep { beta1: 0.9, beta2: 0.99, correct1: 0.2, correct2: 0.1, epsilon: 1e-8, keep: 0.99, rate: 0.1 };
    let (p2, m2, v2, w2) = ops::adamw(&tp, &tg, (&tm, &tv), step, true).unwrap();
    let (b1, b2) = (f64::from(step.beta1), f64::from(step.beta2));
    let m3: Vec<f64> = (0..n).map(|i| b1 * m[i] + (1.0 - b1) * g[i]).collect();
    let v3: Vec<f64> = (0..n).map(|i| b2 * v[i] + (1.0 - b2) * g[i] * g[i]).collect();
    let p3: Vec<f64> = (0..n).map(|i| p[i] * 0.99 - 0.1 * (m3[i] / 0.2) / ((v3[i] / 0.1).sqrt() + 1e-8)).collect();
    near("adamw m", &m2, &m3, 1e-6);
    near("adamw v", &v2, &v3, 1e-6);
    near("adamw p", &p2, &p3, 1e-6);
    near("adamw bf16", &w2.unwrap(), &p3, BF16);
    let squares = ops::sum_of_squares(&[&tp, &tg]).unwrap();
    let want: f64 = p.iter().chain(&g).map(|x| x * x).sum();
    assert!((squares / want - 1.0).abs() < 1e-9, "{squares} {want}");
    let _ = launch::peak_memory(&gpu_once()).unwrap();
}

fn model(device: &Device, dtype: DType) -> Decoder {
    model_of((4, 2, 64), device, dtype)
}

fn model_of((heads, kv_heads, head_dim): (usize, usize, usize), device: &Device, dtype: DType) -> Decoder {
    let config = DecoderConfig {
        architecture: Architecture::Qwen2,
        hidden: 256,
        ffn: 512,
        heads,
        kv_heads,
        head_dim,
        qkv_bias: true,
        ..DecoderConfig::tiny(512, 256, 2)
    };
    // weights that bf16 holds, so that both precisions compute the same function
    let cpu = Decoder::random(config.clone(), 5, &Device::Cpu, DType::BF16).unwrap();
    let mut tensors = std::collections::BTreeMap::new();
    for (name, tensor) in cpu.every_weight() {
        tensors.insert(name, tensor.to_dtype(dtype).unwrap().to_device(device).unwrap());
    }
    Decoder::from_tensors(std::path::Path::new("(test)"), config, tensors, device, dtype).unwrap()
}

/// Loss weights that differ from token to token.
fn pass(decoder: &Decoder, batch: &[TrainSequence]) -> (Vec<f32>, crate::Gradients) {
    let mut seen = Vec::new();
    let grads = decoder
        .train_pass(batch, 0.9, &mut |out| {
            seen.clone_from(&out.logprob);
            let n = out.logprob.len();
            let logprob = (0..n).map(|i| -1.0 + (i % 5) as f32 * 0.3).collect();
            Ok(PolicyGrads { logprob, entropy: vec![0.01; n], value: None })
        })
        .unwrap();
    (seen, grads)
}

fn batch() -> Vec<TrainSequence> {
    [90usize, 17, 140]
        .into_iter()
        .map(|n| TrainSequence {
            tokens: (0..n as u32).map(|t| (t * 31 + n as u32) % 512).collect(),
            positions: (1..n).filter(|t| t % 3 != 1).collect(),
        })
        .collect()
}

fn compare(cpu: &Decoder, gpu: &Decoder, bound: f64) {
    let ((l1, g1), (l2, g2)) = (pass(cpu, &batch()), pass(gpu, &batch()));
    let worst = l1.iter().zip(&l2).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    println!("log-probabilities: {worst:.1e}");
    assert!(worst < 0.05, "{worst}");
    assert_eq!(g1.0.keys().collect::<Vec<_>>(), g2.0.keys().collect::<Vec<_>>());
    for (name, want) in &g1.0 {
        near(name, &g2.0[name], &host(want), bound);
    }
}

#[test]
fn a_training_pass_equals_the_cpus() {
    let (mut cpu, mut gpu) = (model(&Device::Cpu, DType::F32), model(&gpu_once(), DType::BF16));
    cpu.train_all().unwrap();
    gpu.train_all().unwrap();
    compare(&cpu, &gpu, 5e-2);
    let (mut cpu, gpu) = (cpu, gpu.keeping(0));
    compare(&cpu, &gpu, 5e-2);
    let lora = LoraConfig { rank: 8, alpha: 16.0 };
    let mut gpu = model(&gpu_once(), DType::BF16);
    cpu = model(&Device::Cpu, DType::F32);
    for decoder in [&mut cpu, &mut gpu] {
        decoder.attach_lora(&lora, 3).unwrap();
    }
    let mut adamw = AdamW::new(&s3_config::OptimizerConfig::default());
    let (_, grads) = pass(&cpu, &batch());
    adamw.step(&mut cpu, &grads, 1e-2).unwrap(); // so that B is not zero
    for (name, tensor) in cpu.trained_tensors() {
        gpu.set_trained(&name, tensor).unwrap();
    }
    compare(&cpu, &gpu, 5e-2);
}

#[test]
fn training_in_bf16_follows_the_cpu() {
    let (mut cpu, mut gpu) = (model(&Device::Cpu, DType::F32), model(&gpu_once(), DType::BF16));
    let mut losses = [Vec::new(), Vec::new()];
    for (decoder, losses) in [&mut cpu, &mut gpu].into_iter().zip(&mut losses) {
        decoder.train_all().unwrap();
        let mut adamw = AdamW::new(&s3_config::OptimizerConfig::default());
        for _ in 0..12 {
            let mut grads = decoder
                .train_pass(&batch(), 1.0, &mut |out| {
                    let n = out.logprob.len();
                    losses.push(-out.logprob.iter().sum::<f32>() / n as f32);
                    Ok(PolicyGrads { logprob: vec![-1.0 / n as f32; n], entropy: vec![0.0; n], value: None })
                })
                .unwrap();
            grads.clip(1.0).unwrap();
            adamw.step(decoder, &grads, 1e-3).unwrap();
        }
    }
    println!("{losses:?}");
    assert!(losses[0][11] < losses[0][0] * 0.8);
    for (a, b) in losses[0].iter().zip(&losses[1]) {
        assert!((a - b).abs() < 0.02 * a, "{losses:?}");
    }
}

const SAMPLING: Sampling = Sampling { temperature: 0.8, top_p: 1.0 };

fn key(i: usize, token: u32) -> SampleKey<'static> {
    SampleKey { seed: 3, step: 1, question: "q", sample: i as u32, turn: 0, token }
}

/// Rows of their own lengths, of which some end early, generate; a teacher-forced pass over what they said must give
/// the log-probabilities that they reported, and the cache must hold what was said.
fn generates(decoder: &Decoder, rows: usize, sampling: Sampling) {
    let requests: Vec<GenerateRequest> = (0..rows)
        .map(|row| GenerateRequest {
            row: rows - 1 - row,
            prompt: (0..20 + row * 37 % 300).map(|t| ((t * 13 + row * 7) % 512) as u32).collect(),
            max_new_tokens: if row % 3 == 0 { 90 } else { 5 + row % 50 },
        })
        .collect();
    let mut cache = decoder.cache(rows).unwrap();
    let mut stop = |i: usize, said: &[u32]| i % 4 == 1 && said.len() == 7;
    let said = generate(decoder, &mut cache, &requests, sampling, &key, &mut stop).unwrap();
    let mut sequences = Vec::new();
    for (i, (request, said)) in requests.iter().zip(&said).enumerate() {
        let count = if i % 4 == 1 { request.max_new_tokens.min(7) } else { request.max_new_tokens };
        assert_eq!(said.tokens.len(), count, "row {i}");
        assert_eq!(cache.len(request.row), request.prompt.len() + count - 1);
        let tokens: Vec<u32> = request.prompt.iter().chain(&said.tokens).copied().collect();
        sequences.push(TrainSequence { positions: (request.prompt.len()..tokens.len()).collect(), tokens });
    }
    let temperature = if sampling.temperature > 0.0 { sampling.temperature } else { 1.0 };
    let scored = decoder.score(&sequences, temperature).unwrap().logprob;
    let played: Vec<f32> = said.iter().flat_map(|s| s.logprobs.iter().copied()).collect();
    let apart: Vec<f64> = scored.iter().zip(&played).map(|(a, b)| f64::from((a - b).abs())).collect();
    let (mean, most) = (apart.iter().sum::<f64>() / apart.len() as f64, apart.iter().copied().fold(0.0, f64::max));
    let mismatch: f64 = scored.iter().zip(&played).map(|(a, b)| f64::from(b - a)).sum::<f64>() / apart.len() as f64;
    println!(
        "{rows} rows: {} tokens, apart {mean:.1e} on average, {most:.1e} at most, mismatch {mismatch:.1e}",
        apart.len()
    );
    assert!(mean < 0.01 && most < 0.1, "{mean} {most}");
    // The cache: one more token by the other path.
    let items: Vec<(usize, Vec<u32>)> =
        requests.iter().zip(&said).map(|(r, s)| (r.row, vec![*s.tokens.last().unwrap()])).collect();
    let items: Vec<(usize, &[u32])> = items.iter().map(|(row, t)| (*row, t.as_slice())).collect();
    let logits = host(&decoder.step_rows(&mut cache, &items).unwrap());
    let mut fresh_cache = decoder.cache(rows).unwrap();
    let all: Vec<(usize, &[u32])> =
        requests.iter().zip(&sequences).map(|(r, s)| (r.row, s.tokens.as_slice())).collect();
    let want = decoder.step_rows(&mut fresh_cache, &all).unwrap();
    near("logits after", &want, &logits, 3e-2);
}

#[test]
fn generation_agrees_with_a_teacher_forced_pass() {
    for shape in [(4, 2, 64), (7, 1, 64), (6, 1, 128), (4, 4, 128), (16, 2, 64)] {
        let mut decoder = model_of(shape, &gpu_once(), DType::BF16);
        println!("{shape:?}");
        for rows in [1, 2, 5, 70] {
            generates(&decoder, rows, SAMPLING);
        }
        generates(&decoder, 6, Sampling { temperature: 0.0, top_p: 1.0 });
        decoder.attach_lora(&LoraConfig { rank: 8, alpha: 16.0 }, 3).unwrap();
        generates(&decoder, 1, SAMPLING);
        generates(&decoder, 6, SAMPLING);
    }
}

/// One row's blocks tell each other their results in whatever order they come.
#[test]
fn one_row_repeats_itself() {
    for shape in [(4, 2, 64), (6, 1, 128)] {
        let decoder = model_of(shape, &gpu_once(), DType::BF16);
        let prompt: Vec<u32> = (0..300).map(|t| t * 13 % 512).collect();
        let request = [GenerateRequest { row: 0, prompt: prompt.clone(), max_new_tokens: 200 }];
        let play = || {
            let mut cache = decoder.cache(1).unwrap();
            generate(&decoder, &mut cache, &request, SAMPLING, &key, &mut |_, _| false).unwrap().remove(0)
        };
        let (first, again) = (play(), play());
        assert_eq!((&first.tokens, &first.logprobs), (&again.tokens, &again.logprobs));
        let tokens: Vec<u32> = prompt.iter().chain(&first.tokens).copied().collect();
        let sequence = TrainSequence { positions: (prompt.len()..tokens.len()).collect(), tokens };
        let scored = decoder.score(&[sequence], SAMPLING.temperature).unwrap().logprob;
        let most = scored.iter().zip(&first.logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!("{shape:?}: {most:.1e} at most");
        assert!(most < 0.1, "{most}");
    }
}

/// Threads that share a GPU record and replay steps beside each other, and beside a thread that trains.
#[test]
fn threads_side_by_side_say_what_each_says_alone() {
    let mut decoder = model(&gpu_once(), DType::BF16);
    decoder.train_all().unwrap();
    let play = |rows: usize| {
        let requests: Vec<GenerateRequest> =
            (0..rows).map(|row| GenerateRequest { row, prompt: vec![row as u32, 3, 5], max_new_tokens: 40 }).collect();
        let mut cache = decoder.cache(rows).unwrap();
        let said = generate(&decoder, &mut cache, &requests, SAMPLING, &key, &mut |_, _| false).unwrap();
        said.into_iter().map(|said| (said.tokens, said.logprobs)).collect::<Vec<_>>()
    };
    let alone: Vec<_> = (1..5).map(play).collect();
    let losses = pass(&decoder, &batch()).0;
    std::thread::scope(|scope| {
        for (rows, alone) in (1..5).zip(&alone) {
            let play = &play;
            scope.spawn(move || (0..10).for_each(|_| assert_eq!(&play(rows), alone)));
        }
        scope.spawn(|| (0..20).for_each(|_| assert_eq!(pass(&decoder, &batch()).0, losses)));
    });
}

#[test]
fn the_device_chooses_what_the_host_would() {
    let decoder = model(&gpu_once(), DType::BF16);
    for temperature in [0.0, 1.0, 2.0] {
        let requests: Vec<GenerateRequest> =
            (0..200).map(|row| GenerateRequest { row, prompt: vec![row as u32, 3, 5], max_new_tokens: 1 }).collect();
        let sampling = Sampling { temperature, top_p: 1.0 };
        let mut cache = decoder.cache(200).unwrap();
        let said = generate(&decoder, &mut cache, &requests, sampling, &key, &mut |_, _| false).unwrap();
        let mut cache = decoder.cache(200).unwrap();
        let items: Vec<(usize, &[u32])> = requests.iter().map(|r| (r.row, r.prompt.as_slice())).collect();
        let logits = decoder.step_rows(&mut cache, &items).unwrap().to_vec2::<f32>().unwrap();
        let mut other = 0;
        for (i, (row, said)) in logits.iter().zip(&said).enumerate() {
            let want = crate::sample(row, temperature, 1.0, &key(i, 0));
            other += usize::from(want.token != said.tokens[0]);
            if want.token == said.tokens[0] {
                assert!((want.logprob - said.logprobs[0]).abs() < 1e-4, "{want:?} {said:?}");
            }
        }
        println!("temperature {temperature}: {other} of 200 differ");
        assert!(other <= usize::from(temperature > 0.0), "{other}");
    }
}
