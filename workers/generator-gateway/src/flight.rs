//! One call for many who ask the same at the same time.

use crate::cache::Key;
use crate::memory::FirstBytes;
use crate::provider::{CallFailure, Completion};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::Notify;

/// How a shared call ended; none when whoever made it gave up.
pub(crate) type Landed = Option<Result<Arc<Completion>, CallFailure>>;

type Known = HashMap<Key, Arc<Flight>, FirstBytes>;

/// Calls under way by key.
#[derive(Clone, Default)]
pub(crate) struct Flights(Arc<Mutex<Known>>);

/// A call under way.
#[derive(Default)]
pub(crate) struct Flight {
    landed: OnceLock<Landed>,
    landing: Notify,
}

/// What one who asks has to do.
pub(crate) enum Part {
    /// Make the call.
    Lead(Lead),
    /// Wait for it.
    Follow(Arc<Flight>),
}

/// The duty to make a call. Dropped without an end, the next who asks takes it over.
pub(crate) struct Lead {
    flights: Flights,
    key: Key,
    flight: Arc<Flight>,
}

impl Flights {
    fn table(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the call of a key, or starts it.
    pub fn join(&self, key: Key) -> Part {
        let mut table = self.table();
        if let Some(flight) = table.get(&key) {
            return Part::Follow(flight.clone());
        }
        let flight = Arc::<Flight>::default();
        table.insert(key, flight.clone());
        Part::Lead(Lead { flights: self.clone(), key, flight })
    }
}

impl Lead {
    /// Tells all who wait.
    pub fn land(self, result: Result<Arc<Completion>, CallFailure>) {
        // it is set once: dropping the duty changes nothing any more
        let _ = self.flight.landed.set(Some(result));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.table().remove(&self.key);
        // whoever landed has set it already
        let _ = self.flight.landed.set(None);
        self.flight.landing.notify_waiters();
    }
}

/// Waits for a call; none when whoever made it gave up.
pub(crate) async fn wait(flight: Arc<Flight>) -> Landed {
    loop {
        // made before the look, so that a landing in between wakes it
        let landing = flight.landing.notified();
        if let Some(landed) = flight.landed.get() {
            return landed.clone();
        }
        landing.await;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::provider::FailureKind;

    #[tokio::test]
    async fn followers_get_the_leaders_end_or_take_over() {
        let flights = Flights::default();
        let Part::Lead(lead) = flights.join([1; 32]) else { panic!("the first leads") };
        let Part::Follow(one) = flights.join([1; 32]) else { panic!("the second follows") };
        assert!(matches!(flights.join([2; 32]), Part::Lead(_)));
        drop(lead);
        assert!(wait(one).await.is_none());
        let Part::Lead(lead) = flights.join([1; 32]) else { panic!("a duty that was dropped is free") };
        let Part::Follow(two) = flights.join([1; 32]) else { panic!("the next follows") };
        lead.land(Err(CallFailure::new(FailureKind::Unavailable, "down")));
        assert_eq!(wait(two).await.unwrap().unwrap_err().message, "down");
        assert!(flights.table().is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn everybody_who_waits_is_told() {
        for round in 0..200u8 {
            let flights = Flights::default();
            let Part::Lead(lead) = flights.join([round; 32]) else { panic!("the first leads") };
            let mut waiting = tokio::task::JoinSet::new();
            for _ in 0..16 {
                let Part::Follow(flight) = flights.join([round; 32]) else { panic!("the others follow") };
                waiting.spawn(wait(flight));
            }
            lead.land(Err(CallFailure::new(FailureKind::Unavailable, "down")));
            assert!(waiting.join_all().await.into_iter().all(|landed| landed.unwrap().is_err()));
        }
    }
}
