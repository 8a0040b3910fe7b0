//! All watched objects, and which keys a change concerns.

use crate::cache::Cache;
use crate::kept::{Kept, kept};
use crate::key::Key;
use crate::queue::Queue;
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use s3_crds::{Kind, api_resource};
use s3_plan::objects::{COMPONENT_LABEL, KIND_LABEL, KUEUE, MANAGER, NAME_LABEL};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Versions of Kueue's API whose Workloads are spoken, the one that is preferred first.
const KUEUE_VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
/// Kind of what scales servers.
pub const SCALER: &str = "HorizontalPodAutoscaler";
/// Versions of the autoscaling API that know metrics of pods, the one that is preferred first.
const SCALING_VERSIONS: [&str; 2] = ["v2", "v2beta2"];
/// How often it is looked whether an API has come.
const DISCOVERY_PERIOD: Duration = Duration::from_secs(30);
/// Label by which Kueue notes whose Workload one is.
const JOB_UID_LABEL: &str = "kueue.x-k8s.io/job-uid";

/// The caches.
pub struct World {
    /// Resources of the three kinds, as the server gives them: one that is malformed disturbs no other.
    pub indices: Cache<Kept>,
    /// See `indices`.
    pub jobs: Cache<Kept>,
    /// See `indices`.
    pub runs: Cache<Kept>,
    /// Jobs of attempts, by component.
    pub batch: Cache<Job>,
    /// Pods, by component.
    pub pods: Cache<Pod>,
    /// Servers, by component.
    pub deployments: Cache<Deployment>,
    /// By component.
    pub services: Cache<Service>,
    /// Configurations and records, by component.
    pub config_maps: Cache<ConfigMap>,
    /// All claims: those of others too, for their access modes.
    pub claims: Cache<PersistentVolumeClaim>,
    /// By component.
    pub policies: Cache<NetworkPolicy>,
    /// Workloads of Kueue, those that it makes for Jobs by the uid of the Job.
    pub workloads: Cache<DynamicObject>,
    /// Whether there are such.
    pub kueue: Kueue,
    /// Autoscalers, by component.
    pub autoscalers: Cache<DynamicObject>,
    /// Whether they are to be used.
    pub scaling: bool,
    scaling_version: OnceLock<&'static str>,
    scopes: usize,
}

/// What is known of Kueue's API.
#[derive(Default)]
pub struct Kueue {
    /// It is to be used.
    pub wanted: bool,
    version: OnceLock<&'static str>,
}

impl Kueue {
    /// The version that is served; none before it was found.
    pub fn version(&self) -> Option<&'static str> {
        self.version.get().copied()
    }

    /// A kind of it.
    pub fn resource(version: &str, kind: &str) -> ApiResource {
        ApiResource::from_gvk(&GroupVersionKind::gvk(KUEUE, version, kind))
    }
}

impl World {
    /// Empty, for so many scopes.
    pub fn new(scopes: usize, kueue: bool, scaling: bool) -> Self {
        let by = Some(COMPONENT_LABEL);
        Self {
            indices: Cache::new(None),
            jobs: Cache::new(None),
            runs: Cache::new(None),
            batch: Cache::new(by),
            pods: Cache::new(by),
            deployments: Cache::new(by),
            services: Cache::new(by),
            config_maps: Cache::new(by),
            claims: Cache::new(by),
            policies: Cache::new(by),
            workloads: Cache::new(Some(JOB_UID_LABEL)),
            kueue: Kueue { wanted: kueue, version: OnceLock::new() },
            autoscalers: Cache::new(by),
            scaling,
            scaling_version: OnceLock::new(),
            scopes,
        }
    }

    /// Whether every watch has listed everything once.
    pub fn warm(&self) -> bool {
        let listings = [
            self.indices.listings(),
            self.jobs.listings(),
            self.runs.listings(),
            self.batch.listings(),
            self.pods.listings(),
            self.deployments.listings(),
            self.services.listings(),
            self.config_maps.listings(),
            self.claims.listings(),
            self.policies.listings(),
        ];
        listings.iter().all(|listings| *listings >= self.scopes)
    }

    /// Whether all Workloads are known. Nothing waits for them at the start: Kueue may come later.
    pub fn knows_workloads(&self) -> bool {
        self.workloads.listings() >= self.scopes
    }

