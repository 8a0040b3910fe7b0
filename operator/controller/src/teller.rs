//! Events for people, published beside the work: nobody waits for them, and one that is lost loses nothing, because
//! conditions say the same.

use crate::lease::Fence;
use crate::write::{brief, terminating};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, Recorder};
use tokio::sync::mpsc;

/// Events that wait at most; those beyond are lost.
const WAITING: usize = 4096;
/// Events that are published at the same time.
const SIDE_BY_SIDE: usize = 2;

/// Takes events.
pub struct Teller(mpsc::Sender<(Event, ObjectReference)>);

impl Teller {
    /// Begins to publish while the fence is open; ends when nobody can tell anything any more.
    pub fn start(recorder: Recorder, fence: Fence) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        let events = stream::unfold(events, |mut events| async { events.recv().await.map(|event| (event, events)) });
        tokio::spawn(events.for_each_concurrent(SIDE_BY_SIDE, move |(event, reference)| {
            let (recorder, fence) = (recorder.clone(), fence.clone());
            async move {
                if !fence.leads() {
                    return;
                }
                if let Err(error) = recorder.publish(&event, &reference).await
                    && !terminating(&error)
                {
                    tracing::warn!(error = brief(&error), reason = event.reason, "event not published");
                }
            }
        }));
        Self(sender)
    }

    /// Publishes an event soon.
    pub fn tell(&self, event: Event, reference: ObjectReference) {
        if let Err(error) = self.0.try_send((event, reference)) {
            tracing::warn!(%error, "event not published");
        }
    }
}
