//! The two faces of what answers searches, an index or a web search in its place: the gRPC service of `s3.proto`, and the
//! HTTP routes with the s3 reference's shapes.

use crate::gate::{BODY_LIMIT, Gate, Refusal};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use s3_proto::v1::{
    EmbedRequest, EmbedResponse, RetrieverInfo, RetrieverInfoRequest, SearchRequest, SearchResponse,
    retriever_server::Retriever,
};
use serde::Deserialize;
use serde_json::Value;
use std::time::Instant;
use tokio_stream::StreamExt;
use tonic::codegen::BoxStream;
use tonic::{Request, Status, Streaming};

/// What answers gRPC, once the caller may ask.
pub trait AnswersGrpc: Clone + Send + Sync + 'static {
    /// Passages for queries.
    fn search(
        &self,
        gate: &Gate,
        request: SearchRequest,
    ) -> impl Future<Output = Result<SearchResponse, Status>> + Send;

    /// Vectors of texts.
    fn embed(&self, gate: &Gate, request: EmbedRequest) -> impl Future<Output = Result<EmbedResponse, Status>> + Send;

    /// What is searched.
    fn info(&self) -> RetrieverInfo;
}

/// What answers HTTP.
pub trait AnswersHttp: Clone + Send + Sync + 'static {
    /// Passages for queries, once the caller may ask; `started` is when the request came.
    fn retrieve(
        &self,
        gate: &Gate,
        headers: &HeaderMap,
        request: Retrieve,
        started: Instant,
    ) -> impl Future<Output = Result<Response, Refusal>> + Send;

    /// Documents of the caller's own in another order.
    fn rerank(
        &self,
        gate: &Gate,
        headers: &HeaderMap,
        body: &Body,
    ) -> impl Future<Output = Result<Response, Refusal>> + Send;

    /// What is searched.
    fn health(&self) -> Value;
}

/// A request's body, as far as it could be read.
pub type Body = Result<Bytes, BytesRejection>;

/// A request for passages.
#[derive(Deserialize)]
pub struct Retrieve {
    /// What is searched for.
    pub queries: Vec<String>,
    /// Passages per query.
    #[serde(default)]
    pub topk: Option<u64>,
    /// Whether each passage comes with its score.
    #[serde(default)]
    pub return_scores: bool,
    /// Of the reference's combined server, as is `topk_rerank`: either asks for the reranker.
    #[serde(default)]
    pub topk_retrieval: Option<u64>,
    /// Passages per query after reranking.
    #[serde(default)]
    pub topk_rerank: Option<u64>,
}

/// What it looks like, for messages.
const RETRIEVE_FORM: &str = r#"{"queries": [string], "topk": integer or null, "return_scores": boolean}"#;

/// Both faces.
#[derive(Clone)]
pub struct Front<A> {
    /// What answers.
    pub answers: A,
    /// What requests pass.
    pub gate: Gate,
}

#[tonic::async_trait]
impl<A: AnswersGrpc> Retriever for Front<A> {
    async fn search(&self, request: Request<SearchRequest>) -> Result<tonic::Response<SearchResponse>, Status> {
        self.gate.may_ask(request.metadata())?;
        self.answers.search(&self.gate, request.into_inner()).await.map(tonic::Response::new)
    }

    async fn search_stream(
        &self,
        request: Request<Streaming<SearchRequest>>,
    ) -> Result<tonic::Response<BoxStream<SearchResponse>>, Status> {
        self.gate.may_ask(request.metadata())?;
        let front = self.clone();
        // one after the other: replies follow in the requests' order, and a caller that does not read is not served on
        let replies = request.into_inner().then(move |request| {
            let front = front.clone();
            async move { front.answers.search(&front.gate, request?).await }
        });
        Ok(tonic::Response::new(Box::pin(replies)))
    }

    async fn embed(&self, request: Request<EmbedRequest>) -> Result<tonic::Response<EmbedResponse>, Status> {
        self.gate.may_ask(request.metadata())?;
        self.answers.embed(&self.gate, request.into_inner()).await.map(tonic::Response::new)
    }

    async fn info(&self, request: Request<RetrieverInfoRequest>) -> Result<tonic::Response<RetrieverInfo>, Status> {
        self.gate.may_ask(request.metadata())?;
        Ok(tonic::Response::new(self.answers.info()))
    }
}

/// The HTTP routes.
pub fn router<A: AnswersHttp>(front: Front<A>) -> Router {
    Router::new()
        .route("/retrieve", post(retrieve::<A>))
        .route("/rerank", post(rerank::<A>))
        .route("/health", get(|State(front): State<Front<A>>| async move { Json(front.answers.health()) }))
        .route("/healthz", get(|| async { "ok" }))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(front)
}

async fn retrieve<A: AnswersHttp>(State(front): State<Front<A>>, headers: HeaderMap, body: Body) -> Response {
    let started = Instant::now();
    let answered = async {
        let request = front.gate.parse(&headers, &body, RETRIEVE_FORM)?;
        front.answers.retrieve(&front.gate, &headers, request, started).await
    };
    answered.await.unwrap_or_else(|refusal| *refusal)
}

async fn rerank<A: AnswersHttp>(State(front): State<Front<A>>, headers: HeaderMap, body: Body) -> Response {
    front.answers.rerank(&front.gate, &headers, &body).await.unwrap_or_else(|refusal| *refusal)
}

/// Notes how long a request took, over `face` (`grpc`, `http`).
pub(crate) fn took(face: &str, method: &str, started: Instant) {
    let seconds = started.elapsed().as_secs_f64();
    s3_telemetry::metrics().retriever_seconds.with_label_values(&[face, method]).observe(seconds);
}
