//! The wire format of Anthropic's Messages API.

use crate::FailureKind;
use crate::openai_wire::{Partial, error_line, shorten};
use crate::provider::{Call, Completion, Finish, Role};
use crate::retry::Attempt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// New tokens when the caller names no limit; the API wants one.
const DEFAULT_TOKENS: u32 = 4096;

/// The version of the API that is written and read here.
pub(crate) const VERSION: &str = "2023-06-01";

fn malformed(message: impl Into<String>) -> Attempt {
    Attempt::again(FailureKind::Malformed, "malformed", message)
}

/// Stop strings that the API takes; it refuses those of white space alone, which are cut off here instead.
pub(crate) fn accepted_stops(call: &Call) -> Vec<&str> {
    call.sampling.stop.iter().map(String::as_str).filter(|stop| !stop.trim().is_empty()).collect()
}

/// Whether some stop strings are left to be applied here.
pub(crate) fn has_own_stops(call: &Call) -> bool {
    call.sampling.stop.iter().any(|stop| stop.trim().is_empty())
}

/// Cuts at the stop strings that the API does not take.
pub(crate) fn apply_own_stops(call: &Call, mut completion: Completion) -> Completion {
    let own: Vec<&String> = call.sampling.stop.iter().filter(|stop| stop.trim().is_empty()).collect();
    if let Some(text) = crate::stops::cut(&completion.text, &own) {
        completion.text = text;
        completion.finish = Finish::Stop;
    }
    completion
}

/// The texts of all system messages, one below the other.
pub(crate) fn system(call: &Call) -> Option<String> {
    let texts: Vec<&str> =
        call.messages.iter().filter(|m| m.role == Role::System).map(|m| m.content.as_str()).collect();
    (!texts.is_empty()).then(|| texts.join("\n\n"))
}

/// Refuses what the format has no place for.
pub(crate) fn check(call: &Call) -> Result<(), Attempt> {
    if call.text.is_some() {
        return Err(Attempt::refused("this provider takes chats only; use /v1/chat/completions"));
    }
    if call.sampling.logprobs.is_some() {
        return Err(Attempt::refused("this provider gives no log-probabilities; leave logprobs out"));
    }
    Ok(())
}

/// The request body.
pub(crate) fn body(model: &str, call: &Call, stream: bool) -> Result<Vec<u8>, Attempt> {
    check(call)?;
    let sampling = &call.sampling;
    let messages: Vec<Value> = call
        .messages
        .iter()
        .filter(|message| message.role != Role::System)
        .map(|message| json!({"role": message.role, "content": message.content}))
        .collect();
    let mut body = Map::new();
    body.insert("model".into(), model.into());
    body.insert("max_tokens".into(), sampling.max_tokens.unwrap_or(DEFAULT_TOKENS).into());
    body.insert("messages".into(), messages.into());
    if let Some(system) = system(call) {
        body.insert("system".into(), system.into());
    }
    // its range ends at 1, and newer models take only one of temperature and top_p
    body.insert("temperature".into(), sampling.temperature.min(1.0).into());
    if sampling.top_p < 1.0 {
        body.insert("top_p".into(), sampling.top_p.into());
    }
    let stops = accepted_stops(call);
    if !stops.is_empty() {
        body.insert("stop_sequences".into(), stops.into());
    }
    if stream {
        body.insert("stream".into(), true.into());
    }
    serde_json::to_vec(&body).map_err(|e| Attempt::refused(e.to_string()))
}

