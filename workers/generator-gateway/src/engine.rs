//! The gateway itself: batches of calls, de-duplicated, looked up, computed, stored, answered.

use crate::cache::{AnswerCache, CacheError, Key, key};
use crate::provider::{Call, CallFailure, Completion, Outcomes, Provider};
use crate::{TemplateError, Templates};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use tokio::sync::{Mutex, Notify};

/// Why a whole batch has no result.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The durable cache failed. Nothing was acknowledged.
    #[error(transparent)]
    Cache(#[from] Arc<CacheError>),
    /// No provider has this name.
    #[error("no provider is called {name:?}; there are: {known}")]
    UnknownProvider {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// No template has this name.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// A task was lost: a defect.
    #[error("internal: {0}")]
    Internal(String),
}

/// A completion and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The completion.
    pub completion: Completion,
    /// Whether it was stored before this request.
    pub cached: bool,
}

/// Outcomes of a batch, in its order.
pub type Answers = Vec<Result<Answered, CallFailure>>;

/// A provider with the lock that makes serial ones serial.
pub struct Lane {
    provider: Box<dyn Provider>,
    turn: Mutex<()>,
}

impl Lane {
    /// The provider.
    pub fn provider(&self) -> &dyn Provider {
        self.provider.as_ref()
    }
}

/// Providers, templates and cache. Shared by the servers.
pub struct Gateway {
    lanes: Vec<Arc<Lane>>,
    templates: Templates,
    cache: Option<Arc<AnswerCache>>,
    broken: OnceLock<Arc<CacheError>>,
    breaking: Notify,
}

impl Gateway {
    /// The first provider is the default.
    pub fn new(providers: Vec<Box<dyn Provider>>, templates: Templates, cache: Option<AnswerCache>) -> Arc<Self> {
        let lane = |provider| Arc::new(Lane { provider, turn: Mutex::new(()) });
        Arc::new(Self {
            lanes: providers.into_iter().map(lane).collect(),
            templates,
            cache: cache.map(Arc::new),
            broken: OnceLock::new(),
            breaking: Notify::new(),
        })
    }

