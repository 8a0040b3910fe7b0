//! vLLM's `/v1/completions` over token ids, and its `/v1/load_lora_adapter`.
//!
//! Every sampling setting is sent: servers take others from the model's `generation_config.json` where one is left out.

use s3_model::Generated;
use s3_rollout::{Continuation, Continued, RolloutError};
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize)]
struct Request<'a> {
    model: &'a str,
    prompt: &'a [u32],
    max_tokens: usize,
    temperature: f64,
    top_p: f64,
    top_k: i32,
    min_p: f64,
    repetition_penalty: f64,
    presence_penalty: f64,
    frequency_penalty: f64,
    seed: u64,
    stop: &'a [String],
    stop_token_ids: &'a [u32],
    include_stop_str_in_output: bool,
    skip_special_tokens: bool,
    add_special_tokens: bool,
    /// Of the chosen token alone.
    logprobs: u32,
    return_token_ids: bool,
}

#[derive(Deserialize)]
struct Reply {
    choices: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    token_ids: Option<Vec<u32>>,
    #[serde(default)]
    logprobs: Option<LogProbs>,
    #[serde(default)]
    finish_reason: Option<String>,
    /// The string or token that it stopped at; none at the model's own end.
    #[serde(default)]
    stop_reason: serde_json::Value,
}

#[derive(Deserialize)]
struct LogProbs {
    token_logprobs: Vec<Option<f32>>,
}

#[derive(Serialize)]
struct Load<'a> {
    lora_name: &'a str,
    lora_path: &'a Path,
}

#[derive(Serialize)]
struct Unload<'a> {
    lora_name: &'a str,
}

/// The body that asks the policy `model` to go on.
pub(super) fn request(model: &str, from: &Continuation<'_>, ends: &[u32]) -> Result<Vec<u8>, RolloutError> {
    encode(&Request {
        model,
        prompt: from.prompt,
        max_tokens: from.max_tokens,
        temperature: from.temperature,
        top_p: from.top_p,
        top_k: -1,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: from.seed,
        stop: from.stop,
        stop_token_ids: ends,
        include_stop_str_in_output: true,
        skip_special_tokens: false,
        add_special_tokens: false,
        logprobs: 0,
        return_token_ids: true,
    })
}

/// The body that has a policy loaded.
pub(super) fn load(name: &str, folder: &Path) -> Result<Vec<u8>, RolloutError> {
    encode(&Load { lora_name: name, lora_path: folder })
}

/// The body that has a policy unloaded.
pub(super) fn unload(name: &str) -> Result<Vec<u8>, RolloutError> {
    encode(&Unload { lora_name: name })
}

fn encode(body: &impl Serialize) -> Result<Vec<u8>, RolloutError> {
    let wrong = |error: serde_json::Error| RolloutError::Reply { service: super::SERVICE, reason: error.to_string() };
    serde_json::to_vec(body).map_err(wrong)
}

/// What a reply holds, or why it cannot be used.
pub(super) fn continued(body: &[u8]) -> Result<Continued, String> {
    let reply: Reply = serde_json::from_slice(body).map_err(|error| format!("the reply is not one: {error}"))?;
    let [choice]: [Choice; 1] =
        reply.choices.try_into().map_err(|all: Vec<_>| format!("the reply has {} choices, not 1", all.len()))?;
    let Some(tokens) = choice.token_ids else {
        return Err("the reply has no token_ids; use vLLM 0.10.2 or newer, or a server that returns them".into());
    };
    let logprobs = choice.logprobs.map(|all| all.token_logprobs).unwrap_or_default();
    let logprobs: Option<Vec<f32>> = logprobs.into_iter().collect();
    let Some(logprobs) = logprobs.filter(|all| all.len() == tokens.len()) else {
        return Err(format!("the reply has {} tokens, and not as many log-probabilities", tokens.len()));
    };
    let at_string = choice.finish_reason.as_deref() == Some("stop") && choice.stop_reason.is_string();
    if choice.finish_reason.as_deref() == Some("abort") {
        return Err("the server gave the request up".into());
    }
    Ok(Continued { said: Generated { tokens, logprobs }, at_string })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A reply of vLLM 0.32.0 with what is not read left out.
    fn reply(choice: &str) -> Vec<u8> {
        format!(r#"{{"id":"cmpl-9","object":"text_completion","model":"a","choices":[{choice}]}}"#).into_bytes()
    }

    #[test]
    fn tokens_and_log_probabilities_are_read() {
        let stopped = r#"{"index":0,"text":" Paris","logprobs":{"text_offset":[0],"token_logprobs":[-0.25],
            "tokens":[" Paris"]},"finish_reason":"stop","stop_reason":"Paris","token_ids":[7042]}"#;
        let said = Generated { tokens: vec![7042], logprobs: vec![-0.25] };
        assert_eq!(continued(&reply(stopped)).unwrap(), Continued { said, at_string: true });
        // the model's own end, and a token that ends a turn
        for reason in ["null", "2"] {
            let other = stopped.replace("\"Paris\",\"token", &format!("{reason},\"token"));
            assert!(!continued(&reply(&other)).unwrap().at_string, "{other}");
        }
    }

    #[test]
    fn what_cannot_be_learned_from_is_refused() {
        let without = r#"{"finish_reason":"stop","logprobs":{"token_logprobs":[-1.0]}}"#;
        assert!(continued(&reply(without)).unwrap_err().contains("0.10.2"));
        let unequal = r#"{"finish_reason":"stop","token_ids":[1,2],"logprobs":{"token_logprobs":[-1.0]}}"#;
        assert!(continued(&reply(unequal)).unwrap_err().contains("log-probabilities"));
        let none = r#"{"finish_reason":"stop","token_ids":[1],"logprobs":{"token_logprobs":[null]}}"#;
        assert!(continued(&reply(none)).is_err());
        let abort = r#"{"finish_reason":"abort","token_ids":[],"logprobs":{"token_logprobs":[]}}"#;
        assert!(continued(&reply(abort)).is_err());
        assert!(continued(&reply("")).unwrap_err().contains("0 choices"));
        assert!(continued(b"<html>").is_err());
    }
}
