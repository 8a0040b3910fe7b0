//! Every write to the API server: fenced, with preconditions, only where something changes, and remembered until
//! the caches have seen it.

use crate::clock;
use crate::key::Key;
use crate::lease::Fence;
use crate::world::{Kueue, SCALER, World};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use s3_crds::{Kind, api_resource};
use s3_plan::PlanError;
use s3_plan::objects::{MANAGER, Object, SERVER_PREFIX, WORKER_SET, Writing};
use s3_telemetry::metrics;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// A write that the caches have not seen for so long is asked for directly.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a reconcile ends early.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// Another process leads.
    #[error("this process does not lead any more")]
    Deposed,
    /// The object is newer than what was decided from.
    #[error("{0} changed meanwhile")]
    Changed(String),
    /// A defect of the operator.
    #[error("a defect: the reconcile panicked; see the log before this line, and report it")]
    Panicked,
    /// An object of that name is not the operator's.
    #[error("{0}")]
    NameTaken(String),
    /// Its namespace is being deleted: nothing can be made there any more.
    #[error("{0}: its namespace is being deleted")]
    Terminating(String),
    /// The plan cannot be made or rendered.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The API server.
    #[error("{what}: {}", brief(.source))]
    Api {
        /// What was asked of it.
        what: String,
        /// What it said.
        source: Box<kube::Error>,
    },
}

/// Kind, namespace and name.
type Place = (String, String, String);

struct Expected {
    place: Place,
    uid: String,
    /// The version that has to be seen; none for a deletion.
    version: Option<String>,
    at: Instant,
}

#[derive(Clone, PartialEq)]
struct Applied {
    uid: String,
    desired: String,
    live: String,
}

/// Writes for all keys.
pub struct Writer {
    client: Client,
    fence: Fence,
    world: Arc<World>,
    expected: Mutex<HashMap<Key, Vec<Expected>>>,
    applied: Mutex<HashMap<Place, Applied>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn resource_of(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let gvk = GroupVersionKind::gvk(group, version, kind);
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    };
    ApiResource::from_gvk_with_plural(&gvk, &plural)
}

/// Whether `live` is at least as new as `written`.
fn reached(live: &str, written: &str) -> bool {
    match (live.parse::<u128>(), written.parse::<u128>()) {
        (Ok(live), Ok(written)) => live >= written,
        _ => live == written,
    }
}

/// Whether everything that is desired stands in the live object.
fn contains(live: &Value, desired: &Value) -> bool {
    match (live, desired) {
        (Value::Object(live), Value::Object(desired)) => desired.iter().all(|(key, value)| match live.get(key) {
            Some(found) => contains(found, value),
            // What is empty may be left out by the server.
            None => {
                value.is_null()
                    || value.as_object().is_some_and(serde_json::Map::is_empty)
                    || value.as_array().is_some_and(Vec::is_empty)
                    || *value == json!("") && key != "value"
            }
        }),
        (Value::Array(live), Value::Array(desired)) => {
            live.len() == desired.len() && live.iter().zip(desired).all(|(live, desired)| contains(live, desired))
        }
        (live, desired) => s3_crds::same(live, desired),
    }
}

/// Whether a Workload asks for what is desired: the pods of its resource, and the queue. Its priority is also for others
/// to change, and an index that is scaled stops nobody who searches it.
pub fn fits(live: &Value, desired: &Value) -> bool {
    let own = |spec: &Value| -> BTreeMap<String, Value> {
        let sets = spec["podSets"].as_array().into_iter().flatten();
        let sets = sets.filter_map(|set| Some((set["name"].as_str()?.to_owned(), set.clone())));
        sets.filter(|(name, _)| name == WORKER_SET || name.starts_with(SERVER_PREFIX)).collect()
    };
    let (has, wants) = (own(live), own(desired));
    live["queueName"] == desired["queueName"]
        && has.len() == wants.len()
        && wants.iter().all(|(name, set)| has.get(name).is_some_and(|has| contains(has, set)))
}

impl Writer {
    /// Writes while the fence is open.
    pub fn new(client: Client, fence: Fence, world: Arc<World>) -> Self {
        Self { client, fence, world, expected: Mutex::default(), applied: Mutex::default() }
    }

