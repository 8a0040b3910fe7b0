//! The gateway itself: batches of calls, de-duplicated, looked up, computed, stored, answered.

use crate::cache::{AnswerCache, Batch, CacheError, Key, key};
use crate::flight::{Flight, Flights, Lead, Part, wait};
use crate::ledger::{Ledger, Ticket, most};
use crate::persistent::Persistent;
use crate::provider::{Call, CallFailure, Completion, FailureKind, Order, Provider};
use crate::{TemplateError, Templates};
use prometheus::IntCounter;
use s3_config::CallerBudget;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use tokio::sync::{Mutex, Notify, mpsc};
use tokio::task::JoinSet;

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
        let key = key_of(lane.provider(), &call)?;
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

    async fn run(self: &Arc<Self>, lane: &Arc<Lane>, calls: Vec<Call>, ask: &Ask) -> Result<Answers, GatewayError> {
        let Distinct { unique, index } = distinct(lane.provider(), calls)?;
        let mut outcomes: Vec<Option<Result<Answered, CallFailure>>> = Vec::with_capacity(unique.len());
        for (key, _) in &unique {
            outcomes.push(self.get(key.as_ref())?.map(|completion| Ok(cached(completion))));
        }
        if outcomes.iter().any(Option::is_none) {
            if lane.provider.is_serial() {
                self.run_serial(lane, &unique, &mut outcomes, ask).await?;
            } else {
                self.run_flights(lane, &unique, &mut outcomes, ask).await?;
            }
        }
        let lost = || CallFailure::new(FailureKind::Unavailable, "the call ended without outcome");
        let outcomes: Answers = outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(lost()))).collect();
        let answers = if index.len() == outcomes.len() {
            outcomes
        } else {
            index.iter().map(|at| outcomes[*at].clone()).collect()
        };
        lane.count(&answers);
        Ok(answers)
    }

    /// One batch at a time, in its own order.
    async fn run_serial(
        &self,
        lane: &Lane,
        unique: &[(Option<Key>, Call)],
        outcomes: &mut [Option<Result<Answered, CallFailure>>],
        ask: &Ask,
    ) -> Result<(), GatewayError> {
        let _turn = lane.turn.lock().await;
        let provider = lane.provider();
        // whoever had the turn before may have computed the same calls
        for (outcome, (key, _)) in outcomes.iter_mut().zip(unique).filter(|(outcome, _)| outcome.is_none()) {
            *outcome = self.get(key.as_ref())?.map(|completion| Ok(cached(completion)));
        }
        let mut open: Vec<usize> = (0..unique.len()).filter(|at| outcomes[*at].is_none()).collect();
        while !open.is_empty() {
            // as much of the batch as the budget allows; without a budget all of it
            let (mut tickets, mut orders, mut now) = (Vec::new(), Vec::new(), Vec::new());
            let mut later = Vec::new();
            for at in open {
                if !later.is_empty() {
                    later.push(at);
                    continue;
                }
                let order = Order::until(ask.deadline);
                match self.ledger.open_now(&ask.caller, provider.name(), most(&unique[at].1), &order) {
                    Ok(Some(ticket)) => {
                        tickets.push(ticket);
                        orders.push(order);
                        now.push(at);
                    }
                    Ok(None) => later.push(at),
                    Err(failure) => outcomes[at] = Some(Err(failure)),
                }
            }
            open = later;
            if now.is_empty() {
                if let Some(at) = open.first().copied() {
                    // calls of another provider use the rest of the budget; wait for them
                    let order = Order::until(ask.deadline);
                    match self.ledger.open(&ask.caller, provider.name(), most(&unique[at].1), &order).await {
                        Ok(ticket) => drop(ticket),
                        Err(failure) => {
                            outcomes[at] = Some(Err(failure));
                            open.remove(0);
                        }
                    }
                }
                continue;
            }
            for ticket in &tickets {
                ticket.announce().await.map_err(|error| self.breaks(error))?;
            }
            let calls: Vec<Call> = now.iter().map(|at| unique[*at].1.clone()).collect();
            let made = provider.complete(calls, Order::until(ask.deadline)).await;
            if made.len() != now.len() {
                return Err(GatewayError::Internal(format!("{} outcomes for {} calls", made.len(), now.len())));
            }
            let mut done = Vec::with_capacity(now.len());
            for (((at, ticket), order), result) in now.into_iter().zip(tickets).zip(&orders).zip(made) {
                if let Ok(completion) = &result {
                    order.meter.add(crate::provider::Usage {
                        calls: 1,
                        prompt: u64::from(completion.prompt_tokens),
                        answer: u64::from(completion.completion_tokens),
                    });
                }
                done.push(Done::new(at, unique[at].0, Some(ticket), result));
            }
            for (at, outcome) in self.keep(done).await? {
                outcomes[at] = Some(outcome);
            }
        }
        Ok(())
    }

    /// All at once; a call that somebody else is making is waited for instead of made again.
    async fn run_flights(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        unique: &[(Option<Key>, Call)],
        outcomes: &mut [Option<Result<Answered, CallFailure>>],
        ask: &Ask,
    ) -> Result<(), GatewayError> {
        let mut open: Vec<usize> = (0..unique.len()).filter(|at| outcomes[*at].is_none()).collect();
        while !open.is_empty() {
            let mut lead: Vec<(usize, Option<Lead>)> = Vec::new();
            let mut others: Vec<(usize, Arc<Flight>)> = Vec::new();
            for at in std::mem::take(&mut open) {
                match unique[at].0.map(|key| (key, self.flights.join(key))) {
                    None => lead.push((at, None)),
                    Some((_, Part::Follow(flight))) => others.push((at, flight)),
                    Some((key, Part::Lead(duty))) => match self.get(Some(&key))? {
                        // it landed between the look-up and the joining
                        Some(completion) => outcomes[at] = Some(Ok(cached(completion))),
                        None => lead.push((at, Some(duty))),
                    },
                }
            }
            self.make(lane, unique, lead, outcomes, ask).await?;
            for (at, flight) in others {
                match follow(flight, ask).await {
                    Some(outcome) => outcomes[at] = Some(outcome),
                    None => open.push(at),
                }
            }
        }
        Ok(())
    }

    async fn make(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        unique: &[(Option<Key>, Call)],
        lead: Vec<(usize, Option<Lead>)>,
        outcomes: &mut [Option<Result<Answered, CallFailure>>],
        ask: &Ask,
    ) -> Result<(), GatewayError> {
        let mut done = Vec::with_capacity(lead.len());
        if let [(at, _)] = lead.as_slice() {
            let (key, call) = &unique[*at];
            done.push(self.make_one(lane, *at, *key, call, ask).await.map_err(|error| self.breaks(error))?);
        } else {
            let mut running = JoinSet::new();
            for (at, _) in &lead {
                let (gateway, lane, at, ask) = (self.clone(), lane.clone(), *at, ask.clone());
                let (key, call) = unique[at].clone();
                running.spawn(async move { gateway.make_one(&lane, at, key, &call, &ask).await });
            }
            while let Some(joined) = running.join_next().await {
                let one = joined.map_err(|e| GatewayError::Internal(e.to_string()))?;
                done.push(one.map_err(|error| self.breaks(error))?);
            }
            done.sort_by_key(|one| one.at);
        }
        let mut duties: BTreeMap<usize, Lead> = lead.into_iter().filter_map(|(at, duty)| Some((at, duty?))).collect();
        for (at, outcome) in self.keep(done).await? {
            if let Some(duty) = duties.remove(&at) {
                duty.land(outcome.as_ref().map(|a| a.completion.clone()).map_err(Clone::clone));
            }
            outcomes[at] = Some(outcome);
        }
        Ok(())
    }

    async fn make_one(
        &self,
        lane: &Lane,
        at: usize,
        key: Option<Key>,
        call: &Call,
        ask: &Ask,
    ) -> Result<Done, Arc<CacheError>> {
        let provider = lane.provider();
        let order = Order::until(ask.deadline);
        let ticket = match self.ledger.open(&ask.caller, provider.name(), most(call), &order).await {
            Ok(ticket) => ticket,
            Err(failure) => return Ok(Done::new(at, key, None, Err(failure))),
        };
        ticket.announce().await?;
        let result = provider.complete_one(call, &order).await;
        Ok(Done::new(at, key, Some(ticket), result))
    }

    /// Stores one answer and its charge, as [`Self::keep`] does.
    async fn keep_one(&self, done: Done) -> Result<Result<Answered, CallFailure>, GatewayError> {
        let Done { at, key: Some(key), charge, result: Ok(completion) } = done else {
            return self.keep(vec![done]).await.and_then(first);
        };
        match self.cache.keep_in_memory(key, completion) {
            Ok(completion) => Ok(Ok(Answered { completion, cached: false, fallback: None })),
            Err(completion) => {
                self.keep(vec![Done { at, key: Some(key), charge, result: Ok(completion) }]).await.and_then(first)
            }
        }
    }

    /// Stores a batch's answers and charges in one transaction. Failures are not stored: the next request tries
    /// again.
    async fn keep(&self, done: Vec<Done>) -> Result<Vec<(usize, Result<Answered, CallFailure>)>, GatewayError> {
        let mut batch = Batch::default();
        let mut outcomes = Vec::with_capacity(done.len());
        let mut kept_at = Vec::new();
        for Done { at, key, charge, result } in done {
            batch.settled.extend(charge.settled);
            batch.charges.extend(charge.charges);
            match (key, result) {
                (Some(key), Ok(completion)) => {
                    kept_at.push(outcomes.len());
                    batch.answers.push((key, completion));
                    // filled in below by what the cache now holds
                    outcomes.push((at, Err(CallFailure::new(FailureKind::Unavailable, "the answer was not kept"))));
                }
                (None, Ok(completion)) => {
                    let completion = Arc::new(completion);
                    outcomes.push((at, Ok(Answered { completion, cached: false, fallback: None })));
                }
                (_, Err(failure)) => outcomes.push((at, Err(failure))),
            }
        }
        let kept = self.cache.commit(batch).await.map_err(|error| self.breaks(error))?;
        for (place, completion) in kept_at.into_iter().zip(kept) {
            outcomes[place].1 = Ok(Answered { completion, cached: false, fallback: None });
        }
        Ok(outcomes)
    }

    /// Streams one call: pieces as they come, the whole at the end. A stored answer comes in one piece.
    pub async fn stream(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        call: Call,
        ask: &Ask,
        pieces: mpsc::Sender<String>,
    ) -> Result<Result<Answered, CallFailure>, GatewayError> {
        let key = key_of(lane.provider(), &call)?;
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
            order.meter.add(crate::provider::Usage {
                calls: 1,
                prompt: u64::from(completion.prompt_tokens),
                answer: u64::from(completion.completion_tokens),
            });
        }
        let done = Done::new(0, key, Some(ticket), result);
        let outcome = self.keep_one(done).await?;
        lane.count([&outcome]);
        Ok(outcome)
    }
}

