//! Everything that one resource's decisions are made from, read from the caches.

use crate::ledger::{self, Entry};
use crate::operator::Shared;
use crate::world::references;
use k8s_openapi::api::core::v1::{Secret, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::DynamicObject;
use kube::{Api, ResourceExt};
use s3_crds::{AccessMode, Kind, condition_type, is_true};
use s3_plan::lifecycle::{Attempted, Supply, Verdict};
use s3_plan::objects::{Attempt, Object, Surroundings, belongs_to, render};
use s3_plan::{
    Component, ComponentKind, Finished, Observed, Plan, PlanError, Refused, Resources, Role, fingerprint, plan,
    shared_needs,
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Annotation of a shared server with digests of all needs that it was made for, see [`shared_needs`].
pub const SERVED: &str = "searchagent.dev/serves";

/// Resources of one namespace by kind and name.
pub type Objects = BTreeMap<(Kind, String), Arc<DynamicObject>>;

/// One resource and what belongs to it.
pub struct Scene {
    /// Its kind.
    pub kind: Kind,
    /// It.
    pub object: Arc<DynamicObject>,
    /// It and everything that it refers to, as far as they are valid.
    pub resources: Resources,
    /// What is not valid.
    pub refused: Refused,
    /// Their plan; an error where it cannot be made.
    pub plan: Result<Plan, PlanError>,
    /// Finished jobs.
    pub observed: Observed,
    /// Attempts by component.
    pub entries: BTreeMap<String, Vec<Entry>>,
    /// What surrounds its objects.
    pub surroundings: Surroundings,
    /// Components whose next attempt begins anew.
    pub anew: BTreeSet<String>,
    /// What the queue has added to the pods of its jobs.
    pub flavor: Flavor,
    /// Now.
    pub now: i64,
}

/// Where a queue has found room: what the nodes of the flavours that it granted are known by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Flavor {
    /// Labels of the nodes.
    pub node_selector: BTreeMap<String, String>,
    /// Taints of the nodes that are borne.
    pub tolerations: Vec<Toleration>,
}

impl Flavor {
    /// Adds it to the pods of a Job.
    fn add_to(&self, object: &mut Object) {
        let Object::Job(job) = object else { return };
        let Some(pod) = job.spec.as_mut().and_then(|spec| spec.template.spec.as_mut()) else { return };
        if !self.node_selector.is_empty() {
            pod.node_selector.get_or_insert_default().extend(self.node_selector.clone());
        }
        if !self.tolerations.is_empty() {
            pod.tolerations.get_or_insert_default().extend(self.tolerations.clone());
        }
    }
}

/// What an index was when an attempt started that works with it: changed serving settings and rebuilds change
/// neither the identity of work that has begun nor of what it has made.
fn pins_of(plan: &Plan, observed: &Observed, component: &Component) -> Value {
    let mut pins = serde_json::Map::new();
    for need in s3_plan::all_needs(plan, component) {
        let Some(need) = plan.component(need) else { continue };
        let pin = match need.kind {
            ComponentKind::IndexBuild => observed.finished.get(&need.name).map(|finished| json!(finished.digest)),
            ComponentKind::Retriever | ComponentKind::WebSearch => Some(need.config.value.clone()),
            _ => None,
        };
        pins.extend(pin.map(|pin| (need.name.clone(), pin)));
    }
    Value::Object(pins)
}

impl Scene {
    /// Reads a resource; none when it is gone.
    pub fn read(shared: &Shared, kind: Kind, namespace: &str, name: &str) -> Option<Self> {
        let now = crate::clock::seconds(&crate::clock::now());
        let object = shared.world.resource(kind, namespace, name)?;
        let mut objects = Objects::new();
        with_references(shared, kind, object.clone(), &mut objects);
        let values = objects.iter().map(|((kind, _), object)| (*kind, value_of(object, *kind)));
        let (resources, refused) = Resources::from_cluster(values);
        let plan = plan(&resources);
        let surroundings = shared.surroundings_of(namespace, plan.as_ref().ok());
        let mut scene = Self {
            kind,
            object,
            resources,
            refused,
            plan,
            observed: Observed::default(),
            entries: BTreeMap::new(),
            surroundings,
            anew: BTreeSet::new(),
            flavor: Flavor::default(),
            now,
        };
        scene.observe(shared, namespace, &objects);
        Some(scene)
    }

    fn observe(&mut self, shared: &Shared, namespace: &str, objects: &Objects) {
        let Ok(plan) = &mut self.plan else { return };
        for component in plan.components.iter().filter(|component| component.role == Role::Job) {
            // What is fetched for a gateway belongs to nobody alone.
            let owner = match owner_key(component) {
                None => None,
                Some(key) => match objects.get(&key) {
                    Some(owner) => owner.uid(),
                    None => continue,
                },
            };
            let entries = ledger::read(shared, namespace, &component.name, owner.as_deref(), self.now);
            self.entries.insert(component.name.clone(), entries);
        }
        // What the resource itself, or a job that it evaluates, began with.
        let begun = |kinds: &[ComponentKind]| {
            let mut found: Vec<&Entry> = plan
                .components
                .iter()
                .filter(|component| kinds.contains(&component.kind))
                .filter_map(|component| self.entries.get(&component.name))
                .flatten()
                .collect();
            found.sort_by_key(|entry| entry.attempt.started);
            found.first().and_then(|entry| entry.pins())
        };
        let pins = begun(&[ComponentKind::Baseline, ComponentKind::WarmStart, ComponentKind::Training])
            .or_else(|| begun(&[ComponentKind::Evaluation]))
            .filter(|_| self.kind != Kind::RetrieverIndex)
            .unwrap_or(Value::Null);
        for component in &mut plan.components {
            if let (ComponentKind::Retriever | ComponentKind::WebSearch, Some(config)) =
                (component.kind, pins.get(&component.name))
            {
                component.config.value = config.clone();
            }
        }
        for component in plan.components.iter().filter(|component| component.role == Role::Job) {
            let Ok(print) = fingerprint(plan, component, &self.observed) else { continue };
            let newest = self.entries.get(&component.name).and_then(|entries| entries.last());
            if let Some(newest) = newest.filter(|newest| newest.attempt.print == print && newest.attempt.anew > 0) {
                self.observed.anew.insert(component.name.clone(), newest.attempt.anew);
            }
            let pinned = pins.get(&component.name).and_then(Value::as_str);
            let done = |entry: &Entry| match &entry.attempt.record.as_ref()?.verdict {
                Verdict::Done { digest, .. } => Some((entry.attempt.print.clone(), digest.clone())),
                _ => None,
            };
            let all: Vec<(String, String)> =
                self.entries.get(&component.name).into_iter().flatten().filter_map(done).collect();
            let finished = match pinned {
                Some(digest) => Some((print.clone(), digest.to_owned())),
                None => all.iter().rev().find(|(of, _)| *of == print).or(all.last()).cloned(),
            };
            if let Some((fingerprint, digest)) = finished {
                self.observed.finished.insert(component.name.clone(), Finished { fingerprint, digest });
            }
        }
    }

    /// `Kind/name`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.kind.name(), self.object.name_any())
    }

    /// Its namespace.
    pub fn namespace(&self) -> String {
        self.object.namespace().unwrap_or_default()
    }

    /// Its job components, in order.
    pub fn own_jobs(&self) -> Vec<&Component> {
        let Ok(plan) = &self.plan else { return Vec::new() };
        let title = self.title();
        plan.components
            .iter()
            .filter(|c| c.role == Role::Job && c.kind != ComponentKind::GatewayFetch && c.owners.contains(&title))
            .collect()
    }

    /// Its attempts of a component.
    pub fn entries_of(&self, component: &str) -> &[Entry] {
        self.entries.get(component).map(Vec::as_slice).unwrap_or_default()
    }

    /// The same without the objects that they were read from.
    pub fn attempts_of(&self, component: &str) -> Vec<Attempted> {
        self.entries_of(component).iter().map(|entry| entry.attempt.clone()).collect()
    }

    /// The fingerprint of a component; none while something it needs has no outcome.
    pub fn print(&self, component: &Component) -> Option<String> {
        fingerprint(self.plan.as_ref().ok()?, component, &self.observed).ok()
    }

    /// The reference of this resource as owner.
    pub fn owner(&self) -> OwnerReference {
        crate::write::owner_of(self.object.as_ref(), self.kind, true)
    }

    /// The objects of an attempt, or of a service.
    pub fn render(
        &self,
        component: &Component,
        number: u32,
        owners: &[OwnerReference],
    ) -> Result<Vec<Object>, PlanError> {
        let plan = self.plan.as_ref().map_err(Clone::clone)?;
        let mut observed = self.observed.clone();
        if self.anew.contains(&component.name) {
            observed.anew.insert(component.name.clone(), number);
        }
        let mut objects = render_attempt(plan, &observed, &self.surroundings, component, number, owners)?;
        for object in &mut objects {
            self.flavor.add_to(object);
        }
        Ok(objects)
    }

    /// Whether the indices that it refers to may be searched.
    pub fn index_supply(&self, shared: &Shared, begun: bool) -> Supply {
        let namespace = self.namespace();
        for (kind, name) in references(&self.object) {
            if kind != Kind::RetrieverIndex {
                continue;
            }
            let Some(index) = shared.world.resource(kind, &namespace, &name) else {
                return Supply::Missing(format!("RetrieverIndex/{name} does not exist"));
            };
            if self.refused.contains_key(&format!("RetrieverIndex/{name}")) {
                return Supply::Missing(format!("RetrieverIndex/{name} is not valid"));
            }
            if index.metadata.deletion_timestamp.is_some() && !begun {
                return Supply::Missing(format!("RetrieverIndex/{name} is being deleted and takes no new users"));
            }
            let conditions = conditions_of(&index);
            if !is_true(&conditions, condition_type::SERVING) || !is_true(&conditions, condition_type::BUILT) {
                let why = s3_crds::condition(&conditions, condition_type::SERVING)
                    .map(|c| format!("{}: {}", c.reason, c.message))
                    .unwrap_or_default();
                return Supply::Missing(format!(
                    "RetrieverIndex/{name} is not served yet ({})",
                    why.trim_end_matches(": ")
                ));
            }
        }
        Supply::Ready
    }

    /// Whether the gateways of the plan answer for this resource.
    pub fn gateway_supply(&self, shared: &Shared) -> Supply {
        let Ok(plan) = &self.plan else { return Supply::Missing(String::new()) };
        let namespace = self.namespace();
        let needs = match shared_needs(plan, &self.title()) {
            Ok(needs) => needs,
            Err(error) => return Supply::Missing(error.to_string()),
        };
        // A gateway answers before the model behind it is loaded.
        for (name, need) in needs {
            let Some(server) = plan.component(&name) else { continue };
            match standing(shared, &namespace, server) {
                Ok(served) if served.split(',').any(|served| served == need) => {}
                Ok(_) => return Supply::Missing(format!("{} {name} does not serve this resource yet", word(server))),
                Err(why) => return Supply::Missing(why),
            }
        }
        Supply::Ready
    }

    /// Whether every secret that its components read is there. Asked of the server: secrets are not watched.
    pub async fn secret_supply(&self, shared: &Shared) -> Result<Supply, kube::Error> {
        let Ok(plan) = &self.plan else { return Ok(Supply::Ready) };
        let (title, namespace) = (self.title(), self.namespace());
        let mine = plan.components.iter().filter(|component| component.owners.contains(&title));
        let wanted: BTreeSet<&String> = mine.flat_map(|component| &component.secrets).collect();
        let api: Api<Secret> = Api::namespaced(shared.writer.client().clone(), &namespace);
        for secret in wanted {
            let (name, key) = secret.split_once('/').unwrap_or((secret, ""));
            let Some(found) = api.get_opt(name).await? else {
                return Ok(Supply::Missing(format!("Secret {name} does not exist")));
            };
            if !found.data.is_some_and(|data| data.contains_key(key)) {
                return Ok(Supply::Missing(format!("Secret {name} has no key {key}")));
            }
        }
        Ok(Supply::Ready)
    }
}

