//! The OpenAI-compatible front: `POST /v1/chat/completions`, `POST /v1/completions`, `GET /v1/models`,
//! `GET /v1/usage`, `GET /healthz`.
//!
//! One choice, no tools: what cannot be honoured is refused by name, never dropped.

use crate::access::{Access, Denied};
use crate::engine::{Ask, Gateway, GatewayError, Lane};
use crate::http_stream::{End, Events as Stream};
use crate::http_wire::{ApiError, Events, Manner, Request, completion, models};
use crate::provider::Call;
use crate::remote::DEADLINE_HEADER;
use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// What a caller calls itself, where no tokens are configured.
const CALLER_HEADER: &str = "x-s3-caller";
/// Pieces that wait for a slow client before the provider does.
const PIECES: usize = 64;
/// Waited after a connection could not be taken (too many open files): trying at once would only burn a core.
const BREATH: Duration = Duration::from_millis(50);

/// A reply: whole, or piece by piece.
type Reply = Response<Either<Full<Bytes>, Stream>>;

/// The front over a gateway.
pub struct Front {
    gateway: Arc<Gateway>,
    access: Arc<Access>,
    body_limit: usize,
    streams: AtomicU64,
}

impl Front {
    /// Serves this gateway to these callers; bodies above `body_limit` bytes are refused.
    pub fn new(gateway: Arc<Gateway>, access: Arc<Access>, body_limit: usize) -> Arc<Self> {
        Arc::new(Self { gateway, access, body_limit, streams: AtomicU64::new(0) })
    }

    /// Serves connections until `stop`; requests in work then end first.
    pub async fn serve(self: Arc<Self>, listener: TcpListener, stop: impl Future<Output = ()>) {
        let connections = GracefulShutdown::new();
        tokio::pin!(stop);
        loop {
            let stream = tokio::select! {
                () = &mut stop => break,
                taken = listener.accept() => match taken {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "a connection was not taken");
                        tokio::time::sleep(BREATH).await;
                        continue;
                    }
                },
            };
            self.clone().connect(stream, &connections);
        }
        // nobody connects any more, and those connected are told
        drop(listener);
        connections.shutdown().await;
    }

    fn connect(self: Arc<Self>, stream: TcpStream, connections: &GracefulShutdown) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "small packets of a connection may wait");
        }
        let service = service_fn(move |request| {
            let front = self.clone();
            async move { Ok::<_, Infallible>(front.reply(request).await) }
        });
        // head and body of a reply are small: one copy costs less than a gathering write
        let connection = http1::Builder::new().writev(false).serve_connection(TokioIo::new(stream), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke");
            }
        });
    }

    async fn reply(&self, request: hyper::Request<Incoming>) -> Reply {
        let (head, body) = request.into_parts();
        let get = head.method == Method::GET;
        let made = match head.uri.path() {
            "/v1/chat/completions" if head.method == Method::POST => self.answer(&head.headers, body, true).await,
            "/v1/completions" if head.method == Method::POST => self.answer(&head.headers, body, false).await,
            "/v1/models" if get => self.list(&head.headers),
            "/v1/usage" if get => self.usage(&head.headers),
            "/healthz" if get => Ok(Response::new(Either::Left(Full::from("ok")))),
            "/v1/chat/completions" | "/v1/completions" | "/v1/models" | "/v1/usage" | "/healthz" => Err(wrong_method()),
            _ => Err(ApiError::not_found(
                "there is no such path; use /v1/chat/completions, /v1/completions or /v1/models",
            )),
        };
        made.unwrap_or_else(|error| refusal(&error))
    }

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

    async fn body(&self, body: Incoming) -> Result<Bytes, ApiError> {
        let whole = Limited::new(body, self.body_limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                let message = format!("the body is longer than {} bytes", self.body_limit);
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", None, message)
            } else {
                let message = format!("the body did not come whole: {error}");
                ApiError::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
            }
        })?;
        Ok(whole.to_bytes())
    }

    async fn answer(&self, headers: &HeaderMap, body: Incoming, chat: bool) -> Result<Reply, ApiError> {
        let ask = self.ask(headers)?;
        let body = self.body(body).await?;
        let (model, call, manner) = Request::read(&body)?.into_call(chat)?;
        drop(body);
        // an empty name is the gRPC callers' way to say "the first"; here a model must be named
        let lane = if model.is_empty() {
            Err(ApiError::model_not_found(&model))
        } else {
            self.gateway.lane(&model).map_err(|_| ApiError::model_not_found(&model))
        }?;
        if manner.stream {
            return self.stream(lane, model, call, ask, manner).await;
        }
        match self.gateway.complete_one(lane, call, &ask).await.map_err(|e| internal(&e))? {
            Ok(answered) => Ok(json(StatusCode::OK, completion(&model, &answered, chat))),
            Err(failure) => Err(ApiError::from_failure(&failure)),
        }
    }

    async fn stream(
        &self,
        lane: &Arc<Lane>,
        model: String,
        call: Call,
        ask: Ask,
        manner: Manner,
    ) -> Result<Reply, ApiError> {
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
        let stream = Stream { writer: events, first: Some(opening), pieces, end, ended };
        let mut response = Response::new(Either::Right(stream));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Ok(response)
    }

    fn list(&self, headers: &HeaderMap) -> Result<Reply, ApiError> {
        self.ask(headers)?;
        let names = self.gateway.lanes().iter().map(|lane| lane.provider().name());
        Ok(json(StatusCode::OK, models(names).to_string()))
    }

    fn usage(&self, headers: &HeaderMap) -> Result<Reply, ApiError> {
        let ask = self.ask(headers)?;
        Ok(json(StatusCode::OK, self.gateway.ledger().report(&ask.caller).to_string()))
    }
}

fn json(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut response = Response::new(Either::Left(Full::new(body.into())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refusal(error: &ApiError) -> Reply {
    let mut response = json(error.status, error.body().to_string());
    if let Some(seconds) = error.retry_after() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", None, "this path has another method")
}

fn internal(error: &GatewayError) -> ApiError {
    match error {
        GatewayError::Cache(_) => {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", None, error.to_string())
        }
        _ => ApiError::internal(error.to_string()),
    }
}
