//! What stands before every search, over HTTP and gRPC alike: who may ask, how much at once, for how long, and how it is
//! said that there is no result.

use crate::access::{Access, DENIED};
use crate::request::SearchError;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// Largest accepted body, bytes: 4,096 queries of two kilobytes.
pub const BODY_LIMIT: usize = 8 << 20;
/// A caller's own deadline, milliseconds.
const TIMEOUT: &str = "x-timeout-ms";

/// Requests that are worked on at once.
pub struct Admission {
    places: Arc<Semaphore>,
    limit: usize,
}

impl Admission {
    /// At most `limit`.
    pub fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self { places: Arc::new(Semaphore::new(limit)), limit }
    }

    /// A place for one request, or why there is none.
    pub fn admit(&self) -> Result<OwnedSemaphorePermit, String> {
        self.places.clone().try_acquire_owned().map_err(|_| {
            count_refusal("overloaded");
            format!("{} requests are being answered already; ask again in a moment", self.limit)
        })
    }
}

/// Why an HTTP request has no result.
pub type Refusal = Box<Response>;

/// An answer with a status that says why there is no other.
pub fn refuse(status: StatusCode, reason: &str) -> Response {
    (status, Json(json!({"error": reason}))).into_response()
}

/// Counts a refusal.
pub fn count_refusal(reason: &str) {
    s3_telemetry::metrics().retriever_refused.with_label_values(&[reason]).inc();
}

/// What requests pass.
#[derive(Clone)]
pub struct Gate {
    /// Who may ask.
    pub access: Arc<Access>,
    /// How much at once.
    pub admission: Arc<Admission>,
    /// The longest that a request may take; callers' own deadlines end it earlier.
    pub deadline: Duration,
}

impl Gate {
    /// An HTTP request's body as `T`, when the caller may ask.
    pub fn parse<'a, T: Deserialize<'a>>(
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

    /// Runs an HTTP request's work within its deadline and the server's limit of requests at once.
    pub async fn within<T>(
        &self,
        headers: &HeaderMap,
        work: impl Future<Output = Result<T, SearchError>>,
    ) -> Result<T, Refusal> {
        let _permit = self.admission.admit().map_err(|reason| refuse(StatusCode::TOO_MANY_REQUESTS, &reason))?;
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
            return done.map_err(|error| refusal(&error).into());
        }
        count_refusal("deadline");
        let reason = format!("not answered within {} ms", deadline.as_millis());
        Err(refuse(StatusCode::GATEWAY_TIMEOUT, &reason).into())
    }

    /// Whether a gRPC caller may ask.
    pub fn may_ask(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let shown = metadata.get("authorization").map(tonic::metadata::MetadataValue::as_bytes);
        if self.access.allows(shown) { Ok(()) } else { Err(Status::unauthenticated(DENIED)) }
    }

    /// Runs a gRPC request's work within the server's deadline and its limit of requests at once.
    pub async fn within_status<T>(&self, work: impl Future<Output = Result<T, SearchError>>) -> Result<T, Status> {
        let _permit = self.admission.admit().map_err(Status::resource_exhausted)?;
        // the clock ticks in milliseconds; what is due at once would still get one
        if !self.deadline.is_zero()
            && let Ok(done) = tokio::time::timeout(self.deadline, work).await
        {
            return done.map_err(status);
        }
        count_refusal("deadline");
        Err(Status::deadline_exceeded(format!("not answered within {} ms", self.deadline.as_millis())))
    }
}

/// How an error is said over gRPC.
pub fn status(error: SearchError) -> Status {
    match error {
        SearchError::Refused { message, .. } => Status::invalid_argument(message),
        SearchError::Busy { message } => Status::resource_exhausted(message),
        SearchError::Unavailable { message, .. } => Status::unavailable(message),
        SearchError::Rejected { message } => Status::failed_precondition(message),
        SearchError::Failed(error) => {
            tracing::error!(%error, "search failed");
            Status::internal(error.to_string())
        }
    }
}

/// How an error is said over HTTP.
fn refusal(error: &SearchError) -> Response {
    let code = match error {
        SearchError::Refused { .. } => StatusCode::BAD_REQUEST,
        SearchError::Busy { .. } => StatusCode::TOO_MANY_REQUESTS,
        SearchError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
        SearchError::Rejected { .. } => StatusCode::BAD_GATEWAY,
        SearchError::Failed(error) => {
            tracing::error!(%error, "search failed");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    let mut response = refuse(code, &error.to_string());
    if let SearchError::Unavailable { retry_after: Some(after), .. } = error {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(after.as_secs().max(1)));
    }
    response
}
