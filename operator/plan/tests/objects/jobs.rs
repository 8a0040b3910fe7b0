//! Attempts of jobs: their replicas, tokens, pods and queues.

use crate::check::check;
use crate::common::{finished, quickstart, uid};
use crate::support::{built_by, owners, planned, pod, rendered, surroundings};
use s3_plan::objects::{Attempt, COMPONENT_LABEL, Object, Queueing, Surroundings, identity_of, render, workload};
use s3_plan::{Observed, Plan, PlanError, fingerprint, work_identity};
use serde_json::{Value, json};

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
