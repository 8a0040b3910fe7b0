//! A corpus, an encoder and processes for the tests of this folder.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // each test file uses its part

use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

pub const WORDS: [&str; 8] = ["river", "mountain", "actor", "painter", "opera", "planet", "metal", "treaty"];

/// `n` passages whose words follow from their numbers.
pub fn write_corpus(path: &Path, n: usize) {
    let mut lines = String::new();
    for at in 0..n {
        let word = |salt: usize| WORDS[(at * 7 + at / 5 * salt + salt) % WORDS.len()];
        let line = json!({
            "id": format!("p{at}"),
            "title": format!("{} {at}", word(1)),
            "text": format!("the {} of {} and a {}", word(2), word(3), word(5)),
        });
        writeln!(lines, "{line}").unwrap();
    }
    std::fs::write(path, lines).unwrap();
}

/// What FAISS writes for an `IndexFlatIP`.
pub fn faiss_flat(rows: &[f32], d: usize) -> Vec<u8> {
    let mut file = b"IxFI".to_vec();
    file.extend((d as i32).to_le_bytes());
    file.extend(((rows.len() / d) as i64).to_le_bytes());
    file.extend([1i64 << 20, 1 << 20].iter().flat_map(|unused| unused.to_le_bytes()));
    file.push(1);
    file.extend(0i32.to_le_bytes());
    file.extend((rows.len() as u64).to_le_bytes());
    file.extend(rows.iter().flat_map(|value| value.to_le_bytes()));
    file
}

