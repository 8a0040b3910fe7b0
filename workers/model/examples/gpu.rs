//! Training and decoding speed on a GPU with random weights of public shapes:
//! `cargo run --release -p s3-model --features cuda --example gpu -- CASE...`, where a case is
//! `full:SHAPE:ROWS:TOKENS`, `lora:SHAPE:ROWS:TOKENS` or `decode:SHAPE:ROWS:PROMPT`, and SHAPE is 0.5b, 1.5b or 7b
//! (Qwen2.5). Before a training case's last line come its kernels, timed one by one in a step of their own.
//!
//! `team-full:SHAPE:ROWS:TOKENS:MICROS:GPUS` and `team-lora:…` train with so many micro-batches a step on one GPU and
//! shared out among several, and compare speed and losses; `team-decode:SHAPE:ROWS:PROMPT:GPUS` decodes on all GPUs at
//! once; `team-lost:SHAPE:GPUS` loses a rank in the midst of training.

#[cfg(not(feature = "cuda"))]
fn main() {
    eprintln!("built without CUDA; build with `--features cuda`, see docs/cuda.md");
    std::process::exit(2);
}

#[cfg(feature = "cuda")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    gpu::run()
}

#[cfg(feature = "cuda")]
mod gpu {
    use std::{collections::BTreeMap, path::Path, time::Instant};

    use candle_core::{DType, Device, Tensor};
    use s3_collective::{Collective, Local, share};
    use s3_config::{DeviceKind, LoraConfig, OptimizerConfig};
    use s3_model::{
        AdamW, Architecture, Decoder, DecoderConfig, GenerateRequest, Gradients, PolicyGrads, SampleKey, Sampling,
        Team, TrainSequence, device, generate, gpu, peak_memory, start_timing, timings,
    };
    use std::sync::Arc;

    type Done<T = ()> = Result<T, Box<dyn std::error::Error>>;

    /// Steps that warm up, and steps that count.
    const WARM: usize = 3;
    const STEPS: usize = 10;
    const NEW_TOKENS: usize = 129;

    fn shape(name: &str) -> Done<DecoderConfig> {
        let (hidden, ffn, layers, heads, kv_heads, head_dim, vocab, tied) = match name {
            "0.5b" => (896, 4864, 24, 14, 2, 64, 151_936, true),
            "1.5b" => (1536, 8960, 28, 12, 2, 128, 151_936, true),
            "7b" => (3584, 18_944, 28, 28, 4, 128, 152_064, false),
            other => return Err(format!("no shape {other}; there are 0.5b, 1.5b, 7b").into()),
        };
        Ok(DecoderConfig {
            architecture: Architecture::Qwen2,
            vocab,
            hidden,
            ffn,
            layers,
            heads,
            kv_heads,
            head_dim,
            max_positions: 4096,
            rope_theta: 1e6,
            norm_eps: 1e-6,
            qkv_bias: true,
            tied,
        })
    }

    /// Random weights, made on the device.
    fn decoder(name: &str, device: &Device) -> Done<Decoder> {
        let c = shape(name)?;
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, out: usize, input: usize| -> Done {
            tensors.insert(name, Tensor::randn(0f32, 0.02, (out, input), device)?.to_dtype(DType::BF16)?);
            Ok(())
        };
        add("model.embed_tokens.weight".into(), c.vocab, c.hidden)?;
        if !c.tied {
            add("lm_head.weight".into(), c.vocab, c.hidden)?;
        }
        for layer in 0..c.layers {
            let p = format!("model.layers.{layer}");
            for (name, out, input) in [
                ("self_attn.q_proj", q, c.hidden),
                ("self_attn.k_proj", kv, c.hidden),
                ("self_attn.v_proj", kv, c.hidden),
                ("self_attn.o_proj", c.hidden, q),
                ("mlp.gate_proj", c.ffn, c.hidden),
                ("mlp.up_proj", c.ffn, c.hidden),
                ("mlp.down_proj", c.hidden, c.ffn),
            ] {
                add(format!("{p}.{name}.weight"), out, input)?;
            }
        }
        let ones = |n: usize| Tensor::ones(n, DType::BF16, device);
        tensors.insert("model.norm.weight".into(), ones(c.hidden)?);
        for layer in 0..c.layers {
            let p = format!("model.layers.{layer}");
            for name in ["input_layernorm", "post_attention_layernorm"] {
                tensors.insert(format!("{p}.{name}.weight"), ones(c.hidden)?);
            }
            for (name, n) in [("q", q), ("k", kv), ("v", kv)] {
                tensors.insert(format!("{p}.self_attn.{name}_proj.bias"), Tensor::zeros(n, DType::BF16, device)?);
            }
        }
        Ok(Decoder::from_tensors(Path::new("(random)"), c, tensors, device, DType::BF16)?)
    }

