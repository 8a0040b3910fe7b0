//! The engines of this crate under a stopwatch: reads commands from standard input, one a line, and answers
//! each with one line of JSON. The benchmarks in `bench/` call it and their peers in turn.
//!
//! ```text
//! measure dense ROWS.f32 DIMENSIONS QUERIES.f32     then   KIND BATCH QUERIES K OVERSAMPLE
//! measure bm25 CORPUS.jsonl QUERIES.txt             then   K
//! measure encode FOLDER PREFIX TEXTS.txt OUT.f32    writes the texts' vectors; the prefix gets a space
//! measure encoder FOLDER TEXTS.txt OUT.f32          then   BATCH; the texts' tokens first, their vectors to OUT
//! ```
//! Files of vectors are raw little-endian f32. Time is this process' CPU time, on one thread.
#![allow(clippy::unwrap_used)] // a measuring program: anything unexpected ends it

use half::f16;
use nix::sys::resource::{UsageWho, getrusage};
use s3_config::{CorpusConfig, DenseKind, DeviceKind, LexicalConfig, Pooling};
use s3_model::encoder::{Encoder, EncoderSpec};
use s3_retriever::corpus::{corpus_digest, read_corpus};
use s3_retriever::dense::file::Kind;
use s3_retriever::dense::kernels::Level;
use s3_retriever::dense::rows::{RowWriter, Rows};
use s3_retriever::dense::{DenseIndex, write_codes};
use s3_retriever::lexical::LexicalBuilder;
use s3_retriever::rank::Ranked;
use serde_json::json;
use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn reply(value: &serde_json::Value) {
    println!("{value}");
    std::io::stdout().flush().unwrap();
}

fn positions(found: &[Vec<Ranked>]) -> Vec<Vec<u32>> {
    found.iter().map(|list| list.iter().map(|one| one.position).collect()).collect()
}

