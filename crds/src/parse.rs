//! Manifests to typed resources, with one-line errors that name file, document and field.

use crate::schema::Kind;
use crate::{API_VERSION, EvalRun, FieldError, RetrieverIndex, S3TrainingJob, validate};
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// A Secret manifest, for runs without a cluster. Its values are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretManifest {
    /// Name of the Secret.
    pub name: String,
    /// Values by key, `stringData` over `data`.
    pub values: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for SecretManifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretManifest").field("name", &self.name).field("keys", &self.values.keys()).finish()
    }
}

/// One object of a manifest, with its defaults filled.
#[derive(Clone, Debug)]
pub enum Resource {
    /// A [`RetrieverIndex`].
    RetrieverIndex(Box<RetrieverIndex>),
    /// An [`S3TrainingJob`].
    S3TrainingJob(Box<S3TrainingJob>),
    /// An [`EvalRun`].
    EvalRun(Box<EvalRun>),
    /// A Secret.
    Secret(SecretManifest),
}

impl Resource {
    /// `KIND/NAME`.
    pub fn title(&self) -> String {
        let (kind, name) = match self {
            Self::RetrieverIndex(index) => ("RetrieverIndex", &index.metadata.name),
            Self::S3TrainingJob(job) => ("S3TrainingJob", &job.metadata.name),
            Self::EvalRun(run) => ("EvalRun", &run.metadata.name),
            Self::Secret(secret) => return format!("Secret/{}", secret.name),
        };
        format!("{kind}/{}", name.as_deref().unwrap_or(""))
    }
}

/// One document of a manifest file.
#[derive(Clone, Debug)]
pub struct Document {
    /// The file, as the caller named it.
    pub file: String,
    /// Its number in the file, from 1.
    pub number: usize,
    /// The object.
    pub resource: Resource,
    /// The object as it was written, defaults not filled; none for a Secret.
    pub written: Option<Value>,
}

/// Why a document was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} (document {number}{}): {what}", title.as_ref().map(|t| format!(", {t}")).unwrap_or_default())]
pub struct ParseError {
    /// The file, as the caller named it.
    pub file: String,
    /// The document's number in the file, from 1.
    pub number: usize,
    /// `KIND/NAME`, as far as known.
    pub title: Option<String>,
    /// What is wrong and how to put it right; one line.
    pub what: String,
}

/// Reads all documents of a manifest (YAML or JSON). Everything wrong is reported, not only the first thing.
pub fn parse_documents(file: &str, text: &str) -> Result<Vec<Document>, Vec<ParseError>> {
    let mut documents = Vec::new();
    let mut errors = Vec::new();
    for (index, yaml) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let number = index + 1;
        let error = |title: Option<String>, what: String| ParseError { file: file.to_owned(), number, title, what };
        // through YAML's own value, which refuses a key that is written twice
        let value = match serde_yaml_ng::Value::deserialize(yaml) {
            Ok(serde_yaml_ng::Value::Null) => continue,
            Ok(yaml) => serde_json::to_value(yaml).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let value = match value {
            Ok(value) => value,
            Err(e) => {
                errors.push(error(None, format!("not readable as YAML: {}", e.replace('\n', " "))));
                // after a syntax error the rest of the stream has no meaning
                break;
            }
        };
        let title = title_of(&value);
        match parse_value(&value) {
            Ok(resource) => {
                let written = (!matches!(resource, Resource::Secret(_))).then_some(value);
                documents.push(Document { file: file.to_owned(), number, resource, written });
            }
            Err(whats) => errors.extend(whats.into_iter().map(|what| error(title.clone(), what))),
        }
    }
    if errors.is_empty() { Ok(documents) } else { Err(errors) }
}

fn title_of(value: &Value) -> Option<String> {
    let kind = value.get("kind")?.as_str()?;
    Some(format!("{kind}/{}", value.pointer("/metadata/name").and_then(Value::as_str).unwrap_or("?")))
}

fn parse_value(value: &Value) -> Result<Resource, Vec<String>> {
    let one = |what: String| vec![what];
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    let Some(kind) = text("kind") else {
        return Err(one("kind: is missing; write RetrieverIndex, S3TrainingJob, EvalRun or Secret".into()));
    };
    let version = text("apiVersion").unwrap_or("");
    if value.pointer("/metadata/name").and_then(Value::as_str).is_none_or(str::is_empty) {
        return Err(one("metadata.name: is missing; every object needs a name".into()));
    }
    if kind == "Secret" && version == "v1" {
        return secret(value).map(Resource::Secret).map_err(one);
    }
    let Some(kind) = Kind::from_name(kind) else {
        return Err(one(format!(
            "kind: `{kind}` is not known here; known are RetrieverIndex, S3TrainingJob, EvalRun and Secret"
        )));
    };
    if version != API_VERSION {
        return Err(one(format!("apiVersion: is `{version}`; write {API_VERSION}")));
    }
    let errors = validate(kind, value);
    if !errors.is_empty() {
        return Err(errors.iter().map(FieldError::to_string).collect());
    }
    let mut filled = value.clone();
    crate::apply_defaults(kind, &mut filled);
    let typed = match kind {
        Kind::RetrieverIndex => serde_json::from_value(filled).map(|r| Resource::RetrieverIndex(Box::new(r))),
        Kind::S3TrainingJob => serde_json::from_value(filled).map(|r| Resource::S3TrainingJob(Box::new(r))),
        Kind::EvalRun => serde_json::from_value(filled).map(|r| Resource::EvalRun(Box::new(r))),
    };
    typed.map_err(|e| one(e.to_string()))
}

fn secret(value: &Value) -> Result<SecretManifest, String> {
    // serde's messages would quote the value
    let secret: Secret = serde_json::from_value(value.clone()).map_err(|_| {
        "data: is not a map of base64 texts; encode the values, or write them plainly under stringData".to_owned()
    })?;
    let mut values: BTreeMap<String, Vec<u8>> =
        secret.data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
    values.extend(secret.string_data.unwrap_or_default().into_iter().map(|(key, text)| (key, text.into_bytes())));
    Ok(SecretManifest { name: secret.metadata.name.unwrap_or_default(), values })
}
