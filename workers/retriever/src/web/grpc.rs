//! The gRPC service of `s3.proto` over a web search.

use super::engine::{Found, WebSearch};
use crate::gate::Gate;
use crate::grpc::nanos;
use crate::request::SearchError;
use s3_proto::v1::{
    self, EmbedRequest, EmbedResponse, Hit, Hits, RetrieverInfo, RetrieverInfoRequest, SearchRequest, SearchResponse,
    retriever_server::Retriever,
};
use std::sync::Arc;
use std::time::Instant;
use tokio_stream::StreamExt;
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

/// Serves a web search.
#[derive(Clone)]
pub struct WebService {
    /// The search.
    pub web: Arc<WebSearch>,
    /// What requests pass.
    pub gate: Gate,
}

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

impl WebService {
    async fn answer(&self, request: SearchRequest) -> Result<SearchResponse, Status> {
        let started = Instant::now();
        refuse(&request)?;
        let search = self.web.search(&request.queries, u64::from(request.top_k));
        let (found, asked) = self.gate.within_status(search).await?;
        let elapsed = started.elapsed();
        s3_telemetry::metrics().retriever_seconds.with_label_values(&["grpc", "web"]).observe(elapsed.as_secs_f64());
        Ok(SearchResponse {
            results: found.iter().map(|found| hits(found, request.ids_only)).collect(),
            index_digest: self.web.digest().to_owned(),
            timing: Some(v1::Timing { search_ns: nanos(elapsed), total_ns: nanos(elapsed), ..v1::Timing::default() }),
            usage: Some(v1::Usage {
                cached: (found.len() - asked) as u32,
                computed: asked as u32,
                ..v1::Usage::default()
            }),
        })
    }
}

#[tonic::async_trait]
impl Retriever for WebService {
    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        self.gate.may_ask(request.metadata())?;
        self.answer(request.into_inner()).await.map(Response::new)
    }

    async fn search_stream(
        &self,
        request: Request<Streaming<SearchRequest>>,
    ) -> Result<Response<BoxStream<SearchResponse>>, Status> {
        self.gate.may_ask(request.metadata())?;
        let service = self.clone();
        // one after the other: replies follow in the requests' order
        let replies = request.into_inner().then(move |request| {
            let service = service.clone();
            async move { service.answer(request?).await }
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<Response<EmbedResponse>, Status> {
        self.gate.may_ask(request.metadata())?;
        let refused = SearchError::refused("method", "a web search has no encoder".to_owned());
        Err(Status::unimplemented(refused.to_string()))
    }

    async fn info(&self, request: Request<RetrieverInfoRequest>) -> Result<Response<RetrieverInfo>, Status> {
        self.gate.may_ask(request.metadata())?;
        Ok(Response::new(RetrieverInfo {
            index_digest: self.web.digest().to_owned(),
            top_k_limit: self.web.top_k_limit(),
            ..RetrieverInfo::default()
        }))
    }
}
