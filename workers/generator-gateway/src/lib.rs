//! The generator gateway: answers and verdicts from any provider, cached, retried, with typed failures.
//!
//! An outage is never an answer: every item of a request ends as an answer or as a failure that says why.
//! The trainer renders its examples with [`render`], so that the built-in generator is trained on exactly the
//! prompts it is asked later.

mod access;
mod anthropic_wire;
mod aws_credentials;
mod bedrock_wire;
mod breaker;
mod built_in;
mod cache;
mod calibration;
mod client;
mod engine;
mod flight;
mod grpc;
mod http;
mod http_stream;
mod http_wire;
mod json;
mod judge;
mod ledger;
mod memory;
mod network;
mod openai_wire;
mod pace;
mod panel;
mod persistent;
mod plain;
mod provider;
mod remote;
mod retry;
mod route;
mod secret;
mod serve;
mod sigv4;
mod sse;
mod stops;
mod templates;
mod wire;

/// What any caller of a service over HTTP needs; the retriever's web search and the trainer's rollout engine call with it, too.
pub mod calls {
    pub use crate::client::{Whole, builder, timed_out, transport, whole};
    pub use crate::network::{Guard, Reach};
    pub use crate::openai_wire::error_line;
    pub use crate::pace::Pace;
    pub use crate::retry::{Attempt, RetryPolicy, classify, retry_after, spread};
    pub use crate::secret::SecretFile;
}

pub use access::{Access, Denied};
pub use built_in::{BuiltIn, BuiltInError};
pub use cache::{AnswerCache, CacheError};
pub use calibration::{Calibration, Label, Measured, calibrate, judge_digest, read_labels};
pub use engine::{Answered, Answers, Ask, Gateway, GatewayError, Lane, Rules};
pub use grpc::{GeneratorService, generator_digest};
pub use http::Front;
pub use judge::{Candidate, Decision};
pub use ledger::Ledger;
pub use network::Reach;
pub use panel::{Ruling, judge};
pub use provider::{
    BoxFuture, Call, CallFailure, Completion, FailureKind, Finish, Message, Meter, Order, Outcomes, Provider, Role,
    Sampling, Usage,
};
pub use remote::{Remote, SettingsError, Surroundings};
pub use retry::RetryPolicy;
pub use serve::{build, serve};
pub use templates::{Document, Messages, Template, TemplateError, Templates, neutralise, render};
