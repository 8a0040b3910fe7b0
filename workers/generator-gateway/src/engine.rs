//! The gateway itself: batches of calls, de-duplicated, looked up, computed, stored, answered.

mod batch;

use crate::cache::{AnswerCache, CacheError, Key, key};
use crate::flight::{Flight, Flights, Part, wait};
use crate::ledger::{Ledger, most};
use crate::persistent::Persistent;
use crate::provider::{Call, CallFailure, Completion, FailureKind, Order, Provider, Usage};
use crate::{TemplateError, Templates};
use batch::Done;
use prometheus::IntCounter;
use s3_config::CallerBudget;
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::{Mutex, Notify, mpsc};

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

/// Who asks, and until when an answer is of use.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The caller, as access has identified it.
    pub caller: Arc<str>,
    /// Its deadline.
    pub deadline: Option<Instant>,
}

impl Ask {
    /// A caller without a deadline.
    pub fn by(caller: &str) -> Self {
        Self { caller: caller.into(), deadline: None }
    }
}

/// A completion and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// The completion.
    pub completion: Arc<Completion>,
    /// Whether it was stored before this request.
    pub cached: bool,
    /// The provider that answered, when it was not the one that was asked.
    pub fallback: Option<Arc<str>>,
}

/// Outcomes of a batch, in its order.
pub type Answers = Vec<Result<Answered, CallFailure>>;

/// Counters of a provider's outcomes, looked up once.
struct Counts {
    ok: IntCounter,
    cached: IntCounter,
    prompt: IntCounter,
    completion: IntCounter,
}

/// A provider with the lock that makes serial ones serial.
pub struct Lane {
    provider: Box<dyn Provider>,
    turn: Mutex<()>,
    counts: Counts,
    /// Asked in order when this one cannot answer.
    fallbacks: Vec<usize>,
}

impl Lane {
    fn new(provider: Box<dyn Provider>) -> Self {
        let metrics = s3_telemetry::metrics();
        let name = provider.name();
        let counts = Counts {
            ok: metrics.gateway_requests.with_label_values(&[name, "ok"]),
            cached: metrics.gateway_requests.with_label_values(&[name, "cached"]),
            prompt: metrics.gateway_tokens.with_label_values(&[name, "prompt"]),
            completion: metrics.gateway_tokens.with_label_values(&[name, "completion"]),
        };
        Self { provider, turn: Mutex::new(()), counts, fallbacks: Vec::new() }
    }

    /// The provider.
    pub fn provider(&self) -> &dyn Provider {
        self.provider.as_ref()
    }

    fn count<'a>(&self, answers: impl IntoIterator<Item = &'a Result<Answered, CallFailure>>) {
        for answer in answers {
            match answer {
                Ok(Answered { cached: true, .. }) => self.counts.cached.inc(),
                Ok(Answered { completion, .. }) => {
                    self.counts.ok.inc();
                    self.counts.prompt.inc_by(u64::from(completion.prompt_tokens));
                    self.counts.completion.inc_by(u64::from(completion.completion_tokens));
                }
                Err(failure) => {
                    let labels = [self.provider.name(), failure.kind.label()];
                    s3_telemetry::metrics().gateway_requests.with_label_values(&labels).inc();
                }
            }
        }
    }
}

/// Providers, templates, cache and accounts. Shared by the servers.
pub struct Gateway {
    lanes: Vec<Arc<Lane>>,
    templates: Templates,
    cache: Arc<AnswerCache>,
    ledger: Arc<Ledger>,
    flights: Flights,
    second_judges: BTreeMap<String, String>,
    broken: OnceLock<Arc<CacheError>>,
    breaking: Notify,
}

/// What a gateway is told beside its providers.
#[derive(Default)]
pub struct Rules<'a> {
    /// By provider those that are asked, in order, when it cannot answer.
    pub fallbacks: BTreeMap<String, Vec<String>>,
    /// By judging provider the one that must agree.
    pub second_judges: BTreeMap<String, String>,
    /// Budgets of callers.
    pub budgets: &'a [CallerBudget],
}

impl Gateway {
    /// The first provider is the default.
    pub fn new(providers: Vec<Box<dyn Provider>>, templates: Templates, cache: AnswerCache) -> Arc<Self> {
        Arc::new(Self::assemble(providers, templates, cache, &[]))
    }

    fn assemble(
        providers: Vec<Box<dyn Provider>>,
        templates: Templates,
        cache: AnswerCache,
        budgets: &[CallerBudget],
    ) -> Self {
        let cache = Arc::new(cache);
        Self {
            lanes: providers.into_iter().map(|provider| Arc::new(Lane::new(provider))).collect(),
            templates,
            ledger: Arc::new(Ledger::new(cache.clone(), budgets)),
            cache,
            flights: Flights::default(),
            second_judges: BTreeMap::new(),
            broken: OnceLock::new(),
            breaking: Notify::new(),
        }
    }

