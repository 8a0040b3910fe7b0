//! Binding a plan's symbols to a pod: mounted claims, service names, fixed ports, mounted secrets.

use super::claims::{self, Claim, claim_of, shared};
use super::{ADMIN_PORT_NUMBER, GRPC_PORT_NUMBER, HTTP_PORT_NUMBER, Surroundings, service_name};
use crate::names::{label, short_digest};
use crate::{
    ADMIN_PORT, Binder, Component, ComponentKind, GRPC_PORT, HTTP_PORT, Observed, Plan, PlanError, Symbol,
    work_identity,
};
use k8s_openapi::api::core::v1::{
    EmptyDirVolumeSource, KeyToPath, PersistentVolumeClaimVolumeSource, SecretVolumeSource, Volume, VolumeMount,
};
use s3_crds::AccessMode;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// Claims of resources and gateways are mounted below.
const WORK: &str = "/work";
/// Claims that the resources name as `pvc://` are mounted below.
const VOLUMES: &str = "/volumes";
/// Secrets are mounted below.
const SECRETS: &str = "/secrets";
/// What a component needs while it runs and does not keep.
const SCRATCH: &str = "/scratch";
/// Characters of the work identity in a folder's name.
const IDENTITY: usize = 16;

/// Gives every symbol its value inside the pods of one namespace.
///
/// Each job has a folder `/work/CLAIM/COMPONENT/IDENTITY`, named by what it works on: attempts of the same work
/// share it, changed settings start in another, and what is served from the old one stays where it is.
pub struct ClusterBinder<'a> {
    plan: &'a Plan,
    observed: &'a Observed,
    surroundings: &'a Surroundings,
    component: &'a Component,
}

impl<'a> ClusterBinder<'a> {
    /// Of the pods of `component`.
    pub fn new(
        plan: &'a Plan,
        observed: &'a Observed,
        surroundings: &'a Surroundings,
        component: &'a Component,
    ) -> Self {
        Self { plan, observed, surroundings, component }
    }

    fn other(&self, name: &str) -> Result<&'a Component, PlanError> {
        if name == self.component.name {
            return Ok(self.component);
        }
        self.plan.component(name).ok_or_else(|| PlanError::Defect(format!("{name} is not in the plan")))
    }

    /// The volumes of a pod and where they are mounted: what the configuration names, no more.
    pub(crate) fn mounts(&self, pods: u32) -> Result<(Vec<Volume>, Vec<VolumeMount>), PlanError> {
        let mut own = BTreeMap::new();
        let mut others: BTreeMap<String, Claim> = BTreeMap::new();
        let mut named = BTreeSet::new();
        let mut secrets: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        let mut scratch = false;
        for symbol in self.component.config.symbols() {
            match symbol {
                Symbol::Work { component, .. } => {
                    let component = self.other(&component)?;
                    match claim_of(self.plan, self.surroundings, component) {
                        None => scratch = true,
                        Some(claim) if component.name == self.component.name => {
                            own.insert(claim.name.clone(), claim);
                        }
                        Some(claim) => {
                            others.insert(claim.name.clone(), claim);
                        }
                    }
                }
                Symbol::Volume { name, .. } => {
                    named.insert(name);
                }
                Symbol::Secret { name, key } => {
                    secrets.entry(name).or_default().insert(key);
                }
                Symbol::Address { .. } | Symbol::Listen { .. } => {}
            }
        }
        others.retain(|name, _| !own.contains_key(name));
        for (claims, writes) in [(&own, true), (&others, false)] {
            for claim in claims.values() {
                claims::check(claim, self.surroundings, self.component, pods, writes)?;
            }
        }
        for name in &named {
            self.check_named(name, pods)?;
        }

        let mut mounts = Mounts::default();
        mounts.scratch("tmp", "/tmp");
        if scratch {
            mounts.scratch("scratch", SCRATCH);
        }
        for name in own.keys() {
            mounts.claim(&label("work", name), name, &format!("{WORK}/{name}"), false, false);
        }
        for name in others.keys() {
            mounts.claim(&label("work", name), name, &format!("{WORK}/{name}"), true, self.read_only(name));
        }
        for name in &named {
            mounts.claim(&label("volume", name), name, &format!("{VOLUMES}/{name}"), true, self.read_only(name));
        }
        for (name, keys) in secrets {
            mounts.secret(&name, keys);
        }
        Ok((mounts.volumes, mounts.mounts))
    }

    /// Whether a claim can only be attached for reading.
    fn read_only(&self, claim: &str) -> bool {
        self.surroundings.claims.get(claim).is_some_and(|modes| modes.iter().all(|m| *m == AccessMode::ReadOnlyMany))
    }

    fn check_named(&self, name: &str, pods: u32) -> Result<(), PlanError> {
        let Some(modes) = self.surroundings.claims.get(name) else { return Ok(()) };
        if pods <= 1 || shared(modes, false) {
            return Ok(());
        }
        Err(PlanError::VolumeShape {
            resource: self.component.owners.iter().next().cloned().unwrap_or_default(),
            field: format!("pvc://{name}"),
            reason: format!(
                "{pods} pods of {} may run on several nodes, and the claim {name} mounts on one; \
                 use a claim with ReadOnlyMany or ReadWriteMany, or one replica",
                self.component.name
            ),
        })
    }
}

