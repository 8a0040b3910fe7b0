//! Answers batches of queries from one open index: limits, cache, the legs and their fusion. No sockets.

use crate::batch::Batcher;
use crate::cache::{Cache, Key};
use crate::corpus::contents;
use crate::dense::DenseIndex;
use crate::embed::{cosine, encoder_files};
use crate::error::{Result, RetrieverError};
use crate::index::Index;
use crate::rank::{Ranked, fuse};
use rayon::prelude::*;
use s3_config::{FusionConfig, RetrievalMethod, RetrieverServeConfig};
use s3_model::encoder::{Encoder, EncoderSpec};
use s3_search::Passage;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A ranking that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// BM25.
    Lexical,
    /// Inner product of embeddings.
    Dense,
    /// Reciprocal rank fusion of both.
    Hybrid,
}

impl Method {
    /// Label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Lexical => "lexical",
            Self::Dense => "dense",
            Self::Hybrid => "hybrid",
        }
    }
}

/// Why a request is answered with nothing.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// The request is wrong; the label counts it.
    #[error("{message}")]
    Refused {
        /// Label in metrics.
        reason: &'static str,
        /// What to change.
        message: String,
    },
    /// Something broke here.
    #[error(transparent)]
    Failed(#[from] RetrieverError),
}

fn refused<T>(reason: &'static str, message: String) -> Result<T, SearchError> {
    s3_telemetry::metrics().retriever_refused.with_label_values(&[reason]).inc();
    Err(SearchError::Refused { reason, message })
}

/// A found passage.
#[derive(Clone, Debug)]
pub struct Found {
    /// The passage.
    pub passage: Passage,
    /// Its score by the method.
    pub score: f64,
}

/// What a request may ask for.
struct Limits {
    top_k: usize,
    top_k_limit: usize,
    queries: usize,
}

/// An open index with everything that searching it needs.
pub struct Engine {
    index: Index,
    name: Arc<str>,
    encoder: Option<Encoder>,
    method: Method,
    fusion: FusionConfig,
    limits: Limits,
    cache: Mutex<Cache>,
    pool: rayon::ThreadPool,
    batcher: Batcher<(usize, Vec<f32>), Vec<Ranked>>,
}

/// Queries of one shared reading of the index.
const SHARED: usize = 512;

