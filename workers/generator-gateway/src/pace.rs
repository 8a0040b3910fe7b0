//! Requests and tokens a minute, by key.
//!
//! In no 60 seconds more than the limit goes out: a bucket of a hundredth of it fills at the rest per minute.
//! Tokens are debited before a call by an estimate and settled after it; what was under-estimated is a debt
//! that later calls wait for.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug)]
struct Bucket {
    level: f64,
    size: f64,
    per_second: f64,
    at: Instant,
}

impl Bucket {
    fn new(per_minute: f64, now: Instant) -> Self {
        let size = (per_minute / 100.0).max(1.0);
        Self { level: size, size, per_second: (per_minute - size).max(0.5) / 60.0, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * self.per_second).min(self.size);
        self.at = self.at.max(now);
    }

    /// Time until `amount` may be taken; a larger amount than the bucket holds waits for a full one.
    fn wait(&self, amount: f64) -> Duration {
        let missing = amount.min(self.size) - self.level;
        if missing <= 0.0 { Duration::ZERO } else { Duration::from_secs_f64(missing / self.per_second) }
    }
}

/// The limits of one key. Callers take turns in the order in which they asked.
#[derive(Debug, Default)]
pub struct Pace {
    buckets: Mutex<(Option<Bucket>, Option<Bucket>)>,
    turn: tokio::sync::Mutex<()>,
    limited: bool,
}

impl Pace {
    /// Limits of a minute; without any everything goes out at once.
    pub fn new(requests_per_minute: Option<u32>, tokens_per_minute: Option<u64>) -> Self {
        let now = Instant::now();
        let requests = requests_per_minute.map(|limit| Bucket::new(f64::from(limit), now));
        let tokens = tokens_per_minute.map(|limit| Bucket::new(limit as f64, now));
        let limited = requests.is_some() || tokens.is_some();
        Self { buckets: Mutex::new((requests, tokens)), turn: tokio::sync::Mutex::default(), limited }
    }

    /// Takes one request and `tokens` at `now`, or says how long that is not possible.
    fn take(&self, tokens: f64, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (requests, budget) = &mut *buckets;
        let mut wait = Duration::ZERO;
        for (bucket, amount) in [(&mut *requests, 1.0), (&mut *budget, tokens)] {
            if let Some(bucket) = bucket {
                bucket.fill(now);
                wait = wait.max(bucket.wait(amount));
            }
        }
        if wait > Duration::ZERO {
            return Err(wait);
        }
        for (bucket, amount) in [(requests, 1.0), (budget, tokens)] {
            if let Some(bucket) = bucket {
                bucket.level -= amount;
            }
        }
        Ok(())
    }

    /// Waits for its turn, until the deadline at most: then how much longer it would have been.
    pub async fn admit(&self, tokens: u64, deadline: Option<Instant>) -> Result<(), Duration> {
        if !self.limited {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        loop {
            let now = Instant::now();
            let Err(wait) = self.take(tokens as f64, now) else { return Ok(()) };
            if deadline.is_some_and(|deadline| now + wait > deadline) {
                return Err(wait);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Replaces the estimate of a call by what it used.
    pub fn settle(&self, estimate: u64, used: u64) {
        if !self.limited {
            return;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = &mut buckets.1 {
            tokens.level = (tokens.level + estimate as f64 - used as f64).min(tokens.size);
        }
    }

    /// How long a request that comes now would wait for the rate alone.
    pub fn hint(&self) -> Duration {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (requests, tokens) = &mut *buckets;
        [requests, tokens]
            .into_iter()
            .flatten()
            .map(|bucket| {
                bucket.fill(now);
                bucket.wait(1.0)
            })
            .max()
            .unwrap_or(Duration::ZERO)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Runs a greedy caller on a clock of its own; the times at which it got through.
    fn run(pace: &Pace, tokens: impl Fn(usize) -> (u64, u64), seconds: u64) -> Vec<(f64, u64)> {
        let start = Instant::now();
        let mut now = start;
        let mut passed = Vec::new();
        while now < start + Duration::from_secs(seconds) {
            let (estimate, used) = tokens(passed.len());
            match pace.take(estimate as f64, now) {
                Ok(()) => {
                    pace.settle(estimate, used);
                    passed.push(((now - start).as_secs_f64(), used));
                }
                Err(wait) => now += wait.max(Duration::from_micros(1)),
            }
        }
        passed
    }

    fn most_in_a_minute(passed: &[(f64, u64)], weigh: impl Fn(u64) -> u64) -> u64 {
        let sum =
            |from: f64| passed.iter().filter(|(at, _)| *at >= from && *at < from + 60.0).map(|p| weigh(p.1)).sum();
        passed.iter().map(|(at, _)| sum(*at)).max().unwrap()
    }

    #[test]
    fn no_minute_holds_more_requests_than_the_limit() {
        for limit in [1u32, 7, 60, 600, 5000] {
            let passed = run(&Pace::new(Some(limit), None), |_| (0, 0), 200);
            let most = most_in_a_minute(&passed, |_| 1);
            assert!(most <= u64::from(limit), "{most} of {limit}");
            assert!(passed.len() as f64 >= 0.98 * 3.0 * f64::from(limit) - 2.0, "{} of {limit}", passed.len());
        }
    }

    #[test]
    fn tokens_are_settled_so_wrong_estimates_do_not_add_up() {
        // estimates are half of what is used
        let passed = run(&Pace::new(None, Some(60_000)), |i| (100, 150 + (i as u64 * 37) % 100), 300);
        let total: u64 = passed.iter().map(|p| p.1).sum();
        assert!(total as f64 <= 60_000.0 * 5.0 * 1.01 && total as f64 >= 60_000.0 * 5.0 * 0.97, "{total}");
        assert!(most_in_a_minute(&passed, |used| used) as f64 <= 60_000.0 * 1.01);
    }

    #[tokio::test]
    async fn a_deadline_ends_the_wait_with_a_hint() {
        let pace = Pace::new(Some(1), None);
        pace.admit(0, None).await.unwrap();
        let wait = pace.admit(0, Some(Instant::now() + Duration::from_millis(10))).await.unwrap_err();
        assert!(wait > Duration::from_secs(10), "{wait:?}");
        assert!(pace.hint() > Duration::from_secs(10));
    }
}
