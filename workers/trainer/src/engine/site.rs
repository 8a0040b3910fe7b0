//! One server of episodes.

use super::{SERVICE, wire};
use reqwest::Url;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use s3_config::EngineConfig;
use s3_generator_gateway::FailureKind;
use s3_generator_gateway::calls::{
    Attempt, SecretFile, Whole, builder, classify, error_line, timed_out, transport, whole,
};
use s3_rollout::Continued;
use std::path::Path;
use std::time::{Duration, Instant};

/// A server, by its address up to and with `/v1`.
pub(super) struct Site {
    base: String,
    client: reqwest::Client,
    key: Option<SecretFile>,
    deadline: Duration,
}

/// One attempt that brought nothing.
pub(super) struct Missed {
    /// The server's address.
    pub site: String,
    /// Why.
    pub failed: Attempt,
    status: u16,
}

impl Missed {
    /// Whether the server says that it has no such model.
    pub fn lacks_model(&self) -> bool {
        self.status == 404
    }
}

impl Site {
    /// Nothing is sent yet.
    pub fn new(base: &str, config: &EngineConfig) -> Result<Self, String> {
        let base = base.trim_end_matches('/').to_owned();
        let wrong = |why: String| format!("rollout.engine.endpoints: {base:?} {why}");
        let url = Url::parse(&base).map_err(|error| wrong(format!("is no address: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("has another scheme than http and https".into()));
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(wrong("holds a password or a query; put the key into apiKeySecretRef".into()));
        }
        let key = config.api_key_file.as_deref().map(|path| SecretFile::open(path, "apiKeyFile")).transpose()?;
        let client = builder("s3-trainer", url.scheme() == "https").build();
        let client = client.map_err(|error| wrong(format!("has no TLS client: {error:?}")))?;
        Ok(Self { base, client, key, deadline: Duration::from_millis(config.deadline_ms) })
    }

    /// Goes on with the policy that the body names.
    pub async fn complete(&self, body: &[u8]) -> Result<Continued, Missed> {
        let reply = self.post("completions", body.to_vec()).await?;
        let unusable = |why| self.missed(reply.status, Attempt::again(FailureKind::Malformed, "malformed", why));
        wire::continued(&reply.body).map_err(unusable)
    }

    /// Has a policy loaded; one that is there stays.
    pub async fn load(&self, name: &str, folder: &Path) -> Result<(), Missed> {
        let body = wire::load(name, folder).map_err(|error| self.missed(0, Attempt::refused(error.to_string())))?;
        let Err(missed) = self.post("load_lora_adapter", body).await else { return Ok(()) };
        // names are made of the content: what has this name is this policy
        if missed.status == 400 && missed.failed.message.contains("already been loaded") {
            return Ok(());
        }
        let Some(hint) = refusal(missed.status, &missed.failed.message) else { return Err(missed) };
        let folder = folder.display();
        let failed = Attempt::refused(format!("{}; {hint} ({folder})", missed.failed.message));
        Err(Missed { failed, ..missed })
    }

    /// Has a policy unloaded; one that is not there is none.
    pub async fn unload(&self, name: &str) -> Result<(), Missed> {
        let body = wire::unload(name).map_err(|error| self.missed(0, Attempt::refused(error.to_string())))?;
        match self.post("unload_lora_adapter", body).await {
            Err(missed) if !missed.lacks_model() => Err(missed),
            _ => Ok(()),
        }
    }

    fn missed(&self, status: u16, failed: Attempt) -> Missed {
        Missed { site: self.base.clone(), failed, status }
    }

    /// One exchange, within the deadline, counted.
    async fn post(&self, method: &'static str, body: Vec<u8>) -> Result<Whole, Missed> {
        let metrics = s3_telemetry::metrics();
        let started = Instant::now();
        let exchange = tokio::time::timeout(self.deadline, self.exchange(method, body)).await;
        metrics.rpc_seconds.with_label_values(&[SERVICE, method]).observe(started.elapsed().as_secs_f64());
        exchange.unwrap_or_else(|_| Err((0, timed_out(self.deadline)))).map_err(|(status, failed)| {
            metrics.rpc_failures.with_label_values(&[SERVICE, method, failed.reason]).inc();
            self.missed(status, failed)
        })
    }

    async fn exchange(&self, method: &str, body: Vec<u8>) -> Result<Whole, (u16, Attempt)> {
        let mut request = self.client.post(format!("{}/{method}", self.base)).body(body);
        request = request.header(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = &self.key {
            let unread = |why: String| (0, Attempt::refused(why));
            let text = key.key().map_err(unread)?;
            let mut value = HeaderValue::try_from(format!("Bearer {text}"))
                .map_err(|_| unread("the key cannot stand in a header".into()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let reply = whole(request.send().await.map_err(|error| (0, transport(&error)))?).await?;
        match reply.status {
            200 => Ok(reply),
            status => {
                let message = format!("status {status}: {}", error_line(&reply.body));
                Err((status, classify(status, reply.hint, message)))
            }
        }
    }
}

/// What to do about a policy that a server will never load; none where it may later. vLLM answers 500 to some of them.
fn refusal(status: u16, message: &str) -> Option<&'static str> {
    match status {
        404 if message.contains("No adapter found") => Some(
            "mount the volume of the job's checkpoints where the trainer has it, so that the server sees the folder",
        ),
        404 => Some("start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        500 if message.contains("LoRA is not enabled") => Some("start the server with --enable-lora"),
        500 if message.contains("max_lora_rank") => {
            Some("start the server with a --max-lora-rank of at least searcher.adapter.rank")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_a_server_will_never_load_is_told_from_what_it_may_later() {
        // as vLLM 0.32.0 says them
        let missing = "Loading lora p failed: No adapter found for <path>";
        assert!(refusal(404, missing).unwrap().contains("volume"));
        assert!(refusal(404, "Not Found").unwrap().contains("VLLM_ALLOW_RUNTIME_LORA_UPDATING"));
        let rank = "Call to add_lora method failed: LoRA rank 32 is greater than max_lora_rank 16.";
        assert!(refusal(500, rank).unwrap().contains("--max-lora-rank"));
        assert!(refusal(500, "LoRA is not enabled. Use --enable-lora to enable LoRA.").unwrap().contains("--enable"));
        for (status, message) in [(500, "EngineCore encountered an issue"), (503, "overloaded"), (0, "timed out")] {
            assert_eq!(refusal(status, message), None);
        }
    }
}
