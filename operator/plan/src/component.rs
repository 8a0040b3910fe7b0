//! What a plan consists of.

use crate::{PlanError, Template};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a component does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ComponentKind {
    /// Fetches what a resource names in hubs and buckets.
    Fetch,
    /// Fetches what a gateway's users name in hubs and buckets.
    GatewayFetch,
    /// Builds an index.
    IndexBuild,
    /// Serves an index.
    Retriever,
    /// Asks a web search in the place of an index.
    WebSearch,
    /// Runs a language model for gateways.
    ModelServer,
    /// Answers questions from passages.
    Gateway,
    /// Computes naive RAG's answers once.
    Baseline,
    /// Supervised warm start.
    WarmStart,
    /// Policy updates.
    Training,
    /// Serves a trained searcher.
    Searcher,
    /// Compares methods.
    Evaluation,
}

/// Whether a component ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Runs to an outcome.
    Job,
    /// Answers until it is stopped.
    Service,
}

/// How a runtime learns that a service answers or a job is past its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Readiness {
    /// Its progress report says `ready`, and `/readyz` on its admin port answers 200.
    Reported,
    /// Nobody waits for it: it is done when its outcome is written.
    Outcome,
}

/// What a component asks of its machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentResources {
    /// Cores (Kubernetes quantity), as the resource asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu: Option<String>,
    /// Memory (Kubernetes quantity), as the resource asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// GPUs.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gpus: u32,
    /// Bytes it may write at most under normal conditions, for the check of free space.
    pub disk: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes a reference
fn is_zero(value: &u32) -> bool {
    *value == 0
}

/// A file or folder that must be there before anything starts.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Input {
    /// Symbol or absolute path of a file.
    pub path: String,
    /// The resource's field that names it (`RetrieverIndex/quickstart spec.source.build.corpus`).
    pub field: String,
    /// Expected sha256, lower-case hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Where it is fetched from; such inputs are in no finished plan, a component makes them.
    #[serde(skip)]
    pub(crate) remote: Option<crate::fetch::Remote>,
}

/// One process of a plan: what a cluster runs as a pod and a laptop as a child process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// Unique name, valid as a Kubernetes object's.
    pub name: String,
    /// What it does.
    pub kind: ComponentKind,
    /// Whether it ends by itself.
    pub role: Role,
    /// The resources that want it, `Kind/name`, sorted.
    pub owners: BTreeSet<String>,
    /// The program.
    pub binary: String,
    /// Its arguments; the runtime adds `--config FILE`.
    pub args: Vec<String>,
    /// Components that must have ended (jobs) or answer (services) first.
    pub needs: BTreeSet<String>,
    /// Names of the ports it listens on.
    pub ports: BTreeSet<String>,
    /// Addresses it connects to outside the plan (a generator's endpoint).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
    /// Volumes it reads or writes.
    pub volumes: BTreeSet<String>,
    /// Secrets it reads, `NAME/KEY`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub secrets: BTreeSet<String>,
    /// Files it reads that no component of the plan makes.
    pub inputs: Vec<Input>,
    /// What it asks of its machine.
    pub resources: ComponentResources,
    /// How readiness is learnt.
    pub readiness: Readiness,
    /// Its configuration.
    pub config: Template,
}

/// An address outside the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The URL.
    pub url: String,
    /// The resource's field that names it.
    pub field: String,
}

/// A field that only a cluster honours, and what holds instead.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Notice {
    /// `Kind/name`.
    pub resource: String,
    /// Path of the field.
    pub field: String,
    /// What holds instead.
    pub message: String,
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not applied locally: {} {} ({})", self.resource, self.field, self.message)
    }
}

/// The components of a set of resources, each after what it needs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// In starting order.
    pub components: Vec<Component>,
    /// What a single machine does not honour.
    pub notices: Vec<Notice>,
    /// What only a cluster honours; no part of a recorded plan.
    #[serde(skip)]
    pub placements: crate::Placements,
}

impl Plan {
    /// The component of that name.
    pub fn component(&self, name: &str) -> Option<&Component> {
        self.components.iter().find(|component| component.name == name)
    }
}

/// Sorts components so that each stands after what it needs; equals stand by name.
pub(crate) fn in_order(mut rest: BTreeMap<String, Component>) -> Result<Vec<Component>, PlanError> {
    let mut ordered: Vec<Component> = Vec::with_capacity(rest.len());
    let mut placed = BTreeSet::new();
    while !rest.is_empty() {
        let next = rest.values().find(|component| component.needs.is_subset(&placed)).map(|c| c.name.clone());
        let Some(component) = next.and_then(|name| rest.remove(&name)) else {
            let names: Vec<_> = rest.keys().map(String::as_str).collect();
            return Err(PlanError::Defect(format!(
                "components wait for each other or for nothing: {}",
                names.join(", ")
            )));
        };
        placed.insert(component.name.clone());
        ordered.push(component);
    }
    Ok(ordered)
}

/// A path in a component's folder, as configurations hold it.
pub(crate) fn in_work(component: &str, path: &str) -> std::path::PathBuf {
    crate::Symbol::work(component, path).to_string().into()
}

/// The surroundings of a component. The admin address is a stand-in for the symbol `listen://admin`.
pub(crate) fn runtime(component: &str) -> s3_config::Runtime {
    s3_config::Runtime {
        name: component.to_owned(),
        state_dir: in_work(component, "state"),
        progress: Some(in_work(component, "progress.json")),
        result: Some(in_work(component, "result.json")),
        admin: Some(std::net::SocketAddr::from(([0, 0, 0, 0], 0))),
        threads: None,
        termination_message: None,
        attempt: None,
        operator: None,
        team: None,
    }
}

/// What a resource asks of the machine.
pub(crate) fn asked(resources: &s3_crds::Resources, gpus: u32, disk: u64) -> ComponentResources {
    let of = |name: &str| {
        resources.requests.get(name).or_else(|| resources.limits.get(name)).map(|quantity| quantity.0.clone())
    };
    let gpus = of("nvidia.com/gpu").and_then(|count| count.parse().ok()).unwrap_or(gpus);
    ComponentResources { cpu: of("cpu"), memory: of("memory"), gpus, disk }
}
