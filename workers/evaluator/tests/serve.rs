//! The served searcher over a real socket.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[allow(dead_code)] // shared with the other tests
mod support;

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Child;
use std::time::Duration;
use support::{World, spawn};

struct Server {
    child: Child,
    url: String,
    http: reqwest::Client,
}

impl Server {
    /// Starts it and waits until it says where it listens.
    fn start(world: &World) -> Self {
        Self::of(&world.config("served", 8, "serve: {http: '127.0.0.1:0', batch: 4}"))
    }

    fn of(config: &Path) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut child = spawn(&["serve"], config);
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let address = lines
            .find_map(|line| {
                line.unwrap().split("address=").nth(1).map(|rest| rest.split(' ').next().unwrap().to_owned())
            })
            .unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let http = reqwest::Client::builder().timeout(Duration::from_secs(120)).build().unwrap();
        Self { child, url: format!("http://{address}"), http }
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let answer = self.http.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, serde_json::from_str(&answer.text().await.unwrap()).unwrap_or(Value::Null))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_searched_for_together_and_answered() {
    let world = tokio::task::spawn_blocking(World::start).await.unwrap();
    let mut server = Server::start(&world);
    let asked = (0..12).map(|number| {
        let path = if number % 2 == 0 { "/search" } else { "/answer" };
        server.post(path, json!({ "question": format!("what is fact {}?", number % 3) }))
    });
    for (number, (status, body)) in futures_util::future::join_all(asked).await.into_iter().enumerate() {
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["question"], format!("what is fact {}?", number % 3));
        assert!(!body["passages"].as_array().unwrap().is_empty() && !body["turns"].as_array().unwrap().is_empty());
        assert_eq!(body["answer"].is_string(), number % 2 == 1, "{body}");
    }

    let messages = json!([{"role": "system", "content": "be short"}, {"role": "user", "content": "what is fact 3?"}]);
    let (status, chat) = server.post("/v1/chat/completions", json!({ "model": "s3", "messages": messages })).await;
    assert_eq!((status, &chat["object"]), (200, &json!("chat.completion")));
    assert!(chat.pointer("/choices/0/message/content").unwrap().is_string(), "{chat}");

    for (path, wrong) in [
        ("/search", json!({ "question": " " })),
        ("/v1/chat/completions", json!({ "messages": [] })),
        ("/v1/chat/completions", json!({ "messages": messages, "stream": true })),
    ] {
        let (status, body) = server.post(path, wrong).await;
        assert_eq!(status, 400, "{body}");
        assert!(body["error"]["message"].as_str().unwrap().len() > 10);
    }
    assert_eq!(server.post("/answer", json!({ "query": "x" })).await.0, 422);

    let ended = std::process::Command::new("kill").arg(server.child.id().to_string()).status().unwrap();
    assert!(ended.success());
    let status = tokio::task::spawn_blocking(move || server.child.wait().unwrap()).await.unwrap();
    assert_eq!(status.code(), Some(0));
    drop(tokio::task::spawn_blocking(move || drop(world)).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_answers_itself_is_served_without_a_generator() {
    let world = tokio::task::spawn_blocking(World::start).await.unwrap();
    let path = world.config("own", 8, "serve: {http: '127.0.0.1:0', batch: 4}");
    let text = std::fs::read_to_string(&path).unwrap();
    let (arms, rest) = text.split_once("datasets:").unwrap();
    let head = arms.split_once("arms:").unwrap().0;
    let rest: Vec<&str> = rest.lines().filter(|line| !line.starts_with("generator:")).collect();
    let own = format!(
        "arms:\n- {{name: own, method: SearchR1, answer: Own, temperature: 1.0, \
         searcher: {{path: {}/model, device: Cpu}}, search: {{maxSearches: 1, topK: 2, turnTokens: 12, contextTokens: 900, \
         observationTokens: 200, compatibility: SearchR1}}}}\n",
        world.dir.path().display()
    );
    std::fs::write(&path, format!("{head}{own}datasets:{}\n", rest.join("\n"))).unwrap();
    let mut server = Server::of(&path);
    let (status, body) = server.post("/answer", json!({ "question": "what is fact 1?" })).await;
    assert_eq!(status, 200, "{body}");
    assert!(body["answer"].is_string() && !body["turns"].as_array().unwrap().is_empty(), "{body}");
    let (status, body) = server.post("/search", json!({ "question": "what is fact 2?" })).await;
    assert!(status == 200 && body["answer"].is_null(), "{body}");
    server.child.kill().unwrap();
    tokio::task::spawn_blocking(move || server.child.wait().unwrap()).await.unwrap();
    let output = tokio::task::spawn_blocking(move || {
        let output = support::program(&["ask", "--question", "what is fact 3?"], &path).output().unwrap();
        drop(world);
        output
    });
    let output = output.await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
