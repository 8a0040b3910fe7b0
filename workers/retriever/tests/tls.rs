//! Mutual TLS over real sockets: who is answered, who is turned away and told why, and renewal without a restart.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, World, command, free_address, refused};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use s3_config::{ClientTls, Endpoint, RetrievalMethod};
use s3_proto::v1::SearchRequest;
use s3_proto::{CallError, RetrieverClient};
use s3_rollout::{Link, Retrieve, RetrieverPeer};
use s3_telemetry::{Shutdown, one_line};
use serde_json::{Value, json};
use std::error::Error;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// Writes `tls.crt`, `tls.key` and `ca.crt` as a Secret of type kubernetes.io/tls has them; `trusts` is the last.
    fn issue(&self, folder: &Path, name: &str, trusts: &Authority) {
        std::fs::create_dir_all(folder).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        for (file, text) in
            [("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem()), ("ca.crt", trusts.pem.clone())]
        {
            // by a rename, as a mounted Secret is replaced
            std::fs::write(folder.join("new"), text).unwrap();
            std::fs::rename(folder.join("new"), folder.join(file)).unwrap();
        }
    }
}

fn config(world: &World) -> Value {
    let mut config = world.serve_config();
    let folder = world.path("server");
    config["tls"] = json!({"certificate": folder.join("tls.crt"), "key": folder.join("tls.key"), "clientCa": folder.join("ca.crt")});
    config["runtime"]["admin"] = json!(free_address());
    config
}

/// Serves once its ports are open; what it says goes to a file.
fn serve(world: &World, config: &Value) -> Served {
    served_by("serve", world, config)
}

fn served_by(what: &str, world: &World, config: &Value) -> Served {
    let path = world.save("serve.yaml", config);
    let log = std::fs::File::create(world.path("log")).unwrap();
    let mut command = command(&[what, "--config", path.to_str().unwrap()]);
    let child = command.stdout(log.try_clone().unwrap()).stderr(Stdio::from(log)).spawn().unwrap();
    let address = |key: &str| config[key].as_str().unwrap().parse().unwrap();
    let mut served = Served { child, http: address("http"), grpc: address("grpc") };
    let admin = config["runtime"]["admin"].as_str().unwrap();
    until("the server", || {
        assert!(served.child.try_wait().unwrap().is_none(), "the server ended");
        page(admin, "/readyz").is_some_and(|page| page.starts_with("HTTP/1.1 200"))
    });
    served
}

fn page(address: &str, path: &str) -> Option<String> {
    use std::io::{Read, Write};
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn client(served: &Served, folder: &Path, name: &str) -> RetrieverClient {
    let tls = ClientTls {
        certificate: folder.join("tls.crt"),
        key: folder.join("tls.key"),
        ca: folder.join("ca.crt"),
        server_name: Some(name.to_owned()),
    };
    let client = RetrieverClient::new(&format!("https://{}", served.grpc), Duration::from_secs(20), 1).unwrap();
    client.with_tls(&tls).unwrap()
}

async fn ask(client: &RetrieverClient) -> Result<usize, CallError> {
    let request = SearchRequest { queries: vec!["river".into()], top_k: 3, ..Default::default() };
    Ok(client.search(request).await?.results[0].hits.len())
}

/// An HTTP client of the files in a folder; without a certificate of its own where there is to be none.
fn browser(folder: &Path, served: &Served, own: bool) -> (reqwest::Client, String) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&read("ca.crt")).unwrap()])
        .resolve("one.example", served.http);
    let identity = reqwest::Identity::from_pem(&[read("tls.crt"), read("tls.key")].concat()).unwrap();
    let builder = if own { builder.identity(identity) } else { builder };
    (builder.build().unwrap(), format!("https://one.example:{}/retrieve", served.http.port()))
}