    /// The version of the autoscaling API that is spoken, once all autoscalers are known.
    pub fn scaling_version(&self) -> Option<&'static str> {
        self.scaling_version.get().copied().filter(|_| self.autoscalers.listings() >= self.scopes)
    }

    /// Resources of a kind.
    pub fn resources(&self, kind: Kind) -> &Cache<Kept> {
        match kind {
            Kind::RetrieverIndex => &self.indices,
            Kind::S3TrainingJob => &self.jobs,
            Kind::EvalRun => &self.runs,
        }
    }

    /// One resource.
    pub fn resource(&self, kind: Kind, namespace: &str, name: &str) -> Option<Arc<DynamicObject>> {
        self.resources(kind).get(namespace, name).map(|kept| kept.object())
    }

    /// Uid and version of an object, as cached.
    pub fn seen(&self, kind: &str, namespace: &str, name: &str) -> Option<ObjectMeta> {
        match kind {
            "RetrieverIndex" => self.indices.get(namespace, name).map(|object| object.metadata.clone()),
            "S3TrainingJob" => self.jobs.get(namespace, name).map(|object| object.metadata.clone()),
            "EvalRun" => self.runs.get(namespace, name).map(|object| object.metadata.clone()),
            "Job" => self.batch.get(namespace, name).map(|object| object.metadata.clone()),
            "Deployment" => self.deployments.get(namespace, name).map(|object| object.metadata.clone()),
            "Service" => self.services.get(namespace, name).map(|object| object.metadata.clone()),
            "ConfigMap" => self.config_maps.get(namespace, name).map(|object| object.metadata.clone()),
            "PersistentVolumeClaim" => self.claims.get(namespace, name).map(|object| object.metadata.clone()),
            "NetworkPolicy" => self.policies.get(namespace, name).map(|object| object.metadata.clone()),
            "Workload" => self.workloads.get(namespace, name).map(|object| object.metadata.clone()),
            SCALER => self.autoscalers.get(namespace, name).map(|object| object.metadata.clone()),
            _ => None,
        }
    }

    /// An object as cached.
    pub fn value(&self, kind: &str, namespace: &str, name: &str) -> Option<Value> {
        fn value<T: serde::Serialize>(object: Option<Arc<T>>) -> Option<Value> {
            serde_json::to_value(object?.as_ref()).ok()
        }
        match kind {
            "Job" => value(self.batch.get(namespace, name)),
            "Deployment" => value(self.deployments.get(namespace, name)),
            "Service" => value(self.services.get(namespace, name)),
            "ConfigMap" => value(self.config_maps.get(namespace, name)),
            "PersistentVolumeClaim" => value(self.claims.get(namespace, name)),
            "NetworkPolicy" => value(self.policies.get(namespace, name)),
            "Workload" => value(self.workloads.get(namespace, name)),
            SCALER => value(self.autoscalers.get(namespace, name)),
            _ => None,
        }
    }

    /// The keys that a change of a child concerns: its owners, or for a pod those of its Job.
    fn owners(&self, meta: &ObjectMeta) -> Vec<Key> {
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let labels = meta.labels.as_ref();
        let label = |name: &str| labels.and_then(|labels| labels.get(name)).map(String::as_str);
        if label(COMPONENT_LABEL).is_some() && label(KIND_LABEL).is_none() {
            // It belongs to several, and those that wait for it are told.
            return vec![Key::gateways(namespace)];
        }
        let of = |meta: &ObjectMeta| -> Vec<Key> {
            let owners = meta.owner_references.as_deref().unwrap_or_default().iter();
            owners
                .filter(|owner| owner.api_version == s3_crds::API_VERSION)
                .filter_map(|owner| {
                    let kind = Kind::ALL.into_iter().find(|kind| kind.name() == owner.kind)?;
                    Some(Key::resource(kind, namespace, &owner.name))
                })
                .collect()
        };
        let mut keys = of(meta);
        if keys.is_empty() {
            // A Workload that Kueue made for a Job.
            let jobs = meta.owner_references.iter().flatten().filter(|owner| owner.kind == "Job");
            keys.extend(jobs.filter_map(|job| self.batch.get(namespace, &job.name)).flat_map(|job| of(&job.metadata)));
        }
        if keys.is_empty()
            && let Some(job) = label("job-name").and_then(|job| self.batch.get(namespace, job))
        {
            keys = of(&job.metadata);
        }
        if keys.is_empty()
            && let (Some(kind), Some(name)) = (label(KIND_LABEL), label(NAME_LABEL))
            && let Some(kind) = Kind::ALL.into_iter().find(|of| of.name() == kind)
        {
            keys.push(Key::resource(kind, namespace, name));
        }
        keys
    }

    /// The keys that a change of a resource concerns beside its own: those that depend on it.
    fn dependents(&self, kind: Kind, meta: &ObjectMeta) -> Vec<Key> {
        let (namespace, name) =
            (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
        let mut keys = Vec::new();
        let refers = |object: &Kept| object.refers.iter().any(|(of, named)| *of == kind && named == name);
        let named = |kind: Kind, object: &Kept| {
            Key::resource(kind, namespace, object.metadata.name.as_deref().unwrap_or_default())
        };
        if kind != Kind::RetrieverIndex {
            keys.push(Key::gateways(namespace));
            // An index that is to go may be free now.
            let indices = self.indices.in_namespace(namespace);
            let going = indices.iter().filter(|index| index.metadata.deletion_timestamp.is_some());
            keys.extend(going.map(|index| named(Kind::RetrieverIndex, index)));
        }
        let users: &[Kind] = match kind {
            Kind::RetrieverIndex => &[Kind::S3TrainingJob, Kind::EvalRun],
            Kind::S3TrainingJob => &[Kind::EvalRun, Kind::S3TrainingJob],
            Kind::EvalRun => &[],
        };
        if kind == Kind::EvalRun {
            // The job on whose schedule it is, and those whose template it is.
            keys.extend(self.owners(meta));
            let jobs = self.jobs.in_namespace(namespace);
            keys.extend(
                jobs.iter()
                    .filter(|job| job.template.as_deref() == Some(name))
                    .map(|job| named(Kind::S3TrainingJob, job)),
            );
        }
        for user in users {
            let all = self.resources(*user).in_namespace(namespace);
            keys.extend(all.iter().filter(|object| refers(object)).map(|object| named(*user, object)));
        }
        keys
    }

    /// Every key there is.
    pub fn all_keys(&self) -> Vec<Key> {
        let mut keys = Vec::new();
        let mut namespaces = std::collections::BTreeSet::new();
        for kind in Kind::ALL {
            for (namespace, name) in self.resources(kind).names() {
                keys.push(Key::resource(kind, &namespace, &name));
                namespaces.insert(namespace);
            }
        }
        namespaces.extend(self.deployments.names().into_iter().map(|(namespace, _)| namespace));
        keys.extend(namespaces.iter().map(|namespace| Key::gateways(namespace)));
        keys
    }
}

