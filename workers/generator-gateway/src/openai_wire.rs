//! The wire format of upstream chat completions: request body, strict reading of the reply and of streams.

use crate::FailureKind;
use crate::json::{push_float, push_number, push_quoted};
use crate::provider::{Call, Completion, Finish};
use crate::retry::Attempt;
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// The request body; `model` is empty where the address names it. Written by hand: a prompt is most of it, and
/// nothing else of a request costs as much as a slow way to write that.
pub(crate) fn body(model: &str, call: &Call, stream: bool) -> Vec<u8> {
    let sampling = &call.sampling;
    let mut out = Vec::with_capacity(call.prompt_bytes() + 64 * call.messages.len() + 256);
    out.push(b'{');
    if !model.is_empty() {
        out.extend_from_slice(b"\"model\":");
        push_quoted(&mut out, model);
        out.push(b',');
    }
    if let Some(text) = &call.text {
        out.extend_from_slice(b"\"prompt\":");
        push_quoted(&mut out, text);
    } else {
        out.extend_from_slice(b"\"messages\":[");
        for (place, message) in call.messages.iter().enumerate() {
            out.extend_from_slice(if place == 0 { b"{\"role\":" } else { b",{\"role\":" });
            push_quoted(&mut out, message.role.name());
            out.extend_from_slice(b",\"content\":");
            push_quoted(&mut out, &message.content);
            out.push(b'}');
        }
        out.push(b']');
    }
    push_float(&mut out, ",\"temperature\":", sampling.temperature);
    push_float(&mut out, ",\"top_p\":", sampling.top_p);
    let mut count = |name: &str, value: u64| {
        out.extend_from_slice(name.as_bytes());
        push_number(&mut out, value);
    };
    if let Some(limit) = sampling.max_tokens {
        count(",\"max_tokens\":", limit.into());
    }
    // chats ask with a switch and a number, plain completions with the number alone
    match (sampling.logprobs, &call.text) {
        (None, _) => {}
        (Some(top), Some(_)) => count(",\"logprobs\":", top.into()),
        (Some(0), None) => out.extend_from_slice(b",\"logprobs\":true"),
        (Some(top), None) => count(",\"logprobs\":true,\"top_logprobs\":", top.into()),
    }
    out.extend_from_slice(if stream {
        b",\"stream\":true,\"stream_options\":{\"include_usage\":true}"
    } else {
        b",\"stream\":false"
    });
    if !sampling.stop.is_empty() {
        out.extend_from_slice(b",\"stop\":[");
        for (place, stop) in sampling.stop.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            push_quoted(&mut out, stop);
        }
        out.push(b']');
    }
    out.push(b'}');
    out
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Option<ReplyMessage>,
    /// Of a plain completion.
    text: Option<String>,
    finish_reason: Option<String>,
    logprobs: Option<Value>,
}

