//! What of a watched object is kept in memory: only what something is decided from.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod, PodTemplateSpec, Service,
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Resource;
use kube::api::DynamicObject;

/// `kubectl apply` keeps a second copy of the object here.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// An object that gives up what nobody reads.
pub trait Slim {
    /// Gives up what nobody reads beside the metadata; nothing where all of it is compared with what is desired.
    fn slim(&mut self) {}
}

/// Gives up what nobody reads. Who manages which field is never decided from, and is half of an object's size.
pub fn slimmed<K: Resource + Slim>(mut object: K) -> K {
    let meta = object.meta_mut();
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
    object.slim();
    object
}

impl Slim for DynamicObject {}
impl Slim for Deployment {}
impl Slim for Service {}
impl Slim for NetworkPolicy {}

/// Jobs are made once; their pods tell the rest.
impl Slim for Job {
    fn slim(&mut self) {
        if let Some(spec) = &mut self.spec {
            spec.template = PodTemplateSpec::default();
        }
    }
}

impl Slim for Pod {
    fn slim(&mut self) {
        self.spec = None;
    }
}

/// They are immutable; how many replicas they configure is read.
impl Slim for ConfigMap {
    fn slim(&mut self) {
        self.data.iter_mut().flat_map(|data| data.values_mut()).for_each(|text| *text = String::new());
        self.binary_data = None;
    }
}

impl Slim for PersistentVolumeClaim {
    fn slim(&mut self) {
        let access_modes = self.spec.take().and_then(|spec| spec.access_modes);
        self.spec = Some(PersistentVolumeClaimSpec { access_modes, ..PersistentVolumeClaimSpec::default() });
        self.status = None;
    }
}
