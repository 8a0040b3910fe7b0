//! Gateways: one for all resources of equal provider, endpoint and secret name.

use crate::component::in_work;
use crate::names::short_digest;
use crate::sources::Reader;
use crate::{
    ADMIN_PORT, Component, ComponentKind, ComponentResources, Endpoint, GRPC_PORT, HTTP_PORT, PlanError, Readiness,
    Role, Symbol, Template, WorkerConfig,
};
use s3_config::{Endpoint as Peer, GatewayConfig, GeneratorConfig, ProviderConfig};
use s3_crds::{Generator, Judge, Limits, Provider};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// A gateway that resources are still added to.
#[derive(Default)]
pub(crate) struct Draft {
    owners: BTreeSet<String>,
    providers: BTreeMap<String, ProviderConfig>,
    templates: BTreeMap<String, PathBuf>,
    volumes: BTreeSet<String>,
    inputs: Vec<crate::Input>,
    secrets: BTreeSet<String>,
    endpoints: Vec<Endpoint>,
}

/// Gateways by component name.
#[derive(Default)]
pub(crate) struct Gateways(BTreeMap<String, Draft>);

impl Gateways {
    /// Adds a resource's generator and judge, and returns how the workers reach them.
    pub fn join(
        &mut self,
        resource: &str,
        folder: Option<&std::path::Path>,
        generator: &Generator,
        judge: Option<&Judge>,
    ) -> Result<(String, GeneratorConfig), PlanError> {
        let name = gateway_name(resource, &generator.provider)?;
        let draft = self.0.entry(name.clone()).or_default();
        draft.owners.insert(resource.to_owned());
        let mut reader = Reader::new(resource, folder);
        let model = draft.provider(&mut reader, &generator.provider, &generator.limits, "generator.provider")?;
        let judge = match judge {
            Some(judge) => Some(draft.provider(&mut reader, &judge.provider, &judge.limits, "judge.provider")?),
            None => None,
        };
        let answer = &generator.answer;
        if let Some(source) = &answer.template_source {
            let file = reader.data(source, "generator.answer.templateSource")?;
            let known = draft.templates.entry(answer.template.clone()).or_insert_with(|| file.clone());
            if *known != file {
                return Err(PlanError::field(
                    resource,
                    "generator.answer.template",
                    format!("`{}` names another file in another resource; choose another name", answer.template),
                ));
            }
        }
        draft.volumes.append(&mut reader.volumes);
        draft.inputs.extend(
            reader
                .inputs
                .into_iter()
                .filter(|input| !draft.inputs.iter().any(|i| i.path == input.path))
                .collect::<Vec<_>>(),
        );
        let config = GeneratorConfig {
            endpoint: peer(&Symbol::address(&name, GRPC_PORT)),
            model,
            template: answer.template.clone(),
            max_tokens: answer.max_tokens,
            max_answer_tokens: answer.max_answer_tokens,
            passage_words: answer.passage_words,
            judge,
            chunk: answer.chunk as usize,
        };
        Ok((name, config))
    }

    /// The finished components.
    pub fn into_components(self) -> Result<Vec<Component>, PlanError> {
        self.0.into_iter().map(|(name, draft)| draft.into_component(&name)).collect()
    }
}

