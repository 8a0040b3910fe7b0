//! A web search over gRPC.

use super::engine::{Found, WebSearch};
use crate::front::{AnswersGrpc, took};
use crate::gate::Gate;
use crate::grpc::nanos;
use crate::request::SearchError;
use s3_proto::v1::{self, EmbedRequest, EmbedResponse, Hit, Hits, RetrieverInfo, SearchRequest, SearchResponse};
use std::sync::Arc;
use std::time::Instant;
use tonic::Status;

/// What an index is asked for and a web search has not.
fn refuse(request: &SearchRequest) -> Result<(), Status> {
    let refused = |reason: &'static str, what: &str| {
        s3_telemetry::metrics().retriever_refused.with_label_values(&[reason]).inc();
        Err(Status::invalid_argument(format!("{what}: a web search ranks by itself; leave it out")))
    };
    if request.method() != v1::Method::Default || v1::Method::try_from(request.method).is_err() {
        return refused("method", "method");
    }
    if request.exact || request.fusion.is_some() || request.rerank() == v1::Rerank::On {
        return refused("method", "exact, fusion and rerank are of an index");
    }
    if !request.filter.is_empty() {
        return refused("filter", "filter");
    }
    Ok(())
}

/// Scores fall with the rank; the service gives none.
pub(crate) fn score(rank: usize) -> f64 {
    1.0 / (rank + 1) as f64
}

fn hits(found: &Found, ids_only: bool) -> Hits {
    let hit = |(rank, entry): (usize, &crate::corpus::Entry)| {
        let mut passage = v1::Passage { id: entry.id.clone(), ..v1::Passage::default() };
        let mut metadata = std::collections::HashMap::new();
        if !ids_only {
            (passage.title, passage.text) = (entry.title.clone(), entry.text.clone());
            metadata = entry.metadata.clone().into_iter().collect();
        }
        Hit { passage: Some(passage), score: score(rank), metadata }
    };
    Hits { hits: found.iter().enumerate().map(hit).collect() }
}

impl AnswersGrpc for Arc<WebSearch> {
    async fn search(&self, gate: &Gate, request: SearchRequest) -> Result<SearchResponse, Status> {
        let started = Instant::now();
        refuse(&request)?;
        let search = WebSearch::search(self, &request.queries, u64::from(request.top_k));
        let (found, asked) = gate.within_status(search).await?;
        let elapsed = nanos(started.elapsed());
        took("grpc", "web", started);
        Ok(SearchResponse {
            results: found.iter().map(|found| hits(found, request.ids_only)).collect(),
            index_digest: self.digest().to_owned(),
            timing: Some(v1::Timing { search_ns: elapsed, total_ns: elapsed, ..v1::Timing::default() }),
            usage: Some(v1::Usage {
                cached: (found.len() - asked) as u32,
                computed: asked as u32,
                ..v1::Usage::default()
            }),
        })
    }

    async fn embed(&self, _: &Gate, _: EmbedRequest) -> Result<EmbedResponse, Status> {
        let refused = SearchError::refused("method", "a web search has no encoder".to_owned());
        Err(Status::unimplemented(refused.to_string()))
    }

    fn info(&self) -> RetrieverInfo {
        RetrieverInfo {
            index_digest: self.digest().to_owned(),
            top_k_limit: self.top_k_limit(),
            ..RetrieverInfo::default()
        }
    }
}
