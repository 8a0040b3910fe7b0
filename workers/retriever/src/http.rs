//! An index over HTTP: `POST /retrieve` and `POST /rerank` with the s3 reference's shapes, and health.
//!
//! Repaired against the reference: `return_scores: false` answers what it was meant to, an empty list of queries gives
//! an empty result, each query is paired with its own documents only, and whatever cannot be answered is a 4xx that says
//! why.

use crate::engine::{Engine, Reply, Search, SearchError};
use crate::front::{AnswersHttp, Body, Retrieve, took};
use crate::gate::{Gate, Refusal, count_refusal, refuse};
use crate::live::Live;
use crate::rank::Ranked;
use crate::rerank::rendered;
use crate::splice;
use axum::Json;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Passages that the reference's combined server hands out.
const TOP_RERANKED: u64 = 3;

#[derive(Deserialize)]
struct Rerank {
    queries: Vec<String>,
    documents: Vec<Vec<Value>>,
    #[serde(default, rename = "rerank_topk")]
    topk: Option<usize>,
    #[serde(default)]
    return_scores: bool,
}

impl AnswersHttp for Arc<Live> {
    async fn retrieve(
        &self,
        gate: &Gate,
        headers: &HeaderMap,
        request: Retrieve,
        started: Instant,
    ) -> Result<Response, Refusal> {
        let engine = self.engine();
        let combined = request.topk_retrieval.is_some() || request.topk_rerank.is_some();
        let search = Search {
            queries: request.queries,
            top_k: if combined { request.topk_rerank.unwrap_or(TOP_RERANKED) } else { request.topk.unwrap_or(0) },
            rerank: combined.then_some(true),
            ..Search::default()
        };
        let reply = gate.within(headers, engine.search(search)).await?;
        let response = match write(&engine, &reply, request.return_scores, combined) {
            Some(body) => answered(body, &engine, &reply, started.elapsed()),
            None => refuse(StatusCode::INTERNAL_SERVER_ERROR, "a stored passage is damaged; build the index again"),
        };
        took("http", engine.method().label(), started);
        Ok(response)
    }

    async fn rerank(&self, gate: &Gate, headers: &HeaderMap, body: &Body) -> Result<Response, Refusal> {
        let started = Instant::now();
        let reranked = reranked(&self.engine(), gate, headers, body).await;
        took("http", "rerank", started);
        reranked
    }

    fn health(&self) -> Value {
        let engine = self.engine();
        let index = engine.index();
        json!({"status": "healthy", "index": index.digest, "passages": index.passages.len()})
    }
}

fn answered(body: Vec<u8>, engine: &Engine, reply: &Reply, total: Duration) -> Response {
    let parts = reply.timing.parts().into_iter().filter(|(_, time)| !time.is_zero());
    response(body, &engine.index().digest, parts.chain([("total", total)]))
}

