//! The service with a memory: what was found once is found again, whatever the service says by then.

use super::upstream::Upstream;
use super::wire::trimmed;
use crate::corpus::Entry;
use crate::error::{Result, RetrieverError};
use crate::request::SearchError;
use s3_config::{CacheMode, WebSearchConfig};
use s3_generator_gateway::{AnswerCache, Completion, Finish};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Changes when results are read differently: what was kept before is not found again then.
const READING: u32 = 1;

type Key = [u8; 32];
/// A query's passages, all that the service gave.
pub type Found = Arc<[Entry]>;

/// How a query ended, for all who wait for it.
#[derive(Clone)]
enum Ended {
    Found(Found),
    Failed(Arc<SearchError>),
}

type Running = watch::Receiver<Option<Ended>>;

/// A web search with its limits and its results so far.
pub struct WebSearch {
    upstream: Upstream,
    results: AnswerCache,
    under_way: Mutex<HashMap<Key, Running>>,
    digest: String,
    top_k: usize,
    top_k_limit: usize,
    queries: usize,
    characters: usize,
}

impl WebSearch {
    /// Checks the configuration and opens the kept results; nothing is sent.
    pub fn open(config: &WebSearchConfig) -> Result<Arc<Self>> {
        let invalid = |reason: String| Err(RetrieverError::Invalid(reason));
        if config.top_k == 0 || config.top_k > config.top_k_limit {
            return invalid(format!("topK is {}: choose 1 to topKLimit ({})", config.top_k, config.top_k_limit));
        }
        if config.query_characters == 0 {
            return invalid("queryCharacters is 0: no query could be asked".to_owned());
        }
        let upstream = Upstream::new(config)?;
        let results = match &config.results {
            Some(path) => {
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder).map_err(RetrieverError::io("create folder", folder))?;
                }
                AnswerCache::open(path).map_err(RetrieverError::from)?
            }
            None => AnswerCache::in_memory(CacheMode::ReadWrite),
        };
        let origin = ("web search", READING, &config.endpoint, &config.engine, &config.parameters);
        Ok(Arc::new(Self {
            upstream,
            results,
            under_way: Mutex::default(),
            digest: s3_artifacts::digest_json(&origin)?,
            top_k: config.top_k as usize,
            top_k_limit: config.top_k_limit as usize,
            queries: config.queries_limit,
            characters: config.query_characters,
        }))
    }

    /// Identity of what is asked: the service, its engine and its parameters.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Most passages that a query may ask for.
    pub fn top_k_limit(&self) -> u32 {
        u32::try_from(self.top_k_limit).unwrap_or(u32::MAX)
    }

    /// The first `top_k` passages of every query (zero takes the default), and how many queries were asked of the service.
    /// One query's failure is the request's.
    pub async fn search(self: &Arc<Self>, queries: &[String], top_k: u64) -> Result<(Vec<Found>, usize), SearchError> {
        let limit = self.queries;
        if queries.len() > limit {
            let message = format!("{} queries in one request; at most {limit} are accepted", queries.len());
            return Err(SearchError::refused("queries", message));
        }
        let k = if top_k == 0 { self.top_k } else { usize::try_from(top_k).unwrap_or(usize::MAX) };
        if k > self.top_k_limit {
            let message = format!("top-k {top_k} is too large; at most {} is accepted", self.top_k_limit);
            return Err(SearchError::refused("top_k", message));
        }
        let queries: Vec<&str> = queries.iter().map(|query| trimmed(query, self.characters)).collect();
        let keys: Vec<Key> = queries.iter().map(|query| self.key(query)).collect();
        let known = self.stored(keys.clone()).await?;
        let (mut pending, mut asked) = (Vec::with_capacity(queries.len()), 0);
        for ((query, key), known) in queries.iter().zip(keys).zip(known) {
            pending.push(match known {
                // there is nothing to ask, and nothing to find
                _ if query.is_empty() => Err(Found::from(Vec::new())),
                Some(found) => {
                    count("hit");
                    Err(found)
                }
                None => Ok(self.begin(key, query, &mut asked)),
            });
        }
        let mut results = Vec::with_capacity(queries.len());
        for one in pending {
            let found = match one {
                Err(found) => found,
                Ok(running) => wait(running).await?,
            };
            results.push(if found.len() > k { Found::from(&found[..k]) } else { found });
        }
        Ok((results, asked))
    }

    fn key(&self, query: &str) -> Key {
        Sha256::new().chain_update(&self.digest).chain_update(b"\n").chain_update(query).finalize().into()
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Key, Running>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the service in a task of its own: what is paid for is kept, though whoever asked may have gone. Who asks the
    /// same meanwhile waits for the same answer.
    fn begin(self: &Arc<Self>, key: Key, query: &str, asked: &mut usize) -> Running {
        let mut running = self.under_way();
        if let Some(other) = running.get(&key) {
            count("shared");
            return other.clone();
        }
        count("miss");
        *asked += 1;
        let (tell, told) = watch::channel(None);
        running.insert(key, told.clone());
        drop(running);
        let (own, query) = (self.clone(), query.to_owned());
        tokio::spawn(async move {
            let _done = Done { of: &own, key };
            let ended = match own.ask(key, &query).await {
                Ok(found) => Ended::Found(found),
                Err(error) => Ended::Failed(Arc::new(error)),
            };
            tell.send_replace(Some(ended));
        });
        told
    }

    async fn ask(self: &Arc<Self>, key: Key, query: &str) -> Result<Found, SearchError> {
        // it may have been stored between the look and the beginning
        if let Some(found) = self.stored(vec![key]).await?.pop().flatten() {
            return Ok(found);
        }
        let found = self.upstream.search(query).await?;
        let text = serde_json::to_string(&found).map_err(|error| RetrieverError::Internal(error.to_string()))?;
        let kept_text =
            Completion { text, prompt_tokens: 0, completion_tokens: 0, finish: Finish::Stop, logprobs: None };
        let own = self.clone();
        // what is answered is on disk: a repetition finds the same
        let stored = tokio::task::spawn_blocking(move || own.results.store(vec![(key, kept_text)])).await;
        let stored = stored.map_err(|error| RetrieverError::Internal(error.to_string()))?;
        let stored = stored.map_err(|error| RetrieverError::Internal(error.to_string()))?;
        match stored.first() {
            Some(first) => read(&first.text),
            None => Ok(found.into()),
        }
    }

    async fn stored(self: &Arc<Self>, keys: Vec<Key>) -> Result<Vec<Option<Found>>, SearchError> {
        let own = self.clone();
        let looked = tokio::task::spawn_blocking(move || own.results.lookup(&keys)).await;
        let looked =
            looked.map_err(|error| RetrieverError::Internal(error.to_string()))?.map_err(RetrieverError::from)?;
        looked.into_iter().map(|answer| answer.map(|answer| read(&answer.text)).transpose()).collect()
    }
}

/// Takes a query off the list of those under way, however it ended.
struct Done<'a> {
    of: &'a WebSearch,
    key: Key,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.of.under_way().remove(&self.key);
    }
}

async fn wait(mut running: Running) -> Result<Found, SearchError> {
    let broken = || SearchError::Failed(RetrieverError::Internal("the web search broke off".to_owned()));
    let ended = running.wait_for(Option::is_some).await.map_err(|_| broken())?.clone();
    match ended {
        Some(Ended::Found(found)) => Ok(found),
        Some(Ended::Failed(error)) => Err(error.shared()),
        None => Err(broken()),
    }
}

fn count(cache: &str) {
    s3_telemetry::metrics().retriever_queries.with_label_values(&["web", cache]).inc();
}

fn read(text: &str) -> Result<Found, SearchError> {
    let wrong = |error: serde_json::Error| RetrieverError::Internal(format!("a kept result cannot be read: {error}"));
    let entries: Vec<Entry> = serde_json::from_str(text).map_err(wrong)?;
    Ok(entries.into())
}
