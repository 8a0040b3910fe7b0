//! Streams, plain completions and log-probabilities through the front.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Act, Process, Upstream, World, http};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

async fn started() -> (Upstream, World, Process) {
    let upstream = Upstream::start().await;
    let mut world = World::new(&upstream.url());
    world.provider(0).limits.backoff_ms = 2;
    let process = world.start();
    (upstream, world, process)
}

fn chat(text: &str) -> Value {
    json!({"model": "up", "stream": true, "messages": [{"role": "user", "content": text}],
           "stream_options": {"include_usage": true}})
}

async fn send(world: &World, path: &str, body: &Value) -> reqwest::Response {
    http().post(world.front(path)).body(body.to_string()).send().await.unwrap()
}

/// The data of a stream's events.
fn events(text: &str) -> Vec<String> {
    text.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).map(str::to_owned).collect()
}

fn said(events: &[String]) -> String {
    let piece = |event: &String| {
        let event: Value = serde_json::from_str(event).ok()?;
        event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    };
    events.iter().filter_map(piece).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pieces_come_as_they_are_made_and_the_whole_is_kept() {
    let (upstream, world, _process) = started().await;
    let gap = Duration::from_millis(400);
    upstream.script([Act::Stream { pieces: vec!["Par", "is", " it is"], gap, whole: true }]);
    let mut response = send(&world, "/v1/chat/completions", &chat("q")).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let (mut text, mut first, mut last) = (String::new(), None, Instant::now());
    while let Some(chunk) = response.chunk().await.unwrap() {
        text.push_str(std::str::from_utf8(&chunk).unwrap());
        last = Instant::now();
        first.get_or_insert(last);
    }
    // two gaps lie between the first piece and the last
    assert!(last - first.unwrap() >= gap, "the stream came in one piece");
    let came = events(&text);
    assert_eq!(said(&came), "Paris it is");
    assert_eq!(came.last().unwrap(), "[DONE]");
    assert!(came[came.len() - 2].contains("\"total_tokens\":14"), "{came:?}");
    assert!(upstream.seen()[0].body["stream_options"]["include_usage"].as_bool().unwrap());
    // the same again, streamed or whole, is not asked for
    let again = events(&send(&world, "/v1/chat/completions", &chat("q")).await.text().await.unwrap());
    assert_eq!((said(&again), again.last().unwrap().as_str()), ("Paris it is".to_owned(), "[DONE]"));
    let mut whole = chat("q");
    whole["stream"] = json!(false);
    let reply: Value = send(&world, "/v1/chat/completions", &whole).await.json().await.unwrap();
    assert_eq!(reply["choices"][0]["message"]["content"], "Paris it is");
    assert_eq!(upstream.calls(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_upstream_is_left_when_the_client_goes() {
    let (upstream, world, _process) = started().await;
    let gap = Duration::from_secs(60);
    upstream.always(Act::Stream { pieces: vec!["one", "two"], gap, whole: true });
    let mut fastest = Duration::MAX;
    for round in 0..5 {
        let mut response = send(&world, "/v1/chat/completions", &chat(&format!("q{round}"))).await;
        assert!(response.chunk().await.unwrap().is_some());
        let gone = Instant::now();
        drop(response);
        let until = gone + Duration::from_secs(20);
        while upstream.left().len() <= round {
            assert!(Instant::now() < until, "the upstream call goes on without a client");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fastest = fastest.min(upstream.left()[round].saturating_duration_since(gone));
    }
    println!("upstream left after {fastest:?}");
    // the machine may be busy in one round, not in all of them
    assert!(fastest <= Duration::from_millis(50), "{fastest:?}");
    // half an answer is not kept
    upstream.always(Act::Stream { pieces: vec!["whole"], gap: Duration::ZERO, whole: true });
    let text = send(&world, "/v1/chat/completions", &chat("q0")).await.text().await.unwrap();
    assert_eq!(said(&events(&text)), "whole");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_stream_is_never_taken_for_whole() {
    let (upstream, world, _process) = started().await;
    // broken before anything came: tried again, the client sees nothing of it
    upstream.script([
        Act::Status(500, "", String::new()),
        Act::Reset,
        Act::Stream { pieces: vec!["fine"], gap: Duration::ZERO, whole: true },
    ]);
    let text = send(&world, "/v1/chat/completions", &chat("a")).await.text().await.unwrap();
    assert_eq!(said(&events(&text)), "fine");
    // broken in the middle: an error and no end
    upstream.script([Act::Stream { pieces: vec!["half"], gap: Duration::ZERO, whole: false }]);
    let came = events(&send(&world, "/v1/chat/completions", &chat("b")).await.text().await.unwrap());
    assert_eq!(said(&came), "half");
    assert!(came.last().unwrap().contains("broke off") && came.iter().all(|event| event != "[DONE]"), "{came:?}");
    upstream.script([Act::Stream { pieces: vec!["all of it"], gap: Duration::ZERO, whole: true }]);
    let came = events(&send(&world, "/v1/chat/completions", &chat("b")).await.text().await.unwrap());
    assert_eq!(said(&came), "all of it", "the half was kept");
    // never begun: a status
    upstream.script([Act::Status(400, "", r#"{"error":{"message":"too long"}}"#.into())]);
    let response = send(&world, "/v1/chat/completions", &chat("c")).await;
    assert_eq!(response.status(), 400);
    upstream.script([Act::Answer, Act::Answer, Act::Answer]);
    let response = send(&world, "/v1/chat/completions", &chat("d")).await;
    assert_eq!(response.status(), 502, "a reply that is no stream");
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_texts_and_log_probabilities_are_passed_through() {
    let (upstream, world, _process) = started().await;
    let plain = json!({"choices": [{"index": 0, "text": " upon a time", "finish_reason": "length",
                                    "logprobs": {"tokens": [" upon"], "token_logprobs": [-0.25]}}],
                       "usage": {"prompt_tokens": 2, "completion_tokens": 3}});
    upstream.script([Act::Json(plain.to_string())]);
    let body = json!({"model": "up", "prompt": "Once", "max_tokens": 3, "logprobs": 1});
    for _ in 0..2 {
        let reply: Value = send(&world, "/v1/completions", &body).await.json().await.unwrap();
        assert_eq!(reply["object"], "text_completion");
        assert_eq!(reply["choices"][0]["text"], " upon a time");
        assert_eq!(reply["choices"][0]["logprobs"]["token_logprobs"], json!([-0.25]));
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
    }
    let seen = upstream.seen();
    assert_eq!(seen.len(), 1);
    assert!(seen[0].head.starts_with("POST /v1/completions "), "{}", seen[0].head);
    assert_eq!((&seen[0].body["prompt"], &seen[0].body["logprobs"]), (&json!("Once"), &json!(1)));

    let logprobs = json!({"content": [{"token": "Paris", "logprob": -0.125, "top_logprobs": []}]});
    let reply = json!({"choices": [{"index": 0, "message": {"role": "assistant", "content": "Paris"},
                                    "finish_reason": "stop", "logprobs": logprobs}]});
    upstream.script([Act::Json(reply.to_string())]);
    let body =
        json!({"model": "up", "messages": [{"role": "user", "content": "q"}], "logprobs": true, "top_logprobs": 2});
    let reply: Value = send(&world, "/v1/chat/completions", &body).await.json().await.unwrap();
    assert_eq!(reply["choices"][0]["logprobs"], logprobs);
    let body = &upstream.seen()[1].body;
    assert_eq!((&body["logprobs"], &body["top_logprobs"]), (&json!(true), &json!(2)));
}
