//! A managed model server: its command line, its pod, and the Deployment and Service before it.

use super::binder::{ClusterBinder, port_number};
use super::{Context, HTTP_PORT_NUMBER, Object, component_selector, pod, service_name};
use crate::{HTTP_PORT, PlanError};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy};
use k8s_openapi::api::core::v1::{
    Container, ContainerPort, EmptyDirVolumeSource, EnvVar, HTTPGetAction, PodTemplateSpec, Probe, Service,
    ServicePort, ServiceSpec, Volume, VolumeMount,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

/// Everything that the server fetches and compiles.
const CACHE: &str = "/cache";
/// Seconds between two looks whether the model is loaded.
const STARTUP_PERIOD: i32 = 5;
/// Such looks before a server counts as hanging: a model of hundreds of gigabytes takes an hour.
const STARTUP_LOOKS: i32 = 720;
/// Seconds that it gets to end the answers that it has begun.
const GRACE: i64 = 120;

/// The Service and the Deployment.
pub(crate) fn objects(
    context: &Context<'_>,
    binder: &ClusterBinder<'_>,
    objects: &mut Vec<Object>,
) -> Result<(), PlanError> {
    let component = context.component;
    let metadata = |name: String| context.metadata(name, context.labels(), context.owners.to_vec());
    objects.push(Object::Service(Box::new(Service {
        metadata: metadata(service_name(&component.name)),
        spec: Some(ServiceSpec {
            type_: Some("ClusterIP".into()),
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT.into()),
                port: i32::from(port_number(HTTP_PORT)?),
                target_port: Some(IntOrString::String(HTTP_PORT.into())),
                protocol: Some("TCP".into()),
                ..ServicePort::default()
            }]),
            selector: Some(component_selector(component)),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })));
    let mut metadata = metadata(component.name.clone());
    metadata.annotations = Some(context.identity_annotations()?);
    objects.push(Object::Deployment(Box::new(Deployment {
        metadata,
        spec: Some(DeploymentSpec {
            replicas: Some(i32::try_from(context.attempt.replicas).unwrap_or(i32::MAX)),
            selector: LabelSelector { match_labels: Some(component_selector(component)), match_expressions: None },
            // GPUs for one server more are seldom there.
            strategy: Some(DeploymentStrategy { type_: Some("Recreate".into()), rolling_update: None }),
            // A model may take its time to load.
            progress_deadline_seconds: Some(STARTUP_PERIOD * STARTUP_LOOKS),
            template: template(context, binder)?,
            revision_history_limit: Some(2),
            ..DeploymentSpec::default()
        }),
        ..Deployment::default()
    })));
    Ok(())
}

fn template(context: &Context<'_>, binder: &ClusterBinder<'_>) -> Result<PodTemplateSpec, PlanError> {
    let component = context.component;
    let overrides = context.plan.placements.of(component).pod;
    let (mut volumes, mut mounts) = binder.mounts(context.attempt.replicas)?;
    let scratch = |name: &str, medium: Option<&str>| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource { medium: medium.map(str::to_owned), size_limit: None }),
        ..Volume::default()
    };
    let mount =
        |name: &str, path: &str| VolumeMount { name: name.into(), mount_path: path.into(), ..VolumeMount::default() };
    // What processes of one server tell each other goes through shared memory.
    volumes.extend([scratch("cache", None), scratch("shm", Some("Memory"))]);
    mounts.extend([mount("cache", CACHE), mount("shm", "/dev/shm")]);

    let config = component.config.bound(&component.name, binder)?;
    let (command, args) = command_line(&component.binary, &config, component.resources.gpus);
    let mut env = pod::environment(&overrides.env);
    env.extend(surroundings(&config));
    let probe = |period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/health".into()),
            port: IntOrString::String(HTTP_PORT.into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    let container = Container {
        name: "worker".into(),
        image: Some(pod::image(context, &overrides)?),
        image_pull_policy: context.surroundings.images.pull_policy.clone(),
        command: Some(command),
        args: Some(args),
        env: Some(env),
        ports: Some(vec![ContainerPort {
            name: Some(HTTP_PORT.into()),
            container_port: i32::from(HTTP_PORT_NUMBER),
            protocol: Some("TCP".into()),
            ..ContainerPort::default()
        }]),
        resources: Some(pod::resources(context)),
        volume_mounts: Some(mounts),
        startup_probe: Some(probe(STARTUP_PERIOD, STARTUP_LOOKS)),
        liveness_probe: Some(probe(10, 12)),
        readiness_probe: Some(probe(5, 2)),
        security_context: Some(pod::restricted()),
        ..Container::default()
    };
    let mut metadata = pod::metadata(context, &overrides);
    metadata.annotations.get_or_insert_default().insert("prometheus.io/port".into(), HTTP_PORT_NUMBER.to_string());
    Ok(PodTemplateSpec {
        metadata: Some(metadata),
        spec: Some(pod::spec(context, &overrides, container, volumes, GRACE)?),
    })
}

