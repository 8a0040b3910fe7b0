//! What an evaluation is: everything that its answers depend on, and no path, address or time.
//!
//! The list of questions and this identity are frozen in the state folder before anything is evaluated. A run
//! that continues must find both unchanged, else finished units of two different evaluations would be mixed.

use crate::arms::Places;
use crate::error::EvalError;
use crate::questions::QuestionSet;
use s3_artifacts::{ArtifactError, digest_file, write_atomic};
use s3_config::{ArmConfig, ArmMethod, Determinism, EvaluatorConfig, ModelSpec, PlayedArm, ProtocolKind};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The frozen list of questions.
pub const QUESTIONS: &str = "questions.json";
/// The frozen identity.
pub const IDENTITY: &str = "identity.json";

/// The identity as a flat JSON object. The digests of indices and `generator` are what the services report.
pub fn of(config: &EvaluatorConfig, set: &QuestionSet, places: &Places, generator: &str) -> Result<Value, EvalError> {
    let index = places.run().map_or("none", |run| run.index_digest());
    let answers = &config.generator;
    let mut identity = Map::from_iter([
        ("questions".to_owned(), json!(set.sha256)),
        ("seed".to_owned(), json!(config.seed)),
        ("chunk".to_owned(), json!(config.chunk)),
        ("determinism".to_owned(), json!(config.determinism)),
        ("index".to_owned(), json!(index)),
        ("generator".to_owned(), json!(generator)),
        (
            "answers".to_owned(),
            json!({
                "model": answers.model,
                "template": answers.template,
                "maxTokens": answers.max_tokens,
                "maxAnswerTokens": answers.max_answer_tokens,
                "passageWords": answers.passage_words,
                "judge": answers.judge,
                "chunk": answers.chunk,
            }),
        ),
    ]);
    if config.determinism == Determinism::Bitwise {
        identity.insert("threads".to_owned(), json!(threads(config.runtime.threads)));
    }
    for arm in &config.arms {
        let mut value = of_arm(arm)?;
        if let (Some(own), Value::Object(value)) = (&arm.retriever, &mut value) {
            let retriever = json!({ "index": places.index_of(arm), "control": own.control });
            value.insert("retriever".to_owned(), retriever);
        }
        identity.insert(format!("arm {}", arm.name), value);
    }
    Ok(Value::Object(identity))
}

/// Threads that arithmetic is divided over: sums are cut by it, and rounding shows that.
fn threads(configured: Option<usize>) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    let named = || std::env::var("RAYON_NUM_THREADS").ok().and_then(|value| value.parse().ok());
    configured.or_else(named).filter(|threads| *threads > 0).unwrap_or_else(all)
}

fn of_arm(arm: &ArmConfig) -> Result<Value, EvalError> {
    if let Some((kind, played)) = arm.method.played() {
        let mut value = of_played(kind, played)?;
        if let Some(model) = &played.searcher {
            value["model"] = of_model(model)?;
        }
        return Ok(value);
    }
    let ArmMethod::S3 { searcher, search, temperature, top_p, batch } = &arm.method else {
        return Ok(serde_json::to_value(&arm.method).map_err(ArtifactError::from)?);
    };
    let mut search = search.clone();
    // the text counts, not where it is read from
    search.prompt_template = None;
    let adapter = searcher.adapter.as_ref().map(|adapter| digest_file(&adapter.tensors()));
    let mut value = json!({
        "method": "S3",
        "model": model_digest(searcher)?,
        "adapter": adapter.transpose()?,
        "dtype": searcher.dtype,
        "device": searcher.device,
        "search": search,
        "temperature": temperature,
        "batch": batch,
    });
    if *top_p < 1.0 {
        value["topP"] = json!(top_p);
    }
    if let Some(template) = &searcher.chat_template {
        value["chatTemplate"] = json!(digest_file(template)?);
    }
    Ok(value)
}

fn of_played(kind: ProtocolKind, played: &PlayedArm) -> Result<Value, EvalError> {
    let mut search = played.search.clone();
    search.prompt_template = None;
    Ok(json!({
        "method": format!("{kind:?}"),
        "model": "the generator's",
        "search": serde_json::to_value(search).map_err(ArtifactError::from)?,
        "answer": played.answer,
        "temperature": played.temperature,
        "topP": played.top_p,
        "batch": played.batch,
    }))
}

fn of_model(model: &ModelSpec) -> Result<Value, EvalError> {
    let adapter = model.adapter.as_ref().map(|adapter| digest_file(&adapter.tensors()));
    let weights = model_digest(model)?;
    let mut value =
        json!({ "weights": weights, "adapter": adapter.transpose()?, "dtype": model.dtype, "device": model.device });
    if let Some(template) = &model.chat_template {
        value["chatTemplate"] = json!(digest_file(template)?);
    }
    Ok(value)
}

fn model_digest(spec: &ModelSpec) -> Result<String, EvalError> {
    if let Some(digest) = &spec.sha256 {
        // compared with the file where it is loaded
        return Ok(digest.to_lowercase());
    }
    let single = if spec.path.is_dir() { spec.path.join("model.safetensors") } else { spec.path.clone() };
    let file = if single.exists() { single } else { spec.path.join("model.safetensors.index.json") };
    Ok(digest_file(&file)?)
}

/// Freezes the list of questions, or refuses a list that differs from the frozen one.
pub fn freeze_questions(state: &Path, set: &QuestionSet) -> Result<(), EvalError> {
    let path = state.join(QUESTIONS);
    let Some(frozen) = read::<QuestionSet>(&path)? else { return write(&path, set) };
    if frozen == *set {
        return Ok(());
    }
    let what = if frozen.sha256 == set.sha256 {
        "how the questions are chosen".to_owned()
    } else {
        format!(
            "the list of questions: {} with sha256 {}, now {} with sha256 {}",
            frozen.questions.len(),
            short(&frozen.sha256),
            set.questions.len(),
            short(&set.sha256)
        )
    };
    Err(EvalError::Changed { path, what })
}

/// Freezes the identity, or refuses one that differs from the frozen one and says where.
pub fn freeze_identity(state: &Path, identity: &Value) -> Result<(), EvalError> {
    let path = state.join(IDENTITY);
    let Some(frozen) = read::<Value>(&path)? else { return write(&path, identity) };
    if frozen == *identity {
        return Ok(());
    }
    let empty = Map::new();
    let (was, is) = (frozen.as_object().unwrap_or(&empty), identity.as_object().unwrap_or(&empty));
    let mut names: Vec<&String> = was.keys().chain(is.keys()).collect();
    names.sort();
    names.dedup();
    let changed: Vec<&str> =
        names.into_iter().filter(|name| was.get(*name) != is.get(*name)).map(String::as_str).collect();
    Err(EvalError::Changed { path, what: changed.join(", ") })
}

/// The frozen identity of a state folder.
pub fn frozen(state: &Path) -> Result<Value, EvalError> {
    let path = state.join(IDENTITY);
    read(&path)?.ok_or_else(|| EvalError::Config(format!("{}: nothing has been evaluated yet", path.display())))
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, EvalError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(EvalError::read(path, error)),
        Ok(bytes) => {
            let parsed = serde_json::from_slice(&bytes);
            let corrupt = |error: serde_json::Error| ArtifactError::Corrupt {
                path: path.to_owned(),
                reason: format!("not readable ({error})"),
            };
            Ok(Some(parsed.map_err(corrupt)?))
        }
    }
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), EvalError> {
    let text = serde_json::to_vec_pretty(value).map_err(ArtifactError::from)?;
    Ok(write_atomic(path, &text)?)
}
