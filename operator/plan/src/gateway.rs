//! Gateways: one for all resources of equal provider, endpoint and secret name.

use crate::component::in_work;
use crate::names::short_digest;
use crate::sources::Reader;
use crate::{
    ADMIN_PORT, Component, ComponentKind, ComponentResources, Endpoint, GRPC_PORT, HTTP_PORT, PlanError, Readiness,
    Role, Symbol, Template, WorkerConfig, server,
};
use s3_config::{
    AnthropicConfig, AzureOpenAiConfig, BedrockConfig, BudgetConfig, CacheMode, CalibrationConfig, CallLimits,
    CallerBudget, Endpoint as Peer, GatewayConfig, GeneratorConfig, OpenAiConfig, ProviderConfig,
};
use s3_crds::{Budget, Generator, Judge, JudgeCalibration, Limits, OtherProvider, Provider, Quantity, SecretKeyRef};
use serde::Serialize;
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
    budgets: Vec<CallerBudget>,
    fallbacks: BTreeMap<String, Vec<String>>,
    second_judges: BTreeMap<String, String>,
    calibrations: BTreeMap<String, CalibrationConfig>,
    tokens: BTreeMap<String, PathBuf>,
    servers: BTreeMap<String, Component>,
    needs: BTreeSet<String>,
    loopback: bool,
}

/// What a provider is asked under.
struct Terms<'a> {
    /// Whose terms: `generator` or `judge`.
    field: &'static str,
    limits: &'a Limits,
    budget: Option<&'a Budget>,
    fallbacks: &'a [OtherProvider],
    second: Option<&'a OtherProvider>,
    calibration: Option<&'a JudgeCalibration>,
}

/// What of its terms makes a provider another than one of the same settings.
#[derive(Serialize)]
struct Bond<'a> {
    field: &'a str,
    budget: Option<&'a BudgetConfig>,
    fallbacks: &'a [String],
    second: Option<&'a String>,
    calibration: Option<&'a CalibrationConfig>,
}

impl Bond<'_> {
    fn is_none(&self) -> bool {
        self.budget.is_none() && self.fallbacks.is_empty() && self.second.is_none() && self.calibration.is_none()
    }
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
        let caller = caller_name(resource);
        let terms = Terms {
            field: "generator",
            limits: &generator.limits,
            budget: generator.budget.as_ref(),
            fallbacks: &generator.fallbacks,
            second: None,
            calibration: None,
        };
        let model = draft.provider(&mut reader, &caller, &generator.provider, &terms)?;
        let judge = match judge {
            Some(judge) => {
                let terms = Terms {
                    field: "judge",
                    limits: &judge.limits,
                    budget: judge.budget.as_ref(),
                    fallbacks: &[],
                    second: judge.second.as_ref(),
                    calibration: judge.calibration.as_ref(),
                };
                Some(draft.provider(&mut reader, &caller, &judge.provider, &terms)?)
            }
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
        let token_file = generator.caller_token_secret_ref.as_ref().map(|secret| draft.secret(secret));
        if let Some(file) = &token_file {
            draft.tokens.insert(caller.clone(), file.clone());
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
            caller,
            token_file,
        };
        Ok((name, config))
    }

    /// The finished components: gateways, and the model servers behind them.
    pub fn into_components(self) -> Result<Vec<Component>, PlanError> {
        let mut servers: BTreeMap<String, Component> = BTreeMap::new();
        let mut components = Vec::new();
        for (name, mut draft) in self.0 {
            for (name, server) in std::mem::take(&mut draft.servers) {
                draft.needs.insert(name.clone());
                let known = servers.entry(name).or_insert_with(|| server.clone());
                known.owners.extend(server.owners);
            }
            components.push(draft.into_component(&name)?);
        }
        components.extend(servers.into_values());
        Ok(components)
    }
}

impl Draft {
    /// Adds a provider, with those that stand in for it or must agree with it, unless it is there; returns the name
    /// under which callers ask for it.
    fn provider(
        &mut self,
        reader: &mut Reader<'_>,
        caller: &str,
        provider: &Provider,
        terms: &Terms<'_>,
    ) -> Result<String, PlanError> {
        let field = terms.field;
        let config = self.settings(reader, provider, terms.limits, &format!("{field}.provider"))?;
        let budget = terms.budget.map(|budget| budget_config(budget, &reader.resource, field)).transpose()?;
        // What the judge asks is not charged to the generator: a provider with a budget is apart from one without,
        // and so are those that are charged with it.
        let mut other = |place: String, other: &OtherProvider| {
            let config = self.settings(reader, &other.provider, &other.limits, &format!("{field}.{place}.provider"))?;
            let bond = Bond { field, budget: budget.as_ref(), fallbacks: &[], second: None, calibration: None };
            self.named(config, &bond)
        };
        let places = terms.fallbacks.iter().enumerate();
        let fallbacks =
            places.map(|(place, one)| other(format!("fallbacks[{place}]"), one)).collect::<Result<Vec<_>, _>>()?;
        let second = terms.second.map(|one| other("second".to_owned(), one)).transpose()?;
        let calibration = match terms.calibration {
            Some(asked) => {
                let report = reader.data(&asked.report, "judge.calibration.report")?;
                Some(CalibrationConfig { report, min_kappa: asked.min_kappa })
            }
            None => None,
        };
        let bond = Bond {
            field,
            budget: budget.as_ref(),
            fallbacks: &fallbacks,
            second: second.as_ref(),
            calibration: calibration.as_ref(),
        };
        let name = self.named(config, &bond)?;
        if let Some(budget) = budget {
            let providers = std::iter::once(&name).chain(&fallbacks).chain(&second).cloned().collect();
            self.budgets.push(CallerBudget { caller: caller.to_owned(), providers, budget });
        }
        if !fallbacks.is_empty() {
            self.fallbacks.insert(name.clone(), fallbacks);
        }
        self.second_judges.extend(second.map(|second| (name.clone(), second)));
        self.calibrations.extend(calibration.map(|calibration| (name.clone(), calibration)));
        Ok(name)
    }

