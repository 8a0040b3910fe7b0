//! A web search in the place of an index: a service that speaks `SerpAPI`'s JSON, behind the retriever's own faces.
//!
//! [`wire`] is pure: a query's address and a reply's passages. [`upstream`] asks the service, with a deadline, retries and
//! limits. [`engine`] keeps what it was told, so that no query is paid for twice and every repetition finds the same;
//! queries that arrive together are asked once. [`grpc`] and [`http`] have the shapes of an index. An outage is never an
//! empty result: a request fails as a whole when one of its queries does, and what the others found is kept.

pub mod engine;
pub mod grpc;
pub mod http;
pub mod serve;
pub mod upstream;
pub mod wire;

pub use engine::WebSearch;
pub use serve::serve;