/// A random BERT encoder of one layer; another `seed`, another encoder.
pub fn write_encoder(folder: &Path, seed: u32) {
    std::fs::create_dir_all(folder).unwrap();
    let (h, f, vocab) = (32, 48, 4 + WORDS.len());
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.word_embeddings.weight".into(), vec![vocab, h]),
        ("embeddings.position_embeddings.weight".into(), vec![64, h]),
        ("embeddings.token_type_embeddings.weight".into(), vec![2, h]),
    ];
    let layer = |name: &str| format!("encoder.layer.0.{name}");
    for norm in ["embeddings.LayerNorm".into(), layer("attention.output.LayerNorm"), layer("output.LayerNorm")] {
        tensors.push((format!("{norm}.weight"), vec![h]));
        tensors.push((format!("{norm}.bias"), vec![h]));
    }
    for (name, out, inner) in [
        ("attention.self.query", h, h),
        ("attention.self.key", h, h),
        ("attention.self.value", h, h),
        ("attention.output.dense", h, h),
        ("intermediate.dense", f, h),
        ("output.dense", h, f),
    ] {
        tensors.push((layer(&format!("{name}.weight")), vec![out, inner]));
        tensors.push((layer(&format!("{name}.bias")), vec![out]));
    }
    // as a cross-encoder it has a head with one label
    for (name, out) in [("pooler.dense", h), ("classifier", 1)] {
        tensors.push((format!("{name}.weight"), vec![out, h]));
        tensors.push((format!("{name}.bias"), vec![out]));
    }
    let mut state = seed;
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, shape) in tensors {
        let start = data.len();
        for _ in 0..shape.iter().product::<usize>() {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let value = (state >> 8) as f32 / (1 << 24) as f32 - 0.5;
            data.extend_from_slice(&value.to_le_bytes());
        }
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    let config = json!({
        "model_type": "bert", "vocab_size": vocab, "hidden_size": h, "num_attention_heads": 4, "num_hidden_layers": 1,
        "intermediate_size": f, "max_position_embeddings": 64,
    });
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"];
    let vocab: serde_json::Map<String, Value> =
        special.iter().chain(&WORDS).enumerate().map(|(at, word)| ((*word).into(), at.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {
            "type": "TemplateProcessing", "special_tokens": {},
            "single": [{"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        },
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// A folder with a corpus, an encoder and a place for the index.
pub struct World {
    pub dir: tempfile::TempDir,
}

impl World {
    pub fn new(passages: usize) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        write_corpus(&world.path("corpus.jsonl"), passages);
        write_encoder(&world.path("encoder"), 5);
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn runtime(&self, name: &str) -> Value {
        json!({
            "name": name, "stateDir": self.path(&format!("{name}-state")), "threads": 1,
            "progress": self.path(&format!("{name}-progress.json")), "result": self.path(&format!("{name}-result.json")),
        })
    }

    pub fn build_config(&self) -> Value {
        json!({
            "runtime": self.runtime("build"),
            "corpus": {"path": self.path("corpus.jsonl")},
            "lexical": {},
            "dense": {"encoder": self.path("encoder"), "maxTokens": 32, "passagePrefix": "river ", "device": "Cpu"},
            "output": self.path("index"),
        })
    }

    pub fn serve_config(&self) -> Value {
        json!({
            "runtime": self.runtime("serve"), "index": self.path("index"), "encoder": self.path("encoder"),
            "grpc": free_address(), "http": free_address(), "topKLimit": 20, "queriesLimit": 5, "device": "Cpu",
        })
    }

    pub fn save(&self, name: &str, config: &Value) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, config.to_string()).unwrap();
        path
    }

    /// Runs the build to its end; its outcome.
    pub fn build(&self) -> Value {
        let config = self.save("build.yaml", &self.build_config());
        let (code, error) = run(&["build", "--config", config.to_str().unwrap()]);
        assert_eq!(code, 0, "{error}");
        read_json(&self.path("build-result.json"))
    }
}

pub fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A free port on a loopback address of its own: tests side by side, and their clients, cannot take it.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id();
    let host =
        Ipv4Addr::new(127, 1 + (process % 250) as u8, (process / 250 % 250) as u8, NEXT.fetch_add(1, Ordering::SeqCst));
    TcpListener::bind((host, 0)).unwrap().local_addr().unwrap()
}

pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_s3-retriever"));
    command.args(arguments).env("RUST_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Exit code and what standard error holds.
pub fn run(arguments: &[&str]) -> (i32, String) {
    let output = command(arguments).stderr(Stdio::piped()).output().unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

/// Runs what must fail: its code and its single line.
pub fn refused(arguments: &[&str]) -> (i32, String) {
    let (code, error) = run(arguments);
    let lines: Vec<&str> = error.lines().collect();
    assert_eq!(lines.len(), 1, "{error}");
    assert!(lines[0].starts_with("error: "), "{error}");
    (code, lines[0].to_owned())
}

/// A server that is killed when dropped.
pub struct Served {
    pub child: Child,
    pub http: SocketAddr,
    pub grpc: SocketAddr,
}

impl Served {
    pub fn start(world: &World, config: &Value) -> Self {
        let path = world.save("serve.yaml", config);
        Self::started(command(&["serve", "--config", path.to_str().unwrap()]), config)
    }

    /// Of another command, once it answers.
    pub fn started(mut command: Command, config: &Value) -> Self {
        let child = command.spawn().unwrap();
        let address = |key: &str| config[key].as_str().unwrap().parse().unwrap();
        let mut served = Self { child, http: address("http"), grpc: address("grpc") };
        let started = Instant::now();
        loop {
            if let Ok((200, _)) = served.try_request("GET", "/healthz", "") {
                return served;
            }
            assert!(served.child.try_wait().unwrap().is_none(), "the server ended");
            assert!(started.elapsed() < Duration::from_secs(50), "the server did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn try_request(&self, verb: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        self.request_with(verb, path, "", body)
    }

    /// The same with further headers, each with its line break.
    pub fn request_with(&self, verb: &str, path: &str, headers: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let head =
            format!("{verb} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
        stream.write_all(format!("{head}{headers}content-type: application/json\r\n\r\n{body}").as_bytes())?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply)?;
        let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((&reply, ""));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((status, body.to_owned()))
    }

    /// `POST /retrieve`: status and JSON.
    pub fn retrieve(&self, body: &Value) -> (u16, Value) {
        let (status, text) = self.try_request("POST", "/retrieve", &body.to_string()).unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::Null))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // it may have ended already
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
