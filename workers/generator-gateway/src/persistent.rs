//! Work that goes on when whoever waits for it goes away.
//!
//! A task of its own does that too, at the price of a hand-over for every call; here only the abandoned ones pay.

use std::pin::Pin;
use std::task::{Context, Poll};

/// A future that is finished in a task of its own when it is dropped before its end.
pub(crate) struct Persistent<F>(Option<Pin<Box<F>>>)
where
    F: Future + Send + 'static,
    F::Output: Send + 'static;

impl<F> Persistent<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    pub fn new(future: F) -> Self {
        Self(Some(Box::pin(future)))
    }
}

impl<F> Future for Persistent<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let Some(future) = self.0.as_mut() else { return Poll::Pending };
        let polled = future.as_mut().poll(context);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F> Drop for Persistent<F>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn drop(&mut self) {
        if let Some(future) = self.0.take()
            && !std::thread::panicking()
            // without a runtime the process is ending
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(future);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn abandoned_work_is_finished() {
        let (go, gate) = oneshot::channel::<()>();
        let (tell, told) = oneshot::channel();
        let work = Persistent::new(async move {
            gate.await.unwrap();
            tell.send(7).unwrap();
        });
        assert!(tokio::time::timeout(Duration::from_millis(5), work).await.is_err(), "it waits for the gate");
        go.send(()).unwrap();
        assert_eq!(told.await.unwrap(), 7);
        assert_eq!(Persistent::new(async { 8 }).await, 8);
    }
}
