//! Encoder, search and reranker on a GPU under a stopwatch, each beside the CPU for what it finds.
//!
//! ```text
//! gpu encode FOLDER CORPUS.jsonl ROWS          the passages' vectors, to the file ROWS when it is not `-`
//! gpu shape LAYERS HIDDEN FOLDER CORPUS.jsonl  the same speed for a random encoder of that shape, with FOLDER's tokenizer
//! gpu search ROWS FOLDER QUERIES.txt           the best 12 of ROWS for queries that FOLDER encodes
//! gpu generated ROWS DIMENSIONS                the same over generated vectors: they tell of speed only
//! gpu rerank FOLDER CORPUS.jsonl QUERIES.txt   pairs a second
//! ```
#![allow(clippy::unwrap_used)] // a measuring program: anything unexpected ends it

use half::f16;
use rayon::prelude::*;
use s3_config::{CorpusConfig, DeviceKind, Pooling};
use s3_model::Device;
use s3_model::encoder::{CrossEncoder, Encoder, EncoderSpec};
use s3_retriever::corpus::{contents, corpus_digest, read_corpus};
use s3_retriever::dense::DenseIndex;
use s3_retriever::dense::file::Kind;
use s3_retriever::dense::rows::{RowWriter, Rows};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const K: usize = 12;
/// Texts whose vectors are compared with the CPU's.
const COMPARED: usize = 512;
/// Texts encoded at once, as a build does.
const TOGETHER: usize = 256 * 64;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["encode", folder, corpus, rows] => encode(Path::new(folder), &passages(corpus), rows),
        ["shape", layers, hidden, folder, corpus] => {
            let made = tempfile::tempdir().unwrap();
            random(made.path(), layers.parse().unwrap(), hidden.parse().unwrap(), Path::new(folder));
            encode(made.path(), &passages(corpus), "-");
        }
        ["search", rows, folder, queries] => {
            let text = std::fs::read_to_string(queries).unwrap();
            let texts: Vec<&str> = text.lines().take(1280).collect();
            let queries = Encoder::load(Path::new(folder), &spec(), &gpu()).unwrap().encode(&texts).unwrap();
            search(Rows::open(Path::new(rows)).unwrap(), &queries);
        }
        ["generated", rows, d] => {
            let (n, d): (usize, usize) = (rows.parse().unwrap(), d.parse().unwrap());
            let started = Instant::now();
            let mut values = vec![f16::ZERO; n * d];
            values.par_chunks_mut(d).enumerate().for_each(|(at, row)| {
                row.iter_mut().zip(vector(at as u64 + 1, d)).for_each(|(to, x)| *to = f16::from_f32(x));
            });
            println!("{n} x {d} generated in {:.0} s", started.elapsed().as_secs_f64());
            let queries: Vec<Vec<f32>> = (0..1280).map(|at| vector((n + at) as u64 * 7 + 5, d)).collect();
            search(Rows::new(values, d), &queries);
        }
        ["rerank", folder, corpus, queries] => rerank(Path::new(folder), &passages(corpus), queries),
        _ => panic!("see the head of examples/gpu.rs"),
    }
}

fn gpu() -> Device {
    s3_model::device(DeviceKind::Cuda).unwrap()
}

fn spec() -> EncoderSpec {
    EncoderSpec { pooling: Pooling::Mean, max_tokens: 256 }
}

fn passages(corpus: &str) -> Vec<String> {
    let config = CorpusConfig { path: corpus.into(), sha256: None, limit: None };
    let mut texts = Vec::new();
    let digest = corpus_digest(&config).unwrap();
    read_corpus(&config, &digest, |entry| {
        texts.push(contents(&entry.title, &entry.text));
        Ok(())
    })
    .unwrap();
    texts
}

