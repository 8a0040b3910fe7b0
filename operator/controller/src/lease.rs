//! One leader at a time, by a `coordination.k8s.io` `Lease`.
//!
//! A holder may write only until [`Fence`]'s time, which lies before the time at which anybody else may take the
//! lease: it is set when a renewal was *sent*, and ends a third of the lease earlier. So a leader that cannot reach
//! the API server stops writing before another can begin, without having to be told.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// Until when this process may write.
#[derive(Clone, Debug, Default)]
pub struct Fence(Arc<Mutex<Option<Instant>>>);

impl Fence {
    /// How long writing is still allowed; none when it is not.
    pub fn left(&self) -> Option<Duration> {
        let until = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        until?.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())
    }

    /// Whether this process leads.
    pub fn leads(&self) -> bool {
        self.left().is_some()
    }

    fn allow(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Ends it now.
    pub fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// A fence that never closes by itself, for one process alone.
    pub fn open() -> Self {
        let fence = Self::default();
        fence.allow(Instant::now() + Duration::from_secs(10 * 365 * 86_400));
        fence
    }
}

/// The lease and who wants it.
pub struct Election {
    api: Api<Lease>,
    name: String,
    holder: String,
    duration: Duration,
    fence: Fence,
    /// What was seen last, and since when it has not changed: clocks of others are not trusted.
    seen: Option<(String, Instant)>,
}

impl Election {
    /// Of one process.
    pub fn new(client: Client, namespace: &str, name: &str, holder: String, duration: Duration, fence: Fence) -> Self {
        let api = Api::namespaced(client, namespace);
        Self { api, name: name.to_owned(), holder, duration, fence, seen: None }
    }

    /// Pause between two looks.
    pub fn period(&self) -> Duration {
        self.duration / 5
    }

    /// Looks once: takes a free lease, renews one's own. Returns whether this process holds it.
    pub async fn look(&mut self) -> Result<bool, kube::Error> {
        let sent = Instant::now();
        let until = sent + self.duration * 2 / 3;
        let look = tokio::time::timeout(self.duration / 3, self.turn());
        let held = match look.await {
            Ok(held) => held?,
            // No answer: whether it was renewed is not known, so it counts as not renewed.
            Err(_) => return Ok(self.fence.leads()),
        };
        if held {
            self.fence.allow(until);
        } else {
            self.fence.close();
        }
        Ok(held)
    }

    async fn turn(&mut self) -> Result<bool, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(None)) };
            return taken(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.clone().unwrap_or_default();
        let mine = holder == self.holder;
        let state = format!("{holder} {:?} {:?}", spec.renew_time, lease.metadata.resource_version);
        let since = match &self.seen {
            Some((last, since)) if *last == state => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((state, now));
                now
            }
        };
        let theirs = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let lasts = theirs.map_or(self.duration, Duration::from_secs).max(self.duration);
        if !mine && !holder.is_empty() && since.elapsed() < lasts {
            return Ok(false);
        }
        // With the version that was read: of several that try, one succeeds.
        let lease = Lease { metadata: lease.metadata, spec: Some(self.spec(Some((&spec, mine)))) };
        taken(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn spec(&self, old: Option<(&LeaseSpec, bool)>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let (acquired, transitions) = match old {
            Some((old, true)) => (old.acquire_time.clone(), old.lease_transitions),
            Some((old, false)) => (Some(now.clone()), Some(old.lease_transitions.unwrap_or(0) + 1)),
            None => (Some(now.clone()), Some(0)),
        };
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs()).ok(),
            acquire_time: acquired,
            renew_time: Some(now),
            lease_transitions: transitions,
            ..LeaseSpec::default()
        }
    }

    /// Lets go at the end, so that the next need not wait. Everything that writes must have ended before.
    pub async fn resign(self) -> Result<(), kube::Error> {
        self.fence.close();
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.holder)) else {
            return Ok(());
        };
        spec.holder_identity = Some(String::new());
        taken(self.api.replace(&self.name, &PostParams::default(), &lease).await).map(drop)
    }
}

/// A conflict means that somebody else was faster.
fn taken(result: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match result {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fence_closes_by_itself() {
        let fence = Fence::default();
        assert!(!fence.leads());
        fence.allow(Instant::now() + Duration::from_secs(60));
        assert!(fence.leads());
        fence.allow(Instant::now());
        assert!(!fence.leads());
        let open = Fence::open();
        let other = open.clone();
        open.close();
        assert!(!other.leads());
    }
}
