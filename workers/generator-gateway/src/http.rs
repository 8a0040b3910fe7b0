//! The OpenAI-compatible front: `POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models`,
//! `GET /v1/usage`, `GET /healthz`.
//!
//! One choice, no tools: what cannot be honoured is refused by name, never dropped.

use crate::access::{Access, Denied};
use crate::engine::{Ask, Gateway, GatewayError, Lane};
use crate::http_stream::{Body, End};
use crate::http_wire::{ApiError, Events, Manner, Request, completion, models};
use crate::provider::Call;
use crate::remote::DEADLINE_HEADER;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// What a caller calls itself, where no tokens are configured.
const CALLER_HEADER: &str = "x-s3-caller";
/// Pieces that wait for a slow client before the provider does.
const PIECES: usize = 64;

struct Front {
    gateway: Arc<Gateway>,
    access: Arc<Access>,
    streams: AtomicU64,
}

/// The front's routes over a gateway; bodies above `body_limit` bytes are refused.
pub fn router(gateway: Arc<Gateway>, access: Arc<Access>, body_limit: usize) -> Router {
    let front = Arc::new(Front { gateway, access, streams: AtomicU64::new(0) });
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(text))
        .route("/v1/models", get(list))
        .route("/v1/usage", get(usage))
        .route("/healthz", get(|| async { "ok" }))
        .fallback(|| async {
            ApiError::not_found("there is no such path; use /v1/chat/completions, /v1/completions or /v1/models")
        })
        .method_not_allowed_fallback(|| async {
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, "this path has another method")
        })
        .layer(DefaultBodyLimit::max(body_limit))
        .with_state(front)
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json(self.status, self.body().to_string());
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}

fn json(status: StatusCode, body: String) -> Response {
    let mut response = Response::new(axum::body::Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Front {
    fn ask(&self, headers: &HeaderMap) -> Result<Ask, ApiError> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let caller = self.access.identify(authorization, text(CALLER_HEADER).unwrap_or(""));
        let caller = caller.map_err(|denied| {
            s3_telemetry::metrics().gateway_refused.with_label_values(&["identity"]).inc();
            let status = match denied {
                Denied::Unknown => StatusCode::UNAUTHORIZED,
                Denied::Foreign => StatusCode::FORBIDDEN,
                Denied::Name => StatusCode::BAD_REQUEST,
            };
            ApiError::new(status, "invalid_request_error", Some("invalid_api_key"), denied.to_string())
        })?;
        let left = text(DEADLINE_HEADER).and_then(|value| value.trim().parse::<u64>().ok());
        // a day is longer than any answer takes
        let deadline = left.map(|left| Instant::now() + Duration::from_millis(left.min(86_400_000)));
        Ok(Ask { caller, deadline })
    }

    async fn answer(
        &self,
        headers: &HeaderMap,
        body: Result<Bytes, BytesRejection>,
        chat: bool,
    ) -> Result<Response, ApiError> {
        let ask = self.ask(headers)?;
        let body = body.map_err(|e| ApiError::new(e.status(), "invalid_request_error", None, e.body_text()))?;
        let (model, call, manner) = Request::read(&body)?.into_call(chat)?;
        // an empty name is the gRPC callers' way to say "the first"; here a model must be named
        let lane = if model.is_empty() {
            Err(ApiError::model_not_found(&model))
        } else {
            self.gateway.lane(&model).map_err(|_| ApiError::model_not_found(&model))
        }?;
        if manner.stream {
            return self.stream(lane, model, call, ask, manner).await;
        }
        let answers = self.gateway.complete(lane, vec![call], &ask).await.map_err(|e| internal(&e))?;
        match answers.into_iter().next() {
            Some(Ok(answered)) => Ok(json(StatusCode::OK, completion(&model, &answered, chat))),
            Some(Err(failure)) => Err(ApiError::from_failure(&failure)),
            None => Err(ApiError::internal("no outcome")),
        }
    }

    async fn stream(
        &self,
        lane: &Arc<Lane>,
        model: String,
        call: Call,
        ask: Ask,
        manner: Manner,
    ) -> Result<Response, ApiError> {
        let (sender, mut pieces) = mpsc::channel(PIECES);
        let (tell, mut end) = oneshot::channel::<End>();
        let (gateway, lane) = (self.gateway.clone(), lane.clone());
        tokio::spawn(async move {
            match gateway.stream(&lane, call, &ask, sender).await {
                // a client that is gone is told nothing
                Ok(outcome) => drop(tell.send(outcome)),
                Err(error) => tracing::error!(%error, "a stream ended without outcome"),
            }
        });
        // what fails before the first piece is answered by a status
        let first = pieces.recv().await;
        let events = Events::new(&model, self.streams.fetch_add(1, Ordering::Relaxed), manner);
        let mut opening = events.open().unwrap_or_default();
        let mut ended = false;
        match first {
            Some(piece) => opening.push_str(&events.piece(&piece)),
            None => match (&mut end).await {
                Ok(Ok(answered)) => {
                    opening.push_str(&events.close(&answered.completion));
                    ended = true;
                }
                Ok(Err(failure)) => return Err(ApiError::from_failure(&failure)),
                Err(_) => return Err(ApiError::internal("no outcome")),
            },
        }
        let body = Body { events, first: Some(opening), pieces, end, ended };
        let mut response = Response::new(axum::body::Body::new(body));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }
}

async fn list(State(front): State<Arc<Front>>, headers: HeaderMap) -> Result<Response, ApiError> {
    front.ask(&headers)?;
    let names = front.gateway.lanes().iter().map(|lane| lane.provider().name());
    Ok(json(StatusCode::OK, models(names).to_string()))
}

async fn usage(State(front): State<Arc<Front>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let ask = front.ask(&headers)?;
    Ok(json(StatusCode::OK, front.gateway.ledger().report(&ask.caller).to_string()))
}

async fn chat(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    front.answer(&headers, body, true).await
}

async fn text(
    State(front): State<Arc<Front>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    front.answer(&headers, body, false).await
}

fn internal(error: &GatewayError) -> ApiError {
    match error {
        GatewayError::Cache(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", None, error.to_string())
        }
        _ => ApiError::internal(error.to_string()),
    }
}
