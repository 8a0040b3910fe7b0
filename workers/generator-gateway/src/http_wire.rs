//! The front's wire format: reading requests strictly, writing replies and errors in OpenAI's shape.

use crate::engine::Answered;
use crate::json::{push_hex, push_number, push_quoted};
use crate::provider::{Call, CallFailure, Completion, FailureKind, Finish, Message, Role, Sampling};
use hyper::StatusCode;
use serde::Deserialize;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::borrow::Cow;

/// An error in OpenAI's shape.
#[derive(Debug)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    message: String,
    retry_after: Option<std::time::Duration>,
}

impl ApiError {
    /// An error; `kind` is OpenAI's `type`.
    pub fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, message: message.into(), retry_after: None }
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
            FailureKind::Deadline => (StatusCode::GATEWAY_TIMEOUT, "server_error"),
            // what OpenAI says when the account is empty; clients do not try that again
            FailureKind::Budget => (StatusCode::PAYMENT_REQUIRED, "insufficient_quota"),
        };
        let error = Self::new(status, kind, Some(failure.kind.label()), failure.message.clone());
        Self { retry_after: failure.retry_after, ..error }
    }

    /// Whole seconds after which to come back.
    pub fn retry_after(&self) -> Option<u64> {
        let busy = matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
        let hint = self.retry_after.map(|hint| (hint.as_secs_f64().ceil() as u64).max(1));
        hint.filter(|_| busy).or((self.status == StatusCode::TOO_MANY_REQUESTS).then_some(1))
    }

    /// The body.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": null, "code": self.code}})
    }
}

/// A request for a completion: of a chat, or of a plain text.
#[derive(Debug, Default)]
pub struct Request {
    model: String,
    messages: Option<Vec<Message>>,
    prompt: Option<Value>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stop: Option<Stop>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<Value>,
    top_logprobs: Option<u8>,
    others: Map<String, Value>,
}

/// Read member by member: a derived reader that keeps unknown members goes over everything twice.
impl<'de> Deserialize<'de> for Request {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Request;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a completion request")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Request, A::Error> {
                let mut request = Request::default();
                let mut has_model = false;
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    match &*name {
                        "model" => {
                            request.model = map.next_value()?;
                            has_model = true;
                        }
                        "messages" => request.messages = Some(map.next_value()?),
                        "prompt" => request.prompt = map.next_value()?,
                        "temperature" => request.temperature = map.next_value()?,
                        "top_p" => request.top_p = map.next_value()?,
                        "max_tokens" => request.max_tokens = map.next_value()?,
                        "max_completion_tokens" => request.max_completion_tokens = map.next_value()?,
                        "stop" => request.stop = map.next_value()?,
                        "stream" => request.stream = map.next_value()?,
                        "stream_options" => request.stream_options = map.next_value()?,
                        "logprobs" => request.logprobs = map.next_value()?,
                        "top_logprobs" => request.top_logprobs = map.next_value()?,
                        _ => {
                            request.others.insert(name.into_owned(), map.next_value()?);
                        }
                    }
                }
                if has_model { Ok(request) } else { Err(A::Error::missing_field("model")) }
            }
        }
        deserializer.deserialize_map(Members)
    }
}

/// What a stream is to hold beside the text.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
}

/// How the reply is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manner {
    /// Piece by piece.
    pub stream: bool,
    /// A stream's last event tells the tokens used.
    pub usage: bool,
    /// A chat, else a plain text.
    pub chat: bool,
}

/// A message as it comes: other members than these two may ask for nothing.
impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Message;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a message with role and content")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
                let (mut role, mut content) = (None, None);
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    match &*name {
                        "role" => role = Some(map.next_value::<Role>()?),
                        "content" => content = Some(map.next_value::<Content>()?.0),
                        other => {
                            if !is_neutral(other, &map.next_value()?) {
                                let message = format!("member {other} of a message is not supported; leave it out");
                                return Err(A::Error::custom(message));
                            }
                        }
                    }
                }
                let role = role.ok_or_else(|| A::Error::missing_field("role"))?;
                Ok(Message { role, content: content.ok_or_else(|| A::Error::missing_field("content"))? })
            }
        }
        deserializer.deserialize_map(Members)
    }
}

