//! The wire format of Bedrock's Converse API.

use crate::FailureKind;
use crate::anthropic_wire::{accepted_stops, check, system};
use crate::openai_wire::{error_line, shorten};
use crate::provider::{Call, Completion, Finish, Role};
use crate::retry::Attempt;
use serde::Deserialize;
use serde_json::{Map, Value, json};

fn malformed(message: impl Into<String>) -> Attempt {
    Attempt::again(FailureKind::Malformed, "malformed", message)
}

/// The request body.
pub(crate) fn body(call: &Call) -> Result<Vec<u8>, Attempt> {
    check(call)?;
    let sampling = &call.sampling;
    let messages: Vec<Value> = call
        .messages
        .iter()
        .filter(|message| message.role != Role::System)
        .map(|message| json!({"role": message.role, "content": [{"text": message.content}]}))
        .collect();
    let mut inference = Map::new();
    inference.insert("temperature".into(), sampling.temperature.min(1.0).into());
    if let Some(limit) = sampling.max_tokens {
        inference.insert("maxTokens".into(), limit.into());
    }
    if sampling.top_p < 1.0 {
        inference.insert("topP".into(), sampling.top_p.into());
    }
    let stops = accepted_stops(call);
    if !stops.is_empty() {
        inference.insert("stopSequences".into(), stops.into());
    }
    let mut body = Map::new();
    body.insert("messages".into(), messages.into());
    body.insert("inferenceConfig".into(), inference.into());
    if let Some(system) = system(call) {
        body.insert("system".into(), json!([{"text": system}]));
    }
    serde_json::to_vec(&body).map_err(|e| Attempt::refused(e.to_string()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    output: Output,
    stop_reason: Option<String>,
    #[serde(default)]
    usage: Usage,
}

#[derive(Deserialize)]
struct Output {
    message: ReplyMessage,
}

#[derive(Deserialize)]
struct ReplyMessage {
    content: Vec<Block>,
}

/// A block has one member; only texts are of interest.
#[derive(Deserialize)]
struct Block {
    text: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Usage {
    input_tokens: u32,
    output_tokens: u32,
}

/// Reads a reply of status 200.
pub(crate) fn parse(bytes: &[u8]) -> Result<Completion, Attempt> {
    let reply: Reply = serde_json::from_slice(bytes)
        .map_err(|e| malformed(format!("the reply is not of Converse ({e}): {}", error_line(bytes))))?;
    let finish = match reply.stop_reason.as_deref() {
        Some("end_turn" | "stop_sequence") => Finish::Stop,
        Some("max_tokens" | "model_context_window_exceeded") => Finish::Length,
        Some("content_filtered" | "guardrail_intervened" | "refusal") => {
            return Err(Attempt::refused("the provider's content filter cut the answer"));
        }
        Some(other) => return Err(malformed(format!("the answer ended with {:?}", shorten(other)))),
        None => return Err(malformed("the reply does not say why the answer ended")),
    };
    let texts: Vec<String> = reply.output.message.content.into_iter().filter_map(|block| block.text).collect();
    if texts.is_empty() {
        return Err(malformed("the reply has no text"));
    }
    Ok(Completion {
        text: texts.concat(),
        prompt_tokens: reply.usage.input_tokens,
        completion_tokens: reply.usage.output_tokens,
        finish,
        logprobs: None,
    })
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
        let sent: Value = serde_json::from_slice(&body(&call).unwrap()).unwrap();
        assert_eq!(
            sent,
            json!({"system": [{"text": "Be brief."}], "messages": [{"role": "user", "content": [{"text": "Hi"}]}],
                   "inferenceConfig": {"temperature": 0.0, "maxTokens": 8, "stopSequences": ["END"]}})
        );
    }

    #[test]
    fn replies_are_read_strictly() {
        let good = r#"{"output":{"message":{"role":"assistant","content":[{"text":"Paris"}]}},"stopReason":"end_turn","usage":{"inputTokens":30,"outputTokens":4,"totalTokens":34},"metrics":{"latencyMs":275}}"#;
        let read = parse(good.as_bytes()).unwrap();
        assert_eq!((read.text.as_str(), read.prompt_tokens, read.completion_tokens), ("Paris", 30, 4));
        for cut in 0..good.len() {
            assert_eq!(parse(&good.as_bytes()[..cut]).unwrap_err().kind, FailureKind::Malformed, "{cut}");
        }
        let filtered = good.replace("end_turn", "guardrail_intervened");
        assert_eq!(parse(filtered.as_bytes()).unwrap_err().kind, FailureKind::Rejected);
    }
}
