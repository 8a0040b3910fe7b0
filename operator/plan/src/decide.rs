//! Whether a component has to run, decided from what earlier runs left behind.

use crate::{Component, ComponentKind, Plan, PlanError, Role};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};

/// What a finished job left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finished {
    /// Of configuration, inputs and needs at the time, see [`fingerprint`].
    pub fingerprint: String,
    /// Digest of its outcome.
    pub digest: String,
}

/// The observed world.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Observed {
    /// Finished jobs by component name.
    pub finished: BTreeMap<String, Finished>,
    /// sha256 of inputs by the path that the plan gives them.
    pub inputs: BTreeMap<String, String>,
    /// By component: the attempt with which its work began anew, where it did. Its folder is another since then.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub anew: BTreeMap<String, u32>,
}

/// What is to be done with a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Its outcome stands.
    Keep {
        /// Digest of the outcome.
        digest: String,
    },
    /// It runs (or goes on where it was interrupted).
    Run,
    /// An outcome is there, but of other settings: it is put aside and the job runs afresh.
    Renew {
        /// Fingerprint of the outcome that no longer fits.
        stale: String,
    },
    /// Something it needs has to finish first; whether it runs depends on that outcome.
    Wait {
        /// The unfinished job.
        on: String,
    },
    /// A service that no unfinished job needs.
    Idle,
}

impl Decision {
    /// One sentence for people.
    pub fn reason(&self) -> String {
        match self {
            Self::Keep { digest } => format!("finished (digest {}), same configuration and inputs", short(digest)),
            Self::Run => "to run".into(),
            Self::Renew { stale } => {
                format!("configuration or inputs changed since the outcome of {}: runs again", short(stale))
            }
            Self::Wait { on } => format!("after {on}"),
            Self::Idle => "no unfinished job needs it".into(),
        }
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// Identity of what a job works on: its configuration without ports and folders, the content of its
/// inputs, the outcomes of the jobs and the settings of the services that it needs.
///
/// `Err` names the first needed job without an outcome that still stands.
pub fn fingerprint(plan: &Plan, component: &Component, observed: &Observed) -> Result<String, String> {
    let mut config = component.config.value.clone();
    // Names, folders and thread counts of the surroundings change no result.
    if let Value::Object(fields) = &mut config {
        fields.remove("runtime");
    }
    // Which servers write the episodes, and in what time, neither; that it is servers does.
    if let Some(engine) = config.pointer_mut("/rollout/engine") {
        *engine = Value::Bool(true);
    }
    without_tls(&mut config);
    let mut needs = BTreeMap::new();
    // Jobs first: of several unfinished ones the nearest is worth naming.
    let role = |name: &&String| plan.component(name).is_some_and(|need| need.role == Role::Service);
    let mut names: Vec<&String> = component.needs.iter().collect();
    names.sort_by_key(role);
    for name in names {
        let Some(need) = plan.component(name) else { return Err(name.clone()) };
        let identity = match need.role {
            // An outcome of other settings counts as none: what hangs on it waits for the new one.
            Role::Job => match decide(plan, need, observed) {
                Decision::Keep { digest } => digest,
                _ => return Err(name.clone()),
            },
            Role::Service => fingerprint(plan, &as_used(need, component), observed)?,
        };
        needs.insert(name, identity);
    }
    let inputs: BTreeMap<&str, Option<&String>> =
        component.inputs.iter().map(|input| (input.path.as_str(), observed.inputs.get(&input.path))).collect();
    // serde_json's maps are sorted, so equal values are equal text.
    let text = serde_json::json!({ "args": component.args, "config": config, "needs": needs, "inputs": inputs });
    Ok(hex::encode(Sha256::digest(text.to_string())))
}

/// Who shows which certificate changes no result either.
fn without_tls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("tls");
            fields.values_mut().for_each(without_tls);
        }
        Value::Array(items) => items.iter_mut().for_each(without_tls),
        _ => {}
    }
}

