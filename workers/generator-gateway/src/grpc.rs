//! The gRPC service: `Answer`, `Complete`, `Judge`, `Info`.

use crate::access::{Access, Denied};
use crate::engine::{Answered, Ask, Gateway, GatewayError};
use crate::judge::{Candidate, Decision};
use crate::panel::{Ruling, judge};
use crate::provider::{Call, CallFailure, FailureKind, Message, Provider, Role, Sampling};
use crate::templates::{Document, Template, render};
use s3_proto::tonic::metadata::MetadataMap;
use s3_proto::tonic::{Request, Response, Status};
use s3_proto::v1;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The service over a gateway.
#[derive(Clone)]
pub struct GeneratorService {
    gateway: Arc<Gateway>,
    access: Arc<Access>,
}

impl GeneratorService {
    /// Serves this gateway to these callers.
    pub fn new(gateway: Arc<Gateway>, access: Arc<Access>) -> Self {
        Self { gateway, access }
    }

    fn ask(&self, metadata: &MetadataMap, tenant: &str) -> Result<Ask, Status> {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok());
        let caller = self.access.identify(text("authorization"), tenant).map_err(|denied| {
            s3_telemetry::metrics().gateway_refused.with_label_values(&["identity"]).inc();
            match denied {
                Denied::Unknown => Status::unauthenticated(denied.to_string()),
                Denied::Foreign => Status::permission_denied(denied.to_string()),
                Denied::Name => Status::invalid_argument(denied.to_string()),
            }
        })?;
        Ok(Ask { caller, deadline: text("grpc-timeout").and_then(timeout).map(|left| Instant::now() + left) })
    }
}

/// gRPC's form of a duration: digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count.checked_mul(3600)?),
        "M" => Duration::from_secs(count.checked_mul(60)?),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
    .filter(|left| *left < Duration::from_secs(1 << 31))
}

/// Digest of a provider with a template: what decides the text of an answer, and nothing else.
pub fn generator_digest(provider: &dyn Provider, template: &Template) -> Result<String, GatewayError> {
    s3_artifacts::digest_json(&("generator", 1, provider.digest(), template.source()))
        .map_err(|e| GatewayError::Internal(e.to_string()))
}

/// An outage of the cache's disk may end with the next start; a wrong name stays wrong.
fn status(error: &GatewayError) -> Status {
    let message = error.to_string();
    match error {
        GatewayError::UnknownProvider { .. } | GatewayError::Template(_) => Status::not_found(message),
        GatewayError::Cache(cause) => match cause.as_ref() {
            crate::CacheError::Damaged { .. } => Status::data_loss(message),
            _ => Status::unavailable(message),
        },
        GatewayError::Internal(_) => Status::internal(message),
    }
}

fn failure(failure: CallFailure) -> v1::Failure {
    let kind = match failure.kind {
        FailureKind::Unavailable | FailureKind::Deadline => v1::FailureKind::FailureUnavailable,
        FailureKind::Budget => v1::FailureKind::FailureBudgetExhausted,
        FailureKind::RateLimited => v1::FailureKind::FailureRateLimited,
        FailureKind::Rejected => v1::FailureKind::FailureRejected,
        FailureKind::Malformed => v1::FailureKind::FailureMalformed,
    };
    v1::Failure { kind: kind.into(), message: failure.message }
}

fn answer_call(template: &Template, item: &v1::AnswerItem, request: &v1::AnswerRequest) -> Call {
    let passages: Vec<Document<'_>> =
        item.passages.iter().map(|passage| Document { title: &passage.title, text: &passage.text }).collect();
    let messages = render(template, &item.question, &passages, request.passage_words as usize);
    let max_tokens = (request.max_tokens > 0).then_some(request.max_tokens);
    Call::from_rendered(messages, Sampling::greedy(max_tokens, template.stop()))
}

/// A call with the messages of a conversation.
fn chat_call(item: &v1::CompleteItem, request: &v1::CompleteRequest) -> Result<Call, Status> {
    let message = |message: &v1::ChatMessage| {
        let role = match message.speaker() {
            v1::Speaker::System => Role::System,
            v1::Speaker::User => Role::User,
            v1::Speaker::Assistant => Role::Assistant,
            v1::Speaker::Unspecified => return Err(Status::invalid_argument("a message has no speaker")),
        };
        Ok(Message::new(role, message.text.clone()))
    };
    let messages: Vec<Message> = item.messages.iter().map(message).collect::<Result<_, _>>()?;
    if messages.is_empty() {
        return Err(Status::invalid_argument("an item has no message"));
    }
    let max_tokens = (request.max_tokens > 0).then_some(request.max_tokens);
    let mut sampling = Sampling::greedy(max_tokens, &item.stop);
    sampling.temperature = request.temperature;
    if request.temperature > 0.0 && request.top_p > 0.0 {
        sampling.top_p = request.top_p;
    }
    Ok(Call::chat(messages, sampling))
}

