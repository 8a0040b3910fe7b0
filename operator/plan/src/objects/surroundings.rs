//! What a cluster's operator knows and a plan does not.

use crate::{Component, Plan};
use s3_crds::{AccessMode, Storage};
use std::collections::{BTreeMap, BTreeSet};

/// One program's image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The image; its entrypoint is the program.
    pub cpu: String,
    /// Its build with CUDA, for pods that ask for GPUs; without it they run the first.
    pub cuda: Option<String>,
}

/// The images of the workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    /// By program (`s3-trainer`).
    pub by_binary: BTreeMap<String, Image>,
    /// `Always`, `IfNotPresent` or `Never`; none leaves it to the cluster.
    pub pull_policy: Option<String>,
    /// Names of pull secrets.
    pub pull_secrets: Vec<String>,
}

/// What the generated network policies let through beside the plan's own peers; a part of the operator's settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Network {
    /// Whether policies are made at all.
    pub enabled: bool,
    /// Address ranges of the name servers; empty allows port 53 of every pod and of node-local caches.
    pub dns_ranges: Vec<String>,
    /// Address ranges of storage that workers reach themselves (buckets behind a private link, NFS).
    pub storage_ranges: Vec<String>,
    /// Labels of the operator's namespace; empty is any namespace.
    pub operator_namespace: BTreeMap<String, String>,
    /// Labels of the operator's pods.
    pub operator_pods: BTreeMap<String, String>,
    /// Labels of the namespaces whose pods may scrape metrics; empty is any namespace.
    pub scraper_namespaces: BTreeMap<String, String>,
}

/// Everything around the objects of one namespace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// The namespace of the resources.
    pub namespace: String,
    /// The workers' images.
    pub images: Images,
    /// Where workers report progress (`http://s3-operator.s3-system.svc:9000`); none leaves reporting out.
    pub operator_address: Option<String>,
    /// Labels added to every object and pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations added to every pod.
    pub annotations: BTreeMap<String, String>,
    /// Service account of pods that name none; none takes the namespace's `default`. No token of it is mounted.
    pub service_account: Option<String>,
    /// Network policies.
    pub network: Network,
    /// Access modes of existing claims, as far as they were read; the shape of others is not judged.
    pub claims: BTreeMap<String, BTreeSet<AccessMode>>,
    /// Where gateways keep their answers.
    pub gateway_storage: Storage,
    /// CPU and memory of gateways.
    pub gateway_resources: s3_crds::Resources,
    /// Storage class of claims that are made and name none; none takes the cluster's default.
    pub storage_class: Option<String>,
    /// Version of the autoscaling API whose objects can be made; none where none can.
    pub autoscaling: Option<String>,
}

/// One try of a job; of services only the replicas count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    /// From 1; it is the epoch that fences older tries.
    pub number: u32,
    /// Pods.
    pub replicas: u32,
}

impl Attempt {
    /// A component's try of that number, with as many pods as its resource asks for.
    pub fn of(plan: &Plan, component: &Component, number: u32) -> Self {
        Self { number, replicas: plan.placements.of(component).replicas }
    }
}
