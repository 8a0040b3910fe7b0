//! A web search over real sockets: a server that speaks `SerpAPI`'s JSON, with all that goes wrong with such services.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, World, command, free_address, refused};
use s3_proto::v1::{EmbedRequest, Method, SearchRequest};
use s3_proto::{CallError, RetrieverClient};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const KEY: &str = "serp-key-0123456789";

/// The service. What it does follows from the first word of a query.
struct Service {
    address: SocketAddr,
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// Requests by query, with their parameters.
    seen: Mutex<HashMap<String, Vec<HashMap<String, String>>>>,
    under_way: AtomicUsize,
    most: AtomicUsize,
    /// Holds `slow` queries back.
    held: Mutex<()>,
}

impl Service {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let shared = state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = shared.clone();
                // a client that has gone away is no failure of the service
                std::thread::spawn(move || drop(answer(&state, stream)));
            }
        });
        Self { address, state }
    }

    /// How often a query was asked.
    fn asked(&self, query: &str) -> usize {
        self.state.seen.lock().unwrap().get(query).map_or(0, Vec::len)
    }

    fn all(&self) -> usize {
        self.state.seen.lock().unwrap().values().map(Vec::len).sum()
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let hex = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&hex).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(state: &State, mut stream: TcpStream) -> std::io::Result<()> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte)? == 0 {
            return Ok(());
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap();
    let (path, query) = target.split_once('?').unwrap();
    assert_eq!(path, "/search");
    let pair = |pair: &str| pair.split_once('=').map(|(name, value)| (decoded(name), decoded(value))).unwrap();
    let asked: HashMap<String, String> = query.split('&').map(pair).collect();
    let q = asked["q"].clone();
    let number = {
        let mut seen = state.seen.lock().unwrap();
        let all = seen.entry(q.clone()).or_default();
        all.push(asked.clone());
        all.len()
    };
    state.most.fetch_max(state.under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
    let word = q.split(' ').next().unwrap();
    let found = json!({
        "search_metadata": {"status": "Success"}, "search_parameters": {"q": q},
        "answer_box": {"title": format!("About {q}"), "answer": "42"},
        "organic_results": [
            {"position": 1, "title": format!("First of {q}"), "snippet": "one \"quoted\" line", "link": "https://a.example/1"},
            {"position": 2, "title": format!("Second of {q}"), "snippet": "zwei — ☆", "link": "https://a.example/2"},
        ],
        "related_questions": [{"question": "And then?", "snippet": "Nothing.", "link": "https://a.example/3"}],
    });
    let error = |text: &str| json!({ "error": text }).to_string();
    let (status, headers, body) = match word {
        "flaky" if number == 1 => (503, "", error("overloaded")),
        "limited" if number == 1 => (429, "retry-after: 1\r\n", error("hourly throughput exceeded")),
        "limits" => (429, "retry-after: 3600\r\n", error("out of searches")),
        "down" => (500, "", "<html>oops</html>".to_owned()),
        "denied" => (401, "", error(&format!("Invalid API key {}.", asked["api_key"]))),
        "moved" => (302, "location: http://127.0.0.1:9/\r\n", String::new()),
        "garbage" => (200, "", "{\"organic_results\": [".to_owned()),
        "strange" => (200, "", json!({"hits": []}).to_string()),
        "failed" => (200, "", json!({"search_metadata": {"status": "Error"}, "error": "proxy timeout"}).to_string()),
        "nothing" => (
            200,
            "",
            json!({"search_metadata": {"status": "Success"}, "error": "Google hasn't returned any results for this query."})
                .to_string(),
        ),
        _ => (200, "", found.to_string()),
    };
    if word == "late" && number == 1 {
        std::thread::sleep(Duration::from_secs(10));
    }
    if word == "slow" {
        drop(state.held.lock().unwrap());
    }
    let head = format!("HTTP/1.1 {status} S\r\ncontent-length: {}\r\nconnection: close\r\n", body.len());
    let written = stream.write_all(format!("{head}{headers}content-type: application/json\r\n\r\n{body}").as_bytes());
    state.under_way.fetch_sub(1, Ordering::SeqCst);
    written
}

fn config(world: &World, service: &Service) -> Value {
    std::fs::write(world.path("key"), format!("{KEY}\n")).unwrap();
    json!({
        "runtime": {"name": "web", "stateDir": world.path("web-state"), "admin": free_address()},
        "grpc": free_address(), "http": free_address(),
        "endpoint": format!("http://{}/search", service.address), "parameters": {"hl": "en"},
        "apiKeyFile": world.path("key"), "results": world.path("kept/results.redb"), "allowAddresses": ["127.0.0.0/8"],
        "limits": {"attempts": 3, "backoffMs": 10, "deadlineMs": 2500, "concurrency": 4},
        "topKLimit": 20, "queriesLimit": 5, "queryCharacters": 40,
    })
}

/// Starts the server; all that it says goes to a file.
fn serve(world: &World, config: &Value) -> Served {
    let path = world.save("web.yaml", config);
    let mut command = command(&["web", "--config", path.to_str().unwrap()]);
    let log = std::fs::OpenOptions::new().create(true).append(true).open(world.path("log")).unwrap();
    command.env("RUST_LOG", "trace").stdout(log.try_clone().unwrap()).stderr(Stdio::from(log));
    Served::started(command, config)
}

fn client(served: &Served) -> RetrieverClient {
    RetrieverClient::new(&format!("http://{}", served.grpc), Duration::from_secs(30), 1).unwrap()
}

fn search(queries: &[&str], top_k: u32) -> SearchRequest {
    SearchRequest { queries: queries.iter().map(ToString::to_string).collect(), top_k, ..Default::default() }
}

fn metric(config: &Value, name: &str) -> f64 {
    let mut stream = TcpStream::connect(config["runtime"]["admin"].as_str().unwrap()).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let lines = page.lines().filter(|line| line.starts_with(name));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

fn until(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !check() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[tokio::test]
async fn results_have_an_indexs_shapes_and_are_asked_for_once() {
    let (world, service) = (World::new(1), Service::start());
    let config = config(&world, &service);
    let served = serve(&world, &config);
    let asked = json!({"queries": ["who painted it", "nothing here"], "topk": 3, "return_scores": true});
    let (status, first) = served.retrieve(&asked);
    assert_eq!(status, 200, "{first}");
    let lists = first["result"].as_array().unwrap();
    assert_eq!((lists[0].as_array().unwrap().len(), &lists[1]), (3, &json!([])), "nothing found is a result");
    let document = lists[0][1]["document"].as_object().unwrap();
    assert_eq!(document["contents"], "\"First of who painted it\"\none \"quoted\" line");
    assert_eq!(
        (&document["id"], &document["metadata"]["link"]),
        (&json!("https://a.example/1"), &json!("https://a.example/1"))
    );
    assert_eq!((&lists[0][0]["score"], &lists[0][1]["score"]), (&json!(1.0), &json!(0.5)));
    let sent = service.state.seen.lock().unwrap()["who painted it"][0].clone();
    let expected = [("q", "who painted it"), ("engine", "google"), ("hl", "en"), ("api_key", KEY)];
    assert_eq!(sent, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());

    // gRPC gives the same; fewer or more of a query's passages cost nothing
    let grpc = client(&served).search(search(&["who painted it", " who painted it "], 20)).await.unwrap();
    assert_eq!((grpc.results[0].hits.len(), &grpc.results[0]), (4, &grpc.results[1]));
    let passage = grpc.results[0].hits[1].passage.clone().unwrap();
    assert_eq!((passage.title.as_str(), passage.text.as_str()), ("First of who painted it", "one \"quoted\" line"));
    assert!(grpc.results[0].hits.is_sorted_by(|a, b| a.score > b.score));
    let info = client(&served).info().await.unwrap();
    assert_eq!((info.index_digest.clone(), info.top_k_limit, info.passages), (grpc.index_digest, 20, 0));
    assert_eq!((service.asked("who painted it"), service.asked("nothing here")), (1, 1));

    // and a restart costs nothing, though the service is gone; another key asks nothing anew either
    drop(served);
    let mut moved = config.clone();
    std::fs::write(world.path("key"), "another-key").unwrap();
    (moved["grpc"], moved["http"], moved["runtime"]["admin"]) =
        (json!(free_address()), json!(free_address()), json!(free_address()));
    let served = serve(&world, &moved);
    let (status, again) = served.retrieve(&asked);
    assert_eq!((status, again), (200, first));
    assert_eq!(service.all(), 2);
    assert!(metric(&moved, "s3_retriever_queries_total{cache=\"hit\",method=\"web\"}") >= 2.0);
    // another engine is another question
    drop(served);
    moved["engine"] = json!("bing");
    let served = serve(&world, &moved);
    assert_eq!(served.retrieve(&asked).0, 200);
    assert_eq!(service.all(), 4);
    assert_ne!(client(&served).info().await.unwrap().index_digest, info.index_digest);
}

#[tokio::test]
async fn an_outage_is_never_an_empty_result_and_the_key_is_never_said() {
    let (world, service) = (World::new(1), Service::start());
    let config = config(&world, &service);
    let served = serve(&world, &config);
    let client = client(&served);
    // what passes is tried again, and not earlier than the service asks for
    assert_eq!(served.retrieve(&json!({"queries": ["flaky one"]})).0, 200);
    assert_eq!(service.asked("flaky one"), 2);
    let started = Instant::now();
    assert_eq!(served.retrieve(&json!({"queries": ["limited one"]})).0, 200);
    assert!(started.elapsed() >= Duration::from_secs(1), "Retry-After is not waited for");
    assert_eq!(served.retrieve(&json!({"queries": ["late one"]})).0, 200, "one late attempt is repeated");
    for (query, attempts, status, says) in [
        ("down one", 3, 503, "status 500"),
        ("garbage one", 3, 503, "not JSON"),
        ("strange one", 3, 503, "neither results nor a status"),
        ("failed one", 3, 503, "proxy timeout"),
        ("limits one", 1, 503, "out of searches"),
        ("denied one", 1, 502, "Invalid API key [key]."),
        ("moved one", 1, 502, "redirects are not followed"),
    ] {
        let (code, body) = served.retrieve(&json!({"queries": ["who painted it", query]}));
        let text = body["error"].as_str().unwrap_or_default();
        assert!(code == status && text.contains(says), "{query}: {code} {body}");
        assert_eq!(service.asked(query), attempts, "{query}");
        let error = client.search(search(&[query], 3)).await.unwrap_err();
        assert_eq!(error.is_outage(), status == 503, "{query}: {error}");
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(service.asked("who painted it"), 1, "what the others found is kept");
    let headers = served.request_with("POST", "/retrieve", "", r#"{"queries": ["limits two"]}"#).unwrap();
    assert_eq!(headers.0, 503);
    for (outcome, least) in [("answered", 4), ("limited", 3), ("unavailable", 12), ("malformed", 12), ("rejected", 4)] {
        let name = format!("s3_retriever_web_calls_total{{outcome=\"{outcome}\"}}");
        assert!(metric(&config, &name) >= f64::from(least), "{outcome}: {}", metric(&config, &name));
    }
    assert!(metric(&config, "s3_retriever_web_retries_total{reason=\"limited\"}") >= 1.0);
    assert!(metric(&config, "s3_retriever_web_seconds_count") >= 30.0);
    drop(served);
    let log = std::fs::read_to_string(world.path("log")).unwrap();
    assert!(log.contains("web search failed, trying again") && !log.contains(KEY), "the key is in the log");
    let kept = std::fs::read(world.path("kept/results.redb")).unwrap();
    assert!(!kept.windows(KEY.len()).any(|part| part == KEY.as_bytes()), "the key is in the results");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_are_limited_shared_and_kept_though_nobody_waits() {
    let (world, service) = (World::new(1), Service::start());
    let mut config = config(&world, &service);
    config["limits"] = json!({"attempts": 1, "deadlineMs": 60_000, "concurrency": 2, "queue": 2});
    let served = serve(&world, &config);
    let held = service.state.held.lock().unwrap();
    let ask = |query: &'static str| {
        let client = client(&served);
        tokio::spawn(async move { client.search(search(&[query], 3)).await })
    };
    // two under way and two waiting; the same query is asked once
    let mut asked: Vec<_> = ["slow 1", "slow 2"].map(ask).into();
    until("calls", || service.state.under_way.load(Ordering::SeqCst) == 2);
    assert!(metric(&config, "s3_retriever_web_calls_in_flight") >= 2.0);
    asked.extend(["slow 3", "slow 4", "slow 1", "slow 4"].map(ask));
    until("misses", || metric(&config, "s3_retriever_queries_total{cache=\"miss\",method=\"web\"}") >= 4.0);
    until("a queue of two", || metric(&config, "s3_retriever_waiting_queries") >= 2.0);
    until("shared", || metric(&config, "s3_retriever_queries_total{cache=\"shared\",method=\"web\"}") >= 2.0);
    // one more is too many: refused at once, and not forever
    let (status, refused) = served.try_request("POST", "/retrieve", r#"{"queries": ["slow 5"]}"#).unwrap();
    assert!(status == 429 && refused.contains("wait for the web search already"), "{status} {refused}");
    // a caller that gives up early is told so; what it asked for is kept all the same
    let (status, _) =
        served.request_with("POST", "/retrieve", "x-timeout-ms: 50\r\n", r#"{"queries": ["slow 2"]}"#).unwrap();
    assert_eq!(status, 504);
    asked.swap_remove(1).abort();
    drop(held);
    for one in asked {
        assert_eq!(one.await.unwrap().unwrap().results[0].hits.len(), 3);
    }
    until("the abandoned one", || served.retrieve(&json!({"queries": ["slow 2"]})).0 == 200);
    for query in ["slow 1", "slow 2", "slow 3", "slow 4"] {
        assert_eq!(service.asked(query), 1, "{query}");
    }
    assert_eq!(service.state.most.load(Ordering::SeqCst), 2);
    drop(served);
    // a rate is held over all queries: a bucket of one, and the rest of the minute for the others
    config["limits"] = json!({"attempts": 1, "concurrency": 4, "requestsPerMinute": 100});
    config["deadlineMillis"] = json!(20_000);
    (config["grpc"], config["http"], config["runtime"]["admin"]) =
        (json!(free_address()), json!(free_address()), json!(free_address()));
    let served = serve(&world, &config);
    let started = Instant::now();
    assert_eq!(served.retrieve(&json!({"queries": ["a 1", "a 2", "a 3"]})).0, 200);
    assert!(started.elapsed() >= Duration::from_millis(1100), "{:?}", started.elapsed());
}

#[tokio::test]
async fn requests_and_settings_are_bounded() {
    let (world, service) = (World::new(1), Service::start());
    let mut config = config(&world, &service);
    let served = serve(&world, &config);
    let client = client(&served);
    let long = "word ".repeat(60);
    let found = client.search(search(&[&long, "  "], 1)).await.unwrap();
    assert_eq!((found.results[0].hits.len(), found.results[1].hits.len()), (1, 0));
    assert_eq!(service.asked("word word word word word word word word"), 1, "cut at 40 characters, between words");
    for (request, says) in [
        (search(&["a"; 6], 3), "at most 5"),
        (search(&["a"], 21), "at most 20"),
        (SearchRequest { method: Method::Dense.into(), ..search(&["a"], 3) }, "ranks by itself"),
        (SearchRequest { exact: true, ..search(&["a"], 3) }, "ranks by itself"),
        (SearchRequest { method: 9, ..search(&["a"], 3) }, "ranks by itself"),
    ] {
        let error = client.search(request).await.unwrap_err();
        assert!(matches!(error, CallError::Refused { .. }) && error.to_string().contains(says), "{error}");
    }
    assert!(client.embed(EmbedRequest { texts: vec!["a".into()], passages: false }).await.is_err());
    for (path, body) in [("/retrieve", r#"{"queries": ["a"], "topk_rerank": 2}"#), ("/rerank", "{}")] {
        let (status, text) = served.try_request("POST", path, body).unwrap();
        assert!(status == 400 && text.contains("no reranker"), "{text}");
    }
    assert_eq!(served.try_request("POST", "/retrieve", "{").unwrap().0, 400);
    let (status, health) = served.try_request("GET", "/health", "").unwrap();
    assert!(status == 200 && health.contains("healthy"), "{health}");
    assert_eq!(service.all(), 1, "nothing else was asked");

    // two servers do not share one file, and wrong settings are said before anything is asked
    let mut other = config.clone();
    (other["grpc"], other["http"], other["runtime"]["admin"]) =
        (json!(free_address()), json!(free_address()), json!(free_address()));
    let fails = |config: &Value| refused(&["web", "--config", world.save("wrong.yaml", config).to_str().unwrap()]);
    let (code, line) = fails(&other);
    assert!(code == 69 && line.contains("in use"), "{code} {line}");
    drop(served);
    for (pointer, value, says) in [
        ("/endpoint", json!("http://127.0.0.1:9/search?api_key=x"), "holds a password or a query"),
        ("/endpoint", json!("ftp://a.example"), "use http or https"),
        ("/parameters", json!({"q": "x"}), "leave it out"),
        ("/allowAddresses", json!([]), "loopback"),
        ("/apiKeyFile", json!(world.path("missing")), "cannot read apiKeyFile"),
        ("/topK", json!(0), "topK is 0"),
        ("/queryCharacters", json!(0), "queryCharacters is 0"),
    ] {
        let mut wrong = other.clone();
        wrong[pointer.trim_start_matches('/')] = value;
        let (code, line) = fails(&wrong);
        assert!(code == 64 && line.contains(says), "{pointer}: {code} {line}");
    }
    // a damaged file is refused, not believed
    std::fs::write(world.path("kept/results.redb"), b"nothing of ours").unwrap();
    config["http"] = json!(free_address());
    let (code, line) = fails(&config);
    assert!(code == 64 && line.contains("is damaged"), "{code} {line}");
}