fn word(server: &Component) -> &'static str {
    if server.kind == ComponentKind::ModelServer { "model server" } else { "gateway" }
}

/// Whose needs a shared server serves that answers, as its annotation says; or why it does not answer.
pub fn standing(shared: &Shared, namespace: &str, server: &Component) -> Result<String, String> {
    let (word, name) = (word(server), &server.name);
    let deployment = shared.world.deployments.get(namespace, name);
    let deployment = deployment.filter(|deployment| deployment.metadata.deletion_timestamp.is_none());
    let Some(deployment) = deployment else { return Err(format!("{word} {name} is not there yet")) };
    let status = deployment.status.clone().unwrap_or_default();
    let current = status.observed_generation >= deployment.metadata.generation;
    if !current || status.updated_replicas.unwrap_or(0) < 1 || status.available_replicas.unwrap_or(0) < 1 {
        let why = ledger::trouble(&shared.world, namespace, name);
        let why = why.unwrap_or_else(|| "no server has answered yet".into());
        return Err(format!("{word} {name}: {why}"));
    }
    let annotations = deployment.metadata.annotations.as_ref();
    Ok(annotations.and_then(|all| all.get(SERVED)).cloned().unwrap_or_default())
}

/// The plan of some resources; what is not valid takes no part.
pub fn planned(objects: &Objects) -> Result<Plan, PlanError> {
    let values = objects.iter().map(|((kind, _), object)| (*kind, value_of(object, *kind)));
    plan(&Resources::from_cluster(values).0)
}

