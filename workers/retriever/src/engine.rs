//! Answers queries from one open index: limits, cache, and the rounds that compute what is missing. No sockets.

use crate::cache::{Cache, Key};
use crate::corpus::contents;
use crate::embed::{cosine, encoder_files};
use crate::error::{Result, RetrieverError};
use crate::index::Index;
use crate::queue::Queue;
use crate::rank::Ranked;
pub use crate::request::{Method, Reply, Search, SearchError};
use crate::request::{Timing, Usage};
use crate::rerank::Reranker;
use crate::round::{Job, Plan};
use s3_config::{FusionConfig, RetrievalMethod, RetrieverServeConfig};
use s3_model::encoder::{Encoder, EncoderSpec};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::time::Instant;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Turns texts into unit vectors.
pub trait QueryEncoder: Send + Sync {
    /// One vector a text, in order.
    fn encode(&self, texts: &[String]) -> Result<Vec<Vec<f32>>>;
}

impl QueryEncoder for Encoder {
    fn encode(&self, texts: &[String]) -> Result<Vec<Vec<f32>>> {
        Ok(Self::encode(self, texts)?)
    }
}

/// What a request may ask for.
struct Limits {
    top_k: usize,
    top_k_limit: usize,
    queries: usize,
}

/// An open index with everything that searching it needs.
pub struct Engine {
    pub(crate) index: Index,
    name: Arc<str>,
    pub(crate) encoder: Option<Box<dyn QueryEncoder>>,
    pub(crate) reranker: Option<Reranker>,
    method: Method,
    fusion: FusionConfig,
    limits: Limits,
    cache: Mutex<Cache>,
    queue: Arc<Queue<Work>>,
}

/// Where a round's reply arrives.
type Receiver = oneshot::Receiver<Result<Done, String>>;

/// What the engine's thread takes up.
enum Work {
    /// Queries, in a round with others.
    Search(Job),
    /// Anything else, by itself.
    Other(Box<dyn FnOnce(&Engine) + Send>),
}

/// Queries of one round.
const SHARED: usize = 512;

impl Engine {
    /// Opens the current index, its encoder and the reranker, and asks it about its own passages.
    pub fn open(config: &RetrieverServeConfig) -> Result<Arc<Self>> {
        // the threads that may serve may also verify, and FAISS has as many
        let pool = rayon::ThreadPoolBuilder::new().num_threads(config.runtime.threads.unwrap_or(0)).build();
        let pool = pool.map_err(|error| RetrieverError::Internal(format!("threads to open with: {error}")))?;
        let mut index = pool.install(|| Index::open_current(&config.index))?;
        drop(pool);
        let device = s3_model::device(config.device)?;
        if let Some(dense) = &mut index.dense {
            dense.put_on(&device)?;
        }
        let encoder = load_encoder(&index, config, &device)?;
        let engine = Self::assemble(config, index, encoder.map(|encoder| Box::new(encoder) as Box<dyn QueryEncoder>))?;
        engine.self_query()?;
        s3_telemetry::metrics()
            .retriever_passages
            .with_label_values::<&str>(&[])
            .set(engine.index.passages.len() as f64);
        Ok(engine)
    }

