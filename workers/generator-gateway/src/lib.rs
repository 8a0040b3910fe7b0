//! The generator gateway: answers and verdicts from any provider, cached, retried, with typed failures.
//!
//! An outage is never an answer: every item of a request ends as an answer or as a failure that says why.
//! The trainer renders its examples with [`render`], so that the built-in generator is trained on exactly the
//! prompts it is asked later.

mod built_in;
mod cache;
mod engine;
mod grpc;
mod http;
mod http_wire;
mod judge;
mod openai;
mod openai_wire;
mod provider;
mod retry;
mod serve;
mod templates;

pub use built_in::{BuiltIn, BuiltInError};
pub use cache::{AnswerCache, CacheError};
pub use engine::{Answered, Answers, Gateway, GatewayError, Lane};
pub use grpc::{GeneratorService, generator_digest};
pub use http::router;
pub use judge::{Candidate, Decision};
pub use openai::{OpenAi, OpenAiSettings, SettingsError};
pub use provider::{
    BoxFuture, Call, CallFailure, Completion, FailureKind, Finish, Message, Outcomes, Provider, Role, Sampling,
};
pub use retry::RetryPolicy;
pub use serve::{build, serve};
pub use templates::{Document, Messages, Template, TemplateError, Templates, neutralise, render};
