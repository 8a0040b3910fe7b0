//! The quickstart in a cluster, held by a committed snapshot, and what holds for every rendering.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{example, finished, gateway_of, quickstart, uid};
use k8s_openapi::api::core::v1::{PodSpec, PodTemplateSpec};
use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPeer};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use proptest::prelude::*;
use s3_crds::{AccessMode, Kind};
use s3_plan::objects::{
    Attempt, COMPONENT_LABEL, Image, Images, Network, Object, Queueing, Surroundings, identity_of, render, workload,
};
use s3_plan::{ComponentKind, Observed, Plan, PlanError, Resources, Role, fingerprint, plan, work_identity};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

fn surroundings() -> Surroundings {
    let image = |name: &str| (name.to_owned(), Image { cpu: format!("example.org/{name}:1"), cuda: None });
    let map = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    Surroundings {
        namespace: "search".into(),
        images: Images {
            by_binary: ["s3-retriever", "s3-generator-gateway", "s3-trainer", "s3-evaluator", "s3-fetch"]
                .map(image)
                .into(),
            pull_policy: Some("IfNotPresent".into()),
            pull_secrets: Vec::new(),
        },
        operator_address: Some("http://s3-operator.s3-system.svc:9000".into()),
        network: Network {
            enabled: true,
            operator_pods: map("app.kubernetes.io/name", "s3-operator"),
            ..Network::default()
        },
        ..Surroundings::default()
    }
}

fn planned(texts: &[String]) -> Plan {
    let mut resources = Resources::default();
    for text in texts {
        resources.add_manifest("test.yaml", None, text).unwrap();
    }
    plan(&resources).unwrap()
}

fn owners(component: &s3_plan::Component) -> Vec<OwnerReference> {
    let reference = |owner: &String| {
        let (kind, name) = owner.split_once('/').unwrap();
        OwnerReference {
            api_version: s3_crds::API_VERSION.into(),
            kind: kind.into(),
            name: name.into(),
            uid: uid(owner),
            ..OwnerReference::default()
        }
    };
    component.owners.iter().map(reference).collect()
}

fn rendered(plan: &Plan, around: &Surroundings) -> Result<Vec<Object>, PlanError> {
    let observed = finished(plan);
    let mut all = Vec::new();
    for component in &plan.components {
        let attempt = Attempt::of(plan, component, 3);
        all.extend(render(plan, &observed, component, &attempt, around, &owners(component))?);
    }
    Ok(all)
}

/// The quickstart's index, built by several workers on a volume of one kind.
fn built_by(workers: u32, mode: &str) -> String {
    let text = example("quickstart", "retrieverindex.yaml");
    let (head, rest) = text.split_once("        # made by").unwrap();
    let (_, rest) = rest.split_once("          verify: 64\n").unwrap();
    let build = format!("  source:\n    build:\n      workers: {workers}\n");
    let storage = format!("  storage:\n    accessMode: {mode}\n  serving:\n");
    format!("{head}{rest}").replace("  source:\n    build:\n", &build).replace("  serving:\n", &storage)
}

#[test]
fn the_objects_are_the_committed_ones() {
    committed(&quickstart(), "quickstart-objects.yaml");
    committed(&[built_by(2, "ReadWriteMany"), example("recipes", "web-search.yaml")], "index-objects.yaml");
}

fn committed(texts: &[String], golden: &str) {
    let objects = rendered(&planned(texts), &surroundings()).unwrap();
    let yaml = |object: &Object| format!("---\n{}", serde_yaml_ng::to_string(&object.to_value().unwrap()).unwrap());
    let text = objects.iter().map(yaml).collect::<Vec<_>>().concat();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, &text).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    assert!(text == expected, "the objects changed; look at them and run again with UPDATE_GOLDEN=1:\n{text}");
}

fn pod(object: &Object) -> Option<&PodTemplateSpec> {
    match object {
        Object::Job(job) => Some(&job.spec.as_ref()?.template),
        Object::Deployment(deployment) => Some(&deployment.spec.as_ref()?.template),
        _ => None,
    }
}

fn pod_labels(object: &Object) -> Option<&BTreeMap<String, String>> {
    pod(object)?.metadata.as_ref()?.labels.as_ref()
}

fn is_label(text: &str, first: fn(u8) -> bool) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    text.len() <= 63 && text.bytes().all(inner) && text.bytes().next().is_some_and(first) && !text.ends_with('-')
}

