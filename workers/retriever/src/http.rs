//! `POST /retrieve` and `POST /rerank` with the s3 reference's shapes, and health.
//!
//! Repaired against the reference: `return_scores: false` answers what it was meant to, an empty list of queries gives
//! an empty result, each query is paired with its own documents only, and whatever cannot be answered is a 4xx that says
//! why.

use crate::engine::{Engine, Reply, Search, SearchError};
use crate::gate::{BODY_LIMIT, Gate, Refusal, count_refusal, refuse};
use crate::live::Live;
use crate::rerank::rendered;
use crate::splice;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State, rejection::BytesRejection};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Passages that the reference's combined server hands out.
const TOP_RERANKED: u64 = 3;

#[derive(Deserialize)]
pub(crate) struct Retrieve {
    pub queries: Vec<String>,
    #[serde(default)]
    pub topk: Option<u64>,
    #[serde(default)]
    pub return_scores: bool,
    /// The combined server's: either of these asks for it.
    #[serde(default)]
    pub topk_retrieval: Option<u64>,
    #[serde(default)]
    pub topk_rerank: Option<u64>,
}

/// What a request for passages looks like, for messages.
pub(crate) const RETRIEVE_FORM: &str = r#"{"queries": [string], "topk": integer or null, "return_scores": boolean}"#;

#[derive(Deserialize)]
struct Rerank {
    queries: Vec<String>,
    documents: Vec<Vec<Value>>,
    #[serde(default, rename = "rerank_topk")]
    topk: Option<usize>,
    #[serde(default)]
    return_scores: bool,
}

/// What the routes share.
pub struct Front {
    /// The engine of now.
    pub live: Arc<Live>,
    /// What requests pass.
    pub gate: Gate,
}

/// The routes over the engine of now.
pub fn router(front: Front) -> Router {
    Router::new()
        .route("/retrieve", post(retrieve))
        .route("/rerank", post(rerank))
        .route("/health", get(health))
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Arc::new(front))
}

async fn health(State(front): State<Arc<Front>>) -> Json<Value> {
    let engine = front.live.engine();
    let index = engine.index();
    Json(json!({"status": "healthy", "index": index.digest, "passages": index.passages.len()}))
}

