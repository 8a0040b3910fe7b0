//! Model servers that the operator runs for gateways: `provider.managed`.
//!
//! Like gateways they are shared: one for all resources of a namespace that ask for the very same. What serves is vLLM
//! or `SGLang`, whose images and models are their own; the gateway reaches them as any OpenAI-compatible endpoint.

use crate::component::asked;
use crate::names::short_digest;
use crate::sources::{Reader, Served};
use crate::template::{Schema, Template};
use crate::{Component, ComponentKind, HTTP_PORT, PlanError, Readiness, Role, Symbol};
use s3_crds::{Generator, Judge, ManagedServer, ServerEngine};
use serde_json::json;
use std::collections::BTreeSet;

/// Beginning of every server's name.
pub const SERVER_PREFIX: &str = "model-server-";

/// Name of a server: equal settings share one.
pub(crate) fn server_name(managed: &ManagedServer) -> Result<String, PlanError> {
    let text = serde_json::to_string(managed).map_err(PlanError::defect)?;
    Ok(format!("{SERVER_PREFIX}{}", short_digest(&text)))
}

/// All servers that a generator and a judge ask for.
pub(crate) fn servers_of<'a>(
    generator: &'a Generator,
    judge: Option<&'a Judge>,
) -> impl Iterator<Item = &'a ManagedServer> {
    let fallbacks = generator.fallbacks.iter().map(|other| &other.provider);
    let judges = judge
        .into_iter()
        .flat_map(|judge| std::iter::once(&judge.provider).chain(judge.second.iter().map(|other| &other.provider)));
    std::iter::once(&generator.provider).chain(fallbacks).chain(judges).filter_map(|provider| provider.managed.as_ref())
}

/// The name by which a server's model is asked for: readable, and another for another model.
fn model_name(managed: &ManagedServer) -> Result<String, PlanError> {
    let identity =
        serde_json::to_string(&(managed.engine, &managed.model, &managed.args)).map_err(PlanError::defect)?;
    let last = managed.model.uri.trim_end_matches('/').rsplit('/').next().unwrap_or("model");
    Ok(format!("{last}-{}", short_digest(&identity)))
}

/// The program of an engine, as images are named by.
fn program(engine: ServerEngine) -> &'static str {
    match engine {
        ServerEngine::Vllm => "vllm",
        ServerEngine::Sglang => "sglang",
    }
}

/// The component, the model's name, and the address up to and with `/v1`.
pub(crate) fn server(
    reader: &mut Reader<'_>,
    managed: &ManagedServer,
    field: &str,
) -> Result<(Component, String, String), PlanError> {
    let name = server_name(managed)?;
    let model = model_name(managed)?;
    let mut own = Reader::new(&reader.resource, reader.folder);
    let served = own.served(&managed.model, &format!("{field}.managed.model"))?;
    let hub = matches!(served, Served::Hub { .. });
    let (path, revision) = match served {
        Served::Volume { path } => (path, None),
        Served::Hub { repository, revision } => (repository, revision),
    };
    let token = managed
        .model
        .token_secret_ref
        .as_ref()
        .map(|secret| Symbol::Secret { name: secret.name.clone(), key: secret.key.clone() }.to_string());
    let mut value = json!({ "model": path, "name": model, "hub": hub, "args": managed.args });
    for (key, text) in [("revision", revision), ("tokenFile", token)] {
        if let Some(text) = text {
            value[key] = json!(text);
        }
    }
    let component = Component {
        name: name.clone(),
        kind: ComponentKind::ModelServer,
        role: Role::Service,
        owners: BTreeSet::from([reader.resource.clone()]),
        binary: program(managed.engine).to_owned(),
        args: Vec::new(),
        needs: BTreeSet::new(),
        ports: BTreeSet::from([HTTP_PORT.to_owned()]),
        endpoints: Vec::new(),
        volumes: own.volumes,
        secrets: BTreeSet::new(),
        inputs: own.inputs,
        resources: asked(&managed.resources, 0, 0),
        readiness: Readiness::Reported,
        config: Template { schema: Schema::ModelServer, value },
    };
    let address = format!("{}/v1", Symbol::address(&name, HTTP_PORT));
    Ok((component, model, address))
}
