//! What a request can ask for beside queries: filters, fusion, exactness, reranking, deadlines, tokens, streams.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, WORDS, World, write_encoder};
use s3_proto::tonic::transport::Channel;
use s3_proto::tonic::{Code, Request};
use s3_proto::v1::{Condition, EmbedRequest, Fusion, Method, Rerank, SearchRequest, SearchResponse};
use s3_proto::{CallError, RetrieverClient};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;

/// Passages with metadata: `kind` has four values, `part` is a number.
fn world(passages: usize) -> World {
    let world = World::new(1);
    let mut lines = String::new();
    for at in 0..passages {
        let word = |salt: usize| WORDS[(at * 7 + at / 5 * salt + salt) % WORDS.len()];
        let line = json!({
            "id": format!("p{at}"), "title": format!("{} {}", word(1), at / 2),
            "text": format!("the {} of {} and a {}", word(2), word(3), word(5)),
            "kind": (["a", "b", "c", "d"][at % 4]), "part": at / 100,
        });
        writeln!(lines, "{line}").unwrap();
    }
    std::fs::write(world.path("corpus.jsonl"), lines).unwrap();
    world
}

fn client(served: &Served) -> RetrieverClient {
    RetrieverClient::new(&format!("http://{}", served.grpc), Duration::from_secs(20), 1).unwrap()
}

fn ids(response: &SearchResponse, query: usize) -> Vec<String> {
    response.results[query].hits.iter().map(|hit| hit.passage.as_ref().unwrap().id.clone()).collect()
}

fn number(id: &str) -> usize {
    id[1..].parse().unwrap()
}

fn is(field: &str, any_of: &[&str]) -> Condition {
    Condition { field: field.into(), any_of: any_of.iter().map(ToString::to_string).collect(), deny: false }
}

fn not(field: &str, any_of: &[&str]) -> Condition {
    Condition { deny: true, ..is(field, any_of) }
}

#[tokio::test]
async fn filters_find_what_a_search_of_everything_would_keep() {
    let world = world(600);
    let mut config = world.build_config();
    // codes, so that candidates are chosen before they are filtered
    config["dense"]["index"] = json!({"kind": "OneBit", "recallTarget": 0.9});
    let path = world.save("build.yaml", &config);
    assert_eq!(common::run(&["build", "--config", path.to_str().unwrap()]).0, 0);
    let mut config = world.serve_config();
    config["topKLimit"] = json!(600);
    let served = Served::start(&world, &config);
    let client = client(&served);
    let query = "opera of metal 17";
    for method in [Method::Lexical, Method::Dense] {
        let everything = SearchRequest {
            queries: vec![query.into()],
            top_k: 600,
            method: method.into(),
            exact: true,
            ..Default::default()
        };
        let all = client.search(everything.clone()).await.unwrap();
        let all = ids(&all, 0);
        for (filter, keeps) in [
            (vec![is("kind", &["b"])], (|at| at % 4 == 1) as fn(usize) -> bool),
            (vec![is("kind", &["b", "d"]), not("part", &["0", "2"])], |at| {
                at % 2 == 1 && (at / 100 % 2 == 1 || at / 100 == 4)
            }),
            (vec![not("id", &["p3", "p17", "p34", "nobody"])], |at| ![3, 17, 34].contains(&at)),
            (vec![not("kind", &["a", "b", "c"])], |at| at % 4 == 3),
            (vec![is("id", &["p5", "p70", "p71"])], |at| [5, 70, 71].contains(&at)),
            (vec![is("id", &["p5", "p70"]), not("id", &["p5"])], |at| at == 70),
            (vec![is("nothing", &["x"])], |_| false),
            (vec![not("nothing", &["x"])], |_| true),
        ] {
            let expected: Vec<&String> = all.iter().filter(|id| keeps(number(id))).take(9).collect();
            let request = SearchRequest { filter: filter.clone(), top_k: 9, ..everything.clone() };
            let found = client.search(request.clone()).await.unwrap();
            assert_eq!(ids(&found, 0).iter().collect::<Vec<_>>(), expected, "{method:?} {filter:?}");
            // from the cache, and not another filter's
            assert_eq!(client.search(request).await.unwrap().usage.unwrap().cached, 1);
        }
    }
    // titles are fields too, and hybrid search filters both legs
    let request = SearchRequest {
        queries: vec![query.into()],
        top_k: 50,
        filter: vec![is("kind", &["c"])],
        ..Default::default()
    };
    let found = client.search(request).await.unwrap();
    assert!(ids(&found, 0).len() == 50 && ids(&found, 0).iter().all(|id| number(id) % 4 == 2));
    let hit = &found.results[0].hits[0];
    assert_eq!((hit.metadata["kind"].as_str(), hit.metadata["part"].len()), ("c", 1));
    let title = hit.passage.as_ref().unwrap().title.clone();
    let request =
        SearchRequest { queries: vec![query.into()], filter: vec![is("title", &[&title])], ..Default::default() };
    let found = client.search(request.clone()).await.unwrap();
    assert!(found.results[0].hits.iter().all(|hit| hit.passage.as_ref().unwrap().title == title));
    let bare = client.search(SearchRequest { ids_only: true, ..request }).await.unwrap();
    assert_eq!(ids(&bare, 0), ids(&found, 0));
    assert!(bare.results[0].hits.iter().all(|hit| hit.passage.as_ref().unwrap().text.is_empty()));
}