/// A reply with its index and where the time went.
pub(crate) fn response(body: Vec<u8>, digest: &str, parts: impl Iterator<Item = (&'static str, Duration)>) -> Response {
    let mut timing = String::with_capacity(128);
    for (name, time) in parts {
        // Writing into a String cannot fail.
        let micros = time.as_micros();
        let _ = write!(timing, "{name};dur={}.{:03},", micros / 1000, micros % 1000);
    }
    timing.pop();
    let mut response = Response::new(body.into());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in [("server-timing", timing.as_str()), ("x-index-digest", digest)] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// The result, its documents as the reference's server writes them, or as its combined one does.
fn write(engine: &Engine, reply: &Reply, scores: bool, contents: bool) -> Option<Vec<u8>> {
    let line = |hit: &Ranked| engine.index().passages.line(hit.position as usize);
    let size: usize = reply.results.iter().flat_map(|list| list.iter()).map(|hit| 2 * line(hit).len() + 96).sum();
    let lists = reply.results.iter().map(|list| list.iter().map(|hit| Some((line(hit), hit.score))));
    result(lists, size, scores, if contents { splice::contents } else { splice::document })
}

/// `{"result": …}`: per query its hits, from their stored lines, with their scores when asked for. None when one cannot
/// be written. `size` bytes are expected.
pub(crate) fn result<L: AsRef<[u8]>>(
    lists: impl Iterator<Item = impl Iterator<Item = Option<(L, f64)>>>,
    size: usize,
    scores: bool,
    document: fn(&[u8], &mut Vec<u8>) -> bool,
) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(size + 64);
    out.extend_from_slice(br#"{"result":["#);
    for (number, list) in lists.enumerate() {
        out.extend_from_slice(if number == 0 { b"[" } else { b",[" });
        for (place, hit) in list.enumerate() {
            if place > 0 {
                out.push(b',');
            }
            let (line, score) = hit?;
            if scores {
                out.extend_from_slice(br#"{"document":"#);
                document(line.as_ref(), &mut out).then_some(())?;
                out.extend_from_slice(br#","score":"#);
                serde_json::to_writer(&mut out, &score).ok()?;
                out.push(b'}');
            } else {
                document(line.as_ref(), &mut out).then_some(())?;
            }
        }
        out.push(b']');
    }
    out.extend_from_slice(b"]}");
    Some(out)
}

async fn reranked(engine: &Arc<Engine>, gate: &Gate, headers: &HeaderMap, body: &Body) -> Result<Response, Refusal> {
    let form = r#"{"queries": [string], "documents": [[{"contents": string}]], "rerank_topk": integer, "return_scores": boolean}"#;
    let request: Rerank = gate.parse(headers, body, form)?;
    let asked = pairs(&request, engine).map_err(|reason| {
        count_refusal("rerank");
        refuse(StatusCode::BAD_REQUEST, &reason)
    })?;
    let top = request.topk.filter(|top| *top > 0).unwrap_or(TOP_RERANKED as usize);
    let work = engine.on_threads(move |engine| {
        let Some(reranker) = engine.reranker() else { return Ok(Vec::new()) };
        let one = |(query, texts): (String, Vec<String>)| {
            let scores = reranker.scores(&query, &texts)?;
            let mut order: Vec<(f32, String)> = scores.into_iter().zip(texts).collect();
            // equal scores keep the caller's order
            order.sort_by(|a, b| b.0.total_cmp(&a.0));
            order.truncate(top);
            Ok(order)
        };
        asked.into_iter().map(one).collect::<crate::Result<Vec<_>>>()
    });
    let scores = request.return_scores;
    let found = gate.within(headers, async { work.await?.map_err(SearchError::from) }).await?;
    let entry = |(score, text): (f32, String)| {
        if scores { json!({"document": text, "score": f64::from(score)}) } else { Value::String(text) }
    };
    let result: Vec<Vec<Value>> = found.into_iter().map(|list| list.into_iter().map(entry).collect()).collect();
    Ok(Json(json!({ "result": result })).into_response())
}

/// The texts to score for every query, or what is wrong with the request.
fn pairs(request: &Rerank, engine: &Engine) -> Result<Vec<(String, Vec<String>)>, String> {
    if engine.reranker().is_none() {
        return Err("this server has no reranker".to_owned());
    }
    if request.queries.len() != request.documents.len() {
        let (queries, lists) = (request.queries.len(), request.documents.len());
        return Err(format!("{queries} queries and {lists} lists of documents; one list a query is needed"));
    }
    if request.queries.len() > engine.queries_limit() {
        return Err(format!("at most {} queries are accepted", engine.queries_limit()));
    }
    let text = |document: &Value| {
        let inner = document.get("document").unwrap_or(document);
        let part = |name: &str| inner.get(name).and_then(Value::as_str);
        match (inner.as_str().or(part("contents")), part("text")) {
            (Some(contents), _) => {
                let (first, rest) = contents.split_once('\n').unwrap_or(("", contents));
                Ok(rendered(first.trim_matches('"'), rest))
            }
            (None, Some(text)) => Ok(rendered(part("title").unwrap_or_default(), text)),
            _ => Err("a document has neither contents nor text".to_owned()),
        }
    };
    let one = |(query, documents): (&String, &Vec<Value>)| {
        Ok((query.clone(), documents.iter().map(text).collect::<Result<Vec<_>, String>>()?))
    };
    request.queries.iter().zip(&request.documents).map(one).collect()
}