/// Everything that must hold of what a plan becomes.
fn check(objects: &[Object]) {
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

fn served_by_endpoint() -> Vec<String> {
    let built_in = gateway_of(&quickstart()[0]);
    let open = "      openAiCompatible:\n        endpoint: https://api.example.org/v1\n        model: m\n        apiKeySecretRef:\n          name: keys.example.org\n          key: token\n";
    quickstart().iter().map(|text| text.replace(&built_in, open)).collect()
}

#[test]
fn every_example_renders() {
    let recipe = |name: &str| vec![example("quickstart-gpu", "retrieverindex.yaml"), example("recipes", name)];
    let gpu =
        ["evalrun.yaml", "retrieverindex.yaml", "s3trainingjob.yaml"].map(|f| example("quickstart-gpu", f)).into();
    let methods = vec![example("quickstart", "retrieverindex.yaml"), example("recipes", "all-methods.yaml")];
    let alone = vec![example("recipes", "search-r1.yaml")];
    let web = vec![example("recipes", "web-search.yaml")];
    let recipes = [recipe("sft-searcher.yaml"), recipe("sft-generator.yaml"), methods, alone, web];
    for texts in [quickstart(), gpu, served_by_endpoint()].into_iter().chain(recipes) {
        check(&rendered(&planned(&texts), &surroundings()).unwrap());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_names_render(
        index in "[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?",
        job in "[a-z0-9]([a-z0-9.-]{0,38}[a-z0-9])?",
        claim in "[a-z0-9]([a-z0-9.-]{0,100}[a-z0-9])?",
        retrievers in 1_u32..4,
    ) {
        let texts: Vec<String> = quickstart()
            .iter()
            .map(|text| {
                text.replace("indexRef:\n      name: quickstart", &format!("indexRef:\n      name: \"{index}\""))
                    .replace("jobRef:\n          name: quickstart", &format!("jobRef:\n          name: \"{job}\""))
                    .replace("    excludeTrainingOf:\n      - name: quickstart", &format!("    excludeTrainingOf:\n      - name: \"{job}\""))
                    .replace("pvc://data/", &format!("pvc://{claim}/"))
                    .replace("kind: RetrieverIndex\nmetadata:\n  name: quickstart", &format!("kind: RetrieverIndex\nmetadata:\n  name: \"{index}\""))
                    .replace("kind: S3TrainingJob\nmetadata:\n  name: quickstart", &format!("kind: S3TrainingJob\nmetadata:\n  name: \"{job}\""))
                    .replace("  serving:\n", &format!("  storage:\n    accessMode: ReadWriteMany\n  serving:\n    replicas: {retrievers}\n"))
            })
            .collect();
        let plan = planned(&texts);
        check(&rendered(&plan, &surroundings()).unwrap());
    }
}

#[test]
fn annotations_say_for_which_work_an_object_was_made() {
    let plan = planned(&quickstart());
    let observed = finished(&plan);
    for object in rendered(&plan, &surroundings()).unwrap() {
        let Object::Job(job) = &object else { continue };
        let component = plan.component(&job.metadata.labels.as_ref().unwrap()[COMPONENT_LABEL]).unwrap();
        assert_eq!(identity_of(&job.metadata), work_identity(&plan, component, &observed).ok());
        let annotations = job.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations["searchagent.dev/fingerprint"], fingerprint(&plan, component, &observed).unwrap());
        assert_eq!(object.name(), format!("{}-a3-r0", component.name));
        let spec = job.spec.as_ref().unwrap();
        assert_eq!(
            (spec.backoff_limit, spec.template.spec.as_ref().unwrap().restart_policy.as_deref()),
            (Some(0), Some("Never"))
        );
    }
}

#[test]
fn a_job_waits_for_what_it_needs() {
    let plan = planned(&quickstart());
    let train = plan.component("quickstart-train").unwrap();
    let refused = render(&plan, &Observed::default(), train, &Attempt { number: 1, replicas: 1 }, &surroundings(), &[]);
    assert_eq!(refused.unwrap_err().to_string(), "quickstart-train waits for the outcome of quickstart-baseline");
}

#[test]
fn each_attempt_reports_with_a_token_for_its_resource_alone() {
    let objects = rendered(&planned(&quickstart()), &surroundings()).unwrap();
    for object in &objects {
        let Some(template) = pod(object) else { continue };
        let projected = template.spec.as_ref().unwrap().volumes.iter().flatten().find_map(|v| v.projected.clone());
        let Object::Job(job) = object else {
            assert!(projected.is_none(), "services report by their probes");
            continue;
        };
        let labels = job.metadata.labels.as_ref().unwrap();
        let expected = uid(&format!("{}/{}", labels["searchagent.dev/kind"], labels["searchagent.dev/name"]));
        let sources = projected.unwrap().sources.unwrap();
        let token = sources[0].service_account_token.as_ref().unwrap();
        assert_eq!(token.audience.as_deref(), Some(expected.as_str()));
        let map = objects.iter().find_map(|object| match object {
            Object::ConfigMap(map) if object.name() == format!("{}-a3", labels[COMPONENT_LABEL]) => map.data.clone(),
            _ => None,
        });
        let config: Value = serde_yaml_ng::from_str(&map.unwrap()["r0.yaml"]).unwrap();
        assert_eq!(config["runtime"]["operator"]["uid"], json!(expected));
        assert_eq!(config["runtime"]["attempt"], json!({"epoch": 3, "rank": 0, "replicas": 1}));
        assert_eq!(config["runtime"]["terminationMessage"], json!("/dev/termination-log"));
    }
    let quiet = Surroundings { operator_address: None, ..surroundings() };
    let text = serde_json::to_string(
        &rendered(&planned(&quickstart()), &quiet).unwrap().iter().map(|o| o.to_value().unwrap()).collect::<Vec<_>>(),
    )
    .unwrap();
    assert!(!text.contains("serviceAccountToken") && !text.contains("tokenFile"));
}

#[test]
fn replicas_of_an_attempt_find_each_other() {
    let plan = planned(&quickstart());
    let observed = finished(&plan);
    let train = plan.component("quickstart-train").unwrap();
    let many = surroundings();
    let texts: Vec<String> = quickstart()
        .iter()
        .map(|text| {
            let storage = "  parallelism: {replicas: 3, gpusPerReplica: 2, tokenSecretRef: {name: team, key: word}}\n  \
                           checkpoint:\n    storage:\n      accessMode: ReadWriteMany\n";
            text.replace("  checkpoint:\n", storage)
        })
        .collect();
    let shared = planned(&texts);
    let attempt = Attempt::of(&shared, shared.component("quickstart-train").unwrap(), 2);
    assert_eq!(attempt.replicas, 3);
    let finished = finished(&shared);
    // another number of replicas is the same work, and goes on from its checkpoints
    let one = planned(&texts.iter().map(|text| text.replace("replicas: 3", "replicas: 1")).collect::<Vec<_>>());
    let identity = |plan: &Plan| work_identity(plan, plan.component("quickstart-train").unwrap(), &finished).unwrap();
    assert_eq!(identity(&one), identity(&shared));
    let objects =
        render(&shared, &finished, shared.component("quickstart-train").unwrap(), &attempt, &many, &owners(train))
            .unwrap();
    let kinds: Vec<String> = objects.iter().map(|object| format!("{} {}", object.kind(), object.name())).collect();
    assert_eq!(
        kinds,
        [
            "PersistentVolumeClaim quickstart-job-data",
            "NetworkPolicy quickstart-train",
            "ConfigMap quickstart-train-a2",
            "Service quickstart-train-a2",
            "Job quickstart-train-a2-r0",
            "Job quickstart-train-a2-r1",
            "Job quickstart-train-a2-r2",
        ]
    );
    let spec = pod(&objects[5]).unwrap().spec.as_ref().unwrap();
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("r1"), Some("quickstart-train-a2")));
    let Object::ConfigMap(map) = &objects[2] else { panic!("{}", objects[2].kind()) };
    let data = map.data.as_ref().unwrap();
    let config = |rank: usize| -> Value { serde_yaml_ng::from_str(&data[&format!("r{rank}.yaml")]).unwrap() };
    let second = config(1)["runtime"].clone();
    let members = [0, 1, 2].map(|rank| format!("r{rank}.quickstart-train-a2.search.svc:9400"));
    assert_eq!(second["team"]["members"], json!(members));
    assert_eq!((&second["team"]["rank"], &second["team"]["local"]), (&json!(1), &json!(2)));
    assert_eq!(second["team"]["tokenFile"], "/secrets/team/word");
    assert!(second["result"].is_null() && config(0)["runtime"]["result"].is_string(), "files are the first one's");
    let refused = render(&plan, &observed, train, &attempt, &many, &owners(train)).unwrap_err();
    assert!(matches!(refused, PlanError::VolumeShape { .. }), "{refused}");
}

