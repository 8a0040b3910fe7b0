//! An index over gRPC.

use crate::engine::{Engine, Method, Reply, Search};
use crate::filter::{Condition, Filter};
use crate::front::{AnswersGrpc, took};
use crate::gate::{Gate, status};
use crate::live::Live;
use s3_config::FusionConfig;
use s3_proto::v1::{self, EmbedRequest, EmbedResponse, Hit, Hits, RetrieverInfo, SearchRequest, SearchResponse};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Status;

fn method_of(number: i32) -> Result<Option<Method>, Status> {
    match v1::Method::try_from(number) {
        Ok(v1::Method::Default) => Ok(None),
        Ok(v1::Method::Lexical) => Ok(Some(Method::Lexical)),
        Ok(v1::Method::Dense) => Ok(Some(Method::Dense)),
        Ok(v1::Method::Hybrid) => Ok(Some(Method::Hybrid)),
        Err(_) => Err(Status::invalid_argument(format!("method {number} is not known"))),
    }
}

fn search_of(request: SearchRequest) -> Result<Search, Status> {
    let rerank = match request.rerank() {
        v1::Rerank::Default => None,
        v1::Rerank::Off => Some(false),
        v1::Rerank::On => Some(true),
    };
    let condition = |v1::Condition { field, any_of, deny }| Condition { field, any_of, deny };
    let fusion = request.fusion.map(|fusion| FusionConfig {
        constant: fusion.constant,
        lexical_weight: fusion.lexical_weight,
        dense_weight: fusion.dense_weight,
        depth: fusion.depth as usize,
    });
    Ok(Search {
        method: method_of(request.method)?,
        queries: request.queries,
        top_k: u64::from(request.top_k),
        exact: request.exact,
        filter: Filter(request.filter.into_iter().map(condition).collect()),
        fusion,
        rerank,
    })
}

pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn response(engine: &Engine, reply: &Reply, ids_only: bool, started: Instant) -> Result<SearchResponse, Status> {
    let hit = |one: &crate::rank::Ranked| {
        let entry = engine.index().passages.entry(one.position as usize)?;
        let mut passage = v1::Passage { id: entry.id, ..v1::Passage::default() };
        let mut metadata = std::collections::HashMap::new();
        if !ids_only {
            (passage.title, passage.text) = (entry.title, entry.text);
            metadata = entry.metadata.into_iter().collect();
        }
        Ok(Hit { passage: Some(passage), score: one.score, metadata })
    };
    let hits = |list: &Arc<[crate::rank::Ranked]>| -> crate::Result<Hits> {
        Ok(Hits { hits: list.iter().map(hit).collect::<crate::Result<_>>()? })
    };
    let results = reply.results.iter().map(hits).collect::<crate::Result<_>>();
    let usage = reply.usage;
    Ok(SearchResponse {
        results: results.map_err(|error| status(error.into()))?,
        index_digest: engine.index().digest.clone(),
        timing: Some(v1::Timing {
            queue_ns: nanos(reply.timing.queue),
            encode_ns: nanos(reply.timing.encode),
            search_ns: nanos(reply.timing.search),
            rerank_ns: nanos(reply.timing.rerank),
            total_ns: nanos(started.elapsed()),
        }),
        usage: Some(v1::Usage {
            cached: usage.cached as u32,
            computed: usage.computed as u32,
            round: usage.round as u32,
            scanned_bytes: usage.scanned_bytes,
            reranked: usage.reranked as u32,
        }),
    })
}

impl AnswersGrpc for Arc<Live> {
    async fn search(&self, gate: &Gate, request: SearchRequest) -> Result<SearchResponse, Status> {
        let started = Instant::now();
        let ids_only = request.ids_only;
        let search = search_of(request)?;
        let engine = self.engine();
        let label = search.method.unwrap_or(engine.method()).label();
        let reply = gate.within_status(engine.search(search)).await?;
        let response = response(&engine, &reply, ids_only, started)?;
        took("grpc", label, started);
        Ok(response)
    }

    async fn embed(&self, gate: &Gate, request: EmbedRequest) -> Result<EmbedResponse, Status> {
        let engine = self.engine();
        let vectors = gate.within_status(engine.embed(request.texts, request.passages)).await?;
        let dimensions = vectors.first().map_or(0, Vec::len) as u32;
        Ok(EmbedResponse { values: vectors.concat(), dimensions, index_digest: engine.index().digest.clone() })
    }

    fn info(&self) -> RetrieverInfo {
        let engine = self.engine();
        let index = engine.index();
        let method = match engine.method() {
            Method::Lexical => v1::Method::Lexical,
            Method::Dense => v1::Method::Dense,
            Method::Hybrid => v1::Method::Hybrid,
        };
        RetrieverInfo {
            index_digest: index.digest.clone(),
            content_digest: index.content_digest.clone(),
            passages: index.passages.len() as u64,
            dimensions: index.dense.as_ref().map_or(0, |dense| dense.dimensions() as u32),
            method: method.into(),
            reranker: engine.reranker().is_some(),
            top_k_limit: engine.top_k_limit(),
        }
    }
}