impl Engine {
    /// Opens the current index and its encoder, and asks it about its own passages.
    pub fn open(config: &RetrieverServeConfig) -> Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.runtime.threads.unwrap_or(0))
            .build()
            .map_err(|error| RetrieverError::Internal(format!("thread pool: {error}")))?;
        let index = Index::open_current(&config.index)?;
        let encoder = load_encoder(&index, config)?;
        let method = default_method(&index, encoder.is_some(), config.method)?;
        let limits = Limits {
            top_k: config.top_k as usize,
            top_k_limit: config.top_k_limit as usize,
            queries: config.queries_limit,
        };
        if limits.top_k == 0 || limits.top_k > limits.top_k_limit {
            return Err(RetrieverError::Invalid(format!(
                "topK is {}: choose 1 to topKLimit ({})",
                limits.top_k, limits.top_k_limit
            )));
        }
        let cache = Mutex::new(Cache::new(config.cache_entries));
        let name = index.digest.as_str().into();
        let (fusion, batcher) = (config.fusion.clone(), Batcher::new(SHARED));
        let engine = Self { index, name, encoder, method, fusion, limits, cache, pool, batcher };
        engine.self_query()?;
        s3_telemetry::metrics()
            .retriever_passages
            .with_label_values::<&str>(&[])
            .set(engine.index.passages.len() as f64);
        Ok(engine)
    }

    /// The index that is served.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The ranking behind `Default`.
    pub fn method(&self) -> Method {
        self.method
    }

    /// Ranks passages for every query, in the request's order. `top_k` zero takes the default.
    pub fn search(
        &self,
        queries: &[String],
        top_k: u64,
        method: Option<Method>,
    ) -> Result<Vec<Vec<Found>>, SearchError> {
        let method = method.unwrap_or(self.method);
        let limit = self.limits.queries;
        if queries.len() > limit {
            return refused(
                "queries",
                format!("{} queries in one request; at most {limit} are accepted", queries.len()),
            );
        }
        let limit = self.limits.top_k_limit;
        let k = if top_k == 0 { self.limits.top_k } else { top_k as usize };
        if k > limit {
            return refused("top_k", format!("top-k {top_k} is too large; at most {limit} is accepted"));
        }
        if !self.can(method) {
            let message =
                format!("{} search is not available: this index or server lacks a leg for it", method.label());
            return refused("method", message);
        }
        let ranked = self.ranked(queries, k, method);
        ranked?.iter().map(|list| self.found(list).map_err(SearchError::from)).collect()
    }

    fn can(&self, method: Method) -> bool {
        can(&self.index, self.encoder.is_some(), method)
    }

    fn ranked(&self, queries: &[String], k: usize, method: Method) -> Result<Vec<Arc<[Ranked]>>> {
        let key = |query: &str| Key { index: self.name.clone(), method, k, query: query.to_owned() };
        let mut results: BTreeMap<&str, Option<Arc<[Ranked]>>> = BTreeMap::new();
        {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for query in queries {
                results.entry(query).or_insert_with(|| cache.get(&key(query)));
            }
        }
        let missing: Vec<&str> = results.iter().filter(|(_, found)| found.is_none()).map(|(query, _)| *query).collect();
        let counts = s3_telemetry::metrics();
        let count = |outcome, number: usize| {
            counts.retriever_queries.with_label_values(&[method.label(), outcome]).inc_by(number as u64);
        };
        count("miss", missing.len());
        count("hit", queries.len() - missing.len());
        let computed = self.compute(&missing, k, method)?;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        for (query, list) in missing.into_iter().zip(computed) {
            let list: Arc<[Ranked]> = list.into();
            cache.insert(key(query), list.clone());
            results.insert(query, Some(list));
        }
        drop(cache);
        Ok(queries.iter().filter_map(|query| results.get(query.as_str()).cloned().flatten()).collect())
    }

    fn compute(&self, queries: &[&str], k: usize, method: Method) -> Result<Vec<Vec<Ranked>>> {
        match method {
            Method::Lexical => Ok(self.lexical(queries, k)),
            Method::Dense => self.dense(queries, k),
            Method::Hybrid => {
                let depth = self.fusion.depth.max(k);
                let legs = self.lexical(queries, depth).into_iter().zip(self.dense(queries, depth)?);
                Ok(legs.map(|(lexical, dense)| fuse(&lexical, &dense, &self.fusion, k)).collect())
            }
        }
    }

    fn lexical(&self, queries: &[&str], k: usize) -> Vec<Vec<Ranked>> {
        let Some(index) = &self.index.lexical else { return vec![Vec::new(); queries.len()] };
        self.pool.install(|| queries.par_iter().map(|query| index.search(query, k)).collect())
    }

    fn dense(&self, queries: &[&str], k: usize) -> Result<Vec<Vec<Ranked>>> {
        let (Some(index), Some(encoder), Some(identity)) =
            (&self.index.dense, &self.encoder, &self.index.identity.dense)
        else {
            return Ok(vec![Vec::new(); queries.len()]);
        };
        let texts: Vec<String> = queries.iter().map(|query| format!("{}{query}", identity.query_prefix)).collect();
        let vectors = self.pool.install(|| encoder.encode(&texts))?;
        let items = vectors.into_iter().map(|vector| (k, vector)).collect();
        // Callers that are here at the same time share one reading of the index. They wait on their own threads: a
        // thread of the pool that waited could be the one that the work needs.
        let together = |items: Vec<(usize, Vec<f32>)>| Some(self.pool.install(|| search_by_k(index, items)));
        let broken = || RetrieverError::Internal("a shared search broke off".to_owned());
        self.batcher.run(items, together).ok_or_else(broken)
    }

    fn found(&self, list: &[Ranked]) -> Result<Vec<Found>> {
        list.iter()
            .map(|ranked| {
                Ok(Found { passage: self.index.passages.get(ranked.position as usize)?, score: ranked.score })
            })
            .collect()
    }

    /// Finds passages by their own words and, when vectors are searched, encodes one again: an encoder
    /// that computes something else (another build, another processor) must not answer queries.
    fn self_query(&self) -> Result<()> {
        let positions = [0, self.index.passages.len() / 2, self.index.passages.len() - 1];
        for position in positions {
            let passage = self.index.passages.get(position)?;
            let own = contents(&passage);
            if let (Some(index), Some(encoder), Some(identity)) =
                (&self.index.dense, &self.encoder, &self.index.identity.dense)
            {
                let text = format!("{}{own}", identity.passage_prefix);
                let cosine = cosine(&encoder.encode(&[text])?[0], &index.vector(position));
                if cosine.is_nan() || cosine < 0.999 {
                    let reason = format!("passage {position} has cosine {cosine:.4} with its stored vector");
                    return Err(RetrieverError::SelfQuery(reason));
                }
            }
            if let Some(index) = &self.index.lexical
                && crate::analyzer::terms(&own).next().is_some()
                && index.search(&own, 1).is_empty()
            {
                return Err(RetrieverError::SelfQuery(format!("passage {position} is not found by its own words")));
            }
        }
        Ok(())
    }
}

