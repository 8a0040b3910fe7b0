//! hit@k of every ranking of a served index, over question files: the share of questions with a gold answer in
//! one of the first k passages, with its 95 % Wilson interval. Questions that hold a gold answer themselves are
//! left out, as are those without any.
//!
//! ```text
//! hits SERVE.yaml FIRST NAME=QUESTIONS.jsonl …
//! ```
//! With a reranker, hybrid search is also asked the first FIRST questions of each set, with it and without: reading
//! pairs takes long.
#![allow(clippy::unwrap_used)] // a measuring program: anything unexpected ends it

use s3_config::{DatasetConfig, RetrieverServeConfig};
use s3_retriever::audit::read_questions;
use s3_retriever::engine::{Engine, Method, Search};
use s3_search::text::{contains, normalize, span_tokens, tokens};
use std::collections::HashMap;
use std::path::Path;

const DEPTHS: [usize; 5] = [1, 3, 5, 10, 20];

/// 95 % Wilson interval of a share.
fn wilson(hits: usize, n: usize) -> (f64, f64) {
    let (z, n) = (1.959_964, n as f64);
    let p = hits as f64 / n;
    let centre = (p + z * z / (2.0 * n)) / (1.0 + z * z / n);
    let half = z / (1.0 + z * z / n) * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
    (centre - half, centre + half)
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [config, first, sets @ ..] = &arguments[..] else { panic!("hits SERVE.yaml FIRST NAME=QUESTIONS.jsonl …") };
    let first: usize = first.parse().unwrap();
    let config: RetrieverServeConfig = s3_config::load(Path::new(config)).unwrap();
    let engine = Engine::open(&config).unwrap();
    println!("index {}, {} passages", engine.index().digest, engine.index().passages.len());
    let mut texts: HashMap<String, Vec<String>> = HashMap::new();
    for set in sets {
        let (name, path) = set.split_once('=').unwrap();
        let questions =
            read_questions(&DatasetConfig { name: name.to_owned(), path: path.into(), ..DatasetConfig::default() })
                .unwrap();
        let asked: Vec<(String, Vec<Vec<String>>)> = questions
            .into_iter()
            .filter_map(|question| {
                let own = span_tokens(&question.question);
                let golds: Vec<Vec<String>> = question
                    .answers
                    .iter()
                    .map(|gold| tokens(&normalize(gold)))
                    .filter(|gold| !gold.is_empty())
                    .collect();
                let open = !golds.is_empty() && golds.iter().all(|gold| !contains(&own, gold));
                open.then_some((question.question, golds))
            })
            .collect();
        let all = asked.len();
        let mut rankings = vec![
            (Method::Lexical, false, "lexical", all),
            (Method::Dense, false, "dense", all),
            (Method::Hybrid, false, "hybrid", all),
        ];
        if engine.reranker().is_some() {
            rankings.push((Method::Hybrid, false, "hybrid", first.min(all)));
            rankings.push((Method::Hybrid, true, "hybrid, reranked", first.min(all)));
        }
        for (method, rerank, label, count) in rankings {
            let asked = &asked[..count];
            let mut hits = [0; DEPTHS.len()];
            for batch in asked.chunks(64) {
                let queries: Vec<String> = batch.iter().map(|(query, _)| query.clone()).collect();
                let search =
                    Search { queries, top_k: 20, method: Some(method), rerank: Some(rerank), ..Search::default() };
                let found = engine.search_blocking(search).unwrap().results;
                for ((_, golds), found) in batch.iter().zip(found) {
                    let first = found.iter().position(|hit| {
                        let passage = engine.index().passages.get(hit.position as usize).unwrap();
                        let text = texts
                            .entry(passage.id.clone())
                            .or_insert_with(|| span_tokens(&format!("{} {}", passage.title, passage.text)));
                        golds.iter().any(|gold| contains(text, gold))
                    });
                    for (hits, depth) in hits.iter_mut().zip(DEPTHS) {
                        *hits += usize::from(first.is_some_and(|first| first < depth));
                    }
                }
            }
            print!("| {name} ({}) | {} |", asked.len(), label);
            for hits in hits {
                let (low, high) = wilson(hits, asked.len());
                let share = 100.0 * hits as f64 / asked.len() as f64;
                print!(" {share:.1} [{:.1}, {:.1}] |", 100.0 * low, 100.0 * high);
            }
            println!();
        }
    }
}
