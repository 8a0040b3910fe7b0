//! Asking the service: with a deadline, bounded retries, and within what it allows a minute and at once.

use super::wire::{RESERVED, Unusable, passages};
use crate::corpus::Entry;
use crate::error::{Result, RetrieverError};
use crate::request::SearchError;
use reqwest::Url;
use reqwest::header::RETRY_AFTER;
use s3_config::{WebLimits, WebSearchConfig};
use s3_generator_gateway::calls::{Guard, Pace, Reach, RetryPolicy, SecretFile, builder, retry_after, spread};
use s3_telemetry::one_line;
use serde_json::Value;
use std::error::Error;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::{Semaphore, SemaphorePermit};

/// A longer reply is not read.
const REPLY_LIMIT: usize = 8 << 20;
/// Longest part of a reply that is repeated in a message.
const SAID: usize = 300;

/// The service.
pub struct Upstream {
    client: reqwest::Client,
    url: Url,
    key: Option<SecretFile>,
    limits: WebLimits,
    retry: RetryPolicy,
    pace: Pace,
    places: Semaphore,
    waiting: AtomicUsize,
}

/// Why one attempt failed.
struct Failed {
    outcome: &'static str,
    message: String,
    hint: Option<Duration>,
    /// Another attempt may succeed.
    again: bool,
}

impl Failed {
    fn again(outcome: &'static str, message: impl Into<String>) -> Self {
        Self { outcome, message: message.into(), hint: None, again: true }
    }

    fn rejected(message: impl Into<String>) -> Self {
        Self { outcome: "rejected", message: message.into(), hint: None, again: false }
    }
}

/// Leaves the queue however the waiting ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        show(self.0.fetch_sub(1, Ordering::Relaxed) - 1);
    }
}

/// Shows how much waits. A process asks one service.
fn show(waiting: usize) {
    let none: [&str; 0] = [];
    s3_telemetry::metrics().retriever_waiting.with_label_values(&none).set(waiting as f64);
}

/// Counts a call under way, however it ends.
struct Running;

impl Running {
    fn start() -> Self {
        let none: [&str; 0] = [];
        s3_telemetry::metrics().retriever_web_running.with_label_values(&none).inc();
        Self
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let none: [&str; 0] = [];
        s3_telemetry::metrics().retriever_web_running.with_label_values(&none).dec();
    }
}

