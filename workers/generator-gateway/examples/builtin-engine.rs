//! Tokens a second of the built-in engine beside llama.cpp (xllamacpp) on the same GGUF file and two cores:
//! prefill of 512 tokens and decoding of 64 after them, in turns. The ratio is the smaller of the two.

use s3_config::{DTypeKind, DeviceKind, ModelSpec};
use s3_model::Decoder;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const PROMPT: usize = 512;
const NEW: usize = 64;
const ROUNDS: usize = 3;

/// The peer's side: the same file, the same prompt length, its own timings.
const PEER: &str = r#"
import json, sys, importlib.metadata
import xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx, p.n_parallel, p.verbosity = 1024, 1, -1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(p)
prompt = " ".join(["word"] * 511)
for _ in range(int(sys.argv[2])):
    reply = server.handle_completions({"prompt": prompt, "max_tokens": 64, "temperature": 0, "cache_prompt": False, "ignore_eos": True})
    reply = json.loads(reply) if isinstance(reply, str) else reply
    t = reply["timings"]
    print("timing", t["prompt_n"], t["prompt_per_second"], t["predicted_n"], t["predicted_per_second"], flush=True)
print("version", importlib.metadata.version("xllamacpp"), flush=True)
"#;

fn ours(decoder: &Decoder) -> Result<(f64, f64)> {
    let mut cache = decoder.cache(1)?;
    let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| 100 + i * 7 % 20_000).collect();
    let started = Instant::now();
    let mut logits = decoder.step_rows(&mut cache, &[(0, &prompt)])?.to_vec2::<f32>()?;
    let prefill = PROMPT as f64 / started.elapsed().as_secs_f64();
    let started = Instant::now();
    for _ in 0..NEW {
        let best = logits[0].iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(at, _)| at as u32);
        logits = decoder.step_rows(&mut cache, &[(0, &[best])])?.to_vec2::<f32>()?;
    }
    Ok((prefill, NEW as f64 / started.elapsed().as_secs_f64()))
}

fn peer(python: &str, model: &PathBuf) -> Result<(Vec<(f64, f64)>, String)> {
    let rounds = ROUNDS.to_string();
    let output = Command::new(python).args(["-c", PEER]).arg(model).arg(rounds).stderr(Stdio::null()).output()?;
    let text = String::from_utf8(output.stdout)?;
    let timings: Vec<(f64, f64)> = text
        .lines()
        .filter_map(|line| {
            let fields: Vec<f64> = line.strip_prefix("timing ")?.split(' ').filter_map(|f| f.parse().ok()).collect();
            Some((*fields.get(1)?, *fields.get(3)?))
        })
        .collect();
    let version = text.lines().find_map(|line| line.strip_prefix("version ")).unwrap_or("?").to_owned();
    if timings.is_empty() { Err("xllamacpp gave no timings".into()) } else { Ok((timings, version)) }
}

fn best(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, f64::max)
}

fn main() -> Result<()> {
    let data = std::env::var_os("S3_DATA").map_or_else(|| PathBuf::from(".s3/data"), PathBuf::from);
    let path = data.join("models/smollm2-135m-instruct/model.gguf");
    if !path.exists() {
        return Err(format!("{} is missing: run `make data`", path.display()).into());
    }
    let found = Command::new("tests/tools/peers.sh").arg("xllamacpp").stderr(Stdio::inherit()).output()?;
    let found = String::from_utf8(found.stdout)?;
    let python = found.trim().strip_prefix("xllamacpp=").ok_or("xllamacpp cannot be installed")?.to_owned();
    let spec =
        ModelSpec { path: path.clone(), sha256: None, adapter: None, device: DeviceKind::Cpu, dtype: DTypeKind::F32 };
    let (decoder, _) = Decoder::load(&spec)?;
    ours(&decoder)?;
    let mut own = Vec::new();
    let (mut theirs, mut version) = (Vec::new(), String::new());
    for _ in 0..ROUNDS {
        own.push(ours(&decoder)?);
    }
    let (timings, name) = peer(&python, &path)?;
    theirs.extend(timings);
    version.push_str(&name);
    for _ in 0..ROUNDS {
        own.push(ours(&decoder)?);
    }
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!(
        "SmolLM2-135M Q4_1, prompt {PROMPT}, {NEW} new tokens, 2 threads, n = {}, load {}",
        own.len(),
        load.trim()
    );
    for (name, all) in [("ours (weights as f32)", &own), ("llama.cpp", &theirs)] {
        let list =
            |pick: fn(&(f64, f64)) -> f64| all.iter().map(|t| format!("{:.0}", pick(t))).collect::<Vec<_>>().join(" ");
        println!("{name:<22} prefill {} tok/s   decode {} tok/s", list(|t| t.0), list(|t| t.1));
    }
    println!("xllamacpp {version}");
    let prefill = best(own.iter().map(|t| t.0)) / best(theirs.iter().map(|t| t.0));
    let decode = best(own.iter().map(|t| t.1)) / best(theirs.iter().map(|t| t.1));
    println!("best of each: prefill {prefill:.2}, decode {decode:.2} of llama.cpp (bar 0.8)");
    println!("ratio builtin-engine {:.2}", prefill.min(decode));
    Ok(())
}
