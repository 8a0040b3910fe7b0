//! Blocking clients of the retriever and the gateway, for the compute thread.
//!
//! Arithmetic runs on a thread of its own; only the calls go through the asynchronous runtime. A call is
//! given up when the worker is asked to stop.

use crate::convert;
use crate::error::RolloutError;
use s3_config::{Endpoint, GeneratorConfig, RetrievalMethod};
use s3_proto::{CallError, GeneratorClient, RetrieverClient, v1};
use s3_search::score::Verdict;
use s3_search::{Message, Passage, Question};
use s3_telemetry::Shutdown;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Handle;

/// Queries of one request to the retriever; larger batches are sent in parts.
const QUERIES: usize = 1024;

/// How the compute thread reaches the runtime, and whether it is asked to stop.
#[derive(Clone)]
pub struct Link {
    /// The runtime that carries calls.
    pub handle: Handle,
    /// Asks to stop.
    pub shutdown: Shutdown,
}

impl Link {
    /// Blocks until something is done, or the worker is asked to stop.
    pub fn run<T>(&self, work: impl Future<Output = T>) -> Result<T, RolloutError> {
        self.handle.block_on(async {
            tokio::select! {
                done = work => Ok(done),
                () = self.shutdown.wait() => Err(RolloutError::Interrupted),
            }
        })
    }

    fn wait<T>(&self, call: impl Future<Output = Result<T, CallError>>) -> Result<T, RolloutError> {
        Ok(self.run(call)??)
    }

    /// An error once the worker was asked to stop.
    pub fn check(&self) -> Result<(), RolloutError> {
        if self.shutdown.requested() { Err(RolloutError::Interrupted) } else { Ok(()) }
    }
}

/// Ranks passages for queries; one list a query, best first.
pub trait Retrieve {
    /// Passages of every query, in the queries' order.
    fn retrieve(
        &self,
        queries: &[String],
        top_k: u32,
        method: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError>;

    /// As [`Self::retrieve`], told which question each query is for. Only controls look at it.
    fn retrieve_for(
        &self,
        _questions: &[&Question],
        queries: &[String],
        top_k: u32,
        method: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError> {
        self.retrieve(queries, top_k, method)
    }

    /// Most passages that a query may ask for.
    fn deepest(&self) -> u32 {
        u32::MAX
    }

    /// Whether the same query may find other passages for another question.
    fn looks_at_questions(&self) -> bool {
        false
    }
}

/// The retriever. Its index may not change while this client lives.
#[derive(Clone)]
pub struct RetrieverPeer {
    link: Link,
    client: RetrieverClient,
    digest: String,
    deepest: u32,
}

impl RetrieverPeer {
    /// Connects and notes the index digest.
    pub fn connect(link: &Link, endpoint: &Endpoint) -> Result<Self, RolloutError> {
        let deadline = Duration::from_millis(endpoint.deadline_ms);
        // the channel is made on the runtime, also when called from the compute thread
        let _inside = link.handle.enter();
        let mut client = RetrieverClient::new(&endpoint.address, deadline, endpoint.attempts)?;
        if let Some(tls) = &endpoint.tls {
            client = client.with_tls(tls)?;
        }
        let info = link.wait(client.info())?;
        let deepest = if info.top_k_limit == 0 { u32::MAX } else { info.top_k_limit };
        Ok(Self { link: link.clone(), client, digest: info.index_digest, deepest })
    }

    /// The same with calls that are given up when `link` is asked to stop.
    #[must_use]
    pub fn on(&self, link: &Link) -> Self {
        Self { link: link.clone(), ..self.clone() }
    }

    /// Digest of the served index.
    pub fn index_digest(&self) -> &str {
        &self.digest
    }

    fn reply(reason: String) -> RolloutError {
        RolloutError::Reply { service: "retriever", reason }
    }
}

impl Retrieve for RetrieverPeer {
    fn deepest(&self) -> u32 {
        self.deepest
    }

    fn retrieve(
        &self,
        queries: &[String],
        top_k: u32,
        method: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let mut found = Vec::with_capacity(queries.len());
        for part in queries.chunks(QUERIES) {
            let request = v1::SearchRequest {
                queries: part.to_vec(),
                top_k,
                method: i32::from(convert::method(method)),
                ..v1::SearchRequest::default()
            };
            let response = self.link.wait(self.client.search(request))?;
            if response.index_digest != self.digest {
                return Err(Self::reply(format!(
                    "the index changed from {} to {} during the run; start again with the new index",
                    self.digest, response.index_digest
                )));
            }
            if response.results.len() != part.len() {
                let count = response.results.len();
                return Err(Self::reply(format!("{count} results for {} queries", part.len())));
            }
            for hits in response.results {
                found.push(hits.hits.into_iter().filter_map(|hit| hit.passage).map(convert::passage).collect());
            }
        }
        Ok(found)
    }
}

/// What became of one question put to the generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerOutcome {
    /// Its answer.
    Answer(String),
    /// None could be had.
    Failed {
        /// Why.
        reason: String,
        /// The provider was out of reach, as opposed to refusing.
        outage: bool,
    },
}

/// A judge's word on one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    /// The word.
    pub verdict: Verdict,
    /// Why there is none; empty where it decided.
    pub reason: String,
}