fn floats(path: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// A kind by name: rows as f32 or f16, and the codes over them.
fn open(folder: &Path, name: &str, values: &[f32], d: usize) -> DenseIndex {
    let (stored, kind) = match name {
        "f32" => (Kind::Single, DenseKind::Flat),
        "f16" => (Kind::Half, DenseKind::Flat),
        "int8" => (Kind::Half, DenseKind::ScalarQuantized),
        "onebit" => (Kind::Half, DenseKind::OneBit),
        other => panic!("kind {other}"),
    };
    let (path, codes) = (folder.join(format!("{stored:?}")), folder.join(format!("{kind:?}")));
    if !path.exists() {
        let mut writer = RowWriter::create(&path, stored, d).unwrap();
        match stored {
            Kind::Single => writer.single(values).unwrap(),
            _ => writer.half(&values.iter().map(|x| f16::from_f32(*x)).collect::<Vec<_>>()).unwrap(),
        }
        writer.finish().unwrap();
    }
    write_codes(kind, &Rows::open(&path).unwrap(), &codes).unwrap();
    DenseIndex::open(kind, Rows::open(&path).unwrap(), &codes, 1).unwrap()
}

fn dense(arguments: &[String]) {
    let [rows, d, queries] = arguments else { panic!("measure dense ROWS DIMENSIONS QUERIES") };
    let d: usize = d.parse().unwrap();
    let (values, queries) = (floats(rows), floats(queries));
    let queries: Vec<Vec<f32>> = queries.chunks_exact(d).map(<[f32]>::to_vec).collect();
    let folder = tempfile::tempdir().unwrap();
    let mut indices: HashMap<String, DenseIndex> = HashMap::new();
    reply(&json!({"level": format!("{:?}", Level::detect()), "rows": values.len() / d, "queries": queries.len()}));
    for line in std::io::stdin().lock().lines() {
        let line = line.unwrap();
        let [name, batch, count, k, oversample] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let [batch, count, k, oversample] = [batch, count, k, oversample].map(|part| part.parse::<usize>().unwrap());
        let index = indices.entry(name.to_owned()).or_insert_with(|| open(folder.path(), name, &values, d));
        index.set_oversample(oversample);
        let started = cpu_seconds();
        let found: Vec<_> =
            queries[..count].chunks(batch).flat_map(|batch| index.search(batch, k, false).unwrap()).collect();
        let seconds = cpu_seconds() - started;
        reply(&json!({"seconds": seconds, "ids": positions(&found), "bytes": index.scanned_bytes()}));
    }
}

fn bm25(arguments: &[String]) {
    let [corpus, queries] = arguments else { panic!("measure bm25 CORPUS QUERIES") };
    let corpus = CorpusConfig { path: PathBuf::from(corpus), sha256: None, limit: None };
    let mut builder = LexicalBuilder::default();
    let mut ids = Vec::new();
    let started = cpu_seconds();
    read_corpus(&corpus, &corpus_digest(&corpus).unwrap(), |entry| {
        builder.add(&entry.title, &entry.text);
        ids.push(entry.id);
        Ok(())
    })
    .unwrap();
    let index = builder.finish(&LexicalConfig::default());
    let queries = std::fs::read_to_string(queries).unwrap();
    let queries: Vec<&str> = queries.lines().collect();
    let seconds = cpu_seconds() - started;
    reply(&json!({"seconds": seconds, "passages": index.len(), "queries": queries.len()}));
    for line in std::io::stdin().lock().lines() {
        let k = line.unwrap().parse().unwrap();
        let started = cpu_seconds();
        let found: Vec<_> = queries.iter().map(|query| index.search(query, k)).collect();
        let seconds = cpu_seconds() - started;
        let pairs = |list: &Vec<Ranked>| {
            list.iter().map(|one| json!([ids[one.position as usize], one.score])).collect::<Vec<_>>()
        };
        reply(&json!({"seconds": seconds, "found": found.iter().map(pairs).collect::<Vec<_>>()}));
    }
}

fn encode(arguments: &[String]) {
    let [folder, prefix, texts, out] = arguments else { panic!("measure encode FOLDER PREFIX TEXTS OUT") };
    let spec = EncoderSpec { pooling: Pooling::Mean, max_tokens: 256 };
    let encoder = Encoder::load(Path::new(folder), &spec, &s3_model::device(DeviceKind::Cpu).unwrap()).unwrap();
    let texts = std::fs::read_to_string(texts).unwrap();
    let texts: Vec<String> = texts.lines().map(|text| format!("{prefix} {text}")).collect();
    let started = cpu_seconds();
    let vectors = encoder.encode(&texts).unwrap();
    let seconds = cpu_seconds() - started;
    let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(out, bytes).unwrap();
    reply(&json!({"seconds": seconds, "texts": texts.len()}));
}

fn encoder(arguments: &[String]) {
    let [folder, texts, out] = arguments else { panic!("measure encoder FOLDER TEXTS OUT") };
    let spec = EncoderSpec { pooling: Pooling::Mean, max_tokens: 256 };
    let encoder = Encoder::load(Path::new(folder), &spec, &s3_model::device(DeviceKind::Cpu).unwrap()).unwrap();
    let texts = std::fs::read_to_string(texts).unwrap();
    let texts: Vec<&str> = texts.lines().collect();
    reply(&json!({"tokens": texts.iter().map(|text| encoder.tokens(text).unwrap()).collect::<Vec<_>>()}));
    for line in std::io::stdin().lock().lines() {
        let batch: usize = line.unwrap().parse().unwrap();
        let started = cpu_seconds();
        let vectors: Vec<_> = texts.chunks(batch).flat_map(|texts| encoder.encode(texts).unwrap()).collect();
        let seconds = cpu_seconds() - started;
        let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(out, bytes).unwrap();
        reply(&json!({"seconds": seconds}));
    }
}

fn main() {
    rayon::ThreadPoolBuilder::new().num_threads(1).build_global().unwrap();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first().map(|(verb, rest)| (verb.as_str(), rest)) {
        Some(("dense", rest)) => dense(rest),
        Some(("bm25", rest)) => bm25(rest),
        Some(("encode", rest)) => encode(rest),
        Some(("encoder", rest)) => encoder(rest),
        _ => panic!("measure dense | bm25 | encode | encoder"),
    }
}