impl<'de> Deserialize<'de> for Role {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = Cow::<'de, str>::deserialize(deserializer)?;
        match &*name {
            "system" | "developer" => Ok(Self::System),
            "user" => Ok(Self::User),
            "assistant" => Ok(Self::Assistant),
            other => Err(D::Error::custom(format!("role {other:?} is not one of: system, user, assistant"))),
        }
    }
}

/// A text, or the texts of parts one after the other.
struct Content(String);

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Content;
            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("a text or a list of text parts")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content(text.to_owned()))
            }
            fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Content, E> {
                Ok(Content(text))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Content, A::Error> {
                let mut whole = String::new();
                while let Some(Part::Text { text }) = parts.next_element()? {
                    whole.push_str(&text);
                }
                Ok(Content(whole))
            }
        }
        deserializer.deserialize_any(Texts)
    }
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
        // checked once as a whole, not text by text
        let body = std::str::from_utf8(body).map_err(|_| ApiError::bad("the body is not UTF-8"))?;
        serde_json::from_str(body).map_err(|e| ApiError::bad(format!("the body is not a completion request: {e}")))
    }

    /// The model's name, the call and how its reply is wanted. Parameters that would change the answer and are
    /// not honoured are refused.
    pub fn into_call(self, chat: bool) -> Result<(String, Call, Manner), ApiError> {
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
        let stream = self.stream == Some(true);
        let logprobs = logprobs(chat, self.logprobs.as_ref(), self.top_logprobs)?;
        if stream && logprobs.is_some() {
            return Err(ApiError::bad("logprobs come with whole answers only; leave out stream or logprobs"));
        }
        let sampling = Sampling { temperature, top_p, max_tokens, stop, logprobs };
        let usage = self.stream_options.is_some_and(|options| options.include_usage);
        let manner = Manner { stream, usage, chat };
        if chat {
            let messages = self.messages.unwrap_or_default();
            if messages.is_empty() || self.prompt.is_some() {
                return Err(ApiError::bad("a chat completion takes messages, and at least one"));
            }
            return Ok((self.model, Call::chat(messages, sampling), manner));
        }
        let (Some(Value::String(text)), None) = (self.prompt, self.messages) else {
            return Err(ApiError::bad("a completion takes one prompt, a string"));
        };
        if text.is_empty() {
            return Err(ApiError::bad("prompt is empty"));
        }
        Ok((self.model, Call { text: Some(text), ..Call::chat(Vec::new(), sampling) }, manner))
    }
}

/// How many alternatives a token: chats switch log-probabilities on and name the number apart.
fn logprobs(chat: bool, wanted: Option<&Value>, top: Option<u8>) -> Result<Option<u8>, ApiError> {
    let number = |count: Option<u64>| {
        let count = count.and_then(|count| u8::try_from(count).ok()).filter(|count| *count <= 20);
        count.map(Some).ok_or_else(|| ApiError::bad("at most 20 log-probabilities a token can be asked for"))
    };
    match (chat, wanted) {
        (_, None | Some(Value::Null)) | (true, Some(Value::Bool(false))) => Ok(None),
        (true, Some(Value::Bool(true))) => number(Some(u64::from(top.unwrap_or(0)))),
        (false, Some(Value::Number(count))) => number(count.as_u64()),
        (true, Some(_)) => Err(ApiError::bad("logprobs of a chat is true or false; top_logprobs is their number")),
        (false, Some(_)) => Err(ApiError::bad("logprobs of a completion is a number")),
    }
}

/// Parameters that ask for nothing, or only label the request.
fn is_neutral(name: &str, value: &Value) -> bool {
    match name {
        "user" | "metadata" | "store" | "service_tier" | "safety_identifier" | "prompt_cache_key" => true,
        "frequency_penalty" | "presence_penalty" => value.is_null() || value.as_f64() == Some(0.0),
        "n" | "best_of" => value.is_null() || value.as_u64() == Some(1),
        "response_format" => value.is_null() || value["type"] == "text",
        "tools" | "functions" | "logit_bias" | "tool_calls" | "annotations" => {
            value.is_null()
                || value.as_array().is_some_and(Vec::is_empty)
                || value.as_object().is_some_and(Map::is_empty)
        }
        _ => value.is_null() || value == &Value::Bool(false),
    }
}

