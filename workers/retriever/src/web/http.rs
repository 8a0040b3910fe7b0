//! `POST /retrieve` of a web search, with the shapes of an index, and health.

use super::engine::{Found, WebSearch};
use super::grpc::score;
use crate::gate::{BODY_LIMIT, Gate, count_refusal, refuse};
use crate::http::{RETRIEVE_FORM, Retrieve, response};
use crate::splice;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State, rejection::BytesRejection};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// What the routes share.
pub struct WebFront {
    /// The search.
    pub web: Arc<WebSearch>,
    /// What requests pass.
    pub gate: Gate,
}

/// The routes over a web search.
pub fn router(front: WebFront) -> Router {
    Router::new()
        .route("/retrieve", post(retrieve))
        .route("/rerank", post(no_reranker))
        .route("/health", get(health))
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Arc::new(front))
}

async fn health(State(front): State<Arc<WebFront>>) -> Json<Value> {
    Json(json!({"status": "healthy", "index": front.web.digest(), "passages": 0}))
}

fn without_reranker() -> Response {
    count_refusal("rerank");
    refuse(StatusCode::BAD_REQUEST, "this server asks a web search and has no reranker")
}

async fn no_reranker(
    State(front): State<Arc<WebFront>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    match front.gate.parse::<Value>(&headers, &body, "a request") {
        Ok(_) => without_reranker(),
        Err(refusal) => *refusal,
    }
}

async fn retrieve(
    State(front): State<Arc<WebFront>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let started = Instant::now();
    let request: Retrieve = match front.gate.parse(&headers, &body, RETRIEVE_FORM) {
        Ok(request) => request,
        Err(refusal) => return *refusal,
    };
    if request.topk_retrieval.is_some() || request.topk_rerank.is_some() {
        return without_reranker();
    }
    let search = front.web.search(&request.queries, request.topk.unwrap_or(0));
    let (found, _) = match front.gate.within(&headers, search).await {
        Ok(found) => found,
        Err(refusal) => return *refusal,
    };
    let elapsed = started.elapsed();
    let reply = match write(&found, request.return_scores) {
        Some(body) => response(body, front.web.digest(), [("total", elapsed)].into_iter()),
        None => refuse(StatusCode::INTERNAL_SERVER_ERROR, "a result cannot be written as JSON"),
    };
    s3_telemetry::metrics().retriever_seconds.with_label_values(&["http", "web"]).observe(elapsed.as_secs_f64());
    reply
}

/// `{"result": …}` as an index answers it.
fn write(found: &[Found], scores: bool) -> Option<Vec<u8>> {
    let mut out = br#"{"result":["#.to_vec();
    for (number, list) in found.iter().enumerate() {
        out.extend_from_slice(if number == 0 { b"[" } else { b",[" });
        for (rank, entry) in list.iter().enumerate() {
            if rank > 0 {
                out.push(b',');
            }
            let line = serde_json::to_vec(entry).ok()?;
            if scores {
                out.extend_from_slice(br#"{"document":"#);
                splice::document(&line, &mut out).then_some(())?;
                out.extend_from_slice(br#","score":"#);
                serde_json::to_writer(&mut out, &score(rank)).ok()?;
                out.push(b'}');
            } else {
                splice::document(&line, &mut out).then_some(())?;
            }
        }
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    Some(out)
}
