//! The HTTP front under load, with the encoder stubbed; `bench/retrieve_http.py` calls it and its peer in turn.
//!
//! ```text
//! retrieve-http serve CORPUS.jsonl ROWS.f32 QUERIES.f32 DIMENSIONS CACHE   prints its port; answers until killed
//! retrieve-http load PORT CLIENTS REQUESTS FIRST                           prints a line of JSON
//! ```
//! Query number n is encoded as row n of QUERIES. Everything else is what `s3-retriever serve` runs.
#![allow(clippy::unwrap_used)] // a measuring program: anything unexpected ends it

use s3_config::{CorpusConfig, DenseKind, Pooling, RetrieverServeConfig, Structure};
use s3_retriever::Result;
use s3_retriever::access::Access;
use s3_retriever::corpus::{corpus_digest, read_corpus};
use s3_retriever::dense::DenseIndex;
use s3_retriever::dense::file::Kind;
use s3_retriever::dense::rows::{RowWriter, Rows};
use s3_retriever::engine::{Engine, QueryEncoder};
use s3_retriever::front::{Front, router};
use s3_retriever::gate::Gate;
use s3_retriever::index::{DenseIdentity, Identity, Index};
use s3_retriever::live::Live;
use s3_retriever::passages::{PassageStore, PassageWriter};
use serde_json::json;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// As in `s3-retriever`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Passages asked for.
const K: usize = 12;

/// Looks a query's number up in a table.
struct Stub {
    rows: Vec<Vec<f32>>,
}

impl QueryEncoder for Stub {
    fn encode(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        let number = |text: &String| text.split(' ').nth(1).unwrap().parse::<usize>().unwrap();
        Ok(texts.iter().map(|text| self.rows[number(text) % self.rows.len()].clone()).collect())
    }
}

fn floats(path: &str, d: usize) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    values.chunks_exact(d).map(<[f32]>::to_vec).collect()
}

fn index(corpus: &str, rows: &str, d: usize, folder: &Path) -> Index {
    let corpus = CorpusConfig { path: corpus.into(), sha256: None, limit: None };
    let mut passages = PassageWriter::create(folder).unwrap();
    read_corpus(&corpus, &corpus_digest(&corpus).unwrap(), |entry| passages.add(&entry)).unwrap();
    passages.finish(folder).unwrap();
    let path = folder.join("rows");
    let mut writer = RowWriter::create(&path, Kind::Single, d).unwrap();
    for row in floats(rows, d) {
        writer.single(&row).unwrap();
    }
    writer.finish().unwrap();
    let dense = DenseIdentity {
        kind: DenseKind::Flat,
        recall_target: None,
        encoder_sha256: String::new(),
        tokenizer_sha256: String::new(),
        pooling: Pooling::Mean,
        query_prefix: String::new(),
        passage_prefix: String::new(),
        max_tokens: 256,
        vectors_sha256: None,
        structure: Structure::default(),
    };
    Index {
        digest: "0f".repeat(32),
        content_digest: "0f".repeat(32),
        identity: Identity { corpus_sha256: String::new(), limit: None, lexical: None, dense: Some(dense) },
        passages: PassageStore::open(folder).unwrap(),
        lexical: None,
        dense: Some(DenseIndex::new(Rows::open(&path).unwrap())),
        fidelity: None,
    }
}

fn serve(arguments: &[String]) {
    let [corpus, rows, queries, d, cache] = arguments else { panic!("serve CORPUS ROWS QUERIES DIMENSIONS CACHE") };
    let d: usize = d.parse().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config: RetrieverServeConfig = serde_json::from_value(json!({
        "runtime": {"name": "bench", "stateDir": folder.path(), "threads": 1}, "index": folder.path(),
        "grpc": "127.0.0.1:0", "cacheEntries": cache.parse::<usize>().unwrap(),
    }))
    .unwrap();
    let index = index(corpus, rows, d, folder.path());
    let encoder: Box<dyn QueryEncoder> = Box::new(Stub { rows: floats(queries, d) });
    let engine = Engine::assemble(&config, index, Some(encoder)).unwrap();
    let live = Arc::new(Live::new(engine, config.requests_limit));
    let access = Arc::new(Access::open(None).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::env::var("FRONT").map_or(2, |n| n.parse().unwrap()))
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap().port());
        let deadline = Duration::from_millis(config.deadline_millis);
        let front = Front { gate: Gate { access, admission: live.admission(), deadline }, answers: live };
        axum::serve(listener, router(front)).await.unwrap();
    });
}

/// The length of the reply that `bytes` begin with, once its head is there; and whether it is a success.
fn reply(bytes: &[u8]) -> Option<(usize, bool)> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let (_, after) = head.split_once("content-length: ")?;
    let length: usize = after.lines().next()?.trim().parse().ok()?;
    Some((end + length, head.starts_with("http/1.1 200")))
}

async fn client(port: u16, next: Arc<AtomicUsize>, last: usize) -> (Vec<f64>, usize) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut times, mut bad) = (Vec::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= last {
            return (times, bad);
        }
        let body = format!(
            r#"{{"queries":["query {number} of the benchmark, who painted the ceiling?"],"topk":{K},"return_scores":true}}"#
        );
        let head = "POST /retrieve HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:";
        let started = Instant::now();
        stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await.unwrap();
        let mut filled = 0;
        let fine = loop {
            let read = stream.read(&mut buffer[filled..]).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            filled += read;
            if let Some((length, fine)) = reply(&buffer[..filled])
                && filled >= length
            {
                break fine;
            }
        };
        times.push(started.elapsed().as_secs_f64());
        bad += usize::from(!fine);
    }
}

fn load(arguments: &[String]) {
    let [port, clients, requests, first] = arguments else { panic!("load PORT CLIENTS REQUESTS FIRST") };
    let (port, clients): (u16, usize) = (port.parse().unwrap(), clients.parse().unwrap());
    let (requests, first): (usize, usize) = (requests.parse().unwrap(), first.parse().unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let next = Arc::new(AtomicUsize::new(first));
    let started = Instant::now();
    let (mut times, mut bad) = (Vec::new(), 0);
    runtime.block_on(async {
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..clients {
            set.spawn(client(port, next.clone(), first + requests));
        }
        while let Some(done) = set.join_next().await {
            let (own, failed) = done.unwrap();
            times.extend(own);
            bad += failed;
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize] * 1e3;
    println!("{}", json!({"requests": times.len(), "bad": bad, "seconds": seconds, "p50": at(0.5), "p99": at(0.99)}));
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.split_first().map(|(verb, rest)| (verb.as_str(), rest)) {
        Some(("serve", rest)) => serve(rest),
        Some(("load", rest)) => load(rest),
        _ => panic!("retrieve-http serve | load"),
    }
}