/// A gateway as one of its users sees it: the providers and the template that the user asks for, without what
/// other users have brought along. So a job stays what it is while others come and go.
fn as_used(service: &Component, user: &Component) -> Component {
    let mut part = service.clone();
    if service.kind != ComponentKind::Gateway {
        return part;
    }
    let asked = |pointer: &str| user.config.value.pointer(pointer).and_then(Value::as_str);
    let models = [asked("/generator/model"), asked("/generator/judge")];
    let template = asked("/generator/template");
    if let Some(providers) = part.config.value.get_mut("providers").and_then(Value::as_array_mut) {
        providers.retain(|provider| models.contains(&provider.get("name").and_then(Value::as_str)));
    }
    if let Some(templates) = part.config.value.get_mut("templates").and_then(Value::as_object_mut) {
        templates.retain(|name, _| Some(name.as_str()) == template);
    }
    // A file stands in the configuration by its own path or by its folder's.
    let mut left = Vec::new();
    texts(&part.config.value, &mut left);
    let within = |path: &str, text: &String| {
        path.strip_prefix(text.as_str())
            .is_some_and(|rest| rest.is_empty() || (!text.is_empty() && rest.starts_with('/')))
    };
    // What its users have fetched together is told apart by the addresses in the configuration.
    part.needs.clear();
    part.inputs.retain(|input| left.iter().any(|text| within(&input.path, text)));
    part
}

fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| texts(item, found)),
        _ => {}
    }
}

/// Decides for one job or service.
pub fn decide(plan: &Plan, component: &Component, observed: &Observed) -> Decision {
    match component.role {
        Role::Job => match fingerprint(plan, component, observed) {
            Err(on) => Decision::Wait { on },
            Ok(print) => match observed.finished.get(&component.name) {
                Some(finished) if finished.fingerprint == print => Decision::Keep { digest: finished.digest.clone() },
                Some(finished) => Decision::Renew { stale: finished.fingerprint.clone() },
                None => Decision::Run,
            },
        },
        Role::Service => {
            let wanted = plan.components.iter().any(|job| {
                job.role == Role::Job
                    && all_needs(plan, job).contains(component.name.as_str())
                    && !matches!(decide(plan, job, observed), Decision::Keep { .. })
            });
            if !wanted {
                return Decision::Idle;
            }
            match fingerprint(plan, component, observed) {
                Err(on) => Decision::Wait { on },
                Ok(_) => Decision::Run,
            }
        }
    }
}

/// Everything that a component needs, directly or through services that it needs.
///
/// A job that is needed stands for itself once it has ended: what *it* needed may stop.
pub fn all_needs<'a>(plan: &'a Plan, component: &'a Component) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = component.needs.iter().map(String::as_str).collect();
    while let Some(name) = open.pop() {
        if found.insert(name)
            && let Some(need) = plan.component(name)
            && need.role == Role::Service
        {
            open.extend(need.needs.iter().map(String::as_str));
        }
    }
    found
}

/// The digest of a whole run: over the jobs' outcome digests by component name, never services, ports or paths.
///
/// `Err` names the first job without an outcome.
pub fn run_digest(plan: &Plan, observed: &Observed) -> Result<String, PlanError> {
    let mut digests = BTreeMap::new();
    for component in plan.components.iter().filter(|component| component.role == Role::Job) {
        let Some(finished) = observed.finished.get(&component.name) else {
            return Err(PlanError::Defect(format!("{} has no outcome yet", component.name)));
        };
        digests.insert(&component.name, &finished.digest);
    }
    let text = serde_json::to_string(&digests).map_err(PlanError::defect)?;
    Ok(hex::encode(Sha256::digest(text)))
}

/// What the files in a job's folder belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkIdentity {
    /// Of everything but the number of steps, and what is watched and kept on the way.
    pub settings: String,
    /// Policy update steps.
    pub steps: u64,
}

impl WorkIdentity {
    /// Whether a job goes on from `earlier` work: more steps continue a training, nothing else may differ.
    pub fn continues(&self, earlier: &Self) -> bool {
        self.settings == earlier.settings && self.steps >= earlier.steps
    }
}

/// See [`WorkIdentity`]. `Err` names the first needed job without an outcome.
pub fn work_identity(plan: &Plan, component: &Component, observed: &Observed) -> Result<WorkIdentity, String> {
    let mut without = component.clone();
    let steps = match &mut without.config.value {
        Value::Object(fields) => {
            // What is watched and kept on the way changes nothing of the work so far.
            for field in ["milestones", "stop", "guards"] {
                fields.remove(field);
            }
            fields.remove("steps").and_then(|steps| steps.as_u64())
        }
        _ => None,
    };
    Ok(WorkIdentity { settings: fingerprint(plan, &without, observed)?, steps: steps.unwrap_or(0) })
}
