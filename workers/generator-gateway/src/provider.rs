//! What every provider of completions has in common: calls, completions, typed failures, identity.

use serde::Serialize;
use std::pin::Pin;

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
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy(max_tokens: Option<u32>, stop: &[String]) -> Self {
        Self { temperature: 0.0, top_p: 1.0, max_tokens, stop: stop.to_vec() }
    }

    /// Whether the same call means the same answer, so that it may be cached.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }
}

/// One completion to make.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Call {
    /// The rendered prompt.
    pub messages: Vec<Message>,
    /// Decoding.
    pub sampling: Sampling,
}

impl Call {
    /// A call from a rendered template.
    pub fn from_rendered(rendered: crate::Messages, sampling: Sampling) -> Self {
        let mut messages = Vec::with_capacity(2);
        messages.extend(rendered.system.map(|text| Message::new(Role::System, text)));
        messages.push(Message::new(Role::User, rendered.user));
        Self { messages, sampling }
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
}

impl FailureKind {
    /// Label in metrics and logs.
    pub fn label(self) -> &'static str {
        match self {
            Self::Unavailable => "unavailable",
            Self::RateLimited => "rate_limited",
            Self::Rejected => "rejected",
            Self::Malformed => "malformed",
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
}

impl CallFailure {
    /// A failure; line breaks of foreign texts become blanks.
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into().replace(['\n', '\r'], " ") }
    }
}

/// Outcomes of a batch, in its order.
pub type Outcomes = Vec<Result<Completion, CallFailure>>;

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
    fn complete(&self, calls: Vec<Call>) -> BoxFuture<'_, Outcomes>;
}