#[test]
fn workers_of_a_build_share_a_volume_and_are_one_work() {
    let with = |workers: u32, mode: &str| planned(&[built_by(workers, mode)]);
    let (alone, together) = (with(1, "ReadWriteMany"), with(3, "ReadWriteMany"));
    let name = "quickstart-index";
    let build = together.component(name).unwrap();
    let observed = Observed::default();
    assert_eq!(
        fingerprint(&alone, alone.component(name).unwrap(), &observed),
        fingerprint(&together, build, &observed),
        "another number of workers builds nothing anew"
    );
    let attempt = Attempt::of(&together, build, 2);
    let objects = render(&together, &observed, build, &attempt, &surroundings(), &owners(build)).unwrap();
    check(&objects);
    let kinds: Vec<String> = objects.iter().map(|object| format!("{} {}", object.kind(), object.name())).collect();
    assert_eq!(
        kinds,
        [
            "PersistentVolumeClaim quickstart-index-data",
            "NetworkPolicy quickstart-index",
            "ConfigMap quickstart-index-a2",
            "Service quickstart-index-a2",
            "Job quickstart-index-a2-r0",
            "Job quickstart-index-a2-r1",
            "Job quickstart-index-a2-r2",
        ]
    );
    let Object::ConfigMap(map) = &objects[2] else { panic!("{}", objects[2].kind()) };
    let config = |rank: usize| -> Value {
        serde_yaml_ng::from_str(&map.data.as_ref().unwrap()[&format!("r{rank}.yaml")]).unwrap()
    };
    let members = [0, 1, 2].map(|rank| format!("r{rank}.quickstart-index-a2.search.svc:9400"));
    for rank in 0..3 {
        let runtime = &config(rank)["runtime"];
        assert_eq!((&runtime["team"]["rank"], &runtime["team"]["members"]), (&json!(rank), &json!(members)));
        assert_eq!(runtime["stateDir"], config(0)["runtime"]["stateDir"], "they meet in one folder");
        assert_eq!(runtime["result"].is_string(), rank == 0);
    }
    let once = with(3, "ReadWriteOnce");
    let refused = render(&once, &observed, once.component(name).unwrap(), &attempt, &surroundings(), &owners(build));
    assert!(matches!(refused, Err(PlanError::VolumeShape { .. })), "{refused:?}");
}

#[test]
fn shapes_that_a_volume_cannot_serve_are_refused() {
    let with = |storage: &str, replicas: u32| -> Vec<String> {
        let storage = if storage.is_empty() { String::new() } else { format!("  storage:\n{storage}") };
        quickstart()
            .iter()
            .map(|text| text.replace("  serving:\n", &format!("{storage}  serving:\n    replicas: {replicas}\n")))
            .collect()
    };
    let shape = |texts: &[String], around: &Surroundings| match rendered(&planned(texts), around) {
        Ok(_) => None,
        Err(PlanError::VolumeShape { resource, field, .. }) => Some(format!("{resource} {field}")),
        Err(other) => panic!("{other}"),
    };
    let around = surroundings();
    let index = |field: &str| Some(format!("RetrieverIndex/quickstart {field}"));
    assert_eq!(shape(&with("", 1), &around), None);
    assert_eq!(shape(&with("", 2), &around), index("spec.storage.accessMode"));
    assert_eq!(shape(&with("    accessMode: ReadWriteMany\n", 2), &around), None);
    assert_eq!(shape(&with("    accessMode: ReadOnlyMany\n", 1), &around), index("spec.storage.accessMode"));
    assert_eq!(shape(&with("    mode: LocalCopy\n", 1), &around), index("spec.storage.mode"));
    // Of an existing claim only what is known counts.
    let mine = with("    claimName: mine\n", 2);
    assert_eq!(shape(&mine, &around), None);
    let known = |modes: &[AccessMode], claim: &str| Surroundings {
        claims: BTreeMap::from([(claim.to_owned(), modes.iter().copied().collect())]),
        ..surroundings()
    };
    assert_eq!(shape(&mine, &known(&[AccessMode::ReadWriteOnce], "mine")), index("spec.storage.accessMode"));
    assert_eq!(shape(&mine, &known(&[AccessMode::ReadOnlyMany], "mine")), index("spec.storage.claimName"));
    assert_eq!(shape(&mine, &known(&[AccessMode::ReadWriteMany], "mine")), None);
    let many = with("    accessMode: ReadWriteMany\n", 2);
    assert!(shape(&many, &known(&[AccessMode::ReadWriteOnce], "data")).unwrap().ends_with("pvc://data"));
    assert_eq!(shape(&many, &known(&[AccessMode::ReadOnlyMany], "data")), None);
}

