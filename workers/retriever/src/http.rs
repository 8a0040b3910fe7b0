//! `POST /retrieve` with the s3 reference's shapes, and health.
//!
//! Repaired against the reference: `return_scores: false` answers what it was meant to, an empty list of
//! queries gives an empty result, and whatever cannot be answered is a 400 that says why.

use crate::corpus::contents;
use crate::engine::{Found, SearchError};
use crate::live::Live;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State, rejection::BytesRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

/// Largest accepted body, bytes: 4,096 queries of two kilobytes.
const BODY_LIMIT: usize = 8 << 20;

#[derive(Deserialize)]
struct Retrieve {
    queries: Vec<String>,
    #[serde(default)]
    topk: Option<u64>,
    #[serde(default)]
    return_scores: bool,
}

#[derive(Serialize)]
struct Document {
    id: String,
    contents: String,
    title: String,
    text: String,
}

/// The routes over the engine of now.
pub fn router(live: Arc<Live>) -> Router {
    Router::new()
        .route("/retrieve", post(retrieve))
        .route("/health", get(health))
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(live)
}

async fn health(State(live): State<Arc<Live>>) -> Json<Value> {
    let engine = live.engine();
    let index = engine.index();
    Json(json!({"status": "healthy", "index": index.digest, "passages": index.passages.len()}))
}

fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({"error": reason}))).into_response()
}

fn count_refusal(reason: &str) {
    s3_telemetry::metrics().retriever_refused.with_label_values(&[reason]).inc();
}

async fn retrieve(State(live): State<Arc<Live>>, body: Result<Bytes, BytesRejection>) -> Response {
    let started = Instant::now();
    let body = match body {
        Ok(body) => body,
        Err(rejection) => {
            count_refusal("body");
            let reason = format!("the body cannot be read or is larger than {BODY_LIMIT} bytes");
            return refuse(rejection.status(), &reason);
        }
    };
    let request: Retrieve = match serde_json::from_slice(&body) {
        Ok(request) => request,
        Err(error) => {
            count_refusal("body");
            let form = r#"expected {"queries": [string], "topk": integer or null, "return_scores": boolean}"#;
            return refuse(StatusCode::BAD_REQUEST, &format!("{error}; {form}"));
        }
    };
    let permit = match live.admit() {
        Ok(permit) => permit,
        Err(reason) => return refuse(StatusCode::TOO_MANY_REQUESTS, &reason),
    };
    let engine = live.engine();
    let label = engine.method().label();
    let searching = tokio::task::spawn_blocking(move || {
        // held for as long as the work goes on, even when the caller has gone
        let _permit = permit;
        engine
            .search(&request.queries, request.topk.unwrap_or(0), None)
            .map(|found| shape(found, request.return_scores))
    });
    let response = match searching.await {
        Ok(Ok(result)) => Json(json!({ "result": result })).into_response(),
        Ok(Err(SearchError::Refused { message, .. })) => refuse(StatusCode::BAD_REQUEST, &message),
        Ok(Err(SearchError::Failed(error))) => {
            tracing::error!(%error, "search failed");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string())
        }
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    };
    let seconds = started.elapsed().as_secs_f64();
    s3_telemetry::metrics().retriever_seconds.with_label_values(&["http", label]).observe(seconds);
    response
}

/// Per query its hits: documents, with their scores when asked for.
fn shape(found: Vec<Vec<Found>>, scores: bool) -> Vec<Vec<Value>> {
    let entry = |Found { passage, score }: Found| {
        let contents = contents(&passage);
        let document = Document { id: passage.id, contents, title: passage.title, text: passage.text };
        if scores { json!({"document": document, "score": score}) } else { json!(document) }
    };
    found.into_iter().map(|hits| hits.into_iter().map(entry).collect()).collect()
}
