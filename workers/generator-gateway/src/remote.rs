//! Providers over HTTP, with everything that stands between a caller and a flaky, limited, distant model.

mod exchange;

use crate::aws_credentials::AwsKeys;
use crate::client::{builder, timed_out};
use crate::network::{Guard, Reach};
use crate::pace::Pace;
use crate::provider::{BoxFuture, Call, CallFailure, Completion, FailureKind, Order, Outcomes, Provider, Usage};
use crate::retry::{Attempt, RetryPolicy, spread};
use crate::route::{Site, Sites, beginning};
use crate::secret::SecretFile;
use crate::wire::{Keys, Wire};
use prometheus::Histogram;
use s3_config::{CallLimits, ProviderConfig};
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio::task::JoinSet;

/// How the gateway names itself.
const AGENT: &str = "s3-generator-gateway";

/// Milliseconds that the caller still waits; gateways in a row pass the deadline on with it.
pub(crate) const DEADLINE_HEADER: &str = "x-request-timeout-ms";

/// Why the provider cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("provider {name:?}: {reason}")]
pub struct SettingsError {
    name: String,
    reason: String,
}

/// What all providers of a gateway share: where they may connect to, and the rate of each key.
pub struct Surroundings {
    reach: Arc<Reach>,
    paces: HashMap<(String, String), Arc<Pace>>,
}

impl Surroundings {
    /// For these providers: those with the same address and key share the strictest of their rates.
    pub fn new<'a>(reach: Reach, providers: impl IntoIterator<Item = &'a ProviderConfig>) -> Self {
        let mut rates: HashMap<(String, String), (Option<u32>, Option<u64>)> = HashMap::new();
        for provider in providers {
            let Some((key, limits)) = rate_key(provider) else { continue };
            let rate = rates.entry(key).or_default();
            rate.0 = [rate.0, limits.requests_per_minute].into_iter().flatten().min();
            rate.1 = [rate.1, limits.tokens_per_minute].into_iter().flatten().min();
        }
        let paces = rates.into_iter().map(|(key, rate)| (key, Arc::new(Pace::new(rate.0, rate.1)))).collect();
        Self { reach: Arc::new(reach), paces }
    }
}

fn rate_key(provider: &ProviderConfig) -> Option<((String, String), &CallLimits)> {
    let path = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
    Some(match provider {
        ProviderConfig::BuiltIn { .. } => return None,
        ProviderConfig::OpenAi(c) => ((c.base_url.clone(), path(c.api_key_file.as_deref())), &c.limits),
        ProviderConfig::AzureOpenAi(c) => ((c.endpoint.clone(), path(Some(&c.api_key_file))), &c.limits),
        ProviderConfig::Anthropic(c) => ((c.base_url.clone(), path(Some(&c.api_key_file))), &c.limits),
        ProviderConfig::Bedrock(c) => ((c.region.clone(), path(c.credentials_file.as_deref())), &c.limits),
    })
}

/// A provider over HTTP. Cheap to clone.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

struct Inner {
    name: String,
    wire: Wire,
    keys: Keys,
    sites: Sites,
    scope: String,
    digest: String,
    client: reqwest::Client,
    reach: Arc<Reach>,
    limits: CallLimits,
    retry: RetryPolicy,
    permits: Semaphore,
    waiting: AtomicUsize,
    pace: Arc<Pace>,
    seconds: Histogram,
}

/// How a reply is wanted.
#[derive(Clone, Copy)]
enum Mode<'a> {
    Whole,
    /// Piece by piece; the flag is set once one was sent, after which nothing can be tried again.
    Pieces(&'a mpsc::Sender<String>, &'a AtomicBool),
}

