//! Who shares the gateways of a namespace: who wants them now, and what each asks of them.
//!
//! What was read of a resource is kept while the resource stays as it is, so that a newcomer costs what it is itself,
//! not what all the others are.

use crate::kept::Kept;
use crate::operator::Shared;
use crate::scene::{Objects, admitted_whole, conditions_of, planned, serves, with_references};
use kube::ResourceExt;
use s3_crds::Kind;
use s3_plan::lifecycle::{waits_for_gateway, wants_gateway};
use s3_plan::shared_needs;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

/// Gateways and model servers that a resource wants, with digests of what it asks of them.
pub type Needs = BTreeMap<String, String>;

/// A job or evaluation that wants gateways now.
pub struct User {
    /// Its kind.
    pub kind: Kind,
    /// It.
    pub object: Arc<Kept>,
    /// Whether it waits for them.
    pub waits: bool,
    /// What it wants.
    pub needs: Arc<Needs>,
}

/// What was read of a resource.
#[derive(Clone)]
struct Known {
    version: Option<String>,
    wants: bool,
    waits: bool,
    /// Uid and generation of all that its needs were read from.
    from: Vec<(Option<String>, Option<i64>)>,
    needs: Arc<Needs>,
}

type ByName<T> = HashMap<(Kind, String), T>;

/// What is known of all namespaces. Nothing is decided from it that could not be read again.
#[derive(Default)]
pub struct Sharing {
    known: Mutex<HashMap<String, ByName<Known>>>,
    told: Mutex<HashMap<String, BTreeMap<String, String>>>,
}

impl Sharing {
    /// The jobs and evaluations of a namespace that want gateways now, by `Kind/name`.
    pub fn users(&self, shared: &Shared, namespace: &str) -> BTreeMap<String, User> {
        // One worker at a time looks at a namespace: nobody else misses what is taken out meanwhile.
        let mut before =
            self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(namespace).unwrap_or_default();
        let (mut after, mut users) = (ByName::new(), BTreeMap::new());
        for kind in [Kind::S3TrainingJob, Kind::EvalRun] {
            for object in shared.world.resources(kind).in_namespace(namespace) {
                if object.metadata.deletion_timestamp.is_some() {
                    continue;
                }
                let place = (kind, object.name_any());
                let known = look(shared, kind, &object, before.remove(&place));
                if known.wants {
                    let user = User { kind, object, waits: known.waits, needs: known.needs.clone() };
                    users.insert(format!("{}/{}", kind.name(), place.1), user);
                }
                after.insert(place, known);
            }
        }
        if !after.is_empty() {
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(namespace.to_owned(), after);
        }
        users
    }

    /// Notes how each server stands; returns those that stand otherwise than they did.
    pub fn news(&self, namespace: &str, standing: BTreeMap<String, String>) -> Vec<String> {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let before = told.remove(namespace).unwrap_or_default();
        let news = standing.iter().filter(|(name, how)| before.get(*name) != Some(*how));
        let news = news.map(|(name, _)| name.clone()).collect();
        if !standing.is_empty() {
            told.insert(namespace.to_owned(), standing);
        }
        news
    }
}

fn look(shared: &Shared, kind: Kind, object: &Arc<Kept>, before: Option<Known>) -> Known {
    let version = object.metadata.resource_version.clone();
    let mut known = match before {
        Some(known) if known.version == version && version.is_some() => known,
        before => {
            let object = object.object();
            let conditions = conditions_of(&object);
            let (from, needs) = before.map(|known| (known.from, known.needs)).unwrap_or_default();
            let wants = wants_gateway(&conditions, serves(&object), admitted_whole(&object));
            Known { version, wants, waits: waits_for_gateway(&conditions), from, needs }
        }
    };
    if !known.wants {
        return known;
    }
    let from = closure(shared, object);
    if known.from != from {
        let title = format!("{}/{}", kind.name(), object.name_any());
        let mut objects = Objects::new();
        with_references(shared, kind, object.object(), &mut objects);
        let needs = planned(&objects).and_then(|plan| shared_needs(&plan, &title)).unwrap_or_else(|error| {
            tracing::debug!(resource = title, %error, "has no plan, and so no gateway");
            Needs::new()
        });
        (known.from, known.needs) = (from, Arc::new(needs));
    }
    known
}

/// Uid and generation of a resource and of everything that it refers to, directly or through others.
fn closure(shared: &Shared, object: &Arc<Kept>) -> Vec<(Option<String>, Option<i64>)> {
    let namespace = object.namespace().unwrap_or_default();
    let mut seen = vec![object.clone()];
    let mut next = 0;
    while let Some(object) = seen.get(next).cloned() {
        next += 1;
        for (kind, name) in &object.refers {
            if let Some(object) = shared.world.resources(*kind).get(&namespace, name)
                && !seen.iter().any(|seen| seen.metadata.uid == object.metadata.uid)
            {
                seen.push(object);
            }
        }
    }
    seen.iter().map(|object| (object.uid(), object.metadata.generation)).collect()
}