impl Upstream {
    /// Checks the configuration; nothing is sent.
    pub fn new(config: &WebSearchConfig) -> Result<Self> {
        let wrong = |reason: String| RetrieverError::Invalid(reason);
        let reach = Arc::new(Reach::new(&config.allow_addresses).map_err(wrong)?);
        let url = address(config, &reach).map_err(wrong)?;
        let key = config.api_key_file.as_deref().map(|path| SecretFile::open(path, "apiKeyFile"));
        let key = key.transpose().map_err(wrong)?;
        if let Some(key) = &key {
            key.key().map_err(wrong)?;
        }
        let builder = builder("s3-retriever", url.scheme() == "https").dns_resolver(Arc::new(Guard(reach)));
        let client = builder.build().map_err(|error| wrong(format!("no TLS client: {error:?}")))?;
        let limits = config.limits.clone();
        let mut retry = RetryPolicy::new(limits.attempts);
        retry.base = Duration::from_millis(limits.backoff_ms.max(1));
        Ok(Self {
            client,
            url,
            key,
            retry,
            pace: Pace::new(limits.requests_per_minute, None),
            places: Semaphore::new(limits.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            waiting: AtomicUsize::new(0),
            limits,
        })
    }

    /// What the service finds for a query.
    pub async fn search(&self, query: &str) -> Result<Vec<Entry>, SearchError> {
        let metrics = s3_telemetry::metrics();
        let _place = self.place().await?;
        let mut attempt = 1;
        loop {
            // attempts are paid for, the repeated ones, too
            self.pace.admit(0, None).await.map_err(|wait| SearchError::Unavailable {
                message: "the configured rate leaves no room".to_owned(),
                retry_after: Some(wait),
            })?;
            let started = Instant::now();
            let limit = Duration::from_millis(self.limits.deadline_ms);
            let running = Running::start();
            let result = tokio::time::timeout(limit, self.attempt(query)).await.unwrap_or_else(|_| {
                Err(Failed::again("unavailable", format!("no answer within {} ms", limit.as_millis())))
            });
            drop(running);
            let none: [&str; 0] = [];
            metrics.retriever_web_seconds.with_label_values(&none).observe(started.elapsed().as_secs_f64());
            let outcome = result.as_ref().map_or_else(|failed| failed.outcome, |_| "answered");
            metrics.retriever_web_calls.with_label_values(&[outcome]).inc();
            let failed = match result {
                Ok(found) => return Ok(found),
                Err(failed) => failed,
            };
            let Some(wait) = self.retry.wait(attempt, failed.hint, spread()).filter(|_| failed.again) else {
                let message = format!("the web search does not answer: {} (attempt {attempt})", failed.message);
                return Err(if failed.again {
                    SearchError::Unavailable { message, retry_after: failed.hint }
                } else {
                    SearchError::Rejected { message }
                });
            };
            metrics.retriever_web_retries.with_label_values(&[failed.outcome]).inc();
            let millis = wait.as_millis();
            tracing::warn!(attempt, wait_ms = millis, reason = %failed.message, "web search failed, trying again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// A place among the calls in flight; who would wait behind too many is refused at once.
    async fn place(&self) -> Result<SemaphorePermit<'_>, SearchError> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        show(before + 1);
        if before >= self.limits.queue {
            s3_telemetry::metrics().retriever_refused.with_label_values(&["queue"]).inc();
            let message = format!("{before} queries wait for the web search already; ask again in a moment");
            return Err(SearchError::Busy { message });
        }
        let ended = |_| SearchError::Failed(RetrieverError::Internal("the web search is closed".to_owned()));
        self.places.acquire().await.map_err(ended)
    }

    async fn attempt(&self, query: &str) -> Result<Vec<Entry>, Failed> {
        let key =
            self.key.as_ref().map(SecretFile::key).transpose().map_err(|why| Failed::again("unavailable", why))?;
        let mut url = self.url.clone();
        url.query_pairs_mut().append_pair("q", query);
        if let Some(key) = &key {
            url.query_pairs_mut().append_pair("api_key", key);
        }
        self.exchange(url).await.map_err(|mut failed| {
            // a service may repeat what it was sent
            if let Some(key) = key.as_deref().filter(|key| failed.message.contains(*key)) {
                failed.message = failed.message.replace(key, "[key]");
            }
            failed
        })
    }

    async fn exchange(&self, url: Url) -> Result<Vec<Entry>, Failed> {
        // errors of the client hold the address, and with it the key
        let broken = |error: reqwest::Error| {
            let error = error.without_url();
            Failed::again("unavailable", one_line(&error, error.source()))
        };
        let mut response = self.client.get(url).send().await.map_err(broken)?;
        let status = response.status().as_u16();
        let hint = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let hint = hint.and_then(|value| retry_after(value, SystemTime::now()));
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(broken)? {
            if body.len() + chunk.len() > REPLY_LIMIT {
                return Err(Failed::again("malformed", format!("the reply is longer than {REPLY_LIMIT} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        if status != 200 {
            return Err(refused(status, hint, &body));
        }
        let reply: Value = serde_json::from_slice(&body)
            .map_err(|error| Failed::again("malformed", format!("the reply is not JSON: {error}: {}", said(&body))))?;
        passages(&reply).map_err(|unusable| match unusable {
            Unusable::Failed(why) => Failed::again("unavailable", why),
            Unusable::Malformed(why) => Failed::again("malformed", format!("{why}: {}", said(&body))),
        })
    }
}

/// The address without query and key.
fn address(config: &WebSearchConfig, reach: &Reach) -> Result<Url, String> {
    // the address may hold a password, so it is not repeated
    let mut url = Url::parse(&config.endpoint).map_err(|error| format!("endpoint is not an address: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("endpoint has scheme {:?}; use http or https", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return Err(
            "endpoint holds a password or a query; put the key into apiKeyFile, others into parameters".to_owned()
        );
    }
    let host = url.host_str().unwrap_or("");
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>()
        && let Some(why) = reach.objection(address)
    {
        return Err(format!("endpoint is {why}; name it in allowAddresses if it is meant"));
    }
    if let Some(name) = config.parameters.keys().find(|name| RESERVED.contains(&name.as_str())) {
        return Err(format!("parameters: {name} is set by the retriever itself; leave it out"));
    }
    let mut pairs = url.query_pairs_mut();
    pairs.append_pair("engine", &config.engine);
    pairs.extend_pairs(&config.parameters);
    drop(pairs);
    Ok(url)
}

/// How a status other than 200 counts: 429 and outages are tried again, other refusals are final.
fn refused(status: u16, hint: Option<Duration>, body: &[u8]) -> Failed {
    let message = format!("status {status}: {}", said(body));
    match status {
        429 => Failed { hint, ..Failed::again("limited", message) },
        408 | 425 | 500..=599 => Failed { hint, ..Failed::again("unavailable", message) },
        300..=399 => Failed::rejected(format!("{message}; redirects are not followed, correct the endpoint")),
        _ => Failed::rejected(message),
    }
}

/// What a reply says, in one bounded line.
fn said(body: &[u8]) -> String {
    let value: Option<Value> = serde_json::from_slice(body).ok();
    let error = value.as_ref().and_then(|value| value.get("error")).and_then(Value::as_str).map(str::to_owned);
    let text = error.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SAID).collect()
}