/// Searches for every (k, query); those of one k together, since k decides how many candidates are scored.
fn search_by_k(index: &DenseIndex, items: Vec<(usize, Vec<f32>)>) -> Vec<Vec<Ranked>> {
    let mut groups: BTreeMap<usize, (Vec<usize>, Vec<Vec<f32>>)> = BTreeMap::new();
    for (at, (k, query)) in items.into_iter().enumerate() {
        let (places, queries) = groups.entry(k).or_default();
        places.push(at);
        queries.push(query);
    }
    let mut results: BTreeMap<usize, Vec<Ranked>> = BTreeMap::new();
    for (k, (places, queries)) in groups {
        results.extend(places.into_iter().zip(index.search(&queries, k, false)));
    }
    results.into_values().collect()
}

fn can(index: &Index, encoder: bool, method: Method) -> bool {
    let (lexical, dense) = (index.lexical.is_some(), index.dense.is_some() && encoder);
    match method {
        Method::Lexical => lexical,
        Method::Dense => dense,
        Method::Hybrid => lexical && dense,
    }
}

/// What `Default` means: what is configured, else the most that index and encoder allow.
fn default_method(index: &Index, encoder: bool, configured: RetrievalMethod) -> Result<Method> {
    let wanted = match configured {
        RetrievalMethod::Default => vec![Method::Hybrid, Method::Dense, Method::Lexical],
        RetrievalMethod::Lexical => vec![Method::Lexical],
        RetrievalMethod::Dense => vec![Method::Dense],
        RetrievalMethod::Hybrid => vec![Method::Hybrid],
    };
    wanted.into_iter().find(|method| can(index, encoder, *method)).ok_or_else(|| {
        RetrieverError::Invalid(format!(
            "method {configured:?} cannot be served: the index has {} lexical and {} dense leg, and {} encoder is \
             configured",
            if index.lexical.is_some() { "a" } else { "no" },
            if index.dense.is_some() { "a" } else { "no" },
            if encoder { "an" } else { "no" },
        ))
    })
}

/// Loads the encoder and refuses one that is not the index's.
fn load_encoder(index: &Index, config: &RetrieverServeConfig) -> Result<Option<Encoder>> {
    let (Some(folder), Some(identity)) = (&config.encoder, &index.identity.dense) else { return Ok(None) };
    let (weights, tokenizer) = encoder_files(folder, None)?;
    for (file, found, expected) in [
        ("model.safetensors", weights, &identity.encoder_sha256),
        ("tokenizer.json", tokenizer, &identity.tokenizer_sha256),
    ] {
        if found != *expected {
            let reason = format!(
                "sha256 is {found}, but the index was built with an encoder whose {file} has {expected}; \
                 serve with that encoder or build the index again"
            );
            return Err(RetrieverError::content(&folder.join(file), reason));
        }
    }
    let spec = EncoderSpec { pooling: identity.pooling, max_tokens: identity.max_tokens };
    Ok(Some(Encoder::load(folder, &spec, &s3_model::device(config.device)?)?))
}
