//! Jobs of an attempt, and Deployments with their Services.

use super::binder::{ClusterBinder, mark};
use super::pod::{self, TERMINATION};
use super::{Attempt, CLIENT_LABEL_PREFIX, Context, Object, TEAM_PORT_NUMBER, component_selector};
use crate::names::short_digest;
use crate::{ComponentKind, PlanError};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment};
use k8s_openapi::api::batch::v1::{Job, JobSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use s3_config::{AttemptConfig, OperatorConfig};
use s3_crds::QueueMode;
use std::collections::BTreeMap;

/// Kueue's label of a queue.
const QUEUE_LABEL: &str = "kueue.x-k8s.io/queue-name";
/// A service's configuration in its `ConfigMap`.
const CONFIG_KEY: &str = "config.yaml";

/// Name of the Job of one replica.
pub fn job_name(component: &str, attempt: u32, rank: u32) -> String {
    format!("{component}-a{attempt}-r{rank}")
}

/// Name of an attempt's `ConfigMap`, and of its headless Service.
pub fn config_map_name(component: &str, attempt: u32) -> String {
    format!("{component}-a{attempt}")
}

/// Name of a component's Service: the component's, unless that starts with a digit, which Services must not.
pub fn service_name(component: &str) -> String {
    if component.starts_with(|first: char| first.is_ascii_digit()) {
        return format!("s{}-{component}", short_digest(component));
    }
    component.to_owned()
}

/// The worker's configuration as text, with what it is told about this attempt.
fn config(context: &Context<'_>, binder: &ClusterBinder<'_>, rank: Option<u32>) -> Result<String, PlanError> {
    let component = context.component;
    let mut config = component.config.bind(&component.name, binder)?;
    let runtime = config.runtime_mut();
    runtime.termination_message = Some(TERMINATION.into());
    if let Some(rank) = rank {
        runtime.attempt =
            Some(AttemptConfig { epoch: context.attempt.number, rank, replicas: context.attempt.replicas });
        if let Some(team) = runtime.team.as_mut().filter(|_| context.attempt.replicas > 1) {
            let group = service_name(&config_map_name(&component.name, context.attempt.number));
            let host = |rank| format!("r{rank}.{group}.{}.svc:{TEAM_PORT_NUMBER}", context.surroundings.namespace);
            (team.rank, team.members) = (rank, (0..context.attempt.replicas).map(host).collect());
        }
        if rank > 0 {
            // the folder is shared; what stands there is the first replica's
            (runtime.progress, runtime.result) = (None, None);
        }
        if let (true, Some(address), Some(uid)) =
            (pod::reports(context), &context.surroundings.operator_address, pod::audience(context))
        {
            runtime.operator =
                Some(OperatorConfig { address: address.clone(), token_file: pod::token_file(), uid: uid.to_owned() });
        }
    }
    serde_yaml_ng::to_string(&config).map_err(PlanError::defect)
}

/// One Job per replica, with their configuration and, for several, the names by which they find each other.
pub(crate) fn job(
    context: &Context<'_>,
    binder: &ClusterBinder<'_>,
    objects: &mut Vec<Object>,
) -> Result<(), PlanError> {
    let (component, Attempt { number, replicas }) = (context.component, *context.attempt);
    let labels = context.attempt_labels();
    let metadata = |name: String| context.metadata(name, labels.clone(), context.owners.to_vec());
    let annotations = context.identity_annotations()?;

    let key = |rank: u32| format!("r{rank}.yaml");
    let data = (0..replicas)
        .map(|rank| Ok((key(rank), config(context, binder, Some(rank))?)))
        .collect::<Result<BTreeMap<_, _>, PlanError>>()?;
    let name = config_map_name(&component.name, number);
    objects.push(Object::ConfigMap(Box::new(ConfigMap {
        metadata: metadata(name.clone()),
        data: Some(data),
        immutable: Some(true),
        ..ConfigMap::default()
    })));
    let group = service_name(&name);
    if replicas > 1 {
        objects.push(Object::Service(Box::new(Service {
            metadata: metadata(group.clone()),
            spec: Some(ServiceSpec {
                cluster_ip: Some("None".into()),
                // The replicas look for each other before they are ready.
                publish_not_ready_addresses: Some(true),
                selector: Some(attempt_selector(context)),
                ..ServiceSpec::default()
            }),
            ..Service::default()
        })));
    }
    let queue = context.plan.placements.of(component).queue.filter(|queue| queue.mode == QueueMode::Labels);
    for rank in 0..replicas {
        let mut template = pod::template(context, binder, &name, &key(rank))?;
        if let (true, Some(spec)) = (replicas > 1, template.spec.as_mut()) {
            spec.hostname = Some(format!("r{rank}"));
            spec.subdomain = Some(group.clone());
        }
        let mut metadata = metadata(job_name(&component.name, number, rank));
        metadata.annotations = Some(annotations.clone());
        if let (Some(queue), Some(labels)) = (&queue, metadata.labels.as_mut()) {
            labels.insert(QUEUE_LABEL.to_owned(), queue.name.clone());
        }
        objects.push(Object::Job(Box::new(Job {
            metadata,
            spec: Some(JobSpec {
                // Only the operator can tell what may be tried again, so Kubernetes tries nothing.
                backoff_limit: Some(0),
                completions: Some(1),
                parallelism: Some(1),
                template,
                ..JobSpec::default()
            }),
            ..Job::default()
        })));
    }
    Ok(())
}

fn attempt_selector(context: &Context<'_>) -> BTreeMap<String, String> {
    let mut selector = component_selector(context.component);
    selector.insert(super::ATTEMPT_LABEL.to_owned(), context.attempt.number.to_string());
    selector
}

/// A Deployment and the Service before it.
pub(crate) fn service(
    context: &Context<'_>,
    binder: &ClusterBinder<'_>,
    objects: &mut Vec<Object>,
) -> Result<(), PlanError> {
    let component = context.component;
    let labels = context.labels();
    let metadata = |name: String| context.metadata(name, labels.clone(), context.owners.to_vec());

    let text = config(context, binder, None)?;
    // Another configuration is another object, so that pods of both live through a roll-out and back.
    let name = format!("{}-{}", component.name, mark(&text));
    objects.push(Object::ConfigMap(Box::new(ConfigMap {
        metadata: metadata(name.clone()),
        data: Some(BTreeMap::from([(CONFIG_KEY.to_owned(), text)])),
        immutable: Some(true),
        ..ConfigMap::default()
    })));
    let ports = component
        .ports
        .iter()
        .map(|port| {
            Ok(ServicePort {
                name: Some(port.clone()),
                port: i32::from(super::binder::port_number(port)?),
                target_port: Some(IntOrString::String(port.clone())),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            })
        })
        .collect::<Result<Vec<_>, PlanError>>()?;
    objects.push(Object::Service(Box::new(Service {
        metadata: metadata(service_name(&component.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            ports: Some(ports),
            selector: Some(component_selector(component)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })));

    let template = pod::template(context, binder, &name, CONFIG_KEY)?;
    let strategy = if matches!(component.kind, ComponentKind::Gateway | ComponentKind::WebSearch) {
        // Its cache has one writer: the old one lets go before the new one starts.
        DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None }
    } else {
        DeploymentStrategy {
            type_: Some("RollingUpdate".into()),
            rolling_update: Some(RollingUpdateDeployment {
                max_surge: Some(IntOrString::Int(1)),
                max_unavailable: Some(IntOrString::Int(0)),
            }),
        }
    };
    let mut metadata = metadata(component.name.clone());
    metadata.annotations = Some(context.identity_annotations()?);
    objects.push(Object::Deployment(Box::new(Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            // What scales them says how many there are.
            replicas: super::scale::of(context)
                .is_none()
                .then(|| i32::try_from(context.attempt.replicas).unwrap_or(i32::MAX)),
            selector: LabelSelector { match_labels: Some(component_selector(component)), match_expressions: None },
            strategy: Some(strategy),
            template,
            revision_history_limit: Some(2),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })));
    Ok(())
}

/// Label of the pods that call a service.
pub(crate) fn client_label(component: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(format!("{CLIENT_LABEL_PREFIX}{component}"), String::new())])
}