#[test]
fn files_of_one_machine_are_refused() {
    let texts: Vec<String> = quickstart()
        .iter()
        .map(|text| text.replace("uri: pvc://data/corpus/wiki-vital.jsonl", "uri: file:///data/wiki-vital.jsonl"))
        .collect();
    let refused = rendered(&planned(&texts), &surroundings()).unwrap_err().to_string();
    assert!(refused.contains("source.build.corpus.uri") && refused.contains("pvc://CLAIM/PATH"), "{refused}");
}

#[test]
fn what_a_resource_adds_to_its_pods_arrives_and_overrides_nothing() {
    let pod_text = "  pod:\n    labels: {team: a, searchagent.dev/component: other}\n    annotations: {note: b, prometheus.io/port: \"1\"}\n    nodeSelector: {disk: fast}\n    tolerations:\n      - key: gpu\n        operator: Exists\n    affinity:\n      nodeAffinity:\n        requiredDuringSchedulingIgnoredDuringExecution:\n          nodeSelectorTerms:\n            - matchExpressions:\n                - {key: zone, operator: In, values: [a]}\n    serviceAccountName: mine\n    priorityClassName: high\n    runtimeClassName: nvidia\n    image: example.org/own:2\n    imagePullSecrets:\n      - name: pull\n    env:\n      - {name: HOME, value: /elsewhere}\n      - {name: RUST_LOG, value: debug}\n      - name: KEY\n        secretKeyRef: {name: keys, key: k}\n  resources:\n    requests: {cpu: \"2\", memory: 4Gi}\n    limits: {memory: 8Gi}\n  parallelism:\n    gpusPerReplica: 2\n  steps: 3\n";
    let texts: Vec<String> = quickstart().iter().map(|text| text.replace("  steps: 3\n", pod_text)).collect();
    let objects = rendered(&planned(&texts), &surroundings()).unwrap();
    check(&objects);
    let job = objects.iter().find(|object| object.name() == "quickstart-train-a3-r0").unwrap();
    let template = serde_json::to_value(pod(job).unwrap()).unwrap();
    let at = |pointer: &str| template.pointer(pointer).cloned().unwrap_or_default();
    assert_eq!(at("/metadata/labels/team"), "a");
    assert_eq!(at("/metadata/labels/searchagent.dev~1component"), "quickstart-train");
    assert_eq!(
        (at("/metadata/annotations/note"), at("/metadata/annotations/prometheus.io~1port")),
        (json!("b"), json!("9464"))
    );
    for (field, expected) in [
        ("nodeSelector", json!({"disk": "fast"})),
        ("tolerations", json!([{"key": "gpu", "operator": "Exists"}])),
        ("serviceAccountName", json!("mine")),
        ("priorityClassName", json!("high")),
        ("runtimeClassName", json!("nvidia")),
        ("imagePullSecrets", json!([{"name": "pull"}])),
    ] {
        assert_eq!(at(&format!("/spec/{field}")), expected, "{field}");
    }
    assert_eq!(
        at(
            "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0/matchExpressions/0/key"
        ),
        "zone"
    );
    assert_eq!(at("/spec/containers/0/image"), "example.org/own:2");
    let env = at("/spec/containers/0/env");
    let value = |name: &str| env.as_array().unwrap().iter().find(|e| e["name"] == name).cloned().unwrap_or_default();
    assert_eq!(value("HOME")["value"], "/tmp");
    assert_eq!(value("RUST_LOG")["value"], "debug");
    assert_eq!(value("KEY")["valueFrom"]["secretKeyRef"]["name"], "keys");
    let resources = at("/spec/containers/0/resources");
    assert_eq!(resources["limits"], json!({"memory": "8Gi", "nvidia.com/gpu": "2"}));
    assert_eq!(resources["requests"], json!({"cpu": "2", "memory": "4Gi", "nvidia.com/gpu": "2"}));
}

#[test]
fn a_queue_is_entered_by_label_or_by_workload_never_by_both() {
    let with = |mode: &str| -> Vec<String> {
        quickstart()
            .iter()
            .map(|text| text.replace("  steps: 3\n", &format!("  steps: 3\n  queue: {{name: gpus, mode: {mode}}}\n")))
            .collect()
    };
    let label = |plan: &Plan| -> Vec<String> {
        rendered(plan, &surroundings())
            .unwrap()
            .iter()
            .filter(|o| o.metadata().labels.as_ref().unwrap().contains_key("kueue.x-k8s.io/queue-name"))
            .map(|o| o.name().to_owned())
            .collect()
    };
    let of = |plan: &Plan| {
        let queueing = Queueing { version: "v1beta2", priority: Some(7) };
        workload(plan, ("S3TrainingJob", "quickstart"), &surroundings(), &[], &queueing).unwrap()
    };
    let (labels, whole) = (planned(&with("Labels")), planned(&with("Workload")));
    assert_eq!(label(&labels), ["quickstart-baseline-a3-r0", "quickstart-train-a3-r0"]);
    assert_eq!(of(&labels), None);
    assert_eq!(label(&whole), [""; 0]);
    let workload = of(&whole).unwrap().to_value().unwrap();
    assert_eq!(workload["spec"]["queueName"], "gpus");
    assert_eq!(workload["spec"]["podSets"][0]["count"], 1);
    assert_eq!((&workload["apiVersion"], &workload["spec"]["priority"]), (&json!("kueue.x-k8s.io/v1beta2"), &json!(7)));
    assert_eq!(workload["metadata"]["name"], "quickstart-job-queue");
    // An index on GPUs is admitted with those that search it.
    let on_gpus: Vec<String> = with("Workload")
        .iter()
        .map(|text| text.replace("  serving:\n", "  serving:\n    resources: {requests: {nvidia.com/gpu: '1'}}\n"))
        .collect();
    assert!(on_gpus.iter().any(|text| text.contains("nvidia.com/gpu")), "{on_gpus:?}");
    let sets = of(&planned(&on_gpus)).unwrap().to_value().unwrap()["spec"]["podSets"].clone();
    assert_eq!(sets[1]["name"], "quickstart-retriever", "{sets}");
}