    /// With budgets, fallbacks and second judges; all their names must be known.
    pub fn with_rules(
        providers: Vec<Box<dyn Provider>>,
        templates: Templates,
        cache: AnswerCache,
        rules: Rules<'_>,
    ) -> Result<Arc<Self>, GatewayError> {
        let names: Vec<String> = providers.iter().map(|provider| provider.name().to_owned()).collect();
        let place = |name: &str| {
            names
                .iter()
                .position(|known| known == name)
                .ok_or_else(|| GatewayError::UnknownProvider { name: name.to_owned(), known: names.join(", ") })
        };
        let mut gateway = Self::assemble(providers, templates, cache, rules.budgets);
        for (name, others) in &rules.fallbacks {
            let of = place(name)?;
            let others = others.iter().map(|other| place(other)).collect::<Result<_, _>>()?;
            if let Some(lane) = gateway.lanes.get_mut(of).and_then(Arc::get_mut) {
                lane.fallbacks = others;
            }
        }
        for (first, second) in &rules.second_judges {
            place(first)?;
            place(second)?;
        }
        for budget in rules.budgets {
            for provider in &budget.providers {
                place(provider)?;
            }
        }
        gateway.second_judges = rules.second_judges;
        Ok(Arc::new(gateway))
    }

    /// All providers.
    pub fn lanes(&self) -> &[Arc<Lane>] {
        &self.lanes
    }

    /// The templates.
    pub fn templates(&self) -> &Templates {
        &self.templates
    }

