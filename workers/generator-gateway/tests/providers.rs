//! Every provider's wire format over real sockets, as its vendor publishes it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Act, Upstream};
use s3_config::{AnthropicConfig, AzureOpenAiConfig, BedrockConfig, CallLimits, ProviderConfig};
use s3_generator_gateway::{
    Call, CallFailure, Completion, FailureKind, Finish, Message, Order, Provider, Reach, Remote, Role, Sampling,
    Surroundings,
};
use serde_json::json;
use std::path::PathBuf;

const KEY: &str = "key-5f0c1d7a";

struct Secrets(tempfile::TempDir);

impl Secrets {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn limits() -> CallLimits {
    CallLimits { attempts: 3, backoff_ms: 2, deadline_ms: 5000, ..CallLimits::default() }
}

fn remote(config: &ProviderConfig) -> Remote {
    Remote::new(config, &Surroundings::new(Reach::with_loopback(), [config])).unwrap()
}

fn call() -> Call {
    let messages = vec![Message::new(Role::System, "Be brief."), Message::new(Role::User, "Capital of France?")];
    Call::chat(messages, Sampling::greedy(Some(16), &["\n".into()]))
}

async fn ask(provider: &Remote) -> Result<Completion, CallFailure> {
    provider.complete(vec![call()], Order::default()).await.remove(0)
}

fn header<'a>(head: &'a str, name: &str) -> &'a str {
    let line = head.lines().find(|line| line.to_lowercase().starts_with(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no {name} in {head}")).split_once(": ").unwrap().1
}

/// What every provider must do with replies that are no answers.
async fn refuses_what_is_no_answer(upstream: &Upstream, provider: &Remote, good: &str, error: &str) {
    for (act, kind, calls) in [
        (Act::Json(good[..good.len() - 9].to_owned()), FailureKind::Malformed, 3),
        (Act::Json("{}".into()), FailureKind::Malformed, 3),
        (Act::Status(500, "", error.into()), FailureKind::Unavailable, 3),
        (Act::Status(429, "retry-after: 0\r\n", error.into()), FailureKind::RateLimited, 3),
        (Act::Status(400, "", error.into()), FailureKind::Rejected, 1),
        (Act::Status(403, "", error.into()), FailureKind::Rejected, 1),
    ] {
        upstream.always(act.clone());
        let before = upstream.calls();
        let failure = ask(provider).await.unwrap_err();
        assert_eq!((failure.kind, upstream.calls() - before), (kind, calls), "{act:?}: {failure}");
        if matches!(act, Act::Status(..)) {
            assert!(failure.message.contains("what went wrong"), "{failure}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anthropic() {
    let (upstream, secrets) = (Upstream::start().await, Secrets::new());
    let provider = remote(&ProviderConfig::Anthropic(AnthropicConfig {
        name: "claude".into(),
        base_url: format!("http://{}", upstream.address),
        model: "claude-3-haiku-20240307".into(),
        api_key_file: secrets.file("key", KEY),
        limits: limits(),
    }));
    let good = json!({"id": "msg_01", "type": "message", "role": "assistant", "model": "claude-3-haiku-20240307",
        "content": [{"type": "text", "text": "Paris\n\nIt lies on the Seine."}], "stop_reason": "end_turn",
        "stop_sequence": null, "usage": {"input_tokens": 18, "output_tokens": 9}})
    .to_string();
    upstream.script([Act::Json(good.clone())]);
    let made = ask(&provider).await.unwrap();
    // the stop string that the API refuses is applied here
    assert_eq!((made.text.as_str(), made.finish), ("Paris", Finish::Stop));
    assert_eq!((made.prompt_tokens, made.completion_tokens), (18, 9));
    let seen = upstream.seen().remove(0);
    assert!(seen.head.starts_with("POST /v1/messages "), "{}", seen.head);
    assert_eq!(header(&seen.head, "x-api-key"), KEY);
    assert_eq!(header(&seen.head, "anthropic-version"), "2023-06-01");
    assert!(!seen.head.contains("authorization"));
    assert_eq!(
        seen.body,
        json!({"model": "claude-3-haiku-20240307", "max_tokens": 16, "system": "Be brief.", "temperature": 0.0,
               "messages": [{"role": "user", "content": "Capital of France?"}]})
    );
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"what went wrong"}}"#;
    refuses_what_is_no_answer(&upstream, &provider, &good, error).await;
    upstream.always(Act::Status(529, "", error.into()));
    assert_eq!(ask(&provider).await.unwrap_err().kind, FailureKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread")]
async fn azure_open_ai() {
    let (upstream, secrets) = (Upstream::start().await, Secrets::new());
    let provider = remote(&ProviderConfig::AzureOpenAi(AzureOpenAiConfig {
        name: "azure".into(),
        endpoint: format!("http://{}/", upstream.address),
        deployment: "gpt 4o".into(),
        api_version: "2024-10-21".into(),
        api_key_file: secrets.file("key", KEY),
        limits: limits(),
    }));
    let good = json!({"id": "c", "object": "chat.completion", "model": "gpt-4o", "prompt_filter_results": [],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Paris"},
                     "content_filter_results": {"hate": {"filtered": false, "severity": "safe"}}}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}})
    .to_string();
    upstream.script([Act::Json(good.clone())]);
    assert_eq!(ask(&provider).await.unwrap().text, "Paris");
    let seen = upstream.seen().remove(0);
    assert!(
        seen.head.starts_with("POST /openai/deployments/gpt%204o/chat/completions?api-version=2024-10-21 "),
        "{}",
        seen.head
    );
    assert_eq!(header(&seen.head, "api-key"), KEY);
    assert!(seen.body.get("model").is_none());
    refuses_what_is_no_answer(&upstream, &provider, &good, r#"{"error":{"code":"X","message":"what went wrong"}}"#)
        .await;
    upstream.always(Act::Json(good.replace("\"stop\"", "\"content_filter\"")));
    assert_eq!(ask(&provider).await.unwrap_err().kind, FailureKind::Rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn bedrock() {
    let (upstream, secrets) = (Upstream::start().await, Secrets::new());
    let file = "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = wJalrXUtnFEMI\naws_session_token = the-token\n";
    let provider = remote(&ProviderConfig::Bedrock(BedrockConfig {
        name: "bedrock".into(),
        region: "eu-central-1".into(),
        model: "anthropic.claude-3-haiku-20240307-v1:0".into(),
        credentials_file: Some(secrets.file("credentials", file)),
        endpoint: Some(format!("http://{}", upstream.address)),
        limits: limits(),
    }));
    let good = json!({"metrics": {"latencyMs": 275}, "stopReason": "end_turn",
        "output": {"message": {"role": "assistant", "content": [{"text": "Paris"}]}},
        "usage": {"inputTokens": 30, "outputTokens": 1, "totalTokens": 31}})
    .to_string();
    upstream.script([Act::Json(good.clone())]);
    let made = ask(&provider).await.unwrap();
    assert_eq!((made.text.as_str(), made.prompt_tokens), ("Paris", 30));
    let seen = upstream.seen().remove(0);
    assert!(seen.head.starts_with("POST /model/anthropic.claude-3-haiku-20240307-v1%3A0/converse "), "{}", seen.head);
    let date = header(&seen.head, "x-amz-date");
    assert!(date.len() == 16 && date.ends_with('Z'), "{date}");
    assert_eq!(header(&seen.head, "x-amz-security-token"), "the-token");
    let signed = header(&seen.head, "authorization");
    let scope = format!("Credential=AKIDEXAMPLE/{}/eu-central-1/bedrock/aws4_request", &date[..8]);
    assert!(signed.starts_with("AWS4-HMAC-SHA256 ") && signed.contains(&scope), "{signed}");
    assert!(signed.contains("SignedHeaders=content-type;host;x-amz-date;x-amz-security-token,"), "{signed}");
    assert_eq!(header(&seen.head, "host"), upstream.address.to_string());
    assert_eq!(
        seen.body,
        json!({"system": [{"text": "Be brief."}], "inferenceConfig": {"temperature": 0.0, "maxTokens": 16},
               "messages": [{"role": "user", "content": [{"text": "Capital of France?"}]}]})
    );
    refuses_what_is_no_answer(&upstream, &provider, &good, r#"{"message":"what went wrong"}"#).await;
    let no_region = ProviderConfig::Bedrock(BedrockConfig {
        name: "bedrock".into(),
        region: "evil.example/".into(),
        model: "m".into(),
        credentials_file: None,
        endpoint: None,
        limits: limits(),
    });
    let around = Surroundings::new(Reach::default(), [&no_region]);
    assert!(Remote::new(&no_region, &around).err().unwrap().to_string().contains("us-east-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_public_addresses_are_the_vendors() {
    let secrets = Secrets::new();
    let text = format!("kind: Anthropic\nname: c\nmodel: m\napiKeyFile: {}\n", secrets.file("key", KEY).display());
    let anthropic: ProviderConfig = serde_yaml(&text);
    assert_eq!(remote(&anthropic).scope(), "https://api.anthropic.com/v1/messages");
    let bedrock: ProviderConfig = serde_yaml("kind: Bedrock\nname: b\nmodel: a.b-v1:0\nregion: us-west-2\n");
    assert_eq!(remote(&bedrock).scope(), "https://bedrock-runtime.us-west-2.amazonaws.com/model/a.b-v1%3A0/converse");
    assert_ne!(remote(&anthropic).digest(), remote(&bedrock).digest());
}

/// A configuration as the gateway reads it.
fn serde_yaml(text: &str) -> ProviderConfig {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    s3_config::load(file.path()).unwrap()
}
