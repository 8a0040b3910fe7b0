//! Tokens per second of a decoder: `cargo run --release -p s3-model --example speed -- MODEL [ROWS] [PROMPT] [cuda]`.
//! Prefill of ragged prompts, batched decoding, and a training pass over the same prompts.

use std::{path::PathBuf, time::Instant};

use s3_config::{DTypeKind, DeviceKind, LoraConfig, ModelSpec};
use s3_model::{AdamW, Decoder, PolicyGrads, TrainSequence};

const DECODED: usize = 16;

/// User and system time of this process; 0 where the kernel does not tell.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks = |field: usize| stat.split(' ').nth(field).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(13) + ticks(14)) / 100.0
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("name a model file")?);
    let rows: usize = args.next().map_or(Ok(16), |n| n.parse())?;
    let prompt: usize = args.next().map_or(Ok(400), |n| n.parse())?;
    let cuda = args.next().is_some_and(|kind| kind == "cuda");
    let (device, dtype) = if cuda { (DeviceKind::Cuda, DTypeKind::Bf16) } else { (DeviceKind::Cpu, DTypeKind::F32) };
    let start = Instant::now();
    let (mut decoder, _) = Decoder::load(&ModelSpec::at(path, device, dtype))?;
    println!("load {:.2} s", start.elapsed().as_secs_f64());
    let vocab = decoder.config().vocab;
    let prompts: Vec<Vec<u32>> = (0..rows)
        .map(|row| (0..prompt - row * prompt / 4 / rows).map(|i| ((i * 7919 + row * 104_729) % vocab) as u32).collect())
        .collect();
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let mut cache = decoder.cache(rows)?;
    let rate = |what: &str, tokens: usize, (start, before): (Instant, f64)| {
        let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
        println!(
            "{what}: {tokens} tokens, {:.0} tokens/s ({seconds:.2} s); {:.0} tokens per CPU second ({cpu:.2} s)",
            tokens as f64 / seconds,
            tokens as f64 / cpu
        );
    };
    let now = || (Instant::now(), cpu_seconds());
    for round in 0..2 {
        cache = decoder.cache(rows)?;
        let start = now();
        decoder.step(&mut cache, &prompts)?.to_vec2::<f32>()?;
        rate(&format!("prefill {round}"), tokens, start);
    }
    let start = now();
    for i in 0..DECODED {
        decoder.step(&mut cache, &vec![vec![i as u32 + 7]; rows])?.to_vec2::<f32>()?;
    }
    rate("decode", rows * DECODED, start);
    decoder.attach_lora(&LoraConfig::default(), 1)?;
    let mut adamw = AdamW::new(&s3_config::OptimizerConfig::default());
    let batch: Vec<TrainSequence> = prompts
        .into_iter()
        .map(|tokens| TrainSequence { positions: (tokens.len() - 32..tokens.len()).collect(), tokens })
        .collect();
    let start = now();
    decoder.score(&batch, 1.0)?;
    rate("score with LoRA", tokens, start);
    for _ in 0..2 {
        let start = now();
        let mut grads = decoder.train_pass(&batch, 1.0, &mut |out| {
            let n = out.logprob.len();
            Ok(PolicyGrads { logprob: vec![-1.0; n], entropy: vec![0.0; n], value: None })
        })?;
        grads.clip(1.0)?;
        let norm = grads.global_norm()?;
        rate("gradient", tokens, start);
        let start = Instant::now();
        adamw.step(&mut decoder, &grads, 1e-4)?;
        println!("optimiser step {:.3} s, clipped norm {norm:.3}", start.elapsed().as_secs_f64());
    }
    Ok(())
}
