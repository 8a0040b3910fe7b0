//! The gRPC service of `s3.proto`.

use crate::engine::{Found, Method, SearchError};
use crate::live::Live;
use s3_proto::v1::{
    self, Hit, Hits, RetrieverInfo, RetrieverInfoRequest, SearchRequest, SearchResponse, retriever_server::Retriever,
};
use std::sync::Arc;
use std::time::Instant;
use tonic::{Request, Response, Status};

/// Serves the engine of now.
pub struct RetrieverService(pub Arc<Live>);

fn method_of(number: i32) -> Result<Option<Method>, Status> {
    match v1::Method::try_from(number) {
        Ok(v1::Method::Default) => Ok(None),
        Ok(v1::Method::Lexical) => Ok(Some(Method::Lexical)),
        Ok(v1::Method::Dense) => Ok(Some(Method::Dense)),
        Ok(v1::Method::Hybrid) => Ok(Some(Method::Hybrid)),
        Err(_) => Err(Status::invalid_argument(format!("method {number} is not known"))),
    }
}

fn hits(found: Vec<Found>) -> Hits {
    let hit = |Found { passage, score }| {
        let passage = v1::Passage { id: passage.id, title: passage.title, text: passage.text };
        Hit { passage: Some(passage), score }
    };
    Hits { hits: found.into_iter().map(hit).collect() }
}

#[tonic::async_trait]
impl Retriever for RetrieverService {
    async fn search(&self, request: Request<SearchRequest>) -> Result<Response<SearchResponse>, Status> {
        let started = Instant::now();
        let SearchRequest { queries, top_k, method } = request.into_inner();
        let method = method_of(method)?;
        let permit = self.0.admit().map_err(Status::resource_exhausted)?;
        let engine = self.0.engine();
        let index_digest = engine.index().digest.clone();
        let label = method.unwrap_or(engine.method()).label();
        // Ranking computes for long; the runtime's threads stay free for other connections.
        let found = tokio::task::spawn_blocking(move || {
            // held for as long as the work goes on, even when the caller has gone
            let _permit = permit;
            engine.search(&queries, u64::from(top_k), method)
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?
        .map_err(|error| match error {
            SearchError::Refused { message, .. } => Status::invalid_argument(message),
            SearchError::Failed(error) => {
                tracing::error!(%error, "search failed");
                Status::internal(error.to_string())
            }
        })?;
        let seconds = started.elapsed().as_secs_f64();
        s3_telemetry::metrics().retriever_seconds.with_label_values(&["grpc", label]).observe(seconds);
        let results = found.into_iter().map(hits).collect();
        Ok(Response::new(SearchResponse { results, index_digest }))
    }

    async fn info(&self, _: Request<RetrieverInfoRequest>) -> Result<Response<RetrieverInfo>, Status> {
        let engine = self.0.engine();
        let index = engine.index();
        let method = match engine.method() {
            Method::Lexical => v1::Method::Lexical,
            Method::Dense => v1::Method::Dense,
            Method::Hybrid => v1::Method::Hybrid,
        };
        Ok(Response::new(RetrieverInfo {
            index_digest: index.digest.clone(),
            content_digest: index.content_digest.clone(),
            passages: index.passages.len() as u64,
            dimensions: index.dense.as_ref().map_or(0, |dense| dense.dimensions() as u32),
            method: method.into(),
        }))
    }
}
