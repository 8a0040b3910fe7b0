//! Events for people, published beside the work: nobody waits for them, and one that is lost loses nothing, because
//! conditions say the same.

use crate::lease::Fence;
use crate::write::{brief, terminating};
use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event as Published;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType};
use kube::{Api, Client};
use serde_json::json;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Events that wait at most; those beyond are lost.
const WAITING: usize = 4096;
/// Events that are published at the same time.
const SIDE_BY_SIDE: usize = 2;
/// An event that comes again within this time is counted up, as `kubectl describe` shows it (`x3 over 5m`).
const SERIES: SignedDuration = SignedDuration::from_mins(6);

/// Takes events.
pub struct Teller(mpsc::Sender<(Event, ObjectReference)>);

/// What is remembered of a published event. The recorder of kube keeps each event whole for as long: some MiB with
/// hundreds of jobs.
struct Told {
    name: String,
    count: i32,
    at: Timestamp,
}

/// Publishes, and counts what comes again.
struct Publisher {
    client: Client,
    controller: String,
    instance: String,
    told: Mutex<HashMap<u64, Told>>,
}

impl Teller {
    /// Begins to publish while the fence is open, as a process of this name; ends when nobody can tell anything any more.
    pub fn start(client: Client, instance: String, fence: Fence) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        let events = stream::unfold(events, |mut events| async { events.recv().await.map(|event| (event, events)) });
        let controller = s3_plan::objects::MANAGER.to_owned();
        let publisher = Arc::new(Publisher { client, controller, instance, told: Mutex::default() });
        tokio::spawn(events.for_each_concurrent(SIDE_BY_SIDE, move |(event, reference)| {
            let (publisher, fence) = (publisher.clone(), fence.clone());
            async move {
                if !fence.leads() {
                    return;
                }
                if let Err(error) = publisher.publish(&event, reference).await
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

impl Publisher {
    async fn publish(&self, event: &Event, regarding: ObjectReference) -> Result<(), kube::Error> {
        let now = Timestamp::now();
        let api: Api<Published> =
            Api::namespaced(self.client.clone(), regarding.namespace.as_deref().unwrap_or("default"));
        let key = key_of(event, &regarding);
        if let Some((name, count)) = self.again(key, now) {
            let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(now)}});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(&series)).await {
                // Somebody has deleted it.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => return other.map(drop),
            }
        }
        let name = format!("{}.{:x}", regarding.name.as_deref().unwrap_or_default(), now.as_nanosecond());
        let published = Published {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: regarding.namespace.clone(),
                ..ObjectMeta::default()
            },
            action: Some(event.action.clone()),
            reason: Some(event.reason.clone()),
            note: event.note.clone(),
            type_: Some(if event.type_ == EventType::Normal { "Normal" } else { "Warning" }.to_owned()),
            event_time: Some(MicroTime(now)),
            regarding: Some(regarding),
            related: event.secondary.clone(),
            reporting_controller: Some(self.controller.clone()),
            reporting_instance: Some(self.instance.clone()),
            ..Published::default()
        };
        api.create(&PostParams::default(), &published).await?;
        self.told.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Told { name, count: 1, at: now });
        Ok(())
    }

    /// Name and new count of an event that was published a short time ago.
    fn again(&self, key: u64, now: Timestamp) -> Option<(String, i32)> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.retain(|_, told| now.duration_since(told.at) < SERIES);
        let told = told.get_mut(&key)?;
        (told.count, told.at) = (told.count.saturating_add(1), now);
        Some((told.name.clone(), told.count))
    }
}

/// What makes two events the same, their notes apart.
fn key_of(event: &Event, regarding: &ObjectReference) -> u64 {
    let mut hasher = DefaultHasher::new();
    let object = (&regarding.kind, &regarding.namespace, &regarding.name, &regarding.uid);
    (object, &event.reason, &event.action, event.type_ == EventType::Normal).hash(&mut hasher);
    hasher.finish()
}
