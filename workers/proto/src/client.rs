//! Clients of the two serving workers.
//!
//! Every call has a deadline, a bounded number of attempts with exponential backoff and jitter, and is
//! counted (`s3_rpc_*`). Only outages are tried again: a refused request stays refused.

use crate::{Connector, MESSAGE_LIMIT, TlsError, v1};
use s3_config::ClientTls;
use s3_telemetry::one_line;
use std::time::{Duration, Instant};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

/// Why a call to another worker has no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The address in the configuration is not one.
    #[error("{service} address {address:?} is not valid: use http://host:port")]
    Address {
        /// Which worker.
        service: &'static str,
        /// What was configured.
        address: String,
    },
    /// The caller's own certificate cannot be used.
    #[error("{service}: {source}")]
    Certificate {
        /// Which worker was to be called.
        service: &'static str,
        /// What is wrong with the files.
        source: TlsError,
    },
    /// All attempts failed.
    #[error("{service} at {address} did not answer after {attempts} attempts ({status}); is it running?")]
    Unavailable {
        /// Which worker.
        service: &'static str,
        /// Its address.
        address: String,
        /// Attempts made.
        attempts: u32,
        /// The last status.
        status: String,
    },
    /// The worker refused the request.
    #[error("{service} refused the request: {status}")]
    Refused {
        /// Which worker.
        service: &'static str,
        /// Its status.
        status: String,
    },
}

impl CallError {
    /// Whether the other side was out of reach, as opposed to the request being wrong.
    pub fn is_outage(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

#[derive(Clone)]
struct Caller {
    service: &'static str,
    address: String,
    deadline: Duration,
    attempts: u32,
    channel: Channel,
    tls: Option<Connector>,
    /// `authorization` of every request.
    authorization: Option<MetadataValue<Ascii>>,
}

impl Caller {
    fn new(service: &'static str, address: &str, deadline: Duration, attempts: u32) -> Result<Self, CallError> {
        let endpoint = endpoint(service, address)?;
        let channel = endpoint.connect_lazy();
        Ok(Self {
            service,
            address: address.to_owned(),
            deadline,
            attempts: attempts.max(1),
            channel,
            tls: None,
            authorization: None,
        })
    }

    /// Connects by TLS, whatever the address says, and shows a certificate.
    fn with_tls(mut self, tls: &ClientTls) -> Result<Self, CallError> {
        let service = self.service;
        let connector = Connector::open(tls).map_err(|source| CallError::Certificate { service, source })?;
        // the connector speaks TLS by itself; the channel is not to look for a TLS of its own
        let plain = match self.address.strip_prefix("https://") {
            Some(rest) => format!("http://{rest}"),
            None => self.address.clone(),
        };
        self.channel = endpoint(service, &plain)?.connect_with_connector_lazy(connector.clone());
        self.tls = Some(connector);
        Ok(self)
    }

    /// Shows this token with every request: the worker knows the caller by it.
    fn with_token(mut self, token: &str) -> Result<Self, CallError> {
        let service = self.service;
        let refused =
            |_| CallError::Refused { service, status: "the caller's token cannot stand in a header".to_owned() };
        let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim())).map_err(refused)?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// What a status says, and what the connection broke with.
    fn told(&self, status: &Status) -> String {
        // a refused certificate or connection stands at the end of a chain
        let text = format!("{:?}: {}", status.code(), status.message());
        let text = one_line(text, std::error::Error::source(status));
        if self.tls.is_none() && text.contains("h2 protocol error") {
            // what comes from a server that speaks TLS is no HTTP
            return format!("{text}; if the server asks for certificates, show it one");
        }
        match self.tls.as_ref().and_then(Connector::complaint).filter(|complaint| !text.contains(complaint)) {
            Some(complaint) => format!("{text}: {complaint}"),
            None => text,
        }
    }

    async fn call<M, R, F, Fut>(&self, method: &'static str, message: M, send: F) -> Result<R, CallError>
    where
        M: Clone,
        F: Fn(Channel, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let metrics = s3_telemetry::metrics();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut request = Request::new(message.clone());
            request.set_timeout(self.deadline);
            if let Some(value) = &self.authorization {
                request.metadata_mut().insert("authorization", value.clone());
            }
            let started = Instant::now();
            let sent = tokio::time::timeout(self.deadline, send(self.channel.clone(), request)).await;
            let outcome = sent.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer within the deadline")));
            metrics.rpc_seconds.with_label_values(&[self.service, method]).observe(started.elapsed().as_secs_f64());
            let status = match outcome {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status,
            };
            metrics.rpc_failures.with_label_values(&[self.service, method, code_label(status.code())]).inc();
            if !is_outage(status.code()) {
                return Err(CallError::Refused { service: self.service, status: self.told(&status) });
            }
            if attempt >= self.attempts {
                return Err(CallError::Unavailable {
                    service: self.service,
                    address: self.address.clone(),
                    attempts: attempt,
                    status: self.told(&status),
                });
            }
            tracing::warn!(service = self.service, method, attempt, status = %self.told(&status), "call failed, trying again");
            tokio::time::sleep(backoff(attempt)).await;
        }
    }
}

fn endpoint(service: &'static str, address: &str) -> Result<Endpoint, CallError> {
    let endpoint = Endpoint::from_shared(address.to_owned())
        .map_err(|_| CallError::Address { service, address: address.to_owned() })?;
    Ok(endpoint.connect_timeout(Duration::from_secs(5)).tcp_nodelay(true))
}

fn is_outage(code: Code) -> bool {
    // no worker cancels what it was asked: the connection ended under the call
    let ended = code == Code::Cancelled;
    ended
        || matches!(
            code,
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Aborted | Code::Unknown
        )
}

fn code_label(code: Code) -> &'static str {
    match code {
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded => "deadline",
        Code::ResourceExhausted => "exhausted",
        Code::InvalidArgument => "invalid",
        _ => "other",
    }
}

