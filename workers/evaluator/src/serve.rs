//! `s3-evaluator serve`: a trained searcher behind HTTP.
//!
//! `POST /search` gathers passages, `POST /answer` answers from them, `POST /v1/chat/completions` does the same in the
//! form that OpenAI's clients speak (the last user message is the question). Questions that wait are searched for
//! together, as in training; one that finds the queue full is sent away with 429.

use crate::arms::{self, Arm, Gathered, Surroundings};
use crate::ask::{AskedTurn, NoChat, generator, retriever, searcher_arm, turns_of};
use crate::run::Run;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use s3_config::ServeConfig;
use s3_rollout::{AnswerOutcome, AnswerSource, ChatSource, GeneratorPeer};
use s3_search::{Passage, Question};
use s3_telemetry::{Failure, metrics};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Batches that may wait.
const WAITING: usize = 8;
/// Longest question, characters.
const LONGEST: usize = 4096;
/// How often the thread that computes looks whether it is asked to stop.
const LOOK: Duration = Duration::from_millis(200);

/// The body of `/search` and `/answer`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asking {
    question: String,
}

/// The reply of `/search`, and of `/answer` with the last two fields.
#[derive(Clone, Debug, Serialize)]
struct Found {
    question: String,
    turns: Vec<AskedTurn>,
    passages: Vec<Passage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    seconds: f64,
}

/// Why there is no reply.
#[derive(Clone, Debug)]
enum Refusal {
    /// Something that is needed is out of reach; trying again may help.
    Outage(String),
    /// The generator refused.
    Refused(String),
}

/// One question on its way.
struct Call {
    question: String,
    answer: bool,
    reply: oneshot::Sender<Result<Found, Refusal>>,
}

/// Serves until asked to stop.
pub fn serve(run: &Run, serve: &ServeConfig) -> Result<(), Failure> {
    let batch = serve.batch.max(1);
    let arm = searcher_arm(&run.config.arms, None, batch)?;
    let retriever = retriever(run)?;
    let generator = generator(run)?;
    let around = Surroundings {
        retriever: &retriever,
        chat: generator.as_ref().map_or(&NoChat as &dyn ChatSource, |generator| generator),
        passage_words: run.config.generator.passage_words,
        shutdown: &run.link.shutdown,
        seed: run.config.seed,
    };
    let mut arm = arms::open(&arm, around, Vec::new())?;
    let (calls, mut waiting) = mpsc::channel(batch * WAITING);
    let address = serve.http;
    let listener = run.link.handle.block_on(tokio::net::TcpListener::bind(address));
    let listener = listener.map_err(|error| Failure::input(format!("http {address}: {error}; choose a free port")))?;
    let address = listener.local_addr().map_err(Failure::internal)?;
    tracing::info!(%address, "serving");
    let shutdown = run.link.shutdown.clone();
    let server = run.link.handle.spawn(async move {
        let ends = async move { shutdown.wait().await };
        if let Err(error) = axum::serve(listener, routes(calls)).with_graceful_shutdown(ends).await {
            tracing::error!(%error, "HTTP server ended");
        }
    });
    run.ready();
    while let Some(round) = next_round(run, &mut waiting, batch) {
        answer_all(arm.as_mut(), generator.as_ref(), round);
    }
    run.link.handle.block_on(server).map_err(Failure::internal)
}

/// The questions that wait, at most a batch; none once everything is answered and the process is to stop.
fn next_round(run: &Run, waiting: &mut mpsc::Receiver<Call>, batch: usize) -> Option<Vec<Call>> {
    let mut round = Vec::new();
    loop {
        let next =
            run.link.handle.block_on(async { tokio::time::timeout(LOOK, waiting.recv_many(&mut round, batch)).await });
        match next {
            Ok(0) => return None,
            Ok(_) => return Some(round),
            Err(_) if run.link.shutdown.requested() => return None,
            Err(_) => {}
        }
    }
}

