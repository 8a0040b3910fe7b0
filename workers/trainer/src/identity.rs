//! What a run is: everything that its numbers depend on, and nothing else (no path, address or time).

use crate::run::Run;
use s3_artifacts::{digest_file, digest_json};
use s3_config::{Determinism, TrainerConfig};
use s3_model::Decoder;
use s3_rollout::RolloutError;
use s3_search::Question;
use s3_search::eligible;
use s3_telemetry::Failure;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The identity of a run as a flat JSON object, so that a difference can be named.
#[derive(Clone, Debug, PartialEq)]
pub struct Identity(pub Value);

/// What a run reads from other workers.
#[derive(Clone, Copy, Debug)]
pub struct Peers<'a> {
    /// Digest of the index.
    pub index: &'a str,
    /// Digest of the generator; none when none is asked.
    pub generator: Option<&'a str>,
}

impl Identity {
    /// Of a command (`sft`, `train`) with its questions. `more` adds what only that command depends on.
    pub fn of(
        run: &Run,
        command: &str,
        decoder: &Decoder,
        peers: Peers<'_>,
        questions: [&[Question]; 2],
        more: Value,
    ) -> Result<Self, Failure> {
        let config = &run.config;
        let mut search = config.search.clone();
        // the text counts, not where it is read from
        search.prompt_template = None;
        let generator = peers.generator.map(|digest| {
            let g = &config.generator;
            json!([digest, g.model, g.template, g.max_tokens, g.max_answer_tokens, g.passage_words, g.judge, g.chunk])
        });
        let mut identity = json!({
            "command": command,
            "seed": config.seed,
            "determinism": config.determinism,
            "model": model_digest(config)?,
            "adapter": adapter_digest(config)?,
            "lora": match &config.searcher.adapter {
                _ if config.full => json!("none: all weights are trained"),
                Some(adapter) if !adapter.is_whole() => Value::Null,
                _ => json!(config.lora),
            },
            "dtype": config.searcher.dtype,
            "index": peers.index,
            "generator": generator,
            "questions": eligible::digest(questions[0]),
            "probeQuestions": eligible::digest(questions[1]),
            "search": search,
            "baselineTopK": config.baseline.top_k,
            "optimizer": config.optimizer,
            "kernels": kernels(config.determinism, decoder),
            "threads": match config.determinism {
                Determinism::Bitwise => json!(candle_core::utils::get_num_threads()),
                Determinism::Relaxed => Value::Null,
            },
        });
        if let Some(template) = &config.searcher.chat_template {
            identity["chatTemplate"] = json!(digest_file(template).map_err(RolloutError::from)?);
        }
        // named where it is another, so that what was begun before methods were told apart goes on
        if let Some(method) = &config.baseline.method {
            identity["baselineMethod"] = json!(method);
        }
        if let (Value::Object(all), Value::Object(more)) = (&mut identity, more) {
            all.extend(more);
        }
        Ok(Self(identity))
    }

    /// sha256 over the canonical JSON.
    pub fn digest(&self) -> Result<String, RolloutError> {
        Ok(digest_json(&self.0)?)
    }

    /// Refuses to continue another run's state; the message says what differs.
    pub fn check(&self, found: &Value, place: &Path) -> Result<(), Failure> {
        let empty = Map::new();
        let (ours, theirs) = (self.0.as_object().unwrap_or(&empty), found.as_object().unwrap_or(&empty));
        let keys: std::collections::BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
        let differing: Vec<String> = keys
            .into_iter()
            .filter(|key| ours.get(*key) != theirs.get(*key))
            .map(|key| format!("{key}: was {}, is {}", short(theirs.get(key)), short(ours.get(key))))
            .collect();
        if differing.is_empty() {
            return Ok(());
        }
        Err(Failure::input(format!(
            "{} belongs to another run ({}); restore the configuration, or choose another folder to start anew",
            place.display(),
            differing.join("; ")
        )))
    }
}

fn short(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "absent".to_owned(), ToString::to_string);
    if text.chars().count() <= 120 { text } else { format!("{}…", text.chars().take(119).collect::<String>()) }
}

/// The arithmetic that rounding depends on. CPU kernels choose instructions by what the processor has.
fn kernels(determinism: Determinism, decoder: &Decoder) -> Value {
    if determinism == Determinism::Relaxed {
        return Value::Null;
    }
    if !decoder.device().is_cpu() {
        return json!("cuda");
    }
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("fma", std::arch::is_x86_feature_detected!("fma")),
            ("avx2", std::arch::is_x86_feature_detected!("avx2")),
            ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ];
        let present: Vec<&str> = known.iter().filter_map(|(name, there)| there.then_some(*name)).collect();
        json!(format!("cpu x86_64 {}", present.join(" ")))
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        json!(format!("cpu {}", std::env::consts::ARCH))
    }
}

fn model_digest(config: &TrainerConfig) -> Result<String, Failure> {
    let spec = &config.searcher;
    if let Some(digest) = &spec.sha256 {
        // Decoder::load has compared it with the file
        return Ok(digest.to_lowercase());
    }
    let single = if spec.path.is_dir() { spec.path.join("model.safetensors") } else { spec.path.clone() };
    let file = if single.exists() { single } else { spec.path.join("model.safetensors.index.json") };
    digest_file(&file).map_err(|e| RolloutError::from(e).into())
}

fn adapter_digest(config: &TrainerConfig) -> Result<Option<String>, Failure> {
    let Some(adapter) = &config.searcher.adapter else { return Ok(None) };
    digest_file(&adapter.tensors()).map(Some).map_err(|e| RolloutError::from(e).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let ours = Identity(json!({"seed": 1, "threads": 2, "search": {"topK": 3}}));
        assert!(ours.check(&json!({"seed": 1, "threads": 2, "search": {"topK": 3}}), Path::new("x")).is_ok());
        let error = ours.check(&json!({"seed": 1, "threads": 4, "extra": true}), Path::new("x")).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("threads: was 4, is 2") && text.contains("search: was absent"), "{text}");
        assert!(text.contains("extra: was true, is absent") && !text.contains("seed"), "{text}");
    }
}
