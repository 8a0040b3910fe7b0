//! A batch of calls: without repetition, each made by one caller, then kept.

use super::{Answered, Answers, Ask, Gateway, GatewayError, Lane, cached, follow, key_of};
use crate::cache::{Batch, CacheError, Key};
use crate::flight::{Flight, Lead, Part};
use crate::ledger::{Ticket, most};
use crate::provider::{Call, CallFailure, Completion, FailureKind, Order, Provider, Usage};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::task::JoinSet;

impl Gateway {
    pub(super) async fn run(
        self: &Arc<Self>,
        lane: &Arc<Lane>,
        calls: Vec<Call>,
        ask: &Ask,
    ) -> Result<Answers, GatewayError> {
        let Distinct { unique, index } = distinct(lane.provider(), calls);
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
                    order.meter.add(Usage::of(completion));
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

    pub(super) async fn make_one(
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
    pub(super) async fn keep_one(&self, done: Done) -> Result<Result<Answered, CallFailure>, GatewayError> {
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
}

/// A call that has been made.
pub(super) struct Done {
    at: usize,
    key: Option<Key>,
    /// What is to be made durable with its answer.
    charge: Batch,
    result: Result<Completion, CallFailure>,
}

impl Done {
    /// Ends the call's account at once, so that calls of the same batch that wait for its budget go on.
    pub(super) fn new(
        at: usize,
        key: Option<Key>,
        ticket: Option<Ticket>,
        result: Result<Completion, CallFailure>,
    ) -> Self {
        let mut charge = Batch::default();
        if let Some(ticket) = ticket {
            ticket.close(&mut charge);
        }
        Self { at, key, charge, result }
    }
}

fn first(
    mut outcomes: Vec<(usize, Result<Answered, CallFailure>)>,
) -> Result<Result<Answered, CallFailure>, GatewayError> {
    outcomes.pop().map(|(_, outcome)| outcome).ok_or_else(|| GatewayError::Internal("no outcome".to_owned()))
}

struct Distinct {
    /// Calls without repetition, in order of first occurrence.
    unique: Vec<(Option<Key>, Call)>,
    /// For each call of the batch its place among them.
    index: Vec<usize>,
}

fn distinct(provider: &dyn Provider, calls: Vec<Call>) -> Distinct {
    let mut unique: Vec<(Option<Key>, Call)> = Vec::with_capacity(calls.len());
    let mut places: HashMap<Key, usize> = HashMap::new();
    let mut index = Vec::with_capacity(calls.len());
    let several = calls.len() > 1;
    for call in calls {
        let key = key_of(provider, &call);
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
    Distinct { unique, index }
}
