//! Servers: model servers, gateways, web searches, retrievers.

use crate::check::check;
use crate::common::{example, finished, gateway_of, quickstart};
use crate::support::{planned, pod, rendered, served_by_endpoint, surroundings, try_planned};
use s3_plan::objects::{Image, Object, Queueing, Surroundings, workload};
use s3_plan::{ComponentKind, PlanError, fingerprint};
use serde_json::json;
use std::collections::BTreeSet;

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
        let error = try_planned(&texts.collect::<Vec<_>>()).unwrap_err().to_string();
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

#[test]
fn a_training_reaches_its_rollout_engine_and_hands_over_on_its_own_volume() {
    let engine =
        "  rollout:\n    engine: {endpoints: ['http://vllm:8000/v1'], apiKeySecretRef: {name: vllm, key: token}}\n";
    let with =
        |text: String| text.replace("determinism: Bitwise", "determinism: Relaxed").replace("  rollout:\n", engine);
    let texts: Vec<String> = quickstart().into_iter().map(with).collect();
    let objects = rendered(&planned(&texts), &surroundings()).unwrap();
    check(&objects);
    let of = |kind: &str| {
        let found = objects.iter().find(|o| o.kind() == kind && o.name().starts_with("quickstart-train"));
        found.unwrap().to_value().unwrap()
    };
    let out = of("NetworkPolicy")["spec"]["egress"].to_string();
    assert!(out.contains(r#"{"ports":[{"port":8000,"protocol":"TCP"}]}"#), "{out}");
    let config = of("ConfigMap")["data"]["r0.yaml"].as_str().unwrap().to_owned();
    assert!(config.contains("apiKeyFile: /secrets/vllm/token"), "{config}");
    let dir = config.lines().find(|line| line.contains("/policies")).unwrap_or(&config);
    assert!(dir.contains("dir: ") && dir.contains("/work/quickstart-job-data/quickstart-train/"), "{dir}");
    // nobody else goes where the engine is
    let others = objects.iter().filter(|o| o.kind() == "NetworkPolicy" && !o.name().starts_with("quickstart-train"));
    assert!(others.into_iter().all(|policy| !policy.to_value().unwrap().to_string().contains("8000,")));
}

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
    let plain = job(training.replace("dropUnanswerable: true", "dropUnanswerable: false"));
    let with = planned(&[web.clone(), plain]);
    assert!(with.component("quickstart-train").unwrap().needs.contains("web-retriever"));
    check(&rendered(&with, &around).unwrap());
    let eligible = job(run).replace("eligible: false", "eligible: true");
    assert!(eligible.contains("eligible: true"));
    let refused = try_planned(&[web, job(training), eligible]).unwrap_err().to_string();
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