/// How an engine is called.
fn command_line(engine: &str, config: &Value, gpus: u32) -> (Vec<String>, Vec<String>) {
    let text = |key: &str| config[key].as_str().map(str::to_owned);
    let model = text("model").unwrap_or_default();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let port = HTTP_PORT_NUMBER.to_string();
    let (command, mut args, parallel) = if engine == "sglang" {
        let args = vec!["--model-path".to_owned(), model, "--enable-metrics".to_owned()];
        (words(&["python3", "-m", "sglang.launch_server"]), args, "--tp-size")
    } else {
        (words(&["vllm", "serve"]), vec![model], "--tensor-parallel-size")
    };
    args.extend(words(&["--host", "0.0.0.0", "--port", &port]));
    for (flag, value) in [("--served-model-name", text("name")), ("--revision", text("revision"))] {
        if let Some(value) = value {
            args.extend([flag.to_owned(), value]);
        }
    }
    if gpus > 1 {
        args.extend([parallel.to_owned(), gpus.to_string()]);
    }
    // Last, so that they win.
    args.extend(config["args"].as_array().into_iter().flatten().filter_map(|word| word.as_str().map(str::to_owned)));
    (command, args)
}

/// Where the engine and its libraries put what they make: nothing else of the pod can be written.
fn surroundings(config: &Value) -> Vec<EnvVar> {
    let fixed = [
        // The user has no entry in the image.
        ("USER", "s3"),
        ("XDG_CACHE_HOME", CACHE),
        ("HF_HOME", "/cache/huggingface"),
        ("VLLM_CACHE_ROOT", "/cache/vllm"),
        ("TORCHINDUCTOR_CACHE_DIR", "/cache/inductor"),
        ("TRITON_CACHE_DIR", "/cache/triton"),
        ("FLASHINFER_WORKSPACE_BASE", CACHE),
    ];
    let offline = ("HF_HUB_OFFLINE", if config["hub"] == true { "0" } else { "1" });
    let token = config["tokenFile"].as_str().map(|file| ("HF_TOKEN_PATH", file));
    let all = fixed.into_iter().chain([offline]).chain(token);
    all.map(|(name, value)| EnvVar { name: name.into(), value: Some(value.into()), value_from: None }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_engine_is_called_as_it_wants() {
        let config = json!({"model": "/volumes/models/q", "name": "q-1", "args": ["--max-model-len", "4096"]});
        let (command, args) = command_line("vllm", &config, 2);
        assert_eq!(command, ["vllm", "serve"]);
        assert_eq!(
            args.join(" "),
            "/volumes/models/q --host 0.0.0.0 --port 8080 --served-model-name q-1 --tensor-parallel-size 2 --max-model-len 4096"
        );
        let config = json!({"model": "org/q", "name": "q-1", "revision": "abc", "hub": true});
        let (command, args) = command_line("sglang", &config, 1);
        assert_eq!(command[2], "sglang.launch_server");
        assert_eq!(
            args.join(" "),
            "--model-path org/q --enable-metrics --host 0.0.0.0 --port 8080 --served-model-name q-1 --revision abc"
        );
    }
}
