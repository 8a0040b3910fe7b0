//! The gRPC service: `Answer`, `Judge`, `Info`.

use crate::engine::{Gateway, GatewayError};
use crate::judge::{Candidate, Decision, WORDINGS, ask, read};
use crate::provider::{Call, CallFailure, FailureKind, Provider, Sampling};
use crate::templates::{Document, Template, render};
use s3_proto::tonic::{Request, Response, Status};
use s3_proto::v1;
use std::sync::Arc;

/// The service over a gateway.
#[derive(Clone)]
pub struct GeneratorService(Arc<Gateway>);

impl GeneratorService {
    /// Serves this gateway.
    pub fn new(gateway: Arc<Gateway>) -> Self {
        Self(gateway)
    }
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
        FailureKind::Unavailable => v1::FailureKind::FailureUnavailable,
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

#[tonic::async_trait]
impl v1::generator_server::Generator for GeneratorService {
    async fn answer(&self, request: Request<v1::AnswerRequest>) -> Result<Response<v1::AnswerResponse>, Status> {
        let request = request.into_inner();
        let lane = self.0.lane(&request.model).map_err(|e| status(&e))?;
        let template = self.0.templates().get(&request.template).map_err(|e| status(&e.into()))?;
        let calls = request.items.iter().map(|item| answer_call(template, item, &request)).collect();
        let answers = self.0.complete(lane, calls).await.map_err(|e| status(&e))?;
        let results = answers
            .into_iter()
            .map(|answer| {
                let outcome = match answer {
                    Ok(answered) => v1::answer_result::Outcome::Answer(v1::Answer {
                        text: answered.completion.text.trim().to_owned(),
                        prompt_tokens: answered.completion.prompt_tokens,
                        completion_tokens: answered.completion.completion_tokens,
                        cached: answered.cached,
                    }),
                    Err(why) => v1::answer_result::Outcome::Failure(failure(why)),
                };
                v1::AnswerResult { outcome: Some(outcome) }
            })
            .collect();
        Ok(Response::new(v1::AnswerResponse { results }))
    }

    async fn judge(&self, request: Request<v1::JudgeRequest>) -> Result<Response<v1::JudgeResponse>, Status> {
        let request = request.into_inner();
        let lane = self.0.lane(&request.model).map_err(|e| status(&e))?;
        let undecided = || v1::JudgeResult {
            verdict: v1::Verdict::Undecided.into(),
            reason: "no reply of the judge could be read as yes or no".to_owned(),
        };
        let mut results: Vec<v1::JudgeResult> = request.items.iter().map(|_| undecided()).collect();
        let mut open = Vec::new();
        for (at, item) in request.items.iter().enumerate() {
            if item.answer.trim().is_empty() || item.gold_answers.is_empty() {
                // nothing can be contained: a judge would only be tempted
                let reason = "there is no answer, or no gold answer".to_owned();
                results[at] = v1::JudgeResult { verdict: v1::Verdict::Incorrect.into(), reason };
            } else {
                open.push(at);
            }
        }
        for wording in 0..WORDINGS {
            if open.is_empty() {
                break;
            }
            let calls = open.iter().map(|at| ask(&candidate(&request.items[*at]), wording)).collect();
            let answers = self.0.complete(lane, calls).await.map_err(|e| status(&e))?;
            let mut unread = Vec::new();
            for (at, answer) in open.into_iter().zip(answers) {
                match answer.map(|answered| read(&answered.completion.text)) {
                    Ok(Some(decision)) => results[at] = verdict(decision),
                    Ok(None) => unread.push(at),
                    Err(why) => {
                        let reason = format!("{}: {}", why.kind.label(), why.message);
                        results[at] = v1::JudgeResult { verdict: v1::Verdict::Failed.into(), reason };
                    }
                }
            }
            open = unread;
        }
        let verdicts = &s3_telemetry::metrics().gateway_verdicts;
        for result in &results {
            verdicts.with_label_values(&[lane.provider().name(), verdict_label(result.verdict())]).inc();
        }
        Ok(Response::new(v1::JudgeResponse { results }))
    }

    async fn info(&self, request: Request<v1::GeneratorInfoRequest>) -> Result<Response<v1::GeneratorInfo>, Status> {
        let request = request.into_inner();
        let provider = self.0.lane(&request.model).map_err(|e| status(&e))?.provider();
        let template = self.0.templates().get(&request.template).map_err(|e| status(&e.into()))?;
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

fn verdict(decision: Decision) -> v1::JudgeResult {
    let verdict = match decision {
        Decision::Correct => v1::Verdict::Correct,
        Decision::Incorrect => v1::Verdict::Incorrect,
    };
    v1::JudgeResult { verdict: verdict.into(), reason: String::new() }
}

fn verdict_label(verdict: v1::Verdict) -> &'static str {
    match verdict {
        v1::Verdict::Correct => "correct",
        v1::Verdict::Incorrect => "incorrect",
        v1::Verdict::Failed => "failed",
        v1::Verdict::Undecided | v1::Verdict::Unspecified => "undecided",
    }
}
