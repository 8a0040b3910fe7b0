//! The wire formats behind one face: what is sent where, and how replies are read.

use crate::aws_credentials::AwsKeys;
use crate::openai_wire::Partial;
use crate::provider::{Call, Completion};
use crate::retry::Attempt;
use crate::secret::SecretFile;
use crate::sigv4::{self, Unsigned};
use crate::{anthropic_wire, bedrock_wire, openai_wire};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue};
use std::borrow::Cow;
use std::sync::Arc;
use std::time::SystemTime;

/// Who is spoken to, and in what tongue.
pub(crate) enum Wire {
    OpenAi { model: String },
    Azure { deployment: String, api_version: String },
    Anthropic { model: String },
    Bedrock { model: String, region: String },
}

/// What proves who asks.
pub(crate) enum Keys {
    None,
    File(SecretFile),
    Aws(AwsKeys),
}

/// Header lines; few, and each name once.
pub(crate) type Headers = Vec<(HeaderName, HeaderValue)>;

/// A request that is ready to be sent, and the secrets in it, so that no message repeats them.
pub(crate) struct Outgoing<'a> {
    pub url: Cow<'a, Url>,
    pub headers: Headers,
    pub body: Vec<u8>,
    pub secret: Option<Arc<str>>,
}

fn header(value: &str) -> Result<HeaderValue, Attempt> {
    HeaderValue::from_str(value).map_err(|_| Attempt::refused("the key cannot stand in a header"))
}

fn sensitive(value: &str) -> Result<HeaderValue, Attempt> {
    let mut value = header(value)?;
    value.set_sensitive(true);
    Ok(value)
}

impl Wire {
    /// Kind and model: what decides the text of an answer.
    pub fn identity(&self) -> (&'static str, &str) {
        match self {
            Self::OpenAi { model } => ("openAi", model),
            Self::Azure { deployment, .. } => ("azureOpenAi", deployment),
            Self::Anthropic { model } => ("anthropic", model),
            Self::Bedrock { model, .. } => ("bedrock", model),
        }
    }

    /// The address that calls of a server at `base` go to.
    pub fn address(&self, base: &str) -> String {
        let base = base.trim_end_matches('/');
        match self {
            Self::OpenAi { .. } => format!("{base}/chat/completions"),
            Self::Azure { deployment, api_version } => format!(
                "{base}/openai/deployments/{}/chat/completions?api-version={}",
                sigv4::encode(deployment, false),
                sigv4::encode(api_version, false)
            ),
            Self::Anthropic { .. } => format!("{base}/v1/messages"),
            Self::Bedrock { model, .. } => format!("{base}/model/{}/converse", sigv4::encode(model, false)),
        }
    }

    /// Whether a call can be streamed; else its text comes in one piece.
    pub fn streams(&self, call: &Call) -> bool {
        match self {
            Self::OpenAi { .. } | Self::Azure { .. } => call.sampling.logprobs.is_none(),
            Self::Anthropic { .. } => !anthropic_wire::has_own_stops(call),
            Self::Bedrock { .. } => false,
        }
    }

    /// The request for a call.
    pub async fn outgoing<'a>(
        &self,
        url: &'a Url,
        call: &Call,
        stream: bool,
        keys: &Keys,
    ) -> Result<Outgoing<'a>, Attempt> {
        let mut url = Cow::Borrowed(url);
        let body = match self {
            Self::OpenAi { model } => {
                if call.text.is_some() {
                    let path = url.path().strip_suffix("/chat/completions").unwrap_or("").to_owned();
                    url.to_mut().set_path(&format!("{path}/completions"));
                }
                openai_wire::body(model, call, stream)
            }
            Self::Azure { .. } if call.text.is_some() => {
                return Err(Attempt::refused("this provider takes chats only; use /v1/chat/completions"));
            }
            Self::Azure { .. } => openai_wire::body("", call, stream),
            Self::Anthropic { model } => anthropic_wire::body(model, call, stream)?,
            Self::Bedrock { .. } => bedrock_wire::body(call)?,
        };
        let mut headers = Headers::with_capacity(6);
        headers.push((CONTENT_TYPE, HeaderValue::from_static("application/json")));
        let mut secret = None;
        match keys {
            Keys::None => {}
            Keys::File(file) => {
                let key = file.key().map_err(Attempt::refused)?;
                headers.push(match self {
                    Self::Azure { .. } => (HeaderName::from_static("api-key"), sensitive(&key)?),
                    Self::Anthropic { .. } => (HeaderName::from_static("x-api-key"), sensitive(&key)?),
                    _ => (AUTHORIZATION, sensitive(&format!("Bearer {key}"))?),
                });
                secret = Some(key);
            }
            Keys::Aws(keys) => {
                let credentials = keys.now().await.map_err(Attempt::refused)?;
                sign(&url, &body, &credentials, self, &mut headers)?;
                secret = Some(credentials.access_key.as_str().into());
            }
        }
        if matches!(self, Self::Anthropic { .. }) {
            let version = HeaderValue::from_static(anthropic_wire::VERSION);
            headers.push((HeaderName::from_static("anthropic-version"), version));
        }
        Ok(Outgoing { url, headers, body, secret })
    }

    /// Reads a whole reply of status 200.
    pub fn read(&self, bytes: &[u8], call: &Call) -> Result<Completion, Attempt> {
        match self {
            Self::OpenAi { .. } | Self::Azure { .. } => openai_wire::parse(bytes),
            Self::Anthropic { .. } => anthropic_wire::parse(bytes).map(|c| anthropic_wire::apply_own_stops(call, c)),
            Self::Bedrock { .. } => bedrock_wire::parse(bytes).map(|c| anthropic_wire::apply_own_stops(call, c)),
        }
    }

    /// Reads one event of a stream; the new text, if there is some.
    pub fn event(&self, data: &str, partial: &mut Partial) -> Result<Option<String>, Attempt> {
        match self {
            Self::Anthropic { .. } => anthropic_wire::event(data, partial),
            _ => openai_wire::event(data, partial),
        }
    }
}

fn sign(
    url: &Url,
    body: &[u8],
    credentials: &sigv4::Credentials,
    wire: &Wire,
    headers: &mut Headers,
) -> Result<(), Attempt> {
    let Wire::Bedrock { region, .. } = wire else { return Ok(()) };
    let date = sigv4::stamp(SystemTime::now());
    let host = match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (host, _) => host.unwrap_or("").to_owned(),
    };
    let mut signed = vec![("content-type", "application/json"), ("host", host.as_str()), ("x-amz-date", date.as_str())];
    if let Some(token) = &credentials.session_token {
        signed.push(("x-amz-security-token", token));
        headers.push((HeaderName::from_static("x-amz-security-token"), sensitive(token)?));
    }
    let request = Unsigned { method: "POST", path: url.path(), query: "", headers: &signed, body };
    let value = sigv4::authorization(&request, credentials, (region, "bedrock"), &date);
    headers.push((HeaderName::from_static("x-amz-date"), header(&date)?));
    headers.push((AUTHORIZATION, sensitive(&value)?));
    Ok(())
}
