//! The real `s3-fetch` process against a hub and buckets over real sockets: broken, killed, refused, changed.
#![allow(clippy::unwrap_used)]

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use s3_telemetry::Outcome;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What happens in the middle of an answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// The connection ends after so many bytes.
    Cut(usize),
    /// Nothing more comes after so many bytes.
    Stall(usize),
}

#[derive(Default)]
struct Content {
    files: BTreeMap<String, Vec<u8>>,
    trouble: BTreeMap<String, Vec<Trouble>>,
    asked: Vec<(String, String, HeaderMap)>,
    token: Option<String>,
}

/// Serves one folder to all three protocols: they differ in the path before it.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<Content>>);

impl Store {
    fn put(&self, path: &str, bytes: &[u8]) {
        self.0.lock().unwrap().files.insert(path.to_owned(), bytes.to_owned());
    }

    fn trouble(&self, path: &str, trouble: &[Trouble]) {
        self.0.lock().unwrap().trouble.insert(path.to_owned(), trouble.to_vec());
    }

    /// The `Range` headers of all requests for the content of a file.
    fn ranges(&self, path: &str) -> Vec<String> {
        let content = self.0.lock().unwrap();
        let of = content.asked.iter().filter(|(method, asked, _)| method == "GET" && asked == path);
        of.map(|(_, _, headers)| {
            headers.get(header::RANGE).map(|range| range.to_str().unwrap().to_owned()).unwrap_or_default()
        })
        .collect()
    }
}

/// A path without percent signs: one client writes them for slashes and dots.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut text = parts.next().unwrap().to_owned();
    for part in parts {
        text.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
        text.push_str(&part[2..]);
    }
    text
}

async fn answer(State(store): State<Store>, request: Request) -> Response<Body> {
    let path = decoded(request.uri().path());
    let (bytes, trouble) = {
        let mut content = store.0.lock().unwrap();
        content.asked.push((request.method().to_string(), path.clone(), request.headers().clone()));
        let given = request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
        if content.token.is_some() && content.token != given {
            return Response::builder().status(StatusCode::UNAUTHORIZED).body(Body::empty()).unwrap();
        }
        let get = request.method() == "GET";
        let trouble = content.trouble.get_mut(&path).filter(|list| get && !list.is_empty()).map(|list| list.remove(0));
        match content.files.get(&path) {
            Some(bytes) => (bytes.clone(), trouble),
            None => return Response::builder().status(StatusCode::NOT_FOUND).body(Body::empty()).unwrap(),
        }
    };
    let range = request.headers().get(header::RANGE).map(|range| {
        let range = range.to_str().unwrap().strip_prefix("bytes=").unwrap().to_owned();
        let (from, to) = range.split_once('-').unwrap();
        (from.parse::<usize>().unwrap(), to.parse::<usize>().map_or(bytes.len(), |to| (to + 1).min(bytes.len())))
    });
    let (from, to) = range.unwrap_or((0, bytes.len()));
    let part = bytes[from..to].to_vec();
    let sent = part.len();
    let mut response = Response::builder()
        .header(header::ETAG, format!("\"{}\"", s3_artifacts::digest_bytes(&bytes)))
        .header(header::LAST_MODIFIED, "Wed, 01 Jan 2025 00:00:00 GMT")
        .header(header::CONTENT_LENGTH, sent);
    if range.is_some() {
        response = response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {from}-{}/{}", to - 1, bytes.len()));
    }
    let body = match trouble {
        None => Body::from(part),
        Some(Trouble::Cut(at)) => {
            let start = Bytes::copy_from_slice(&part[..at.min(sent)]);
            Body::from_stream(futures_util::stream::iter([Ok(start), Err(std::io::Error::other("cut"))]))
        }
        Some(Trouble::Stall(at)) => {
            let start = Bytes::copy_from_slice(&part[..at.min(sent)]);
            let first = futures_util::stream::iter([Ok::<_, std::io::Error>(start)]);
            Body::from_stream(futures_util::StreamExt::chain(first, futures_util::stream::pending()))
        }
    };
    response.body(body).unwrap()
}

