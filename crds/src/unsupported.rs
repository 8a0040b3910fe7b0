//! What is described in the schema and honoured by no code yet, and what only a cluster honours.
//!
//! A field of the first list is refused when it is set, never ignored. A field of the second is accepted, and
//! a run without a cluster says that it does not apply. The lists shrink as the code grows.

use crate::schema::{Kind, spec_schema};
use crate::validate::{fill, same};
use crate::{FieldError, FieldPath};
use serde_json::Value;

/// One field of a list.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its kind; none stands for all kinds.
    pub kind: Option<Kind>,
    /// Its path. `[]` is every element of a list, `**` any number of members.
    pub path: &'static str,
    /// The values that are meant; empty means every value but the default.
    pub values: &'static [&'static str],
    /// Why, as it completes "`PATH` …".
    pub why: &'static str,
}

const fn field(kind: Option<Kind>, path: &'static str, why: &'static str) -> Field {
    Field { kind, path, values: &[], why }
}

const INDEX: Option<Kind> = Some(Kind::RetrieverIndex);
const JOB: Option<Kind> = Some(Kind::S3TrainingJob);

/// Fields and values that no code honours yet.
pub const UNSUPPORTED: &[Field] = &[
    // indices
    field(INDEX, "spec.source.build.corpus.format", "is seen from the first line; leave it out"),
    field(INDEX, "spec.source.build.lexical.analyzer", "is not built yet; use English"),
    field(INDEX, "spec.source.import.corpus.format", "is seen from the first line; leave it out"),
    field(INDEX, "spec.source.import.lexical.analyzer", "is not built yet; use English"),
    field(INDEX, "spec.source.build.dense.index.metric", "is not built yet; use InnerProduct"),
];

/// Fields that a run without a cluster accepts and does not apply.
pub const CLUSTER_ONLY: &[Field] = &[
    field(None, "spec.**.resources", "a process takes what the machine has"),
    field(None, "spec.**.pod", "there are no pods"),
    field(None, "spec.**.storage", "everything is kept in the run's folder"),
    field(None, "spec.queue", "there is no queue"),
    field(None, "spec.suspend", "stop with Ctrl-C, run again to go on"),
    field(None, "spec.activeDeadlineSeconds", "the run has no deadline"),
    field(None, "spec.ttlSecondsAfterFinished", "the run's folder stays until you remove it"),
    field(INDEX, "spec.serving.replicas", "one server runs"),
    field(INDEX, "spec.serving.autoscaling", "one server runs"),
    field(JOB, "spec.serving", "nothing is served after the run; use `s3 ask`"),
    field(JOB, "spec.gpuSecondBudget", "GPU-seconds are not counted"),
    field(JOB, "spec.failurePolicy", "the supervisor restarts by its own policy"),
    field(JOB, "spec.parallelism.gpusPerReplica", "searcher.device decides"),
];

/// The set fields of an object that no code honours yet. `object` is the whole object as it was written.
pub fn refuse_unsupported(kind: Kind, object: &Value) -> Vec<FieldError> {
    refused(kind, object, UNSUPPORTED)
}

fn refused(kind: Kind, object: &Value, list: &[Field]) -> Vec<FieldError> {
    listed(kind, object, list, |field, at, value| {
        if field.values.is_empty() || !value.is_string() {
            FieldError::new(at.clone(), field.why)
        } else {
            FieldError::new(at.clone(), format!("`{}` {}", value.as_str().unwrap_or(""), field.why))
        }
    })
}

/// The set fields of an object that only a cluster honours, each with what holds instead.
pub fn cluster_only(kind: Kind, object: &Value) -> Vec<FieldError> {
    listed(kind, object, CLUSTER_ONLY, |field, at, _| FieldError::new(at.clone(), field.why))
}

fn listed(
    kind: Kind,
    object: &Value,
    list: &[Field],
    error: impl Fn(&Field, &FieldPath, &Value) -> FieldError,
) -> Vec<FieldError> {
    let mut errors: Vec<FieldError> = Vec::new();
    visit(kind, object, &mut |at, schema, value| {
        if is_default(schema, value) {
            return;
        }
        for field in
            list.iter().filter(|field| field.kind.is_none_or(|of| of == kind) && matches(field.path, at.as_str()))
        {
            if field.values.is_empty() || value.as_str().is_some_and(|text| field.values.contains(&text)) {
                errors.push(error(field, at, value));
            }
        }
    });
    errors.sort();
    errors
}

/// Whether a value, its defaults filled, says nothing beyond the schema's default.
fn is_default(schema: &Value, value: &Value) -> bool {
    schema.get("default").is_some_and(|default| {
        let mut default = default.clone();
        fill(schema, &mut default);
        same(&default, value)
    })
}

/// Visits every set field of an object's spec, defaults filled: (path, schema, value).
fn visit(kind: Kind, object: &Value, see: &mut dyn FnMut(&FieldPath, &Value, &Value)) {
    let mut spec = object.get("spec").cloned().unwrap_or_default();
    let schema = spec_schema(kind);
    fill(schema, &mut spec);
    below(&FieldPath::root("spec"), schema, &spec, see);
}

fn below(at: &FieldPath, schema: &Value, value: &Value, see: &mut dyn FnMut(&FieldPath, &Value, &Value)) {
    see(at, schema, value);
    match value {
        Value::Object(map) => {
            for (name, child) in map.iter().filter(|(_, child)| !child.is_null()) {
                if let Some(member) = schema.get("properties").and_then(|members| members.get(name)) {
                    below(&at.key(name), member, child, see);
                }
            }
        }
        Value::Array(list) => {
            for (index, item) in list.iter().enumerate() {
                below(&at.index(index), &schema["items"], item, see);
            }
        }
        _ => {}
    }
}

/// Whether a path like `spec.arms[2].topK` is meant by a pattern like `spec.arms[].topK` or `spec.**.topK`.
fn matches(pattern: &str, path: &str) -> bool {
    fn parts(text: &str) -> Vec<&str> {
        text.split('.').map(|part| part.split('[').next().unwrap_or(part)).collect()
    }
    fn all(pattern: &[&str], path: &[&str]) -> bool {
        match (pattern, path) {
            ([], []) => true,
            (["**", rest @ ..], _) => (0..=path.len()).any(|skipped| all(rest, &path[skipped..])),
            ([p, pattern @ ..], [name, path @ ..]) => p == name && all(pattern, path),
            _ => false,
        }
    }
    all(&parts(pattern), &parts(path)) && pattern.ends_with(']') == path.ends_with(']')
}

#[cfg(test)]
#[path = "unsupported_tests.rs"]
mod tests;
