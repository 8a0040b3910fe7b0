//! A small world over real sockets: a retriever and a gateway with deterministic content, a tiny random model
//! with a byte-level tokenizer, and the real `s3-trainer` process.

use s3_proto::tonic::transport::Server;
use s3_proto::tonic::transport::server::TcpIncoming;
use s3_proto::tonic::{Request, Response, Status};
use s3_proto::v1;
use s3_search::Passage;
use s3_telemetry::Outcome;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

#[path = "../../../rollout/tests/support/tiny.rs"]
mod tiny;

use tiny::{write_model, write_model_that_says};

/// Passages of the fake corpus.
pub const PASSAGES: usize = 40;
/// Questions.
pub const QUESTIONS: usize = 24;

fn hash(parts: &[&str]) -> u64 {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let mut first = [0; 8];
    first.copy_from_slice(&hash.finalize()[..8]);
    u64::from_le_bytes(first)
}

pub fn passage(index: usize) -> Passage {
    Passage {
        id: index.to_string(),
        title: format!("T{index}"),
        text: format!("words of number {index} say answer{index}"),
    }
}

/// How the fake services behave; all of it is a function of content, except latency.
#[derive(Default)]
pub struct Behaviour {
    /// Largest artificial latency, milliseconds, drawn anew for every call.
    pub latency: AtomicU64,
    /// One in so many answers fails (by content); 0 none.
    pub failing: AtomicU64,
    /// Answers given.
    pub answered: AtomicUsize,
    /// Refuse every search as an outage.
    pub retriever_down: AtomicU64,
}

impl Behaviour {
    async fn wait(&self) {
        let limit = self.latency.load(Ordering::SeqCst);
        if limit > 0 {
            let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().subsec_nanos();
            tokio::time::sleep(Duration::from_millis(u64::from(nanos) / 997 % limit)).await;
        }
    }
}

struct FakeRetriever(Arc<Behaviour>);

#[s3_proto::tonic::async_trait]
impl v1::retriever_server::Retriever for FakeRetriever {
    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        self.0.wait().await;
        if self.0.retriever_down.load(Ordering::SeqCst) > 0 {
            return Err(Status::unavailable("down for the test"));
        }
        let request = request.into_inner();
        let rank = |query: &String| {
            let mut order: Vec<usize> = (0..PASSAGES).collect();
            order.sort_by_key(|index| hash(&["rank", query, &index.to_string()]));
            let hits = order.into_iter().take(request.top_k as usize).enumerate().map(|(place, index)| {
                let Passage { id, title, text } = passage(index);
                v1::Hit {
                    passage: Some(v1::Passage { id, title, text }),
                    score: 1.0 / (place + 1) as f64,
                    ..Default::default()
                }
            });
            v1::Hits { hits: hits.collect() }
        };
        let results = request.queries.iter().map(rank).collect();
        Ok(Response::new(v1::SearchResponse { results, index_digest: "fake-index".into(), ..Default::default() }))
    }

    async fn info(&self, _: Request<v1::RetrieverInfoRequest>) -> Result<Response<v1::RetrieverInfo>, Status> {
        Ok(Response::new(v1::RetrieverInfo { index_digest: "fake-index".into(), ..Default::default() }))
    }
}

struct FakeGenerator(Arc<Behaviour>);

#[s3_proto::tonic::async_trait]
impl v1::generator_server::Generator for FakeGenerator {
    async fn answer(&self, request: Request<v1::AnswerRequest>) -> Result<Response<v1::AnswerResponse>, Status> {
        self.0.wait().await;
        let failing = self.0.failing.load(Ordering::SeqCst);
        let results = request
            .into_inner()
            .items
            .iter()
            .map(|item| {
                let ids: Vec<&str> = item.passages.iter().map(|passage| passage.id.as_str()).collect();
                let key = hash(&["answer", &item.question, &ids.join(",")]);
                let outcome = if failing > 0 && (key / 7).is_multiple_of(failing) {
                    v1::answer_result::Outcome::Failure(v1::Failure {
                        kind: i32::from(v1::FailureKind::FailureUnavailable),
                        message: "lost for the test".into(),
                    })
                } else {
                    self.0.answered.fetch_add(1, Ordering::SeqCst);
                    // the last word of one of the passages
                    let text = item.passages.get(key as usize % item.passages.len().max(1)).map(|p| p.text.as_str());
                    let word = text.unwrap_or("nothing").split(' ').next_back().unwrap_or_default();
                    v1::answer_result::Outcome::Answer(v1::Answer { text: word.into(), ..Default::default() })
                };
                v1::AnswerResult { outcome: Some(outcome) }
            })
            .collect();
        Ok(Response::new(v1::AnswerResponse { results }))
    }

    async fn complete(&self, request: Request<v1::CompleteRequest>) -> Result<Response<v1::CompleteResponse>, Status> {
        self.0.wait().await;
        let turn = |item: &v1::CompleteItem| {
            self.0.answered.fetch_add(1, Ordering::SeqCst);
            let texts: Vec<&str> = item.messages.iter().map(|message| message.text.as_str()).collect();
            let outcome = v1::answer_result::Outcome::Answer(v1::Answer { text: turn(&texts), ..Default::default() });
            v1::AnswerResult { outcome: Some(outcome) }
        };
        let results = request.into_inner().items.iter().map(turn).collect();
        Ok(Response::new(v1::CompleteResponse { results }))
    }

