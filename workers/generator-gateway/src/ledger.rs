//! What each caller's calls used, and the budgets on it.
//!
//! A call starts while its budget is not spent, and beside others only if the budget holds even when all of
//! them use the most they can. So a budget is overrun by the last call at most, however many run at once.
//! With a budget and a durable cache the intent to call is on disk before the call is made: a process that
//! dies in between has charged it.

use crate::cache::{AnswerCache, Batch, CacheError, Intent};
use crate::provider::{Call, CallFailure, FailureKind, Order, Usage};
use prometheus::IntCounter;
use s3_config::{BudgetConfig, CallerBudget};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// New tokens that a call without a limit of its own is expected to write at most.
const UNLIMITED_ANSWER: u64 = 8192;
/// Callers that are told apart; where no tokens are configured, names are the callers' own invention.
const CALLERS: usize = 10_000;
/// The account of all further ones.
const OTHERS: &str = "(others)";

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    used: Usage,
    reserved: Usage,
    open: usize,
}

struct Caller {
    name: Arc<str>,
    /// With the providers that each counts; none of them counts all.
    budgets: Vec<(Vec<String>, BudgetConfig)>,
    accounts: BTreeMap<Arc<str>, Account>,
    /// Tokens charged, prompt and answer: counters are looked up once a caller.
    spent: [IntCounter; 2],
}

/// What keeps a call from starting.
enum Obstacle {
    /// The budget is spent.
    Spent(String),
    /// It may be, once the calls under way are done.
    Wait,
}

fn cost(budget: &BudgetConfig, used: Usage) -> f64 {
    let million = |tokens: u64, price: Option<f64>| tokens as f64 * price.unwrap_or(0.0) / 1e6;
    million(used.prompt, budget.prompt_price) + million(used.answer, budget.answer_price)
}

/// The first limit that `used` has reached (`strictly`: passed).
fn reached(budget: &BudgetConfig, used: Usage, strictly: bool) -> Option<String> {
    let tokens = used.prompt + used.answer;
    let over = |limit: u64, value: u64| if strictly { value > limit } else { value >= limit };
    if let Some(limit) = budget.calls.filter(|limit| over(*limit, used.calls)) {
        return Some(format!("{} of {limit} calls", used.calls));
    }
    if let Some(limit) = budget.tokens.filter(|limit| over(*limit, tokens)) {
        return Some(format!("{tokens} of {limit} tokens"));
    }
    let spent = cost(budget, used);
    let past = |limit: f64| if strictly { spent > limit } else { spent >= limit };
    budget.cost.filter(|limit| past(*limit)).map(|limit| format!("{spent:.4} of {limit} in cost"))
}

fn counts(providers: &[String], provider: &str) -> bool {
    providers.is_empty() || providers.iter().any(|name| name == provider)
}

impl Caller {
    fn new(name: &str) -> Self {
        let spent = &s3_telemetry::metrics().gateway_spent;
        Self {
            name: name.into(),
            budgets: Vec::new(),
            accounts: BTreeMap::new(),
            spent: ["prompt", "completion"].map(|direction| spent.with_label_values(&[name, direction])),
        }
    }

    fn sum(&self, providers: &[String]) -> Account {
        let mut sum = Account::default();
        for (name, account) in &self.accounts {
            if counts(providers, name) {
                sum.used += account.used;
                sum.reserved += account.reserved;
                sum.open += account.open;
            }
        }
        sum
    }

    fn budgets_on<'a>(&'a self, provider: &'a str) -> impl Iterator<Item = &'a (Vec<String>, BudgetConfig)> {
        self.budgets.iter().filter(move |(on, _)| counts(on, provider))
    }

    fn obstacle(&self, provider: &str, most: Usage) -> Option<Obstacle> {
        let mut wait = false;
        for (on, budget) in self.budgets_on(provider) {
            let sum = self.sum(on);
            if let Some(what) = reached(budget, sum.used, false) {
                return Some(Obstacle::Spent(what));
            }
            let mut all = sum.used;
            all += sum.reserved;
            all += most;
            wait |= sum.open > 0 && reached(budget, all, true).is_some();
        }
        wait.then_some(Obstacle::Wait)
    }
}

/// The accounts.
pub struct Ledger {
    callers: Mutex<BTreeMap<String, Caller>>,
    changed: Notify,
    next: AtomicU64,
    cache: Arc<AnswerCache>,
}