/// The objects of an attempt, records' annotations included; of a service, its objects.
pub fn render_attempt(
    plan: &Plan,
    observed: &Observed,
    surroundings: &Surroundings,
    component: &Component,
    number: u32,
    owners: &[OwnerReference],
) -> Result<Vec<Object>, PlanError> {
    let attempt = Attempt::of(plan, component, number);
    let mut objects = render(plan, observed, component, &attempt, surroundings, owners)?;
    if component.role == Role::Service {
        return Ok(objects);
    }
    let identity =
        objects.iter().find(|object| object.kind() == "Job").and_then(|job| job.metadata().annotations.clone());
    for object in &mut objects {
        let Object::ConfigMap(config_map) = object else { continue };
        let mut annotations = identity.clone().unwrap_or_default();
        let gpus = component.resources.gpus.saturating_mul(attempt.replicas);
        annotations.insert(ledger::GPUS.into(), gpus.to_string());
        if let Some(anew) = observed.anew.get(&component.name) {
            annotations.insert(ledger::ANEW.into(), anew.to_string());
        }
        annotations.insert(ledger::PINS.into(), pins_of(plan, observed, component).to_string());
        config_map.metadata.annotations = Some(annotations);
    }
    Ok(objects)
}

/// A resource and everything that it refers to, directly or through others.
pub fn with_references(shared: &Shared, kind: Kind, object: Arc<DynamicObject>, objects: &mut Objects) {
    let namespace = object.namespace().unwrap_or_default();
    let mut open = vec![(kind, object)];
    while let Some((kind, object)) = open.pop() {
        for (kind, name) in references(&object) {
            if !objects.contains_key(&(kind, name.clone()))
                && let Some(object) = shared.world.resource(kind, &namespace, &name)
            {
                open.push((kind, object));
            }
        }
        objects.insert((kind, object.name_any()), object);
    }
}

