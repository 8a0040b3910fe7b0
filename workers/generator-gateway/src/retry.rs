//! When and how long to wait before an upstream call is tried again.

use crate::FailureKind;
use std::time::{Duration, SystemTime};

/// Waiting times between attempts.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// Attempts in all.
    pub attempts: u32,
    /// First waiting time; doubles with each attempt.
    pub base: Duration,
    /// Longest waiting time of our own choosing.
    pub cap: Duration,
    /// Longest `Retry-After` that is waited for; an upstream that asks for more counts as rate limited now.
    pub longest_hint: Duration,
}

impl RetryPolicy {
    /// 0.25 s doubling to 16 s.
    pub fn new(attempts: u32) -> Self {
        Self {
            attempts: attempts.max(1),
            base: Duration::from_millis(250),
            cap: Duration::from_secs(16),
            longest_hint: Duration::from_secs(120),
        }
    }

    /// Time before attempt `attempt + 1`, `attempt` counted from 1; none when no further attempt is due.
    ///
    /// `spread` in 0..1 places the wait in the upper half of its interval, so that many callers that failed
    /// together do not return together. A hint of the upstream is never undercut.
    pub fn wait(&self, attempt: u32, hint: Option<Duration>, spread: f64) -> Option<Duration> {
        if attempt >= self.attempts || hint.is_some_and(|hint| hint > self.longest_hint) {
            return None;
        }
        let full = self.base.saturating_mul(1 << (attempt - 1).min(16)).min(self.cap);
        let own = full.mul_f64(0.5 + 0.5 * spread.clamp(0.0, 1.0));
        Some(hint.map_or(own, |hint| hint.max(own)))
    }
}

/// One failed attempt.
#[derive(Debug)]
pub struct Attempt {
    /// What the call fails with when it was the last one.
    pub kind: FailureKind,
    /// Reason label of the retry metric.
    pub reason: &'static str,
    /// One line.
    pub message: String,
    /// The upstream's `Retry-After`.
    pub hint: Option<Duration>,
    /// Whether another attempt may succeed.
    pub retry: bool,
}

impl Attempt {
    /// An attempt that is worth repeating.
    pub fn again(kind: FailureKind, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, reason, message: message.into(), hint: None, retry: true }
    }

    /// A refusal.
    pub fn refused(message: impl Into<String>) -> Self {
        Self { kind: FailureKind::Rejected, reason: "rejected", message: message.into(), hint: None, retry: false }
    }
}

/// How a status other than 200 counts: 429 and outages are tried again, other refusals are final.
pub fn classify(status: u16, hint: Option<Duration>, message: String) -> Attempt {
    match status {
        429 => Attempt { hint, ..Attempt::again(FailureKind::RateLimited, "429", message) },
        // 408 and 425 are the server's own timeouts; 529 means overloaded at some providers
        408 | 425 | 500..=599 => Attempt { hint, ..Attempt::again(FailureKind::Unavailable, "5xx", message) },
        300..=399 => Attempt::refused(format!("{message}; redirects are not followed, correct baseUrl")),
        _ => Attempt::refused(message),
    }
}

/// `Retry-After` as seconds or as a date (RFC 9110, 10.2.3).
pub fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if let Ok(seconds) = value.parse::<f64>() {
        return (seconds >= 0.0 && seconds.is_finite())
            .then(|| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

/// A number in 0..1 that differs from call to call; only spreads waiting times.
pub fn spread() -> f64 {
    use std::hash::{BuildHasher, Hasher};
    let noise = std::collections::hash_map::RandomState::new().build_hasher().finish();
    (noise >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap_and_end() {
        let policy = RetryPolicy::new(8);
        let waits: Vec<_> = (1..9).map(|attempt| policy.wait(attempt, None, 1.0)).collect();
        let seconds: Vec<_> = waits.iter().flatten().map(Duration::as_secs_f64).collect();
        assert_eq!(seconds, [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]);
        assert_eq!(waits[7], None);
        assert_eq!(policy.wait(3, None, 0.0), Some(Duration::from_millis(500)));
    }

    #[test]
    fn a_hint_is_never_undercut_and_a_long_one_ends() {
        let policy = RetryPolicy::new(6);
        assert_eq!(policy.wait(1, Some(Duration::from_secs(7)), 0.3), Some(Duration::from_secs(7)));
        assert_eq!(policy.wait(6, Some(Duration::from_secs(1)), 0.3), None);
        assert_eq!(policy.wait(1, Some(Duration::from_secs(3600)), 0.3), None);
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(retry_after("1.5", now), Some(Duration::from_millis(1500)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:40 GMT", now), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:30 GMT", now), Some(Duration::ZERO));
        assert_eq!(retry_after("soon", now), None);
        assert_eq!(retry_after("-1", now), None);
    }

    #[test]
    fn only_outages_and_limits_are_tried_again() {
        for (status, kind, retry) in [
            (429, FailureKind::RateLimited, true),
            (500, FailureKind::Unavailable, true),
            (503, FailureKind::Unavailable, true),
            (408, FailureKind::Unavailable, true),
            (400, FailureKind::Rejected, false),
            (401, FailureKind::Rejected, false),
            (404, FailureKind::Rejected, false),
            (302, FailureKind::Rejected, false),
        ] {
            let attempt = classify(status, None, String::new());
            assert_eq!((attempt.kind, attempt.retry), (kind, retry), "{status}");
        }
    }
}
