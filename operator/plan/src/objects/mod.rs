//! A plan's components as Kubernetes objects.
//!
//! Pure: everything that only the cluster knows comes in through [`Surroundings`], [`Observed`] and the owner
//! references. Names are deterministic, so applying the same component twice changes nothing. Only API kinds
//! that Kubernetes 1.20 and every later version serve are made.
//!
//! | component | objects |
//! |---|---|
//! | job | claim of its resource, `ConfigMap NAME-a<attempt>`, `NetworkPolicy NAME`, one `Job NAME-a<attempt>-r<rank>` per replica, a headless `Service NAME-a<attempt>` when there are several |
//! | model server | `NetworkPolicy NAME`, `Service`, `Deployment NAME` |
//! | service | claim where it keeps something, `ConfigMap NAME-<digest>`, `NetworkPolicy NAME`, `Service`, `Deployment NAME` |

mod binder;
mod claims;
mod labels;
mod network;
mod object;
mod pod;
mod queue;
mod scale;
mod server;
mod surroundings;
mod workload;

pub use crate::server::SERVER_PREFIX;
pub use binder::ClusterBinder;
pub use claims::claims_of_plan;
pub use labels::{
    ATTEMPT_LABEL, CLIENT_LABEL_PREFIX, COMPONENT_LABEL, FINGERPRINT_ANNOTATION, KIND_LABEL, MANAGER, NAME_LABEL,
    STEPS_ANNOTATION, WORK_ANNOTATION, belongs_to, component_selector, identity_of, label_value,
};
pub use object::{Object, Writing};
pub use queue::{KUEUE, Queueing, WORKER_SET, queue_of, workload, workload_name};
pub use surroundings::{Attempt, Image, Images, Network, Surroundings};
pub use workload::{config_map_name, job_name, service_name};

use crate::{Component, ComponentKind, Observed, Plan, PlanError, Role, Symbol, fingerprint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

/// Port of `/metrics`, `/healthz` and `/readyz` in every pod.
pub const ADMIN_PORT_NUMBER: u16 = 9464;
/// gRPC port of every service.
pub const GRPC_PORT_NUMBER: u16 = 50051;
/// HTTP port of every service.
pub const HTTP_PORT_NUMBER: u16 = 8080;
/// Port at which a replica of a job hears the others; those of its further GPUs follow.
pub const TEAM_PORT_NUMBER: u16 = 9400;

/// What the parts of one rendering share.
pub(crate) struct Context<'a> {
    plan: &'a Plan,
    observed: &'a Observed,
    component: &'a Component,
    attempt: &'a Attempt,
    surroundings: &'a Surroundings,
    owners: &'a [OwnerReference],
    /// Of the component at this time.
    fingerprint: String,
}

/// Everything that one component is in a cluster, in the order of applying.
///
/// `owners` are the references that the objects carry: the resource of a job; all users of a service. Fails
/// while a job that the component needs has no outcome yet (see [`crate::decide`]), when a volume cannot serve
/// the wanted pods ([`PlanError::VolumeShape`]), and for inputs that no pod can reach.
pub fn render(
    plan: &Plan,
    observed: &Observed,
    component: &Component,
    attempt: &Attempt,
    surroundings: &Surroundings,
    owners: &[OwnerReference],
) -> Result<Vec<Object>, PlanError> {
    for input in &component.inputs {
        if Symbol::parse(&input.path).is_none() {
            return Err(PlanError::Binding(format!(
                "{}: {} is a file of one machine, which no pod reaches; put it into a volume and name it as pvc://CLAIM/PATH",
                input.field, input.path
            )));
        }
    }
    let fingerprint = fingerprint(plan, component, observed)
        .map_err(|on| PlanError::Binding(format!("{} waits for the outcome of {on}", component.name)))?;
    let context = Context { plan, observed, component, attempt, surroundings, owners, fingerprint };
    let binder = ClusterBinder::new(plan, observed, surroundings, component);
    let mut objects = Vec::new();
    objects.extend(claims::claim_object(&context)?);
    objects.extend(network::policy(&context)?);
    match component.role {
        Role::Job => workload::job(&context, &binder, &mut objects)?,
        Role::Service if component.kind == ComponentKind::ModelServer => {
            server::objects(&context, &binder, &mut objects)?;
        }
        Role::Service => workload::service(&context, &binder, &mut objects)?,
    }
    objects.extend(scale::object(&context)?);
    Ok(objects)
}