/// An outcome on the wire; `take` is what of a completion's text is the answer.
fn result(answer: Result<Answered, CallFailure>, take: impl Fn(&str) -> &str) -> v1::AnswerResult {
    let outcome = match answer {
        Ok(answered) => v1::answer_result::Outcome::Answer(v1::Answer {
            text: take(&answered.completion.text).to_owned(),
            prompt_tokens: answered.completion.prompt_tokens,
            completion_tokens: answered.completion.completion_tokens,
            cached: answered.cached,
            fallback: answered.fallback.as_deref().unwrap_or("").to_owned(),
        }),
        Err(why) => v1::answer_result::Outcome::Failure(failure(why)),
    };
    v1::AnswerResult { outcome: Some(outcome) }
}

#[tonic::async_trait]
impl v1::generator_server::Generator for GeneratorService {
    async fn answer(&self, request: Request<v1::AnswerRequest>) -> Result<Response<v1::AnswerResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let ask = self.ask(&metadata, &request.tenant)?;
        let lane = self.gateway.lane(&request.model).map_err(|e| status(&e))?;
        let template = self.gateway.templates().get(&request.template).map_err(|e| status(&e.into()))?;
        let calls = request.items.iter().map(|item| answer_call(template, item, &request)).collect();
        let answers = self.gateway.complete(lane, calls, &ask).await.map_err(|e| status(&e))?;
        let results = answers.into_iter().map(|answer| result(answer, |text| template.answer(text))).collect();
        Ok(Response::new(v1::AnswerResponse { results }))
    }

    async fn complete(&self, request: Request<v1::CompleteRequest>) -> Result<Response<v1::CompleteResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let ask = self.ask(&metadata, &request.tenant)?;
        let lane = self.gateway.lane(&request.model).map_err(|e| status(&e))?;
        let calls = request.items.iter().map(|item| chat_call(item, &request)).collect::<Result<_, _>>()?;
        let answers = self.gateway.complete(lane, calls, &ask).await.map_err(|e| status(&e))?;
        let results = answers.into_iter().map(|answer| result(answer, |text| text)).collect();
        Ok(Response::new(v1::CompleteResponse { results }))
    }

    async fn judge(&self, request: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeResponse>, Status> {
        let (metadata, _, request) = request.into_parts();
        let ask = self.ask(&metadata, &request.tenant)?;
        let lane = self.gateway.lane(&request.model).map_err(|e| status(&e))?;
        let candidates: Vec<Candidate<'_>> = request.items.iter().map(candidate).collect();
        let rulings = judge(&self.gateway, lane, &candidates, &ask).await.map_err(|e| status(&e))?;
        let results: Vec<v1::JudgeResult> = rulings.into_iter().map(verdict).collect();
        let verdicts = &s3_telemetry::metrics().gateway_verdicts;
        for result in &results {
            verdicts.with_label_values(&[lane.provider().name(), verdict_label(result.verdict())]).inc();
        }
        Ok(Response::new(v1::JudgeResponse { results }))
    }

    async fn info(&self, request: Request<v1::GeneratorInfoRequest>) -> Result<Response<v1::GeneratorInfo>, Status> {
        let (metadata, _, request) = request.into_parts();
        self.ask(&metadata, "")?;
        let provider = self.gateway.lane(&request.model).map_err(|e| status(&e))?.provider();
        let template = self.gateway.templates().get(&request.template).map_err(|e| status(&e.into()))?;
        Ok(Response::new(v1::GeneratorInfo {
            digest: generator_digest(provider, template).map_err(|e| status(&e))?,
            model: provider.name().to_owned(),
            context_tokens: provider.context_tokens(),
        }))
    }
}

fn candidate(item: &v1::JudgeItem) -> Candidate<'_> {
    Candidate { question: &item.question, answer: &item.answer, gold: &item.gold_answers }
}

fn verdict(ruling: Ruling) -> v1::JudgeResult {
    let (verdict, reason) = match ruling {
        Ruling::Decided(Decision::Correct) => (v1::Verdict::Correct, String::new()),
        Ruling::Decided(Decision::Incorrect) => (v1::Verdict::Incorrect, String::new()),
        Ruling::Undecided(why) => (v1::Verdict::Undecided, why),
        Ruling::Failed(why) => (v1::Verdict::Failed, why),
    };
    v1::JudgeResult { verdict: verdict.into(), reason }
}

fn verdict_label(verdict: v1::Verdict) -> &'static str {
    match verdict {
        v1::Verdict::Correct => "correct",
        v1::Verdict::Incorrect => "incorrect",
        v1::Verdict::Failed => "failed",
        v1::Verdict::Undecided | v1::Verdict::Unspecified => "undecided",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts_are_read() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(timeout("2M"), Some(Duration::from_secs(120)));
        assert_eq!(timeout("99999999H"), None);
        for bad in ["", "m", "10", "1x", "-1S", "é"] {
            assert_eq!(timeout(bad), None, "{bad}");
        }
    }
}
