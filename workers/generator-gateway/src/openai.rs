//! Any endpoint that speaks OpenAI's chat completions: vLLM, `SGLang`, TGI, hosted services.

use crate::openai_wire::{body, error_line, parse};
use crate::provider::{BoxFuture, Call, CallFailure, Completion, FailureKind, Outcomes, Provider};
use crate::retry::{Attempt, RetryPolicy, classify, retry_after, spread};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Bytes of a reply that are read at most; an answer is never that long.
const REPLY_LIMIT: usize = 16 << 20;

/// What an OpenAI-compatible provider needs to know.
#[derive(Clone, Debug)]
pub struct OpenAiSettings {
    /// Name that callers use.
    pub name: String,
    /// Address up to `/v1`.
    pub base_url: String,
    /// Model name sent upstream.
    pub model: String,
    /// File with the key.
    pub api_key_file: Option<PathBuf>,
    /// Calls in flight at most.
    pub concurrency: usize,
    /// Deadline of one attempt.
    pub deadline: Duration,
    /// Attempts and waiting times.
    pub retry: RetryPolicy,
}

/// Why the provider cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("provider {name:?}: {reason}")]
pub struct SettingsError {
    name: String,
    reason: String,
}

/// The provider. Cheap to clone.
#[derive(Clone)]
pub struct OpenAi(Arc<Inner>);

struct Inner {
    settings: OpenAiSettings,
    url: reqwest::Url,
    digest: String,
    client: reqwest::Client,
    permits: Semaphore,
}

impl OpenAi {
    /// Checks the settings; nothing is sent.
    pub fn new(settings: OpenAiSettings) -> Result<Self, SettingsError> {
        let wrong = |reason: String| SettingsError { name: settings.name.clone(), reason };
        let url = format!("{}/chat/completions", settings.base_url.trim_end_matches('/'));
        // the address may hold a password, so it is not repeated
        let url = reqwest::Url::parse(&url).map_err(|e| wrong(format!("baseUrl is not an address: {e}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong(format!("baseUrl has scheme {:?}; use http or https", url.scheme())));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("baseUrl holds a user name or password; put the key into apiKeyFile".to_owned()));
        }
        if let Some(path) = &settings.api_key_file {
            read_key(path).map_err(wrong)?;
        }
        let client = client(&url).map_err(|e| wrong(format!("no TLS client: {e:?}")))?;
        let digest = s3_artifacts::digest_json(&("openAi", 1, &settings.model)).map_err(|e| wrong(e.to_string()))?;
        let permits = Semaphore::new(settings.concurrency.clamp(1, Semaphore::MAX_PERMITS));
        Ok(Self(Arc::new(Inner { settings, url, digest, client, permits })))
    }
}

/// No redirects and no proxy from the environment: a request goes where the configuration says.
fn client(url: &reqwest::Url) -> reqwest::Result<reqwest::Client> {
    // a second call finds the provider installed; that is all that is wanted
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(Duration::from_secs(10))
        .tcp_nodelay(true)
        .user_agent("s3-generator-gateway");
    if url.scheme() == "http" {
        // without TLS the machine's certificates are not needed, and a bare image has none
        builder = builder.tls_certs_only([]);
    }
    builder.build()
}

/// The key as it is now, so that a rotated secret needs no restart.
fn read_key(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("cannot read apiKeyFile {}: {e}", path.display()))?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(format!("apiKeyFile {} does not hold one key on one line", path.display()));
    }
    Ok(key.to_owned())
}