/// The quickstart with a model server of its own instead of the built-in generator.
fn served_by_managed(more: &str) -> Vec<String> {
    let built_in = gateway_of(&quickstart()[0]);
    let managed = format!(
        "      managed:\n        model: {{uri: 'hf://org/Model-7B', revision: abc, tokenSecretRef: {{name: hub, key: token}}}}\n        replicas: 2\n        resources: {{limits: {{memory: 64Gi}}, requests: {{cpu: '8', nvidia.com/gpu: '4'}}}}\n        args: [--max-model-len, '8192']\n{more}"
    );
    quickstart().iter().map(|text| text.replace(&built_in, &managed)).collect()
}

#[test]
fn a_managed_model_server_stands_behind_its_gateway() {
    let mut around = surroundings();
    around.images.by_binary.insert("vllm".into(), Image { cpu: "example.org/vllm:1".into(), cuda: None });
    let plan = planned(&served_by_managed(""));
    let servers: Vec<_> = plan.components.iter().filter(|c| c.kind == ComponentKind::ModelServer).collect();
    assert_eq!(servers.len(), 1, "job and run share it");
    let server = servers[0];
    assert_eq!(server.owners.iter().collect::<Vec<_>>(), ["EvalRun/quickstart", "S3TrainingJob/quickstart"]);
    let gateway = plan.components.iter().find(|c| c.kind == ComponentKind::Gateway).unwrap();
    assert!(gateway.needs.contains(&server.name));
    let objects = rendered(&plan, &around).unwrap();
    check(&objects);
    let deployment = objects.iter().find(|o| o.kind() == "Deployment" && o.name() == server.name).unwrap();
    let value = deployment.to_value().unwrap();
    let pod = &value["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    assert_eq!((&value["spec"]["replicas"], &container["image"]), (&json!(2), &json!("example.org/vllm:1")));
    assert_eq!(container["command"], json!(["vllm", "serve"]));
    let args: Vec<&str> = container["args"].as_array().unwrap().iter().map(|arg| arg.as_str().unwrap()).collect();
    let name = args[args.iter().position(|arg| *arg == "--served-model-name").unwrap() + 1];
    assert!(name.starts_with("Model-7B-"), "{name}");
    assert_eq!(args[0], "org/Model-7B");
    assert!(args.join(" ").ends_with("--revision abc --tensor-parallel-size 4 --max-model-len 8192"), "{args:?}");
    assert_eq!(container["resources"]["limits"], json!({"memory": "64Gi", "nvidia.com/gpu": "4"}));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(container[probe]["httpGet"]["path"], "/health");
    }
    let token =
        container["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "HF_TOKEN_PATH").unwrap();
    assert_eq!(token["value"], "/secrets/hub/token");
    // The gateway asks for the very model that is served, where it is served.
    let config = objects.iter().find(|o| o.kind() == "ConfigMap" && o.name().starts_with(&gateway.name)).unwrap();
    let config = config.to_value().unwrap()["data"].to_string();
    assert!(
        config.contains(&format!("http://{}.search.svc:8080/v1", server.name)) && config.contains(name),
        "{config}"
    );
    // What is admitted together is asked for together.
    let texts: Vec<String> = served_by_managed("")
        .iter()
        .map(|text| text.replace("  steps: 3\n", "  steps: 3\n  queue: {name: gpus}\n"))
        .collect();
    let queueing = Queueing { version: "v1beta2", priority: None };
    let whole = workload(&planned(&texts), ("S3TrainingJob", "quickstart"), &around, &[], &queueing).unwrap().unwrap();
    let sets = whole.to_value().unwrap()["spec"]["podSets"].clone();
    assert_eq!((&sets[0]["name"], &sets[1]["name"]), (&json!("worker"), &json!(server.name)));
    assert_eq!(sets[1]["count"], 2);
    let requests = &sets[1]["template"]["spec"]["containers"][0]["resources"]["requests"];
    assert_eq!(requests["nvidia.com/gpu"], "4");
}

#[test]
fn a_managed_model_server_says_what_it_cannot_do() {
    let without = rendered(&planned(&served_by_managed("")), &surroundings()).unwrap_err().to_string();
    assert!(without.contains("no image of vllm") && without.contains("workers.images"), "{without}");
    let own = served_by_managed("        engine: Sglang\n        pod: {image: 'example.org/sglang:2'}\n");
    let objects = rendered(&planned(&own), &surroundings()).unwrap();
    check(&objects);
    let text = serde_json::to_string(&objects.iter().map(|o| o.to_value().unwrap()).collect::<Vec<_>>()).unwrap();
    assert!(text.contains("example.org/sglang:2") && text.contains("sglang.launch_server"));
    for (uri, said) in
        [("s3://bucket/model", "reads hf://OWNER/NAME"), ("pvc://data/m', sha256: 'HASH", "pin an hf://")]
    {
        let hash = "0".repeat(64);
        let uri = uri.replace("HASH", &hash);
        let texts = served_by_managed("").into_iter().map(|text| {
            let text = text.replace("hf://org/Model-7B", &uri);
            text.replace(", revision: abc, tokenSecretRef: {name: hub, key: token}", "")
        });
        let mut resources = Resources::default();
        for text in texts.collect::<Vec<_>>() {
            resources.add_manifest("test.yaml", None, &text).unwrap();
        }
        let error = plan(&resources).unwrap_err().to_string();
        assert!(error.contains("provider.managed.model") && error.contains(said), "{error}");
    }
}

#[test]
fn a_gateway_alone_leaves_the_cluster_and_reads_its_key_from_a_file() {
    let objects = rendered(&planned(&served_by_endpoint()), &surroundings()).unwrap();
    check(&objects);
    let gateway = objects.iter().find(|o| o.kind() == "Deployment" && o.name().starts_with("gateway-")).unwrap();
    let template = serde_json::to_value(pod(gateway).unwrap()).unwrap().to_string();
    assert!(template.contains("/secrets/keys.example.org") && !template.contains("secretKeyRef"), "{template}");
    let Object::Deployment(deployment) = gateway else { unreachable!() };
    assert_eq!(deployment.spec.as_ref().unwrap().strategy.as_ref().unwrap().type_.as_deref(), Some("Recreate"));
    let open = objects
        .iter()
        .filter_map(|object| match object {
            Object::NetworkPolicy(policy) => Some((object.name(), policy.spec.as_ref()?.egress.as_ref()?)),
            _ => None,
        })
        .filter(|(_, rules)| rules.iter().filter(|rule| rule.to.is_none()).count() > 1)
        .map(|(name, _)| name)
        .collect::<Vec<_>>();
    assert_eq!(open, [gateway.name()], "name servers aside, one may go anywhere");
}

/// Everything on a hub or in a bucket.
#[test]
fn a_web_search_is_served_without_a_build_and_leaves_the_cluster_alone() {
    let web = example("recipes", "web-search.yaml");
    let plan = planned(std::slice::from_ref(&web));
    let [component] = plan.components.as_slice() else { panic!("{:?}", plan.components.len()) };
    assert_eq!((component.name.as_str(), component.kind), ("web-retriever", ComponentKind::WebSearch));
    assert_eq!(component.secrets, BTreeSet::from(["serp/key".to_owned()]));
    let around = surroundings();
    let objects = rendered(&plan, &around).unwrap();
    check(&objects);
    let kinds: Vec<&str> = objects.iter().map(Object::kind).collect();
    assert_eq!(kinds, ["PersistentVolumeClaim", "NetworkPolicy", "ConfigMap", "Service", "Deployment"]);
    assert_eq!(objects[0].name(), "web-index-data");
    let value = |at: usize| objects[at].to_value().unwrap();
    let out = value(1)["spec"]["egress"].to_string();
    assert!(out.contains(r#"{"ports":[{"port":443,"protocol":"TCP"}]}"#), "{out}");
    let config = value(2)["data"]["config.yaml"].as_str().unwrap().to_owned();
    assert!(config.contains("apiKeyFile: /secrets/serp/key") && config.contains("requestsPerMinute: 300"), "{config}");
    assert!(config.contains("results: /work/web-index-data/web-retriever/results.redb"), "{config}");
    let deployment = &value(4)["spec"];
    assert_eq!(deployment["strategy"]["type"], "Recreate", "its results have one writer");
    assert_eq!(deployment["template"]["spec"]["containers"][0]["args"][0], "web");
    // whoever searches is planned as with any index, but what reads passages beforehand is refused
    let job = |text: String| text.replace("indexRef:\n      name: quickstart", "indexRef:\n      name: web");
    let [run, _, training] = quickstart().try_into().unwrap();
    let plan_of = |texts: &[String]| {
        let mut resources = Resources::default();
        for text in texts {
            resources.add_manifest("test.yaml", None, text).unwrap();
        }
        s3_plan::plan(&resources)
    };
    let plain = job(training.replace("dropUnanswerable: true", "dropUnanswerable: false"));
    let with = plan_of(&[web.clone(), plain]).unwrap();
    assert!(with.component("quickstart-train").unwrap().needs.contains("web-retriever"));
    check(&rendered(&with, &around).unwrap());
    let eligible = job(run).replace("eligible: false", "eligible: true");
    assert!(eligible.contains("eligible: true"));
    let refused = plan_of(&[web, job(training), eligible]).unwrap_err().to_string();
    assert!(refused.contains("source.webSearch") && refused.contains("built or imported"), "{refused}");
}

#[test]
fn certificates_reach_the_servers_and_whoever_searches_and_change_no_work() {
    let tls = "  serving:\n    tls:\n      secretRef: {name: serving-cert}\n      clientSecretRef: {name: caller-cert}\n      serverName: quickstart\n";
    let texts: Vec<String> = quickstart().iter().map(|text| text.replace("  serving:\n", tls)).collect();
    let (plain, secured) = (planned(&quickstart()), planned(&texts));
    let done = finished(&plain);
    for component in &plain.components {
        let same = secured.component(&component.name).unwrap();
        assert_eq!(fingerprint(&plain, component, &done), fingerprint(&secured, same, &done), "{}", component.name);
    }
    let objects = rendered(&secured, &surroundings()).unwrap();
    check(&objects);
    let mounted = |name: &str, secret: &str| {
        let object = objects.iter().find(|object| pod(object).is_some() && object.name().starts_with(name)).unwrap();
        object.to_value().unwrap()["spec"]["template"]["spec"]["volumes"].to_string().contains(secret)
    };
    assert!(mounted("quickstart-retriever", "serving-cert") && !mounted("quickstart-retriever", "caller-cert"));
    for caller in ["quickstart-baseline", "quickstart-train", "quickstart-eval"] {
        assert!(mounted(caller, "caller-cert") && !mounted(caller, "serving-cert"), "{caller}");
    }
    assert!(!mounted("quickstart-index", "cert"));
    let config = &secured.component("quickstart-train").unwrap().config.value["retriever"]["tls"];
    assert_eq!((&config["ca"], &config["serverName"]), (&json!("secret://caller-cert/ca.crt"), &json!("quickstart")));
}

fn remote() -> Vec<String> {
    quickstart()
        .iter()
        .map(|text| {
            let text = text
                .replace("pvc://data/models/smollm2-135m-instruct/model.gguf", "hf://owner/small/model.gguf")
                .replace("pvc://data/models/e5-small", "hf://owner/e5")
                .replace("pvc://data/", "s3://bucket/")
                .replace("pvc://assets/", "gs://other/deep/");
            let secret = |indent: &str| format!("{indent}tokenSecretRef: {{name: hub, key: token}}\n");
            text.replace(
                "            uri: hf://owner/e5\n",
                &format!("            uri: hf://owner/e5\n            revision: v2\n{}", secret("            ")),
            )
        })
        .collect()
}

#[test]
fn what_lies_on_hubs_and_in_buckets_is_fetched_first() {
    let plan = planned(&remote());
    let fetchers: Vec<(&str, &str)> = plan
        .components
        .iter()
        .filter(|c| matches!(c.kind, ComponentKind::Fetch | ComponentKind::GatewayFetch))
        .map(|c| (c.name.as_str(), c.owners.iter().next().unwrap().as_str()))
        .collect();
    assert_eq!(
        fetchers,
        [
            ("gateway-built-in-fetch", "EvalRun/quickstart"),
            ("quickstart-index-fetch", "RetrieverIndex/quickstart"),
            ("quickstart-job-fetch", "S3TrainingJob/quickstart"),
            ("quickstart-run-fetch", "EvalRun/quickstart"),
        ]
    );
    for component in &plan.components {
        assert!(component.inputs.is_empty(), "{} reads what nobody fetches", component.name);
        assert!(!component.config.value.to_string().contains("fetch://"));
    }
    let index = plan.component("quickstart-index").unwrap();
    assert_eq!(index.needs.iter().collect::<Vec<_>>(), ["quickstart-index-fetch"]);
    let encoder = index.config.value["dense"]["encoder"].as_str().unwrap();
    let key = encoder.strip_prefix("work://quickstart-index-fetch/files/").unwrap();
    let fetch = plan.component("quickstart-index-fetch").unwrap();
    let sources = fetch.config.value["sources"].as_array().unwrap();
    let source = sources.iter().find(|source| source["key"] == key).unwrap();
    assert_eq!(source["location"], json!({"kind": "HuggingFace", "repository": "owner/e5", "revision": "v2"}));
    assert_eq!(source["tokenFile"], "secret://hub/token");
    assert_eq!(source["files"].as_array().unwrap().len(), 3);
    let weights = source["files"].as_array().unwrap().iter().find(|file| file["name"] == "model.safetensors").unwrap();
    assert!(weights["sha256"].as_str().unwrap().starts_with("33e8a825"));
    assert_eq!(fetch.secrets.iter().collect::<Vec<_>>(), ["hub/token"]);
    let corpus = index.config.value["corpus"]["path"].as_str().unwrap();
    assert!(corpus.ends_with("/wiki-vital.jsonl"), "{corpus}");
    check(&rendered(&plan, &surroundings()).unwrap());
}

#[test]
fn a_wrong_digest_harms_nobody_else() {
    let wrong = |text: &String| {
        if text.contains("kind: EvalRun") { text.replace("b179c9523d0e", "000000000000") } else { text.clone() }
    };
    let plan = planned(&remote().iter().map(wrong).collect::<Vec<_>>());
    let fetch = plan.component("gateway-built-in-fetch").unwrap();
    let sources = fetch.config.value["sources"].as_array().unwrap();
    let digests: BTreeSet<&str> =
        sources.iter().filter_map(|source| source["files"][0]["sha256"].as_str()).map(|sha| &sha[..12]).collect();
    assert_eq!(digests, BTreeSet::from(["000000000000", "b179c9523d0e"]), "each user's own");
    let other = plan.component("quickstart-job-fetch").unwrap().config.value.to_string();
    assert!(!other.contains("000000000000"));
}

fn value_of(text: &str) -> (Kind, Value) {
    let value: Value = serde_yaml_ng::from_str(text).unwrap();
    (Kind::from_name(value["kind"].as_str().unwrap()).unwrap(), value)
}

#[test]
fn a_cluster_plans_what_a_laptop_plans_and_a_bad_object_harms_no_other() {
    let mut values: Vec<(Kind, Value)> = quickstart().iter().map(|text| value_of(text)).collect();
    for (_, value) in &mut values {
        value["metadata"]["uid"] = json!("1");
        value["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
        value["status"] = json!({"observedGeneration": 1});
    }
    let (resources, refused) = Resources::from_cluster(values.clone());
    assert_eq!(refused, BTreeMap::new());
    assert_eq!(plan(&resources).unwrap().components, planned(&quickstart()).components);

    for (name, change) in [("unsupported", json!({"stop": {"patience": 3}})), ("unknown", json!({"stepz": 3}))] {
        let mut bad = values.iter().find(|(kind, _)| *kind == Kind::S3TrainingJob).unwrap().clone();
        bad.1["metadata"]["name"] = json!(name);
        bad.1["spec"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        values.push(bad);
    }
    let (resources, refused) = Resources::from_cluster(values);
    assert_eq!(refused.keys().collect::<Vec<_>>(), ["S3TrainingJob/unknown", "S3TrainingJob/unsupported"]);
    assert!(refused["S3TrainingJob/unknown"][0].to_string().contains("stepz"));
    assert_eq!(plan(&resources).unwrap().components, planned(&quickstart()).components);
}

#[test]
fn a_job_stays_what_it_is_while_others_come_and_share_its_gateway() {
    let mut values: Vec<(Kind, Value)> = quickstart().iter().map(|text| value_of(text)).collect();
    let mut other = values.iter().find(|(kind, _)| *kind == Kind::S3TrainingJob).unwrap().clone();
    other.1["metadata"]["name"] = json!("other");
    other.1["spec"]["generator"]["provider"]["builtIn"]["model"]["uri"] = json!("pvc://data/models/another.gguf");
    let identity = |values: &[(Kind, Value)], whole: bool| {
        let (resources, _) = Resources::from_cluster(values.to_vec());
        let part = if whole { resources } else { resources.around(Kind::S3TrainingJob, "quickstart") };
        let plan = plan(&part).unwrap();
        let train = plan.component("quickstart-train").unwrap();
        let gateway = plan.components.iter().find(|c| c.kind == ComponentKind::Gateway).unwrap();
        let providers = gateway.config.value["providers"].as_array().unwrap().len();
        (fingerprint(&plan, train, &finished(&plan)).unwrap(), providers)
    };
    let (alone, one) = identity(&values, true);
    let (part, _) = identity(&values, false);
    values.push(other);
    let (together, two) = identity(&values, true);
    assert_eq!((one, two), (1, 2), "the gateway serves both models");
    assert_eq!((&alone, &alone), (&part, &together));
}

#[test]
fn equal_needs_of_a_gateway_are_one_need_and_a_budget_is_another() {
    let values: Vec<(Kind, Value)> = quickstart().iter().map(|text| value_of(text)).collect();
    let needs = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut values = values.clone();
        values.retain(|(kind, _)| *kind != Kind::EvalRun);
        let (_, job) = values.iter_mut().find(|(kind, _)| *kind == Kind::S3TrainingJob).unwrap();
        job["metadata"]["name"] = json!(name);
        change(job);
        let plan = plan(&Resources::from_cluster(values).0).unwrap();
        s3_plan::shared_needs(&plan, &format!("S3TrainingJob/{name}")).unwrap()
    };
    let first = needs("first", &|_| {});
    assert_eq!(first.keys().collect::<Vec<_>>(), ["gateway-built-in"]);
    assert_eq!(first, needs("second", &|job| job["spec"]["steps"] = json!(7)), "whoever asks, and for what work");
    let model = |job: &mut Value| {
        job["spec"]["generator"]["provider"]["builtIn"]["model"]["uri"] = json!("pvc://data/models/another.gguf");
    };
    assert_ne!(first, needs("third", &model));
    let budget = |job: &mut Value| job["spec"]["generator"]["budget"] = json!({"calls": 100});
    assert_ne!(needs("first", &budget), needs("second", &budget), "each is charged by itself");
}

#[test]
fn the_part_around_a_resource_plans_it_as_the_whole_does() {
    let (resources, _) = Resources::from_cluster(quickstart().iter().map(|text| value_of(text)));
    let whole = plan(&resources).unwrap();
    for (kind, components) in [
        (Kind::RetrieverIndex, vec!["quickstart-index"]),
        (Kind::S3TrainingJob, vec!["quickstart-baseline", "quickstart-train"]),
        (Kind::EvalRun, vec!["quickstart-eval"]),
    ] {
        let part = plan(&resources.around(kind, "quickstart")).unwrap();
        for name in components {
            assert_eq!(part.component(name), whole.component(name));
            let component = whole.component(name).unwrap();
            assert_eq!(component.role, Role::Job);
            assert_eq!(
                fingerprint(&part, component, &finished(&part)),
                fingerprint(&whole, component, &finished(&whole)),
                "{name}"
            );
        }
        assert!(part.components.len() <= whole.components.len());
    }
}

#[test]
fn servers_follow_the_load_where_the_cluster_can_do_that() {
    let texts = |mode: &str| -> Vec<String> {
        let scaling =
            "  serving:\n    autoscaling:\n      minReplicas: 2\n      maxReplicas: 5\n      targetQueueDepth: 8\n";
        let with = format!("  storage:\n    accessMode: {mode}\n{scaling}");
        quickstart().iter().map(|text| text.replace("  serving:\n", &with)).collect()
    };
    let around = Surroundings { autoscaling: Some("v2".into()), ..surroundings() };
    let objects = |around: &Surroundings| rendered(&planned(&texts("ReadWriteMany")), around).unwrap();
    let replicas = |objects: &[Object]| {
        let found =
            objects.iter().find(|object| object.kind() == "Deployment" && object.name() == "quickstart-retriever");
        let Some(Object::Deployment(deployment)) = found else { panic!("no deployment") };
        deployment.spec.as_ref().unwrap().replicas
    };
    let scaler = |objects: &[Object]| {
        objects.iter().find(|object| object.kind() == "HorizontalPodAutoscaler").map(|o| o.to_value().unwrap())
    };
    let with = objects(&around);
    assert_eq!(replicas(&with), None, "it is the autoscaler's");
    let object = scaler(&with).unwrap();
    assert_eq!(object["apiVersion"], "autoscaling/v2");
    assert_eq!(object["spec"]["scaleTargetRef"]["name"], "quickstart-retriever");
    assert_eq!((&object["spec"]["minReplicas"], &object["spec"]["maxReplicas"]), (&json!(2), &json!(5)));
    assert_eq!(object["spec"]["metrics"][0]["pods"]["metric"]["name"], "s3_retriever_waiting_queries");
    assert_eq!(object["spec"]["metrics"][0]["pods"]["target"], json!({"type": "AverageValue", "averageValue": "8"}));
    assert!(object["metadata"]["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty()));
    let without = objects(&surroundings());
    assert_eq!((replicas(&without), scaler(&without)), (Some(1), None));
    // as many servers as there may be must find the volume
    let refused = rendered(&planned(&texts("ReadWriteOnce")), &around).unwrap_err();
    assert!(matches!(refused, PlanError::VolumeShape { .. }), "{refused}");
}
