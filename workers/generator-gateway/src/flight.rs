//! One call for many who ask the same at the same time.

use crate::cache::Key;
use crate::memory::FirstBytes;
use crate::provider::{CallFailure, Completion};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// How a shared call ended; none when whoever made it gave up.
pub(crate) type Landed = Option<Result<Arc<Completion>, CallFailure>>;

type Table = Mutex<HashMap<Key, watch::Receiver<Landed>, FirstBytes>>;

/// Calls under way by key.
#[derive(Clone, Default)]
pub(crate) struct Flights(Arc<Table>);

/// What one who asks has to do.
pub(crate) enum Part {
    /// Make the call.
    Lead(Lead),
    /// Wait for it.
    Follow(watch::Receiver<Landed>),
}

/// The duty to make a call. Dropped without an end, the next who asks takes it over.
pub(crate) struct Lead {
    flights: Flights,
    key: Key,
    end: watch::Sender<Landed>,
}

impl Flights {
    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<Key, watch::Receiver<Landed>, FirstBytes>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the call of a key, or starts it.
    pub fn join(&self, key: Key) -> Part {
        let mut table = self.table();
        if let Some(flight) = table.get(&key) {
            return Part::Follow(flight.clone());
        }
        let (end, flight) = watch::channel(None);
        table.insert(key, flight);
        Part::Lead(Lead { flights: self.clone(), key, end })
    }
}

impl Lead {
    /// Tells all who wait.
    pub fn land(self, result: Result<Arc<Completion>, CallFailure>) {
        // nobody waiting is the common case
        let _ = self.end.send(Some(result));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.flights.table().remove(&self.key);
    }
}

/// Waits for a call; none when whoever made it gave up.
pub(crate) async fn wait(mut flight: watch::Receiver<Landed>) -> Landed {
    let landed = flight.wait_for(Option::is_some).await.ok()?;
    landed.clone()
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
}