    /// Names a provider by what it is, so that two resources that ask for the same get the same.
    fn named(&mut self, mut config: ProviderConfig, bond: &Bond<'_>) -> Result<String, PlanError> {
        let mut identity = serde_json::to_string(&config).map_err(PlanError::defect)?;
        if !bond.is_none() {
            identity.push_str(&serde_json::to_string(bond).map_err(PlanError::defect)?);
        }
        let stem = match &config {
            ProviderConfig::BuiltIn { .. } => "built-in",
            ProviderConfig::OpenAi(config) => &config.model,
            ProviderConfig::AzureOpenAi(config) => &config.deployment,
            ProviderConfig::Anthropic(config) => &config.model,
            ProviderConfig::Bedrock(config) => &config.model,
        };
        let name = format!("{stem}-{}", short_digest(&identity));
        config.rename(name.clone());
        self.providers.entry(name.clone()).or_insert(config);
        Ok(name)
    }

    /// A provider's configuration; its name is still empty.
    fn settings(
        &mut self,
        reader: &mut Reader<'_>,
        provider: &Provider,
        limits: &Limits,
        field: &str,
    ) -> Result<ProviderConfig, PlanError> {
        let limits = call_limits(limits);
        Ok(if let Some(built_in) = &provider.built_in {
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
            self.reaches(&open.endpoint, &reader.resource, &format!("{field}.openAiCompatible.endpoint"));
            for replica in &open.replicas {
                self.reaches(replica, &reader.resource, &format!("{field}.openAiCompatible.replicas"));
            }
            ProviderConfig::OpenAi(OpenAiConfig {
                name: String::new(),
                base_url: open.endpoint.clone(),
                replicas: open.replicas.clone(),
                model: open.model.clone(),
                api_key_file: open.api_key_secret_ref.as_ref().map(|secret| self.secret(secret)),
                limits,
            })
        } else if let Some(azure) = &provider.azure_open_ai {
            self.reaches(&azure.endpoint, &reader.resource, &format!("{field}.azureOpenAi.endpoint"));
            ProviderConfig::AzureOpenAi(AzureOpenAiConfig {
                name: String::new(),
                endpoint: azure.endpoint.clone(),
                deployment: azure.deployment.clone(),
                api_version: azure.api_version.clone(),
                api_key_file: self.secret(&azure.api_key_secret_ref),
                limits,
            })
        } else if let Some(anthropic) = &provider.anthropic {
            let base_url = anthropic.endpoint.clone().unwrap_or_else(|| ANTHROPIC.to_owned());
            self.reaches(&base_url, &reader.resource, &format!("{field}.anthropic.endpoint"));
            ProviderConfig::Anthropic(AnthropicConfig {
                name: String::new(),
                base_url,
                model: anthropic.model.clone(),
                api_key_file: self.secret(&anthropic.api_key_secret_ref),
                limits,
            })
        } else if let Some(bedrock) = &provider.bedrock {
            let url = bedrock_url(&bedrock.region);
            self.reaches(&url, &reader.resource, &format!("{field}.bedrock.region"));
            ProviderConfig::Bedrock(BedrockConfig {
                name: String::new(),
                region: bedrock.region.clone(),
                model: bedrock.model.clone(),
                credentials_file: bedrock.credentials_secret_ref.as_ref().map(|secret| self.secret(secret)),
                endpoint: None,
                limits,
            })
        } else if let Some(managed) = &provider.managed {
            let (server, model, base_url) = server::server(reader, managed, field)?;
            let known = self.servers.entry(server.name.clone()).or_insert(server);
            known.owners.insert(reader.resource.clone());
            ProviderConfig::OpenAi(OpenAiConfig {
                name: String::new(),
                base_url,
                replicas: Vec::new(),
                model,
                api_key_file: None,
                limits,
            })
        } else {
            return Err(PlanError::field(&reader.resource, field, NO_PROVIDER));
        })
    }

    fn secret(&mut self, secret: &SecretKeyRef) -> PathBuf {
        self.secrets.insert(format!("{}/{}", secret.name, secret.key));
        PathBuf::from(Symbol::Secret { name: secret.name.clone(), key: secret.key.clone() }.to_string())
    }