struct World {
    dir: tempfile::TempDir,
    store: Store,
    address: String,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let store = Store::default();
        let router = Router::new().fallback(answer).with_state(store.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { dir: tempfile::tempdir().unwrap(), store, address, _runtime: runtime }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn config(&self, sources: &str) -> PathBuf {
        let root = self.root().display();
        let text = format!(
            "runtime: {{name: fetch, stateDir: {root}/state, result: {root}/result.json}}\noutput: {root}/files\nsources:\n{sources}"
        );
        let path = self.root().join("fetch.yaml");
        std::fs::write(&path, text).unwrap();
        path
    }

    fn spawn(&self, sources: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_s3-fetch"))
            .args(["run", "--config"])
            .arg(self.config(sources))
            .env_remove("http_proxy")
            .env("HF_ENDPOINT", &self.address)
            .env("AWS_ENDPOINT_URL", &self.address)
            .env("AWS_REGION", "eu-central-1")
            .env("STORAGE_EMULATOR_HOST", &self.address)
            .env("RUST_LOG", "warn")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self, sources: &str) -> (i32, String) {
        let output = self.spawn(sources).wait_with_output().unwrap();
        (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
    }

    fn outcome(&self) -> Outcome {
        serde_json::from_slice(&std::fs::read(self.root().join("result.json")).unwrap()).unwrap()
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root().join("files").join(path)).unwrap()
    }
}

/// Content that no two places share.
fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

const MODEL: &str = "- {key: a, location: {kind: HuggingFace, repository: o/m, revision: v1}, files: [{path: sub/model.gguf, name: model.gguf}]}\n";
const MODEL_PATH: &str = "/o/m/resolve/v1/sub/model.gguf";

#[test]
fn hub_and_both_buckets_are_read_and_kept_by_digest() {
    let world = World::start();
    let (model, corpus) = (bytes(300_000), bytes(1000));
    world.store.put(MODEL_PATH, &model);
    world.store.put("/bucket/deep/corpus.jsonl", &corpus);
    let sha256 = s3_artifacts::digest_bytes(&corpus);
    let sources = format!(
        "{MODEL}- {{key: b, location: {{kind: S3, bucket: bucket}}, files: [{{path: deep/corpus.jsonl, name: corpus.jsonl, sha256: {sha256}}}]}}\n\
         - {{key: c, location: {{kind: Gs, bucket: bucket}}, files: [{{path: deep/corpus.jsonl, name: corpus.jsonl}}]}}\n"
    );
    let (code, stderr) = world.run(&sources);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.read("a/model.gguf"), model);
    assert_eq!((world.read("b/corpus.jsonl"), world.read("c/corpus.jsonl")), (corpus.clone(), corpus));
    assert_eq!(std::fs::read_dir(world.root().join("files/blobs")).unwrap().count(), 2, "equal contents lie once");
    let first = world.outcome();
    assert_eq!(first.summary["fetched"], 3);

    // What is there stays, also when the branch has moved; what is lost comes again.
    world.store.put(MODEL_PATH, b"another");
    let (code, stderr) = world.run(&sources);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!((world.outcome().digest, world.outcome().summary["fetched"].clone()), (first.digest, 0.into()));
    std::fs::remove_file(world.root().join("files/c/corpus.jsonl")).unwrap();
    let (code, _) = world.run(&sources);
    assert_eq!((code, world.outcome().summary["fetched"].clone()), (0, 1.into()));
}

#[test]
fn cut_connections_are_taken_up_where_they_ended() {
    let world = World::start();
    let model = bytes(400_000);
    world.store.put(MODEL_PATH, &model);
    world.store.trouble(MODEL_PATH, &[Trouble::Cut(100_000), Trouble::Cut(150_000)]);
    let (code, stderr) = world.run(MODEL);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.read("a/model.gguf"), model);
    assert!(world.store.ranges(MODEL_PATH).len() >= 3);
}

#[test]
fn a_killed_fetch_goes_on_and_changed_content_starts_afresh() {
    for changed in [false, true] {
        let world = World::start();
        let mut model = bytes(900_000);
        world.store.put(MODEL_PATH, &model);
        world.store.trouble(MODEL_PATH, &[Trouble::Stall(600_000)]);
        let mut child = world.spawn(MODEL);
        let parts = world.root().join("files/parts");
        let written = || -> u64 {
            let entries = std::fs::read_dir(&parts).into_iter().flatten().flatten();
            entries
                .filter(|entry| entry.path().extension().is_none())
                .map(|e| e.metadata().map_or(0, |m| m.len()))
                .sum()
        };
        let start = Instant::now();
        while written() < 400_000 {
            assert!(start.elapsed() < Duration::from_secs(60), "{} bytes came", written());
            std::thread::sleep(Duration::from_millis(5));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let kept = written();
        if changed {
            model[7] ^= 1;
            world.store.put(MODEL_PATH, &model);
        }
        let (code, stderr) = world.run(MODEL);
        assert_eq!(code, 0, "{stderr}");
        assert_eq!(world.read("a/model.gguf"), model);
        let last = world.store.ranges(MODEL_PATH).pop().unwrap();
        assert_eq!(last, if changed { String::new() } else { format!("bytes={kept}-") });
        assert_eq!(std::fs::read_dir(&parts).unwrap().count(), 0, "nothing half is left");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let world = World::start();
    world.store.put(MODEL_PATH, b"model");
    let wrong = MODEL.replace("name: model.gguf}", &format!("name: model.gguf, sha256: {}}}", "0".repeat(64)));
    let missing = MODEL.replace("sub/model.gguf", "other.gguf");
    for (sources, expected) in [
        (wrong, "not 0000"),
        (missing, "is not there"),
        (MODEL.replace("name: model.gguf}", "name: ../model}"), "leaves the folder"),
    ] {
        let (code, stderr) = world.run(&sources);
        assert_eq!(code, 64, "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
        assert_eq!(stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{stderr}");
    }
    // A token is sent, and never shown.
    world.store.0.lock().unwrap().token = Some("Bearer hidden".into());
    let (code, stderr) = world.run(MODEL);
    assert_eq!(code, 64, "{stderr}");
    assert!(stderr.contains("tokenSecretRef"), "{stderr}");
    let token = world.root().join("token");
    std::fs::write(&token, "hidden\n").unwrap();
    let with = MODEL.replace("files: [", &format!("tokenFile: {}, files: [", token.display()));
    let (code, stderr) = world.run(&with);
    assert_eq!(code, 0, "{stderr}");
    assert!(!stderr.contains("hidden"));
}
