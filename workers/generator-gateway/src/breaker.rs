//! Leaves an endpoint alone that is down, so that calls go elsewhere or wait instead of piling up on it.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Attempts that are looked back on.
const WINDOW: u32 = 16;
/// So many of them must have failed: one attempt in five failing at random never opens it.
const FAILED: u32 = 14;
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
struct State {
    /// The last attempts, newest in the lowest bit; 1 is a failure.
    failures: u32,
    seen: u32,
    /// Closed again only by a success; until then this long a rest at a time.
    rest: Option<Duration>,
    until: Option<Instant>,
}

/// One endpoint's breaker.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

impl Breaker {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to try. After a rest the first one has it alone: it moves the rest on for the others.
    pub fn admit(&self, now: Instant) -> Result<(), Duration> {
        let mut state = self.state();
        let (Some(rest), Some(until)) = (state.rest, state.until) else { return Ok(()) };
        if now < until {
            return Err(until - now);
        }
        state.until = Some(now + rest);
        Ok(())
    }

    /// Notes how an attempt ended.
    pub fn note(&self, outage: bool, now: Instant) {
        let mut state = self.state();
        if !outage {
            if state.rest.is_some() {
                *state = State::default();
            }
            state.failures <<= 1;
            state.seen = (state.seen + 1).min(WINDOW);
            return;
        }
        state.failures = (state.failures << 1) | 1;
        state.seen = (state.seen + 1).min(WINDOW);
        if let Some(rest) = state.rest {
            // attempts that were under way when it opened do not lengthen the rest
            if state.until.is_none_or(|until| now + rest >= until) {
                let longer = (rest * 2).min(LONGEST_REST);
                state.rest = Some(longer);
                state.until = Some(now + longer);
            }
            return;
        }
        let mask = (1 << WINDOW) - 1;
        if state.seen == WINDOW && (state.failures & mask).count_ones() >= FAILED {
            state.rest = Some(FIRST_REST);
            state.until = Some(now + FIRST_REST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_opens_it_and_one_success_closes_it() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..15 {
            assert!(breaker.admit(start).is_ok());
            breaker.note(true, start);
        }
        assert!(breaker.admit(start).is_ok());
        breaker.note(true, start);
        assert!(breaker.admit(start).is_err());
        let later = start + FIRST_REST;
        assert!(breaker.admit(later).is_ok(), "one may try");
        assert!(breaker.admit(later).is_err(), "the others wait for it");
        breaker.note(true, later);
        assert!(breaker.admit(later + FIRST_REST).is_err(), "the rest has doubled");
        assert!(breaker.admit(later + 2 * FIRST_REST).is_ok());
        breaker.note(false, later + 2 * FIRST_REST);
        for _ in 0..5 {
            assert!(breaker.admit(later + 2 * FIRST_REST).is_ok());
        }
    }

    #[test]
    fn one_in_five_failing_never_opens_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let mut state = 1u64;
        for i in 0..200_000 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            assert!(breaker.admit(now).is_ok(), "opened after {i}");
            breaker.note(state.is_multiple_of(5), now);
        }
    }
}