    async fn judge(&self, _: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeResponse>, Status> {
        Err(Status::invalid_argument("this test has no judge"))
    }

    async fn info(&self, _: Request<v1::GeneratorInfoRequest>) -> Result<Response<v1::GeneratorInfo>, Status> {
        Ok(Response::new(v1::GeneratorInfo { digest: "fake-generator".into(), ..Default::default() }))
    }
}

/// A turn of whatever protocol the conversation is of; without its stop string, as servers give it back.
fn turn(texts: &[&str]) -> String {
    let all = texts.join("\n");
    let (number, first) = (hash(texts) % PASSAGES as u64, hash(texts).is_multiple_of(2));
    if all.contains("one sentence") {
        if first { format!("Number {number} is one.") } else { format!("So the answer is: answer{number}.") }
    } else if all.contains("<search>") && first {
        format!("<search>fact {number}")
    } else {
        format!("Step by step. <answer>answer{number}")
    }
}

/// The services, a folder with model, corpus and questions, and configurations for them.
pub struct World {
    pub dir: tempfile::TempDir,
    pub behaviour: Arc<Behaviour>,
    pub address: String,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    pub fn start() -> Self {
        Self::with(write_model)
    }

    /// With a model that has other turns as single tokens.
    #[allow(dead_code)] // not every test file needs it
    pub fn start_saying(phrases: &[&str]) -> Self {
        Self::with(|folder| write_model_that_says(folder, phrases))
    }

    fn with(model: impl Fn(&Path)) -> Self {
        let behaviour = Arc::new(Behaviour::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let retriever = v1::retriever_server::RetrieverServer::new(FakeRetriever(behaviour.clone()));
        let generator = v1::generator_server::GeneratorServer::new(FakeGenerator(behaviour.clone()));
        runtime.spawn(
            Server::builder()
                .add_service(retriever)
                .add_service(generator)
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        let dir = tempfile::tempdir().unwrap();
        model(&dir.path().join("model"));
        write_data(dir.path());
        Self { dir, behaviour, address, _runtime: runtime }
    }

    /// A configuration under `name`, with lines of `more` laid over the defaults of the test.
    pub fn config(&self, name: &str, more: &str) -> PathBuf {
        let (root, address) = (self.dir.path().display(), &self.address);
        let text = format!(
            "runtime: {{name: {name}, stateDir: {root}/{name}/state, result: {root}/{name}/result.json, threads: 1}}\n\
             seed: 11\n\
             searcher: {{path: {root}/model, device: Cpu}}\n\
             lora: {{rank: 4, alpha: 8}}\n\
             retriever: {{address: '{address}', deadlineMs: 20000, attempts: 2}}\n\
             generator: {{endpoint: {{address: '{address}', deadlineMs: 20000, attempts: 2}}, chunk: 5}}\n\
             data: {{datasets: [{{name: d, path: {root}/questions.jsonl}}], corpus: {root}/corpus.jsonl}}\n\
             baselineStore: {root}/{name}/baseline\n\
             search: {{maxSearches: 1, topK: 3, initialTopK: 3, turnTokens: 12, contextTokens: 900, passageTokens: 64, observationTokens: 400}}\n\
             optimizer: {{learningRate: 0.01}}\n\
             checkpoint: {{dir: {root}/{name}/checkpoints, every: 2, keep: 2}}\n\
             export: {root}/{name}/adapter\n\
             {more}\n"
        );
        let path = self.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The same as one try of several.
    #[allow(dead_code)] // not every test file needs it
    pub fn attempt(&self, name: &str, epoch: u32, more: &str) -> PathBuf {
        let path = self.config(name, more);
        let text = std::fs::read_to_string(&path).unwrap();
        let root = self.dir.path().display();
        let told = format!("threads: 1, terminationMessage: {root}/{name}/message, attempt: {{epoch: {epoch}}}}}");
        assert!(text.contains("threads: 1}"));
        std::fs::write(&path, text.replace("threads: 1}", &told)).unwrap();
        path
    }

    pub fn outcome(&self, name: &str) -> Outcome {
        let path = self.dir.path().join(name).join("result.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

/// The real program.
pub fn program(command: &str, config: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_s3-trainer"));
    program.args([command, "--config"]).arg(config).env("RUST_LOG", "warn");
    program
}

/// Starts the real program.
pub fn spawn(command: &str, config: &Path) -> Child {
    program(command, config).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// One episode again: exit code, standard output, standard error.
#[allow(dead_code)] // not every test file needs it
pub fn replay(config: &Path, episode: &str) -> (i32, String, String) {
    let output = program("replay", config).args(["--episode", episode]).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Runs it to its end: exit code, standard output, standard error.
pub fn run(command: &str, config: &Path) -> (i32, String, String) {
    let output = spawn(command, config).wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn write_data(root: &Path) {
    let corpus: Vec<String> = (0..PASSAGES).map(|i| serde_json::to_string(&passage(i)).unwrap()).collect();
    std::fs::write(root.join("corpus.jsonl"), corpus.join("\n")).unwrap();
    let questions: Vec<String> = (0..QUESTIONS)
        .map(|i| {
            // about half of all answers are right
            let golds: Vec<String> = (0..PASSAGES)
                .filter(|p| hash(&["gold", &i.to_string(), &p.to_string()]).is_multiple_of(2))
                .map(|p| format!("answer{p}"))
                .collect();
            serde_json::json!({"id": format!("q{i}"), "question": format!("what is fact {i}"), "answers": golds})
                .to_string()
        })
        .collect();
    std::fs::write(root.join("questions.jsonl"), questions.join("\n")).unwrap();
}
