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
    SearchRequest {
        queries: queries.iter().map(ToString::to_string).collect(),
        top_k,
        method: method.into(),
        ..Default::default()
    }
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

/// Versions change under load: no request fails, and no reply is of two versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_swapped_without_a_failed_or_mixed_reply() {
    swapped(2000, 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a million requests across swaps; many minutes"]
async fn a_million_requests_across_swaps() {
    swapped(1_000_000, 200).await;
}

async fn swapped(requests: usize, swaps: usize) {
    use std::sync::atomic::{AtomicUsize, Ordering};
    let world = World::new(200);
    let first = world.build()["digest"].as_str().unwrap().to_owned();
    let corpus = std::fs::read_to_string(world.path("corpus.jsonl")).unwrap();
    std::fs::write(world.path("corpus.jsonl"), corpus.replace("\"id\":\"p", "\"id\":\"q")).unwrap();
    let second = world.build()["digest"].as_str().unwrap().to_owned();
    let mut config = world.serve_config();
    config["watchMillis"] = json!(5);
    // every request is computed: the cache would answer most of them
    config["cacheEntries"] = json!(0);
    let served = Served::start(&world, &config);
    let (done, changes) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let client = client(&served);
    let ask = async |caller: usize| {
        let mut last = String::new();
        while done.fetch_add(1, Ordering::SeqCst) < requests || changes.load(Ordering::SeqCst) < swaps {
            let at = done.load(Ordering::SeqCst) * 7 + caller;
            let words = format!("{} {}", common::WORDS[at % 8], at % 200);
            let method = [Method::Lexical, Method::Dense, Method::Hybrid][at % 3];
            let reply = client.search(search(&[&words], 5, method)).await.unwrap();
            let letter = if reply.index_digest == first { "p" } else { "q" };
            assert!(reply.index_digest == first || reply.index_digest == second);
            let hits = &reply.results[0].hits;
            assert!(!hits.is_empty());
            let ids = hits.iter().map(|hit| &hit.passage.as_ref().unwrap().id);
            assert!(ids.into_iter().all(|id| id.starts_with(letter)), "{hits:?} of {letter}");
            changes.fetch_add(usize::from(!last.is_empty() && last != letter), Ordering::SeqCst);
            letter.clone_into(&mut last);
        }
    };
    let swap = async {
        let output = world.path("index");
        let mut version = 0;
        while done.load(Ordering::SeqCst) < requests || changes.load(Ordering::SeqCst) < swaps {
            version += 1;
            if version % 5 == 0 {
                // a pointer to something that is not there: the old version is served on
                std::fs::write(output.join("CURRENT"), format!("{} {}\n", "0f".repeat(32), "a9".repeat(32))).unwrap();
            } else {
                s3_retriever::index::set_current(&output, if version % 2 == 0 { &first } else { &second }).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    };
    tokio::join!(ask(0), ask(1), ask(2), ask(3), swap);
    assert!(changes.load(Ordering::SeqCst) >= swaps);
}

#[tokio::test]
async fn too_many_requests_are_refused_and_none_is_lost() {
    let world = World::new(300);
    world.build();
    let mut config = world.serve_config();
    config["requestsLimit"] = json!(1);
    config["cacheEntries"] = json!(0);
    let served = Served::start(&world, &config);
    let bodies: Vec<String> = (0..5).map(|at| format!("opera of metal and planet {at}")).collect();
    let body = json!({"queries": bodies, "topk": 20}).to_string();
    let (mut answered, mut refused) = (0, 0);
    let started = Instant::now();
    while refused == 0 || answered == 0 {
        assert!(started.elapsed() < Duration::from_secs(60), "{answered} answered, {refused} refused");
        std::thread::scope(|scope| {
            let ask = || served.try_request("POST", "/retrieve", &body).unwrap();
            let asking: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
            for one in asking {
                let (status, reply) = one.join().unwrap();
                match status {
                    200 => answered += 1,
                    429 => {
                        assert!(reply.contains("ask again in a moment"), "{reply}");
                        refused += 1;
                    }
                    other => panic!("{other}: {reply}"),
                }
            }
        });
    }
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
