//! The version that is served now, and its replacement by a newly published one while requests go on.
//!
//! A request takes the engine once and keeps it to its end, so a reply is of one version. A new version is opened,
//! verified and asked about its own passages before any request sees it; one that fails is never served, and the
//! old one goes on. The old one is closed when its last request has ended.

use crate::engine::Engine;
use crate::error::Result;
use crate::gate::Admission;
use crate::index::current;
use s3_config::RetrieverServeConfig;
use s3_telemetry::Shutdown;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// The served engine.
pub struct Live {
    engine: RwLock<Arc<Engine>>,
    admission: Arc<Admission>,
}

impl Live {
    /// Serves an engine; at most `limit` requests at once.
    pub fn new(engine: Arc<Engine>, limit: usize) -> Self {
        Self { engine: RwLock::new(engine), admission: Arc::new(Admission::new(limit)) }
    }

    /// The engine of now.
    pub fn engine(&self) -> Arc<Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The limit of requests at once.
    pub fn admission(&self) -> Arc<Admission> {
        self.admission.clone()
    }

    /// Opens the published version when it is another one, and serves it from then on. Says whether it did.
    pub fn refresh(&self, config: &RetrieverServeConfig) -> Result<bool> {
        let (digest, _) = current(&config.index)?;
        if digest == self.engine().index().digest {
            return Ok(false);
        }
        let engine = Engine::open(config)?;
        tracing::info!(index = %engine.index().digest, passages = engine.index().passages.len(), "serving a new version");
        let old = std::mem::replace(&mut *self.engine.write().unwrap_or_else(PoisonError::into_inner), engine);
        drop(old);
        Ok(true)
    }

    /// Looks for new versions until asked to stop.
    pub async fn watch(self: Arc<Self>, config: RetrieverServeConfig, shutdown: Shutdown) {
        if config.watch_millis == 0 {
            return;
        }
        let period = Duration::from_millis(config.watch_millis);
        let mut said = String::new();
        loop {
            tokio::select! {
                () = shutdown.wait() => return,
                () = tokio::time::sleep(period) => {}
            }
            let (live, config) = (self.clone(), config.clone());
            let refused = match tokio::task::spawn_blocking(move || live.refresh(&config)).await {
                Ok(Ok(_)) => String::new(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            // once a cause, not once a period
            if refused != said && !refused.is_empty() {
                tracing::warn!(error = %refused, "the published version cannot be served; serving the old one on");
            }
            said = refused;
        }
    }
}
