//! `s3-retriever web`: a web search over gRPC and HTTP.

use super::engine::WebSearch;
use crate::access::Access;
use crate::front::Front;
use crate::gate::{Admission, Gate};
use crate::serve::Sockets;
use s3_config::WebSearchConfig;
use s3_telemetry::{Failure, Shutdown};
use std::sync::Arc;
use std::time::Duration;

/// Serves until asked to stop. Nothing is asked of the service before somebody searches: it would be paid for.
pub async fn serve(config: WebSearchConfig, shutdown: Shutdown) -> Result<(), Failure> {
    let sockets = Sockets::open(&config.runtime, config.grpc, config.http, config.tls.as_ref()).await?;
    sockets.progress.phase("open results", 0);
    let opened_from = config.clone();
    let web = tokio::task::spawn_blocking(move || WebSearch::open(&opened_from)).await.map_err(Failure::internal)??;
    tracing::info!(endpoint = %config.endpoint, engine = %config.engine, digest = web.digest(), "asking a web search");
    let gate = Gate {
        access: Arc::new(Access::open(config.tokens.as_deref())?),
        admission: Arc::new(Admission::new(config.requests_limit)),
        deadline: Duration::from_millis(config.deadline_millis),
    };
    sockets.answer(Front { answers: web, gate }, shutdown).await
}