fn finish_reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
    }
}

/// A string's JSON form. Strings always have one.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

fn usage(made: &Completion) -> String {
    format!(
        r#"{{"prompt_tokens":{},"completion_tokens":{},"total_tokens":{}}}"#,
        made.prompt_tokens,
        made.completion_tokens,
        u64::from(made.prompt_tokens) + u64::from(made.completion_tokens)
    )
}

/// The reply of a completion. Its id follows from the content: same request, same bytes.
pub fn completion(model: &str, answered: &Answered, chat: bool) -> Vec<u8> {
    let made = &answered.completion;
    let model = answered.fallback.as_deref().unwrap_or(model);
    let id = Sha256::new().chain_update(model).chain_update("\n").chain_update(&made.text).finalize();
    let logprobs = made.logprobs.as_deref().unwrap_or("null");
    let mut out = Vec::with_capacity(384 + 2 * model.len() + made.text.len() + logprobs.len());
    let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
    put(if chat { r#"{"id":"chatcmpl-"# } else { r#"{"id":"cmpl-"# });
    push_hex(&mut out, &id[..12]);
    let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
    put(if chat { r#"","object":"chat.completion","created":"# } else { r#"","object":"text_completion","created":"# });
    push_number(&mut out, created());
    out.extend_from_slice(br#","model":"#);
    push_quoted(&mut out, model);
    out.extend_from_slice(br#","choices":[{"index":0,"#);
    out.extend_from_slice(if chat { br#""message":{"role":"assistant","content":"# } else { br#""text":"# });
    push_quoted(&mut out, &made.text);
    let mut put = |text: &str| out.extend_from_slice(text.as_bytes());
    put(if chat { r#"},"logprobs":"# } else { r#","logprobs":"# });
    put(logprobs);
    put(r#","finish_reason":""#);
    put(finish_reason(made.finish));
    put(r#""}],"usage":{"prompt_tokens":"#);
    push_number(&mut out, made.prompt_tokens.into());
    out.extend_from_slice(br#","completion_tokens":"#);
    push_number(&mut out, made.completion_tokens.into());
    out.extend_from_slice(br#","total_tokens":"#);
    push_number(&mut out, u64::from(made.prompt_tokens) + u64::from(made.completion_tokens));
    out.extend_from_slice(b"}}");
    out
}

/// The events of one stream.
pub struct Events {
    head: String,
    manner: Manner,
}

impl Events {
    /// Of a stream with this number.
    pub fn new(model: &str, number: u64, manner: Manner) -> Self {
        let (prefix, object) =
            if manner.chat { ("chatcmpl", "chat.completion.chunk") } else { ("cmpl", "text_completion") };
        let (created, model) = (created(), quoted(model));
        let head =
            format!(r#"data: {{"id":"{prefix}-{number:024x}","object":"{object}","created":{created},"model":{model}"#);
        Self { head, manner }
    }

    fn event(&self, inner: &str, finish: &str) -> String {
        let head = &self.head;
        let inner = if self.manner.chat { format!(r#""delta":{{{inner}}}"#) } else { inner.to_owned() };
        format!("{head},\"choices\":[{{\"index\":0,{inner},\"logprobs\":null,\"finish_reason\":{finish}}}]}}\n\n")
    }

    /// The event that opens the stream.
    pub fn open(&self) -> Option<String> {
        self.manner.chat.then(|| self.event(r#""role":"assistant","content":"""#, "null"))
    }

    /// The event of a piece of text.
    pub fn piece(&self, text: &str) -> String {
        let name = if self.manner.chat { "content" } else { "text" };
        self.event(&format!(r#""{name}":{}"#, quoted(text)), "null")
    }

    /// The events that close the stream.
    pub fn close(&self, made: &Completion) -> String {
        let finish = quoted(finish_reason(made.finish));
        let mut out = self.event(if self.manner.chat { "" } else { r#""text":"""# }, &finish);
        if self.manner.usage {
            out = format!("{out}{},\"choices\":[],\"usage\":{}}}\n\n", self.head, usage(made));
        }
        out.push_str("data: [DONE]\n\n");
        out
    }

    /// The event of a stream that cannot be finished; no end follows, so no reader takes it for whole.
    pub fn failed(failure: &CallFailure) -> String {
        format!("data: {}\n\n", ApiError::from_failure(failure).body())
    }
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

    fn call(extra: &str) -> Result<(String, Call, Manner), ApiError> {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}]{extra}}}"#);
        Request::read(body.as_bytes())?.into_call(true)
    }

    #[test]
    fn the_reference_clients_request_is_read() {
        let (model, call, _) =
            call(r#","temperature":0,"top_p":1,"frequency_penalty":0,"presence_penalty":0,"max_tokens":10"#).unwrap();
        assert_eq!(model, "m");
        assert_eq!(call.sampling, Sampling::greedy(Some(10), &[]));
        let parts = br#"{"model":"m","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}],"name":null,"tool_calls":[]}]}"#;
        let (_, call, _) = Request::read(parts).unwrap().into_call(true).unwrap();
        assert_eq!(call.messages, [Message::new(Role::System, "ab")]);
    }

    #[test]
    fn what_cannot_be_honoured_is_named() {
        for (extra, part) in [
            (r#","stream":true,"logprobs":true"#, "stream"),
            (r#","n":2"#, "parameter n"),
            (r#","logprobs":3"#, "logprobs"),
            (r#","logprobs":true,"top_logprobs":21"#, "20"),
            (r#","prompt":"x""#, "messages"),
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
            r#"{"model":"m","messages":[{"role":"user","content":null}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"x","name":"me"}]}"#,
            r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{}}]}]}"#,
        ] {
            assert!(Request::read(bad.as_bytes()).and_then(|r| r.into_call(true)).is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_texts_log_probabilities_and_streams_are_asked_for() {
        let text = br#"{"model":"m","prompt":"Once","max_tokens":3,"logprobs":2,"stream":false}"#;
        let (_, plain, manner) = Request::read(text).unwrap().into_call(false).unwrap();
        assert_eq!((plain.text.as_deref(), plain.sampling.logprobs), (Some("Once"), Some(2)));
        assert_eq!(manner, Manner { stream: false, usage: false, chat: false });
        for bad in [r#"{"model":"m"}"#, r#"{"model":"m","prompt":["a"]}"#, r#"{"model":"m","prompt":""}"#] {
            assert!(Request::read(bad.as_bytes()).unwrap().into_call(false).is_err(), "{bad}");
        }
        let (_, call, manner) =
            call(r#","stream":true,"stream_options":{"include_usage":true},"logprobs":null"#).unwrap();
        assert_eq!(call.sampling.logprobs, None);
        assert_eq!(manner, Manner { stream: true, usage: true, chat: true });
    }

    #[test]
    fn replies_and_events_are_json() {
        let made = Completion {
            text: "say \"hi\"\n".into(),
            prompt_tokens: 3,
            completion_tokens: 2,
            finish: Finish::Length,
            logprobs: Some(r#"{"content":[]}"#.into()),
        };
        for chat in [true, false] {
            let answered = Answered { completion: made.clone().into(), cached: false, fallback: None };
            let reply: Value = serde_json::from_slice(&completion("m\"", &answered, chat)).unwrap();
            let choice = &reply["choices"][0];
            assert_eq!(reply["model"], "m\"");
            assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("length"), &json!({"content": []})));
            assert_eq!(reply["usage"]["total_tokens"], 5);
            let manner = Manner { stream: true, usage: true, chat };
            let events = Events::new("m\"", 7, manner);
            let mut text = events.open().unwrap_or_default();
            text.push_str(&events.piece("say \"hi\""));
            text.push_str(&events.piece("\n"));
            text.push_str(&events.close(&made));
            let data: Vec<&str> = text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
            assert_eq!(data.last(), Some(&"[DONE]"));
            let mut said = String::new();
            let mut last = Value::Null;
            for data in &data[..data.len() - 1] {
                let event: Value = serde_json::from_str(data).unwrap();
                let choice = &event["choices"][0];
                said.push_str(choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or(""));
                last = event;
            }
            assert_eq!(said, made.text);
            assert_eq!(last["usage"]["completion_tokens"], 2);
        }
    }
}