#[tokio::test]
async fn replies_say_what_they_took_and_fusion_can_be_chosen() {
    let world = world(300);
    world.build();
    let served = Served::start(&world, &world.serve_config());
    let client = client(&served);
    let request =
        SearchRequest { queries: vec!["opera".into(), "metal".into(), "opera".into()], top_k: 8, ..Default::default() };
    let first = client.search(request.clone()).await.unwrap();
    let (timing, usage) = (first.timing.unwrap(), first.usage.unwrap());
    assert_eq!((usage.computed, usage.cached), (2, 0));
    assert!(usage.round >= 2 && usage.scanned_bytes == 300 * 32 * 2, "{usage:?}");
    assert!(timing.encode_ns > 0 && timing.search_ns > 0);
    assert!(timing.total_ns >= timing.encode_ns + timing.search_ns);
    assert_eq!(ids(&first, 0), ids(&first, 2));
    let second = client.search(request.clone()).await.unwrap();
    assert_eq!((second.usage.unwrap().computed, second.usage.unwrap().cached), (0, 3));
    assert_eq!(second.results, first.results);
    // a leg of no weight changes nothing: hybrid is the other leg
    for (method, lexical_weight, dense_weight) in [(Method::Lexical, 1.0, 0.0), (Method::Dense, 0.0, 1.0)] {
        let fusion = Fusion { constant: 60.0, lexical_weight, dense_weight, depth: 8 };
        let hybrid = SearchRequest { fusion: Some(fusion), method: Method::Hybrid.into(), top_k: 4, ..request.clone() };
        let hybrid = client.search(hybrid).await.unwrap();
        let alone = client.search(SearchRequest { method: method.into(), top_k: 4, ..request.clone() }).await.unwrap();
        assert_eq!(ids(&hybrid, 1), ids(&alone, 1), "{method:?}");
    }
    for (bad, says) in [
        (
            SearchRequest {
                fusion: Some(Fusion { lexical_weight: -1.0, depth: 5, ..Default::default() }),
                ..request.clone()
            },
            "fusion",
        ),
        (SearchRequest { fusion: Some(Fusion::default()), ..request.clone() }, "depth is 1 to"),
        (SearchRequest { rerank: Rerank::On.into(), ..request.clone() }, "no reranker"),
    ] {
        let error = client.search(bad).await.unwrap_err();
        assert!(matches!(error, CallError::Refused { .. }) && error.to_string().contains(says), "{error}");
    }
    // vectors of the index's encoder, with either prefix
    let texts = vec!["opera".to_owned(), "metal river".to_owned()];
    let queries = client.embed(EmbedRequest { texts: texts.clone(), passages: false }).await.unwrap();
    assert_eq!((queries.dimensions, queries.values.len()), (32, 64));
    assert_eq!(queries.index_digest, first.index_digest);
    assert!((queries.values[..32].iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
    // alone or with others, however small the encoder: the same to the bit
    let many: Vec<String> = (0..5).map(|at| WORDS[..=at].join(" ")).collect();
    let together = client.embed(EmbedRequest { texts: many.clone(), passages: false }).await.unwrap().values;
    for (text, vector) in many.into_iter().zip(together.chunks(32)) {
        let alone = client.embed(EmbedRequest { texts: vec![text], passages: false }).await.unwrap().values;
        assert_eq!(alone, vector);
    }
    let passages = client.embed(EmbedRequest { texts, passages: true }).await.unwrap();
    assert_ne!(queries.values, passages.values);
}

#[tokio::test]
async fn health_reflection_streams_deadlines_and_tokens() {
    use s3_proto::tonic::transport::Endpoint;
    use s3_proto::v1::retriever_client::RetrieverClient as Raw;
    use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };
    let world = world(200);
    world.build();
    std::fs::create_dir(world.path("tokens")).unwrap();
    std::fs::write(world.path("tokens/job-a"), "token-of-job-a-0001\n").unwrap();
    let mut config = world.serve_config();
    config["tokens"] = json!(world.path("tokens"));
    let served = Served::start(&world, &config);
    let channel: Channel = Endpoint::from_shared(format!("http://{}", served.grpc)).unwrap().connect().await.unwrap();

    // probes need no token
    let request = HealthCheckRequest { service: "s3.v1.Retriever".into() };
    let health = HealthClient::new(channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::Serving);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::FileContainingSymbol("s3.v1.Retriever".into())),
    };
    let mut replies = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let reply = replies.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::FileDescriptorResponse(files) = reply else { panic!("{reply:?}") };
    assert!(files.file_descriptor_proto.concat().windows(12).any(|part| part == b"SearchStream"));

    // everything else does
    let search = SearchRequest { queries: vec!["opera".into()], ..Default::default() };
    let open = client(&served);
    let error = open.search(search.clone()).await.unwrap_err();
    assert!(error.to_string().contains("nobody has this token"), "{error}");
    assert!(open.info().await.is_err());
    let known = client(&served).with_token("token-of-job-a-0001").unwrap();
    assert_eq!(known.search(search.clone()).await.unwrap().results.len(), 1);
    let foreign = client(&served).with_token("token-of-job-b-0001").unwrap();
    assert!(foreign.search(search.clone()).await.is_err());
    let (status, body) = served.retrieve(&json!({"queries": ["opera"]}));
    assert!(status == 401 && body["error"].as_str().unwrap().contains("Bearer"), "{body}");
    let shown = "authorization: Bearer token-of-job-a-0001\r\n";
    let post = |headers: &str| served.request_with("POST", "/retrieve", headers, r#"{"queries":["opera"]}"#);
    assert_eq!(post(shown).unwrap().0, 200);

    // a stream answers each request in turn, a wrong one with its own error
    let mut requests: Vec<SearchRequest> =
        WORDS.iter().map(|word| SearchRequest { queries: vec![(*word).into()], ..Default::default() }).collect();
    requests.push(SearchRequest { top_k: 9999, ..search.clone() });
    let mut asking = Request::new(tokio_stream::iter(requests.clone()));
    asking.metadata_mut().insert("authorization", "Bearer token-of-job-a-0001".parse().unwrap());
    let mut replies = Raw::new(channel.clone()).search_stream(asking).await.unwrap().into_inner();
    for request in &requests[..WORDS.len()] {
        let reply = replies.message().await.unwrap().unwrap();
        assert_eq!(reply.results, known.search(request.clone()).await.unwrap().results);
    }
    assert_eq!(replies.message().await.unwrap_err().code(), Code::InvalidArgument);

    // a deadline that has passed ends the call, and the server goes on
    let many: Vec<String> = (0..5).map(|at| format!("opera of metal and planet {at}")).collect();
    let late = format!("{shown}x-timeout-ms: 0\r\n");
    let (status, body) =
        served.request_with("POST", "/retrieve", &late, &json!({"queries": many}).to_string()).unwrap();
    assert!(status == 504 && body.contains("not answered within 0 ms"), "{status} {body}");
    let wrong = format!("{shown}x-timeout-ms: soon\r\n");
    assert_eq!(post(&wrong).unwrap().0, 400);
    assert_eq!(known.search(search.clone()).await.unwrap().results.len(), 1);
    // a server's own deadline
    let mut config = world.serve_config();
    config["deadlineMillis"] = json!(0);
    let served = Served::start(&world, &config);
    let channel = Endpoint::from_shared(format!("http://{}", served.grpc)).unwrap().connect().await.unwrap();
    let status = Raw::new(channel).search(search).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[tokio::test]
async fn rerankers_reorder_and_answer_in_the_references_shapes() {
    let world = world(120);
    world.build();
    write_encoder(&world.path("cross"), 11);
    let mut config = world.serve_config();
    config["reranker"] = json!({"model": world.path("cross"), "depth": 10, "maxTokens": 40});
    config["topKLimit"] = json!(120);
    let served = Served::start(&world, &config);
    let client = client(&served);
    assert!(client.info().await.unwrap().reranker);
    let request = SearchRequest { queries: vec!["opera metal".into()], top_k: 4, ..Default::default() };
    let plain =
        client.search(SearchRequest { top_k: 10, rerank: Rerank::Off.into(), ..request.clone() }).await.unwrap();
    let reranked = client.search(request.clone()).await.unwrap();
    assert_eq!(reranked.usage.unwrap().reranked, 10);
    assert!(reranked.timing.unwrap().rerank_ns > 0);
    let best = client.search(SearchRequest { top_k: 10, ..request.clone() }).await.unwrap();
    assert_eq!(ids(&best, 0)[..4], ids(&reranked, 0), "the best of the same ten");
    assert!(best.results[0].hits.is_sorted_by(|a, b| a.score >= b.score));
    let sorted = |response| {
        let mut found = ids(response, 0);
        found.sort();
        found
    };
    assert_eq!(sorted(&best), sorted(&plain), "the same passages");
    assert_ne!(ids(&best, 0), ids(&plain, 0), "in another order");

    // POST /rerank: the same scores for the same texts
    let contents: Vec<Value> = plain.results[0]
        .hits
        .iter()
        .map(|hit| hit.passage.as_ref().unwrap())
        .map(|it| json!({"id": it.id, "contents": format!("\"{}\"\n{}", it.title, it.text)}))
        .collect();
    let wrapped: Vec<Value> = contents.iter().map(|document| json!({"document": document, "score": 1.5})).collect();
    let post = |body: &Value| {
        let (status, text) = served.try_request("POST", "/rerank", &body.to_string()).unwrap();
        (status, serde_json::from_str::<Value>(&text).unwrap())
    };
    let first = best.results[0].hits[0].clone();
    let it = first.passage.unwrap();
    let expected = format!("(Title: {}) {}", it.title, it.text);
    for documents in [&contents, &wrapped] {
        let (status, body) = post(&json!({
            "queries": ["opera metal", "treaty"], "documents": [documents, [documents[0]]], "rerank_topk": 2, "return_scores": true,
        }));
        assert_eq!(status, 200, "{body}");
        assert_eq!(body["result"][0].as_array().unwrap().len(), 2);
        assert_eq!(body["result"][1].as_array().unwrap().len(), 1, "each query has its own documents only");
        assert_eq!(body["result"][0][0], json!({"document": expected, "score": first.score}));
    }
    let (_, body) = post(&json!({"queries": ["opera metal"], "documents": [contents]}));
    assert_eq!((body["result"][0].as_array().unwrap().len(), &body["result"][0][0]), (3, &json!(expected)));
    for (body, says) in [
        (json!({"queries": ["a"], "documents": []}), "one list a query"),
        (json!({"queries": ["a"], "documents": [[{"id": "x"}]]}), "neither contents nor text"),
        (json!({"queries": ["a"]}), "missing field"),
    ] {
        let (status, error) = post(&body);
        assert!(status == 400 && error["error"].as_str().unwrap().contains(says), "{error}");
    }
    // the combined server's /retrieve: documents as strings
    let (status, body) = served
        .retrieve(&json!({"queries": ["opera metal"], "topk_retrieval": 10, "topk_rerank": 2, "return_scores": true}));
    assert_eq!(status, 200);
    assert_eq!(body["result"][0].as_array().unwrap().len(), 2);
    assert_eq!(
        body["result"][0][0],
        json!({"document": format!("\"{}\"\n{}", it.title, it.text), "score": first.score})
    );
    // without a reranker both are refused
    let other = world.serve_config();
    let served = Served::start(&world, &other);
    assert_eq!(served.try_request("POST", "/rerank", r#"{"queries":[],"documents":[]}"#).unwrap().0, 400);
    assert_eq!(served.retrieve(&json!({"queries": ["a"], "topk_rerank": 2})).0, 400);
}
