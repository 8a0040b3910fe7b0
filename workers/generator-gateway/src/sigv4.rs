//! AWS Signature Version 4 of one request (the service's own documents call it `SigV4`).

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::time::SystemTime;

/// An access key.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub access_key: String,
    pub secret_key: String,
    pub session_token: Option<String>,
}

/// What is signed.
pub(crate) struct Unsigned<'a> {
    pub method: &'a str,
    /// Path as it is sent, percent-encoded.
    pub path: &'a str,
    pub query: &'a str,
    /// Lower-case names; `host` among them.
    pub headers: &'a [(&'a str, &'a str)],
    pub body: &'a [u8],
}

/// `YYYYMMDDTHHMMSSZ`.
pub(crate) fn stamp(now: SystemTime) -> String {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // days to a civil date, counting from 1 March of year 0 in eras of 400 years
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _infallible = write!(out, "{byte:02x}");
        out
    })
}

fn mac(key: &[u8], data: &str) -> Vec<u8> {
    // HMAC takes keys of every length
    match Hmac::<Sha256>::new_from_slice(key) {
        Ok(mut mac) => {
            mac.update(data.as_bytes());
            mac.finalize().into_bytes().to_vec()
        }
        Err(_) => Vec::new(),
    }
}

/// Percent-encodes everything but unreserved characters and, in a path, its slashes.
pub(crate) fn encode(text: &str, keep_slash: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || (keep_slash && byte == b'/') {
            out.push(char::from(byte));
        } else {
            let _infallible = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// The value of `authorization`. `date` is the request's `x-amz-date`.
pub(crate) fn authorization(
    request: &Unsigned<'_>,
    credentials: &Credentials,
    (region, service): (&str, &str),
    date: &str,
) -> String {
    let mut headers: Vec<(&str, String)> = request
        .headers
        .iter()
        .map(|(name, value)| (*name, value.split_whitespace().collect::<Vec<_>>().join(" ")))
        .collect();
    headers.sort();
    let names = headers.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
    let lines = headers.iter().fold(String::new(), |lines, (name, value)| lines + name + ":" + value + "\n");
    let canonical = format!(
        "{}\n{}\n{}\n{lines}\n{names}\n{}",
        request.method,
        // the path that is sent is encoded once more, as every service but S3 wants it
        encode(request.path, true),
        request.query,
        hex(&Sha256::digest(request.body)),
    );
    let scope = format!("{}/{region}/{service}/aws4_request", &date[..8]);
    let to_sign = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical.as_bytes())));
    let mut key = mac(format!("AWS4{}", credentials.secret_key).as_bytes(), &date[..8]);
    for part in [region, service, "aws4_request"] {
        key = mac(&key, part);
    }
    let signature = hex(&mac(&key, &to_sign));
    format!(
        "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
        credentials.access_key
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// The key of AWS's published test suite.
    fn suite() -> Credentials {
        Credentials {
            access_key: "AKIDEXAMPLE".into(),
            secret_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        }
    }

    fn signature(request: &Unsigned<'_>) -> String {
        let value = authorization(request, &suite(), ("us-east-1", "service"), "20150830T123600Z");
        value.rsplit('=').next().unwrap_or("").to_owned()
    }

    const HOST: (&str, &str) = ("host", "example.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20150830T123600Z");

    #[test]
    fn the_published_test_suite_is_signed_alike() {
        let plain = |method| Unsigned { method, path: "/", query: "", headers: &[HOST, DATE], body: b"" };
        // get-vanilla, post-vanilla, get-vanilla-query-order-key-case, post-x-www-form-urlencoded
        assert_eq!(
            authorization(&plain("GET"), &suite(), ("us-east-1", "service"), "20150830T123600Z"),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"
        );
        assert_eq!(signature(&plain("POST")), "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b");
        let query = Unsigned { query: "Param1=value1&Param2=value2", ..plain("GET") };
        assert_eq!(signature(&query), "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500");
        let form = [("content-type", "application/x-www-form-urlencoded"), HOST, DATE];
        let posted = Unsigned { headers: &form, body: b"Param1=value1", ..plain("POST") };
        assert_eq!(signature(&posted), "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a");
        // get-header-value-trim
        let spaced = [HOST, ("my-header1", " value1"), ("my-header2", " \"a   b   c\""), DATE];
        let trimmed = Unsigned { headers: &spaced, ..plain("GET") };
        assert_eq!(signature(&trimmed), "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736");
    }

    #[test]
    fn dates_and_paths_are_written_as_aws_wants_them() {
        let at = |seconds| stamp(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "19700101T000000Z");
        assert_eq!(at(1_440_938_160), "20150830T123600Z");
        assert_eq!(at(951_782_400), "20000229T000000Z");
        assert_eq!(at(4_107_542_399), "21000228T235959Z");
        assert_eq!(encode("anthropic.claude-v1:0", false), "anthropic.claude-v1%3A0");
        assert_eq!(encode("/model/a%3A0/converse", true), "/model/a%253A0/converse");
    }
}