    /// An engine of parts that are open already, and its thread.
    pub fn assemble(
        config: &RetrieverServeConfig,
        index: Index,
        encoder: Option<Box<dyn QueryEncoder>>,
    ) -> Result<Arc<Self>> {
        let reranker = config.reranker.as_ref().map(Reranker::load).transpose()?;
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
        let (name, queue) = (index.digest.as_str().into(), Arc::new(Queue::new(SHARED)));
        let fusion = config.fusion.clone();
        let engine = Arc::new(Self { index, name, encoder, reranker, method, fusion, limits, cache, queue });
        run(&engine, config.runtime.threads.unwrap_or(0))?;
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

    /// Most passages that a query may ask for.
    pub fn top_k_limit(&self) -> u32 {
        u32::try_from(self.limits.top_k_limit).unwrap_or(u32::MAX)
    }

    /// The reranker, where there is one.
    pub fn reranker(&self) -> Option<&Reranker> {
        self.reranker.as_ref()
    }

    /// The most queries of one request.
    pub fn queries_limit(&self) -> usize {
        self.limits.queries
    }

    /// Ranks passages for every query, in the request's order. What is not known yet is computed on the engine's own
    /// threads, together with what others ask for at the same time; given up, it is not computed any more.
    pub async fn search(self: &Arc<Self>, request: Search) -> Result<Reply, SearchError> {
        let (pending, receiver) = self.begin(request)?;
        let done = match receiver {
            Some(receiver) => Some(receiver.await.map_err(|_| broken())?),
            None => None,
        };
        self.end(pending, done)
    }

    /// The same on the caller's thread, for programs without a runtime.
    pub fn search_blocking(self: &Arc<Self>, request: Search) -> Result<Reply, SearchError> {
        let (pending, receiver) = self.begin(request)?;
        let done = match receiver {
            Some(receiver) => Some(receiver.blocking_recv().map_err(|_| broken())?),
            None => None,
        };
        self.end(pending, done)
    }

    /// Vectors of texts, with the prefix of queries or of passages.
    pub async fn embed(self: &Arc<Self>, texts: Vec<String>, passages: bool) -> Result<Vec<Vec<f32>>, SearchError> {
        self.few_enough(texts.len())?;
        let (Some(_), Some(identity)) = (&self.encoder, &self.index.identity.dense) else {
            return Err(SearchError::refused("method", "this index or server has no encoder".to_owned()));
        };
        let prefix = if passages { &identity.passage_prefix } else { &identity.query_prefix };
        let texts: Vec<String> = texts.into_iter().map(|text| format!("{prefix}{text}")).collect();
        let found = self.on_threads(move |engine| engine.encoder.as_ref().map(|encoder| encoder.encode(&texts)));
        found.await?.ok_or_else(broken)?.map_err(SearchError::from)
    }

    /// Runs work on the engine's own threads.
    pub async fn on_threads<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Result<T, SearchError> {
        let (sender, receiver) = oneshot::channel();
        let other = move |engine: &Self| {
            // whoever asked may have gone
            if !sender.is_closed() {
                let _ = sender.send(work(engine));
            }
        };
        self.queue.push(1, Work::Other(Box::new(other)));
        receiver.await.map_err(|_| broken())
    }

    fn few_enough(&self, queries: usize) -> Result<(), SearchError> {
        let limit = self.limits.queries;
        if queries <= limit {
            return Ok(());
        }
        let message = format!("{queries} queries in one request; at most {limit} are accepted");
        Err(SearchError::refused("queries", message))
    }

    /// How a request is answered, or why it is not.
    fn plan(&self, request: &mut Search) -> Result<Plan, SearchError> {
        let method = request.method.unwrap_or(self.method);
        self.few_enough(request.queries.len())?;
        let limit = self.limits.top_k_limit;
        let k = if request.top_k == 0 { self.limits.top_k } else { request.top_k as usize };
        if k > limit {
            let message = format!("top-k {} is too large; at most {limit} is accepted", request.top_k);
            return Err(SearchError::refused("top_k", message));
        }
        if !can(&self.index, self.encoder.is_some(), method) {
            let message =
                format!("{} search is not available: this index or server lacks a leg for it", method.label());
            return Err(SearchError::refused("method", message));
        }
        if request.rerank == Some(true) && self.reranker.is_none() {
            let message = "reranking is not available: this server has no reranker".to_owned();
            return Err(SearchError::refused("method", message));
        }
        let fusion = request.fusion.take();
        if let Some(fusion) = &fusion {
            let numbers = [fusion.constant, fusion.lexical_weight, fusion.dense_weight];
            let usable = numbers.iter().all(|number| number.is_finite() && *number >= 0.0);
            if !usable || fusion.depth == 0 || fusion.depth > limit.max(self.fusion.depth) {
                let most = limit.max(self.fusion.depth);
                let message = format!("fusion: numbers must not be below 0, and depth is 1 to {most}");
                return Err(SearchError::refused("fusion", message));
            }
        }
        let own = fusion.is_some();
        let mut plan = Plan {
            method,
            k,
            exact: request.exact,
            filter: std::mem::take(&mut request.filter),
            fusion: fusion.unwrap_or_else(|| self.fusion.clone()),
            rerank: self.reranker.is_some() && request.rerank != Some(false),
            key: "".into(),
        };
        let plain = !plan.exact && plan.filter.0.is_empty() && !own && plan.rerank == self.reranker.is_some();
        if !plain {
            plan.key = format!("{} {} {:?} {}", plan.exact, plan.rerank, plan.fusion, plan.filter.key()).into();
        }
        Ok(plan)
    }

    fn key(&self, plan: &Plan, query: String) -> Key {
        Key { index: self.name.clone(), method: plan.method, k: plan.k, plan: plan.key.clone(), query }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes what is known, and has the rest computed.
    fn begin(self: &Arc<Self>, mut request: Search) -> Result<(Pending, Option<Receiver>), SearchError> {
        let plan = Arc::new(self.plan(&mut request)?);
        let mut results: Vec<Option<Arc<[Ranked]>>> = vec![None; request.queries.len()];
        let mut places: Vec<Vec<usize>> = Vec::new();
        let mut missing = Vec::new();
        let mut seen: HashMap<String, usize> = HashMap::new();
        {
            let several = request.queries.len() > 1;
            let mut cache = self.cache();
            for (at, query) in request.queries.into_iter().enumerate() {
                if let Some(first) = several.then(|| seen.get(&query)).flatten() {
                    places[*first].push(at);
                    continue;
                }
                let key = self.key(&plan, query);
                results[at] = cache.get(&key);
                if results[at].is_none() {
                    if several {
                        seen.insert(key.query.clone(), missing.len());
                    }
                    places.push(vec![at]);
                    missing.push(key.query);
                }
            }
        }
        let counts = s3_telemetry::metrics();
        let hits = results.iter().flatten().count();
        let label = plan.method.label();
        counts.retriever_queries.with_label_values(&[label, "miss"]).inc_by(missing.len() as u64);
        counts.retriever_queries.with_label_values(&[label, "hit"]).inc_by((results.len() - missing.len()) as u64);
        let pending = Pending { plan, results, places, missing: missing.len(), hits };
        if missing.is_empty() {
            return Ok((pending, None));
        }
        let (reply, receiver) = oneshot::channel();
        let (plan, runtime) = (pending.plan.clone(), Handle::try_current().ok());
        let job = Job { queries: missing, plan, since: Instant::now(), reply, runtime };
        self.queue.push(job.queries.len(), Work::Search(job));
        Ok((pending, Some(receiver)))
    }

    fn end(&self, pending: Pending, done: Option<Result<Done, String>>) -> Result<Reply, SearchError> {
        let Pending { plan, mut results, places, missing, hits } = pending;
        let mut reply =
            Reply { usage: Usage { cached: hits, computed: missing, ..Usage::default() }, ..Reply::default() };
        if let Some(done) = done {
            let done = done.map_err(RetrieverError::Internal)?;
            reply.timing = done.timing;
            reply.usage = Usage { cached: hits, computed: missing, ..done.usage };
            let mut cache = self.cache();
            for ((query, list), places) in done.lists.into_iter().zip(places) {
                cache.insert(self.key(&plan, query), list.clone());
                for at in places {
                    results[at] = Some(list.clone());
                }
            }
        }
        reply.results = results.into_iter().flatten().collect();
        Ok(reply)
    }

    /// Finds passages by their own words and, when vectors are searched, encodes one again: an encoder
    /// that computes something else (another build, another processor) must not answer queries.
    fn self_query(&self) -> Result<()> {
        let positions = [0, self.index.passages.len() / 2, self.index.passages.len() - 1];
        for position in positions {
            let passage = self.index.passages.get(position)?;
            let own = contents(&passage.title, &passage.text);
            if let (Some(index), Some(encoder), Some(identity)) =
                (&self.index.dense, &self.encoder, &self.index.identity.dense)
            {
                let text = format!("{}{own}", identity.passage_prefix);
                let own = encoder.encode(&[text])?;
                let cosine = cosine(&own[0], &index.vector(position));
                // vectors that an imported index codes are as near as its build found them
                let least = self.index.fidelity.map_or(0.999, |fidelity| fidelity - 0.1);
                if cosine.is_nan() || cosine < least {
                    let reason = format!("passage {position} has cosine {cosine:.4} with its stored vector");
                    return Err(RetrieverError::SelfQuery(reason));
                }
                if index.search(&own, 1, false)?[0].is_empty() {
                    return Err(RetrieverError::SelfQuery(format!("nothing is near to passage {position}")));
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

impl Drop for Engine {
    fn drop(&mut self) {
        self.queue.close();
    }
}

/// Starts the engine's thread, which with `threads` − 1 others (0: one for each processor) does all the computing. It is
/// one of them, so that a small round crosses no threads.
fn run(engine: &Arc<Engine>, threads: usize) -> Result<()> {
    let (queue, weak) = (engine.queue.clone(), Arc::downgrade(engine));
    let (started, ready) = mpsc::channel();
    let body = move || {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).use_current_thread().build();
        let failed = pool.as_ref().err().map(ToString::to_string);
        let fine = failed.is_none();
        if started.send(failed).is_ok() && fine {
            queue.work(|work| do_round(&weak, work));
        }
    };
    let failed = |reason: String| RetrieverError::Internal(format!("the engine's threads: {reason}"));
    std::thread::Builder::new().name("engine".to_owned()).spawn(body).map_err(|error| failed(error.to_string()))?;
    match ready.recv() {
        Ok(None) => Ok(()),
        Ok(Some(reason)) => Err(failed(reason)),
        Err(error) => Err(failed(error.to_string())),
    }
}

fn do_round(engine: &Weak<Engine>, round: Vec<Work>) {
    // without an engine nobody waits
    let Some(engine) = engine.upgrade() else { return };
    let mut jobs = Vec::with_capacity(round.len());
    for work in round {
        match work {
            Work::Search(job) => jobs.push(job),
            Work::Other(work) => {
                // what it panics with is its caller's; the others of the round are computed
                let work = std::panic::AssertUnwindSafe(|| work(&engine));
                if std::panic::catch_unwind(work).is_err() {
                    tracing::error!("a request broke off");
                }
            }
        }
    }
    if !jobs.is_empty() {
        engine.round(jobs);
    }
}

fn broken() -> SearchError {
    SearchError::Failed(RetrieverError::Internal("the search broke off".to_owned()))
}

/// A request between its beginning and its end.
struct Pending {
    plan: Arc<Plan>,
    results: Vec<Option<Arc<[Ranked]>>>,
    /// Per missing query where it stands in the request.
    places: Vec<Vec<usize>>,
    missing: usize,
    hits: usize,
}

/// What a round computed for one job.
pub struct Done {
    /// Queries and their rankings.
    pub lists: Vec<(String, Arc<[Ranked]>)>,
    /// Where the time went.
    pub timing: Timing,
    /// What it took.
    pub usage: Usage,
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
fn load_encoder(index: &Index, config: &RetrieverServeConfig, device: &s3_model::Device) -> Result<Option<Encoder>> {
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
    Ok(Some(Encoder::load(folder, &spec, device)?))
}
