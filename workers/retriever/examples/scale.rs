//! Search by codes at millions of vectors: time, memory, and what follows for 21 million.
//!
//! ```text
//! scale FOLDER ROWS DIMENSIONS KIND OVERSAMPLE QUERIES THREADS     KIND is onebit or int8
//! ```
//! Vectors are generated (unit length, in clusters) and marked so in the output: they tell of speed and memory, not of
//! recall. FOLDER is emptied of them at the end.
#![allow(clippy::unwrap_used)] // a measuring program: anything unexpected ends it

use half::f16;
use nix::sys::resource::{UsageWho, getrusage};
use rayon::prelude::*;
use s3_config::DenseKind;
use s3_retriever::dense::file::Kind;
use s3_retriever::dense::kernels::Level;
use s3_retriever::dense::rows::{RowWriter, Rows};
use s3_retriever::dense::{DenseIndex, write_codes};
use std::path::Path;
use std::time::Instant;

const K: usize = 12;
const CLUSTERS: u64 = 4096;
/// Rows made at once.
const BATCH: usize = 1 << 14;
/// The size that is extrapolated to: wiki-18.
const GOAL: f64 = 21_015_324.0;

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Memory of this process by `/proc/self/status`, MiB: (all, of it mapped files).
fn resident() -> (f64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let of = |name: &str| -> f64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
    };
    (of("VmRSS:"), of("RssFile:"))
}

fn step(state: &mut u64) -> f32 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    // two uniform halves: nearly normal is enough
    ((*state >> 40) as f32 + ((*state >> 16) & 0xff_ffff) as f32) / (1 << 24) as f32 - 1.0
}

/// A vector of its own around its cluster's centre.
fn vector(seed: u64, d: usize) -> Vec<f32> {
    let mut own = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for _ in 0..4 {
        step(&mut own);
    }
    let mut centre = (own % CLUSTERS + 1).wrapping_mul(0xd134_2543_de82_ef95) | 1;
    let mut x: Vec<f32> = (0..d).map(|_| step(&mut centre) + 0.8 * step(&mut own)).collect();
    let norm = x.iter().map(|x| x * x).sum::<f32>().sqrt();
    for x in &mut x {
        *x /= norm;
    }
    x
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, rows, d, kind, oversample, queries, threads] = &arguments[..] else {
        panic!("scale FOLDER ROWS DIMENSIONS KIND OVERSAMPLE QUERIES THREADS")
    };
    let number = |text: &String| text.parse::<usize>().unwrap();
    let (n, d, oversample, queries) = (number(rows), number(d), number(oversample), number(queries));
    let kind = match kind.as_str() {
        "onebit" => DenseKind::OneBit,
        "int8" => DenseKind::ScalarQuantized,
        other => panic!("kind {other}"),
    };
    rayon::ThreadPoolBuilder::new().num_threads(number(threads)).build_global().unwrap();
    let (path, codes) = (Path::new(folder).join("vectors"), Path::new(folder).join("codes"));
    let started = Instant::now();
    let mut writer = RowWriter::create(&path, Kind::Half, d).unwrap();
    for first in (0..n).step_by(BATCH) {
        let made: Vec<f16> = (first..n.min(first + BATCH))
            .into_par_iter()
            .flat_map_iter(|at| vector(at as u64 + 1, d).into_iter().map(f16::from_f32))
            .collect();
        writer.half(&made).unwrap();
        eprint!("\r{:>9} of {n} vectors", n.min(first + BATCH));
    }
    writer.finish().unwrap();
    eprintln!(", {:.0} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    write_codes(kind, &Rows::open(&path).unwrap(), &codes).unwrap();
    eprintln!("codes written in {:.0} s", started.elapsed().as_secs_f64());
    // a process that only serves: what building left behind is dropped
    let index = DenseIndex::open(kind, Rows::open(&path).unwrap(), &codes, oversample).unwrap();
    println!(
        "{n} x {d} generated vectors, {kind:?}, {oversample} candidates a passage, k {K}, {threads} threads, {:?}; codes {:.1} bytes \
         a vector",
        Level::detect(),
        index.scanned_bytes()
    );
    let asked: Vec<Vec<f32>> = (0..queries).map(|at| vector((n + at) as u64 * 7 + 5, d)).collect();
    asked.iter().take(3).for_each(|query| drop(index.search(std::slice::from_ref(query), K, false).unwrap()));
    let (cpu, mut times) = (cpu_seconds(), Vec::new());
    for query in &asked {
        let started = Instant::now();
        assert_eq!(index.search(std::slice::from_ref(query), K, false).unwrap()[0].len(), K);
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    let cpu = (cpu_seconds() - cpu) / queries as f64 * 1e3;
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (times[queries / 2], times[queries * 99 / 100]);
    let batched = Instant::now();
    asked.chunks(16).for_each(|batch| drop(index.search(batch, K, false).unwrap()));
    let batched = batched.elapsed().as_secs_f64() / queries as f64 * 1e3;
    let (all, mapped) = resident();
    println!(
        "single queries: p50 {p50:.1} ms, p99 {p99:.1} ms, CPU {cpu:.1} ms; batches of 16: {batched:.1} ms a query"
    );
    println!(
        "resident after {} queries: {all:.0} MiB, of it {mapped:.0} MiB of mapped files (codes, and rows scored again)",
        2 * queries
    );
    let factor = GOAL / n as f64;
    println!(
        "times {factor:.2} for 21,015,324: p50 {:.0} ms, CPU {:.0} ms, codes {:.2} GiB",
        p50 * factor,
        cpu * factor,
        index.scanned_bytes() * GOAL / (1u64 << 30) as f64
    );
    drop(index);
    std::fs::remove_file(path).unwrap();
    std::fs::remove_file(codes).unwrap();
}