impl Inner {
    async fn call(&self, call: &Call) -> Result<Completion, CallFailure> {
        let metrics = s3_telemetry::metrics();
        let name = self.settings.name.as_str();
        let mut attempt = 1;
        loop {
            let result = {
                let Ok(_permit) = self.permits.acquire().await else {
                    return Err(CallFailure::new(FailureKind::Unavailable, "the gateway is stopping"));
                };
                let started = Instant::now();
                let result = tokio::time::timeout(self.settings.deadline, self.attempt(call)).await;
                metrics.gateway_seconds.with_label_values(&[name]).observe(started.elapsed().as_secs_f64());
                result.unwrap_or_else(|_| {
                    let message = format!("no answer within {} ms", self.settings.deadline.as_millis());
                    Err(Attempt::again(FailureKind::Unavailable, "timeout", message))
                })
            };
            let failed = match result {
                Ok(completion) => return Ok(completion),
                Err(failed) => failed,
            };
            let wait = self.settings.retry.wait(attempt, failed.hint, spread()).filter(|_| failed.retry);
            let Some(wait) = wait else {
                let hint = failed.hint.map(|hint| format!(", asked to wait {} s", hint.as_secs())).unwrap_or_default();
                let message = format!("{name}: {} (attempt {attempt}{hint})", failed.message);
                return Err(CallFailure::new(failed.kind, message));
            };
            metrics.gateway_retries.with_label_values(&[name, failed.reason]).inc();
            let millis = wait.as_millis();
            tracing::warn!(provider = name, attempt, wait_ms = millis, reason = %failed.message, "call failed, trying again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    async fn attempt(&self, call: &Call) -> Result<Completion, Attempt> {
        let key = match &self.settings.api_key_file {
            // a short local file: reading it costs less than handing it to another thread
            Some(path) => Some(read_key(path).map_err(Attempt::refused)?),
            None => None,
        };
        let result = self.exchange(call, key.as_deref()).await;
        // an upstream may repeat the key in its error text
        result.map_err(|mut failed| {
            if let Some(key) = &key {
                failed.message = failed.message.replace(key.as_str(), "[key]");
            }
            failed
        })
    }

    async fn exchange(&self, call: &Call, key: Option<&str>) -> Result<Completion, Attempt> {
        let mut request = self.client.post(self.url.clone()).json(&body(&self.settings.model, call));
        if let Some(key) = key {
            let mut value = HeaderValue::from_str(&format!("Bearer {key}"))
                .map_err(|_| Attempt::refused("the key cannot stand in a header"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let mut response = request.send().await.map_err(|e| transport(&e))?;
        let status = response.status().as_u16();
        let header = |name| response.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let hint = header(RETRY_AFTER).and_then(|value| retry_after(value, SystemTime::now()));
        let content_type = header(CONTENT_TYPE).unwrap_or("").to_ascii_lowercase();
        let mut bytes = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| transport(&e))? {
            if bytes.len() + chunk.len() > REPLY_LIMIT {
                return Err(Attempt::again(FailureKind::Malformed, "malformed", "the reply is longer than 16 MiB"));
            }
            bytes.extend_from_slice(&chunk);
        }
        if status != 200 {
            return Err(classify(status, hint, format!("status {status}: {}", error_line(&bytes))));
        }
        let media = content_type.split(';').next().unwrap_or("").trim();
        if media != "application/json" && !media.ends_with("+json") {
            let message = format!("the reply is {media:?}, not JSON");
            return Err(Attempt::again(FailureKind::Malformed, "malformed", message));
        }
        parse(&bytes)
    }
}

/// Broken connections say where they broke; the address itself may be private and stays out.
fn transport(error: &reqwest::Error) -> Attempt {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    let (reason, what) = if error.is_connect() {
        ("connect", "cannot connect")
    } else if error.is_timeout() {
        ("timeout", "timed out")
    } else if error.is_body() || error.is_decode() {
        ("truncated", "the reply broke off")
    } else {
        ("reset", "the connection broke")
    };
    let mut detail = cause.to_string();
    if std::ptr::addr_eq(std::ptr::from_ref(cause), std::ptr::from_ref(error)) {
        detail.clear();
    }
    let separator = if detail.is_empty() { "" } else { ": " };
    Attempt::again(FailureKind::Unavailable, reason, format!("{what}{separator}{detail}"))
}

impl Provider for OpenAi {
    fn name(&self) -> &str {
        &self.0.settings.name
    }

    fn digest(&self) -> &str {
        &self.0.digest
    }

    fn scope(&self) -> &str {
        self.0.url.as_str()
    }

    fn context_tokens(&self) -> u32 {
        0
    }

    fn is_serial(&self) -> bool {
        false
    }

    fn complete(&self, calls: Vec<Call>) -> BoxFuture<'_, Outcomes> {
        Box::pin(async move {
            let mut outcomes: Vec<Option<Result<Completion, CallFailure>>> = vec![None; calls.len()];
            let mut tasks = JoinSet::new();
            for (index, call) in calls.into_iter().enumerate() {
                let inner = self.0.clone();
                tasks.spawn(async move { (index, inner.call(&call).await) });
            }
            while let Some(done) = tasks.join_next().await {
                match done {
                    Ok((index, outcome)) => outcomes[index] = Some(outcome),
                    Err(error) => tracing::error!(%error, "a call ended without outcome"),
                }
            }
            let lost = || Err(CallFailure::new(FailureKind::Unavailable, "the call ended without outcome"));
            outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect()
        })
    }
}