/// Answers questions from passages, and judges answers.
pub trait AnswerSource {
    /// How answers are asked and judged.
    fn config(&self) -> &GeneratorConfig;
    /// One outcome an item, in order. Items are asked together.
    fn answer(&self, items: &[(&Question, &[Passage])]) -> Result<Vec<AnswerOutcome>, RolloutError>;
    /// One verdict an item, in order. Only called when the configuration names a judge.
    fn judge(&self, items: &[(&Question, &str)]) -> Result<Vec<Judged>, RolloutError>;
    /// What answers used so far, where that is counted. Verdicts are not in it: the gateway does not say theirs.
    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// Tokens that answers used, as the provider counts them. What the gateway's cache answered used none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Answers.
    pub answers: u64,
    /// Of them, answers from the cache.
    pub cached: u64,
    /// Prompt tokens of the others.
    pub prompt_tokens: u64,
    /// Answer tokens of the others.
    pub answer_tokens: u64,
}

impl Usage {
    /// What was used after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            answers: self.answers.saturating_sub(earlier.answers),
            cached: self.cached.saturating_sub(earlier.cached),
            prompt_tokens: self.prompt_tokens.saturating_sub(earlier.prompt_tokens),
            answer_tokens: self.answer_tokens.saturating_sub(earlier.answer_tokens),
        }
    }
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, more: Self) {
        self.answers += more.answers;
        self.cached += more.cached;
        self.prompt_tokens += more.prompt_tokens;
        self.answer_tokens += more.answer_tokens;
    }
}

/// How a served model is asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChatSampling {
    /// New tokens at most.
    pub max_tokens: u32,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
}

/// What a served model wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The text, without its stop string.
    pub text: String,
    /// Tokens written; 0 when the provider did not say.
    pub tokens: u32,
}

/// What became of one conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CompletionOutcome {
    /// What was written.
    Written(Completion),
    /// Nothing could be had.
    Failed {
        /// Why.
        reason: String,
        /// The provider was out of reach, as opposed to refusing.
        outage: bool,
    },
}

/// Goes on with conversations.
pub trait ChatSource {
    /// One outcome an item (messages, stop strings), in order. Items are asked together.
    fn complete(
        &self,
        items: &[(&[Message], Vec<String>)],
        sampling: ChatSampling,
    ) -> Result<Vec<CompletionOutcome>, RolloutError>;
}

/// The generator gateway with one provider, template and decoding.
#[derive(Clone)]
pub struct GeneratorPeer {
    link: Link,
    client: GeneratorClient,
    config: GeneratorConfig,
    digest: String,
    tenant: String,
    used: Arc<Mutex<Usage>>,
}

impl GeneratorPeer {
    /// Connects and notes the provider's digest. `tenant` names the caller for accounting.
    pub fn connect(link: &Link, config: &GeneratorConfig, tenant: &str) -> Result<Self, RolloutError> {
        if config.is_none() {
            return Err(Self::reply("the configuration names none; set `generator`".to_owned()));
        }
        let deadline = Duration::from_millis(config.endpoint.deadline_ms);
        // the channel is made on the runtime, also when called from the compute thread
        let _inside = link.handle.enter();
        let mut client = GeneratorClient::new(&config.endpoint.address, deadline, config.endpoint.attempts)?;
        if let Some(tls) = &config.endpoint.tls {
            client = client.with_tls(tls)?;
        }
        if let Some(path) = &config.token_file {
            let token = std::fs::read_to_string(path).map_err(|e| {
                Self::reply(format!("the caller's token cannot be read from tokenFile {}: {e}", path.display()))
            })?;
            client = client.with_token(&token)?;
        }
        let tenant = if config.caller.is_empty() { tenant } else { &config.caller };
        let info = link.wait(client.info(&config.model, &config.template))?;
        Ok(Self {
            link: link.clone(),
            client,
            config: config.clone(),
            digest: info.digest,
            tenant: tenant.to_owned(),
            used: Arc::default(),
        })
    }

    /// The same with calls that are given up when `link` is asked to stop.
    #[must_use]
    pub fn on(&self, link: &Link) -> Self {
        Self { link: link.clone(), ..self.clone() }
    }

    /// Digest of weights, adapter, template and decoding.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    fn reply(reason: String) -> RolloutError {
        RolloutError::Reply { service: "generator-gateway", reason }
    }

    fn count(&self, results: &[v1::AnswerResult]) {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        for result in results {
            let Some(v1::answer_result::Outcome::Answer(answer)) = &result.outcome else { continue };
            used.answers += 1;
            if answer.cached {
                used.cached += 1;
            } else {
                used.prompt_tokens += u64::from(answer.prompt_tokens);
                used.answer_tokens += u64::from(answer.completion_tokens);
            }
        }
    }
}

impl AnswerSource for GeneratorPeer {
    fn config(&self) -> &GeneratorConfig {
        &self.config
    }

