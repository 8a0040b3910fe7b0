//! CRD manifests from the types, made structural as the API server wants it.

use crate::{EvalRun, RetrieverIndex, S3TrainingJob, rules, validate::fill};
use kube::CustomResourceExt;
use kube::core::ApiResource;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};
use std::sync::OnceLock;

/// Pattern of an address of models and data, by which they are known in the schema.
pub const URI_PATTERN: &str = r"^(hf|s3|gs|pvc|file)://.+$";

/// The three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// [`RetrieverIndex`].
    RetrieverIndex,
    /// [`S3TrainingJob`].
    S3TrainingJob,
    /// [`EvalRun`].
    EvalRun,
}

impl Kind {
    /// All kinds, in the order in which they depend on each other.
    pub const ALL: [Self; 3] = [Self::RetrieverIndex, Self::S3TrainingJob, Self::EvalRun];

    /// As in manifests.
    pub fn name(self) -> &'static str {
        match self {
            Self::RetrieverIndex => "RetrieverIndex",
            Self::S3TrainingJob => "S3TrainingJob",
            Self::EvalRun => "EvalRun",
        }
    }

    /// The kind of a manifest's `kind`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// File name of its CRD manifest.
    pub fn file_name(self) -> &'static str {
        match self {
            Self::RetrieverIndex => "retrieverindices.yaml",
            Self::S3TrainingJob => "s3trainingjobs.yaml",
            Self::EvalRun => "evalruns.yaml",
        }
    }
}

/// Schema of an object that is passed on as it is.
pub fn free_object(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// The CRD of a kind as a JSON value, keys in alphabetical order.
pub fn crd(kind: Kind) -> &'static Value {
    static CRDS: OnceLock<[Value; 3]> = OnceLock::new();
    &CRDS.get_or_init(|| Kind::ALL.map(make))[kind as usize]
}

/// How objects of a kind are addressed at an API server.
pub fn api_resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::RetrieverIndex => ApiResource::erase::<RetrieverIndex>(&()),
        Kind::S3TrainingJob => ApiResource::erase::<S3TrainingJob>(&()),
        Kind::EvalRun => ApiResource::erase::<EvalRun>(&()),
    }
}

/// Schema of a kind's `spec`, as the API server sees it.
pub fn spec_schema(kind: Kind) -> &'static Value {
    &root_schema(kind)["properties"]["spec"]
}

/// Schema of a whole object of a kind.
pub(crate) fn root_schema(kind: Kind) -> &'static Value {
    &crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
}

/// The CRD of a kind without CEL, for servers before 1.25.
///
/// Empty texts as defaults go too: Kubernetes 1.20 was seen to take them for null and refuse the CRD. The types fill
/// them in all the same.
pub fn crd_without_cel(kind: Kind) -> Value {
    let mut crd = crd(kind).clone();
    walk(&mut crd, &mut |node| {
        node.remove("x-kubernetes-validations");
        if node.get("default").and_then(Value::as_str) == Some("") {
            node.remove("default");
        }
    });
    crd
}

/// The CRD of a kind as YAML, with a first line that says where it comes from.
pub fn crd_yaml(kind: Kind, with_cel: bool) -> Result<String, serde_yaml_ng::Error> {
    let body =
        if with_cel { serde_yaml_ng::to_string(crd(kind)) } else { serde_yaml_ng::to_string(&crd_without_cel(kind)) }?;
    Ok(format!("# Made from the types in crds/src by `s3-operator crds --output crds/generated`; do not edit.\n{body}"))
}

fn make(kind: Kind) -> Value {
    let crd = match kind {
        Kind::RetrieverIndex => RetrieverIndex::crd(),
        Kind::S3TrainingJob => S3TrainingJob::crd(),
        Kind::EvalRun => EvalRun::crd(),
    };
    // a typed object of strings, numbers and lists always has a JSON form
    let mut crd = serde_json::to_value(crd).unwrap_or_default();
    let root = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    root["x-kubernetes-validations"] = rules::attach(&[&rules::NAME_LENGTH]);
    for part in ["spec", "status"] {
        walk(&mut root["properties"][part], &mut clean);
    }
    short_defaults(&mut root["properties"]["spec"]);
    sorted(&crd)
}

/// Visits every schema node (and, harmlessly, other objects) below a value, the value included.
fn walk(value: &mut Value, visit: &mut dyn FnMut(&mut Map<String, Value>)) {
    match value {
        Value::Object(map) => {
            visit(map);
            for (_, child) in map.iter_mut().filter(|(key, _)| *key != "default") {
                walk(child, visit);
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|child| walk(child, visit)),
        _ => {}
    }
}

/// Takes away what JSON Schema generators write and the API server does not know or want.
fn clean(node: &mut Map<String, Value>) {
    // an absent field is left out, never written as null
    if node.get("nullable").is_some_and(Value::is_boolean) {
        node.remove("nullable");
    }
    if node.get("default").is_some_and(Value::is_null) {
        node.remove("default");
    }
    if (node.contains_key("type") || node.contains_key("x-kubernetes-int-or-string"))
        && let Some(Value::String(text)) = node.get_mut("description")
    {
        *text = one_line_paragraphs(text);
    }
    // the server knows signed formats only; bounds keep what the type means
    let unsigned = node.get("format").and_then(Value::as_str).and_then(|format| match format {
        "uint8" => Some(json!(255)),
        "uint16" => Some(json!(65_535)),
        "uint32" => Some(json!(4_294_967_295_u64)),
        "uint64" | "uint" => Some(Value::Null),
        _ => None,
    });
    if let Some(largest) = unsigned {
        node.insert("format".into(), "int64".into());
        if !largest.is_null() && !node.contains_key("maximum") {
            node.insert("maximum".into(), largest);
        }
    }
    for bound in ["minimum", "maximum"] {
        if let Some(number) = node.get(bound).and_then(Value::as_f64).filter(|n| n.fract() == 0.0 && n.abs() < 1e15) {
            node.insert(bound.into(), json!(number as i64));
        }
    }
}

/// Doc comments break lines at the source's width; paragraphs are what is meant.
fn one_line_paragraphs(text: &str) -> String {
    text.split("\n\n")
        .map(|paragraph| paragraph.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// An object's default becomes `{}` where the defaults of its members say the same.
fn short_defaults(schema: &mut Value) {
    if let Some(Value::Object(members)) = schema.get_mut("properties") {
        members.values_mut().for_each(short_defaults);
    }
    if let Some(items) = schema.get_mut("items") {
        short_defaults(items);
    }
    let Some(default) = schema.get("default").filter(|value| value.is_object()).cloned() else { return };
    let mut filled = json!({});
    fill(schema, &mut filled);
    let mut default = default;
    fill(schema, &mut default);
    // the server evaluates a node's rules on its default as written, members not filled
    let ruled = schema.get("x-kubernetes-validations").is_some();
    schema["default"] = if filled == default && !ruled { json!({}) } else { default };
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort();
            keys.into_iter().map(|key| (key.clone(), sorted(&map[key]))).collect()
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}