#[derive(Deserialize)]
struct Reply {
    content: Vec<Block>,
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Block {
    #[serde(rename = "type")]
    kind: String,
    text: Option<String>,
}

/// Tokens that a cache of the provider served are billed too, at another price.
#[derive(Default, Deserialize)]
struct Usage {
    #[serde(default)]
    input_tokens: u32,
    #[serde(default)]
    cache_creation_input_tokens: Option<u32>,
    #[serde(default)]
    cache_read_input_tokens: Option<u32>,
    #[serde(default)]
    output_tokens: u32,
}

impl Usage {
    fn prompt(&self) -> u32 {
        self.input_tokens + self.cache_creation_input_tokens.unwrap_or(0) + self.cache_read_input_tokens.unwrap_or(0)
    }
}

fn finish(reason: Option<&str>) -> Result<Finish, Attempt> {
    match reason {
        Some("end_turn" | "stop_sequence") => Ok(Finish::Stop),
        Some("max_tokens" | "model_context_window_exceeded") => Ok(Finish::Length),
        Some("refusal") => Err(Attempt::refused("the model declined to answer")),
        Some(other) => Err(malformed(format!("the answer ended with {:?}", shorten(other)))),
        None => Err(malformed("the reply does not say why the answer ended")),
    }
}

/// Reads a reply of status 200.
pub(crate) fn parse(bytes: &[u8]) -> Result<Completion, Attempt> {
    let reply: Reply = serde_json::from_slice(bytes)
        .map_err(|e| malformed(format!("the reply is not a message ({e}): {}", error_line(bytes))))?;
    let finish = finish(reply.stop_reason.as_deref())?;
    let mut text = String::new();
    for block in reply.content {
        if block.kind == "text" {
            text.push_str(&block.text.ok_or_else(|| malformed("a text block has no text"))?);
        }
    }
    Ok(Completion {
        text,
        prompt_tokens: reply.usage.prompt(),
        completion_tokens: reply.usage.output_tokens,
        finish,
        logprobs: None,
    })
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    MessageStart {
        message: Started,
    },
    ContentBlockDelta {
        delta: Delta,
    },
    MessageDelta {
        delta: Ending,
        usage: Usage,
    },
    MessageStop,
    Error {
        error: Value,
    },
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
struct Started {
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Delta {
    text: Option<String>,
}

#[derive(Deserialize)]
struct Ending {
    stop_reason: Option<String>,
}

/// Reads one event of a stream; the new text, if there is some.
pub(crate) fn event(data: &str, partial: &mut Partial) -> Result<Option<String>, Attempt> {
    let event: Event = serde_json::from_str(data).map_err(|e| malformed(format!("an event of the stream: {e}")))?;
    match event {
        Event::MessageStart { message } => partial.prompt_tokens = message.usage.prompt(),
        Event::ContentBlockDelta { delta } => {
            if let Some(text) = delta.text.filter(|text| !text.is_empty()) {
                partial.text.push_str(&text);
                return Ok(Some(text));
            }
        }
        Event::MessageDelta { delta, usage } => {
            partial.finish = Some(finish(delta.stop_reason.as_deref())?);
            partial.completion_tokens = usage.output_tokens;
        }
        Event::MessageStop => partial.done = true,
        Event::Error { error } => {
            let line = shorten(error["message"].as_str().unwrap_or("an error"));
            return Err(Attempt::again(FailureKind::Unavailable, "5xx", format!("the stream ended with: {line}")));
        }
        Event::Other => {}
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::provider::{Message, Sampling};

    #[test]
    fn requests_have_the_published_shape() {
        let call = Call::chat(
            vec![Message::new(Role::System, "Be brief."), Message::new(Role::User, "Hi")],
            Sampling::greedy(Some(8), &["\n".into(), "END".into()]),
        );
        let sent: Value = serde_json::from_slice(&body("claude-x", &call, false).unwrap()).unwrap();
        assert_eq!(
            sent,
            json!({"model": "claude-x", "max_tokens": 8, "system": "Be brief.", "temperature": 0.0,
                   "stop_sequences": ["END"], "messages": [{"role": "user", "content": "Hi"}]})
        );
        assert!(has_own_stops(&call));
        assert!(body("m", &Call { text: Some("x".into()), ..call.clone() }, false).is_err());
    }

    const GOOD: &str = r#"{"id":"msg_1","type":"message","role":"assistant","model":"claude-x","content":[{"type":"text","text":"Paris\nFrance"}],"stop_reason":"end_turn","stop_sequence":null,"usage":{"input_tokens":10,"cache_read_input_tokens":2,"output_tokens":3}}"#;

    #[test]
    fn replies_are_read_strictly() {
        let read = parse(GOOD.as_bytes()).unwrap();
        assert_eq!((read.text.as_str(), read.prompt_tokens, read.completion_tokens), ("Paris\nFrance", 12, 3));
        let call = Call::chat(vec![], Sampling::greedy(None, &["\n".into()]));
        assert_eq!(apply_own_stops(&call, read).text, "Paris");
        for cut in 0..GOOD.len() {
            assert_eq!(parse(&GOOD.as_bytes()[..cut]).unwrap_err().kind, FailureKind::Malformed, "{cut}");
        }
        assert_eq!(parse(GOOD.replace("end_turn", "refusal").as_bytes()).unwrap_err().kind, FailureKind::Rejected);
        assert_eq!(parse(GOOD.replace("end_turn", "tool_use").as_bytes()).unwrap_err().kind, FailureKind::Malformed);
    }

    #[test]
    fn streams_are_read() {
        let mut partial = Partial::default();
        let events = [
            r#"{"type":"message_start","message":{"id":"msg_1","usage":{"input_tokens":10,"output_tokens":1}}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Par"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"is"}}"#,
            r#"{"type":"content_block_stop","index":0}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":5}}"#,
            r#"{"type":"message_stop"}"#,
        ];
        let pieces: Vec<String> = events.iter().filter_map(|e| event(e, &mut partial).unwrap()).collect();
        assert_eq!(pieces, ["Par", "is"]);
        let whole = partial.end().unwrap();
        assert_eq!((whole.text.as_str(), whole.prompt_tokens, whole.completion_tokens), ("Paris", 10, 5));
        let overloaded = r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#;
        assert!(event(overloaded, &mut Partial::default()).unwrap_err().message.contains("Overloaded"));
    }
}
