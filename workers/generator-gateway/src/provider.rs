//! What every provider of completions has in common: calls, completions, typed failures, identity.

use serde::Serialize;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// As chats write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One message of a chat.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// How tokens are chosen and when an answer ends. All of it is part of the cache key.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sampling {
    /// 0 takes the likeliest token.
    pub temperature: f64,
    /// Nucleus kept.
    pub top_p: f64,
    /// New tokens at most; none leaves it to the provider.
    pub max_tokens: Option<u32>,
    /// Strings that end an answer; they are not part of it.
    pub stop: Vec<String>,
    /// Log-probabilities wanted, with this many alternatives a token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u8>,
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy(max_tokens: Option<u32>, stop: &[String]) -> Self {
        Self { temperature: 0.0, top_p: 1.0, max_tokens, stop: stop.to_vec(), logprobs: None }
    }

    /// Whether the same call means the same answer, so that it may be cached.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// One completion to make.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    /// The rendered prompt of a chat.
    pub messages: Vec<Message>,
    /// A plain text to continue instead of a chat.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Decoding.
    pub sampling: Sampling,
}

impl Call {
    /// A call with the messages of a chat.
    pub fn chat(messages: Vec<Message>, sampling: Sampling) -> Self {
        Self { messages, text: None, sampling }
    }

    /// Bytes of the prompt.
    pub fn prompt_bytes(&self) -> usize {
        let messages: usize = self.messages.iter().map(|message| message.content.len()).sum();
        messages + self.text.as_ref().map_or(0, String::len)
    }

    /// A call from a rendered template.
    pub fn from_rendered(rendered: crate::Messages, sampling: Sampling) -> Self {
        let mut messages = Vec::with_capacity(2);
        messages.extend(rendered.system.map(|text| Message::new(Role::System, text)));
        messages.push(Message::new(Role::User, rendered.user));
        Self::chat(messages, sampling)
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model was done or a stop string came.
    Stop,
    /// The token limit came first.
    Length,
}

/// A completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The text, without the stop string.
    pub text: String,
    /// Tokens read; 0 when the provider did not say.
    pub prompt_tokens: u32,
    /// Tokens written; 0 when the provider did not say.
    pub completion_tokens: u32,
    /// Why it ended.
    pub finish: Finish,
    /// Log-probabilities as the provider gave them (JSON), when they were asked for.
    pub logprobs: Option<Arc<str>>,
}

/// Kind of a failed call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// No answer in time, connection refused or broken, 5xx.
    Unavailable,
    /// 429 after all attempts.
    RateLimited,
    /// The provider refuses this request; trying again changes nothing.
    Rejected,
    /// The reply could not be read.
    Malformed,
    /// The caller's deadline came first.
    Deadline,
    /// The caller's budget is spent.
    Budget,
}

impl FailureKind {
    /// Label in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::RateLimited => "rate_limited",
            Self::Rejected => "rejected",
            Self::Malformed => "malformed",
            Self::Deadline => "deadline",
            Self::Budget => "budget",
        }
    }
}

/// Why there is no completion. Never an answer: an outage must not be scored.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallFailure {
    /// What kind.
    pub kind: FailureKind,
    /// One line without secrets.
    pub message: String,
    /// When to come back, where that is known.
    pub retry_after: Option<Duration>,
}

impl CallFailure {
    /// A failure; line breaks of foreign texts become blanks.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().replace(['\n', '\r'], " "), retry_after: None }
    }

    /// The same with a time to come back.
    #[must_use]
    pub fn after(mut self, hint: Option<Duration>) -> Self {
        self.retry_after = hint;
        self
    }
}

/// Outcomes of a batch, in its order.
pub type Outcomes = Vec<Result<Completion, CallFailure>>;

/// What was used: by one call, or by a caller in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Replies that a provider charges for.
    pub calls: u64,
    /// Tokens read.
    pub prompt: u64,
    /// Tokens written.
    pub answer: u64,
}

impl Usage {
    /// Of one answered call.
    pub fn of(completion: &Completion) -> Self {
        Self { calls: 1, prompt: u64::from(completion.prompt_tokens), answer: u64::from(completion.completion_tokens) }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.calls += other.calls;
        self.prompt += other.prompt;
        self.answer += other.answer;
    }
}

/// Counts what a request's attempts used: unreadable and abandoned replies are charged too.
#[derive(Debug, Default)]
pub struct Meter {
    calls: AtomicU64,
    prompt: AtomicU64,
    answer: AtomicU64,
}

impl Meter {
    /// Adds one reply.
    pub fn add(&self, used: Usage) {
        self.calls.fetch_add(used.calls, Ordering::Relaxed);
        self.prompt.fetch_add(used.prompt, Ordering::Relaxed);
        self.answer.fetch_add(used.answer, Ordering::Relaxed);
    }

    /// What was used so far.
    pub fn read(&self) -> Usage {
        Usage {
            calls: self.calls.load(Ordering::Relaxed),
            prompt: self.prompt.load(Ordering::Relaxed),
            answer: self.answer.load(Ordering::Relaxed),
        }
    }
}

/// What travels with a call: until when its answer is of use, and where its use is counted.
#[derive(Clone, Debug, Default)]
pub struct Order {
    /// The caller waits no longer than this.
    pub deadline: Option<Instant>,
    /// What the attempts used.
    pub meter: Arc<Meter>,
}

impl Order {
    /// An order with a deadline.
    pub fn until(deadline: Option<Instant>) -> Self {
        Self { deadline, meter: Arc::default() }
    }

    /// Time left; none when there is no deadline.
    pub fn left(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// A future that can be boxed into a trait object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A source of completions.
pub trait Provider: Send + Sync {
    /// Name that callers use.
    fn name(&self) -> &str;

    /// sha256 over what decides the text of an answer: kind, weights, adapter, decoding. No hosts, no paths.
    fn digest(&self) -> &str;

    /// Tells apart, in the cache, endpoints that claim to serve the same model. Not part of any digest.
    fn scope(&self) -> &str;

    /// Longest prompt plus answer in tokens; 0 when unknown.
    fn context_tokens(&self) -> u32;

    /// Whether calls run one batch at a time. The gateway then looks up, computes and stores under one lock,
    /// so that a batch never depends on what another caller is computing at the same time.
    fn is_serial(&self) -> bool;

    /// Computes a batch; outcome i belongs to call i.
    fn complete(&self, calls: Vec<Call>, order: Order) -> BoxFuture<'_, Outcomes>;

    /// Computes one call. Providers that gain from taking it alone do.
    fn complete_one<'a>(&'a self, call: &'a Call, order: &'a Order) -> BoxFuture<'a, Result<Completion, CallFailure>> {
        Box::pin(async move {
            let outcome = self.complete(vec![call.clone()], order.clone()).await.pop();
            let lost = || CallFailure::new(FailureKind::Unavailable, "the call ended without outcome");
            outcome.unwrap_or_else(|| Err(lost()))
        })
    }

    /// Computes one call and sends its text piece by piece; the whole is returned at the end. It stops when
    /// nobody receives any more.
    fn stream(
        &self,
        call: Call,
        order: Order,
        pieces: mpsc::Sender<String>,
    ) -> BoxFuture<'_, Result<Completion, CallFailure>>;
}
