//! One Kubernetes object, typed until it is written.

use crate::PlanError;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DynamicObject;
use serde_json::Value;

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writing {
    /// Made once and then left alone: its content is immutable, or not the operator's to change (a claim grows
    /// by its users' hands).
    Once,
    /// Applied by the server each time.
    Applied,
}

/// An object that a component consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `v1` `ConfigMap`.
    ConfigMap(Box<ConfigMap>),
    /// `v1` `PersistentVolumeClaim`.
    PersistentVolumeClaim(Box<PersistentVolumeClaim>),
    /// `v1` `Service`.
    Service(Box<Service>),
    /// `v1` `ServiceAccount`.
    ServiceAccount(Box<ServiceAccount>),
    /// `apps/v1` `Deployment`.
    Deployment(Box<Deployment>),
    /// `batch/v1` `Job`.
    Job(Box<Job>),
    /// `networking.k8s.io/v1` `NetworkPolicy`.
    NetworkPolicy(Box<NetworkPolicy>),
    /// A kind that is found by discovery (`kueue.x-k8s.io` `Workload`).
    Other(Box<DynamicObject>),
}

impl Object {
    /// Its metadata.
    pub fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::ConfigMap(object) => &object.metadata,
            Self::PersistentVolumeClaim(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
            Self::Job(object) => &object.metadata,
            Self::NetworkPolicy(object) => &object.metadata,
            Self::Other(object) => &object.metadata,
        }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.metadata().name.as_deref().unwrap_or_default()
    }

    /// `apiVersion` and `kind`.
    pub fn type_(&self) -> (&str, &str) {
        match self {
            Self::ConfigMap(_) => ("v1", "ConfigMap"),
            Self::PersistentVolumeClaim(_) => ("v1", "PersistentVolumeClaim"),
            Self::Service(_) => ("v1", "Service"),
            Self::ServiceAccount(_) => ("v1", "ServiceAccount"),
            Self::Deployment(_) => ("apps/v1", "Deployment"),
            Self::Job(_) => ("batch/v1", "Job"),
            Self::NetworkPolicy(_) => ("networking.k8s.io/v1", "NetworkPolicy"),
            Self::Other(object) => {
                object.types.as_ref().map_or(("", ""), |types| (types.api_version.as_str(), types.kind.as_str()))
            }
        }
    }

    /// Its kind.
    pub fn kind(&self) -> &str {
        self.type_().1
    }

    /// See [`Writing`].
    pub fn writing(&self) -> Writing {
        match self {
            Self::ConfigMap(_) | Self::PersistentVolumeClaim(_) | Self::Job(_) => Writing::Once,
            _ => Writing::Applied,
        }
    }

    /// As JSON with `apiVersion` and `kind`, for server-side apply.
    pub fn to_value(&self) -> Result<Value, PlanError> {
        match self {
            Self::ConfigMap(object) => serde_json::to_value(object),
            Self::PersistentVolumeClaim(object) => serde_json::to_value(object),
            Self::Service(object) => serde_json::to_value(object),
            Self::ServiceAccount(object) => serde_json::to_value(object),
            Self::Deployment(object) => serde_json::to_value(object),
            Self::Job(object) => serde_json::to_value(object),
            Self::NetworkPolicy(object) => serde_json::to_value(object),
            Self::Other(object) => serde_json::to_value(object),
        }
        .map_err(PlanError::defect)
    }

    /// As an object of any kind, for `kube::Api<DynamicObject>`.
    pub fn to_dynamic(&self) -> Result<DynamicObject, PlanError> {
        serde_json::from_value(self.to_value()?).map_err(PlanError::defect)
    }
}
