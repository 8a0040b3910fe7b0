//! The pod of a component, under the restricted pod security standard.

use super::binder::{ClusterBinder, port_number};
use super::labels::{CLIENT_LABEL_PREFIX, belongs_to};
use super::{ADMIN_PORT_NUMBER, Context};
use crate::{ADMIN_PORT, PlanError, Role};
use k8s_openapi::api::core::v1::{
    Affinity, Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
    LocalObjectReference, PodSecurityContext, PodSpec, PodTemplateSpec, Probe, ProjectedVolumeSource,
    ResourceRequirements, SeccompProfile, SecretKeySelector, SecurityContext, ServiceAccountTokenProjection, Volume,
    VolumeMount, VolumeProjection,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use s3_crds::PodOverrides;
use std::collections::BTreeMap;

/// User and group of every worker; images own nothing that needs more.
const USER: i64 = 65_532;
/// Folder of the configuration.
const CONFIG: &str = "/etc/s3";
/// Folder of the token for the operator.
const TOKEN: &str = "/var/run/secrets/s3";
/// Where the kubelet looks for a pod's last words.
pub(crate) const TERMINATION: &str = "/dev/termination-log";
/// Life of a token; the kubelet renews it long before.
const TOKEN_SECONDS: i64 = 3600;
/// Seconds that a job gets to finish its unit of work and publish a checkpoint.
const JOB_GRACE: i64 = 600;
/// Seconds that a service gets to answer what it has taken.
const SERVICE_GRACE: i64 = 60;
/// Resource name of GPUs.
const GPU: &str = "nvidia.com/gpu";

/// Where a pod finds its token.
pub(crate) fn token_file() -> std::path::PathBuf {
    std::path::Path::new(TOKEN).join("token")
}

/// The uid of the resource that a job belongs to: audience of its token.
pub(crate) fn audience<'a>(context: &'a Context<'_>) -> Option<&'a str> {
    let (kind, name) = belongs_to(context.component)?;
    context.owners.iter().find(|owner| owner.kind == kind && owner.name == name).map(|owner| owner.uid.as_str())
}

/// Whether the pod reports to the operator.
pub(crate) fn reports(context: &Context<'_>) -> bool {
    context.component.role == Role::Job
        && context.surroundings.operator_address.is_some()
        && audience(context).is_some()
}

/// The pod; its configuration is the file `key` of the `ConfigMap`.
pub(crate) fn template(
    context: &Context<'_>,
    binder: &ClusterBinder<'_>,
    config_map: &str,
    key: &str,
) -> Result<PodTemplateSpec, PlanError> {
    let component = context.component;
    let pod = context.plan.placements.of(component).pod;
    let (mut volumes, mut mounts) = binder.mounts(super::scale::most(context))?;
    volumes.push(Volume {
        name: "config".into(),
        config_map: Some(ConfigMapVolumeSource { name: config_map.to_owned(), ..ConfigMapVolumeSource::default() }),
        ..Volume::default()
    });
    mounts.push(read_only("config", CONFIG));
    if reports(context) {
        volumes.push(token(audience(context).unwrap_or_default()));
        mounts.push(read_only("token", TOKEN));
    }

    let job = component.role == Role::Job;
    let container = container(context, &pod, format!("{CONFIG}/{key}"), mounts)?;
    let spec = spec(context, &pod, container, volumes, if job { JOB_GRACE } else { SERVICE_GRACE })?;
    Ok(PodTemplateSpec { metadata: Some(metadata(context, &pod)), spec: Some(spec) })
}

/// The pod around a container, under the restricted pod security standard.
pub(crate) fn spec(
    context: &Context<'_>,
    pod: &PodOverrides,
    container: Container,
    volumes: Vec<Volume>,
    grace: i64,
) -> Result<PodSpec, PlanError> {
    let (surroundings, component) = (context.surroundings, context.component);
    let pull = surroundings.images.pull_secrets.iter().chain(pod.image_pull_secrets.iter().map(|secret| &secret.name));
    let pull: Vec<_> = pull.map(|name| LocalObjectReference { name: name.clone() }).collect();
    let affinity = match &pod.affinity {
        Some(affinity) => Some(serde_json::from_value::<Affinity>(affinity.clone()).map_err(|error| {
            PlanError::field(
                component.owners.iter().next().map_or("", String::as_str),
                "pod.affinity",
                error.to_string(),
            )
        })?),
        None => None,
    };
    let job = component.role == Role::Job;
    Ok(PodSpec {
        containers: vec![container],
        volumes: Some(volumes),
        restart_policy: Some(if job { "Never" } else { "Always" }.into()),
        termination_grace_period_seconds: Some(grace),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        service_account_name: pod.service_account_name.clone().or_else(|| surroundings.service_account.clone()),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(USER),
            run_as_group: Some(USER),
            fs_group: Some(USER),
            fs_group_change_policy: Some("OnRootMismatch".into()),
            seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), localhost_profile: None }),
            ..PodSecurityContext::default()
        }),
        image_pull_secrets: (!pull.is_empty()).then_some(pull),
        node_selector: (!pod.node_selector.is_empty()).then(|| pod.node_selector.clone()),
        tolerations: (!pod.tolerations.is_empty()).then(|| pod.tolerations.clone()),
        affinity,
        priority_class_name: pod.priority_class_name.clone(),
        runtime_class_name: pod.runtime_class_name.clone(),
        ..PodSpec::default()
    })
}

