//! The whole way on a real node: the chart installed by Helm, the quickstart as custom resources with real pods of our own
//! images, suspend and resume, upgrade and rollback under a running job, Prometheus and every expression of dashboards and
//! alerts, and nothing left at the end. `make test-e2e` makes images and node.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;
mod expressions;
mod laptop;
mod prometheus;
mod quickstart;
mod rights;

use cluster::{condition, helm, kubectl, objects, post, say, value, wait};
use quickstart::{NAMESPACE, Quickstart};
use serde_json::{Value, json};

/// Where the chart goes.
const SYSTEM: &str = "s3-system";
/// The chart, from the repository.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/s3-operator");

#[test]
fn the_quickstart_on_a_real_node() {
    let test = Quickstart::new();
    install();
    let prometheus = prometheus::Prometheus::start(&[SYSTEM, NAMESPACE]);
    test.apply();
    index_is_built_and_served();
    training_starts_with_its_gpu();
    suspend_and_resume();
    upgrade_and_rollback_under_a_running_job();
    let digest = training_succeeds();
    evaluation_succeeds();
    served_searcher_answers();
    every_pod_speaks();
    every_expression_answers(&prometheus);
    nothing_is_written_once_converged(&prometheus);
    drop(prometheus);
    namespace_goes_with_live_objects(&test);
    say("rights");
    let rights = rights::differ_from_use();
    uninstall_leaves_what_the_values_say();
    laptop::makes_the_same(&digest);
    assert_eq!(rights, None);
}

fn install() {
    say("helm install");
    let cel = std::env::var_os("S3_TEST_CEL").is_some();
    let crds = format!("crds.validation={cel}");
    // the 1.20 half of the hybrid publishes a schema of CRDs that knows no rules
    let unchecked = format!("--disable-openapi-validation={cel}");
    helm(&[
        "install",
        "s3-operator",
        CHART,
        "--namespace",
        SYSTEM,
        "--create-namespace",
        "--wait",
        "--timeout",
        "180s",
        &unchecked,
        "--set",
        &crds,
        "--set",
        "image.registry=s3,image.tag=test,image.pullPolicy=Never",
        "--set",
        "replicas=2,networkPolicy.enabled=true",
    ]);
    let pods = objects(SYSTEM, "pods", "app.kubernetes.io/name=s3-operator");
    assert_eq!(pods.len(), 2);
    for pod in pods {
        let spec = &pod["spec"];
        assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
        assert_eq!(spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
    }
    wait("a leader", 60, || {
        let lease = value(SYSTEM, "lease/s3-operator");
        lease["spec"]["holderIdentity"].as_str().is_some_and(|holder| holder.starts_with("s3-operator-"))
    });
}

fn index_is_built_and_served() {
    say("the index");
    wait("RetrieverIndex Ready", 400, || condition("retrieverindex/quickstart", "Ready") == "True");
    let index = value(NAMESPACE, "retrieverindex/quickstart");
    assert_eq!(index["status"]["passages"], 10_033, "{}", index["status"]);
    let printed = kubectl(&["get", "retrieverindices", "-n", NAMESPACE]);
    eprint!("{printed}");
    assert!(printed.contains("READY") && printed.contains("10033"), "{printed}");
}

fn training_pods() -> Vec<Value> {
    let all = objects(NAMESPACE, "pods", "app.kubernetes.io/component=training");
    all.into_iter().filter(|pod| pod["status"]["phase"] == "Running" || pod["status"]["phase"] == "Pending").collect()
}

fn step() -> u64 {
    value(NAMESPACE, "s3trainingjob/quickstart")["status"]["step"].as_u64().unwrap_or(0)
}

fn training_starts_with_its_gpu() {
    say("training");
    wait("the first step", 400, || step() >= 1);
    let pods = training_pods();
    assert_eq!(pods.len(), 2, "a pod for each replica");
    for pod in pods {
        assert_eq!(pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], "1");
    }
    let printed = kubectl(&["get", "s3trainingjobs", "-n", NAMESPACE]);
    eprint!("{printed}");
    assert!(printed.contains("STEP") && printed.contains("GBR"), "{printed}");
}

fn suspend(on: bool) {
    let patch = json!({"spec": {"suspend": on}}).to_string();
    kubectl(&["patch", "s3trainingjob", "quickstart", "-n", NAMESPACE, "--type=merge", "-p", &patch]);
}

fn suspend_and_resume() {
    say("suspend");
    suspend(true);
    wait("Suspended", 300, || condition("s3trainingjob/quickstart", "Suspended") == "True");
    wait("no pod that holds the GPU", 120, || training_pods().is_empty());
    let status = value(NAMESPACE, "s3trainingjob/quickstart")["status"].clone();
    assert_eq!(status["lastCheckpoint"]["step"].as_u64(), status["step"].as_u64(), "{status}");
    eprint!("{}", kubectl(&["get", "s3trainingjobs", "-n", NAMESPACE]));
    say("resume");
    suspend(false);
    wait("a pod that trains again", 180, || {
        condition("s3trainingjob/quickstart", "Suspended") == "False"
            && training_pods().iter().any(|pod| pod["status"]["phase"] == "Running")
    });
}