/// The most a call may use: a token is at least a byte of the prompt, and chat formats add a few.
pub(crate) fn most(call: &Call) -> Usage {
    let frame = 64 * (call.messages.len() as u64 + 1);
    Usage {
        calls: 1,
        prompt: call.prompt_bytes() as u64 + frame,
        answer: call.sampling.max_tokens.map_or(UNLIMITED_ANSWER, u64::from),
    }
}

/// Separates caller and provider in the name of an account; neither holds it.
const SEPARATOR: char = '\u{1f}';

impl Ledger {
    /// Accounts as the cache's file has them, with these budgets.
    pub fn new(cache: Arc<AnswerCache>, budgets: &[CallerBudget]) -> Self {
        let mut callers: BTreeMap<String, Caller> = BTreeMap::new();
        for (account, used) in cache.accounts() {
            let (caller, provider) = account.split_once(SEPARATOR).unwrap_or((account, ""));
            let caller = callers.entry(caller.to_owned()).or_insert_with(|| Caller::new(caller));
            caller.accounts.entry(provider.into()).or_default().used += *used;
        }
        for budget in budgets {
            let caller = callers.entry(budget.caller.clone()).or_insert_with(|| Caller::new(&budget.caller));
            caller.budgets.push((budget.providers.clone(), budget.budget));
        }
        Self { callers: Mutex::new(callers), changed: Notify::new(), next: AtomicU64::new(0), cache }
    }

    fn callers(&self) -> MutexGuard<'_, BTreeMap<String, Caller>> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_open(
        self: &Arc<Self>,
        caller: &str,
        provider: &str,
        most: Usage,
        order: &Order,
    ) -> Result<Ticket, Obstacle> {
        let mut callers = self.callers();
        let name = if callers.contains_key(caller) || callers.len() < CALLERS { caller } else { OTHERS };
        if !callers.contains_key(name) {
            callers.insert(name.to_owned(), Caller::new(name));
        }
        let Some(entry) = callers.get_mut(name) else { return Err(Obstacle::Wait) };
        if let Some(obstacle) = entry.obstacle(provider, most) {
            return Err(obstacle);
        }
        let budgeted = entry.budgets_on(provider).next().is_some();
        let provider = match entry.accounts.get_key_value(provider) {
            Some((known, _)) => known.clone(),
            None => provider.into(),
        };
        let account = entry.accounts.entry(provider.clone()).or_default();
        account.reserved += most;
        account.open += 1;
        Ok(Ticket {
            ledger: self.clone(),
            caller: entry.name.clone(),
            provider,
            most,
            order: order.clone(),
            intent: (budgeted && self.cache.is_durable()).then(|| self.next.fetch_add(1, Ordering::Relaxed)),
            open: true,
        })
    }

    /// Opens the account for a call; waits while the budget may be used up by calls under way.
    pub(crate) async fn open(
        self: &Arc<Self>,
        caller: &str,
        provider: &str,
        most: Usage,
        order: &Order,
    ) -> Result<Ticket, CallFailure> {
        // the common case needs no place among those who wait
        if let Ok(ticket) = self.try_open(caller, provider, most, order) {
            return Ok(ticket);
        }
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // registered before the look, so that a change in between is not missed
            changed.as_mut().enable();
            match self.try_open(caller, provider, most, order) {
                Ok(ticket) => return Ok(ticket),
                Err(Obstacle::Spent(what)) => {
                    s3_telemetry::metrics().gateway_refused.with_label_values(&["budget"]).inc();
                    let message = format!("BudgetExhausted: {caller} has used {what}; raise the budget to go on");
                    return Err(CallFailure::new(FailureKind::Budget, message));
                }
                Err(Obstacle::Wait) => match order.left() {
                    None => changed.await,
                    Some(left) => {
                        tokio::time::timeout(left, changed).await.map_err(|_| {
                            let message =
                                format!("{caller}: the deadline came while the rest of its budget was in use");
                            CallFailure::new(FailureKind::Deadline, message)
                        })?;
                    }
                },
            }
        }
    }

    /// Like [`Self::open`] for calls that run in one batch: none means that earlier ones must end first.
    pub(crate) fn open_now(
        self: &Arc<Self>,
        caller: &str,
        provider: &str,
        most: Usage,
        order: &Order,
    ) -> Result<Option<Ticket>, CallFailure> {
        match self.try_open(caller, provider, most, order) {
            Ok(ticket) => Ok(Some(ticket)),
            Err(Obstacle::Wait) => Ok(None),
            Err(Obstacle::Spent(what)) => {
                s3_telemetry::metrics().gateway_refused.with_label_values(&["budget"]).inc();
                let message = format!("BudgetExhausted: {caller} has used {what}; raise the budget to go on");
                Err(CallFailure::new(FailureKind::Budget, message))
            }
        }
    }

    /// What a caller has used, by provider, with its budgets; for people and reports.
    pub fn report(&self, caller: &str) -> Value {
        let callers = self.callers();
        let Some(entry) = callers.get(caller) else { return json!({"caller": caller, "providers": [], "budgets": []}) };
        let providers: Vec<Value> = entry
            .accounts
            .iter()
            .map(|(name, account)| {
                let used = account.used;
                json!({"provider": &**name, "calls": used.calls, "promptTokens": used.prompt, "answerTokens": used.answer})
            })
            .collect();
        let budgets: Vec<Value> = entry
            .budgets
            .iter()
            .map(|(on, budget)| {
                let used = entry.sum(on).used;
                json!({"providers": on, "budget": budget, "calls": used.calls, "tokens": used.prompt + used.answer,
                       "cost": cost(budget, used), "spent": reached(budget, used, false).is_some()})
            })
            .collect();
        json!({"caller": caller, "providers": providers, "budgets": budgets})
    }
}