fn encode(folder: &Path, texts: &[String], rows: &str) {
    let cpu = Encoder::load(folder, &spec(), &Device::Cpu).unwrap();
    let step = (texts.len() / COMPARED).max(1);
    let sample: Vec<&String> = texts.iter().step_by(step).take(COMPARED).collect();
    let tokens: usize = sample.iter().map(|text| cpu.tokens(text).unwrap().len()).sum();
    println!("{} texts of {:.0} tokens", texts.len(), tokens as f64 / sample.len() as f64);
    let started = Instant::now();
    let expected = cpu.encode(&sample).unwrap();
    println!("  CPU, {} threads: {:.0} texts/s", rayon::current_num_threads(), sample.len() as f64 / seconds(started));
    let started = Instant::now();
    texts.par_iter().for_each(|text| drop(cpu.tokens(text).unwrap()));
    println!("  tokens alone: {:.0} texts/s", texts.len() as f64 / seconds(started));
    for dtype in [candle_core::DType::F32, candle_core::DType::F16] {
        let device = gpu();
        let encoder = Encoder::load_as(folder, &spec(), &device, dtype).unwrap();
        let found = encoder.encode(&sample).unwrap();
        let least = expected.iter().zip(&found).map(|(a, b)| cosine(a, b)).fold(1.0, f64::min);
        let started = Instant::now();
        let mut writer =
            (rows != "-").then(|| RowWriter::create(Path::new(rows), Kind::Half, encoder.dimensions()).unwrap());
        for part in texts.chunks(TOGETHER) {
            let found = encoder.encode(part).unwrap();
            let values: Vec<f16> = found.iter().flatten().map(|x| f16::from_f32(*x)).collect();
            if let Some(writer) = &mut writer {
                writer.half(&values).unwrap();
            }
        }
        println!("  GPU {dtype:?}: {:.0} texts/s, least cosine {least:.7}", texts.len() as f64 / seconds(started));
        drop(writer.map(|writer| writer.finish().unwrap()));
    }
}

fn search(rows: Rows, queries: &[Vec<f32>]) {
    let (n, d) = (rows.len(), rows.dimensions());
    let mut index = DenseIndex::new(rows);
    let compared = if n > 1_000_000 { 64 } else { 1000 }.min(queries.len());
    let started = Instant::now();
    let expected = index.search(&queries[..compared], K, true).unwrap();
    let on_cpu = seconds(started) / compared as f64;
    let started = Instant::now();
    index.put_on(&gpu()).unwrap();
    println!(
        "{n} x {d}: CPU {:.2} ms a query in one batch; copied to the GPU in {:.1} s",
        on_cpu * 1e3,
        seconds(started)
    );
    // batches of every path: few queries, many
    for batch in [1, 4, 32, 128] {
        let found: Vec<_> =
            queries[..compared].chunks(batch).flat_map(|part| index.search(part, K, false).unwrap()).collect();
        let same = found.iter().zip(&expected).filter(|(a, b)| a == b).count();
        assert_eq!(same, compared, "batches of {batch}: {same} of {compared} rankings are the CPU's");
    }
    println!("  ids and scores equal the CPU's to the bit, {compared} queries in batches of 1, 4, 32 and 128");
    for batch in [1, 4, 32, 128] {
        let count = if batch == 1 { 200 } else { queries.len() };
        let mut times: Vec<f64> = Vec::new();
        for round in 0..3 {
            for part in queries[..count].chunks_exact(batch) {
                let started = Instant::now();
                index.search(part, K, false).unwrap();
                if round > 0 {
                    times.push(seconds(started));
                }
            }
        }
        times.sort_by(f64::total_cmp);
        let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        println!(
            "  batch {batch}: p50 {:.3} ms, p99 {:.3} ms, {:.0} queries/s, rows read at {:.2} TB/s",
            p50 * 1e3,
            p99 * 1e3,
            batch as f64 / p50,
            (n * d * 2) as f64 / p50 / 1e12
        );
    }
}

