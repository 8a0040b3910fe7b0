//! `POST /retrieve` and `POST /rerank` with the s3 reference's shapes, and health.
//!
//! Repaired against the reference: `return_scores: false` answers what it was meant to, an empty list of queries gives
//! an empty result, each query is paired with its own documents only, and whatever cannot be answered is a 4xx that says
//! why.

use crate::access::{Access, DENIED};
use crate::engine::{Engine, Reply, Search, SearchError};
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

/// Largest accepted body, bytes: 4,096 queries of two kilobytes.
const BODY_LIMIT: usize = 8 << 20;
/// A caller's own deadline, milliseconds.
const TIMEOUT: &str = "x-timeout-ms";
/// Passages that the reference's combined server hands out.
const TOP_RERANKED: u64 = 3;

#[derive(Deserialize)]
struct Retrieve {
    queries: Vec<String>,
    #[serde(default)]
    topk: Option<u64>,
    #[serde(default)]
    return_scores: bool,
    /// The combined server's: either of these asks for it.
    #[serde(default)]
    topk_retrieval: Option<u64>,
    #[serde(default)]
    topk_rerank: Option<u64>,
}

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
    /// Who may ask.
    pub access: Arc<Access>,
    /// The longest that a request may take.
    pub deadline: Duration,
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

fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({"error": reason}))).into_response()
}

fn count_refusal(reason: &str) {
    s3_telemetry::metrics().retriever_refused.with_label_values(&[reason]).inc();
}

/// Why a request has no result.
type Refusal = Box<Response>;

impl Front {
    /// The request's body as `T`, when the caller may ask.
    fn parse<'a, T: Deserialize<'a>>(
        &self,
        headers: &HeaderMap,
        body: &'a Result<Bytes, BytesRejection>,
        form: &str,
    ) -> Result<T, Refusal> {
        if !self.access.allows(headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes)) {
            return Err(refuse(StatusCode::UNAUTHORIZED, DENIED).into());
        }
        let body = body.as_ref().map_err(|rejection| {
            count_refusal("body");
            let reason = format!("the body cannot be read or is larger than {BODY_LIMIT} bytes");
            refuse(rejection.status(), &reason)
        })?;
        serde_json::from_slice(body).map_err(|error| {
            count_refusal("body");
            refuse(StatusCode::BAD_REQUEST, &format!("{error}; expected {form}")).into()
        })
    }

    /// Runs a request's work within its deadline and the server's limit of requests at once.
    async fn within<T>(
        &self,
        headers: &HeaderMap,
        work: impl Future<Output = Result<T, SearchError>>,
    ) -> Result<T, Refusal> {
        let _permit = self.live.admit().map_err(|reason| refuse(StatusCode::TOO_MANY_REQUESTS, &reason))?;
        let own = headers.get(TIMEOUT).map(|value| value.to_str().ok().and_then(|text| text.parse().ok()));
        let deadline = match own {
            None => self.deadline,
            Some(Some(millis)) => self.deadline.min(Duration::from_millis(millis)),
            Some(None) => {
                count_refusal("deadline");
                return Err(refuse(StatusCode::BAD_REQUEST, &format!("{TIMEOUT} is a number of milliseconds")).into());
            }
        };
        // the clock ticks in milliseconds; what is due at once would still get one
        if !deadline.is_zero()
            && let Ok(done) = tokio::time::timeout(deadline, work).await
        {
            return done.map_err(|error| match error {
                SearchError::Refused { message, .. } => refuse(StatusCode::BAD_REQUEST, &message).into(),
                SearchError::Failed(error) => {
                    tracing::error!(%error, "search failed");
                    refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()).into()
                }
            });
        }
        count_refusal("deadline");
        let reason = format!("not answered within {} ms", deadline.as_millis());
        Err(refuse(StatusCode::GATEWAY_TIMEOUT, &reason).into())
    }
}

async fn retrieve(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let started = Instant::now();
    let form = r#"{"queries": [string], "topk": integer or null, "return_scores": boolean}"#;
    let request: Retrieve = match front.parse(&headers, &body, form) {
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
    let reply = match front.within(&headers, engine.search(search)).await {
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
    let mut timing = String::with_capacity(128);
    let parts = reply.timing.parts().into_iter().filter(|(_, time)| !time.is_zero());
    for (name, time) in parts.chain([("total", total)]) {
        // Writing into a String cannot fail.
        let micros = time.as_micros();
        let _ = write!(timing, "{name};dur={}.{:03},", micros / 1000, micros % 1000);
    }
    timing.pop();
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [("server-timing", timing.as_str()), ("x-index-digest", &engine.index().digest)] {
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
        let request: Rerank = front.parse(&headers, &body, form)?;
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
        let found = front.within(&headers, async { work.await?.map_err(SearchError::from) }).await?;
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