#[tokio::test]
async fn only_callers_of_the_authority_are_answered_and_renewal_needs_no_restart() {
    let world = World::new(40);
    world.build();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let (server, caller, stranger) = (world.path("server"), world.path("caller"), world.path("stranger"));
    ours.issue(&server, "one.example", &ours);
    ours.issue(&caller, "job", &ours);
    other.issue(&stranger, "job", &ours);
    let config = config(&world);
    let served = serve(&world, &config);
    let admin = config["runtime"]["admin"].as_str().unwrap();

    // the right one, over both
    let right = client(&served, &caller, "one.example");
    assert_eq!(ask(&right).await.unwrap(), 3);
    let body = r#"{"queries": ["river"], "topk": 2}"#;
    let (http, url) = browser(&caller, &served, true);
    let reply = http.post(&url).body(body).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    assert!(reply.text().await.unwrap().contains("contents"));

    // none, another authority's, none at all, and a server that is not who it should be: each is told why
    let (http, url) = browser(&caller, &served, false);
    let error = http.post(&url).body(body).send().await.unwrap_err();
    let error = one_line(&error, error.source());
    assert!(error.contains("CertificateRequired") || error.contains("certificate required"), "{error}");
    let error = ask(&client(&served, &stranger, "one.example")).await.unwrap_err();
    assert!(error.is_outage() && error.to_string().contains("alert"), "{error}");
    let plain = RetrieverClient::new(&format!("http://{}", served.grpc), Duration::from_secs(20), 1).unwrap();
    let error = ask(&plain).await.unwrap_err().to_string();
    assert!(error.contains("asks for certificates"), "{error}");
    let error = ask(&client(&served, &caller, "two.example")).await.unwrap_err().to_string();
    assert!(error.contains("not valid for name"), "{error}");
    other.issue(&world.path("misled"), "job", &other);
    let error = ask(&client(&served, &world.path("misled"), "one.example")).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer"), "{error}");
    let refused = |page: &str| {
        let line = page.lines().find(|line| line.starts_with("s3_retriever_refused_total{reason=\"certificate\"}"));
        line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok()).unwrap_or(0)
    };
    until("the count", || refused(&page(admin, "/metrics").unwrap()) >= 4);
    let log = std::fs::read_to_string(world.path("log")).unwrap();
    assert!(log.contains("was turned away") && log.contains("UnknownIssuer"), "{log}");

    // files that are not whole leave what was there in force
    std::fs::write(server.join("tls.key"), "half a key").unwrap();
    until("a warning", || {
        // looked at when somebody comes
        drop(TcpStream::connect(served.grpc));
        std::fs::read_to_string(world.path("log")).unwrap().contains("the one before holds")
    });
    assert_eq!(ask(&client(&served, &caller, "one.example")).await.unwrap(), 3);

    // the server's certificate is renewed under another name, and the authority of its callers is another
    ours.issue(&server, "two.example", &other);
    let end = Instant::now() + Duration::from_secs(60);
    while ask(&client(&served, &stranger, "two.example")).await.is_err() {
        assert!(Instant::now() < end, "the renewed certificate is not shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(ask(&client(&served, &caller, "two.example")).await.is_err(), "the old authority is no longer trusted");
    assert_eq!(ask(&right).await.unwrap(), 3, "a connection keeps what it began with");
    // and so is a caller's, which has not connected yet
    let renewed = client(&served, &caller, "two.example");
    other.issue(&caller, "job", &ours);
    let end = Instant::now() + Duration::from_secs(60);
    while ask(&renewed).await.is_err() {
        assert!(Instant::now() < end, "the caller's renewed certificate is not shown");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The way of trainer and evaluator, from a thread without a runtime; and a web search has the same door.
#[test]
fn jobs_show_the_certificate_that_their_endpoint_names() {
    let world = World::new(40);
    world.build();
    let ours = Authority::new("ours");
    ours.issue(&world.path("server"), "one.example", &ours);
    ours.issue(&world.path("caller"), "job", &ours);
    let config = config(&world);
    let served = serve(&world, &config);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let link = Link { handle: runtime.handle().clone(), shutdown: Shutdown::default() };
    let endpoint = |address: SocketAddr, tls: bool| -> Endpoint {
        let file = |name: &str| world.path("caller").join(name);
        let mut endpoint = json!({"address": format!("http://{address}"), "deadlineMs": 20_000, "attempts": 1});
        if tls {
            endpoint["tls"] = json!({
                "certificate": file("tls.crt"), "key": file("tls.key"), "ca": file("ca.crt"), "serverName": "one.example",
            });
        }
        serde_json::from_value(endpoint).unwrap()
    };
    let peer = RetrieverPeer::connect(&link, &endpoint(served.grpc, true)).unwrap();
    let found = peer.retrieve(&["river".to_owned()], 3, RetrievalMethod::Default).unwrap();
    assert_eq!(found[0].len(), 3);
    assert!(RetrieverPeer::connect(&link, &endpoint(served.grpc, false)).is_err());
    drop(served);

    let web = json!({
        "runtime": {"name": "web", "stateDir": world.path("web"), "admin": free_address()},
        "grpc": free_address(), "http": free_address(), "endpoint": "http://198.51.100.1/search", "tls": config["tls"],
    });
    let served = served_by("web", &world, &web);
    let peer = RetrieverPeer::connect(&link, &endpoint(served.grpc, true)).unwrap();
    assert_eq!(peer.index_digest().len(), 64);
    assert!(RetrieverPeer::connect(&link, &endpoint(served.grpc, false)).is_err());
}

#[test]
fn certificates_that_cannot_be_used_are_named_at_the_start() {
    let world = World::new(40);
    world.build();
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let server = world.path("server");
    let config = config(&world);
    let fails = || {
        let (code, line) = refused(&["serve", "--config", world.save("wrong.yaml", &config).to_str().unwrap()]);
        assert_eq!(code, 64, "{line}");
        line
    };
    assert!(fails().contains("tls.crt"));
    ours.issue(&server, "one.example", &ours);
    let key = std::fs::read(server.join("tls.key")).unwrap();
    other.issue(&server, "one.example", &ours);
    std::fs::write(server.join("tls.key"), key).unwrap();
    let line = fails();
    assert!(line.contains("does not fit its key"), "{line}");
    std::fs::write(server.join("ca.crt"), "nothing").unwrap();
    let line = fails();
    assert!(line.contains("ca.crt") && line.contains("no PEM certificate"), "{line}");
}
