//! A web search in the place of an index.

use crate::{Duration, SecretKeyRef, rules};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A service that searches the web and answers in `SerpAPI`'s JSON: `answer_box`, `organic_results`, `related_questions`.
/// What it found for a query is kept in the index's storage and found again, so nothing is paid for twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("x-kubernetes-validations" = rules::attach(&[&rules::WEB_PARAMETERS])))]
pub struct WebSearch {
    /// Address that is asked, without a query.
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^?#]+$"))]
    pub endpoint: String,
    /// Search engine, as the service calls it.
    #[schemars(length(min = 1, max = 63))]
    pub engine: String,
    /// Further query parameters, such as a language (`hl`) or a country (`gl`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(length(max = 32))]
    pub parameters: BTreeMap<String, String>,
    /// API key; none sends no key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key_secret_ref: Option<SecretKeyRef>,
    /// Longer queries are cut between words, characters.
    #[schemars(range(min = 16, max = 2048))]
    pub query_characters: u32,
    /// Limits on its calls.
    pub limits: WebSearchLimits,
}

impl Default for WebSearch {
    fn default() -> Self {
        Self {
            endpoint: "https://serpapi.com/search".into(),
            engine: "google".into(),
            parameters: BTreeMap::new(),
            api_key_secret_ref: None,
            query_characters: 512,
            limits: WebSearchLimits::default(),
        }
    }
}

/// Limits on calls to a web search.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebSearchLimits {
    /// Calls in flight at most.
    #[schemars(range(min = 1, max = 10_000))]
    pub concurrency: u32,
    /// Deadline of one attempt.
    pub timeout: Duration,
    /// Attempts per query before its request fails.
    #[schemars(range(min = 1, max = 100))]
    pub attempts: u32,
    /// Requests a minute at most, repeated attempts included.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub requests_per_minute: Option<u32>,
    /// Queries that may wait for their turn; more are refused.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue: u32,
}

impl Default for WebSearchLimits {
    fn default() -> Self {
        Self { concurrency: 8, timeout: Duration::from_secs(20), attempts: 5, requests_per_minute: None, queue: 10_000 }
    }
}
