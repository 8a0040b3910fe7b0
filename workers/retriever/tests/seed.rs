//! The reference's own path at small scale, in the layouts that it is released in: `wiki-18.jsonl.gz` or
//! `medcorpus.jsonl`, and `e5_Flat.index` in the parts `part_aa` and `part_ab`; imported, checked, served, and asked as
//! the reference's client does, with scores and without.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Served, WORDS, World, command, faiss_flat, read_json, refused, run};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;

/// Rows of the released corpora: an id that is the row's number, the title in quotes on the contents' first line.
fn released(passages: usize) -> String {
    let mut lines = String::new();
    for at in 0..passages {
        let word = |salt: usize| WORDS[(at * 7 + at / 5 * salt + salt) % WORDS.len()];
        // titles with brackets and quotes are what the reference's clients stumble over
        let title = if at % 9 == 4 { format!("{} ({at}) \"film\"", word(1)) } else { format!("{} {at}", word(1)) };
        let contents = format!("\"{title}\"\nthe {} of {} and a {}", word(2), word(3), word(5));
        writeln!(lines, "{}", json!({"id": at.to_string(), "contents": contents})).unwrap();
    }
    lines
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs a question about an index; its answer.
fn answer(arguments: &[&str]) -> Value {
    let output = command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_downloaded_index_is_joined_imported_and_answers_as_the_client_expects() {
    const PASSAGES: usize = 150;
    for (name, packed) in [("wiki-18.jsonl.gz", true), ("medcorpus.jsonl", false)] {
        let world = World::new(1);
        let text = released(PASSAGES);
        let bytes = if packed { gzip(text.as_bytes()) } else { text.clone().into_bytes() };
        std::fs::write(world.path(name), bytes).unwrap();
        let build = |vectors: Option<Value>| {
            let mut config = world.build_config();
            config["corpus"]["path"] = json!(world.path(name));
            config["dense"]["passagePrefix"] = json!("passage: ");
            config["dense"]["queryPrefix"] = json!("query: ");
            if let Some(vectors) = vectors {
                config["dense"]["vectors"] = vectors;
            }
            let path = world.save("build.yaml", &config);
            let (code, error) = run(&["build", "--config", path.to_str().unwrap()]);
            assert_eq!(code, 0, "{error}");
            read_json(&world.path("build-result.json"))
        };
        // the published vectors: the encoder's own
        build(None);
        let dense = s3_retriever::index::Index::open_current(&world.path("index")).unwrap().dense.unwrap();
        let rows: Vec<f32> = (0..PASSAGES).flat_map(|at| dense.vector(at)).collect();
        let file = faiss_flat(&rows, dense.dimensions());
        drop(dense);
        std::fs::remove_dir_all(world.path("index")).unwrap();
        let (aa, ab) = (world.path("part_aa"), world.path("part_ab"));
        let (first, second) = file.split_at(file.len() * 2 / 3);
        std::fs::write(&aa, first).unwrap();
        std::fs::write(&ab, second).unwrap();
        let vectors = json!({"path": aa, "parts": [ab], "sha256": s3_artifacts::digest_bytes(&file), "verify": 30});
        let outcome = build(Some(vectors));
        assert_eq!(outcome["summary"]["passages"], PASSAGES);

        // what it is, and that it is whole
        let folder = world.path("index");
        let inspected = answer(&["inspect", folder.to_str().unwrap()]);
        assert_eq!(inspected["versions"].as_array().unwrap().len(), 1);
        assert_eq!(inspected["versions"][0]["digest"], outcome["digest"]);
        let mut config = world.serve_config();
        config["topK"] = json!(12);
        let serve = world.save("check.yaml", &config);
        let serve = serve.to_str().unwrap();
        let verified = answer(&["verify", "--config", serve]);
        assert_eq!((&verified["encoderChecked"], &verified["current"]), (&json!(true), &json!(true)));
        let asked =
            world.save("asked.yaml", &json!({"queries": ["opera of metal", "river 17"], "topK": 4, "method": "Dense"}));
        let asked = asked.to_str().unwrap();
        let searched = answer(&["search", "--config", serve, "--queries", asked]);
        let compared = answer(&["compare", "--config", serve, "--other", serve, "--queries", asked]);
        assert_eq!(
            (&compared["overlap"], &compared["sameRanking"], &compared["queries"]),
            (&json!(1.0), &json!(1.0), &json!(2))
        );

        // the client's request, and both shapes of the reply
        config["method"] = json!("Dense");
        let served = Served::start(&world, &config);
        let queries = json!(["opera of metal", "river 17"]);
        let (status, scored) = served.retrieve(&json!({"queries": queries, "topk": 4, "return_scores": true}));
        assert_eq!(status, 200);
        let (status, bare) = served.retrieve(&json!({"queries": queries, "topk": 4, "return_scores": false}));
        assert_eq!(status, 200);
        let corpus: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        for query in 0..2 {
            let hits = scored["result"][query].as_array().unwrap();
            assert_eq!(hits.len(), 4);
            let mut last = f64::INFINITY;
            for (place, hit) in hits.iter().enumerate() {
                let document = &hit["document"];
                let row: usize = document["id"].as_str().unwrap().parse().unwrap();
                // byte for byte what stands in the corpus, by the row that FAISS numbers
                assert_eq!((&document["id"], &document["contents"]), (&corpus[row]["id"], &corpus[row]["contents"]));
                assert_eq!(&bare["result"][query][place], document);
                assert_eq!(searched["results"][query][place]["id"], document["id"]);
                let score = hit["score"].as_f64().unwrap();
                assert!(score <= last && score <= 1.0001, "{score} after {last}");
                last = score;
            }
        }
        // no topk: the launcher's default
        let (_, whole) = served.retrieve(&json!({"queries": ["opera"]}));
        assert_eq!(whole["result"][0].as_array().unwrap().len(), 12);
    }
}

#[test]
fn questions_about_what_is_not_there_end_in_one_line() {
    let world = World::new(20);
    let folder = world.path("index");
    let (code, error) = refused(&["inspect", folder.to_str().unwrap()]);
    assert!(code == 64 && error.contains("no index is published there"), "{error}");
    world.build();
    let serve = world.save("serve.yaml", &world.serve_config());
    let serve = serve.to_str().unwrap();
    for (asked, says) in [
        (json!({"queries": ["a"], "topK": 9999}), "top-k 9999 is too large"),
        (json!({"queries": ["a"], "method": "Fancy"}), "method Fancy is not known"),
        (json!({"query": ["a"]}), "unknown field `query`"),
    ] {
        let asked = world.save("asked.yaml", &asked);
        let (code, error) = refused(&["search", "--config", serve, "--queries", asked.to_str().unwrap()]);
        assert!(code == 64 && error.contains(says), "{error}");
    }
    let asked = world.save("asked.yaml", &json!({"queries": []}));
    let (code, error) =
        refused(&["compare", "--config", serve, "--other", serve, "--queries", asked.to_str().unwrap()]);
    assert!(code == 64 && error.contains("no queries"), "{error}");
    // damage is found by reading
    let digest = s3_retriever::index::current(&folder).unwrap().0;
    let path = folder.join(digest).join("vectors.f16");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let (code, error) = refused(&["verify", "--config", serve]);
    assert!(code == 64 && error.contains("vectors.f16"), "{error}");
}
