//! Our side of the benchmarks `rollout-cpu` and `rollout-prefill`, driven over standard input by
//! `tests/bench/rollout_cpu.py`: a group of episodes over one prompt (16 prompt tokens, 47 sampled ones around one
//! observed token), played with a KV cache, rewarded, and learned from with one `AdamW` step of `LoRA`.
//! `rollout-cpu FOLDER` writes weights and adapter there. A line `check GROUP` plays one group and answers with its
//! tokens, log-probabilities, gradient norms and loss; `GROUP N` plays and learns N groups:
//! `{"cpu": s, "wall": s}`.

use std::{io::BufRead, path::PathBuf, time::Instant};

use candle_core::{DType, Device};
use s3_config::{LoraConfig, OptimizerConfig};
use s3_model::{AdamW, Decoder, DecoderConfig, Gradients, PolicyGrads, SampleKey, TrainSequence, sample, save_tensors};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PROMPT: usize = 16;
const LENGTH: usize = 64;
/// The observed token's position.
const OBSERVED: usize = 40;
const VOCAB: u32 = 256;

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next().and_then(|t| t.parse::<f64>().ok()))
        .sum::<f64>()
        / 1e9
}

struct Episode {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

fn play(decoder: &Decoder, group: usize, step: u64) -> Result<Vec<Episode>> {
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| (i * 37 + step as u32 * 11) % VOCAB).collect();
    let (last, before) = prompt.split_last().ok_or("an empty prompt")?;
    let mut cache = decoder.cache(1)?;
    decoder.prefill(&mut cache, &[(0, before)])?;
    let mut cache = cache.fork(&vec![0; group])?;
    let mut episodes: Vec<Episode> =
        (0..group).map(|_| Episode { tokens: prompt.clone(), logprobs: Vec::with_capacity(LENGTH) }).collect();
    let mut next: Vec<Vec<u32>> = vec![vec![*last]; group];
    for position in PROMPT..LENGTH {
        if position == OBSERVED {
            // read together with the token before it
            for (row, (episode, next)) in episodes.iter_mut().zip(&mut next).enumerate() {
                let seen = (step as u32 * 7 + row as u32 * 13) % VOCAB;
                episode.tokens.push(seen);
                next.push(seen);
            }
            continue;
        }
        let items: Vec<(usize, &[u32])> = next.iter().enumerate().map(|(row, n)| (row, n.as_slice())).collect();
        let logits = decoder.step_rows(&mut cache, &items)?.flatten_all()?.to_vec1::<f32>()?;
        for (row, logits) in logits.chunks(VOCAB as usize).enumerate() {
            let key =
                SampleKey { seed: 1, step, question: "bench", sample: row as u32, turn: 0, token: position as u32 };
            let chosen = sample(logits, 1.0, 1.0, &key);
            episodes[row].tokens.push(chosen.token);
            episodes[row].logprobs.push(chosen.logprob);
            next[row] = vec![chosen.token];
        }
    }
    Ok(episodes)
}

/// Gradients and loss: minus the mean of advantage times log-probability.
fn gradients(decoder: &Decoder, episodes: &[Episode]) -> Result<(Gradients, f64, Vec<f32>)> {
    let reward = |e: &Episode| e.tokens[PROMPT..].iter().filter(|t| **t % 2 == 0).count() as f32 / 48.0;
    let rewards: Vec<f32> = episodes.iter().map(reward).collect();
    let n = rewards.len() as f32;
    let mean = rewards.iter().sum::<f32>() / n;
    let deviation = (rewards.iter().map(|r| (r - mean) * (r - mean)).sum::<f32>() / (n - 1.0)).sqrt();
    let batch: Vec<TrainSequence> = episodes
        .iter()
        .map(|e| TrainSequence {
            tokens: e.tokens.clone(),
            positions: (PROMPT..LENGTH).filter(|p| *p != OBSERVED).collect(),
        })
        .collect();
    let (mut loss, mut logprobs) = (0.0, Vec::new());
    let grads = decoder.train_pass(&batch, 1.0, &mut |out| {
        let per = out.logprob.len() / rewards.len();
        let all = out.logprob.len() as f32;
        let by: Vec<f32> =
            (0..out.logprob.len()).map(|i| -(rewards[i / per] - mean) / (deviation + 1e-6) / all).collect();
        loss = by.iter().zip(&out.logprob).map(|(a, l)| f64::from(*a) * f64::from(*l)).sum();
        logprobs.clone_from(&out.logprob);
        Ok(PolicyGrads { logprob: by, entropy: vec![0.0; out.logprob.len()], value: None })
    })?;
    Ok((grads, loss, logprobs))
}

fn main() -> Result<()> {
    let folder = PathBuf::from(std::env::args().nth(1).ok_or("name a folder for the weights")?);
    let tiny = DecoderConfig::tiny(VOCAB as usize, 128, 4);
    let config = DecoderConfig { ffn: 256, heads: 4, kv_heads: 4, head_dim: 32, ..tiny };
    let mut decoder = Decoder::random(config, 7, &Device::Cpu, DType::F32)?;
    decoder.train_all()?;
    save_tensors(&folder.join("model.safetensors"), &decoder.trained_tensors())?;
    decoder.attach_lora(&LoraConfig { rank: 8, alpha: 8.0 }, 1)?;
    for (i, (name, tensor)) in decoder.trained_tensors().into_iter().enumerate() {
        if name.ends_with("lora_B") {
            let data = (0..tensor.elem_count()).map(|j| ((i * 31 + j * 17) % 101) as f32 / 2000.0 - 0.025).collect();
            decoder.set_trained(&name, candle_core::Tensor::from_vec::<_, f32>(data, tensor.shape(), &Device::Cpu)?)?;
        }
    }
    save_tensors(&folder.join("adapter.safetensors"), &decoder.trained_tensors())?;
    let mut adamw = AdamW::new(&OptimizerConfig { weight_decay: 0.01, ..OptimizerConfig::default() });
    println!("{{\"ready\": true}}");
    let mut step = 0;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (group, count) = line.split_once(' ').ok_or("GROUP N")?;
        if group == "check" {
            let episodes = play(&decoder, count.parse()?, 0)?;
            let (grads, loss, logprobs) = gradients(&decoder, &episodes)?;
            let played: Vec<f32> = episodes.iter().flat_map(|e| e.logprobs.clone()).collect();
            let worst = played.iter().zip(&logprobs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let mut norms = serde_json::Map::new();
            for (name, gradient) in grads.0 {
                norms.insert(name.clone(), Gradients([(name, gradient)].into()).global_norm()?.into());
            }
            let tokens: Vec<_> = episodes.iter().map(|e| &e.tokens).collect();
            println!(
                "{}",
                serde_json::json!({"tokens": tokens, "logprobs": played, "loss": loss, "norms": norms, "own": worst})
            );
            continue;
        }
        let (group, count): (usize, usize) = (group.parse()?, count.parse()?);
        let (start, before) = (Instant::now(), cpu_seconds());
        let mut playing = 0.0;
        for _ in 0..count {
            step += 1;
            let began = cpu_seconds();
            let episodes = play(&decoder, group, step)?;
            playing += cpu_seconds() - began;
            let (grads, _, _) = gradients(&decoder, &episodes)?;
            adamw.step(&mut decoder, &grads, 1e-3)?;
        }
        let (wall, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - before);
        println!("{}", serde_json::json!({"wall": wall, "cpu": cpu, "playing": playing}));
    }
    Ok(())
}
