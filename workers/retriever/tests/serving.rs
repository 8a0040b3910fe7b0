//! The served index over real sockets: shapes, limits, refusals, the end.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, World, read_json, refused, write_encoder};
use s3_proto::v1::{Method, SearchRequest};
use s3_proto::{CallError, RetrieverClient};
use serde_json::json;
use std::time::{Duration, Instant};

fn client(served: &Served) -> RetrieverClient {
    RetrieverClient::new(&format!("http://{}", served.grpc), Duration::from_secs(20), 2).unwrap()
}

fn search(queries: &[&str], top_k: u32, method: Method) -> SearchRequest {
    SearchRequest { queries: queries.iter().map(ToString::to_string).collect(), top_k, method: method.into() }
}

#[tokio::test]
async fn grpc_ranks_by_every_method_and_repeats_itself() {
    let world = World::new(300);
    let outcome = world.build();
    let served = Served::start(&world, &world.serve_config());
    let client = client(&served);
    let info = client.info().await.unwrap();
    assert_eq!(info.index_digest, outcome["digest"].as_str().unwrap());
    assert_eq!(info.content_digest, outcome["summary"]["contentDigest"].as_str().unwrap());
    assert_eq!((info.passages, info.dimensions, info.method()), (300, 32, Method::Hybrid));

    for method in [Method::Default, Method::Lexical, Method::Dense, Method::Hybrid] {
        let queries = ["actor 17", "the opera of metal", "treaty"];
        let together = client.search(search(&queries, 7, method)).await.unwrap();
        assert_eq!(together.index_digest, info.index_digest);
        for (query, hits) in queries.iter().zip(&together.results) {
            assert_eq!(hits.hits.len(), 7, "{method:?} {query}");
            assert!(hits.hits.is_sorted_by(|a, b| a.score >= b.score));
            // alone, cached or computed with others: the same to the bit
            let alone = client.search(search(&[query], 7, method)).await.unwrap();
            assert_eq!(&alone.results[0], hits, "{method:?} {query}");
        }
    }
    let exact = client.search(search(&["17"], 3, Method::Lexical)).await.unwrap();
    assert_eq!(exact.results[0].hits.len(), 1, "one title holds this number");
    assert_eq!(exact.results[0].hits[0].passage.as_ref().unwrap().id, "p17");
    assert!(client.search(search(&[], 3, Method::Default)).await.unwrap().results.is_empty());

    for (request, says) in [
        (search(&["a", "a", "a", "a", "a", "a"], 3, Method::Default), "at most 5"),
        (search(&["a"], 21, Method::Default), "at most 20"),
        (SearchRequest { method: 9, ..search(&["a"], 3, Method::Default) }, "method 9"),
    ] {
        let error = client.search(request).await.unwrap_err();
        assert!(matches!(error, CallError::Refused { .. }) && error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn http_answers_in_the_references_shapes() {
    let world = World::new(40);
    world.build();
    let served = Served::start(&world, &world.serve_config());
    let (status, scored) = served.retrieve(&json!({"queries": ["river 7", "opera"], "topk": 2, "return_scores": true}));
    assert_eq!(status, 200);
    let result = scored["result"].as_array().unwrap();
    assert_eq!(result.len(), 2);
    assert_eq!(result[0].as_array().unwrap().len(), 2);
    let hit = result[0][0].as_object().unwrap();
    assert_eq!(hit.keys().collect::<Vec<_>>(), ["document", "score"]);
    assert!(hit["score"].is_f64());
    let document = hit["document"].as_object().unwrap();
    let (title, text) = (document["title"].as_str().unwrap(), document["text"].as_str().unwrap());
    assert_eq!(document["contents"].as_str().unwrap(), format!("\"{title}\"\n{text}"));
    assert_eq!(document.len(), 4);

    // without scores: the documents themselves; null, 0 and no topk are the default of 3
    for topk in [json!(null), json!(0), json!(3)] {
        let (status, bare) = served.retrieve(&json!({"queries": ["river 7", "opera"], "topk": topk}));
        assert_eq!(status, 200);
        assert_eq!(bare["result"][0].as_array().unwrap().len(), 3);
        assert_eq!(&bare["result"][0][0], &hit["document"]);
    }
    let (status, empty) = served.retrieve(&json!({"queries": []}));
    assert_eq!((status, empty), (200, json!({"result": []})));

    for (body, says) in [
        (json!({"queries": ["a", "a", "a", "a", "a", "a"]}), "at most 5"),
        (json!({"queries": ["a"], "topk": 21}), "at most 20"),
        (json!({"queries": ["a"], "topk": -1}), "expected {\"queries\""),
        (json!({"queries": "a"}), "expected {\"queries\""),
        (json!({"topk": 3}), "missing field `queries`"),
    ] {
        let (status, error) = served.retrieve(&body);
        assert_eq!(status, 400, "{body}");
        assert!(error["error"].as_str().unwrap().contains(says), "{error}");
    }
    let large = served.try_request("POST", "/retrieve", &"x".repeat((8 << 20) + 1));
    // the server may close the connection before all of it is sent
    assert!(large.is_err() || large.is_ok_and(|(status, _)| status == 413));
    let (status, health) = served.try_request("GET", "/health", "").unwrap();
    assert!(status == 200 && health.contains("\"passages\":40"), "{health}");
}

#[test]
fn sigterm_ends_cleanly_and_progress_says_ready() {
    let world = World::new(20);
    world.build();
    let mut served = Served::start(&world, &world.serve_config());
    // said right after the first answers
    let started = Instant::now();
    while read_json(&world.path("serve-progress.json"))["ready"] != true {
        assert!(started.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    let pid = served.child.id().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert_eq!(served.child.wait().unwrap().code(), Some(0));
}

#[test]
fn wrong_surroundings_end_in_one_line() {
    let world = World::new(20);
    let serve = |config: &serde_json::Value| {
        let path = world.save("refused.yaml", config);
        refused(&["serve", "--config", path.to_str().unwrap()])
    };
    let config = world.serve_config();
    let (code, error) = serve(&config);
    assert_eq!(code, 64);
    assert!(error.contains("run `s3-retriever build` first"), "{error}");
    world.build();

    // a taken port, for each server
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for key in ["grpc", "http"] {
        let mut config = world.serve_config();
        config[key] = json!(taken.local_addr().unwrap());
        let (code, error) = serve(&config);
        assert_eq!(code, 64);
        assert!(error.contains(key) && error.contains("choose a free port"), "{error}");
    }

    // another encoder of the same shape
    write_encoder(&world.path("other"), 6);
    let mut config = world.serve_config();
    config["encoder"] = json!(world.path("other"));
    let (code, error) = serve(&config);
    assert_eq!(code, 64);
    assert!(error.contains("serve with that encoder or build the index again"), "{error}");

    // no encoder: lexical only
    let mut config = world.serve_config();
    config.as_object_mut().unwrap().remove("encoder");
    let served = Served::start(&world, &config);
    assert_eq!(served.retrieve(&json!({"queries": ["opera"]})).0, 200);
    config["method"] = json!("Dense");
    config["grpc"] = json!(common::free_address());
    config["http"] = json!(common::free_address());
    let (code, error) = serve(&config);
    assert!(code == 64 && error.contains("no encoder is configured"), "{error}");
}
