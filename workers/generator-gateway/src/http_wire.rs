//! The front's wire format: reading requests strictly, writing replies and errors in OpenAI's shape.

use crate::engine::Answered;
use crate::provider::{Call, CallFailure, FailureKind, Finish, Message, Role, Sampling};
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// An error in OpenAI's shape.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
}

impl ApiError {
    /// An error; `kind` is OpenAI's `type`.
    pub fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", None, message)
    }

    /// 404 of a path.
    pub fn not_found(message: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", None, message)
    }

    /// 404 of a model.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{model}` does not exist; GET /v1/models lists those that do");
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", Some("model_not_found"), message)
    }

    /// 500.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", None, message)
    }

    /// A failed call.
    pub fn from_failure(failure: &CallFailure) -> Self {
        let (status, kind) = match failure.kind {
            FailureKind::Unavailable => (StatusCode::SERVICE_UNAVAILABLE, "server_error"),
            FailureKind::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            FailureKind::Rejected => (StatusCode::BAD_REQUEST, "invalid_request_error"),
            FailureKind::Malformed => (StatusCode::BAD_GATEWAY, "server_error"),
        };
        Self::new(status, kind, Some(failure.kind.label()), failure.message.clone())
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": null, "code": self.code}})
    }
}

/// A chat completion request.
#[derive(Debug, Deserialize)]
pub struct Request {
    model: String,
    messages: Vec<WireMessage>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stop: Option<Stop>,
    #[serde(default)]
    stream: Option<bool>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct WireMessage {
    role: String,
    content: Content,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Part {
    Text { text: String },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Stop {
    One(String),
    Many(Vec<String>),
}

impl Request {
    /// Reads a body.
    pub fn read(body: &[u8]) -> Result<Self, ApiError> {
        serde_json::from_slice(body)
            .map_err(|e| ApiError::bad(format!("the body is not a chat completion request: {e}")))
    }

    /// The model's name and the call. Parameters that would change the answer and are not honoured are refused.
    pub fn into_call(self) -> Result<(String, Call), ApiError> {
        if self.stream == Some(true) {
            return Err(ApiError::bad("stream: true is not supported; leave it out to get the answer in one piece"));
        }
        if let Some((name, _)) = self.others.iter().find(|(name, value)| !is_neutral(name, value)) {
            return Err(ApiError::bad(format!("parameter {name} with this value is not supported; leave it out")));
        }
        // answers are evidence here: they repeat unless asked otherwise
        let temperature = self.temperature.unwrap_or(0.0);
        let top_p = self.top_p.unwrap_or(1.0);
        if !((0.0..=2.0).contains(&temperature) && top_p > 0.0 && top_p <= 1.0) {
            return Err(ApiError::bad("temperature must lie in 0..=2 and top_p in (0, 1]"));
        }
        let stop = match self.stop {
            None => Vec::new(),
            Some(Stop::One(one)) => vec![one],
            Some(Stop::Many(many)) => many,
        };
        if stop.len() > 4 || stop.iter().any(String::is_empty) {
            return Err(ApiError::bad("stop takes one to four strings that are not empty"));
        }
        let max_tokens = self.max_completion_tokens.or(self.max_tokens);
        if max_tokens == Some(0) {
            return Err(ApiError::bad("max_tokens must be at least 1"));
        }
        if self.messages.is_empty() {
            return Err(ApiError::bad("messages is empty"));
        }
        let messages = self.messages.into_iter().map(message).collect::<Result<_, _>>()?;
        Ok((self.model, Call { messages, sampling: Sampling { temperature, top_p, max_tokens, stop } }))
    }
}

fn message(wire: WireMessage) -> Result<Message, ApiError> {
    let role = match wire.role.as_str() {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        other => return Err(ApiError::bad(format!("role {other:?} is not one of: system, user, assistant"))),
    };
    let content = match wire.content {
        Content::Text(text) => text,
        Content::Parts(parts) => parts.into_iter().map(|Part::Text { text }| text).collect(),
    };
    Ok(Message { role, content })
}

/// Parameters that ask for nothing, or only label the request.
fn is_neutral(name: &str, value: &Value) -> bool {
    match name {
        "user" | "metadata" | "store" | "service_tier" | "safety_identifier" | "prompt_cache_key" => true,
        "frequency_penalty" | "presence_penalty" => value.is_null() || value.as_f64() == Some(0.0),
        "n" => value.is_null() || value.as_u64() == Some(1),
        "response_format" => value.is_null() || value["type"] == "text",
        "tools" | "functions" | "logit_bias" => {
            value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty)
        }
        _ => value.is_null() || value == &Value::Bool(false),
    }
}

/// The reply of a completion. Its id follows from the content: same request, same bytes.
pub fn completion(model: &str, answered: &Answered) -> Value {
    let made = &answered.completion;
    let finish = match made.finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    };
    let id = s3_artifacts::digest_bytes(format!("{model}\n{}", made.text).as_bytes());
    json!({
        "id": format!("chatcmpl-{}", &id[..24]),
        "object": "chat.completion",
        "created": created(),
        "model": model,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": made.text}, "logprobs": null, "finish_reason": finish}],
        "usage": {
            "prompt_tokens": made.prompt_tokens,
            "completion_tokens": made.completion_tokens,
            "total_tokens": made.prompt_tokens + made.completion_tokens,
        },
    })
}

/// The list of models.
pub fn models<'a>(names: impl Iterator<Item = &'a str>) -> Value {
    let created = created();
    let entry = |name| json!({"id": name, "object": "model", "created": created, "owned_by": "s3-generator-gateway"});
    json!({"object": "list", "data": names.map(entry).collect::<Vec<_>>()})
}

fn created() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn call(extra: &str) -> Result<(String, Call), ApiError> {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#);
        Request::read(body.as_bytes())?.into_call()
    }

    #[test]
    fn the_reference_clients_request_is_read() {
        let (model, call) =
            call(r#","temperature":0,"top_p":1,"frequency_penalty":0,"presence_penalty":0,"max_tokens":10"#).unwrap();
        assert_eq!(model, "m");
        assert_eq!(call.sampling, Sampling::greedy(Some(10), &[]));
        let parts = br#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}]}"#;
        let (_, call) = Request::read(parts).unwrap().into_call().unwrap();
        assert_eq!(call.messages, [Message::new(Role::System, "ab")]);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (extra, part) in [
            (r#","stream":true"#, "stream"),
            (r#","n":2"#, "parameter n"),
            (r#","logprobs":true"#, "logprobs"),
            (r#","tools":[{"type":"function"}]"#, "tools"),
            (r#","frequency_penalty":0.5"#, "frequency_penalty"),
            (r#","seed":7"#, "seed"),
            (r#","temperature":-1"#, "temperature"),
            (r#","stop":["a","b","c","d","e"]"#, "stop"),
            (r#","max_tokens":0"#, "max_tokens"),
            (r#","max_tokens":"ten""#, "max_tokens"),
        ] {
            let error = call(extra).unwrap_err();
            assert_eq!(error.status, StatusCode::BAD_REQUEST);
            assert!(
                error.body()["error"]["message"].as_str().unwrap().contains(part) || extra.contains("ten"),
                "{error:?}"
            );
        }
        for bad in [
            "",
            "{",
            r#"{"model":"m"}"#,
            r#"{"model":"m","messages":[]}"#,
            r#"{"model":"m","messages":[{"role":"tool","content":"x"}]}"#,
        ] {
            assert!(Request::read(bad.as_bytes()).and_then(Request::into_call).is_err(), "{bad}");
        }
    }
}