#[derive(Deserialize)]
struct ReplyMessage {
    content: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

fn malformed(message: impl Into<String>) -> Attempt {
    Attempt::again(FailureKind::Malformed, "malformed", message)
}

fn finish(reason: Option<&str>) -> Result<Finish, Attempt> {
    match reason {
        Some("stop" | "eos" | "eos_token" | "stop_sequence") => Ok(Finish::Stop),
        Some("length") => Ok(Finish::Length),
        Some("content_filter") => Err(Attempt::refused("the provider's content filter cut the answer")),
        Some(other) => Err(malformed(format!("the answer ended with {:?}", shorten(other)))),
        None => Err(malformed("the reply does not say why the answer ended")),
    }
}

/// Reads a reply of status 200. A reply without text, or one cut by a filter, is not an empty answer.
pub(crate) fn parse(bytes: &[u8]) -> Result<Completion, Attempt> {
    let reply: Reply = serde_json::from_slice(bytes)
        .map_err(|e| malformed(format!("the reply is not a completion ({e}): {}", error_line(bytes))))?;
    let choice = reply.choices.into_iter().next().ok_or_else(|| malformed("the reply has no choice"))?;
    let finish = finish(choice.finish_reason.as_deref())?;
    let text = choice.message.and_then(|message| message.content).or(choice.text);
    let text = text.ok_or_else(|| malformed("the reply has no text"))?;
    let usage = reply.usage.unwrap_or_default();
    let logprobs = choice.logprobs.filter(|value| !value.is_null()).map(|value| Arc::from(value.to_string()));
    Ok(Completion {
        text,
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        finish,
        logprobs,
    })
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<ChunkChoice>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct ChunkChoice {
    #[serde(default)]
    delta: Delta,
    text: Option<String>,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
}

/// A streamed reply as far as it has come.
#[derive(Default)]
pub(crate) struct Partial {
    pub text: String,
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub finish: Option<Finish>,
    /// The stream said that it is complete.
    pub done: bool,
}

impl Partial {
    /// The completion, once the stream has ended properly.
    pub fn end(self) -> Result<Completion, Attempt> {
        let broken = || Attempt::again(FailureKind::Unavailable, "truncated", "the stream broke off");
        let finish = self.finish.filter(|_| self.done).ok_or_else(broken)?;
        Ok(Completion {
            text: self.text,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            finish,
            logprobs: None,
        })
    }
}

/// Reads one event of a stream; the new text, if there is some.
pub(crate) fn event(data: &str, partial: &mut Partial) -> Result<Option<String>, Attempt> {
    if data == "[DONE]" {
        partial.done = true;
        return Ok(None);
    }
    let chunk: Chunk = serde_json::from_str(data).map_err(|e| malformed(format!("an event of the stream: {e}")))?;
    if chunk.error.is_some() {
        let line = error_line(data.as_bytes());
        return Err(Attempt::again(FailureKind::Unavailable, "5xx", format!("the stream ended with: {line}")));
    }
    if let Some(usage) = chunk.usage {
        (partial.prompt_tokens, partial.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
    }
    let Some(choice) = chunk.choices.into_iter().next() else { return Ok(None) };
    if choice.finish_reason.is_some() {
        partial.finish = Some(finish(choice.finish_reason.as_deref())?);
    }
    let piece = choice.delta.content.or(choice.text).filter(|piece| !piece.is_empty());
    if let Some(piece) = &piece {
        partial.text.push_str(piece);
    }
    Ok(piece)
}

/// The message of an error body, or its beginning, on one line.
pub fn error_line(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Wrapped {
        error: Detail,
    }
    #[derive(Deserialize)]
    struct Bare {
        #[serde(alias = "Message")]
        message: String,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Detail {
        Object { message: String },
        Text(String),
    }
    let text = match serde_json::from_slice::<Wrapped>(bytes) {
        Ok(Wrapped { error: Detail::Object { message } | Detail::Text(message) }) => message,
        Err(_) => match serde_json::from_slice::<Bare>(bytes) {
            Ok(Bare { message }) => message,
            Err(_) => String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned(),
        },
    };
    if text.trim().is_empty() { "(empty body)".to_owned() } else { shorten(&text) }
}

pub(crate) fn shorten(text: &str) -> String {
    let line: Vec<_> = text.split_whitespace().collect();
    line.join(" ").chars().filter(|c| !c.is_control()).take(300).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"{"id":"x","choices":[{"index":0,"message":{"role":"assistant","content":"Paris"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}"#;

    #[test]
    fn a_good_reply_is_read() {
        let completion = parse(GOOD.as_bytes()).unwrap();
        let expected = Completion {
            text: "Paris".into(),
            prompt_tokens: 7,
            completion_tokens: 2,
            finish: Finish::Stop,
            logprobs: None,
        };
        assert_eq!(completion, expected);
    }

    #[test]
    fn no_prefix_of_a_reply_is_an_answer() {
        for cut in 0..GOOD.len() {
            let failed = parse(&GOOD.as_bytes()[..cut]).unwrap_err();
            assert_eq!((failed.kind, failed.retry), (FailureKind::Malformed, true), "{cut}");
        }
    }

    #[test]
    fn replies_without_an_answer_are_malformed_or_rejected() {
        for (from, to, kind) in [
            ("\"Paris\"", "null", FailureKind::Malformed),
            ("\"stop\"", "null", FailureKind::Malformed),
            ("\"stop\"", "\"error\"", FailureKind::Malformed),
            ("\"stop\"", "\"content_filter\"", FailureKind::Rejected),
            ("\"Paris\"", "[\"Paris\"]", FailureKind::Malformed),
            ("choices", "choice", FailureKind::Malformed),
        ] {
            assert_eq!(parse(GOOD.replace(from, to).as_bytes()).unwrap_err().kind, kind, "{from} {to}");
        }
        assert_eq!(parse(br#"{"choices":[]}"#).unwrap_err().kind, FailureKind::Malformed);
        let error = parse(br#"{"error":{"message":"overloaded\nnow"}}"#).unwrap_err();
        assert!(error.message.ends_with("overloaded now"), "{}", error.message);
    }

    #[test]
    fn a_stream_is_whole_only_with_its_end() {
        let events = [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"Pa"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"ris"},"finish_reason":null}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            r#"{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}"#,
            "[DONE]",
        ];
        for upto in 0..=events.len() {
            let mut partial = Partial::default();
            let pieces: Vec<String> = events[..upto].iter().filter_map(|e| event(e, &mut partial).unwrap()).collect();
            assert_eq!(pieces.concat(), partial.text);
            match partial.end() {
                Ok(whole) => {
                    assert_eq!(upto, events.len());
                    assert_eq!(whole, parse(GOOD.as_bytes()).unwrap());
                }
                Err(failed) => assert!(upto < events.len() && failed.kind == FailureKind::Unavailable),
            }
        }
        assert!(event(r#"{"error":{"message":"overloaded"}}"#, &mut Partial::default()).is_err());
        assert!(event("{", &mut Partial::default()).is_err());
    }

    #[test]
    fn log_probabilities_and_plain_texts_are_asked_for_and_read() {
        use crate::provider::{Message, Role, Sampling};
        let mut call = Call::chat(vec![Message::new(Role::User, "q")], Sampling::greedy(None, &[]));
        let sent = |call: &Call| serde_json::from_slice::<Value>(&body("m", call, false)).unwrap();
        assert!(sent(&call).get("logprobs").is_none() && sent(&call).get("prompt").is_none());
        call.sampling.logprobs = Some(3);
        assert_eq!((&sent(&call)["logprobs"], &sent(&call)["top_logprobs"]), (&Value::Bool(true), &Value::from(3)));
        call.text = Some("Once".into());
        assert_eq!((&sent(&call)["logprobs"], &sent(&call)["prompt"]), (&Value::from(3), &Value::from("Once")));
        assert!(sent(&call).get("messages").is_none());
        let plain = r#"{"choices":[{"text":" upon","finish_reason":"length","logprobs":{"token_logprobs":[-0.5]}}]}"#;
        let read = parse(plain.as_bytes()).unwrap();
        assert_eq!((read.text.as_str(), read.finish), (" upon", Finish::Length));
        assert_eq!(read.logprobs.as_deref(), Some(r#"{"token_logprobs":[-0.5]}"#));
    }

    #[test]
    fn a_body_says_what_the_call_says() {
        use crate::provider::{Message, Role, Sampling};
        let text = "a \"quoted\" line\n\\ and \u{1}, é";
        let messages = vec![Message::new(Role::System, "s"), Message::new(Role::User, text)];
        let sampling = Sampling {
            temperature: 0.7,
            top_p: 1.0,
            max_tokens: Some(5),
            stop: vec!["\n".into(), "\"".into()],
            logprobs: None,
        };
        let mut call = Call::chat(messages, sampling);
        let sent: Value = serde_json::from_slice(&body("m\"", &call, true)).unwrap();
        let expected = serde_json::json!({
            "model": "m\"", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": text}],
            "temperature": 0.7, "top_p": 1.0, "max_tokens": 5, "stop": ["\n", "\""], "stream": true,
            "stream_options": {"include_usage": true},
        });
        assert_eq!(sent, expected);
        call.text = Some(text.into());
        call.sampling = Sampling::greedy(None, &[]);
        let sent: Value = serde_json::from_slice(&body("", &call, false)).unwrap();
        assert_eq!(sent, serde_json::json!({"prompt": text, "temperature": 0.0, "top_p": 1.0, "stream": false}));
    }

    #[test]
    fn error_bodies_become_one_short_line() {
        assert_eq!(error_line(br#"{"error":"bad key"}"#), "bad key");
        assert_eq!(error_line(br#"{"message":"throttled"}"#), "throttled");
        assert_eq!(error_line(b" \n"), "(empty body)");
        assert_eq!(error_line("<html>\n  oops\u{7}</html>".as_bytes()), "<html> oops</html>");
        assert_eq!(error_line("é".repeat(5000).as_bytes()).chars().count(), 300);
    }
}
