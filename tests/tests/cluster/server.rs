//! The server under test, over the harness's plain HTTP proxy and over kubectl.

use reqwest::{Client, Method};
use s3_crds::Kind;
use serde_json::Value;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// What a test asks; the CRDs are installed.
pub struct Server {
    http: Client,
    url: String,
    /// Whether the server evaluates CEL rules.
    pub cel: bool,
}

/// The server's answer to a written object.
pub struct Answer {
    /// The object as stored, or the `Status` that refuses it.
    pub body: Value,
    /// Whether it was taken.
    pub accepted: bool,
}

impl Answer {
    /// What the server says to a refused object.
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or("")
    }
}

static INSTALLED: OnceCell<()> = OnceCell::const_new();

impl Server {
    /// The harness's server, with the CRDs installed.
    pub async fn connect() -> Self {
        // the HTTP client wants one even where nothing is encrypted; another test may have been first
        let _ = rustls::crypto::ring::default_provider().install_default();
        let url = std::env::var("S3_TEST_API").expect("no S3_TEST_API: run the cluster tests with `make test-cluster`");
        let server = Self { http: Client::new(), url, cel: std::env::var_os("S3_TEST_CEL").is_some() };
        INSTALLED.get_or_init(|| server.install()).await;
        server
    }

    async fn install(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds/generated");
        for kind in Kind::ALL {
            // with rules: the very files of the repository; else what `s3-operator crds --without-cel` writes
            let yaml = if self.cel {
                std::fs::read_to_string(folder.join(kind.file_name())).unwrap()
            } else {
                s3_crds::crd_yaml(kind, false).unwrap()
            };
            // kubectl checks against the schema that the 1.20 half publishes, which knows no rules
            kubectl(&["apply", "--server-side", "--validate=false", "-f", "-"], &yaml);
        }
        for kind in Kind::ALL {
            let name = s3_crds::crd(kind)["metadata"]["name"].as_str().unwrap();
            kubectl(&["wait", "--for=condition=Established", "--timeout=120s", &format!("crd/{name}")], "");
        }
        // an aggregated group is served some seconds after its CRDs are established
        let end = Instant::now() + Duration::from_secs(120);
        for kind in Kind::ALL {
            while self.send(Method::GET, &self.path(kind, ""), None).await.0 != 200 {
                assert!(Instant::now() < end, "{} is not served", kind.name());
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }

    fn path(&self, kind: Kind, rest: &str) -> String {
        let plural = s3_crds::crd(kind)["spec"]["names"]["plural"].as_str().unwrap();
        format!("{}/apis/{}/namespaces/default/{plural}{rest}", self.url, s3_crds::API_VERSION)
    }

    async fn send(&self, method: Method, url: &str, body: Option<&Value>) -> (u16, Value) {
        let request = self.http.request(method, url);
        let response = match body {
            Some(body) => request.json(body),
            None => request,
        }
        .send()
        .await
        .expect("the API server answers");
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn write(&self, method: Method, url: &str, object: &Value) -> Answer {
        let (status, body) = self.send(method, url, Some(object)).await;
        // anything else is no verdict on the object
        assert!(matches!(status, 200 | 201 | 400 | 422), "{status}: {body}");
        Answer { body, accepted: status < 300 }
    }

    /// Would the server take a new object? Unknown fields count as wrong where it can say so.
    pub async fn try_create(&self, object: &Value) -> Answer {
        self.write(Method::POST, &self.path(kind(object), "?dryRun=All&fieldValidation=Strict"), object).await
    }

    /// Would the server take `new` over `old`? `old` is made for that and removed again.
    pub async fn try_update(&self, old: &Value, new: &Value) -> Answer {
        let (kind, name) = (kind(old), old["metadata"]["name"].as_str().unwrap());
        let made = self.write(Method::POST, &self.path(kind, ""), old).await;
        assert!(made.accepted, "{}", made.message());
        let mut new = new.clone();
        new["metadata"]["resourceVersion"] = made.body["metadata"]["resourceVersion"].clone();
        let answer = self.write(Method::PUT, &self.path(kind, &format!("/{name}?dryRun=All")), &new).await;
        let (status, body) = self.send(Method::DELETE, &self.path(kind, &format!("/{name}")), None).await;
        assert_eq!(status, 200, "{body}");
        answer
    }
}

/// The kind that a manifest names.
pub fn kind(object: &Value) -> Kind {
    Kind::from_name(object["kind"].as_str().unwrap()).unwrap()
}

fn kubectl(arguments: &[&str], input: &str) {
    let mut child = Command::new("kubectl").args(arguments).stdin(Stdio::piped()).spawn().expect("kubectl starts");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "kubectl {arguments:?}");
}
