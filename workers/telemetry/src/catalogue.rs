//! Every metric of every worker, declared once.
//!
//! Code registers from this list; docs, dashboards and alerts are checked against it.

use prometheus::{GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts};
use std::sync::LazyLock;

/// Kind of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// Only grows; name ends in `_total`.
    Counter,
    /// A value that goes both ways.
    Gauge,
    /// A distribution.
    Histogram,
}

/// One declared metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Full name, base units.
    pub name: &'static str,
    /// Kind.
    pub kind: MetricKind,
    /// Bounded labels.
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
}

macro_rules! catalogue {
    ($($(#[$doc:meta])* $field:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// All metrics, in order of declaration.
        pub const CATALOGUE: &[Metric] = &[
            $(Metric { name: $name, kind: MetricKind::$kind, labels: &[$($label),*], help: $help },)*
        ];

        /// Handles of all metrics.
        pub struct Metrics {
            $(#[doc = $help] pub $field: catalogue!(@type $kind),)*
        }

        impl Metrics {
            fn register() -> Result<Self, prometheus::Error> {
                Ok(Self { $($field: catalogue!(@register $kind $name [$($label),*] $help),)* })
            }
        }
    };
    (@type Counter) => { IntCounterVec };
    (@type Gauge) => { GaugeVec };
    (@type Histogram) => { HistogramVec };
    (@register Counter $name:literal [$($label:literal),*] $help:literal) => {
        registered(IntCounterVec::new(Opts::new($name, $help), &[$($label),*])?)?
    };
    (@register Gauge $name:literal [$($label:literal),*] $help:literal) => {
        registered(GaugeVec::new(Opts::new($name, $help), &[$($label),*])?)?
    };
    (@register Histogram $name:literal [$($label:literal),*] $help:literal) => {
        registered(HistogramVec::new(HistogramOpts::new($name, $help).buckets(BUCKETS.to_vec()), &[$($label),*])?)?
    };
}

/// Seconds, from a cache hit to a training step.
const BUCKETS: &[f64] = &[0.0005, 0.002, 0.01, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

fn registered<C: prometheus::core::Collector + Clone + 'static>(metric: C) -> Result<C, prometheus::Error> {
    prometheus::register(Box::new(metric.clone()))?;
    Ok(metric)
}

catalogue! {
    rpc_seconds: Histogram "s3_rpc_client_seconds" ["service", "method"] "Duration of one attempt of a call between workers.";
    rpc_failures: Counter "s3_rpc_client_failures_total" ["service", "method", "code"] "Failed attempts of calls between workers.";
    report_failures: Counter "s3_progress_report_failures_total" ["code"] "Progress reports that the operator did not take, by gRPC code.";
    retriever_seconds: Histogram "s3_retriever_request_seconds" ["api", "method"] "Duration of a search request.";
    retriever_queries: Counter "s3_retriever_queries_total" ["method", "cache"] "Queries served, by cache outcome (hit, miss).";
    retriever_waiting: Gauge "s3_retriever_waiting_queries" [] "Queries that wait for the engine or the web search; `serving.autoscaling` follows it.";
    retriever_refused: Counter "s3_retriever_refused_total" ["reason"] "Requests refused before any work.";
    retriever_web_seconds: Histogram "s3_retriever_web_seconds" [] "Duration of one attempt of a call to the web search.";
    retriever_web_calls: Counter "s3_retriever_web_calls_total" ["outcome"] "Attempts of calls to the web search, by outcome (answered, limited, unavailable, malformed, rejected).";
    retriever_web_retries: Counter "s3_retriever_web_retries_total" ["reason"] "Attempts of calls to the web search that were repeated.";
    retriever_web_running: Gauge "s3_retriever_web_calls_in_flight" [] "Calls to the web search under way.";
    retriever_passages: Gauge "s3_retriever_index_passages" [] "Passages in the served index.";
    gateway_requests: Counter "s3_gateway_requests_total" ["provider", "outcome"] "Answers and verdicts, by outcome (ok, cached, unavailable, `rate_limited`, rejected, malformed, deadline, budget).";
    gateway_seconds: Histogram "s3_gateway_request_seconds" ["provider"] "Duration of one upstream call or one built-in batch.";
    gateway_tokens: Counter "s3_gateway_tokens_total" ["provider", "direction"] "Tokens read (prompt) and written (completion).";
    gateway_retries: Counter "s3_gateway_retries_total" ["provider", "reason"] "Upstream attempts repeated.";
    gateway_refused: Counter "s3_gateway_refused_total" ["reason"] "Requests refused before any call (identity, queue, rate, budget).";
    gateway_spent: Counter "s3_gateway_caller_tokens_total" ["caller", "direction"] "Tokens that a caller's calls were charged for, read (prompt) and written (completion).";
    gateway_verdicts: Counter "s3_gateway_verdicts_total" ["provider", "verdict"] "Judged answers, by verdict (correct, incorrect, undecided, failed).";
    training_step: Gauge "s3_training_step" [] "Policy update steps done.";
    training_reward: Gauge "s3_training_reward_mean" [] "Mean reward of the last step's scored episodes.";
    training_gain: Gauge "s3_training_gain_beyond_rag" [] "Mean gain beyond RAG of the last step.";
    training_accuracy: Gauge "s3_training_accuracy" ["of"] "Generation accuracy of the last step (searcher, baseline).";
    training_grad_norm: Gauge "s3_training_gradient_norm" [] "Global gradient norm before clipping.";
    training_entropy: Gauge "s3_training_entropy" [] "Mean entropy over action tokens, nats.";
    training_mismatch: Gauge "s3_training_mismatch_kl" [] "KL between rollout and training log-probabilities (k3 estimate), nats.";
    training_staleness: Gauge "s3_training_staleness" [] "Optimiser steps between the policy that played the last step's episodes and the one that learned from them.";
    training_searches: Gauge "s3_training_searches_mean" [] "Executed searches per episode of the last step.";
    training_buffer: Gauge "s3_training_difficulty_buffer_questions" ["part"] "Questions of the difficulty buffer: held after the last step, drawn for it.";
    training_masked: Counter "s3_training_masked_episodes_total" ["reason"] "Episodes left out because of an infrastructure failure.";
    training_tokens: Counter "s3_training_tokens_total" ["kind"] "Tokens sampled (action) and trained on (context).";
    training_phase_seconds: Histogram "s3_training_phase_seconds" ["phase"] "Duration of a step's phase (rollout, reward, wait, update, checkpoint, handover of a policy to a rollout engine; with staleness, rollout and reward run beside the others).";
    training_collective_seconds: Histogram "s3_training_collective_seconds" ["operation"] "Duration of an exchange among a trainer's replicas, waiting for the others included (barrier, broadcast, `all_gather`, `reduce_scatter`, fold).";
    training_collective_bytes: Counter "s3_training_collective_bytes_total" ["direction"] "Bytes that this replica sent to and received from others over TCP.";
    operator_reconciles: Counter "s3_operator_reconciles_total" ["kind", "result"] "Reconciles, by result (done, waiting, changed, refused, error).";
    operator_reconcile_seconds: Histogram "s3_operator_reconcile_seconds" ["kind"] "Duration of a reconcile.";
    operator_writes: Counter "s3_operator_writes_total" ["kind", "verb", "outcome"] "Writes to the API server, by outcome (ok, conflict, late in a namespace that goes, error).";
    operator_reports: Counter "s3_operator_progress_reports_total" ["result"] "Progress reports, by result (taken, fenced, refused).";
    operator_leader: Gauge "s3_operator_leader" [] "Whether this process leads (1) or stands by (0).";
    operator_queue_depth: Gauge "s3_operator_queue_depth" [] "Resources that are due and wait for a worker.";
    operator_queue_wait: Histogram "s3_operator_queue_wait_seconds" ["kind"] "Time that a resource waited for admission to its queue.";
    operator_attempts: Counter "s3_operator_attempts_total" ["kind", "verdict"] "Attempts that ended, by verdict (Done, Stopped or the class of the failure).";
    searcher_requests: Counter "s3_searcher_requests_total" ["code"] "Questions to a served searcher, by HTTP status.";
    searcher_seconds: Histogram "s3_searcher_request_seconds" [] "Duration of a served question, without its time in the queue.";
    eval_questions: Counter "s3_eval_questions_total" ["arm", "outcome"] "Questions evaluated, by outcome (right, wrong, failed).";
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| match Metrics::register() {
    Ok(metrics) => metrics,
    // Names are constants of this file: a clash is a defect that the test below finds first.
    Err(error) => panic!("metric catalogue: {error}"),
});

/// The process-wide metrics.
pub fn metrics() -> &'static Metrics {
    &METRICS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_convention() {
        metrics();
        let mut names = std::collections::BTreeSet::new();
        for metric in CATALOGUE {
            assert!(names.insert(metric.name), "{} is declared twice", metric.name);
            assert!(metric.name.starts_with("s3_"), "{}", metric.name);
            assert_eq!(metric.kind == MetricKind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
        }
    }
}
