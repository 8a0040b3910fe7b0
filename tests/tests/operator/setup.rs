//! One namespace with one operator before it, behind a proxy of its own.

use crate::kubelet::Kubelet;
use crate::proxy::{Fault, Proxy};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::discovery::ApiResource;
use kube::{Api, Client, Config};
use s3_crds::Kind;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};
use tokio::sync::{Mutex, OnceCell};

/// Longest wait for anything; whatever is waited for comes within seconds.
pub const PATIENCE: Duration = Duration::from_secs(180);
static INSTALLED: OnceCell<()> = OnceCell::const_new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A test's part of the cluster.
pub struct Setup {
    pub client: Client,
    pub namespace: String,
    pub kubelet: Kubelet,
    pub proxy: Arc<Proxy>,
    /// Whether operators that are started may use Kueue.
    pub kueue: AtomicBool,
    /// Whether operators that are started may make autoscalers.
    pub autoscaling: AtomicBool,
    operators: Mutex<Vec<Option<Operator>>>,
    folder: tempfile::TempDir,
    /// Lets operators run at their own pace; else leases and resyncs are short, for tests that wait for them.
    pub own_pace: bool,
    /// Of operators that do not run at their own pace.
    pub lease_seconds: u16,
    /// Settings that a chart would give.
    pub settings: Value,
}

/// A running operator.
pub struct Operator {
    child: Child,
    pub admin: String,
    pub progress: String,
}

fn api_url() -> String {
    std::env::var("S3_TEST_API").expect("no S3_TEST_API: run the cluster tests with `make test-cluster`")
}

pub fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::new(api_url().parse().unwrap());
    config.read_timeout = Some(Duration::from_secs(60));
    Client::try_from(config).unwrap()
}