    /// The client, for reads.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether this process may write.
    pub fn leads(&self) -> bool {
        self.fence.leads()
    }

    /// Whether the caches have seen everything that was written for the key.
    pub async fn seen(&self, key: &Key) -> Result<bool, Trouble> {
        let open: Vec<(Place, String, Option<String>, Instant)> = lock(&self.expected)
            .get(key)
            .into_iter()
            .flatten()
            .map(|e| (e.place.clone(), e.uid.clone(), e.version.clone(), e.at))
            .collect();
        let mut unseen = Vec::new();
        for (place, uid, version, at) in open {
            let meta = self.world.seen(&place.0, &place.1, &place.2);
            let done = match (&meta, &version) {
                (Some(meta), Some(version)) => {
                    meta.uid.as_deref() != Some(uid.as_str())
                        || meta.resource_version.as_deref().is_some_and(|live| reached(live, version))
                }
                // Going is as good as gone: everything that decides looks at the time of deletion.
                (Some(meta), None) => meta.uid.as_deref() != Some(uid.as_str()) || meta.deletion_timestamp.is_some(),
                (None, None) => true,
                (None, Some(_)) => at.elapsed() > PATIENCE && !self.exists(&place, &uid).await?,
            };
            if !done {
                unseen.push(Expected { place, uid, version, at });
            }
        }
        let seen = unseen.is_empty();
        let mut expected = lock(&self.expected);
        if seen {
            expected.remove(key);
        } else {
            expected.insert(key.clone(), unseen);
        }
        Ok(seen)
    }

    async fn exists(&self, place: &Place, uid: &str) -> Result<bool, Trouble> {
        let api = self.api_of(&place.0, &place.1);
        let found = self.timed("get", place, api.get_metadata_opt(&place.2)).await?;
        Ok(found.is_some_and(|object| object.metadata.uid.as_deref() == Some(uid)))
    }

    fn api_of(&self, kind: &str, namespace: &str) -> Api<DynamicObject> {
        let resource = match Kind::ALL.into_iter().find(|of| of.name() == kind) {
            Some(kind) => api_resource(kind),
            None if kind == "Workload" => Kueue::resource(self.world.kueue.version().unwrap_or_default(), kind),
            None => resource_of(
                match kind {
                    SCALER => self.world.scaling_version().map_or("autoscaling/v2", |version| match version {
                        "v2beta2" => "autoscaling/v2beta2",
                        _ => "autoscaling/v2",
                    }),
                    "Job" => "batch/v1",
                    "Deployment" => "apps/v1",
                    "NetworkPolicy" => "networking.k8s.io/v1",
                    _ => "v1",
                },
                kind,
            ),
        };
        Api::namespaced_with(self.client.clone(), namespace, &resource)
    }

