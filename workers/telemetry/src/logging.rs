//! Logs on standard error: text for people, JSON when `S3_LOG_FORMAT=json`.

use tracing_subscriber::EnvFilter;

/// Starts logging; `RUST_LOG` filters (default `info`). A second call changes nothing.
pub fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A subscriber that is already set (tests) stays; there is nothing to do about it here.
    let _ = if std::env::var("S3_LOG_FORMAT").is_ok_and(|format| format == "json") {
        builder.json().try_init()
    } else {
        builder.with_ansi(false).try_init()
    };
}
