//! A web search over HTTP: `POST /retrieve` with the shapes of an index, and health.

use super::engine::{Found, WebSearch};
use super::grpc::score;
use crate::front::{AnswersHttp, Body, Retrieve, took};
use crate::gate::{Gate, Refusal, count_refusal, refuse};
use crate::http::{response, result};
use crate::splice;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Instant;

impl AnswersHttp for Arc<WebSearch> {
    async fn retrieve(
        &self,
        gate: &Gate,
        headers: &HeaderMap,
        request: Retrieve,
        started: Instant,
    ) -> Result<Response, Refusal> {
        if request.topk_retrieval.is_some() || request.topk_rerank.is_some() {
            return Err(without_reranker().into());
        }
        let search = self.search(&request.queries, request.topk.unwrap_or(0));
        let (found, _) = gate.within(headers, search).await?;
        let reply = match write(&found, request.return_scores) {
            Some(body) => response(body, self.digest(), [("total", started.elapsed())].into_iter()),
            None => refuse(StatusCode::INTERNAL_SERVER_ERROR, "a result cannot be written as JSON"),
        };
        took("http", "web", started);
        Ok(reply)
    }

    async fn rerank(&self, gate: &Gate, headers: &HeaderMap, body: &Body) -> Result<Response, Refusal> {
        gate.parse::<Value>(headers, body, "a request")?;
        Err(without_reranker().into())
    }

    fn health(&self) -> Value {
        json!({"status": "healthy", "index": self.digest(), "passages": 0})
    }
}

fn without_reranker() -> Response {
    count_refusal("rerank");
    refuse(StatusCode::BAD_REQUEST, "this server asks a web search and has no reranker")
}

/// The result as an index answers it.
fn write(found: &[Found], scores: bool) -> Option<Vec<u8>> {
    let hit = |(rank, entry)| Some((serde_json::to_vec(entry).ok()?, score(rank)));
    let lists = found.iter().map(|list| list.iter().enumerate().map(hit));
    result(lists, 0, scores, splice::document)
}