/// A call under way. However it ends, what its meter says is charged.
pub(crate) struct Ticket {
    ledger: Arc<Ledger>,
    caller: Arc<str>,
    provider: Arc<str>,
    most: Usage,
    order: Order,
    intent: Option<u64>,
    open: bool,
}

impl Ticket {
    /// The account's name in the cache's file.
    fn account(&self) -> String {
        format!("{}{SEPARATOR}{}", self.caller, self.provider)
    }

    /// Puts the intent on disk, where there is a budget to keep.
    pub async fn announce(&self) -> Result<(), Arc<CacheError>> {
        let Some(id) = self.intent else { return Ok(()) };
        let (calls, prompt, answer) = (self.most.calls, self.most.prompt, self.most.answer);
        let intent = Intent { id, account: self.account(), calls, prompt, answer };
        self.ledger.cache.commit(Batch { intents: vec![intent], ..Batch::default() }).await.map(|_| ())
    }

    /// Ends the call; the charge goes into `batch`, to be durable with its answer.
    pub fn close(mut self, batch: &mut Batch) {
        self.end(batch);
    }

    fn end(&mut self, batch: &mut Batch) {
        self.open = false;
        let used = self.order.meter.read();
        if let Some(caller) = self.ledger.callers().get_mut(&*self.caller) {
            if let Some(account) = caller.accounts.get_mut(&*self.provider) {
                account.used += used;
                account.reserved.calls -= self.most.calls;
                account.reserved.prompt -= self.most.prompt;
                account.reserved.answer -= self.most.answer;
                account.open -= 1;
            }
            let [prompt, answer] = &caller.spent;
            prompt.inc_by(used.prompt);
            answer.inc_by(used.answer);
        }
        self.ledger.changed.notify_waiters();
        batch.settled.extend(self.intent);
        if used.calls > 0 && self.ledger.cache.is_durable() {
            batch.charges.push((self.account(), used));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            let mut batch = Batch::default();
            self.end(&mut batch);
            self.ledger.cache.enqueue(batch);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_config::CacheMode;
    use std::time::Duration;

    fn budget(caller: &str, budget: BudgetConfig) -> CallerBudget {
        CallerBudget { caller: caller.into(), providers: Vec::new(), budget }
    }

    fn ledger(budgets: &[CallerBudget]) -> Arc<Ledger> {
        Arc::new(Ledger::new(Arc::new(AnswerCache::in_memory(CacheMode::ReadWrite)), budgets))
    }

    /// Many callers at once; each call uses what it says. The calls made and the tokens used in the end.
    async fn spend(limit: BudgetConfig, tasks: usize, each: Usage, bound: Usage) -> (u64, u64) {
        let ledger = ledger(&[budget("job", limit)]);
        let mut set = tokio::task::JoinSet::new();
        for _ in 0..tasks {
            let ledger = ledger.clone();
            set.spawn(async move {
                loop {
                    let order = Order::default();
                    let Ok(ticket) = ledger.open("job", "p", bound, &order).await else { return };
                    tokio::task::yield_now().await;
                    order.meter.add(each);
                    ticket.close(&mut Batch::default());
                }
            });
        }
        set.join_all().await;
        let used = ledger.callers()["job"].sum(&[]).used;
        (used.calls, used.prompt + used.answer)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_budget_is_overrun_by_one_call_at_most() {
        let each = Usage { calls: 1, prompt: 70, answer: 13 };
        let bound = Usage { calls: 1, prompt: 300, answer: 32 };
        for tasks in [1, 16, 64] {
            let calls = BudgetConfig { calls: Some(500), ..BudgetConfig::default() };
            assert_eq!(spend(calls, tasks, each, bound).await.0, 500, "{tasks}");
            let tokens = BudgetConfig { tokens: Some(40_000), ..BudgetConfig::default() };
            let (_, used) = spend(tokens, tasks, each, bound).await;
            assert!((40_000..40_000 + 83).contains(&used), "{tasks}: {used}");
            let cost = BudgetConfig {
                cost: Some(0.05),
                prompt_price: Some(1.0),
                answer_price: Some(4.0),
                ..BudgetConfig::default()
            };
            let (made, _) = spend(cost, tasks, each, bound).await;
            // 122 millionths a call
            assert_eq!(made, 410, "{tasks}");
        }
    }

    #[tokio::test]
    async fn budgets_are_kept_apart_and_abandoned_calls_are_charged() {
        let two = BudgetConfig { calls: Some(2), ..BudgetConfig::default() };
        let on_judge = CallerBudget { providers: vec!["judge".into(), "second".into()], ..budget("a", two) };
        let ledger = ledger(&[on_judge, budget("b", two)]);
        let one = Usage { calls: 1, ..Usage::default() };
        for provider in ["judge", "second", "answer", "answer", "answer"] {
            let order = Order::default();
            let ticket = ledger.open("a", provider, one, &order).await.unwrap();
            order.meter.add(one);
            drop(ticket);
        }
        let failure = ledger.open("a", "judge", one, &Order::default()).await.err().unwrap();
        assert_eq!(failure.kind, FailureKind::Budget);
        assert!(failure.message.contains("2 of 2 calls"), "{failure}");
        assert!(ledger.open("a", "answer", one, &Order::default()).await.is_ok());
        let report = ledger.report("a");
        assert_eq!(report["budgets"][0]["spent"], true);
        assert_eq!(report["providers"][0]["calls"], 3);
        assert!(ledger.open("a", "second", one, &Order::default()).await.is_err());

        // the second must wait for the first, up to its deadline
        let order = Order::default();
        order.meter.add(one);
        let first = ledger.open("b", "x", one, &order).await.unwrap();
        let second = ledger.open("b", "x", one, &Order::default()).await.unwrap();
        let soon = Order::until(Some(std::time::Instant::now() + Duration::from_millis(5)));
        let failure = ledger.open("b", "x", one, &soon).await.err().unwrap();
        assert_eq!(failure.kind, FailureKind::Deadline);
        // it was not made, so its place is free again
        drop(second);
        assert!(ledger.open("b", "x", one, &Order::default()).await.is_ok());
        drop(first);
    }

    #[test]
    fn what_was_intended_when_the_process_died_is_charged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.redb");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let limit = [budget("job", BudgetConfig { tokens: Some(1000), ..BudgetConfig::default() })];
        let bound = Usage { calls: 1, prompt: 300, answer: 200 };
        runtime.block_on(async {
            let cache = Arc::new(AnswerCache::open(&path).unwrap());
            let ledger = Arc::new(Ledger::new(cache.clone(), &limit));
            let done = Order::default();
            let ticket = ledger.open("job", "p", bound, &done).await.unwrap();
            ticket.announce().await.unwrap();
            done.meter.add(Usage { calls: 1, prompt: 100, answer: 10 });
            let mut batch = Batch::default();
            ticket.close(&mut batch);
            cache.commit(batch).await.unwrap();
            let lost = ledger.open("job", "p", bound, &Order::default()).await.unwrap();
            lost.announce().await.unwrap();
            // the process dies here
            std::fs::copy(&path, folder.path().join("then")).unwrap();
            drop(lost);
        });
        for _ in 0..2 {
            let ledger = Ledger::new(Arc::new(AnswerCache::open(&folder.path().join("then")).unwrap()), &limit);
            let report = ledger.report("job");
            assert_eq!(report["budgets"][0]["tokens"], 110 + 500, "{report}");
            assert_eq!(report["providers"][0]["calls"], 2);
        }
    }
}