    /// The accounts.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The provider that must agree with a judging one.
    pub fn second_judge(&self, first: &str) -> Option<&Arc<Lane>> {
        let second = self.second_judges.get(first)?;
        self.lanes.iter().find(|lane| lane.provider.name() == second)
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

    fn breaks(&self, error: Arc<CacheError>) -> GatewayError {
        // a later failure follows from the first, which is the one to show
        let first = self.broken.get_or_init(|| error).clone();
        self.breaking.notify_waiters();
        GatewayError::Cache(first)
    }

    fn get(&self, key: Option<&Key>) -> Result<Option<Arc<Completion>>, GatewayError> {
        let Some(key) = key else { return Ok(None) };
        self.cache.get(key).map_err(|error| self.breaks(Arc::new(error)))
    }

    /// Completes a batch. It runs to its end and is stored even when the caller goes away, so that a caller
    /// who comes back finds it done instead of paying twice.
    pub async fn complete(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        calls: Vec<Call>,
        ask: &Ask,
    ) -> Result<Answers, GatewayError> {
        let (gateway, lane, ask) = (self.clone(), lane.clone(), ask.clone());
        Persistent::new(async move { gateway.with_fallbacks(&lane, calls, &ask).await }).await
    }

    /// Completes one call, as [`Self::complete`] does.
    pub async fn complete_one(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        call: Call,
        ask: &Ask,
    ) -> Result<Result<Answered, CallFailure>, GatewayError> {
        let key = key_of(lane.provider(), &call);
        if let Some(completion) = self.get(key.as_ref())? {
            lane.counts.cached.inc();
            return Ok(Ok(cached(completion)));
        }
        let (gateway, lane, ask) = (self.clone(), lane.clone(), ask.clone());
        let simple = lane.fallbacks.is_empty() && !lane.provider.is_serial();
        Persistent::new(async move {
            if simple {
                let answer = gateway.fly(&lane, key, &call, &ask).await?;
                lane.count([&answer]);
                return Ok(answer);
            }
            // boxed, so that calls without these carry no room for them
            let answers = Box::pin(gateway.with_fallbacks(&lane, vec![call], &ask)).await?;
            answers.into_iter().next().ok_or_else(|| GatewayError::Internal("no outcome".to_owned()))
        })
        .await
    }

    /// Makes one call that is not in the cache, or waits for somebody who makes it.
    async fn fly(
        &self,
        lane: &Lane,
        key: Option<Key>,
        call: &Call,
        ask: &Ask,
    ) -> Result<Result<Answered, CallFailure>, GatewayError> {
        loop {
            let duty = match key.map(|key| (key, self.flights.join(key))) {
                None => None,
                Some((_, Part::Follow(flight))) => match follow(flight, ask).await {
                    Some(outcome) => return Ok(outcome),
                    None => continue,
                },
                Some((key, Part::Lead(duty))) => match self.get(Some(&key))? {
                    // it landed between the look-up and the joining
                    Some(completion) => return Ok(Ok(cached(completion))),
                    None => Some(duty),
                },
            };
            let done = self.make_one(lane, 0, key, call, ask).await.map_err(|error| self.breaks(error))?;
            let outcome = self.keep_one(done).await?;
            if let Some(duty) = duty {
                duty.land(outcome.as_ref().map(|a| a.completion.clone()).map_err(Clone::clone));
            }
            return Ok(outcome);
        }
    }

    async fn with_fallbacks(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        calls: Vec<Call>,
        ask: &Ask,
    ) -> Result<Answers, GatewayError> {
        if lane.fallbacks.is_empty() {
            return self.run(lane, calls, ask).await;
        }
        let mut answers = self.run(lane, calls.clone(), ask).await?;
        for other in lane.fallbacks.iter().filter_map(|at| self.lanes.get(*at)) {
            let lost: Vec<usize> = (0..answers.len()).filter(|at| needs_fallback(&answers[*at])).collect();
            if lost.is_empty() {
                break;
            }
            let name: Arc<str> = other.provider.name().into();
            tracing::warn!(from = lane.provider.name(), to = %name, calls = lost.len(), "falling back");
            let again = self.run(other, lost.iter().map(|at| calls[*at].clone()).collect(), ask).await?;
            for (at, answer) in lost.into_iter().zip(again) {
                if let Ok(answered) = answer {
                    answers[at] = Ok(Answered { fallback: Some(name.clone()), ..answered });
                }
            }
        }
        Ok(answers)
    }

    /// Streams one call: pieces as they come, the whole at the end. A stored answer comes in one piece.
    pub async fn stream(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        call: Call,
        ask: &Ask,
        pieces: mpsc::Sender<String>,
    ) -> Result<Result<Answered, CallFailure>, GatewayError> {
        let key = key_of(lane.provider(), &call);
        if let Some(completion) = self.get(key.as_ref())? {
            lane.counts.cached.inc();
            // a caller that is gone gets nothing
            let _ = pieces.send(completion.text.clone()).await;
            return Ok(Ok(cached(completion)));
        }
        let order = Order::until(ask.deadline);
        let provider = lane.provider();
        let _turn = if provider.is_serial() { Some(lane.turn.lock().await) } else { None };
        let ticket = match self.ledger.open(&ask.caller, provider.name(), most(&call), &order).await {
            Ok(ticket) => ticket,
            Err(failure) => return Ok(Err(failure)),
        };
        ticket.announce().await.map_err(|error| self.breaks(error))?;
        let result = provider.stream(call, order.clone(), pieces).await;
        if let (true, Ok(completion)) = (provider.is_serial(), &result) {
            order.meter.add(Usage::of(completion));
        }
        let done = Done::new(0, key, Some(ticket), result);
        let outcome = self.keep_one(done).await?;
        lane.count([&outcome]);
        Ok(outcome)
    }
}

/// Waits for a call that somebody else makes; none when it has to be made again.
async fn follow(flight: Arc<Flight>, ask: &Ask) -> Option<Result<Answered, CallFailure>> {
    let landed = match ask.deadline {
        None => wait(flight).await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), wait(flight)).await.unwrap_or_else(|_| {
            let message = "the caller's deadline came first (another caller's identical call was awaited)";
            Some(Err(CallFailure::new(FailureKind::Deadline, message)))
        }),
    };
    match landed? {
        Ok(completion) => Some(Ok(cached(completion))),
        // another caller's deadline or budget is not this one's
        Err(failure) if is_own(&failure) && ask.deadline.is_none_or(|deadline| deadline > Instant::now()) => None,
        Err(failure) => Some(Err(failure)),
    }
}

fn cached(completion: Arc<Completion>) -> Answered {
    Answered { completion, cached: true, fallback: None }
}

/// Whether a failure is of the one who made the call, and says nothing of the provider.
fn is_own(failure: &CallFailure) -> bool {
    matches!(failure.kind, FailureKind::Deadline | FailureKind::Budget)
}

fn needs_fallback(answer: &Result<Answered, CallFailure>) -> bool {
    answer.as_ref().err().is_some_and(|failure| {
        matches!(failure.kind, FailureKind::Unavailable | FailureKind::RateLimited | FailureKind::Malformed)
    })
}

/// The key of a call whose answer may be kept; a sampled answer is asked for to be new.
fn key_of(provider: &dyn Provider, call: &Call) -> Option<Key> {
    call.sampling.is_greedy().then(|| key(provider.digest(), provider.scope(), call))
}
