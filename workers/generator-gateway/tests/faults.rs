//! An upstream that fails in every way: a recovered call is the right answer, a lost one is a typed failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Act, Upstream, answer_to, open_ai};
use s3_config::{CallLimits, OpenAiConfig, ProviderConfig};
use s3_generator_gateway::{
    Call, FailureKind, Message, Order, Outcomes, Provider, Reach, Remote, Role, Sampling, Surroundings,
};
use std::time::{Duration, Instant};

fn settings(upstream: &Upstream) -> OpenAiConfig {
    let limits = CallLimits { concurrency: 32, deadline_ms: 400, attempts: 6, backoff_ms: 2, ..CallLimits::default() };
    OpenAiConfig { limits, ..open_ai("up", &upstream.url()) }
}

fn remote(settings: OpenAiConfig) -> Result<Remote, s3_generator_gateway::SettingsError> {
    let config = ProviderConfig::OpenAi(settings);
    Remote::new(&config, &Surroundings::new(Reach::with_loopback(), [&config]))
}

async fn complete(provider: &Remote, calls: Vec<Call>) -> Outcomes {
    provider.complete(calls, Order::default()).await
}

fn call(text: &str) -> Call {
    Call::chat(vec![Message::new(Role::User, text)], Sampling::greedy(Some(8), &[]))
}

fn expected(text: &str) -> String {
    answer_to(&serde_json::json!({"messages": [{"role": "user", "content": text}]}))
}

fn every_fault() -> Vec<(Act, FailureKind)> {
    vec![
        (Act::Status(500, "", "oops".into()), FailureKind::Unavailable),
        (Act::Status(503, "retry-after: 0\r\n", String::new()), FailureKind::Unavailable),
        (Act::Status(429, "", r#"{"error":{"message":"slow down"}}"#.into()), FailureKind::RateLimited),
        (Act::Reset, FailureKind::Unavailable),
        (Act::Slow(Duration::from_millis(900)), FailureKind::Unavailable),
        (Act::Truncated, FailureKind::Unavailable),
        (Act::HalfJson, FailureKind::Malformed),
        (Act::WrongType, FailureKind::Malformed),
        (Act::NoText, FailureKind::Malformed),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_survived_within_the_attempts() {
    let upstream = Upstream::start().await;
    let provider = remote(settings(&upstream)).unwrap();
    for (fault, _) in every_fault() {
        upstream.script([fault.clone(), fault.clone()]);
        let before = upstream.calls();
        let outcomes = complete(&provider, vec![call("q")]).await;
        let completion = outcomes[0].as_ref().unwrap_or_else(|e| panic!("{fault:?}: {e}"));
        assert_eq!(completion.text, expected("q"), "{fault:?}");
        assert_eq!((completion.prompt_tokens, completion.completion_tokens), (11, 3));
        assert_eq!(upstream.calls() - before, 3, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_fault_is_a_typed_failure() {
    for (fault, kind) in every_fault() {
        let upstream = Upstream::start().await;
        let mut settings = settings(&upstream);
        settings.limits.attempts = 3;
        settings.limits.deadline_ms = 200;
        let provider = remote(settings).unwrap();
        upstream.always(fault.clone());
        let failure = complete(&provider, vec![call("q")]).await.remove(0).unwrap_err();
        assert_eq!(failure.kind, kind, "{fault:?}: {failure}");
        assert!(!failure.message.contains('\n') && failure.message.starts_with("up: "), "{failure}");
        assert_eq!(upstream.calls(), 3, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_final() {
    let upstream = Upstream::start().await;
    let provider = remote(settings(&upstream)).unwrap();
    for status in [400, 401, 403, 404, 413, 422, 302] {
        let before = upstream.calls();
        let header = if status == 302 { "location: http://127.0.0.1:1/elsewhere\r\n" } else { "" };
        upstream.script([Act::Status(status, header, r#"{"error":{"message":"no such model"}}"#.into())]);
        let failure = complete(&provider, vec![call("q")]).await.remove(0).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Rejected, "{status}");
        assert!(failure.message.contains("no such model"), "{failure}");
        assert_eq!(upstream.calls() - before, 1, "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_waited_for() {
    let upstream = Upstream::start().await;
    let provider = remote(settings(&upstream)).unwrap();
    upstream.script([Act::Status(429, "retry-after: 1\r\n", String::new())]);
    let started = Instant::now();
    assert!(complete(&provider, vec![call("q")]).await[0].is_ok());
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");

    // an hour is not waited for
    upstream.script([Act::Status(429, "retry-after: 3600\r\n", String::new())]);
    let failure = complete(&provider, vec![call("q")]).await.remove(0).unwrap_err();
    assert_eq!(failure.kind, FailureKind::RateLimited);
    assert!(failure.message.contains("3600"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_endpoint_is_unavailable() {
    let mut settings = settings(&Upstream::start().await);
    settings.base_url = format!("http://{}/v1", common::free_port());
    settings.limits.attempts = 2;
    let failure = complete(&remote(settings).unwrap(), vec![call("q")]).await.remove(0).unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unavailable);
    assert!(failure.message.contains("cannot connect"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_call_in_five_faulty_and_no_wrong_answer() {
    const CALLS: usize = 1000;
    let upstream = Upstream::start().await;
    let provider = remote(settings(&upstream)).unwrap();
    let faults = every_fault();
    // a fixed mix: every fifth request on average meets a fault, each kind in turn
    let script =
        (0..2 * CALLS).map(|i| if i * 7919 % 5 == 0 { faults[i / 5 % faults.len()].0.clone() } else { Act::Answer });
    upstream.script(script);
    let calls: Vec<Call> = (0..CALLS).map(|i| call(&format!("question {i}"))).collect();
    let outcomes = complete(&provider, calls).await;
    assert_eq!(outcomes.len(), CALLS);
    for (i, outcome) in outcomes.iter().enumerate() {
        assert_eq!(outcome.as_ref().unwrap().text, expected(&format!("question {i}")), "{i}");
    }
    assert!(upstream.calls() > CALLS + CALLS / 6, "{}", upstream.calls());
    assert!(upstream.most() <= 32, "{}", upstream.most());
}

#[tokio::test]
async fn wrong_settings_are_named() {
    let upstream = Upstream::start().await;
    let good = settings(&upstream);
    for (base_url, part) in [
        ("ftp://host/v1", "http"),
        ("host:80/v1", "http"),
        ("not an address", "address"),
        ("http://user:secret@host/v1", "apiKeyFile"),
    ] {
        let error = remote(OpenAiConfig { base_url: base_url.into(), ..good.clone() }).err().unwrap().to_string();
        assert!(error.contains(part) && error.contains("\"up\"") && !error.contains("secret"), "{error}");
    }
    let missing = Some("/no/such/key".into());
    let error = remote(OpenAiConfig { api_key_file: missing, ..good.clone() }).err().unwrap().to_string();
    assert!(error.contains("/no/such/key"), "{error}");
    assert!(remote(OpenAiConfig { base_url: "https://host/v1/".into(), ..good }).is_ok());
}