    fn answer(&self, items: &[(&Question, &[Passage])]) -> Result<Vec<AnswerOutcome>, RolloutError> {
        let request = v1::AnswerRequest {
            items: items
                .iter()
                .map(|(question, passages)| v1::AnswerItem {
                    question: question.question.clone(),
                    passages: passages.iter().map(convert::wire_passage).collect(),
                })
                .collect(),
            model: self.config.model.clone(),
            template: self.config.template.clone(),
            max_tokens: self.config.max_tokens,
            passage_words: self.config.passage_words,
            tenant: self.tenant.clone(),
        };
        let response = match self.link.wait(self.client.answer(request)) {
            Ok(response) => response,
            Err(error) if error.is_outage() => {
                let failed = AnswerOutcome::Failed { reason: error.to_string(), outage: true };
                return Ok(vec![failed; items.len()]);
            }
            Err(error) => return Err(error),
        };
        if response.results.len() != items.len() {
            return Err(Self::reply(format!("{} answers for {} questions", response.results.len(), items.len())));
        }
        self.count(&response.results);
        response.results.into_iter().map(outcome).collect()
    }

    fn usage(&self) -> Usage {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn judge(&self, items: &[(&Question, &str)]) -> Result<Vec<Judged>, RolloutError> {
        let request = v1::JudgeRequest {
            items: items
                .iter()
                .map(|(question, answer)| v1::JudgeItem {
                    question: question.question.clone(),
                    answer: (*answer).to_owned(),
                    gold_answers: question.answers.clone(),
                })
                .collect(),
            model: self.config.judge.clone().unwrap_or_default(),
            tenant: self.tenant.clone(),
        };
        let response = match self.link.wait(self.client.judge(request)) {
            Ok(response) => response,
            Err(error) if error.is_outage() => {
                tracing::warn!(%error, "no verdicts; the samples are masked");
                return Ok(vec![Judged { verdict: Verdict::Failed, reason: error.to_string() }; items.len()]);
            }
            Err(error) => return Err(error),
        };
        if response.results.len() != items.len() {
            return Err(Self::reply(format!("{} verdicts for {} answers", response.results.len(), items.len())));
        }
        if let Some(spent) = response.results.iter().find(|result| result.reason.starts_with("budget: ")) {
            let reason = spent.reason.trim_start_matches("budget: ").to_owned();
            return Err(RolloutError::Budget { reason });
        }
        let judged =
            |result: v1::JudgeResult| Judged { verdict: convert::verdict(result.verdict()), reason: result.reason };
        Ok(response.results.into_iter().map(judged).collect())
    }
}

impl ChatSource for GeneratorPeer {
    fn complete(
        &self,
        items: &[(&[Message], Vec<String>)],
        sampling: ChatSampling,
    ) -> Result<Vec<CompletionOutcome>, RolloutError> {
        let request = v1::CompleteRequest {
            items: items
                .iter()
                .map(|(messages, stop)| v1::CompleteItem {
                    messages: messages.iter().map(convert::wire_message).collect(),
                    stop: stop.clone(),
                })
                .collect(),
            model: self.config.model.clone(),
            max_tokens: sampling.max_tokens,
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            tenant: self.tenant.clone(),
        };
        let response = match self.link.wait(self.client.complete(request)) {
            Ok(response) => response,
            Err(error) if error.is_outage() => {
                let failed = CompletionOutcome::Failed { reason: error.to_string(), outage: true };
                return Ok(vec![failed; items.len()]);
            }
            Err(error) => return Err(error),
        };
        if response.results.len() != items.len() {
            let count = response.results.len();
            return Err(Self::reply(format!("{count} completions for {} conversations", items.len())));
        }
        let written = |result: v1::AnswerResult| {
            let tokens = match &result.outcome {
                Some(v1::answer_result::Outcome::Answer(answer)) => answer.completion_tokens,
                _ => 0,
            };
            Ok(match outcome(result)? {
                AnswerOutcome::Answer(text) => CompletionOutcome::Written(Completion { text, tokens }),
                AnswerOutcome::Failed { reason, outage } => CompletionOutcome::Failed { reason, outage },
            })
        };
        response.results.into_iter().map(written).collect()
    }
}

fn outcome(result: v1::AnswerResult) -> Result<AnswerOutcome, RolloutError> {
    use v1::answer_result::Outcome;
    match result.outcome {
        Some(Outcome::Answer(answer)) => Ok(AnswerOutcome::Answer(answer.text)),
        // the rest of the run would end the same way; what is finished is kept, so raising the budget goes on
        Some(Outcome::Failure(failure)) if failure.kind() == v1::FailureKind::FailureBudgetExhausted => {
            Err(RolloutError::Budget { reason: failure.message })
        }
        Some(Outcome::Failure(failure)) => {
            let outage =
                matches!(failure.kind(), v1::FailureKind::FailureUnavailable | v1::FailureKind::FailureRateLimited);
            Ok(AnswerOutcome::Failed { reason: failure.message, outage })
        }
        None => Err(GeneratorPeer::reply("an item has neither an answer nor a failure".to_owned())),
    }
}