    /// Notes an address, for network rules. One that says itself that it is of this machine is meant so.
    fn reaches(&mut self, url: &str, resource: &str, field: &str) {
        self.loopback |= is_loopback(url);
        if !self.endpoints.iter().any(|known| known.url == url) {
            self.endpoints.push(Endpoint { url: url.to_owned(), field: format!("{resource} {field}") });
        }
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
            cache_mode: CacheMode::default(),
            templates: self.templates,
            fallbacks: self.fallbacks,
            second_judges: self.second_judges,
            calibrations: self.calibrations,
            caller_tokens: None,
            // one without a token is believed as long as there are such ones, but never under a name that has one
            tokens_only: !self.tokens.is_empty() && self.tokens.len() == self.owners.len(),
            tokens: self.tokens,
            budgets: self.budgets,
            allow_addresses: if self.loopback { vec!["127.0.0.0/8".into(), "::1".into()] } else { Vec::new() },
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
            needs: self.needs,
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
    Peer { address: address.to_string(), deadline_ms: 600_000, attempts: 6, tls: None }
}

/// Anthropic's public address.
const ANTHROPIC: &str = "https://api.anthropic.com";
const NO_PROVIDER: &str =
    "set builtIn, openAiCompatible, azureOpenAi, anthropic, bedrock or managed; no other provider is served";

fn bedrock_url(region: &str) -> String {
    format!("https://bedrock-runtime.{region}.amazonaws.com")
}

/// How a resource calls itself at a gateway: also a valid key of a Secret with callers' tokens.
fn caller_name(resource: &str) -> String {
    resource.to_ascii_lowercase().replace('/', ".")
}

/// Whether an address names this machine itself.
pub(crate) fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = match host.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn call_limits(limits: &Limits) -> CallLimits {
    CallLimits {
        concurrency: limits.concurrency as usize,
        deadline_ms: limits.timeout.millis(),
        attempts: limits.attempts,
        requests_per_minute: limits.requests_per_minute,
        tokens_per_minute: limits.tokens_per_minute,
        queue: limits.queue.map_or(CallLimits::default().queue, |queue| queue as usize),
        hedge_after_ms: limits.hedge_after.map(s3_crds::Duration::millis),
        ..CallLimits::default()
    }
}

fn budget_config(budget: &Budget, resource: &str, field: &str) -> Result<BudgetConfig, PlanError> {
    let value = |quantity: &Option<Quantity>| quantity.as_ref().and_then(Quantity::value);
    let (prompt_price, answer_price) =
        (value(&budget.price_per_million_prompt_tokens), value(&budget.price_per_million_answer_tokens));
    if budget.cost.is_some() && prompt_price.is_none() && answer_price.is_none() {
        let what = "needs pricePerMillionPromptTokens or pricePerMillionAnswerTokens beside it";
        return Err(PlanError::field(resource, &format!("{field}.budget.cost"), what));
    }
    Ok(BudgetConfig {
        calls: budget.calls,
        tokens: budget.tokens,
        cost: value(&budget.cost),
        prompt_price,
        answer_price,
    })
}

fn gateway_name(resource: &str, provider: &Provider) -> Result<String, PlanError> {
    let secret = |secret: Option<&SecretKeyRef>| secret.map_or("", |secret| secret.name.as_str()).to_owned();
    let (kind, endpoint, secret) = if provider.built_in.is_some() {
        return Ok("gateway-built-in".into());
    } else if let Some(open) = &provider.open_ai_compatible {
        ("openAiCompatible", open.endpoint.clone(), secret(open.api_key_secret_ref.as_ref()))
    } else if let Some(azure) = &provider.azure_open_ai {
        ("azureOpenAi", azure.endpoint.clone(), secret(Some(&azure.api_key_secret_ref)))
    } else if let Some(anthropic) = &provider.anthropic {
        let endpoint = anthropic.endpoint.clone().unwrap_or_else(|| ANTHROPIC.to_owned());
        ("anthropic", endpoint, secret(Some(&anthropic.api_key_secret_ref)))
    } else if let Some(bedrock) = &provider.bedrock {
        ("bedrock", bedrock_url(&bedrock.region), secret(bedrock.credentials_secret_ref.as_ref()))
    } else if let Some(managed) = &provider.managed {
        ("managed", server::server_name(managed)?, String::new())
    } else {
        return Err(PlanError::field(resource, "generator.provider", NO_PROVIDER));
    };
    Ok(format!("gateway-{}", short_digest(&format!("{kind}\n{}\n{secret}", endpoint.trim_end_matches('/')))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_say_so_are_loopback() {
        for url in ["http://localhost:8000/v1", "http://127.0.0.1/v1", "http://[::1]:80/v1", "https://LOCALHOST"] {
            assert!(is_loopback(url), "{url}");
        }
        for url in
            ["http://vllm:8000/v1", "http://169.254.169.254/", "http://127.0.0.1.evil.example/", "http://10.0.0.1"]
        {
            assert!(!is_loopback(url), "{url}");
        }
    }
}