    fn tokens(n: usize, seed: usize, vocab: usize) -> Vec<u32> {
        let mut x = seed as u64 + 1;
        let mut next = || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (x >> 33) as usize % vocab
        };
        (0..n).map(|_| next() as u32).collect()
    }

    /// Weights that take part in products.
    fn weights(c: &DecoderConfig) -> (f64, f64) {
        let layer = c.hidden * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.hidden * c.ffn;
        ((layer * c.layers) as f64, (c.hidden * c.vocab) as f64)
    }

    fn train(kind: &str, name: &str, rows: usize, length: usize, device: &Device) -> Done {
        let mut decoder = decoder(name, device)?;
        let c = decoder.config().clone();
        let full = kind == "full";
        if full {
            decoder.train_all()?;
        } else {
            decoder.attach_lora(&LoraConfig { rank: 16, alpha: 32.0 }, 1)?;
        }
        let mut adamw = AdamW::new(&OptimizerConfig::default());
        let batch: Vec<TrainSequence> = (0..rows)
            .map(|row| TrainSequence { tokens: tokens(length + 1, row, c.vocab), positions: (1..=length).collect() })
            .collect();
        let mut losses = Vec::new();
        let mut step = |decoder: &mut Decoder, losses: &mut Vec<f32>| -> Done<(f64, f64)> {
            let start = Instant::now();
            let grads = decoder.train_pass(&batch, 1.0, &mut |out| {
                let n = out.logprob.len();
                losses.push(-out.logprob.iter().sum::<f32>() / n as f32);
                Ok(PolicyGrads { logprob: vec![-1.0 / n as f32; n], entropy: vec![0.0; n], value: None })
            })?;
            device.synchronize()?;
            let pass = start.elapsed().as_secs_f64();
            adamw.step(decoder, &grads, 1e-4)?;
            device.synchronize()?;
            Ok((pass, start.elapsed().as_secs_f64() - pass))
        };
        for _ in 0..WARM {
            step(&mut decoder, &mut losses)?;
        }
        peak_memory(device)?;
        let mut times = Vec::new();
        for _ in 0..STEPS {
            times.push(step(&mut decoder, &mut losses)?);
        }
        let (peak, _) = peak_memory(device)?;
        start_timing();
        let (pass, update) = step(&mut decoder, &mut losses)?;
        let found = timings()?;
        let total: f64 = found.iter().map(|(_, ms, _)| ms).sum();
        for (name, ms, n) in found.iter().take(32) {
            println!("    {name:<34} {n:>5} x  {ms:>8.2} ms");
        }
        println!("    all timed {total:.1} ms of {:.1} ms", (pass + update) * 1e3);
        times.sort_by(|a, b| (a.0 + a.1).total_cmp(&(b.0 + b.1)));
        let (pass, update) = times[times.len() / 2];
        let n = (rows * length) as f64;
        let (layers, head) = weights(&c);
        let attention = 2.0 * (c.layers * c.heads * c.head_dim) as f64 * length as f64; // forward, a token, causal
        let times_forward = if full { 3.0 } else { 2.0 };
        let operations = times_forward * n * 2.0 * (layers + head) + n * attention * 3.0;
        println!(
            "{kind} {name} {rows}x{length}: {:.0} tokens/s; pass {:.1} ms, optimiser {:.1} ms (median of {STEPS}); best {:.1} ms; {:.0} TFLOP/s of model work; peak {:.1} GB; loss {:.4} to {:.4}",
            n / (pass + update),
            pass * 1e3,
            update * 1e3,
            (times[0].0 + times[0].1) * 1e3,
            operations / (pass + update) / 1e12,
            peak as f64 / 1e9,
            losses[0],
            losses[losses.len() - 1],
        );
        Ok(())
    }

    fn decode(name: &str, rows: usize, prompt: usize, device: &Device) -> Done {
        let decoder = decoder(name, device)?;
        let c = decoder.config().clone();
        let requests = |n: usize| -> Vec<GenerateRequest> {
            (0..rows)
                .map(|row| GenerateRequest { row, prompt: tokens(prompt, row, c.vocab), max_new_tokens: n })
                .collect()
        };
        let sampling = Sampling { temperature: 1.0, top_p: 1.0 };
        let key =
            |i: usize, token: u32| SampleKey { seed: 1, step: 0, question: "q", sample: i as u32, turn: 0, token };
        let time = |n: usize| -> Done<f64> {
            let mut cache = decoder.cache(rows)?;
            device.synchronize()?;
            let start = Instant::now();
            generate(&decoder, &mut cache, &requests(n), sampling, &key, &mut |_, _| false)?;
            Ok(start.elapsed().as_secs_f64())
        };
        time(NEW_TOKENS)?;
        peak_memory(device)?;
        start_timing();
        time(2)?;
        for (name, ms, n) in timings()?
            .iter()
            .filter(|(name, ..)| !name.starts_with("attend_1") && !name.starts_with("attend_6"))
            .take(24)
        {
            println!("    {name:<34} {n:>5} x  {:>8.1} us each", ms * 1e3 / *n as f64);
        }
        let (mut first, mut all) = (f64::MAX, Vec::new());
        for _ in 0..3 {
            first = first.min(time(1)?);
            all.push(time(NEW_TOKENS)?);
        }
        let (peak, _) = peak_memory(device)?;
        all.sort_by(f64::total_cmp);
        let step = (all[1] - first) / (NEW_TOKENS - 1) as f64;
        let (layers, head) = weights(&c);
        let context = prompt as f64 + NEW_TOKENS as f64 / 2.0;
        let cached = 4.0 * (rows * c.layers * c.kv_heads * c.head_dim) as f64 * context;
        let bytes = 2.0 * (layers + head) + cached;
        println!(
            "decode {name} {rows} rows, prompt {prompt}: {:.0} tokens/s; {:.3} ms a step (median of 3, {} steps); {:.2} GB a step, {:.2} TB/s; prompts {:.1} ms ({:.0} tokens/s); peak {:.1} GB",
            rows as f64 / step,
            step * 1e3,
            NEW_TOKENS - 1,
            bytes / 1e9,
            bytes / step / 1e12,
            first * 1e3,
            (rows * prompt) as f64 / first,
            peak as f64 / 1e9,
        );
        Ok(())
    }

    /// One rank's figures of a training case: seconds of a step's passes, of its sum, of its step and exchange (medians),
    /// peak memory, and the mean loss of every step.
    struct Rank {
        seconds: [f64; 4],
        peak: u64,
        losses: Vec<f32>,
    }

    type Failed = Box<dyn std::error::Error + Send + Sync>;

    fn plain<T>(result: Done<T>) -> Result<T, Failed> {
        result.map_err(|error| error.to_string().into())
    }

    /// Trains as one rank of a team; `lost` ends the second rank without a word in the midst of a step.
    fn rank(case: (&str, &str, usize, usize, usize), place: Local, lost: bool) -> Result<Rank, Failed> {
        let (kind, name, rows, length, micros) = case;
        let device = gpu(place.rank())?;
        device.set_seed(7)?;
        let mut decoder = plain(decoder(name, &device))?;
        if kind == "team-lora" {
            decoder.attach_lora(&LoraConfig { rank: 16, alpha: 32.0 }, 1)?;
        } else {
            decoder.train_all()?;
        }
        let team = Team::new(Arc::new(place), &device)?;
        let mut adamw = AdamW::new(&OptimizerConfig::default());
        team.settle(&mut decoder, &mut adamw);
        let vocab = decoder.config().vocab;
        let batch = |micro: usize| -> Vec<TrainSequence> {
            let sequence = |row| TrainSequence {
                tokens: tokens(length + 1, micro * rows + row, vocab),
                positions: (1..=length).collect(),
            };
            (0..rows).map(sequence).collect()
        };
        let batches: Vec<_> = share(micros, team.rank(), team.size()).map(batch).collect();
        let n = (micros * rows * length) as f32;
        let (mut times, mut losses) = (Vec::new(), Vec::new());
        for step in 0..WARM + STEPS {
            if step == WARM {
                peak_memory(&device)?;
            }
            device.synchronize()?;
            team.collective().barrier()?;
            let start = Instant::now();
            let (mut sum, mut loss) = (None::<Gradients>, 0.0);
            for batch in &batches {
                let gradients = decoder.train_pass(batch, 1.0, &mut |out| {
                    loss -= out.logprob.iter().sum::<f32>();
                    let own = out.logprob.len();
                    Ok(PolicyGrads { logprob: vec![-1.0 / n; own], entropy: vec![0.0; own], value: None })
                })?;
                match &mut sum {
                    Some(sum) => sum.add(&gradients)?,
                    None => sum = Some(gradients),
                }
            }
            device.synchronize()?;
            let pass = start.elapsed().as_secs_f64();
            if lost && step == WARM && team.rank() == 1 {
                return Err("this rank was to be lost".into());
            }
            let summed = team.sum(&decoder, sum.into_iter().collect())?;
            device.synchronize()?;
            let added = start.elapsed().as_secs_f64();
            team.step(&mut decoder, &mut adamw, summed, 1.0, 1e-4)?;
            device.synchronize()?;
            let stepped = start.elapsed().as_secs_f64();
            team.collective().barrier()?;
            let all = start.elapsed().as_secs_f64();
            if step >= WARM {
                times.push([pass, added - pass, stepped - added, all]);
            }
            losses.push(team.collective().all_gather_values(&[loss])?.iter().map(|loss| loss[0]).sum::<f32>() / n);
        }
        let (peak, _) = peak_memory(&device)?;
        times.sort_by(|a, b| a[3].total_cmp(&b[3]));
        Ok(Rank { seconds: times[times.len() / 2], peak, losses })
    }

    fn ranks(case: (&str, &str, usize, usize, usize), gpus: usize, lost: bool) -> Vec<Result<Rank, Failed>> {
        let places = Local::team(gpus, &(Arc::new(|| false) as s3_collective::Stop));
        std::thread::scope(|scope| {
            let ranks: Vec<_> = places.into_iter().map(|place| scope.spawn(move || rank(case, place, lost))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| Err("it panicked".into()))).collect()
        })
    }

    fn team(case: (&str, &str, usize, usize, usize), gpus: usize) -> Done {
        let (kind, name, rows, length, micros) = case;
        let mut rates = Vec::new();
        let mut curves: Vec<Vec<f32>> = Vec::new();
        for gpus in [1, gpus] {
            let results: Result<Vec<Rank>, Failed> = ranks(case, gpus, false).into_iter().collect();
            let results = results.map_err(|error| error.to_string())?;
            let Rank { seconds: [pass, sum, step, all], peak, losses } = &results[0];
            let rate = (micros * rows * length) as f64 / all;
            println!(
                "{kind} {name} {micros} x {rows}x{length} on {gpus} GPU(s): {rate:.0} tokens/s; a step {:.1} ms: passes {:.1}, sum {:.2}, optimiser and exchange {:.2} (medians of {STEPS}); peak {:.1} GB; losses {}",
                all * 1e3,
                pass * 1e3,
                sum * 1e3,
                step * 1e3,
                *peak as f64 / 1e9,
                losses.iter().map(|loss| format!("{loss:.5}")).collect::<Vec<_>>().join(" "),
            );
            rates.push(rate);
            curves.push(losses.clone());
        }
        let apart = curves[0].iter().zip(&curves[1]).map(|(a, b)| ((a - b) / a).abs()).fold(0.0, f32::max);
        println!(
            "{kind} {name} {micros} x {rows}x{length}: {:.3} times the speed of one GPU, {:.1} % of {gpus}; losses at most {apart:.1e} apart, relative",
            rates[1] / rates[0],
            rates[1] / rates[0] / gpus as f64 * 100.0
        );
        Ok(())
    }

    /// A rank that ends without a word: how long the others wait.
    fn lost(name: &str, gpus: usize) -> Done {
        let start = Instant::now();
        let results = ranks(("team-full", name, 2, 256, gpus), gpus, true);
        for (at, result) in results.iter().enumerate() {
            let told = result.as_ref().err().map_or_else(|| "ended well".to_owned(), ToString::to_string);
            println!("team-lost {name}: rank {at}: {told}");
        }
        println!("team-lost {name}: all ended {:.1} s after the start", start.elapsed().as_secs_f64());
        Ok(())
    }

    fn decode_together(name: &str, rows: usize, prompt: usize, gpus: usize) -> Done {
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..gpus)
                .map(|at| {
                    scope.spawn(move || {
                        plain(gpu(at).map_err(Into::into).and_then(|gpu| decode(name, rows, prompt, &gpu)))
                    })
                })
                .collect();
            for one in all {
                one.join().unwrap_or_else(|_| Err("it panicked".into())).map_err(|error| error.to_string())?;
            }
            Ok(())
        })
    }

    /// What the card gives: a large product and a large copy.
    fn ceilings(device: &Device) -> Done {
        let n = 8192;
        let (a, b) = (Tensor::randn(0f32, 1.0, (n, n), device)?, Tensor::randn(0f32, 1.0, (n, n), device)?);
        let (a, b) = (a.to_dtype(DType::BF16)?, b.to_dtype(DType::BF16)?);
        let big = Tensor::zeros(1usize << 31, DType::BF16, device)?;
        let time = |work: &dyn Fn() -> Done| -> Done<f64> {
            work()?;
            device.synchronize()?;
            let start = Instant::now();
            for _ in 0..10 {
                work()?;
            }
            device.synchronize()?;
            Ok(start.elapsed().as_secs_f64() / 10.0)
        };
        let product = time(&|| {
            a.matmul(&b)?;
            Ok(())
        })?;
        let copy = time(&|| {
            big.copy()?;
            Ok(())
        })?;
        println!(
            "ceilings: product {:.0} TFLOP/s, copy {:.2} TB/s (read and written)",
            2.0 * (n as f64).powi(3) / product / 1e12,
            2.0 * (big.elem_count() * 2) as f64 / copy / 1e12
        );
        Ok(())
    }

    pub fn run() -> Done {
        let device = device(DeviceKind::Cuda)?;
        ceilings(&device)?;
        for case in std::env::args().skip(1) {
            let parts: Vec<&str> = case.split(':').collect();
            let numbers: Vec<usize> =
                parts.iter().skip(2).map(|part| part.parse()).collect::<Result<_, std::num::ParseIntError>>()?;
            let (kind, name) = (parts[0], *parts.get(1).ok_or("a case is KIND:SHAPE:…")?);
            let result = match (kind, numbers.as_slice()) {
                ("decode", [rows, length]) => decode(name, *rows, *length, &device),
                ("full" | "lora", [rows, length]) => train(kind, name, *rows, *length, &device),
                ("team-full" | "team-lora", [rows, length, micros, gpus]) => {
                    team((kind, name, *rows, *length, *micros), *gpus)
                }
                ("team-decode", [rows, length, gpus]) => decode_together(name, *rows, *length, *gpus),
                ("team-lost", [gpus]) => lost(name, *gpus),
                _ => Err(format!("no case {case}; see the text at the beginning of this example").into()),
            };
            if let Err(error) = result {
                println!("{case} FAILED: {error}");
            }
        }
        Ok(())
    }
}
