//! Everything that must hold of what a plan becomes: names and owners, pods, network policies.

use crate::support::{pod, pod_labels};
use k8s_openapi::api::core::v1::PodSpec;
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use s3_plan::objects::{COMPONENT_LABEL, Object};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Everything that must hold of what a plan becomes.
pub fn check(objects: &[Object]) {
    let lower = |c: u8| c.is_ascii_lowercase();
    let lower_or_digit = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut seen: BTreeMap<(String, String), Value> = BTreeMap::new();
    for object in objects {
        let (version, kind) = object.type_();
        let served = ["v1/ConfigMap", "v1/PersistentVolumeClaim", "v1/Service", "apps/v1/Deployment", "batch/v1/Job"];
        let known = format!("{version}/{kind}");
        assert!(served.contains(&known.as_str()) || known == "networking.k8s.io/v1/NetworkPolicy", "{known}");
        let name = object.name();
        let first = if kind == "Service" { lower } else { lower_or_digit };
        assert!(is_label(name, first), "{kind} {name}");
        let value = object.to_value().unwrap();
        assert_eq!(value, object.to_dynamic().map(|object| serde_json::to_value(object).unwrap()).unwrap());
        if let Some(twin) = seen.insert((kind.to_owned(), name.to_owned()), value.clone()) {
            assert_eq!(twin, value, "{kind} {name} is made twice, and differently");
        }
        let meta = object.metadata();
        for (key, value) in meta.labels.iter().flatten().chain(pod_labels(object).into_iter().flatten()) {
            let short = key.rsplit_once('/').map_or(key.as_str(), |(_, name)| name);
            assert!(!short.is_empty() && short.len() <= 63 && value.len() <= 63, "{key}: {value}");
            let ends = |c: char| c.is_ascii_alphanumeric();
            assert!(value.is_empty() || (value.starts_with(ends) && value.ends_with(ends)), "{key}: {value}");
        }
        assert_eq!(meta.namespace.as_deref(), Some("search"));
        assert!(meta.owner_references.as_ref().is_some_and(|owners| !owners.is_empty()), "{kind} {name} has no owner");
        if let Some(template) = pod(object) {
            check_pod(object, template.spec.as_ref().unwrap(), objects);
        }
        if let Object::NetworkPolicy(policy) = object {
            check_policy(policy, objects);
        }
    }
}

fn check_pod(object: &Object, spec: &PodSpec, objects: &[Object]) {
    let name = object.name();
    let context = spec.security_context.as_ref().unwrap();
    assert_eq!(context.run_as_non_root, Some(true));
    assert_eq!(context.seccomp_profile.as_ref().unwrap().type_, "RuntimeDefault");
    assert_eq!(spec.automount_service_account_token, Some(false));
    assert!(spec.termination_grace_period_seconds.unwrap() >= 60);
    assert_eq!(spec.containers.len(), 1);
    let container = &spec.containers[0];
    let own = container.security_context.as_ref().unwrap();
    assert_eq!((own.allow_privilege_escalation, own.read_only_root_filesystem), (Some(false), Some(true)));
    assert_eq!(own.capabilities.as_ref().unwrap().drop, Some(vec!["ALL".to_owned()]));
    assert!(container.startup_probe.is_some() && container.liveness_probe.is_some());

    let volumes: BTreeSet<&str> = spec.volumes.iter().flatten().map(|volume| volume.name.as_str()).collect();
    assert_eq!(volumes.len(), spec.volumes.iter().flatten().count(), "{name}: two volumes of one name");
    assert!(volumes.iter().all(|volume| is_label(volume, |c| c.is_ascii_alphanumeric())));
    let mounts = container.volume_mounts.as_ref().unwrap();
    let mounted: BTreeSet<&str> = mounts.iter().map(|mount| mount.name.as_str()).collect();
    assert_eq!(volumes, mounted, "{name}: volumes and mounts");
    let paths: BTreeSet<&str> = mounts.iter().map(|mount| mount.mount_path.as_str()).collect();
    assert_eq!(paths.len(), mounts.len(), "{name}: two mounts at one place");

    // Every path of the configuration lies in a volume, what is written in one that can be written.
    let Some(config) = spec.volumes.iter().flatten().find_map(|volume| volume.config_map.as_ref()) else {
        // Software of others reads none of ours.
        assert_eq!(object.metadata().labels.as_ref().unwrap()["app.kubernetes.io/component"], "model-server");
        return;
    };
    let data = objects
        .iter()
        .find_map(|object| match object {
            Object::ConfigMap(map) if object.name() == config.name => map.data.as_ref(),
            _ => None,
        })
        .expect("the configuration of a pod is rendered with it");
    let file = container.args.as_ref().unwrap().last().unwrap();
    let text = &data[file.strip_prefix("/etc/s3/").unwrap()];
    let value: Value = serde_yaml_ng::from_str(text).unwrap();
    let mut texts = Vec::new();
    strings(&value, &mut texts);
    for path in texts.iter().filter(|text| text.starts_with('/') && !text.starts_with("/dev/")) {
        let inside =
            |mount: &str| path.strip_prefix(mount).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        assert!(paths.iter().any(|mount| inside(mount)), "{name}: {path} lies in no volume");
    }
    assert!(texts.iter().all(|text| s3_plan::Symbol::parse(text).is_none()), "{name}: a symbol is left in {text}");
    for pointer in ["/runtime/stateDir", "/runtime/progress", "/output", "/export", "/checkpoint/dir"] {
        let Some(path) = value.pointer(pointer).and_then(Value::as_str) else { continue };
        let mount = mounts.iter().find(|mount| path.starts_with(&mount.mount_path)).unwrap();
        assert_eq!(mount.read_only, None, "{name}: {pointer} is written");
    }
}

fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

fn check_policy(policy: &NetworkPolicy, objects: &[Object]) {
    let name = policy.metadata.name.as_deref().unwrap();
    let spec = policy.spec.as_ref().unwrap();
    let selected = spec.pod_selector.as_ref().unwrap().match_labels.as_ref().unwrap();
    let pods = |labels: &BTreeMap<String, String>| -> Vec<&Object> {
        let has = |own: &BTreeMap<String, String>| labels.iter().all(|(key, value)| own.get(key) == Some(value));
        objects.iter().filter(|object| pod_labels(object).is_some_and(has)).collect()
    };
    assert!(!pods(selected).is_empty(), "{name} selects no pod");
    let local = |peer: &NetworkPolicyPeer| match (&peer.namespace_selector, &peer.pod_selector) {
        (None, Some(selector)) => selector.match_labels.clone(),
        _ => None,
    };
    let mut reached = BTreeSet::new();
    for rule in spec.egress.iter().flatten() {
        for labels in rule.to.iter().flatten().filter_map(local) {
            let found = pods(&labels);
            assert!(!found.is_empty(), "{name}: egress to {labels:?}, which no pod has");
            reached.extend(labels.get(COMPONENT_LABEL).cloned());
        }
        let ports = rule.ports.iter().flatten().map(|port| format!("{:?}", port.port));
        let dns = ports.into_iter().all(|port| port.contains("Int(53)"));
        if rule.to.is_none() && !dns {
            let may = |pod: &&Object| {
                let labels = pod.metadata().labels.as_ref().unwrap();
                ["gateway", "web-search", "fetch", "model-server"]
                    .contains(&labels["app.kubernetes.io/component"].as_str())
            };
            assert!(pods(selected).iter().all(may), "{name} leaves the cluster and neither answers nor fetches");
        }
    }
    // Whoever may be reached by somebody's egress lets that somebody in.
    for server in reached.iter().filter(|server| *server != name) {
        let theirs = objects.iter().find_map(|object| match object {
            Object::NetworkPolicy(policy) if object.name() == server.as_str() => policy.spec.as_ref(),
            _ => None,
        });
        let allowed: Vec<BTreeMap<String, String>> = theirs
            .unwrap()
            .ingress
            .iter()
            .flatten()
            .flat_map(|rule| rule.from.iter().flatten())
            .filter_map(local)
            .collect();
        let callers = pods(selected);
        let lets_in = |labels: &BTreeMap<String, String>| {
            callers
                .iter()
                .all(|caller| labels.iter().all(|(key, value)| pod_labels(caller).unwrap().get(key) == Some(value)))
        };
        assert!(allowed.iter().any(lets_in), "{server} does not let {name} in");
    }
}

fn is_label(text: &str, first: fn(u8) -> bool) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    text.len() <= 63 && text.bytes().all(inner) && text.bytes().next().is_some_and(first) && !text.ends_with('-')
}