/// 0.25 s, doubling to 8 s, spread by up to a quarter so that callers do not return in step.
fn backoff(attempt: u32) -> Duration {
    let base = 0.25 * f64::from(1u32 << (attempt - 1).min(5));
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.subsec_nanos());
    Duration::from_secs_f64(base * (1.0 + 0.25 * f64::from(nanos % 1000) / 1000.0))
}

/// Client of the retriever.
#[derive(Clone)]
pub struct RetrieverClient(Caller);

impl RetrieverClient {
    /// Prepares a client; the connection is made by the first call.
    pub fn new(address: &str, deadline: Duration, attempts: u32) -> Result<Self, CallError> {
        Caller::new("retriever", address, deadline, attempts).map(Self)
    }

    /// Shows this token with every request, where the retriever asks for one.
    pub fn with_token(self, token: &str) -> Result<Self, CallError> {
        self.0.with_token(token).map(Self)
    }

    /// Shows a certificate, where the retriever asks for one. Call it before the first request.
    pub fn with_tls(self, tls: &ClientTls) -> Result<Self, CallError> {
        self.0.with_tls(tls).map(Self)
    }

    /// Vectors of texts.
    pub async fn embed(&self, request: v1::EmbedRequest) -> Result<v1::EmbedResponse, CallError> {
        self.0
            .call("Embed", request, |channel, request| async move {
                v1::retriever_client::RetrieverClient::new(channel)
                    .max_decoding_message_size(MESSAGE_LIMIT)
                    .max_encoding_message_size(MESSAGE_LIMIT)
                    .embed(request)
                    .await
            })
            .await
    }

    /// Ranks passages for a batch of queries.
    pub async fn search(&self, request: v1::SearchRequest) -> Result<v1::SearchResponse, CallError> {
        self.0
            .call("Search", request, |channel, request| async move {
                v1::retriever_client::RetrieverClient::new(channel)
                    .max_decoding_message_size(MESSAGE_LIMIT)
                    .max_encoding_message_size(MESSAGE_LIMIT)
                    .search(request)
                    .await
            })
            .await
    }

    /// Identity of the served index.
    pub async fn info(&self) -> Result<v1::RetrieverInfo, CallError> {
        self.0
            .call("Info", v1::RetrieverInfoRequest {}, |channel, request| async move {
                v1::retriever_client::RetrieverClient::new(channel).info(request).await
            })
            .await
    }
}

/// Client of the generator gateway.
#[derive(Clone)]
pub struct GeneratorClient(Caller);

impl GeneratorClient {
    /// Prepares a client; the connection is made by the first call.
    pub fn new(address: &str, deadline: Duration, attempts: u32) -> Result<Self, CallError> {
        Caller::new("generator-gateway", address, deadline, attempts).map(Self)
    }

    /// Shows this token with every request: the gateway knows the caller by it.
    pub fn with_token(self, token: &str) -> Result<Self, CallError> {
        self.0.with_token(token).map(Self)
    }

    /// Shows a certificate, where what stands before the gateway asks for one.
    pub fn with_tls(self, tls: &ClientTls) -> Result<Self, CallError> {
        self.0.with_tls(tls).map(Self)
    }

    /// Answers a batch; every item has an answer or a typed failure.
    pub async fn answer(&self, request: v1::AnswerRequest) -> Result<v1::AnswerResponse, CallError> {
        self.0
            .call("Answer", request, |channel, request| async move {
                v1::generator_client::GeneratorClient::new(channel)
                    .max_decoding_message_size(MESSAGE_LIMIT)
                    .max_encoding_message_size(MESSAGE_LIMIT)
                    .answer(request)
                    .await
            })
            .await
    }

    /// Goes on with a batch of conversations.
    pub async fn complete(&self, request: v1::CompleteRequest) -> Result<v1::CompleteResponse, CallError> {
        self.0
            .call("Complete", request, |channel, request| async move {
                v1::generator_client::GeneratorClient::new(channel)
                    .max_decoding_message_size(MESSAGE_LIMIT)
                    .max_encoding_message_size(MESSAGE_LIMIT)
                    .complete(request)
                    .await
            })
            .await
    }

    /// Judges a batch.
    pub async fn judge(&self, request: v1::JudgeRequest) -> Result<v1::JudgeResponse, CallError> {
        self.0
            .call("Judge", request, |channel, request| async move {
                v1::generator_client::GeneratorClient::new(channel)
                    .max_decoding_message_size(MESSAGE_LIMIT)
                    .max_encoding_message_size(MESSAGE_LIMIT)
                    .judge(request)
                    .await
            })
            .await
    }

    /// Identity of a provider with a template.
    pub async fn info(&self, model: &str, template: &str) -> Result<v1::GeneratorInfo, CallError> {
        let request = v1::GeneratorInfoRequest { model: model.to_owned(), template: template.to_owned() };
        self.0
            .call("Info", request, |channel, request| async move {
                v1::generator_client::GeneratorClient::new(channel).info(request).await
            })
            .await
    }
}
