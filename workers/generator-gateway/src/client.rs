//! What a call to a server over HTTP is made with, by the gateway and by whoever else calls out.

use crate::plain::{CONNECT, REPLY_LIMIT};
use crate::provider::FailureKind;
use crate::retry::{Attempt, retry_after};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use std::time::{Duration, SystemTime};

/// No redirects and no proxy from the environment: a request goes where the configuration says.
pub fn builder(agent: &str, secure: bool) -> reqwest::ClientBuilder {
    // a second call finds the provider installed; that is all that is wanted
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .user_agent(agent);
    // without TLS the machine's certificates are not needed, and a bare image has none
    if secure { builder } else { builder.tls_certs_only([]) }
}

/// A whole reply.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Its status.
    pub status: u16,
    /// Its `Retry-After`.
    pub hint: Option<Duration>,
    /// Its content type in lower case, without parameters.
    pub media: String,
    /// Its body, at most 16 MiB.
    pub body: Vec<u8>,
}

/// Reads a reply to its end; one that breaks off fails with the status that had come.
pub async fn whole(mut response: reqwest::Response) -> Result<Whole, (u16, Attempt)> {
    let (status, hint, media) = head(response.status().as_u16(), response.headers());
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| (status, transport(&error)))? {
        if body.len() + chunk.len() > REPLY_LIMIT {
            let long = "the reply is longer than 16 MiB";
            return Err((status, Attempt::again(FailureKind::Malformed, "malformed", long)));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Whole { status, hint, media, body })
}

/// Status, `Retry-After` and content type of a reply.
pub(crate) fn head(status: u16, headers: &HeaderMap) -> (u16, Option<Duration>, String) {
    let header = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let hint = header(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
    (status, hint, media(header(CONTENT_TYPE).unwrap_or("")).to_ascii_lowercase())
}

/// A content type without its parameters.
pub(crate) fn media(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or("").trim()
}

/// No answer within a time.
pub fn timed_out(limit: Duration) -> Attempt {
    let message = format!("no answer within {} ms", limit.as_millis());
    Attempt::again(FailureKind::Unavailable, "timeout", message)
}

/// An exchange that broke.
pub fn transport(error: &reqwest::Error) -> Attempt {
    let reason = if error.is_timeout() {
        "timeout"
    } else if error.is_body() || error.is_decode() {
        "truncated"
    } else {
        "reset"
    };
    broken(error, error.is_connect(), reason)
}

/// Broken connections say where they broke; the address itself may be private and stays out.
fn broken(error: &(dyn std::error::Error + 'static), connecting: bool, reason: &'static str) -> Attempt {
    let mut cause = error;
    let mut detail = String::new();
    while let Some(next) = cause.source() {
        cause = next;
        detail = cause.to_string();
    }
    let (reason, what) = match reason {
        _ if connecting => ("connect", "cannot connect"),
        "timeout" => (reason, "timed out"),
        "truncated" => (reason, "the reply broke off"),
        _ => (reason, "the connection broke"),
    };
    let separator = if detail.is_empty() { "" } else { ": " };
    // an address that must not be used stays so
    let retry = !detail.contains("allowAddresses");
    let kind = if retry { FailureKind::Unavailable } else { FailureKind::Rejected };
    Attempt { retry, ..Attempt::again(kind, reason, format!("{what}{separator}{detail}")) }
}