/// Labels and annotations; a resource adds others and changes none of the operator's.
pub(crate) fn metadata(context: &Context<'_>, pod: &PodOverrides) -> ObjectMeta {
    let mut labels = pod.labels.clone();
    labels.extend(context.attempt_labels());
    for need in services(context) {
        labels.insert(format!("{CLIENT_LABEL_PREFIX}{need}"), String::new());
    }
    let mut annotations = context.surroundings.annotations.clone();
    annotations.extend(pod.annotations.clone());
    annotations.extend(
        [("scrape", "true".to_owned()), ("port", ADMIN_PORT_NUMBER.to_string()), ("path", "/metrics".to_owned())]
            .map(|(name, value)| (format!("prometheus.io/{name}"), value)),
    );
    ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }
}

/// The image: of the pod's own, or by program.
pub(crate) fn image(context: &Context<'_>, pod: &PodOverrides) -> Result<String, PlanError> {
    let (surroundings, component) = (context.surroundings, context.component);
    let gpus = component.resources.gpus > 0;
    match (&pod.image, surroundings.images.by_binary.get(&component.binary)) {
        (Some(image), _) => Ok(image.clone()),
        (None, Some(image)) => Ok(image.cuda.as_ref().filter(|_| gpus).unwrap_or(&image.cpu).clone()),
        (None, None) => Err(PlanError::Binding(format!(
            "there is no image of {}; name one in the chart's values (workers.images), or in the pod's own image",
            component.binary
        ))),
    }
}

/// What a container may do: nothing that it need not.
pub(crate) fn restricted() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), add: None }),
        privileged: Some(false),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        ..SecurityContext::default()
    }
}

fn container(
    context: &Context<'_>,
    pod: &PodOverrides,
    config: String,
    mounts: Vec<VolumeMount>,
) -> Result<Container, PlanError> {
    let (surroundings, component) = (context.surroundings, context.component);
    let image = image(context, pod)?;
    let mut args = component.args.clone();
    args.extend(["--config".to_owned(), config]);
    let probes = probes(component.role);
    Ok(Container {
        name: "worker".into(),
        image: Some(image),
        image_pull_policy: surroundings.images.pull_policy.clone(),
        args: Some(args),
        env: Some(environment(&pod.env)),
        ports: Some(ports(context)?),
        resources: Some(resources(context)),
        volume_mounts: Some(mounts),
        startup_probe: Some(probes.startup),
        liveness_probe: Some(probes.liveness),
        readiness_probe: probes.readiness,
        termination_message_path: Some(TERMINATION.into()),
        termination_message_policy: Some("FallbackToLogsOnError".into()),
        security_context: Some(restricted()),
        ..Container::default()
    })
}