fn rerank(folder: &Path, texts: &[String], queries: &str) {
    let queries = std::fs::read_to_string(queries).unwrap();
    let step = texts.len() / 8192;
    let pairs: Vec<(&str, &str)> = queries
        .lines()
        .cycle()
        .zip(texts.iter().step_by(step.max(1)).take(8192))
        .map(|(q, t)| (q, t.as_str()))
        .collect();
    let cpu = CrossEncoder::load(folder, 512, &Device::Cpu).unwrap();
    let started = Instant::now();
    let expected = cpu.scores(&pairs[..256]).unwrap();
    println!("CPU, {} threads: {:.0} pairs/s", rayon::current_num_threads(), 256.0 / seconds(started));
    let model = CrossEncoder::load(folder, 512, &gpu()).unwrap();
    let found = model.scores(&pairs[..256]).unwrap();
    let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (low, high) = expected.iter().fold((f32::MAX, f32::MIN), |(l, h), x| (l.min(*x), h.max(*x)));
    for batch in [32, 1024, 8192] {
        let started = Instant::now();
        pairs.chunks(batch).for_each(|part| drop(model.scores(part).unwrap()));
        println!("GPU, {batch} together: {:.0} pairs/s", pairs.len() as f64 / seconds(started));
    }
    println!("largest difference {worst:.4} where scores are {low:.2} to {high:.2}");
}

fn seconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// A unit vector that follows from a number.
fn vector(seed: u64, d: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let mut x: Vec<f32> = (0..d).map(|_| next() + next() + next()).collect();
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    x.iter_mut().for_each(|x| *x /= norm);
    x
}

/// A random encoder of a shape, with another's tokenizer.
fn random(folder: &Path, layers: usize, h: usize, tokenizer: &Path) {
    let config = std::fs::read_to_string(tokenizer.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let vocab = config["vocab_size"].as_u64().unwrap() as usize;
    let positions = config["max_position_embeddings"].as_u64().unwrap() as usize;
    let kinds = config["type_vocab_size"].as_u64().unwrap_or(2) as usize;
    config["hidden_size"] = json!(h);
    config["num_hidden_layers"] = json!(layers);
    config["num_attention_heads"] = json!(h / 64);
    config["intermediate_size"] = json!(4 * h);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    std::fs::copy(tokenizer.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    let mut tensors = vec![
        ("embeddings.word_embeddings.weight".to_owned(), vec![vocab, h]),
        ("embeddings.position_embeddings.weight".to_owned(), vec![positions, h]),
        ("embeddings.token_type_embeddings.weight".to_owned(), vec![kinds, h]),
        ("embeddings.LayerNorm.weight".to_owned(), vec![h]),
        ("embeddings.LayerNorm.bias".to_owned(), vec![h]),
    ];
    for layer in 0..layers {
        for (part, out, inner) in [
            ("attention.self.query", h, h),
            ("attention.self.key", h, h),
            ("attention.self.value", h, h),
            ("attention.output.dense", h, h),
            ("intermediate.dense", 4 * h, h),
            ("output.dense", h, 4 * h),
        ] {
            tensors.push((format!("encoder.layer.{layer}.{part}.weight"), vec![out, inner]));
            tensors.push((format!("encoder.layer.{layer}.{part}.bias"), vec![out]));
        }
        for part in ["attention.output.LayerNorm", "output.LayerNorm"] {
            tensors.push((format!("encoder.layer.{layer}.{part}.weight"), vec![h]));
            tensors.push((format!("encoder.layer.{layer}.{part}.bias"), vec![h]));
        }
    }
    let (mut header, mut data) = (serde_json::Map::new(), Vec::<u8>::new());
    for (number, (name, shape)) in tensors.into_iter().enumerate() {
        let begin = data.len();
        let count: usize = shape.iter().product();
        if name.contains("LayerNorm") {
            let value = if name.ends_with("weight") { 1f32 } else { 0.0 };
            data.extend(std::iter::repeat_n(value.to_le_bytes(), count).flatten());
        } else {
            // rows of length one, shortened as trained weights are
            let width = shape.last().copied().unwrap();
            for row in 0..count / width {
                let values = vector((number * 1_000_003 + row) as u64 + 1, width);
                data.extend(values.into_iter().flat_map(|x| (x * 0.8).to_le_bytes()));
            }
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, data.len()]}));
    }
    let mut head = serde_json::Value::from(header).to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut file = (head.len() as u64).to_le_bytes().to_vec();
    file.extend(head);
    file.extend(data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
}