    /// All providers.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The templates.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// A provider by name; an empty name takes the first.
    pub fn lane(&self, name: &str) -> Result<&Arc<Lane>, GatewayError> {
        let found = self.lanes.iter().find(|lane| name.is_empty() || lane.provider.name() == name);
        found.ok_or_else(|| GatewayError::UnknownProvider {
            name: name.to_owned(),
            known: self.lanes.iter().map(|lane| lane.provider.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Resolves when the durable cache has failed: the process must end, because it can no longer keep its word.
    pub async fn broken(&self) -> Arc<CacheError> {
        loop {
            let notified = self.breaking.notified();
            if let Some(error) = self.broken.get() {
                return error.clone();
            }
            notified.await;
        }
    }

    /// Completes a batch. It runs to its end and is stored even when the caller goes away, so that a caller
    /// who comes back finds it done instead of paying twice.
    pub async fn complete(self: &Arc<Self>, lane: &Arc<Lane>, calls: Vec<Call>) -> Result<Answers, GatewayError> {
        let (gateway, lane) = (self.clone(), lane.clone());
        let task = tokio::spawn(async move { gateway.run(&lane, calls).await });
        task.await.map_err(|e| GatewayError::Internal(e.to_string()))?
    }

    async fn run(&self, lane: &Lane, calls: Vec<Call>) -> Result<Answers, GatewayError> {
        let provider = lane.provider();
        let Distinct { unique, index } = distinct(provider, calls)?;
        let mut known = self.lookup(&unique).await?;
        let _turn = if provider.is_serial() && known.iter().any(Option::is_none) {
            let turn = lane.turn.lock().await;
            // whoever had the turn before may have computed the same calls
            known = self.lookup(&unique).await?;
            Some(turn)
        } else {
            None
        };
        let misses: Vec<(Key, Call)> =
            unique.into_iter().zip(&known).filter(|(_, known)| known.is_none()).map(|(entry, _)| entry).collect();
        let (keys, calls): (Vec<Option<Key>>, Vec<Call>) =
            misses.into_iter().map(|(key, call)| (call.sampling.is_greedy().then_some(key), call)).unzip();
        let outcomes = if calls.is_empty() { Vec::new() } else { provider.complete(calls).await };
        if outcomes.len() != keys.len() {
            return Err(GatewayError::Internal(format!("{} outcomes for {} calls", outcomes.len(), keys.len())));
        }
        let mut computed = self.store(keys, outcomes).await?.into_iter();
        let mut answers = Vec::with_capacity(known.len());
        for known in known {
            answers.push(match known {
                Some(completion) => Ok(Answered { completion, cached: true }),
                None => computed
                    .next()
                    .ok_or_else(|| GatewayError::Internal("an outcome is missing".to_owned()))?
                    .map(|completion| Answered { completion, cached: false }),
            });
        }
        let answers: Answers = index.into_iter().map(|at| answers[at].clone()).collect();
        count(provider.name(), &answers);
        Ok(answers)
    }

    async fn lookup(&self, calls: &[(Key, Call)]) -> Result<Vec<Option<Completion>>, GatewayError> {
        // a sampled answer is asked for to be new
        let keys: Vec<Option<Key>> =
            calls.iter().map(|(key, call)| call.sampling.is_greedy().then_some(*key)).collect();
        let wanted: Vec<Key> = keys.iter().flatten().copied().collect();
        let mut found = self.with_cache(wanted.len(), move |cache| cache.lookup(&wanted)).await?.into_iter();
        Ok(keys.into_iter().map(|key| key.and_then(|_| found.next().flatten())).collect())
    }

    /// Stores what has a key. Failures are not stored: the next request tries again.
    async fn store(&self, keys: Vec<Option<Key>>, outcomes: Outcomes) -> Result<Outcomes, GatewayError> {
        if self.cache.is_none() {
            return Ok(outcomes);
        }
        let batch: Vec<(Key, Completion)> = keys
            .iter()
            .zip(&outcomes)
            .filter_map(|(key, outcome)| Some(((*key)?, outcome.as_ref().ok()?.clone())))
            .collect();
        let mut kept = self.with_cache(batch.len(), move |cache| cache.store(batch)).await?.into_iter();
        let settle = |(key, outcome): (Option<Key>, Result<Completion, CallFailure>)| match (key, outcome) {
            (Some(_), Ok(fresh)) => Ok(kept.next().unwrap_or(fresh)),
            (_, outcome) => outcome,
        };
        Ok(keys.into_iter().zip(outcomes).map(settle).collect())
    }

    async fn with_cache<T: Send + 'static>(
        &self,
        entries: usize,
        work: impl FnOnce(&AnswerCache) -> Result<Vec<T>, CacheError> + Send + 'static,
    ) -> Result<Vec<T>, GatewayError> {
        let Some(cache) = self.cache.clone().filter(|_| entries > 0) else {
            return Ok(Vec::new());
        };
        let done = tokio::task::spawn_blocking(move || work(&cache)).await;
        done.map_err(|e| GatewayError::Internal(e.to_string()))?.map_err(|error| {
            let error = Arc::new(error);
            // a later failure follows from the first, which is the one to show
            let first = self.broken.get_or_init(|| error.clone()).clone();
            self.breaking.notify_waiters();
            GatewayError::Cache(first)
        })
    }
}

struct Distinct {
    /// Calls without repetition, in order of first occurrence.
    unique: Vec<(Key, Call)>,
    /// For each call of the batch its place among them.
    index: Vec<usize>,
}

fn distinct(provider: &dyn Provider, calls: Vec<Call>) -> Result<Distinct, GatewayError> {
    let mut unique: Vec<(Key, Call)> = Vec::with_capacity(calls.len());
    let mut places: HashMap<Key, usize> = HashMap::with_capacity(calls.len());
    let mut index = Vec::with_capacity(calls.len());
    for call in calls {
        let key = key(provider.digest(), provider.scope(), &call).map_err(|e| GatewayError::Internal(e.to_string()))?;
        let greedy = call.sampling.is_greedy();
        match places.get(&key) {
            Some(at) if greedy => index.push(*at),
            _ => {
                places.insert(key, unique.len());
                index.push(unique.len());
                unique.push((key, call));
            }
        }
    }
    Ok(Distinct { unique, index })
}

fn count(provider: &str, answers: &Answers) {
    let metrics = s3_telemetry::metrics();
    for answer in answers {
        let outcome = match answer {
            Ok(answered) if answered.cached => "cached",
            Ok(_) => "ok",
            Err(failure) => failure.kind.label(),
        };
        metrics.gateway_requests.with_label_values(&[provider, outcome]).inc();
        if let Ok(Answered { completion, cached: false }) = answer {
            let tokens = &metrics.gateway_tokens;
            tokens.with_label_values(&[provider, "prompt"]).inc_by(u64::from(completion.prompt_tokens));
            tokens.with_label_values(&[provider, "completion"]).inc_by(u64::from(completion.completion_tokens));
        }
    }
}