/// The service components that this one calls.
pub(crate) fn services<'a>(context: &Context<'a>) -> impl Iterator<Item = &'a str> + use<'a> {
    let (plan, component) = (context.plan, context.component);
    let service = |name: &&String| plan.component(name).is_some_and(|need| need.role == Role::Service);
    component.needs.iter().filter(service).map(String::as_str)
}

fn read_only(name: &str, path: &str) -> VolumeMount {
    VolumeMount { name: name.to_owned(), mount_path: path.to_owned(), read_only: Some(true), ..VolumeMount::default() }
}

/// A token that only the operator takes, and only for this resource.
fn token(audience: &str) -> Volume {
    let projection = ServiceAccountTokenProjection {
        audience: Some(audience.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: "token".into(),
    };
    Volume {
        name: "token".into(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(0o440),
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(projection),
                ..VolumeProjection::default()
            }]),
        }),
        ..Volume::default()
    }
}

fn ports(context: &Context<'_>) -> Result<Vec<ContainerPort>, PlanError> {
    let port = |name: &String| {
        Ok(ContainerPort {
            name: Some(name.clone()),
            container_port: i32::from(port_number(name)?),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        })
    };
    context.component.ports.iter().map(port).collect()
}

/// The operator's own variables first; a resource adds others and changes none of them.
pub(crate) fn environment(added: &[s3_crds::EnvVar]) -> Vec<EnvVar> {
    let own = [("S3_LOG_FORMAT", "json"), ("HOME", "/tmp"), ("NO_COLOR", "1")];
    let mut all: Vec<EnvVar> = own
        .iter()
        .map(|(name, value)| EnvVar { name: (*name).into(), value: Some((*value).into()), value_from: None })
        .collect();
    for variable in added.iter().filter(|variable| own.iter().all(|(name, _)| *name != variable.name)) {
        let secret = variable.secret_key_ref.as_ref().map(|secret| EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.name.clone(),
                key: secret.key.clone(),
                optional: None,
            }),
            ..EnvVarSource::default()
        });
        all.push(EnvVar { name: variable.name.clone(), value: variable.value.clone(), value_from: secret });
    }
    all
}

/// What the resource asks; GPUs stand in both lists, as Kubernetes wants them.
pub(crate) fn resources(context: &Context<'_>) -> ResourceRequirements {
    let component = context.component;
    let asked = if component.kind == crate::ComponentKind::Gateway {
        context.surroundings.gateway_resources.clone()
    } else {
        context.plan.placements.of(component).resources
    };
    let quantities = |map: &BTreeMap<String, s3_crds::Quantity>| -> BTreeMap<String, Quantity> {
        let mut all: BTreeMap<_, _> = map.iter().map(|(name, q)| (name.clone(), Quantity(q.0.clone()))).collect();
        if component.resources.gpus > 0 {
            all.insert(GPU.into(), Quantity(component.resources.gpus.to_string()));
        }
        all
    };
    let (requests, limits) = (quantities(&asked.requests), quantities(&asked.limits));
    ResourceRequirements {
        requests: (!requests.is_empty()).then_some(requests),
        limits: (!limits.is_empty()).then_some(limits),
        claims: None,
    }
}

struct Probes {
    startup: Probe,
    liveness: Probe,
    readiness: Option<Probe>,
}

/// A service starts until it is ready, however large its index; a job is alive from its first second on.
fn probes(role: Role) -> Probes {
    let probe = |path: &str, period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::String(ADMIN_PORT.to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    match role {
        Role::Service => Probes {
            startup: probe("/readyz", 2, 1800),
            liveness: probe("/healthz", 10, 12),
            readiness: Some(probe("/readyz", 5, 2)),
        },
        // A job is not called by anybody, and arithmetic on all cores may keep it from answering for a while.
        Role::Job => {
            Probes { startup: probe("/healthz", 2, 150), liveness: probe("/healthz", 30, 20), readiness: None }
        }
    }
}