/// The resource that a job component belongs to.
fn owner_key(component: &Component) -> Option<(Kind, String)> {
    let (kind, name) = belongs_to(component)?;
    Some((Kind::ALL.into_iter().find(|of| of.name() == kind)?, name.to_owned()))
}

/// A resource as JSON, with its type.
pub fn value_of(object: &DynamicObject, kind: Kind) -> Value {
    let mut value = object.data.clone();
    value["apiVersion"] = json!(s3_crds::API_VERSION);
    value["kind"] = json!(kind.name());
    value["metadata"] = json!({
        "name": object.name_any(),
        "namespace": object.namespace(),
        "uid": object.uid(),
        "generation": object.metadata.generation,
        "creationTimestamp": object.metadata.creation_timestamp,
        "deletionTimestamp": object.metadata.deletion_timestamp,
    });
    value
}

/// Whether the searcher of a job is to be served once it is trained.
pub fn serves(object: &DynamicObject) -> bool {
    object.data.pointer("/spec/serving").is_some_and(|serving| !serving.is_null() && serving["replicas"] != json!(0))
}

/// Whether a resource is asked not to run; read where it has no plan.
pub fn suspends(object: &DynamicObject) -> bool {
    object.data.pointer("/spec/suspend") == Some(&json!(true))
}

/// Whether a queue admits all of a resource at once (`queue.mode: Workload`, which is the default).
pub fn admitted_whole(object: &DynamicObject) -> bool {
    let queue = object.data.pointer("/spec/queue").filter(|queue| !queue.is_null());
    queue.is_some_and(|queue| queue["mode"].is_null() || queue["mode"] == json!("Workload"))
}

/// The conditions of a resource.
pub fn conditions_of(object: &DynamicObject) -> Vec<k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    let conditions = object.data.pointer("/status/conditions").cloned();
    conditions.and_then(|conditions| serde_json::from_value(conditions).ok()).unwrap_or_default()
}

/// Access modes of claims of a namespace, as far as they are there.
pub fn claims_of(shared: &Shared, namespace: &str, names: BTreeSet<String>) -> BTreeMap<String, BTreeSet<AccessMode>> {
    let mode = |text: &String| match text.as_str() {
        "ReadWriteMany" => Some(AccessMode::ReadWriteMany),
        "ReadOnlyMany" => Some(AccessMode::ReadOnlyMany),
        "ReadWriteOnce" | "ReadWriteOncePod" => Some(AccessMode::ReadWriteOnce),
        _ => None,
    };
    let entry = |name: String| {
        let claim = shared.world.claims.get(namespace, &name)?;
        let modes = claim.spec.as_ref()?.access_modes.as_ref()?.iter().filter_map(mode).collect();
        Some((name, modes))
    };
    names.into_iter().filter_map(entry).collect()
}