impl Draft {
    /// Adds a provider unless it is there; returns the name under which callers ask for it.
    fn provider(
        &mut self,
        reader: &mut Reader<'_>,
        provider: &Provider,
        limits: &Limits,
        field: &str,
    ) -> Result<String, PlanError> {
        let mut config = if let Some(built_in) = &provider.built_in {
            let field = format!("{field}.builtIn");
            let mut model =
                reader.model(&built_in.model, built_in.device, built_in.dtype, &format!("{field}.model"))?;
            if let Some(adapter) = &built_in.adapter {
                model.adapter = Some(reader.adapter(adapter, &format!("{field}.adapter"))?);
            }
            ProviderConfig::BuiltIn {
                name: String::new(),
                model,
                batch: built_in.batch as usize,
                context_tokens: built_in.context_tokens as usize,
            }
        } else if let Some(open) = &provider.open_ai_compatible {
            let key = open.api_key_secret_ref.as_ref().map(|secret| {
                self.secrets.insert(format!("{}/{}", secret.name, secret.key));
                PathBuf::from(Symbol::Secret { name: secret.name.clone(), key: secret.key.clone() }.to_string())
            });
            let endpoint = Endpoint {
                url: open.endpoint.clone(),
                field: format!("{} {field}.openAiCompatible.endpoint", reader.resource),
            };
            if !self.endpoints.iter().any(|known| known.url == endpoint.url) {
                self.endpoints.push(endpoint);
            }
            ProviderConfig::OpenAi {
                name: String::new(),
                base_url: open.endpoint.clone(),
                model: open.model.clone(),
                api_key_file: key,
                concurrency: limits.concurrency as usize,
                deadline_ms: limits.timeout.millis(),
                attempts: limits.attempts,
            }
        } else {
            return Err(PlanError::field(
                &reader.resource,
                field,
                "set builtIn or openAiCompatible; no other provider is served yet",
            ));
        };
        // The name says what the provider is, so two resources that ask for the same get the same.
        let identity = serde_json::to_string(&config).map_err(PlanError::defect)?;
        let (ProviderConfig::BuiltIn { name, .. } | ProviderConfig::OpenAi { name, .. }) = &mut config;
        let stem = match provider.open_ai_compatible.as_ref() {
            Some(open) => open.model.clone(),
            None => "built-in".to_owned(),
        };
        *name = format!("{stem}-{}", short_digest(&identity));
        let name = name.clone();
        self.providers.entry(name.clone()).or_insert(config);
        Ok(name)
    }

    fn into_component(self, name: &str) -> Result<Component, PlanError> {
        let stand_in = std::net::SocketAddr::from(([0, 0, 0, 0], 0));
        let disk = 64 << 20;
        let config = GatewayConfig {
            runtime: crate::component::runtime(name),
            grpc: stand_in,
            http: Some(stand_in),
            providers: self.providers.into_values().collect(),
            cache: Some(in_work(name, "answers.redb")),
            templates: self.templates,
            body_limit: 64 << 20,
        };
        let listens = [("/grpc", GRPC_PORT), ("/http", HTTP_PORT), ("/runtime/admin", ADMIN_PORT)];
        Ok(Component {
            name: name.to_owned(),
            kind: ComponentKind::Gateway,
            role: Role::Service,
            owners: self.owners,
            binary: "s3-generator-gateway".into(),
            args: vec!["serve".into()],
            needs: BTreeSet::new(),
            ports: listens.iter().map(|(_, port)| (*port).to_owned()).collect(),
            endpoints: self.endpoints,
            volumes: self.volumes,
            secrets: self.secrets,
            inputs: self.inputs,
            resources: ComponentResources { disk, ..ComponentResources::default() },
            readiness: Readiness::Reported,
            config: Template::new(&WorkerConfig::Gateway(Box::new(config)), &listens)?,
        })
    }
}

/// How a worker reaches another.
pub(crate) fn peer(address: &Symbol) -> Peer {
    Peer { address: address.to_string(), deadline_ms: 600_000, attempts: 6 }
}

fn gateway_name(resource: &str, provider: &Provider) -> Result<String, PlanError> {
    if provider.built_in.is_some() {
        return Ok("gateway-built-in".into());
    }
    let Some(open) = &provider.open_ai_compatible else {
        return Err(PlanError::field(
            resource,
            "generator.provider",
            "set builtIn or openAiCompatible; no other provider is served yet",
        ));
    };
    let secret = open.api_key_secret_ref.as_ref().map_or("", |secret| secret.name.as_str());
    Ok(format!(
        "gateway-{}",
        short_digest(&format!("openAiCompatible\n{}\n{secret}", open.endpoint.trim_end_matches('/')))
    ))
}