fn answer_all(arm: &mut dyn Arm, generator: Option<&GeneratorPeer>, round: Vec<Call>) {
    let started = Instant::now();
    // A caller that has gone needs nothing.
    let round: Vec<Call> = round.into_iter().filter(|call| !call.reply.is_closed()).collect();
    let questions: Vec<Question> = round
        .iter()
        .map(|call| Question {
            id: "ask".into(),
            dataset: "ask".into(),
            question: call.question.clone(),
            answers: Vec::new(),
        })
        .collect();
    let gathered = match arm.gather(0, &questions) {
        Ok(gathered) => gathered,
        Err(error) => {
            let refusal = Refusal::Outage(error.to_string());
            for call in round {
                let _ = call.reply.send(Err(refusal.clone()));
            }
            return;
        }
    };
    let wanted: Vec<(&Question, &Vec<Passage>)> = round
        .iter()
        .zip(&questions)
        .zip(&gathered)
        .filter(|((call, _), gathered)| call.answer && gathered.own.is_none())
        .map(|((_, question), gathered)| (question, &gathered.passages))
        .collect();
    let asked: Vec<(&Question, &[Passage])> =
        wanted.iter().map(|(question, passages)| (*question, passages.as_slice())).collect();
    let mut answers = match generator.filter(|_| !asked.is_empty()) {
        Some(generator) => {
            generator.answer(&asked).map(Vec::into_iter).map_err(|error| Refusal::Outage(error.to_string()))
        }
        None => Ok(Vec::new().into_iter()),
    };
    for (call, mut gathered) in round.into_iter().zip(gathered) {
        let own = gathered.own.take();
        let answer = match (&mut answers, call.answer) {
            (_, false) => Ok(None),
            (_, true) if own.is_some() => Ok(own),
            (Err(refusal), true) => Err(refusal.clone()),
            (Ok(answers), true) => match answers.next() {
                Some(AnswerOutcome::Answer(answer)) => Ok(Some(answer)),
                Some(AnswerOutcome::Failed { reason, outage: false }) => Err(Refusal::Refused(reason)),
                Some(AnswerOutcome::Failed { reason, outage: true }) => Err(Refusal::Outage(reason)),
                None => Err(Refusal::Outage("the generator gave no answer".into())),
            },
        };
        let Gathered { passages, episode, .. } = gathered;
        let reply = answer.map(|answer| Found {
            question: call.question,
            turns: turns_of(episode),
            passages,
            answer,
            seconds: started.elapsed().as_secs_f64(),
        });
        // A caller that has gone meanwhile misses nothing that anybody counts.
        let _ = call.reply.send(reply);
    }
}

fn routes(calls: mpsc::Sender<Call>) -> axum::Router {
    axum::Router::new()
        .route("/search", post(search))
        .route("/answer", post(answer))
        .route("/v1/chat/completions", post(chat))
        .with_state(calls)
}

fn error(status: StatusCode, message: &str) -> Response {
    metrics().searcher_requests.with_label_values(&[status.as_str()]).inc();
    (status, Json(json!({ "error": { "message": message, "code": status.as_u16() } }))).into_response()
}

async fn call(calls: &mpsc::Sender<Call>, question: String, answer: bool) -> Result<Found, Response> {
    let question = question.trim().to_owned();
    if question.is_empty() || question.chars().count() > LONGEST {
        return Err(error(StatusCode::BAD_REQUEST, &format!("a question has 1 to {LONGEST} characters")));
    }
    let (reply, replied) = oneshot::channel();
    if calls.try_send(Call { question, answer, reply }).is_err() {
        let mut response = error(StatusCode::TOO_MANY_REQUESTS, "too many questions wait; try again");
        response.headers_mut().insert("retry-after", axum::http::HeaderValue::from_static("1"));
        return Err(response);
    }
    match replied.await {
        Ok(Ok(found)) => {
            metrics().searcher_requests.with_label_values(&["200"]).inc();
            metrics().searcher_seconds.with_label_values::<&str>(&[]).observe(found.seconds);
            Ok(found)
        }
        Ok(Err(Refusal::Outage(reason))) => Err(error(StatusCode::SERVICE_UNAVAILABLE, &reason)),
        Ok(Err(Refusal::Refused(reason))) => Err(error(StatusCode::BAD_GATEWAY, &reason)),
        Err(_) => Err(error(StatusCode::SERVICE_UNAVAILABLE, "the server stops; ask another")),
    }
}

async fn search(State(calls): State<mpsc::Sender<Call>>, Json(asking): Json<Asking>) -> Response {
    call(&calls, asking.question, false).await.map_or_else(|refusal| refusal, |found| Json(found).into_response())
}

async fn answer(State(calls): State<mpsc::Sender<Call>>, Json(asking): Json<Asking>) -> Response {
    call(&calls, asking.question, true).await.map_or_else(|refusal| refusal, |found| Json(found).into_response())
}

/// The part of a chat request that matters here; sampling is the server's.
#[derive(Deserialize)]
struct Chat {
    #[serde(default)]
    model: String,
    messages: Vec<Message>,
    #[serde(default)]
    stream: bool,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    content: Value,
}

async fn chat(State(calls): State<mpsc::Sender<Call>>, Json(chat): Json<Chat>) -> Response {
    if chat.stream {
        return error(StatusCode::BAD_REQUEST, "answers are short and not streamed; leave `stream` out");
    }
    let last = chat.messages.iter().rev().find(|message| message.role == "user");
    let Some(question) = last.and_then(|message| message.content.as_str()) else {
        return error(StatusCode::BAD_REQUEST, "the last user message, as text, is the question; there is none");
    };
    let found = match call(&calls, question.to_owned(), true).await {
        Ok(found) => found,
        Err(refusal) => return refusal,
    };
    let created = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
    Json(json!({
        "id": format!("s3-{created}"),
        "object": "chat.completion",
        "created": created,
        "model": chat.model,
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": found.answer },
            "finish_reason": "stop",
        }],
        "s3": { "passages": found.passages, "turns": found.turns },
    }))
    .into_response()
}