/// A port that nobody holds now, from below the range that outgoing connections take.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::SeqCst);
        let port = 20_000 + (std::process::id().wrapping_mul(37) + step) % 10_000;
        let port = u16::try_from(port).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Setup {
    /// A new namespace and its proxy; the operator is started by [`Self::start`].
    pub async fn new(name: &str) -> Self {
        let client = client();
        INSTALLED.get_or_init(|| install(client.clone())).await;
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let namespace = format!("{name}-{}-{number}", std::process::id());
        let object: Namespace = serde_json::from_value(json!({"metadata": {"name": namespace}})).unwrap();
        Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &object).await.unwrap();
        let kubelet = Kubelet::start(client.clone(), &namespace);
        let proxy = Arc::new(Proxy::start(&api_url()).await);
        let folder = tempfile::tempdir().unwrap();
        let (kueue, autoscaling, operators) = (AtomicBool::new(true), AtomicBool::new(true), Mutex::default());
        Self {
            client,
            namespace,
            kubelet,
            proxy,
            kueue,
            autoscaling,
            operators,
            folder,
            own_pace: false,
            lease_seconds: 3,
            settings: json!({}),
        }
    }

    /// Starts an operator; returns its place.
    pub async fn start(&self) -> usize {
        let mut operators = self.operators.lock().await;
        let place = operators.len();
        operators.push(Some(self.spawn(place)));
        place
    }

    fn spawn(&self, place: usize) -> Operator {
        let kubeconfig = self.folder.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "t",
            "clusters": [{"name": "t", "cluster": {"server": self.proxy.url()}}],
            "users": [{"name": "t", "user": {}}],
            "contexts": [{"name": "t", "context": {"cluster": "t", "user": "t"}}],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let settings = self.folder.path().join("settings");
        std::fs::write(&settings, self.settings.to_string()).unwrap();
        let programs = ["s3-retriever", "s3-trainer", "s3-generator-gateway", "s3-evaluator", "s3-fetch"];
        let images: Vec<String> = programs.iter().map(|name| format!("{name}=test/{name}:1")).collect();
        let (admin, progress) = (format!("127.0.0.1:{}", free_port()), format!("127.0.0.1:{}", free_port()));
        let program = std::env::var("S3_OPERATOR").expect("no S3_OPERATOR: run the tests with `make test-cluster`");
        let log = std::fs::File::options().create(true).append(true).open(self.log(place)).unwrap();
        let lease = self.lease_seconds.to_string();
        let short: &[&str] = if self.own_pace { &[] } else { &["--lease-seconds", &lease, "--resync-seconds", "2"] };
        let child = Command::new(program)
            .args(["run", "--namespaces", &self.namespace, "--lease-namespace", &self.namespace])
            .args(["--admin-address", &admin, "--progress-address", &progress])
            .args(["--progress-url", &format!("http://{progress}")])
            .args(short)
            .args(["--kueue", if self.kueue.load(Ordering::SeqCst) { "true" } else { "false" }])
            .args(["--autoscaling", if self.autoscaling.load(Ordering::SeqCst) { "true" } else { "false" }])
            .arg("--settings")
            .arg(&settings)
            .env("S3_IMAGES", images.join(","))
            .env("KUBECONFIG", &kubeconfig)
            // as the chart has it
            .env("MIMALLOC_PURGE_DELAY", "0")
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Operator { child, admin, progress }
    }

    fn log(&self, place: usize) -> std::path::PathBuf {
        self.folder.path().join(format!("operator-{place}.log"))
    }

    /// Kills an operator without warning.
    pub async fn kill(&self, place: usize) {
        if let Some(mut operator) = self.operators.lock().await[place].take() {
            operator.child.kill().await.unwrap();
        }
    }

    /// Asks an operator to end, and waits for it.
    pub async fn stop(&self, place: usize) {
        if let Some(mut operator) = self.operators.lock().await[place].take() {
            let pid = operator.child.id().unwrap().to_string();
            Command::new("kill").arg(pid).status().await.unwrap();
            let status = tokio::time::timeout(Duration::from_secs(30), operator.child.wait()).await;
            assert!(status.expect("the operator did not end").unwrap().success(), "{}", self.tail());
        }
    }

    /// Starts a killed operator again.
    pub async fn restart(&self, place: usize) {
        self.kill(place).await;
        self.operators.lock().await[place] = Some(self.spawn(place));
    }

    /// Starts those again that have ended by themselves, as a Deployment would.
    pub async fn revive(&self) {
        let mut operators = self.operators.lock().await;
        for place in 0..operators.len() {
            let ended = operators[place].as_mut().is_some_and(|o| o.child.try_wait().unwrap().is_some());
            if ended {
                operators[place] = Some(self.spawn(place));
            }
        }
    }

    /// Fails when an operator has ended by itself.
    pub async fn runs(&self, place: usize) {
        let mut operators = self.operators.lock().await;
        let ended = operators[place].as_mut().and_then(|operator| operator.child.try_wait().unwrap());
        assert!(ended.is_none(), "operator {place} ended: {ended:?}\n{}", self.tail());
    }

    /// Address of an operator's progress service.
    pub async fn progress(&self, place: usize) -> String {
        format!("http://{}", self.operators.lock().await[place].as_ref().unwrap().progress)
    }

    /// Resident memory (MiB) and CPU time (seconds) of an operator so far.
    pub async fn usage(&self, place: usize) -> (f64, f64) {
        let pid = self.operators.lock().await[place].as_ref().unwrap().child.id().unwrap();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let mib = |name: &str| -> f64 {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            value.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap() / 1024.0
        };
        println!("resident: {:.0} MiB of its own, {:.0} MiB of its program file", mib("RssAnon:"), mib("RssFile:"));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
        (mib("VmRSS:"), ticks / 100.0)
    }

    /// The metrics of an operator; none while it starts.
    pub async fn metrics(&self, place: usize) -> Option<String> {
        let url = format!("http://{}/metrics", self.operators.lock().await[place].as_ref()?.admin);
        reqwest::get(url).await.ok()?.text().await.ok()
    }

    /// The last lines of the operators' logs.
    pub fn tail(&self) -> String {
        let mut all = String::new();
        for place in 0..4 {
            let Ok(text) = std::fs::read_to_string(self.log(place)) else { continue };
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(25)..].join("\n");
            let _ = writeln!(all, "--- operator {place}\n{last}");
        }
        all
    }

    /// An API for objects of any kind in the namespace.
    pub fn api(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource(api_version, kind))
    }

    /// Resources of one of the three kinds.
    pub fn resources(&self, kind: Kind) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), &self.namespace, &s3_crds::api_resource(kind))
    }

    /// Creates or changes a resource, as a person would.
    pub async fn apply(&self, kind: Kind, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply("person").force();
        self.resources(kind).patch(name, &params, &Patch::Apply(object)).await.unwrap();
    }

    /// Merges a change into a resource.
    pub async fn change(&self, kind: Kind, name: &str, change: Value) {
        self.resources(kind).patch(name, &PatchParams::default(), &Patch::Merge(&change)).await.unwrap();
    }

    /// Deletes a resource.
    pub async fn delete(&self, kind: Kind, name: &str) {
        self.resources(kind).delete(name, &DeleteParams::background()).await.unwrap();
    }

    /// Waits until something holds, and says where it stood when it did not.
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds().await {
            if Instant::now() >= end {
                let state = crate::snapshot::describe(self).await;
                panic!("{what} did not come true in {}\n{state}\n{}", self.namespace, self.tail());
            }
            self.revive().await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The reason of a condition.
    pub async fn reason(&self, kind: Kind, name: &str, condition: &str) -> Option<String> {
        let object = self.resources(kind).get_opt(name).await.unwrap()?;
        reason_of(&object.data, condition)
    }

    /// Waits for a reason of a condition.
    pub async fn until_reason(&self, kind: Kind, name: &str, condition: &str, reason: &str) {
        let what = format!("{}/{name} {condition} {reason}", kind.name());
        self.until(&what, async || self.reason(kind, name, condition).await.as_deref() == Some(reason)).await;
    }

    /// What the proxy does from now on.
    pub fn fault(&self, fault: Fault) {
        self.proxy.set(fault);
    }

    /// Takes the namespace away; garbage is collected by the cluster.
    pub async fn done(self) {
        let count = self.operators.lock().await.len();
        for place in 0..count {
            self.kill(place).await;
        }
        // An index holds on to its finalizer, and its operator is gone.
        let indices = self.resources(Kind::RetrieverIndex);
        for index in indices.list(&kube::api::ListParams::default()).await.unwrap() {
            let change = json!({"metadata": {"finalizers": null}});
            let name = index.metadata.name.unwrap();
            let _ = indices.patch(&name, &PatchParams::default(), &Patch::Merge(&change)).await;
        }
        let _ = Api::<Namespace>::all(self.client.clone()).delete(&self.namespace, &DeleteParams::default()).await;
    }
}

