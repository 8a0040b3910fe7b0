//! Time and a little noise.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use sha2::{Digest, Sha256};

/// Now.
pub fn now() -> Time {
    // Conditions and records are kept to the second, as the server prints them.
    Time(Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default())
}

/// Seconds since 1970.
pub fn seconds(time: &Time) -> i64 {
    time.0.as_second()
}

/// A number that depends on the text and on the moment.
pub fn noise(text: &str) -> u32 {
    let moment = Timestamp::now().as_nanosecond();
    let digest = Sha256::digest(format!("{text}{moment}"));
    u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])
}

/// The first sixteen hex digits of a value's sha256.
pub fn digest(value: &serde_json::Value) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(16);
    for byte in &Sha256::digest(value.to_string())[..8] {
        // writing to a String cannot fail
        let _ = write!(text, "{byte:02x}");
    }
    text
}
