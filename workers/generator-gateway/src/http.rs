//! The OpenAI-compatible front: `POST /v1/chat/completions`, `GET /v1/models`, `GET /healthz`.
//!
//! One choice, no streaming, no tools: what cannot be honoured is refused by name, never dropped.

use crate::engine::{Gateway, GatewayError};
use crate::http_wire::{ApiError, Request, completion, models};
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;

/// The front's routes over a gateway; bodies above `body_limit` bytes are refused.
pub fn router(gateway: Arc<Gateway>, body_limit: usize) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/models", get(list))
        .route("/healthz", get(|| async { "ok" }))
        .fallback(|| async { ApiError::not_found("there is no such path; use /v1/chat/completions or /v1/models") })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, "this path has another method")
        })
        .layer(DefaultBodyLimit::max(body_limit))
        .with_state(gateway)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        json(self.status, &self.body())
    }
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn list(State(gateway): State<Arc<Gateway>>) -> Response {
    json(StatusCode::OK, &models(gateway.lanes().iter().map(|lane| lane.provider().name())))
}

async fn chat(State(gateway): State<Arc<Gateway>>, body: Result<Bytes, BytesRejection>) -> Result<Response, ApiError> {
    let body = body.map_err(|e| ApiError::new(e.status(), "invalid_request_error", None, e.body_text()))?;
    let request = Request::read(&body)?;
    let (model, call) = request.into_call()?;
    // an empty name is the gRPC callers' way to say "the first"; here a model must be named
    let lane = if model.is_empty() {
        Err(ApiError::model_not_found(&model))
    } else {
        gateway.lane(&model).map_err(|_| ApiError::model_not_found(&model))
    }?
    .clone();
    let answers = gateway.complete(&lane, vec![call]).await.map_err(|e| internal(&e))?;
    let Some(answer) = answers.into_iter().next() else {
        return Err(ApiError::internal("no outcome"));
    };
    match answer {
        Ok(answered) => Ok(json(StatusCode::OK, &completion(&model, &answered))),
        Err(failure) => Err(ApiError::from_failure(&failure)),
    }
}

fn internal(error: &GatewayError) -> ApiError {
    match error {
        GatewayError::Cache(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", None, error.to_string())
        }
        _ => ApiError::internal(error.to_string()),
    }
}
