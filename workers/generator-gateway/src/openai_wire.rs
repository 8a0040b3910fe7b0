//! The wire format of upstream chat completions: request body and strict reading of the reply.

use crate::FailureKind;
use crate::provider::{Call, Completion, Finish, Message};
use crate::retry::Attempt;
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
pub(crate) struct Body<'a> {
    model: &'a str,
    messages: &'a [Message],
    temperature: f64,
    top_p: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    stop: &'a [String],
    stream: bool,
}

/// The request body.
pub(crate) fn body<'a>(model: &'a str, call: &'a Call) -> Body<'a> {
    Body {
        model,
        messages: &call.messages,
        temperature: call.sampling.temperature,
        top_p: call.sampling.top_p,
        max_tokens: call.sampling.max_tokens,
        stop: &call.sampling.stop,
        stream: false,
    }
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: ReplyMessage,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct ReplyMessage {
    content: Option<String>,
}

#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

/// Reads a reply of status 200. A reply without text, or one cut by a filter, is not an empty answer.
pub(crate) fn parse(bytes: &[u8]) -> Result<Completion, Attempt> {
    let malformed = |message: String| Attempt::again(FailureKind::Malformed, "malformed", message);
    let reply: Reply = serde_json::from_slice(bytes)
        .map_err(|e| malformed(format!("the reply is not a chat completion ({e}): {}", error_line(bytes))))?;
    let choice = reply.choices.into_iter().next().ok_or_else(|| malformed("the reply has no choice".to_owned()))?;
    let finish = match choice.finish_reason.as_deref() {
        Some("stop" | "eos" | "eos_token" | "stop_sequence") => Finish::Stop,
        Some("length") => Finish::Length,
        Some("content_filter") => return Err(Attempt::refused("the provider's content filter cut the answer")),
        Some(other) => return Err(malformed(format!("the answer ended with {:?}", shorten(other)))),
        None => return Err(malformed("the reply does not say why the answer ended".to_owned())),
    };
    let text = choice.message.content.ok_or_else(|| malformed("the reply has no text".to_owned()))?;
    let usage = reply.usage.unwrap_or_default();
    Ok(Completion { text, prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens, finish })
}

/// The message of an error body, or its beginning, on one line.
pub(crate) fn error_line(bytes: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Wrapped {
        error: Detail,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Detail {
        Object { message: String },
        Text(String),
    }
    let text = match serde_json::from_slice::<Wrapped>(bytes) {
        Ok(Wrapped { error: Detail::Object { message } | Detail::Text(message) }) => message,
        Err(_) => String::from_utf8_lossy(&bytes[..bytes.len().min(1024)]).into_owned(),
    };
    if text.trim().is_empty() { "(empty body)".to_owned() } else { shorten(&text) }
}

fn shorten(text: &str) -> String {
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
        let expected =
            Completion { text: "Paris".into(), prompt_tokens: 7, completion_tokens: 2, finish: Finish::Stop };
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
    fn error_bodies_become_one_short_line() {
        assert_eq!(error_line(br#"{"error":"bad key"}"#), "bad key");
        assert_eq!(error_line(b" \n"), "(empty body)");
        assert_eq!(error_line("<html>\n  oops\u{7}</html>".as_bytes()), "<html> oops</html>");
        assert_eq!(error_line("é".repeat(5000).as_bytes()).chars().count(), 300);
    }
}
