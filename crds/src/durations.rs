//! Durations as Kubernetes writes them: `1h30m`, `90s`, `250ms`.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration as StdDuration;

/// What a duration looks like; no sign, units from hours to milliseconds.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(h|ms|m|s))+$";

/// A length of time, to the millisecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(StdDuration);

/// Why a text is no duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration; write for example 30s, 5m or 1h30m")]
pub struct DurationError(String);

impl Duration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(StdDuration::from_secs(seconds))
    }
    /// As the standard library's type.
    pub const fn std(self) -> StdDuration {
        self.0
    }
    /// Whole milliseconds.
    pub fn millis(self) -> u64 {
        u64::try_from(self.0.as_millis()).unwrap_or(u64::MAX)
    }
}

impl FromStr for Duration {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        let bad = || DurationError(text.to_owned());
        let mut rest = text;
        let mut total = StdDuration::ZERO;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or_else(bad)?;
            let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
            rest = &rest[digits..];
            let units = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
            let seconds = match &rest[..units] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 0.001,
                _ => return Err(bad()),
            };
            rest = &rest[units..];
            let part = StdDuration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
            total = total.checked_add(part).ok_or_else(bad)?;
        }
        if text.is_empty() {
            Err(bad())
        } else {
            Ok(Self(StdDuration::from_millis((total.as_secs_f64() * 1000.0).round() as u64)))
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.millis();
        let (hours, minutes, seconds, millis) =
            (total / 3_600_000, total / 60_000 % 60, total / 1000 % 60, total % 1000);
        for (count, unit) in [(hours, "h"), (minutes, "m"), (seconds, "s"), (millis, "ms")] {
            if count > 0 {
                write!(f, "{count}{unit}")?;
            }
        }
        if total == 0 { f.write_str("0s") } else { Ok(()) }
    }
}

impl Serialize for Duration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Duration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Duration {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": PATTERN, "maxLength": 32})
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_read_like_kubernetes_writes_them() {
        for (text, millis) in
            [("1h30m", 5_400_000), ("90s", 90_000), ("1.5s", 1500), ("250ms", 250), ("0s", 0), ("1h0m1s", 3_601_000)]
        {
            assert_eq!(text.parse::<Duration>().unwrap().millis(), millis, "{text}");
        }
        for bad in ["", "5", "s", "-5s", "5 s", "1d", "1h30", "1..2s", "99999999999999999999h"] {
            let error = bad.parse::<Duration>().unwrap_err().to_string();
            assert!(error.contains("1h30m"), "{bad}: {error}");
        }
    }

    proptest! {
        #[test]
        fn printing_then_reading_changes_nothing(millis in 0u64..10_000_000_000) {
            let duration = Duration(StdDuration::from_millis(millis));
            prop_assert_eq!(duration.to_string().parse::<Duration>().unwrap(), duration);
        }
    }
}
