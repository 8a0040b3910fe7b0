//! Asking a worker to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by SIGTERM or SIGINT; long work looks at it between units and saves before it leaves.
#[derive(Clone, Default)]
pub struct Shutdown(Arc<AtomicBool>, Option<Arc<AtomicBool>>);

impl Shutdown {
    /// Listens for the signals; needs a running tokio runtime.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        let shutdown = Self::default();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let flag = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
            flag.0.store(true, Ordering::SeqCst);
        });
        Ok(shutdown)
    }

    /// Whether to stop now.
    pub fn requested(&self) -> bool {
        self.0.load(Ordering::SeqCst) || self.1.as_ref().is_some_and(|above| above.load(Ordering::SeqCst))
    }

    /// For one part of the work: asked to stop with the whole, or alone. A part of a part stops with the whole
    /// or alone, too.
    #[must_use]
    pub fn part(&self) -> Self {
        Self(Arc::default(), Some(self.1.clone().unwrap_or_else(|| self.0.clone())))
    }

    /// Asks this process (or this part of its work) to stop, as a signal does.
    pub fn request(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Resolves once asked to stop; for servers.
    pub async fn wait(&self) {
        while !self.requested() {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}