/// The `EvalRun` after which a job's schedule is made.
pub fn template_of(job: &DynamicObject) -> Option<&str> {
    job.data.pointer("/spec/evaluation/runs/templateRef/name").and_then(Value::as_str)
}

/// The resources that a resource refers to.
pub fn references(object: &DynamicObject) -> Vec<(Kind, String)> {
    let spec = object.data.get("spec");
    let name = |value: &Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let mut all = Vec::new();
    let Some(spec) = spec else { return all };
    if let Some(index) = name(spec, "/retriever/indexRef/name") {
        all.push((Kind::RetrieverIndex, index));
    }
    if let Some(job) = name(spec, "/checkpoint/resumeFrom/jobRef/name") {
        all.push((Kind::S3TrainingJob, job));
    }
    let list = |field: &str| spec.get(field).and_then(Value::as_array).cloned().unwrap_or_default();
    for arm in list("arms") {
        all.extend(name(&arm, "/searcher/jobRef/name").map(|job| (Kind::S3TrainingJob, job)));
        all.extend(name(&arm, "/retriever/indexRef/name").map(|index| (Kind::RetrieverIndex, index)));
    }
    let excluded = spec.pointer("/sample/excludeTrainingOf").and_then(Value::as_array).cloned().unwrap_or_default();
    all.extend(excluded.iter().filter_map(|job| name(job, "/name")).map(|job| (Kind::S3TrainingJob, job)));
    all
}

/// Starts every watch. They run until the tasks are dropped.
pub fn watch_all(
    client: &Client,
    namespaces: &[String],
    world: &Arc<World>,
    queue: &Arc<Queue>,
) -> tokio::task::JoinSet<()> {
    let mut tasks = tokio::task::JoinSet::new();
    for (scope, namespace) in scopes(namespaces) {
        for kind in Kind::ALL {
            let resource = api_resource(kind);
            let api = api_in(client, namespace, &resource);
            let (world, queue) = (world.clone(), queue.clone());
            tasks.spawn(follow(api, watcher::Config::default(), kind.name(), move |event| {
                for meta in world.resources(kind).take(scope, kept(event)) {
                    let (namespace, name) = (meta.namespace.as_deref(), meta.name.as_deref());
                    queue.add(Key::resource(kind, namespace.unwrap_or_default(), name.unwrap_or_default()));
                    world.dependents(kind, &meta).into_iter().for_each(|key| queue.gather(key));
                }
            }));
        }
        let ours =
            watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER},{COMPONENT_LABEL}"));
        macro_rules! children {
            ($($type:ty => $cache:ident, $config:expr;)*) => {$({
                let api: Api<$type> = match namespace {
                    Some(namespace) => Api::namespaced(client.clone(), namespace),
                    None => Api::all(client.clone()),
                };
                let (world, queue) = (world.clone(), queue.clone());
                let name = <$type as Resource>::kind(&()).into_owned();
                tasks.spawn(follow(api, $config, &name, move |event| {
                    for meta in world.$cache.take(scope, event) {
                        world.owners(&meta).into_iter().for_each(|key| queue.gather(key));
                    }
                }));
            })*};
        }
        children! {
            Job => batch, ours.clone();
            Pod => pods, ours.clone();
            Deployment => deployments, ours.clone();
            Service => services, ours.clone();
            ConfigMap => config_maps, ours.clone();
            PersistentVolumeClaim => claims, watcher::Config::default();
            NetworkPolicy => policies, ours.clone();
        }
    }
    if world.kueue.wanted {
        tasks.spawn(follow_workloads(client.clone(), namespaces.to_vec(), world.clone(), queue.clone()));
    }
    if world.scaling {
        tasks.spawn(follow_autoscalers(client.clone(), namespaces.to_vec(), world.clone(), queue.clone()));
    }
    tasks
}