fn upgrade_and_rollback_under_a_running_job() {
    say("helm upgrade and rollback under the running job");
    let unchecked = format!("--disable-openapi-validation={}", std::env::var_os("S3_TEST_CEL").is_some());
    let before = training_pods();
    let operators = || {
        let pods = objects(SYSTEM, "pods", "app.kubernetes.io/name=s3-operator");
        pods.iter().map(|pod| pod["metadata"]["uid"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let old = operators();
    helm(&[
        "upgrade",
        "s3-operator",
        CHART,
        "--namespace",
        SYSTEM,
        "--reuse-values",
        &unchecked,
        "--wait",
        "--timeout",
        "180s",
        "--set",
        "reconcilers=4",
        "--set-string",
        "podAnnotations.turn=second",
    ]);
    helm(&["rollback", "s3-operator", "1", "--namespace", SYSTEM, "--wait", "--timeout", "180s"]);
    wait("only new operators", 120, || operators().iter().all(|uid| !old.contains(uid)));
    let after = objects(NAMESPACE, "pods", "app.kubernetes.io/component=training");
    for pod in &before {
        let uid = &pod["metadata"]["uid"];
        assert!(after.iter().any(|pod| &pod["metadata"]["uid"] == uid), "a training pod went with the upgrade");
    }
    wait("a step that the pod reports to the new leader", 400, || step() >= 2);
}

fn training_succeeds() -> String {
    say("the end of training");
    wait("S3TrainingJob Succeeded", 600, || match condition("s3trainingjob/quickstart", "Succeeded").as_str() {
        "False" => panic!("the job failed: {}", value(NAMESPACE, "s3trainingjob/quickstart")["status"]),
        state => state == "True",
    });
    let status = value(NAMESPACE, "s3trainingjob/quickstart")["status"].clone();
    assert_eq!(status["step"], 3, "{status}");
    eprint!("{}", kubectl(&["get", "s3trainingjobs", "-n", NAMESPACE]));
    status["digest"].as_str().expect("a finished job has a digest").to_owned()
}

fn evaluation_succeeds() {
    say("the evaluation");
    wait("EvalRun Succeeded", 900, || match condition("evalrun/quickstart", "Succeeded").as_str() {
        "False" => panic!("the run failed: {}", value(NAMESPACE, "evalrun/quickstart")["status"]),
        state => state == "True",
    });
    let status = value(NAMESPACE, "evalrun/quickstart")["status"].clone();
    let arms = ["direct", "rag-3", "rag-same-budget", "s3"];
    for arm in arms {
        let row = status["results"].as_array().unwrap().iter().find(|row| row["arm"] == arm && row["dataset"] == "all");
        assert_eq!(row.unwrap_or_else(|| panic!("no result of {arm}"))["questions"], 48);
    }
    eprint!("{}", kubectl(&["get", "evalruns", "-n", NAMESPACE]));
}

fn served_searcher_answers() {
    say("the served searcher");
    let patch = json!({"spec": {"serving": {"replicas": 1}}}).to_string();
    kubectl(&["patch", "s3trainingjob", "quickstart", "-n", NAMESPACE, "--type=merge", "-p", &patch]);
    let endpoint = || value(NAMESPACE, "s3trainingjob/quickstart")["status"]["endpoint"].clone();
    wait("its address in the status", 400, || endpoint().is_string());
    let service = value(NAMESPACE, "service/quickstart-searcher");
    let url = format!("http://{}:8080", service["spec"]["clusterIP"].as_str().unwrap());
    let asked = json!({"question": "Who wrote the play Hamlet?"});
    let found = post(&format!("{url}/answer"), &asked);
    eprintln!("e2e: {} -> {}", asked["question"], found["answer"]);
    assert!(found["answer"].is_string() && !found["passages"].as_array().unwrap().is_empty(), "{found}");
    let chat = json!({"model": "s3", "messages": [{"role": "user", "content": "Who wrote the play Hamlet?"}]});
    let chat = post(&format!("{url}/v1/chat/completions"), &chat);
    assert_eq!(chat.pointer("/choices/0/message/content"), Some(&found["answer"]), "{chat}");
    let s3 = |arguments: &[&str]| {
        let output = std::process::Command::new(std::env::var("S3_CLI").unwrap()).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    };
    let told = s3(&["ask", "Who wrote the play Hamlet?", "--job", "quickstart", "-n", NAMESPACE]);
    eprint!("{told}");
    assert!(told.contains(&format!("answer    {}", found["answer"].as_str().unwrap())), "{told}");
    let why = s3(&["why", "s3trainingjob/quickstart", "-n", NAMESPACE]);
    eprint!("{why}");
    assert!(why.contains("Succeeded=True (StepsDone)"), "{why}");
}

/// Logs are JSON and name the object; nothing ran as root or could write its root.
fn every_pod_speaks() {
    say("logs");
    for pod in objects(NAMESPACE, "pods", "app.kubernetes.io/managed-by=s3-operator") {
        let name = pod["metadata"]["name"].as_str().unwrap();
        let mut lines = Vec::new();
        // a gateway that its last user has left may just be starting again or going
        wait(&format!("a line of {name}"), 60, || {
            let logs = cluster::logs(NAMESPACE, name);
            lines = logs.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect();
            !lines.is_empty() || value(NAMESPACE, &format!("pod/{name}")).is_null()
        });
        for line in lines {
            serde_json::from_str::<Value>(&line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"));
        }
        assert_eq!(pod["spec"]["securityContext"]["runAsNonRoot"], true, "{name}");
    }
}

fn every_expression_answers(prometheus: &prometheus::Prometheus) {
    say("dashboards and alerts");
    // a rate takes two scrapes after the first request
    let asked = "sum(rate(s3_searcher_request_seconds_count[1m]))";
    wait("the searcher's requests are scraped", 120, || prometheus.answers(asked).unwrap_or(false));
    let missing = prometheus.unscraped(&[SYSTEM, NAMESPACE]);
    assert!(missing.is_empty(), "never scraped: {missing:?}");
    let all = expressions::all();
    let mut empty = Vec::new();
    for expression in &all {
        match prometheus.answers(&expression.query) {
            Ok(true) => {}
            Ok(false) => empty.push(expression),
            Err(error) => panic!("{}: {error}: {}", expression.place, expression.query),
        }
    }
    for expression in &empty {
        eprintln!("e2e: empty: {}: {}", expression.place, expression.query);
    }
    let untold: Vec<_> = empty.iter().filter(|expression| expression.until.is_none()).map(|e| &e.place).collect();
    assert!(untold.is_empty(), "empty, and nothing says until when: {untold:?}");
    eprintln!("e2e: {} expressions, {} empty as documented", all.len(), empty.len());
    assert!(empty.len() * 20 <= all.len(), "more than 5 % of the expressions are empty");
}

fn nothing_is_written_once_converged(prometheus: &prometheus::Prometheus) {
    say("no write once converged");
    let writes = "sum(s3_operator_writes_total) by (pod)";
    wait("half a minute without a write", 180, || prometheus.steady(writes, 30));
}

fn namespace_goes_with_live_objects(test: &Quickstart) {
    say("a namespace goes with live objects");
    test.apply_to("second");
    wait("the second index's pod", 120, || {
        !objects("second", "pods", "app.kubernetes.io/component=index-build").is_empty()
    });
    kubectl(&["delete", "namespace", "second", "--wait=false"]);
    wait("the second namespace is gone", 180, || gone("second"));
}

fn gone(namespace: &str) -> bool {
    let left = kubectl(&["get", "namespaces", "-o", "name"]);
    left.lines().all(|name| name != format!("namespace/{namespace}"))
}

fn uids(namespace: &str, kinds: &str) -> Vec<String> {
    let all = objects(namespace, kinds, "app.kubernetes.io/managed-by=s3-operator");
    all.iter().map(|object| object["metadata"]["uid"].as_str().unwrap().to_owned()).collect()
}

fn uninstall_leaves_what_the_values_say() {
    say("helm uninstall with live objects");
    let before = uids(NAMESPACE, "pods,jobs,deployments,persistentvolumeclaims");
    let selector = "app.kubernetes.io/instance=s3-operator";
    uninstall();
    assert_eq!(objects(SYSTEM, "customresourcedefinitions", selector).len(), 3, "the CRDs stay");
    let after = uids(NAMESPACE, "pods,jobs,deployments,persistentvolumeclaims");
    assert_eq!(before, after, "what serves goes on serving without an operator");

    say("helm install finds everything again and changes nothing");
    install();
    std::thread::sleep(std::time::Duration::from_secs(10));
    assert_eq!(before, uids(NAMESPACE, "pods,jobs,deployments,persistentvolumeclaims"));

    say("the namespace goes");
    kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
    wait("the namespace is gone", 240, || gone(NAMESPACE));
    wait("no volume is left", 60, || !kubectl(&["get", "persistentvolumes", "-o", "name"]).contains("disk-"));
    uninstall();
    kubectl(&["delete", "customresourcedefinitions", "-l", selector, "--timeout=60s"]);
}

fn uninstall() {
    let selector = "app.kubernetes.io/instance=s3-operator";
    helm(&["uninstall", "s3-operator", "--namespace", SYSTEM, "--wait", "--timeout", "120s"]);
    let kinds =
        "deployments,pods,services,configmaps,serviceaccounts,networkpolicies,roles,rolebindings,poddisruptionbudgets";
    wait("nothing of the release in its namespace", 60, || objects(SYSTEM, kinds, selector).is_empty());
    assert!(objects(SYSTEM, "clusterroles,clusterrolebindings", selector).is_empty());
}
