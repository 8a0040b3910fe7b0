//! An upstream that misbehaves on order, and the real gateway process in front of it.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used)] // every test file uses a part of it

use s3_config::{CacheMode, CallLimits, GatewayConfig, OpenAiConfig, ProviderConfig, Runtime};
use s3_proto::{GeneratorClient, v1};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What the upstream does with one request.
#[derive(Clone, Debug)]
pub enum Act {
    /// Answers with a text that only this prompt gets.
    Answer,
    /// Answers with this text.
    Say(String),
    /// A status, more header lines and a body.
    Status(u16, &'static str, String),
    /// Reads the request and resets the connection.
    Reset,
    /// Answers after this time.
    Slow(Duration),
    /// Promises more bytes than it sends.
    Truncated,
    /// Sends half of the JSON as if it were all.
    HalfJson,
    /// A good body that calls itself HTML.
    WrongType,
    /// An answer without text.
    NoText,
    /// This body, as JSON.
    Json(String),
    /// Events of a stream with this time between them, and then its end or not.
    Stream { pieces: Vec<&'static str>, gap: Duration, whole: bool },
}

/// What every request gets, by its body and how often that body came before.
pub type Rule = Arc<dyn Fn(&serde_json::Value, usize) -> Act + Send + Sync>;

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub at: Instant,
    pub head: String,
    pub body: serde_json::Value,
}

#[derive(Default)]
struct State {
    script: Mutex<VecDeque<Act>>,
    after: Mutex<Option<Act>>,
    seen: Mutex<Vec<Seen>>,
    running: AtomicUsize,
    most: AtomicUsize,
    delay: Mutex<Duration>,
    rule: Mutex<Option<Rule>>,
    times: Mutex<std::collections::HashMap<String, usize>>,
    count: AtomicUsize,
    left: Mutex<Vec<Instant>>,
    forgetful: std::sync::atomic::AtomicBool,
}

/// An OpenAI-compatible upstream on loopback.
#[derive(Clone)]
pub struct Upstream {
    pub address: SocketAddr,
    state: Arc<State>,
}

impl Upstream {
    /// Starts one that answers everything.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move { drop(serve(stream, &state).await) });
            }
        });
        Self { address, state }
    }

    /// The next requests get these acts, later ones an answer.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.state.script.lock().unwrap().extend(acts);
    }

    /// What requests get when the script is at its end.
    pub fn always(&self, act: Act) {
        *self.state.after.lock().unwrap() = Some(act);
    }

    /// Every request takes at least this long.
    pub fn delay(&self, delay: Duration) {
        *self.state.delay.lock().unwrap() = delay;
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    pub fn calls(&self) -> usize {
        self.state.count.load(Ordering::SeqCst)
    }

    /// Requests that the script does not answer get what this says.
    pub fn rule(&self, rule: Rule) {
        *self.state.rule.lock().unwrap() = Some(rule);
    }

    /// Requests are no longer kept, only counted.
    pub fn forget(&self) {
        self.state.forgetful.store(true, Ordering::SeqCst);
    }

    /// When clients went away in the middle of a stream.
    pub fn left(&self) -> Vec<Instant> {
        self.state.left.lock().unwrap().clone()
    }

    /// Most requests that were in work together.
    pub fn most(&self) -> usize {
        self.state.most.load(Ordering::SeqCst)
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

/// The answer that belongs to a prompt.
pub fn answer_to(body: &serde_json::Value) -> String {
    let text = body["messages"].to_string();
    format!("answer {}", &s3_artifacts::digest_bytes(text.as_bytes())[..12])
}

async fn serve(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    while serve_one(&mut stream, state).await? {}
    stream.shutdown().await
}

/// Serves one request; whether the connection goes on.
async fn serve_one(stream: &mut TcpStream, state: &State) -> std::io::Result<bool> {
    let mut bytes = Vec::new();
    let (head, body) = loop {
        let mut buffer = vec![0; 16384];
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Ok(false);
        }
        bytes.extend_from_slice(&buffer[..read]);
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let lower = head.to_lowercase();
        let length: usize = lower
            .split("content-length: ")
            .nth(1)
            .and_then(|rest| rest.lines().next()?.trim().parse().ok())
            .unwrap_or(0);
        if bytes.len() >= end + 4 + length {
            let body: serde_json::Value = serde_json::from_slice(&bytes[end + 4..]).unwrap_or_default();
            break (head, body);
        }
    };
    let act = {
        let next = state.script.lock().unwrap().pop_front();
        let ruled = || {
            let rule = state.rule.lock().unwrap().clone()?;
            let mut times = state.times.lock().unwrap();
            let before = times.entry(body["messages"].to_string()).or_default();
            *before += 1;
            Some(rule(&body, *before - 1))
        };
        next.or_else(|| state.after.lock().unwrap().clone()).or_else(ruled).unwrap_or(Act::Answer)
    };
    let text = answer_to(&body);
    state.count.fetch_add(1, Ordering::SeqCst);
    if !state.forgetful.load(Ordering::SeqCst) {
        state.seen.lock().unwrap().push(Seen { at: Instant::now(), head, body });
    }
    let running = state.running.fetch_add(1, Ordering::SeqCst) + 1;
    state.most.fetch_max(running, Ordering::SeqCst);
    let delay = *state.delay.lock().unwrap();
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    if let Act::Slow(time) = act {
        tokio::time::sleep(time).await;
    }
    state.running.fetch_sub(1, Ordering::SeqCst);
    let json = "content-type: application/json\r\n";
    let text = if let Act::Say(other) = &act { other.clone() } else { text };
    let good = serde_json::json!({
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 11, "completion_tokens": 3, "total_tokens": 14},
    })
    .to_string();
    let (status, header, body, promised) = match act {
        Act::Answer | Act::Say(_) | Act::Slow(_) => (200, json, good.clone(), good.len()),
        Act::Status(status, header, body) => (status, header, body.clone(), body.len()),
        Act::Truncated => (200, json, good[..good.len() / 2].to_owned(), good.len()),
        Act::HalfJson => (200, json, good[..good.len() / 2].to_owned(), good.len() / 2),
        Act::WrongType => (200, "content-type: text/html\r\n", good.clone(), good.len()),
        Act::NoText => {
            let empty = good.replace(&format!("{text:?}"), "null");
            (200, json, empty.clone(), empty.len())
        }
        Act::Json(body) => (200, json, body.clone(), body.len()),
        Act::Stream { pieces, gap, whole } => {
            let result = send_events(stream, &pieces, gap, whole).await;
            if result.is_err() {
                state.left.lock().unwrap().push(Instant::now());
            }
            return result.map(|()| false);
        }
        Act::Reset => {
            // closing with unread lingering data switched off sends a reset
            stream.set_zero_linger()?;
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
    };
    let head = format!("HTTP/1.1 {status} X\r\n{header}content-length: {promised}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(promised == body.len())
}

/// Events of a chat's stream; an error when the client goes in between.
async fn send_events(stream: &mut TcpStream, pieces: &[&str], gap: Duration, whole: bool) -> std::io::Result<()> {
    let head = "HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    stream.write_all(head.as_bytes()).await?;
    let mut events: Vec<String> = pieces
        .iter()
        .map(|piece| {
            let delta =
                serde_json::json!({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": null}]});
            format!("data: {delta}\n\n")
        })
        .collect();
    if whole {
        events.push("data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n".into());
        events.push("data: {\"choices\":[],\"usage\":{\"prompt_tokens\":11,\"completion_tokens\":3}}\n\n".into());
        events.push("data: [DONE]\n\n".into());
    }
    for event in events {
        stream.write_all(event.as_bytes()).await?;
        let mut nothing = [0; 16];
        // a client that is gone is seen by the end of its side
        if let Ok(read) = tokio::time::timeout(gap, stream.read(&mut nothing)).await
            && read? == 0
        {
            return Err(std::io::ErrorKind::ConnectionAborted.into());
        }
    }
    Ok(())
}

/// A port that was free a moment ago.
pub fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A provider with three attempts.
pub fn open_ai(name: &str, base_url: &str) -> OpenAiConfig {
    OpenAiConfig {
        name: name.into(),
        base_url: base_url.into(),
        replicas: Vec::new(),
        model: "upstream-model".into(),
        api_key_file: None,
        limits: CallLimits { concurrency: 16, deadline_ms: 5000, attempts: 3, ..CallLimits::default() },
    }
}

/// A folder with a gateway's configuration.
pub struct World {
    pub folder: tempfile::TempDir,
    pub config: GatewayConfig,
}

impl World {
    /// One OpenAI-compatible provider called `up`, a cache, both fronts.
    pub fn new(base_url: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let config = GatewayConfig {
            runtime: Runtime {
                name: "gateway".into(),
                state_dir: path("state"),
                progress: Some(path("progress.json")),
                result: None,
                admin: None,
                threads: None,
                termination_message: None,
                attempt: None,
                operator: None,
                team: None,
            },
            grpc: free_port(),
            http: Some(free_port()),
            providers: vec![ProviderConfig::OpenAi(open_ai("up", base_url))],
            cache: Some(path("answers.redb")),
            cache_mode: CacheMode::ReadWrite,
            templates: std::collections::BTreeMap::new(),
            fallbacks: std::collections::BTreeMap::new(),
            second_judges: std::collections::BTreeMap::new(),
            calibrations: std::collections::BTreeMap::new(),
            caller_tokens: None,
            tokens: std::collections::BTreeMap::new(),
            tokens_only: false,
            budgets: Vec::new(),
            allow_addresses: vec!["127.0.0.0/8".into()],
            body_limit: 1 << 20,
        };
        Self { folder, config }
    }

    /// The OpenAI-compatible provider at a place.
    pub fn provider(&mut self, at: usize) -> &mut OpenAiConfig {
        match &mut self.config.providers[at] {
            ProviderConfig::OpenAi(config) => config,
            other => panic!("{other:?}"),
        }
    }

    /// An address of the OpenAI-compatible front.
    pub fn front(&self, path: &str) -> String {
        format!("http://{}{path}", self.config.http.unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command(&self) -> Command {
        let file = self.path("gateway.yaml");
        s3_config::save(&file, &self.config).unwrap();
        serve_command(&file)
    }

    /// Starts the gateway and waits until it is ready.
    pub fn start(&self) -> Process {
        self.start_with(self.command())
    }

    /// Like [`Self::start`] with a command of one's own.
    pub fn start_with(&self, mut command: Command) -> Process {
        command.stderr(Stdio::piped());
        self.spawn(command)
    }

    /// The same with the log in a file: a pipe that nobody reads holds 64 KiB.
    pub fn start_logging(&self, mut command: Command, log: &Path) -> Process {
        command.stderr(std::fs::File::create(log).unwrap());
        self.spawn(command)
    }

    fn spawn(&self, mut command: Command) -> Process {
        let _ = std::fs::remove_file(self.path("progress.json"));
        let child = command.spawn().unwrap();
        let mut process = Process { child };
        let progress = self.path("progress.json");
        let until = Instant::now() + Duration::from_secs(60);
        while !s3_telemetry::read_progress(&progress).is_some_and(|report| report.ready) {
            if let Some(status) = process.child.try_wait().unwrap() {
                panic!("gateway ended with {status}: {}", process.stderr());
            }
            assert!(Instant::now() < until, "gateway is not ready after 60 s");
            std::thread::sleep(Duration::from_millis(20));
        }
        process
    }

    pub fn client(&self) -> GeneratorClient {
        GeneratorClient::new(&format!("http://{}", self.config.grpc), Duration::from_secs(60), 1).unwrap()
    }

    /// Runs a gateway that must end by itself: exit code and standard error.
    pub fn refused(&self) -> (i32, String) {
        end_of(self.command())
    }
}

pub fn serve_command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_s3-generator-gateway"));
    command.args(["serve", "--config"]).arg(config).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// Exit code and the last line of standard error, which must be the only error line.
pub fn end_of(mut command: Command) -> (i32, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert!(stderr.trim_end().ends_with(errors[0]), "{stderr}");
    (output.status.code().unwrap(), errors[0].to_owned())
}

/// A running gateway; killed when dropped.
pub struct Process {
    pub child: Child,
}

impl Process {
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to stop and waits: exit code and standard error.
    pub fn stop(mut self) -> (i32, String) {
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM).unwrap();
        let log = self.stderr();
        (self.child.wait().unwrap().code().unwrap(), log)
    }

    /// Waits for its own end: exit code and standard error.
    pub fn wait(mut self) -> (i32, String) {
        let log = self.stderr();
        (self.child.wait().unwrap().code().unwrap(), log)
    }

    fn stderr(&mut self) -> String {
        use std::io::Read;
        let mut text = String::new();
        if let Some(mut pipe) = self.child.stderr.take() {
            pipe.read_to_string(&mut text).unwrap();
        }
        text
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended already; that is what is wanted
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A batch of questions with one passage each.
pub fn request(questions: impl IntoIterator<Item = String>) -> v1::AnswerRequest {
    let items = questions
        .into_iter()
        .map(|question| v1::AnswerItem {
            question,
            passages: vec![v1::Passage { id: "1".into(), title: "T".into(), text: "Some words.".into() }],
        })
        .collect();
    v1::AnswerRequest { items, max_tokens: 8, ..v1::AnswerRequest::default() }
}

pub fn answer(result: &v1::AnswerResult) -> &v1::Answer {
    match result.outcome.as_ref().unwrap() {
        v1::answer_result::Outcome::Answer(answer) => answer,
        v1::answer_result::Outcome::Failure(failure) => panic!("failed: {failure:?}"),
    }
}

pub fn failure(result: &v1::AnswerResult) -> (v1::FailureKind, String) {
    match result.outcome.as_ref().unwrap() {
        v1::answer_result::Outcome::Failure(failure) => (failure.kind(), failure.message.clone()),
        v1::answer_result::Outcome::Answer(answer) => panic!("answered: {answer:?}"),
    }
}

/// A plain HTTP client; it never uses TLS here.
pub fn http() -> reqwest::Client {
    // a second call finds the provider installed
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap()
}

/// The text of a page.
pub async fn page(url: &str) -> (u16, String) {
    let response = http().get(url).send().await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}
