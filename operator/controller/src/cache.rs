//! What the API server has, as far as its watches have told.

use crate::slim::{Slim, slimmed};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// Namespace and name.
type Name = (String, String);

struct Inner<K> {
    /// Ordered, so that a namespace is a range.
    objects: BTreeMap<Name, Arc<K>>,
    groups: HashMap<Name, BTreeSet<String>>,
    /// By scope: what a listing that is under way has brought.
    listing: HashMap<usize, HashMap<Name, Arc<K>>>,
    /// By scope: what it holds.
    scopes: HashMap<usize, BTreeSet<Name>>,
}

/// All objects of one kind that are watched.
pub struct Cache<K> {
    inner: RwLock<Inner<K>>,
    label: Option<&'static str>,
    warm: AtomicUsize,
}

impl<K: Resource + Clone + Slim> Cache<K> {
    /// Groups objects by the value of a label.
    pub fn new(label: Option<&'static str>) -> Self {
        let inner =
            Inner { objects: BTreeMap::new(), groups: HashMap::new(), listing: HashMap::new(), scopes: HashMap::new() };
        Self { inner: RwLock::new(inner), label, warm: AtomicUsize::new(0) }
    }

    /// Takes an event of one scope's watch. Returns the metadata of every object that came, changed or went.
    pub fn take(&self, scope: usize, event: Event<K>) -> Vec<ObjectMeta> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(object) => {
                let object = slimmed(object);
                let meta = object.meta().clone();
                self.put(&mut inner, scope, Arc::new(object));
                vec![meta]
            }
            Event::Delete(object) => {
                let name = name_of(&object);
                self.drop(&mut inner, scope, &name);
                vec![object.meta().clone()]
            }
            Event::Init => {
                inner.listing.insert(scope, HashMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let object = slimmed(object);
                inner.listing.entry(scope).or_default().insert(name_of(&object), Arc::new(object));
                Vec::new()
            }
            Event::InitDone => {
                let listed = inner.listing.remove(&scope).unwrap_or_default();
                let held = inner.scopes.get(&scope).cloned().unwrap_or_default();
                let mut touched = Vec::new();
                for name in held.iter().filter(|name| !listed.contains_key(*name)) {
                    if let Some(gone) = self.drop(&mut inner, scope, name) {
                        touched.push(gone.meta().clone());
                    }
                }
                for object in listed.into_values() {
                    touched.push(object.meta().clone());
                    self.put(&mut inner, scope, object);
                }
                drop(inner);
                self.warm.fetch_add(1, Ordering::SeqCst);
                touched
            }
        }
    }

    fn put(&self, inner: &mut Inner<K>, scope: usize, object: Arc<K>) {
        let name = name_of(object.as_ref());
        self.drop(inner, scope, &name);
        if let Some(group) = self.group(object.as_ref()) {
            inner.groups.entry((name.0.clone(), group)).or_default().insert(name.1.clone());
        }
        inner.scopes.entry(scope).or_default().insert(name.clone());
        inner.objects.insert(name, object);
    }

    fn drop(&self, inner: &mut Inner<K>, scope: usize, name: &Name) -> Option<Arc<K>> {
        let old = inner.objects.remove(name)?;
        if let Some(held) = inner.scopes.get_mut(&scope) {
            held.remove(name);
        }
        if let Some(group) = self.group(old.as_ref()) {
            let group = (name.0.clone(), group);
            if let Some(names) = inner.groups.get_mut(&group) {
                names.remove(&name.1);
                if names.is_empty() {
                    inner.groups.remove(&group);
                }
            }
        }
        Some(old)
    }

    fn group(&self, object: &K) -> Option<String> {
        object.labels().get(self.label?).cloned()
    }

    /// Listings that were completed.
    pub fn listings(&self) -> usize {
        self.warm.load(Ordering::SeqCst)
    }

    /// One object.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// The objects of a namespace with that value of the label, by name.
    pub fn group_of(&self, namespace: &str, value: &str) -> BTreeMap<String, Arc<K>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let names = inner.groups.get(&(namespace.to_owned(), value.to_owned()));
        names
            .into_iter()
            .flatten()
            .filter_map(|name| Some((name.clone(), inner.objects.get(&(namespace.to_owned(), name.clone()))?.clone())))
            .collect()
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let from = (namespace.to_owned(), String::new());
        let own = inner.objects.range(from..).take_while(|((of, _), _)| of == namespace);
        own.map(|(_, object)| object.clone()).collect()
    }

    /// Names of everything.
    pub fn names(&self) -> Vec<Name> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).objects.keys().cloned().collect()
    }
}

fn name_of<K: Resource>(object: &K) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, group: &str) -> ConfigMap {
        let labels = Some(BTreeMap::from([("g".to_owned(), group.to_owned())]));
        let metadata =
            ObjectMeta { name: Some(name.into()), namespace: Some("n".into()), labels, ..ObjectMeta::default() };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    #[test]
    fn a_new_listing_replaces_what_its_scope_held_and_no_other() {
        let cache = Cache::new(Some("g"));
        cache.take(0, Event::Apply(object("a", "x")));
        cache.take(1, Event::Apply(object("b", "x")));
        assert_eq!(cache.group_of("n", "x").len(), 2);
        cache.take(0, Event::Init);
        cache.take(0, Event::InitApply(object("c", "y")));
        assert!(cache.get("n", "a").is_some(), "until the listing is complete");
        let touched = cache.take(0, Event::InitDone);
        assert_eq!(touched.len(), 2);
        assert!(cache.get("n", "a").is_none() && cache.get("n", "b").is_some());
        assert_eq!(cache.group_of("n", "x").into_keys().collect::<Vec<_>>(), ["b"]);
        cache.take(0, Event::Apply(object("c", "x")));
        assert!(cache.group_of("n", "y").is_empty(), "a changed label changes the group");
        cache.take(0, Event::Delete(object("c", "x")));
        assert_eq!(cache.group_of("n", "x").into_keys().collect::<Vec<_>>(), ["b"]);
    }
}