impl Remote {
    /// Checks the configuration; nothing is sent. The built-in kind is no remote one.
    pub fn new(config: &ProviderConfig, around: &Surroundings) -> Result<Self, SettingsError> {
        let wrong = |reason: String| SettingsError { name: config.name().to_owned(), reason };
        let file = |path: &Path| SecretFile::open(path, "apiKeyFile").map_err(wrong);
        let (wire, bases, field, keys, limits) = match config {
            ProviderConfig::OpenAi(c) => {
                let bases = std::iter::once(&c.base_url).chain(&c.replicas).cloned().collect();
                let keys = c.api_key_file.as_deref().map(file).transpose()?.map_or(Keys::None, Keys::File);
                (Wire::OpenAi { model: c.model.clone() }, bases, "baseUrl", keys, &c.limits)
            }
            ProviderConfig::AzureOpenAi(c) => {
                let wire = Wire::Azure { deployment: c.deployment.clone(), api_version: c.api_version.clone() };
                (wire, vec![c.endpoint.clone()], "endpoint", Keys::File(file(&c.api_key_file)?), &c.limits)
            }
            ProviderConfig::Anthropic(c) => {
                let wire = Wire::Anthropic { model: c.model.clone() };
                (wire, vec![c.base_url.clone()], "baseUrl", Keys::File(file(&c.api_key_file)?), &c.limits)
            }
            ProviderConfig::Bedrock(c) => {
                let plain = c.region.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if !plain || c.region.is_empty() {
                    return Err(wrong(format!("region {:?} is no AWS region; write for example us-east-1", c.region)));
                }
                let wire = Wire::Bedrock { model: c.model.clone(), region: c.region.clone() };
                let public = || format!("https://bedrock-runtime.{}.amazonaws.com", c.region);
                let base = c.endpoint.clone().unwrap_or_else(public);
                let secret = |path: &Path| SecretFile::open(path, "credentialsFile").map_err(wrong);
                let file = c.credentials_file.as_deref().map(secret).transpose()?;
                // the pod's identity answers on a link-local address, which the environment names
                let plain = builder(AGENT, false).build().map_err(|e| wrong(format!("no TLS client: {e:?}")))?;
                let keys = AwsKeys::new(file, &c.region, plain).map_err(wrong)?;
                (wire, vec![base], "endpoint", Keys::Aws(keys), &c.limits)
            }
            ProviderConfig::BuiltIn { .. } => return Err(wrong("it is built in".to_owned())),
        };
        let urls = bases
            .iter()
            .map(|base: &String| url(&wire, base, field, &around.reach))
            .collect::<Result<Vec<_>, _>>()
            .map_err(wrong)?;
        let secure = urls.iter().any(|url| url.scheme() == "https");
        let client = builder(AGENT, secure).dns_resolver(Arc::new(Guard(around.reach.clone()))).build();
        let client = client.map_err(|e| wrong(format!("no TLS client: {e:?}")))?;
        let (kind, model) = wire.identity();
        let digest = s3_artifacts::digest_json(&(kind, 1, model)).map_err(|e| wrong(e.to_string()))?;
        let pace = rate_key(config).and_then(|(key, _)| around.paces.get(&key).cloned()).unwrap_or_default();
        let mut retry = RetryPolicy::new(limits.attempts);
        retry.base = Duration::from_millis(limits.backoff_ms.max(1));
        Ok(Self(Arc::new(Inner {
            name: config.name().to_owned(),
            scope: urls.first().map(ToString::to_string).unwrap_or_default(),
            sites: Sites::new(urls),
            wire,
            keys,
            digest,
            client,
            reach: around.reach.clone(),
            limits: limits.clone(),
            retry,
            permits: Semaphore::new(limits.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            waiting: AtomicUsize::new(0),
            pace,
            seconds: s3_telemetry::metrics().gateway_seconds.with_label_values(&[config.name()]),
        })))
    }
}

fn url(wire: &Wire, base: &str, field: &str, reach: &Reach) -> Result<reqwest::Url, String> {
    // the address may hold a password, so it is not repeated
    let url = reqwest::Url::parse(&wire.address(base)).map_err(|e| format!("{field} is not an address: {e}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("{field} has scheme {:?}; use http or https", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("{field} holds a user name or password; put the key into apiKeyFile"));
    }
    // names are checked when they are resolved, addresses need no resolving
    let host = url.host_str().unwrap_or("");
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>()
        && let Some(why) = reach.objection(address)
    {
        return Err(format!(
            "{field} is {why}, which providers must not use; name it in allowAddresses if it is meant"
        ));
    }
    Ok(url)
}

/// Tokens of a prompt, roughly; settled by what the provider says.
fn estimate(call: &Call) -> u64 {
    call.prompt_bytes() as u64 / 4 + 8
}

fn late(name: &str, reason: &str) -> CallFailure {
    CallFailure::new(FailureKind::Deadline, format!("{name}: the caller's deadline came first ({reason})"))
}

/// Adds what a call used to what its batch used, however the call ends.
struct Counted<'a> {
    from: &'a Order,
    to: &'a Order,
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.to.meter.add(self.from.meter.read());
    }
}

