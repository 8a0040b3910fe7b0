//! One interface to all hubs and buckets.

use crate::FetchError;
use object_store::aws::AmazonS3Builder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use s3_config::{FetchLocation, FetchSource};
use std::sync::Arc;
use std::time::Duration;

/// The public hub.
const HUB: &str = "https://huggingface.co";

/// A way to a source's files, by the paths in its configuration.
pub fn open(source: &FetchSource) -> Result<Arc<dyn ObjectStore>, FetchError> {
    let token = match &source.token_file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(FetchError::io("read", path))?),
        None => None,
    };
    let wrong = |error: object_store::Error| FetchError::Config(format!("{}: {error}", title(&source.location)));
    let store: Arc<dyn ObjectStore> = match &source.location {
        FetchLocation::HuggingFace { repository, revision } => {
            let hub = std::env::var("HF_ENDPOINT").unwrap_or_else(|_| HUB.to_owned());
            let revision = revision.as_deref().unwrap_or("main");
            let url = format!("{}/{repository}/resolve/{revision}", hub.trim_end_matches('/'));
            let mut options = options(&hub);
            if let Some(token) = &token {
                options = options.with_default_headers(bearer(token)?);
            }
            let builder = HttpBuilder::new().with_url(url).with_client_options(options).with_retry(retry());
            Arc::new(builder.build().map_err(wrong)?)
        }
        FetchLocation::S3 { bucket } => {
            let endpoint = std::env::var("AWS_ENDPOINT_URL").unwrap_or_default();
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(options(&endpoint))
                .with_retry(retry());
            builder = match &token {
                Some(text) => credentials(builder, text)?,
                None if given(&[
                    "AWS_ACCESS_KEY_ID",
                    "AWS_WEB_IDENTITY_TOKEN_FILE",
                    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                ]) =>
                {
                    builder
                }
                None => builder.with_skip_signature(true),
            };
            Arc::new(builder.build().map_err(wrong)?)
        }
        FetchLocation::Gs { bucket } => {
            let emulator = std::env::var("STORAGE_EMULATOR_HOST").ok();
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(bucket)
                .with_client_options(options(emulator.as_deref().unwrap_or_default()))
                .with_retry(retry());
            if let Some(emulator) = &emulator {
                builder = builder.with_base_url(emulator);
            }
            builder = match &token {
                Some(key) => builder.with_service_account_key(key),
                None if given(&[
                    "GOOGLE_APPLICATION_CREDENTIALS",
                    "GOOGLE_SERVICE_ACCOUNT",
                    "GOOGLE_SERVICE_ACCOUNT_PATH",
                ]) =>
                {
                    builder
                }
                None => builder.with_skip_signature(true),
            };
            Arc::new(builder.build().map_err(wrong)?)
        }
    };
    Ok(store)
}

/// For people.
pub fn title(location: &FetchLocation) -> String {
    match location {
        FetchLocation::HuggingFace { repository, revision } => match revision {
            Some(revision) => format!("hf://{repository} at {revision}"),
            None => format!("hf://{repository}"),
        },
        FetchLocation::S3 { bucket } => format!("s3://{bucket}"),
        FetchLocation::Gs { bucket } => format!("gs://{bucket}"),
    }
}

/// Files are large, so only silence is bounded, not the whole transfer.
fn options(endpoint: &str) -> ClientOptions {
    ClientOptions::new()
        .with_timeout_disabled()
        .with_connect_timeout(Duration::from_secs(10))
        .with_read_timeout(Duration::from_secs(60))
        .with_allow_http(endpoint.starts_with("http://"))
}

fn retry() -> RetryConfig {
    RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(120), ..RetryConfig::default() }
}

fn bearer(token: &str) -> Result<HeaderMap, FetchError> {
    let value = HeaderValue::try_from(format!("Bearer {}", token.trim()));
    let mut value = value.map_err(|_| FetchError::Config("the token is not one line of plain text".into()))?;
    value.set_sensitive(true);
    Ok(HeaderMap::from_iter([(AUTHORIZATION, value)]))
}

fn given(variables: &[&str]) -> bool {
    variables.iter().any(|variable| std::env::var_os(variable).is_some())
}

/// The first profile of an AWS credentials file.
fn credentials(mut builder: AmazonS3Builder, text: &str) -> Result<AmazonS3Builder, FetchError> {
    let value = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let (Some(id), Some(secret)) = (value("aws_access_key_id"), value("aws_secret_access_key")) else {
        return Err(FetchError::Config(
            "the secret of an s3:// address is no AWS credentials file; write lines aws_access_key_id = … and \
             aws_secret_access_key = …"
                .into(),
        ));
    };
    builder = builder.with_access_key_id(id).with_secret_access_key(secret);
    if let Some(token) = value("aws_session_token") {
        builder = builder.with_token(token);
    }
    Ok(builder)
}