#[derive(Default)]
struct Mounts {
    volumes: Vec<Volume>,
    mounts: Vec<VolumeMount>,
}

impl Mounts {
    fn mount(&mut self, name: &str, path: &str, read_only: bool) {
        self.mounts.push(VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
    }

    fn scratch(&mut self, name: &str, path: &str) {
        self.volumes.push(Volume {
            name: name.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        });
        self.mount(name, path, false);
    }

    fn claim(&mut self, volume: &str, claim: &str, path: &str, read_only: bool, attach_read_only: bool) {
        self.volumes.push(Volume {
            name: volume.to_owned(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.to_owned(),
                read_only: attach_read_only.then_some(true),
            }),
            ..Volume::default()
        });
        self.mount(volume, path, read_only);
    }

    /// The whole folder, not single files: only so does a rotated secret reach a running pod.
    fn secret(&mut self, secret: &str, keys: BTreeSet<String>) {
        let volume = label("secret", secret);
        let items = keys.into_iter().map(|key| KeyToPath { path: key.clone(), key, mode: None }).collect();
        self.volumes.push(Volume {
            name: volume.clone(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.to_owned()),
                items: Some(items),
                default_mode: Some(0o440),
                optional: None,
            }),
            ..Volume::default()
        });
        self.mount(&volume, &format!("{SECRETS}/{secret}"), true);
    }
}

fn below(root: PathBuf, path: &str) -> PathBuf {
    if path.is_empty() { root } else { root.join(path) }
}

impl Binder for ClusterBinder<'_> {
    fn volume(&self, name: &str, path: &str) -> Result<PathBuf, PlanError> {
        Ok(below(Path::new(VOLUMES).join(name), path))
    }

    fn work(&self, component: &str, path: &str) -> Result<PathBuf, PlanError> {
        let component = self.other(component)?;
        let Some(claim) = claim_of(self.plan, self.surroundings, component) else {
            return Ok(below(Path::new(SCRATCH).join(&component.name), path));
        };
        let mut folder = Path::new(WORK).join(&claim.name).join(&component.name);
        // A gateway's answers, a web search's results and fetched files are keyed by what they are, so changed settings
        // share them.
        let keyed =
            [ComponentKind::Gateway, ComponentKind::WebSearch, ComponentKind::Fetch, ComponentKind::GatewayFetch];
        if !keyed.contains(&component.kind) {
            let identity = work_identity(self.plan, component, self.observed).map_err(|on| {
                PlanError::Binding(format!("the folder of {} waits for the outcome of {on}", component.name))
            })?;
            let mark = identity.settings.get(..IDENTITY).unwrap_or(&identity.settings);
            match self.observed.anew.get(&component.name) {
                // What was before is kept aside.
                Some(attempt) => folder.push(format!("{mark}-a{attempt}")),
                None => folder.push(mark),
            }
        }
        Ok(below(folder, path))
    }

    fn listen(&self, _: &str, port: &str) -> Result<SocketAddr, PlanError> {
        Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port_number(port)?)))
    }

    fn address(&self, component: &str, port: &str) -> Result<String, PlanError> {
        let (service, namespace) = (service_name(component), &self.surroundings.namespace);
        Ok(format!("http://{service}.{namespace}.svc:{}", port_number(port)?))
    }

    fn secret(&self, name: &str, key: &str) -> Result<PathBuf, PlanError> {
        Ok(Path::new(SECRETS).join(name).join(key))
    }
}

/// The number of a named port.
pub(crate) fn port_number(port: &str) -> Result<u16, PlanError> {
    match port {
        ADMIN_PORT => Ok(ADMIN_PORT_NUMBER),
        GRPC_PORT => Ok(GRPC_PORT_NUMBER),
        HTTP_PORT => Ok(HTTP_PORT_NUMBER),
        other => Err(PlanError::Defect(format!("port {other} has no number in pods"))),
    }
}

/// Marks a text, for names that carry a configuration.
pub(crate) fn mark(text: &str) -> String {
    short_digest(text)
}