/// Leaves the queue however the waiting ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Inner {
    /// A place among the calls in flight. Too long a queue is refused at once, with a hint when to come back.
    async fn place(&self, order: &Order) -> Result<SemaphorePermit<'_>, CallFailure> {
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(permit);
        }
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if before >= self.limits.queue {
            let rounds = (before / self.limits.concurrency.max(1)) as u32 + 1;
            let mean = self.seconds.get_sample_sum() / (self.seconds.get_sample_count().max(1) as f64);
            let hint = Duration::from_secs_f64((mean * f64::from(rounds)).clamp(1.0, 60.0)).max(self.pace.hint());
            s3_telemetry::metrics().gateway_refused.with_label_values(&["queue"]).inc();
            let message = format!("{}: {before} calls are waiting already", self.name);
            return Err(CallFailure::new(FailureKind::RateLimited, message).after(Some(hint)));
        }
        let permit = async {
            self.permits
                .acquire()
                .await
                .map_err(|_| CallFailure::new(FailureKind::Unavailable, "the gateway is stopping"))
        };
        match order.left() {
            None => permit.await,
            Some(left) => {
                tokio::time::timeout(left, permit).await.map_err(|_| late(&self.name, "all places were taken"))?
            }
        }
    }

    /// One call with all that its policy asks for. The order is its own: the rate is settled by what it counts.
    async fn call(&self, call: &Call, order: &Order, mode: Mode<'_>) -> Result<Completion, CallFailure> {
        let metrics = s3_telemetry::metrics();
        let name = self.name.as_str();
        let beginning = if self.sites.is_single() { 0 } else { beginning(call) };
        let tokens = estimate(call) + u64::from(call.sampling.max_tokens.unwrap_or(0));
        let mut last_site = None;
        let mut attempt = 1;
        loop {
            let result = {
                let _place = self.place(order).await?;
                if let Err(wait) = self.pace.admit(tokens, order.deadline).await {
                    metrics.gateway_refused.with_label_values(&["rate"]).inc();
                    let message = format!("{name}: the configured rate leaves no room for {} s", wait.as_secs() + 1);
                    return Err(CallFailure::new(FailureKind::RateLimited, message).after(Some(wait)));
                }
                let before = order.meter.read();
                let result = self.hedged(call, order, mode, beginning, &mut last_site).await;
                let after = order.meter.read();
                self.pace.settle(tokens, (after.prompt + after.answer) - (before.prompt + before.answer));
                result
            };
            let mut failed = match result {
                Ok(completion) => return Ok(completion),
                Err(failed) => failed,
            };
            if let Mode::Pieces(_, sent) = mode
                && sent.load(Ordering::Relaxed)
            {
                failed.retry = false;
            }
            if order.left().is_some_and(|left| left.is_zero()) {
                return Err(late(name, &failed.message));
            }
            let wait = self.retry.wait(attempt, failed.hint, spread()).filter(|_| failed.retry);
            let Some(wait) = wait else {
                let hint = failed.hint.map(|hint| format!(", asked to wait {} s", hint.as_secs())).unwrap_or_default();
                let message = format!("{name}: {} (attempt {attempt}{hint})", failed.message);
                return Err(CallFailure::new(failed.kind, message).after(failed.hint));
            };
            if order.left().is_some_and(|left| left <= wait) {
                return Err(late(name, &failed.message).after(failed.hint));
            }
            metrics.gateway_retries.with_label_values(&[name, failed.reason]).inc();
            let millis = wait.as_millis();
            tracing::warn!(provider = name, attempt, wait_ms = millis, reason = %failed.message, "call failed, trying again");
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }

    /// One attempt, and where hedging is on a second one beside it when it takes long: the first answer counts.
    async fn hedged<'a>(
        &'a self,
        call: &Call,
        order: &Order,
        mode: Mode<'_>,
        beginning: u64,
        last: &mut Option<&'a Site>,
    ) -> Result<Completion, Attempt> {
        match (self.limits.hedge_after_ms, mode) {
            (Some(after), Mode::Whole) => {
                Box::pin(self.doubled(call, order, beginning, last, Duration::from_millis(after))).await
            }
            _ => self.attempt(call, order, mode, beginning, last).await,
        }
    }

    async fn doubled<'a>(
        &'a self,
        call: &Call,
        order: &Order,
        beginning: u64,
        last: &mut Option<&'a Site>,
        after: Duration,
    ) -> Result<Completion, Attempt> {
        let mode = Mode::Whole;
        let mut elsewhere = None;
        let mut first = Box::pin(self.attempt(call, order, mode, beginning, last));
        tokio::select! {
            result = &mut first => return result,
            () = tokio::time::sleep(after) => {}
        }
        s3_telemetry::metrics().gateway_retries.with_label_values(&[self.name.as_str(), "hedge"]).inc();
        let mut second =
            Box::pin(self.attempt(call, order, mode, beginning.wrapping_add(u64::MAX / 2), &mut elsewhere));
        tokio::select! {
            result = &mut first => if result.is_ok() { result } else { second.await },
            result = &mut second => if result.is_ok() { result } else { first.await },
        }
    }

    async fn attempt<'a>(
        &'a self,
        call: &Call,
        order: &Order,
        mode: Mode<'_>,
        beginning: u64,
        last: &mut Option<&'a Site>,
    ) -> Result<Completion, Attempt> {
        let started = Instant::now();
        let visit = self.sites.choose(beginning, *last, started).map_err(|rest| {
            let message = format!("the endpoint failed too often and rests for {} ms", rest.as_millis());
            Attempt { hint: Some(rest), ..Attempt::again(FailureKind::Unavailable, "breaker", message) }
        })?;
        *last = Some(visit.site());
        let own = Duration::from_millis(self.limits.deadline_ms);
        let limit = order.left().map_or(own, |left| left.min(own));
        let stream = matches!(mode, Mode::Pieces(..)) && self.wire.streams(call);
        let exchange = self.exchange(visit.site(), call, order, mode, stream);
        // a stream's own parts have the deadline, not its whole
        let result = if stream {
            exchange.await
        } else {
            tokio::time::timeout(limit, exchange).await.unwrap_or_else(|_| {
                order.meter.add(Usage { calls: 1, prompt: estimate(call), answer: 0 });
                Err(timed_out(limit))
            })
        };
        let ended = Instant::now();
        self.seconds.observe((ended - started).as_secs_f64());
        let outage = match &result {
            Ok(_) => false,
            Err(failed) => failed.retry && failed.kind == FailureKind::Unavailable,
        };
        visit.site().breaker.note(outage, ended);
        result
    }
}

