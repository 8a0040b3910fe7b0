//! kubectl and Helm against the node, and waiting for what they show.

use crate::quickstart::NAMESPACE;
use serde_json::Value;
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// One line of progress, with the time since the start.
pub fn say(what: &str) {
    static START: OnceLock<Instant> = OnceLock::new();
    eprintln!("e2e: {:4} s  {what}", START.get_or_init(Instant::now).elapsed().as_secs());
}

/// A command's output; a failure is told with all that it said.
fn output(program: &str, arguments: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write as _;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run this test with `make test-e2e`"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout).into_owned();
    if done.status.success() {
        Ok(text)
    } else {
        Err(format!("{program} {arguments:?}: {text}{}", String::from_utf8_lossy(&done.stderr)))
    }
}

/// kubectl, which must succeed.
pub fn kubectl(arguments: &[&str]) -> String {
    output("kubectl", arguments, "").unwrap_or_else(|error| panic!("{error}"))
}

/// What a pod said; nothing while it starts or goes.
pub fn logs(namespace: &str, pod: &str) -> String {
    output("kubectl", &["logs", "-n", namespace, pod], "").unwrap_or_default()
}

/// Applies manifests.
pub fn apply(namespace: &str, manifests: &str) {
    output("kubectl", &["apply", "--server-side", "-n", namespace, "-f", "-"], manifests)
        .unwrap_or_else(|error| panic!("{error}"));
}

/// Helm, which must succeed.
pub fn helm(arguments: &[&str]) -> String {
    output("helm", arguments, "").unwrap_or_else(|error| panic!("{error}"))
}

/// The JSON that a server in the cluster answers to a JSON body.
pub fn post(url: &str, body: &Value) -> Value {
    let (body, json) = (body.to_string(), "content-type: application/json");
    let text = output("curl", &["-sS", "--max-time", "240", "-H", json, "-d", &body, url], "");
    let text = text.unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// One object; null when it is not there.
pub fn value(namespace: &str, object: &str) -> Value {
    match output("kubectl", &["get", object, "-n", namespace, "-o", "json"], "") {
        Ok(text) => serde_json::from_str(&text).unwrap(),
        Err(error) if error.contains("NotFound") => Value::Null,
        Err(error) => panic!("{error}"),
    }
}

/// All objects of some kinds with some labels.
pub fn objects(namespace: &str, kinds: &str, selector: &str) -> Vec<Value> {
    let text = kubectl(&["get", kinds, "-n", namespace, "-l", selector, "-o", "json"]);
    let list: Value = serde_json::from_str(&text).unwrap();
    list["items"].as_array().cloned().unwrap_or_default()
}

/// Status of a condition of an object of the quickstart; empty when there is none.
pub fn condition(object: &str, kind: &str) -> String {
    let found = value(NAMESPACE, object);
    let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let one = conditions.iter().find(|condition| condition["type"] == kind);
    one.and_then(|condition| condition["status"].as_str()).unwrap_or_default().to_owned()
}

/// Waits until something holds; when it never does, the panic shows the state of the cluster.
pub fn wait(what: &str, seconds: u64, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    while !holds() {
        if Instant::now() > end {
            let pods = kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"]);
            let events = kubectl(&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]);
            let events: Vec<_> = events.lines().rev().take(30).collect();
            let kinds = "retrieverindices,s3trainingjobs,evalruns";
            let resources =
                output("kubectl", &["get", kinds, "--all-namespaces", "-o", "yaml"], "").unwrap_or_default();
            let logs = output(
                "kubectl",
                &["logs", "-n", "s3-system", "-l", "app.kubernetes.io/name=s3-operator", "--tail", "30"],
                "",
            );
            let (events, logs) = (events.join("\n"), logs.unwrap_or_else(|error| error));
            panic!("{seconds} s were not enough for: {what}\n{pods}\n{events}\n{resources}\n{logs}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