/// The scopes that are watched: each namespace, or all of them at once.
fn scopes(namespaces: &[String]) -> impl Iterator<Item = (usize, Option<&String>)> {
    let all = namespaces.is_empty().then_some(None);
    namespaces.iter().map(Some).chain(all).enumerate()
}

/// Objects of a type that is known only at run time, in a scope.
fn api_in(client: &Client, namespace: Option<&String>, resource: &ApiResource) -> Api<DynamicObject> {
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, resource),
        None => Api::all_with(client.clone(), resource),
    }
}

/// The version of a group that is preferred and served, looked for until there is one.
async fn discover(client: &Client, name: &str, versions: [&'static str; 2]) -> &'static str {
    loop {
        match client.list_api_groups().await {
            Ok(groups) => {
                let group = groups.groups.iter().find(|group| group.name == name);
                let served = |version: &&str| {
                    group.is_some_and(|group| group.versions.iter().any(|served| served.version == **version))
                };
                if let Some(version) = versions.into_iter().find(served) {
                    return version;
                }
            }
            Err(error) => tracing::warn!(%error, "the API groups cannot be listed"),
        }
        tokio::time::sleep(DISCOVERY_PERIOD).await;
    }
}

/// Finds the version of the autoscaling API and follows the autoscalers from then on.
async fn follow_autoscalers(client: Client, namespaces: Vec<String>, world: Arc<World>, queue: Arc<Queue>) {
    let version = discover(&client, "autoscaling", SCALING_VERSIONS).await;
    tracing::info!(version, "autoscalers can be made");
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("autoscaling", version, SCALER));
    let ours = watcher::Config::default().labels(&format!("app.kubernetes.io/managed-by={MANAGER},{COMPONENT_LABEL}"));
    let _ = world.scaling_version.set(version);
    let mut watches = tokio::task::JoinSet::new();
    for (scope, namespace) in scopes(&namespaces) {
        let api = api_in(&client, namespace, &resource);
        let (world, queue) = (world.clone(), queue.clone());
        watches.spawn(follow(api, ours.clone(), SCALER, move |event| {
            let listed = matches!(event, watcher::Event::InitDone);
            for meta in world.autoscalers.take(scope, event) {
                world.owners(&meta).into_iter().for_each(|key| queue.add(key));
            }
            if listed && world.scaling_version().is_some() {
                // What has waited for this looks again.
                world.all_keys().into_iter().for_each(|key| queue.add(key));
            }
        }));
    }
    while watches.join_next().await.is_some() {}
}

/// Finds the version of Kueue's API, newest first, and follows its Workloads from then on.
async fn follow_workloads(client: Client, namespaces: Vec<String>, world: Arc<World>, queue: Arc<Queue>) {
    let version = discover(&client, KUEUE, KUEUE_VERSIONS).await;
    tracing::info!(version, "Kueue is there");
    let resource = Kueue::resource(version, "Workload");
    let mut watches = tokio::task::JoinSet::new();
    for (scope, namespace) in scopes(&namespaces) {
        let api = api_in(&client, namespace, &resource);
        let (world, queue) = (world.clone(), queue.clone());
        watches.spawn(follow(api, watcher::Config::default(), "Workload", move |event| {
            let listed = matches!(event, watcher::Event::InitDone);
            for meta in world.workloads.take(scope, event) {
                world.owners(&meta).into_iter().for_each(|key| queue.gather(key));
            }
            if listed && world.knows_workloads() {
                // What has waited for this looks again.
                world.all_keys().into_iter().for_each(|key| queue.add(key));
            }
        }));
    }
    let _ = world.kueue.version.set(version);
    while watches.join_next().await.is_some() {}
}

fn follow<K>(
    api: Api<K>,
    config: watcher::Config,
    kind: &str,
    mut take: impl FnMut(watcher::Event<K>) + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let kind = kind.to_owned();
    async move {
        let events = watcher(api, config).default_backoff();
        pin_mut!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => take(event),
                // It begins again by itself, after a pause.
                Err(error) => tracing::warn!(kind, %error, "watch interrupted"),
            }
        }
    }
}