impl Provider for Remote {
    fn name(&self) -> &str {
        &self.0.name
    }

    fn digest(&self) -> &str {
        &self.0.digest
    }

    fn scope(&self) -> &str {
        &self.0.scope
    }

    fn context_tokens(&self) -> u32 {
        0
    }

    fn is_serial(&self) -> bool {
        false
    }

    fn complete_one<'a>(&'a self, call: &'a Call, order: &'a Order) -> BoxFuture<'a, Result<Completion, CallFailure>> {
        Box::pin(self.0.call(call, order, Mode::Whole))
    }

    fn complete(&self, calls: Vec<Call>, order: Order) -> BoxFuture<'_, Outcomes> {
        Box::pin(async move {
            if let [call] = calls.as_slice() {
                return vec![self.0.call(call, &order, Mode::Whole).await];
            }
            let mut outcomes: Vec<Option<Result<Completion, CallFailure>>> = vec![None; calls.len()];
            let mut tasks = JoinSet::new();
            for (index, call) in calls.into_iter().enumerate() {
                let (inner, whole) = (self.0.clone(), order.clone());
                tasks.spawn(async move {
                    // a count of its own, because the calls of a batch run side by side
                    let own = Order::until(whole.deadline);
                    let _count = Counted { from: &own, to: &whole };
                    (index, inner.call(&call, &own, Mode::Whole).await)
                });
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

    fn stream(
        &self,
        call: Call,
        order: Order,
        pieces: mpsc::Sender<String>,
    ) -> BoxFuture<'_, Result<Completion, CallFailure>> {
        Box::pin(async move {
            let sent = AtomicBool::new(false);
            self.0.call(&call, &order, Mode::Pieces(&pieces, &sent)).await
        })
    }
}
