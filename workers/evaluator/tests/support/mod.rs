//! A small world over real sockets: a retriever and a gateway with deterministic content, a tiny random model,
//! and the real `s3-evaluator` process.

use s3_proto::tonic::transport::Server;
use s3_proto::tonic::transport::server::TcpIncoming;
use s3_proto::tonic::{Request, Response, Status};
use s3_proto::v1;
use s3_telemetry::Outcome;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[path = "../../../rollout/tests/support/tiny.rs"]
mod tiny;

/// Passages of the fake corpus.
pub const PASSAGES: usize = 40;
/// Questions.
pub const QUESTIONS: usize = 22;

/// FNV-1a with a final mix: any function of content does.
fn hash(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let all = bytes.fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (all ^ (all >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7
}

fn passage(index: usize) -> v1::Passage {
    v1::Passage {
        id: index.to_string(),
        title: format!("T{index}"),
        text: format!("number {index} says answer{index}"),
    }
}

/// How the fake services behave, and what they saw.
#[derive(Default)]
pub struct Behaviour {
    /// Milliseconds that every answer takes.
    pub latency: AtomicU64,
    /// Answers from this one on are outages; 0 never.
    pub down_after: AtomicUsize,
    /// Passages per answered question (and how often it was answered with them).
    pub answered: Mutex<BTreeMap<(String, Vec<String>), usize>>,
    count: AtomicUsize,
}

struct FakeRetriever;

#[s3_proto::tonic::async_trait]
impl v1::retriever_server::Retriever for FakeRetriever {
    async fn search(&self, request: Request<v1::SearchRequest>) -> Result<Response<v1::SearchResponse>, Status> {
        let request = request.into_inner();
        let rank = |query: &String| {
            let mut order: Vec<usize> = (0..PASSAGES).collect();
            order.sort_by_key(|index| hash(&["rank", query, &index.to_string()]));
            let hits = order.into_iter().take(request.top_k as usize);
            v1::Hits {
                hits: hits
                    .map(|index| v1::Hit { passage: Some(passage(index)), score: 1.0, ..Default::default() })
                    .collect(),
            }
        };
        let results = request.queries.iter().map(rank).collect();
        Ok(Response::new(v1::SearchResponse { results, index_digest: "fake-index".into(), ..Default::default() }))
    }

    async fn info(&self, _: Request<v1::RetrieverInfoRequest>) -> Result<Response<v1::RetrieverInfo>, Status> {
        Ok(Response::new(v1::RetrieverInfo { index_digest: "fake-index".into(), ..Default::default() }))
    }
}

struct FakeGenerator(Arc<Behaviour>);

impl FakeGenerator {
    fn one(&self, item: &v1::AnswerItem) -> v1::answer_result::Outcome {
        let limit = self.0.down_after.load(Ordering::SeqCst);
        if limit > 0 && self.0.count.fetch_add(1, Ordering::SeqCst) >= limit {
            let kind = i32::from(v1::FailureKind::FailureUnavailable);
            return v1::answer_result::Outcome::Failure(v1::Failure { kind, message: "lost for the test".into() });
        }
        let ids: Vec<String> = item.passages.iter().map(|passage| passage.id.clone()).collect();
        let key = hash(&["answer", &item.question, &ids.join(",")]);
        let text = item.passages.get(key as usize % item.passages.len().max(1)).map(|passage| passage.text.as_str());
        *self.0.answered.lock().unwrap().entry((item.question.clone(), ids)).or_default() += 1;
        let word = text.unwrap_or("nothing").split(' ').next_back().unwrap_or_default();
        v1::answer_result::Outcome::Answer(v1::Answer { text: word.into(), ..Default::default() })
    }
}

impl FakeGenerator {
    /// A turn of whatever protocol the conversation is of; without its stop string, as servers give it back.
    fn goes_on(&self, item: &v1::CompleteItem) -> v1::answer_result::Outcome {
        let limit = self.0.down_after.load(Ordering::SeqCst);
        if limit > 0 && self.0.count.fetch_add(1, Ordering::SeqCst) >= limit {
            let kind = i32::from(v1::FailureKind::FailureUnavailable);
            return v1::answer_result::Outcome::Failure(v1::Failure { kind, message: "lost for the test".into() });
        }
        let texts: Vec<&str> = item.messages.iter().map(|message| message.text.as_str()).collect();
        let all = texts.join("\n");
        if all.contains("fact 7") && all.contains("JSON") {
            let kind = i32::from(v1::FailureKind::FailureRejected);
            return v1::answer_result::Outcome::Failure(v1::Failure { kind, message: "too long for the test".into() });
        }
        let mark = hash(&texts);
        let (number, first) = (mark % PASSAGES as u64, mark.is_multiple_of(2));
        let text = if all.contains("**Final Information**\n")
            || texts.last().is_some_and(|last| last.contains("Documents found"))
        {
            format!("I read.\n**Final Information**\nnumber {number} says answer{number}")
        } else if all.contains("begin_search_query") {
            if first { format!("<|begin_search_query|>fact {number}") } else { format!("so \\boxed{{answer{number}}}") }
        } else if all.contains("JSON") {
            format!("<answer>{{\"query\": \"fact {number}\"}}")
        } else if all.contains("one sentence") {
            if first { format!("Number {number} is one.") } else { format!("So the answer is: answer{number}.") }
        } else if all.contains("<search>") {
            if first { format!("<search>fact {number}") } else { format!("<answer>answer{number}") }
        } else {
            format!("Step by step. <answer>answer{number}")
        };
        v1::answer_result::Outcome::Answer(v1::Answer { text, completion_tokens: 7, ..Default::default() })
    }
}

#[s3_proto::tonic::async_trait]
impl v1::generator_server::Generator for FakeGenerator {
    async fn answer(&self, request: Request<v1::AnswerRequest>) -> Result<Response<v1::AnswerResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(self.0.latency.load(Ordering::SeqCst))).await;
        let outcomes = request.into_inner().items.iter().map(|item| self.one(item)).collect::<Vec<_>>();
        let results = outcomes.into_iter().map(|outcome| v1::AnswerResult { outcome: Some(outcome) }).collect();
        Ok(Response::new(v1::AnswerResponse { results }))
    }

    async fn complete(&self, request: Request<v1::CompleteRequest>) -> Result<Response<v1::CompleteResponse>, Status> {
        tokio::time::sleep(Duration::from_millis(self.0.latency.load(Ordering::SeqCst))).await;
        let outcomes = request.into_inner().items.iter().map(|item| self.goes_on(item)).collect::<Vec<_>>();
        let results = outcomes.into_iter().map(|outcome| v1::AnswerResult { outcome: Some(outcome) }).collect();
        Ok(Response::new(v1::CompleteResponse { results }))
    }

    async fn judge(&self, _: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeResponse>, Status> {
        Err(Status::invalid_argument("this test has no judge"))
    }

    async fn info(&self, _: Request<v1::GeneratorInfoRequest>) -> Result<Response<v1::GeneratorInfo>, Status> {
        Ok(Response::new(v1::GeneratorInfo { digest: "fake-generator".into(), ..Default::default() }))
    }
}

/// The services, a folder with model, corpus and questions, and configurations for them.
pub struct World {
    pub dir: tempfile::TempDir,
    pub behaviour: Arc<Behaviour>,
    address: String,
    _runtime: tokio::runtime::Runtime,
}

impl World {
    pub fn start() -> Self {
        let behaviour = Arc::new(Behaviour::default());
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(
            Server::builder()
                .add_service(v1::retriever_server::RetrieverServer::new(FakeRetriever))
                .add_service(v1::generator_server::GeneratorServer::new(FakeGenerator(behaviour.clone())))
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        let dir = tempfile::tempdir().unwrap();
        tiny::write_model(&dir.path().join("model"));
        write_data(dir.path());
        Self { dir, behaviour, address, _runtime: runtime }
    }

    /// A configuration under `name` of `size` questions, with lines of `more` added.
    pub fn config(&self, name: &str, size: usize, more: &str) -> PathBuf {
        let (root, address) = (self.dir.path().display(), &self.address);
        let text = format!(
            "runtime: {{name: {name}, stateDir: {root}/{name}/state, result: {root}/{name}/result.json, threads: 1}}\n\
             seed: 11\n\
             arms:\n\
             - {{name: direct, method: Direct}}\n\
             - {{name: same, method: SameBudgetRag, budgetFrom: s3}}\n\
             - {{name: rag, method: Rag, topK: 3}}\n\
             - name: s3\n\
             \x20 method: S3\n\
             \x20 searcher: {{path: {root}/model, device: Cpu}}\n\
             \x20 search: {{maxSearches: 1, topK: 3, initialTopK: 3, turnTokens: 12, contextTokens: 900, passageTokens: 64, observationTokens: 400}}\n\
             \x20 temperature: 1.0\n\
             \x20 batch: 2\n\
             datasets: [{{name: d, path: {root}/questions.jsonl}}]\n\
             sample: {{size: {size}, eligible: true, corpus: {root}/corpus.jsonl, exclude: [{root}/training.jsonl]}}\n\
             retriever: {{address: '{address}', deadlineMs: 20000, attempts: 2}}\n\
             generator: {{endpoint: {{address: '{address}', deadlineMs: 20000, attempts: 2}}, chunk: 3}}\n\
             chunk: 4\n\
             statistics: {{baseline: rag, resamples: 500, pairedAgainst: [rag, same]}}\n\
             report: {{path: {root}/{name}/report.html}}\n\
             output: {root}/{name}/results\n\
             {more}\n"
        );
        let path = self.dir.path().join(format!("{name}.yaml"));
        std::fs::write(&path, text).unwrap();
        path
    }

    pub fn outcome(&self, name: &str) -> Outcome {
        let path = self.dir.path().join(name).join("result.json");
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }
}

/// The real program.
pub fn program(arguments: &[&str], config: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_s3-evaluator"));
    program.arg(arguments[0]).arg("--config").arg(config).args(&arguments[1..]).env("RUST_LOG", "info");
    program
}

/// Starts the real program.
pub fn spawn(arguments: &[&str], config: &Path) -> Child {
    program(arguments, config).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Runs it to its end: exit code, standard output, standard error.
pub fn run(arguments: &[&str], config: &Path) -> (i32, String, String) {
    let output = spawn(arguments, config).wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

fn write_data(root: &Path) {
    let line = |value: serde_json::Value| value.to_string() + "\n";
    let corpus =
        (0..PASSAGES).map(passage).map(|p| line(serde_json::json!({"id": p.id, "title": p.title, "text": p.text})));
    std::fs::write(root.join("corpus.jsonl"), corpus.collect::<String>()).unwrap();
    let question = |at: usize| {
        let golds = (0..PASSAGES).filter(|p| hash(&["gold", &at.to_string(), &p.to_string()]).is_multiple_of(2));
        let golds: Vec<String> = golds.map(|p| format!("answer{p}")).collect();
        // ids repeat: files in the wild do that
        line(
            serde_json::json!({"id": format!("q{}", at / 2), "question": format!("what is fact {at}"), "answers": golds}),
        )
    };
    std::fs::write(root.join("questions.jsonl"), (0..QUESTIONS).map(question).collect::<String>()).unwrap();
    let training = line(serde_json::json!({"question": "What is FACT 5?", "answers": ["x"]}));
    std::fs::write(root.join("training.jsonl"), training).unwrap();
}