/// The reason of a condition of an object.
pub fn reason_of(data: &Value, condition: &str) -> Option<String> {
    let conditions = data.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|c| c["type"] == condition)?;
    Some(found["reason"].as_str()?.to_owned())
}

/// An API resource by version and kind.
pub fn resource(api_version: &str, kind: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        other => format!("{}s", other.to_lowercase()),
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural)
}

/// The CRDs; without CEL where the server has none.
async fn install(client: Client) {
    let cel = std::env::var_os("S3_TEST_CEL").is_some();
    let crds: Api<DynamicObject> =
        Api::all_with(client.clone(), &resource("apiextensions.k8s.io/v1", "CustomResourceDefinition"));
    for kind in Kind::ALL {
        let yaml = s3_crds::crd_yaml(kind, cel).unwrap();
        let object: Value = serde_yaml_ng::from_str(&yaml).unwrap();
        let name = object["metadata"]["name"].as_str().unwrap();
        let params = PatchParams::apply("setup").force();
        let end = Instant::now() + PATIENCE;
        // another test binary may be installing them, too
        while let Err(error) = crds.patch(name, &params, &Patch::Apply(&object)).await {
            assert!(Instant::now() < end, "{error}");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    crate::kueue::install(&client).await;
    for kind in Kind::ALL {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &s3_crds::api_resource(kind));
        let end = Instant::now() + PATIENCE;
        while api.list(&kube::api::ListParams::default().limit(1)).await.is_err() {
            assert!(Instant::now() < end, "{} is not served", kind.name());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}