    /// One call, ended when this process may no longer write.
    async fn timed<T>(
        &self,
        verb: &str,
        place: &Place,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, Trouble> {
        let left = self.fence.left().ok_or(Trouble::Deposed)?;
        let result = tokio::time::timeout(left, call).await.map_err(|_| Trouble::Deposed)?;
        let what = || format!("{verb} {} {}/{}", place.0, place.1, place.2);
        if verb != "get" {
            let outcome = match &result {
                Ok(_) => "ok",
                Err(kube::Error::Api(status)) if status.code == 409 => "conflict",
                Err(error) if terminating(error) => "late",
                Err(_) => "error",
            };
            metrics().operator_writes.with_label_values(&[&place.0, verb, outcome]).inc();
        }
        result.map_err(|source| {
            if terminating(&source) {
                Trouble::Terminating(what())
            } else {
                Trouble::Api { what: what(), source: Box::new(source) }
            }
        })
    }

    fn expect(&self, key: &Key, place: Place, uid: Option<&String>, version: Option<String>) {
        let Some(uid) = uid.cloned() else { return };
        let mut expected = lock(&self.expected);
        let list = expected.entry(key.clone()).or_default();
        list.retain(|known| known.place != place);
        list.push(Expected { place, uid, version, at: Instant::now() });
    }

    fn written(&self, key: &Key, place: Place, echo: &DynamicObject) {
        self.expect(key, place, echo.metadata.uid.as_ref(), echo.metadata.resource_version.clone());
    }

    /// Holds an object as it should be. Returns whether something was written.
    pub async fn hold(&self, key: &Key, object: &Object, owners: &[OwnerReference]) -> Result<bool, Trouble> {
        let meta = object.metadata();
        let namespace = meta.namespace.clone().unwrap_or_default();
        let place: Place = (object.kind().to_owned(), namespace, object.name().to_owned());
        let live = self.world.value(&place.0, &place.1, &place.2);
        match object.writing() {
            Writing::Once => match live {
                Some(live) => self.keep_owners(key, place, &live, meta).await,
                None => self.create(key, place, &object.to_dynamic()?, owners).await,
            },
            Writing::Applied => self.apply(key, place, object, live, owners).await,
        }
    }

    /// Makes a resource of one of the three kinds, which must not exist.
    pub async fn make(
        &self,
        key: &Key,
        kind: Kind,
        object: &DynamicObject,
        owners: &[OwnerReference],
    ) -> Result<(), Trouble> {
        let place = (kind.name().to_owned(), object.namespace().unwrap_or_default(), object.name_any());
        self.create(key, place, object, owners).await.map(drop)
    }

    /// Changes a resource of one of the three kinds, with preconditions.
    pub async fn change(&self, key: &Key, kind: Kind, meta: &ObjectMeta, patch: Value) -> Result<(), Trouble> {
        let place =
            (kind.name().to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        self.merge(key, place, meta, patch).await.map(drop)
    }

    /// Makes an object that must not exist.
    async fn create(
        &self,
        key: &Key,
        place: Place,
        object: &DynamicObject,
        owners: &[OwnerReference],
    ) -> Result<bool, Trouble> {
        let api = self.api_of(&place.0, &place.1);
        let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
        match self.timed("create", &place, api.create(&params, object)).await {
            Ok(echo) => {
                self.written(key, place, &echo);
                Ok(true)
            }
            Err(Trouble::Api { source, .. }) if is(&source, 409) => {
                let found = self.timed("get", &place, api.get_metadata_opt(&place.2)).await?;
                let Some(found) = found else { return Err(Trouble::Changed(place.2)) };
                check(&place, &found.metadata, owners)?;
                // Ours, and not in the cache yet.
                self.expect(key, place, found.metadata.uid.as_ref(), found.metadata.resource_version.clone());
                Ok(true)
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// What several share changes its owners and nothing else.
    async fn keep_owners(&self, key: &Key, place: Place, live: &Value, desired: &ObjectMeta) -> Result<bool, Trouble> {
        let meta: ObjectMeta = serde_json::from_value(live["metadata"].clone()).map_err(defect)?;
        let wanted = desired.owner_references.clone().unwrap_or_default();
        check(&place, &meta, &wanted)?;
        if place.0 == "Job" {
            return Ok(false);
        }
        let uids = |owners: &[OwnerReference]| {
            let mut uids: Vec<String> = owners.iter().map(|owner| owner.uid.clone()).collect();
            uids.sort();
            uids
        };
        if wanted.is_empty() || uids(meta.owner_references.as_deref().unwrap_or_default()) == uids(&wanted) {
            return Ok(false);
        }
        let patch = json!({ "metadata": { "ownerReferences": wanted } });
        self.merge(key, place, &meta, patch).await.map(|_| true)
    }

    /// Changes metadata of an object with preconditions.
    async fn merge(
        &self,
        key: &Key,
        place: Place,
        meta: &ObjectMeta,
        mut patch: Value,
    ) -> Result<DynamicObject, Trouble> {
        patch["metadata"]["uid"] = json!(meta.uid);
        patch["metadata"]["resourceVersion"] = json!(meta.resource_version);
        let api = self.api_of(&place.0, &place.1);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(&patch);
        let call = api.patch(&place.2, &params, &patch);
        let echo = self.timed("patch", &place, call).await.map_err(|trouble| changed(trouble, &place))?;
        self.written(key, place, &echo);
        Ok(echo)
    }

    /// Sets annotations of a configuration.
    pub async fn annotate(&self, key: &Key, meta: &ObjectMeta, kind: &str, annotations: Value) -> Result<(), Trouble> {
        let place =
            (kind.to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        self.merge(key, place, meta, json!({ "metadata": { "annotations": annotations } })).await.map(drop)
    }

    /// Changes the status of a Workload, with preconditions.
    pub async fn workload_status(&self, key: &Key, meta: &ObjectMeta, status: Value) -> Result<(), Trouble> {
        let place =
            ("Workload".to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let patch = json!({
            "metadata": { "uid": meta.uid, "resourceVersion": meta.resource_version },
            "status": status,
        });
        let api = self.api_of(&place.0, &place.1);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(&patch);
        let call = api.patch_status(&place.2, &params, &patch);
        let echo = self.timed("status", &place, call).await.map_err(|trouble| changed(trouble, &place))?;
        self.written(key, place, &echo);
        Ok(())
    }

    /// Sets the finalizers of a resource.
    pub async fn finalizers(&self, key: &Key, kind: Kind, meta: &ObjectMeta, list: &[String]) -> Result<(), Trouble> {
        let place =
            (kind.name().to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let last = list.is_empty() && meta.deletion_timestamp.is_some();
        let echo = self.merge(key, place.clone(), meta, json!({ "metadata": { "finalizers": list } })).await?;
        if last {
            self.expect(key, place, echo.metadata.uid.as_ref(), None);
        }
        Ok(())
    }

    async fn apply(
        &self,
        key: &Key,
        place: Place,
        object: &Object,
        live: Option<Value>,
        owners: &[OwnerReference],
    ) -> Result<bool, Trouble> {
        let mut desired = object.to_value()?;
        let hash = clock::digest(&desired);
        let api = self.api_of(&place.0, &place.1);
        let mut params = PatchParams::apply(MANAGER);
        if let Some(live) = &live {
            let meta: ObjectMeta = serde_json::from_value(live["metadata"].clone()).map_err(defect)?;
            check(&place, &meta, owners)?;
            let uid = meta.uid.clone().unwrap_or_default();
            let mark = Applied { uid: uid.clone(), desired: hash.clone(), live: mark(live) };
            if lock(&self.applied).get(&place) == Some(&mark) {
                return Ok(false);
            }
            if contains(live, &desired) && same_owners(&meta, owners) {
                lock(&self.applied).insert(place, mark);
                return Ok(false);
            }
            desired["metadata"]["uid"] = json!(uid);
            desired["metadata"]["resourceVersion"] = json!(meta.resource_version);
            params = params.force();
        } else if let Some(found) = self.timed("get", &place, api.get_metadata_opt(&place.2)).await? {
            // Not in the cache: either not ours, or not seen yet.
            check(&place, &found.metadata, owners)?;
            self.expect(key, place, found.metadata.uid.as_ref(), found.metadata.resource_version.clone());
            return Ok(true);
        }
        let patch = Patch::Apply(&desired);
        let call = api.patch(&place.2, &params, &patch);
        let echo = self.timed("apply", &place, call).await.map_err(|trouble| changed(trouble, &place))?;
        let value = serde_json::to_value(&echo).map_err(defect)?;
        let uid = echo.metadata.uid.clone().unwrap_or_default();
        lock(&self.applied).insert(place.clone(), Applied { uid, desired: hash, live: mark(&value) });
        self.written(key, place, &echo);
        Ok(true)
    }

    /// Deletes exactly that object; what it owns goes after it.
    pub async fn delete(&self, key: &Key, kind: &str, meta: &ObjectMeta) -> Result<(), Trouble> {
        let place =
            (kind.to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        if meta.deletion_timestamp.is_some() {
            return Ok(());
        }
        // A Job stays until its pod is gone: that no Job is left proves that nothing of it works, however late the
        // watch of pods is.
        let policy = if kind == "Job" { PropagationPolicy::Foreground } else { PropagationPolicy::Background };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions { uid: meta.uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        let api = self.api_of(&place.0, &place.1);
        match self.timed("delete", &place, api.delete(&place.2, &params)).await {
            Ok(_) => {}
            // Gone, or another of that name has come: either way it is no more.
            Err(Trouble::Api { source, .. }) if is(&source, 404) || is(&source, 409) => {}
            Err(trouble) => return Err(trouble),
        }
        lock(&self.applied).remove(&place);
        self.expect(key, place, meta.uid.as_ref(), None);
        Ok(())
    }

    /// Writes a status as a whole; returns what the server made of it.
    pub async fn status(
        &self,
        key: &Key,
        kind: Kind,
        meta: &ObjectMeta,
        status: Value,
    ) -> Result<DynamicObject, Trouble> {
        let place =
            (kind.name().to_owned(), meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default());
        let object = json!({
            "apiVersion": s3_crds::API_VERSION,
            "kind": kind.name(),
            "metadata": { "name": meta.name, "namespace": meta.namespace, "uid": meta.uid, "resourceVersion": meta.resource_version },
            "status": status,
        });
        let api = self.api_of(&place.0, &place.1);
        let (params, patch) = (PatchParams::apply(MANAGER).force(), Patch::Apply(&object));
        let call = api.patch_status(&place.2, &params, &patch);
        let echo = self.timed("status", &place, call).await.map_err(|trouble| changed(trouble, &place))?;
        self.written(key, place, &echo);
        Ok(echo)
    }
}

/// What of a live object has to stay for it to count as held: its spec by generation, else its version; and labels,
/// annotations and owners.
fn mark(live: &Value) -> String {
    let meta = &live["metadata"];
    let version = if meta["generation"].is_null() { &meta["resourceVersion"] } else { &meta["generation"] };
    let annotations: serde_json::Map<String, Value> = meta["annotations"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| !name.starts_with("deployment.kubernetes.io/"))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    clock::digest(&json!([version, meta["labels"], annotations, meta["ownerReferences"]]))
}

/// What the server said, without the whole of its answer.
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => format!("{} ({})", status.message, status.code),
        other => other.to_string(),
    }
}

/// Whether something was refused because its namespace goes.
pub fn terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 403
        && (causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
            || status.message.ends_with("because it is being terminated"))
}

fn is(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

fn changed(trouble: Trouble, place: &Place) -> Trouble {
    match trouble {
        Trouble::Api { source, .. } if is(&source, 409) || is(&source, 404) => {
            Trouble::Changed(format!("{} {}/{}", place.0, place.1, place.2))
        }
        other => other,
    }
}

fn same_owners(meta: &ObjectMeta, owners: &[OwnerReference]) -> bool {
    let live = meta.owner_references.as_deref().unwrap_or_default();
    live.len() == owners.len() && owners.iter().all(|owner| live.iter().any(|live| live.uid == owner.uid))
}

/// Whether an object is the operator's, and of one of these owners.
fn check(place: &Place, meta: &ObjectMeta, owners: &[OwnerReference]) -> Result<(), Trouble> {
    let object = format!("{} {}", place.0, place.2);
    let managed = meta.labels().get("app.kubernetes.io/managed-by").map(String::as_str) == Some(MANAGER);
    let live = meta.owner_references.as_deref().unwrap_or_default();
    if !managed {
        return Err(Trouble::NameTaken(format!("{object} exists and is not the operator's")));
    }
    let shared = owners.iter().all(|owner| owner.controller != Some(true));
    // What somebody took the owners from is taken up again.
    if shared
        || owners.is_empty()
        || live.is_empty()
        || live.iter().any(|live| owners.iter().any(|owner| owner.uid == live.uid))
    {
        return Ok(());
    }
    // An older resource of the same name: the garbage collector takes its objects away.
    if live.iter().any(|live| owners.iter().any(|owner| owner.kind == live.kind && owner.name == live.name)) {
        return Err(Trouble::Changed(format!("{object} of an older resource of that name is not gone yet and")));
    }
    let whose = live.first().map_or_else(|| "nobody".to_owned(), |owner| format!("{}/{}", owner.kind, owner.name));
    Err(Trouble::NameTaken(format!("{object} belongs to {whose}")))
}

trait Labels {
    fn labels(&self) -> BTreeMap<String, String>;
}

impl Labels for ObjectMeta {
    fn labels(&self) -> BTreeMap<String, String> {
        self.labels.clone().unwrap_or_default()
    }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
fn defect(error: serde_json::Error) -> Trouble {
    Trouble::Plan(PlanError::Defect(error.to_string()))
}

/// The reference of a resource as owner.
pub fn owner_of(object: &impl ResourceExt, kind: Kind, controller: bool) -> OwnerReference {
    OwnerReference {
        api_version: s3_crds::API_VERSION.to_owned(),
        kind: kind.name().to_owned(),
        name: object.name_any(),
        uid: object.uid().unwrap_or_default(),
        controller: controller.then_some(true),
        block_owner_deletion: controller.then_some(true),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_the_server_adds_is_no_difference_and_what_it_lost_is() {
        let live = json!({"spec": {"replicas": 1, "paused": false, "list": [{"name": "a", "protocol": "TCP"}]}});
        assert!(contains(&live, &json!({"spec": {"replicas": 1, "list": [{"name": "a"}], "empty": {}}})));
        assert!(!contains(&live, &json!({"spec": {"replicas": 2}})));
        assert!(!contains(&live, &json!({"spec": {"list": [{"name": "b"}]}})));
        assert!(!contains(&live, &json!({"spec": {"list": []}})));
        assert!(!contains(&live, &json!({"spec": {"missing": "x"}})));
    }

    #[test]
    fn only_the_pods_of_its_own_make_a_workload_outdated() {
        let spec = |workers: u32, index: u32| {
            json!({"queueName": "gpus", "podSets": [{"name": "worker", "count": workers},
                {"name": "a-retriever", "count": index}]})
        };
        assert!(fits(&spec(1, 1), &spec(1, 2)));
        assert!(!fits(&spec(1, 1), &spec(2, 1)));
        let mut more = spec(1, 1);
        more["podSets"][1]["name"] = json!("model-server-1");
        assert!(!fits(&spec(1, 1), &more) && !fits(&more, &spec(1, 1)));
    }

    #[test]
    fn what_comes_too_late_for_its_namespace_is_told_from_what_is_forbidden() {
        let refused = |value: Value| kube::Error::Api(serde_json::from_value(value).unwrap());
        let late = json!({"code": 403, "status": "Failure", "reason": "Forbidden",
            "message": "jobs.batch \"a\" is forbidden: unable to create new content in namespace n because it is being terminated",
            "details": {"causes": [{"reason": "NamespaceTerminating", "message": "", "field": "metadata.namespace"}]}});
        assert!(terminating(&refused(late)));
        let forbidden =
            json!({"code": 403, "status": "Failure", "reason": "Forbidden", "message": "jobs is forbidden"});
        assert!(!terminating(&refused(forbidden)));
    }

    #[test]
    fn foreign_objects_are_left_alone() {
        let place = ("ConfigMap".to_owned(), "n".to_owned(), "a".to_owned());
        let owner = |uid: &str, name: &str| OwnerReference {
            kind: "S3TrainingJob".into(),
            name: name.into(),
            uid: uid.into(),
            controller: Some(true),
            ..OwnerReference::default()
        };
        let meta = |managed: bool, owner: Option<OwnerReference>| ObjectMeta {
            labels: managed.then(|| [("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned())].into()),
            owner_references: owner.map(|owner| vec![owner]),
            ..ObjectMeta::default()
        };
        let ours = [owner("1", "a")];
        assert!(check(&place, &meta(true, Some(owner("1", "a"))), &ours).is_ok());
        assert!(check(&place, &meta(true, None), &ours).is_ok(), "an orphan of ours");
        assert!(matches!(check(&place, &meta(false, None), &ours), Err(Trouble::NameTaken(_))));
        assert!(matches!(check(&place, &meta(false, Some(owner("1", "a"))), &ours), Err(Trouble::NameTaken(_))));
        assert!(matches!(check(&place, &meta(true, Some(owner("2", "b"))), &ours), Err(Trouble::NameTaken(_))));
        assert!(matches!(check(&place, &meta(true, Some(owner("2", "a"))), &ours), Err(Trouble::Changed(_))));
        assert!(reached("10", "9") && reached("10", "10") && !reached("9", "10"));
    }
}