/// A call that has been made.
struct Done {
    at: usize,
    key: Option<Key>,
    /// What is to be made durable with its answer.
    charge: Batch,
    result: Result<Completion, CallFailure>,
}

impl Done {
    /// Ends the call's account at once, so that calls of the same batch that wait for its budget go on.
    fn new(at: usize, key: Option<Key>, ticket: Option<Ticket>, result: Result<Completion, CallFailure>) -> Self {
        let mut charge = Batch::default();
        if let Some(ticket) = ticket {
            ticket.close(&mut charge);
        }
        Self { at, key, charge, result }
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

fn first(
    mut outcomes: Vec<(usize, Result<Answered, CallFailure>)>,
) -> Result<Result<Answered, CallFailure>, GatewayError> {
    outcomes.pop().map(|(_, outcome)| outcome).ok_or_else(|| GatewayError::Internal("no outcome".to_owned()))
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
fn key_of(provider: &dyn Provider, call: &Call) -> Result<Option<Key>, GatewayError> {
    if !call.sampling.is_greedy() {
        return Ok(None);
    }
    key(provider.digest(), provider.scope(), call).map(Some).map_err(|e| GatewayError::Internal(e.to_string()))
}

struct Distinct {
    /// Calls without repetition, in order of first occurrence.
    unique: Vec<(Option<Key>, Call)>,
    /// For each call of the batch its place among them.
    index: Vec<usize>,
}

fn distinct(provider: &dyn Provider, calls: Vec<Call>) -> Result<Distinct, GatewayError> {
    let mut unique: Vec<(Option<Key>, Call)> = Vec::with_capacity(calls.len());
    let mut places: HashMap<Key, usize> = HashMap::new();
    let mut index = Vec::with_capacity(calls.len());
    let several = calls.len() > 1;
    for call in calls {
        let key = key_of(provider, &call)?;
        if let Some(key) = key.filter(|_| several) {
            match places.entry(key) {
                std::collections::hash_map::Entry::Occupied(at) => {
                    index.push(*at.get());
                    continue;
                }
                std::collections::hash_map::Entry::Vacant(free) => {
                    free.insert(unique.len());
                }
            }
        }
        index.push(unique.len());
        unique.push((key, call));
    }
    Ok(Distinct { unique, index })
}
