//! `/metrics`, `/healthz` and `/readyz` of a worker.

use axum::{Router, http::StatusCode, routing::get};
use prometheus::TextEncoder;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The admin address cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("admin address {address}: {source}; choose a free port")]
pub struct AdminError {
    /// The configured address.
    pub address: SocketAddr,
    /// What the system said.
    pub source: std::io::Error,
}

/// Serves until the process ends. `ready` decides `/readyz`.
pub async fn serve_admin(address: SocketAddr, ready: Arc<AtomicBool>) -> Result<(), AdminError> {
    let listener = tokio::net::TcpListener::bind(address).await.map_err(|source| AdminError { address, source })?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/readyz",
            get(move || async move {
                if ready.load(Ordering::SeqCst) {
                    (StatusCode::OK, "ok")
                } else {
                    (StatusCode::SERVICE_UNAVAILABLE, "starting")
                }
            }),
        )
        .route("/metrics", get(metrics_text));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "admin server ended");
        }
    });
    Ok(())
}

async fn metrics_text() -> (StatusCode, String) {
    match TextEncoder::new().encode_to_string(&prometheus::gather()) {
        Ok(text) => (StatusCode::OK, text),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