async fn retrieve(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let started = Instant::now();
    let request: Retrieve = match front.gate.parse(&headers, &body, RETRIEVE_FORM) {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    let engine = front.live.engine();
    let combined = request.topk_retrieval.is_some() || request.topk_rerank.is_some();
    let search = Search {
        queries: request.queries,
        top_k: if combined { request.topk_rerank.unwrap_or(TOP_RERANKED) } else { request.topk.unwrap_or(0) },
        rerank: combined.then_some(true),
        ..Search::default()
    };
    let reply = match front.gate.within(&headers, engine.search(search)).await {
        Ok(reply) => reply,
        Err(refusal) => return *refusal,
    };
    let response = match write(&engine, &reply, request.return_scores, combined) {
        Some(body) => answered(body, &engine, &reply, started.elapsed()),
        None => refuse(StatusCode::INTERNAL_SERVER_ERROR, "a stored passage is damaged; build the index again"),
    };
    let seconds = started.elapsed().as_secs_f64();
    let label = engine.method().label();
    s3_telemetry::metrics().retriever_seconds.with_label_values(&["http", label]).observe(seconds);
    response
}

fn answered(body: Vec<u8>, engine: &Engine, reply: &Reply, total: Duration) -> Response {
    let parts = reply.timing.parts().into_iter().filter(|(_, time)| !time.is_zero());
    response(body, &engine.index().digest, parts.chain([("total", total)]))
}

/// A reply with its index and where the time went.
pub(crate) fn response(body: Vec<u8>, digest: &str, parts: impl Iterator<Item = (&'static str, Duration)>) -> Response {
    let mut timing = String::with_capacity(128);
    for (name, time) in parts {
        // Writing into a String cannot fail.
        let micros = time.as_micros();
        let _ = write!(timing, "{name};dur={}.{:03},", micros / 1000, micros % 1000);
    }
    timing.pop();
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [("server-timing", timing.as_str()), ("x-index-digest", digest)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// `{"result": …}`: per query its hits, documents (or their contents) with their scores when asked for. None when a
/// stored passage is not one.
fn write(engine: &Engine, reply: &Reply, scores: bool, contents: bool) -> Option<Vec<u8>> {
    let passages = &engine.index().passages;
    let lines = || reply.results.iter().flat_map(|list| list.iter().map(|one| passages.line(one.position as usize)));
    let size: usize = lines().map(|line| 2 * line.len() + 96).sum();
    let mut out = Vec::with_capacity(size + 64);
    let document = if contents { splice::contents } else { splice::document };
    out.extend_from_slice(br#"{"result":["#);
    for (number, list) in reply.results.iter().enumerate() {
        out.extend_from_slice(if number == 0 { b"[" } else { b",[" });
        for (place, hit) in list.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            let line = passages.line(hit.position as usize);
            if scores {
                out.extend_from_slice(br#"{"document":"#);
                document(line, &mut out).then_some(())?;
                out.extend_from_slice(br#","score":"#);
                serde_json::to_writer(&mut out, &hit.score).ok()?;
                out.push(b'}');
            } else {
                document(line, &mut out).then_some(())?;
            }
        }
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    Some(out)
}

async fn rerank(State(front): State<Arc<Front>>, headers: HeaderMap, body: Result<Bytes, BytesRejection>) -> Response {
    let started = Instant::now();
    let form = r#"{"queries": [string], "documents": [[{"contents": string}]], "rerank_topk": integer, "return_scores": boolean}"#;
    let reranked = async {
        let request: Rerank = front.gate.parse(&headers, &body, form)?;
        let engine = front.live.engine();
        let asked = pairs(&request, &engine).map_err(|reason| {
            count_refusal("rerank");
            refuse(StatusCode::BAD_REQUEST, &reason)
        })?;
        let top = request.topk.filter(|top| *top > 0).unwrap_or(TOP_RERANKED as usize);
        let work = engine.on_threads(move |engine| {
            let Some(reranker) = engine.reranker() else { return Ok(Vec::new()) };
            let one = |(query, texts): (String, Vec<String>)| {
                let scores = reranker.scores(&query, &texts)?;
                let mut order: Vec<(f32, String)> = scores.into_iter().zip(texts).collect();
                // equal scores keep the caller's order
                order.sort_by(|a, b| b.0.total_cmp(&a.0));
                order.truncate(top);
                Ok(order)
            };
            asked.into_iter().map(one).collect::<crate::Result<Vec<_>>>()
        });
        let scores = request.return_scores;
        let found = front.gate.within(&headers, async { work.await?.map_err(SearchError::from) }).await?;
        let entry = |(score, text): (f32, String)| {
            if scores { json!({"document": text, "score": f64::from(score)}) } else { Value::String(text) }
        };
        let result: Vec<Vec<Value>> = found.into_iter().map(|list| list.into_iter().map(entry).collect()).collect();
        Ok::<Response, Refusal>(Json(json!({ "result": result })).into_response())
    };
    let response = reranked.await.unwrap_or_else(|refusal| *refusal);
    let seconds = started.elapsed().as_secs_f64();
    s3_telemetry::metrics().retriever_seconds.with_label_values(&["http", "rerank"]).observe(seconds);
    response
}

/// The texts to score for every query, or what is wrong with the request.
fn pairs(request: &Rerank, engine: &Engine) -> Result<Vec<(String, Vec<String>)>, String> {
    if engine.reranker().is_none() {
        return Err("this server has no reranker".to_owned());
    }
    if request.queries.len() != request.documents.len() {
        let (queries, lists) = (request.queries.len(), request.documents.len());
        return Err(format!("{queries} queries and {lists} lists of documents; one list a query is needed"));
    }
    if request.queries.len() > engine.queries_limit() {
        return Err(format!("at most {} queries are accepted", engine.queries_limit()));
    }
    let text = |document: &Value| {
        let inner = document.get("document").unwrap_or(document);
        let part = |name: &str| inner.get(name).and_then(Value::as_str);
        match (inner.as_str().or(part("contents")), part("text")) {
            (Some(contents), _) => {
                let (first, rest) = contents.split_once('\n').unwrap_or(("", contents));
                Ok(rendered(first.trim_matches('"'), rest))
            }
            (None, Some(text)) => Ok(rendered(part("title").unwrap_or_default(), text)),
            _ => Err("a document has neither contents nor text".to_owned()),
        }
    };
    let one = |(query, documents): (&String, &Vec<Value>)| {
        Ok((query.clone(), documents.iter().map(text).collect::<Result<Vec<_>, String>>()?))
    };
    request.queries.iter().zip(&request.documents).map(one).collect()
}
