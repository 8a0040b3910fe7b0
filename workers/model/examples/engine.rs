//! Our side of the benchmark `builtin-engine`, driven over standard input by `tests/bench/builtin_engine.py`.
//! `engine MODEL packed|dense` prints a prompt's tokens, then answers each line `PROMPT NEW` (numbers of tokens)
//! with `{"prefill": tokens/s, "decode": tokens/s, "prefill_cpu": …, "decode_cpu": …, "text": …}`, decoding greedily.

use std::{io::BufRead, path::PathBuf, time::Instant};

use s3_config::ModelSpec;
use s3_model::{Decoder, argmax};

const TEXT: &str = "The city of Paris is the capital of France. It lies on the river Seine, and its history goes back \
more than two thousand years. The first people who lived there were fishermen and traders; the Romans built a town on \
the left bank, with baths, a forum and an arena. In the middle ages the town grew into one of the largest of Europe, \
with a university, a cathedral and a market. ";

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks
        .filter_map(|task| std::fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split(' ').next().and_then(|t| t.parse::<f64>().ok()))
        .sum::<f64>()
        / 1e9
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = PathBuf::from(args.next().ok_or("name a model file")?);
    let packed = args.next().as_deref() == Some("packed");
    let spec: ModelSpec = serde_json::from_value(serde_json::json!({"path": path, "device": "Cpu"}))?;
    let (decoder, tokenizer) = if packed { Decoder::load_packed(&spec)? } else { Decoder::load(&spec)? };
    let prompt = tokenizer.encode(&TEXT.repeat(40))?;
    println!("{}", serde_json::json!({"tokens": prompt, "packed": decoder.is_packed()}));
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (tokens, new) = line.split_once(' ').ok_or("PROMPT NEW")?;
        let (tokens, new): (usize, usize) = (tokens.parse()?, new.parse()?);
        let mut cache = decoder.cache(1)?;
        let next = |logits: candle_core::Tensor| -> Result<u32, Box<dyn std::error::Error>> {
            Ok(argmax(&logits.flatten_all()?.to_vec1::<f32>()?))
        };
        let (start, before) = (Instant::now(), cpu_seconds());
        let mut said = vec![next(decoder.step_rows(&mut cache, &[(0, &prompt[..tokens])])?)?];
        let (middle, between) = (Instant::now(), cpu_seconds());
        for _ in 1..new {
            let last = *said.last().ok_or("nothing said")?;
            said.push(next(decoder.step_rows(&mut cache, &[(0, &[last])])?)?);
        }
        let (end, after) = (Instant::now(), cpu_seconds());
        let (prompted, decoded) = (tokens as f64, (new - 1) as f64);
        println!(
            "{}",
            serde_json::json!({
                "prefill": prompted / (middle - start).as_secs_f64(), "prefill_cpu": prompted / (between - before),
                "decode": decoded / (end - middle).as_secs_f64(), "decode_cpu": decoded / (after - between),
                "text": tokenizer.decode(&said)?, "said": said,
            })
        );
    }
    Ok(())
}
