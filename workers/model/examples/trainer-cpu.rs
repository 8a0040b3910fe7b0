//! Our side of the benchmark `trainer-cpu`, driven over standard input by `tests/bench/trainer_cpu.py`:
//! a 5M-parameter decoder, f32, every weight trained by `AdamW` on the mean cross-entropy of 8 rows of 256 tokens.
//! `trainer-cpu FOLDER` writes its weights there and answers each line `N` with N steps:
//! `{"loss": […], "wall": s, "cpu": s}`; the line `gradient` with the norm of every tensor's gradient.

use std::{io::BufRead, path::PathBuf, time::Instant};

use candle_core::{DType, Device};
use s3_config::OptimizerConfig;
use s3_model::{AdamW, Architecture, Decoder, DecoderConfig, Gradients, PolicyGrads, TrainSequence, save_tensors};

const ROWS: usize = 8;
const LENGTH: usize = 257;

/// User and system time of this process, to the microsecond where the kernel tells.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let main: f64 = stat.split(' ').next().and_then(|t| t.parse().ok()).unwrap_or(0.0);
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads: f64 = tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next().and_then(|t| t.parse::<f64>().ok()))
        .sum();
    threads.max(main) / 1e9
}

fn batch(vocab: usize) -> Vec<TrainSequence> {
    let token = |row: usize, i: usize| ((row * 104_729 + i * 7919 + i * i * 13) % vocab) as u32;
    (0..ROWS)
        .map(|row| TrainSequence {
            tokens: (0..LENGTH).map(|i| token(row, i)).collect(),
            positions: (1..LENGTH).collect(),
        })
        .collect()
}

/// Mean cross-entropy and its gradients.
fn pass(decoder: &Decoder, batch: &[TrainSequence]) -> s3_model::Result<(f64, Gradients)> {
    let mut loss = 0.0;
    let grads = decoder.train_pass(batch, 1.0, &mut |out| {
        let n = out.logprob.len();
        loss = -out.logprob.iter().map(|&l| f64::from(l)).sum::<f64>() / n as f64;
        Ok(PolicyGrads { logprob: vec![-1.0 / n as f32; n], entropy: vec![0.0; n], value: None })
    })?;
    Ok((loss, grads))
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("name a folder for the weights")?);
    let config = DecoderConfig {
        architecture: Architecture::Qwen2,
        ffn: 688,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        qkv_bias: true,
        norm_eps: 1e-6,
        rope_theta: 1e6,
        ..DecoderConfig::tiny(8192, 256, 4)
    };
    let mut decoder = Decoder::random(config.clone(), 7, &Device::Cpu, DType::F32)?;
    decoder.train_all()?;
    save_tensors(&folder.join("model.safetensors"), &decoder.trained_tensors())?;
    let batch = batch(config.vocab);
    let mut adamw = AdamW::new(&OptimizerConfig { weight_decay: 0.01, ..OptimizerConfig::default() });
    println!("{}", serde_json::json!({"tokens": batch.iter().map(|s| &s.tokens).collect::<Vec<_>>()}));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "gradient" {
            let (loss, grads) = pass(&decoder, &batch)?;
            let mut norms = serde_json::Map::new();
            for (name, gradient) in grads.0 {
                let one = Gradients([(name.clone(), gradient)].into());
                norms.insert(name, one.global_norm()?.into());
            }
            println!("{}", serde_json::json!({"loss": loss, "norms": norms}));
            continue;
        }
        let (start, before) = (Instant::now(), cpu_seconds());
        let mut losses = Vec::new();
        for _ in 0..line.trim().parse::<usize>()? {
            let (loss, grads) = pass(&decoder, &batch)?;
            adamw.step(&mut decoder, &grads, 1e-3)?;
            losses.push(loss);
        }
        let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
        println!("{}", serde_json::json!({"loss": losses, "wall": wall, "cpu": cpu}));
    }
    Ok(())
}
