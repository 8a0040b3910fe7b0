//! A candle model inside the gateway, for a machine without any endpoint.
//!
//! One thread owns the model and computes one batch at a time, so the async threads never wait on arithmetic.
//! A batch is cut in its own order into chunks of fixed size: what is computed together depends on the request
//! alone, so that Bitwise runs repeat. Decoding is greedy.

use crate::provider::{BoxFuture, Call, CallFailure, Completion, FailureKind, Finish, Order, Outcomes, Provider, Role};
use crate::stops::cut;
use s3_artifacts::{ArtifactError, digest_file, digest_json};
use s3_config::{DTypeKind, ModelSpec};
use s3_model::{Decoder, GenerateRequest, ModelError, SampleKey, Sampling, TokenizerFile};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;
use tokio::sync::mpsc::Sender;
use tokio::sync::oneshot;

/// New tokens when the caller names no limit.
const DEFAULT_TOKENS: u32 = 64;

/// Why the built-in model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BuiltInError {
    /// The model cannot be loaded.
    #[error("provider {name:?}: {}", first_line(source))]
    Model {
        /// The provider.
        name: String,
        /// What is wrong.
        source: ModelError,
    },
    /// A file of the model cannot be digested.
    #[error("provider {name:?}: {source}")]
    Files {
        /// The provider.
        name: String,
        /// What is wrong.
        source: ArtifactError,
    },
    /// The sizes make no sense.
    #[error("provider {name:?}: {reason}")]
    Sizes {
        /// The provider.
        name: String,
        /// What to change.
        reason: String,
    },
    /// The system gives no thread.
    #[error("cannot start the model's thread: {0}")]
    Thread(std::io::Error),
}

/// With `RUST_BACKTRACE` set, errors of tensor operations carry a stack trace after their first line.
fn first_line(error: &ModelError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

struct Job {
    calls: Vec<Call>,
    /// Nobody waits past this: calls that have not begun by then are given up.
    order: Order,
    /// Takes the text of a single call piece by piece; decoding ends when it is closed.
    pieces: Option<Sender<String>>,
    reply: oneshot::Sender<Outcomes>,
}

/// The provider.
pub struct BuiltIn {
    name: String,
    digest: String,
    scope: String,
    context: usize,
    jobs: mpsc::Sender<Job>,
}

impl BuiltIn {
    /// Loads the model, checks its digests, merges the adapter and starts the model's thread. Quantised weights
    /// stay packed where they can; an adapter then stays beside them.
    pub fn load(name: &str, spec: &ModelSpec, batch: usize, context_tokens: usize) -> Result<Self, BuiltInError> {
        let failed = |source| BuiltInError::Model { name: name.to_owned(), source };
        let (mut decoder, tokenizer) = Decoder::load_packed(spec).map_err(failed)?;
        if spec.adapter.is_some() && !decoder.is_packed() {
            decoder.merge_adapter().map_err(failed)?;
        }
        let digest = identity(spec).map_err(|source| BuiltInError::Files { name: name.to_owned(), source })?;
        Self::start(name, decoder, tokenizer, digest, batch, context_tokens)
    }

    /// Serves a model that is in memory; `digest` names its weights.
    pub fn start(
        name: &str,
        decoder: Decoder,
        tokenizer: TokenizerFile,
        digest: String,
        batch: usize,
        context_tokens: usize,
    ) -> Result<Self, BuiltInError> {
        let longest = decoder.config().max_positions;
        if batch == 0 || context_tokens < 2 || context_tokens > longest {
            let reason = format!(
                "batch is {batch}, contextTokens {context_tokens}; batch must be at least 1 and contextTokens 2 to {longest}, the model's limit"
            );
            return Err(BuiltInError::Sizes { name: name.to_owned(), reason });
        }
        // kernels of another processor round differently, so their answers are kept apart
        let scope = if decoder.device().is_cuda() { "cuda" } else { "cpu" };
        let (jobs, inbox) = mpsc::channel::<Job>();
        let engine = Engine { name: name.to_owned(), decoder, tokenizer, batch, context: context_tokens };
        std::thread::Builder::new()
            .name("built-in-model".to_owned())
            .spawn(move || {
                while let Ok(job) = inbox.recv() {
                    // nobody waits any more when the process is stopping
                    let _ = job.reply.send(engine.complete(&job.calls, &job.order, job.pieces.as_ref()));
                }
            })
            .map_err(BuiltInError::Thread)?;
        Ok(Self { name: name.to_owned(), digest, scope: scope.to_owned(), context: context_tokens, jobs })
    }
}

/// What decides the text: weights, adapter with its scale, tokenizer of a folder, precision, decoding.
fn identity(spec: &ModelSpec) -> Result<String, ArtifactError> {
    let weights = if spec.path.is_dir() { folder_digest(&spec.path)? } else { digest_file(&spec.path)? };
    let adapter = match &spec.adapter {
        Some(adapter) => Some((
            digest_file(&adapter.path.join("adapter_model.safetensors"))?,
            digest_file(&adapter.path.join("adapter_config.json"))?,
        )),
        None => None,
    };
    let precision = match spec.dtype {
        DTypeKind::F32 => "f32",
        DTypeKind::Bf16 => "bf16",
    };
    // 2: quantised weights are multiplied as they are stored
    digest_json(&("builtIn", 2, weights, adapter, precision, "greedy"))
}

fn folder_digest(folder: &Path) -> Result<String, ArtifactError> {
    let io = |source| ArtifactError::Io { action: "list", path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or("");
        if matches!(kind, "safetensors" | "json" | "jinja") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            files.push((name, digest_file(&path)?));
        }
    }
    files.sort();
    digest_json(&files)
}

struct Engine {
    name: String,
    decoder: Decoder,
    tokenizer: TokenizerFile,
    batch: usize,
    context: usize,
}

/// What of a streamed answer was sent.
#[derive(Default)]
struct Told(usize);

impl Told {
    /// Sends what is new of `text` and can no longer change: not an unfinished character, and not what may turn
    /// out to be the beginning of a stop string. Whether somebody still listens.
    fn send(&mut self, text: &str, stops: &[String], pieces: &Sender<String>) -> bool {
        let mut end = text.trim_end_matches('\u{FFFD}').len();
        for stop in stops {
            let begun = (1..=stop.len().min(end)).rev().find(|length| {
                text.is_char_boundary(end - length) && stop.as_bytes().starts_with(&text.as_bytes()[end - length..end])
            });
            end -= begun.unwrap_or(0);
        }
        if end > self.0 && text.is_char_boundary(self.0) {
            let piece = text[self.0..end].to_owned();
            self.0 = end;
            return pieces.blocking_send(piece).is_ok();
        }
        !pieces.is_closed()
    }
}

struct Prepared {
    at: usize,
    prompt: Vec<u32>,
    max_tokens: usize,
}

impl Engine {
    fn complete(&self, calls: &[Call], order: &Order, pieces: Option<&Sender<String>>) -> Outcomes {
        let mut outcomes: Vec<Option<Result<Completion, CallFailure>>> = vec![None; calls.len()];
        let mut prepared = Vec::with_capacity(calls.len());
        for (at, call) in calls.iter().enumerate() {
            match self.prepare(at, call) {
                Ok(ready) => prepared.push(ready),
                Err(failure) => outcomes[at] = Some(Err(failure)),
            }
        }
        for chunk in prepared.chunks(self.batch) {
            if order.left().is_some_and(|left| left.is_zero()) {
                let late =
                    CallFailure::new(FailureKind::Deadline, format!("{}: the caller's deadline came first", self.name));
                for ready in chunk {
                    outcomes[ready.at] = Some(Err(late.clone()));
                }
                continue;
            }
            let started = Instant::now();
            let made = self.chunk(calls, chunk, pieces);
            let seconds = &s3_telemetry::metrics().gateway_seconds;
            seconds.with_label_values(&[&self.name]).observe(started.elapsed().as_secs_f64());
            match made {
                Ok(completions) => {
                    for (ready, completion) in chunk.iter().zip(completions) {
                        outcomes[ready.at] = Some(Ok(completion));
                    }
                }
                Err(error) => {
                    let failure =
                        CallFailure::new(FailureKind::Unavailable, format!("{}: {}", self.name, first_line(&error)));
                    for ready in chunk {
                        outcomes[ready.at] = Some(Err(failure.clone()));
                    }
                }
            }
        }
        let lost = || Err(CallFailure::new(FailureKind::Unavailable, "the model returned too few answers"));
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(lost)).collect()
    }

    fn prepare(&self, at: usize, call: &Call) -> Result<Prepared, CallFailure> {
        let rejected = |message: String| CallFailure::new(FailureKind::Rejected, format!("{}: {message}", self.name));
        if !call.sampling.is_greedy() {
            return Err(rejected(
                "the built-in model decodes greedily; set temperature to 0 or leave it out".to_owned(),
            ));
        }
        if call.sampling.logprobs.is_some() {
            return Err(rejected("the built-in model gives no log-probabilities; leave logprobs out".to_owned()));
        }
        let prompt = if let Some(text) = &call.text {
            self.tokenizer.encode(text)
        } else {
            if call.messages.last().is_none_or(|last| last.role != Role::User) {
                return Err(rejected("a conversation ends with a user's message".to_owned()));
            }
            let messages: Vec<(&str, &str)> =
                call.messages.iter().map(|message| (message.role.name(), message.content.as_str())).collect();
            self.tokenizer.conversation(&messages)
        };
        let prompt = prompt.map_err(|e| rejected(first_line(&e)))?;
        if prompt.is_empty() {
            return Err(rejected("the prompt is empty".to_owned()));
        }
        let max_tokens = call.sampling.max_tokens.unwrap_or(DEFAULT_TOKENS) as usize;
        if prompt.len() + max_tokens > self.context {
            return Err(rejected(format!(
                "a prompt of {} tokens and {max_tokens} new ones exceed contextTokens {}; send fewer or shorter passages",
                prompt.len(),
                self.context
            )));
        }
        Ok(Prepared { at, prompt, max_tokens })
    }

    fn chunk(
        &self,
        calls: &[Call],
        chunk: &[Prepared],
        pieces: Option<&Sender<String>>,
    ) -> Result<Vec<Completion>, ModelError> {
        let mut cache = self.decoder.cache(chunk.len())?;
        let requests: Vec<GenerateRequest> = chunk
            .iter()
            .enumerate()
            .map(|(row, ready)| GenerateRequest { row, prompt: ready.prompt.clone(), max_new_tokens: ready.max_tokens })
            .collect();
        let mut broken = None;
        let mut told = Told::default();
        let mut stop = |row: usize, tokens: &[u32]| {
            let stops = &calls[chunk[row].at].sampling.stop;
            let end = match self.end(stops, tokens) {
                Ok(end) => end.is_some(),
                Err(error) => {
                    broken = Some(error);
                    return true;
                }
            };
            match pieces {
                Some(_) if end => true,
                Some(pieces) => match self.tokenizer.decode(tokens) {
                    Ok(text) => !told.send(&text, stops, pieces),
                    Err(error) => {
                        broken = Some(error);
                        true
                    }
                },
                None => end,
            }
        };
        // greedy decoding draws nothing; the key is never looked at
        let key = |_: usize, token: u32| SampleKey { seed: 0, step: 0, question: "", sample: 0, turn: 0, token };
        let sampling = Sampling { temperature: 0.0, top_p: 1.0 };
        let made = s3_model::generate(&self.decoder, &mut cache, &requests, sampling, &key, &mut stop)?;
        if let Some(error) = broken {
            return Err(error);
        }
        let whole: Result<Vec<Completion>, ModelError> = made
            .iter()
            .zip(chunk)
            .map(|(said, ready)| {
                let end = self.end(&calls[ready.at].sampling.stop, &said.tokens)?;
                let (text, finish) = match end {
                    Some(text) => (text, Finish::Stop),
                    None => (self.tokenizer.decode(&said.tokens)?, Finish::Length),
                };
                Ok(Completion {
                    text,
                    prompt_tokens: ready.prompt.len() as u32,
                    completion_tokens: said.tokens.len() as u32,
                    finish,
                    logprobs: None,
                })
            })
            .collect();
        let whole = whole?;
        if let (Some(pieces), [only]) = (pieces, whole.as_slice()) {
            told.send(&only.text, &[], pieces);
        }
        Ok(whole)
    }

    /// The answer, when `tokens` has come to its end: an end token, or the first stop string after some text.
    fn end(&self, stops: &[String], tokens: &[u32]) -> Result<Option<String>, ModelError> {
        let ended = tokens.last().is_some_and(|last| self.tokenizer.eos().contains(last));
        if !ended && stops.is_empty() {
            return Ok(None);
        }
        let text = self.tokenizer.decode(if ended { &tokens[..tokens.len() - 1] } else { tokens })?;
        Ok(cut(&text, stops).or_else(|| ended.then_some(text)))
    }
}

impl Provider for BuiltIn {
    fn name(&self) -> &str {
        &self.name
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn scope(&self) -> &str {
        &self.scope
    }

    fn context_tokens(&self) -> u32 {
        self.context as u32
    }

    fn is_serial(&self) -> bool {
        true
    }

    fn complete(&self, calls: Vec<Call>, order: Order) -> BoxFuture<'_, Outcomes> {
        Box::pin(self.run(calls, order, None))
    }

    fn stream(
        &self,
        call: Call,
        order: Order,
        pieces: Sender<String>,
    ) -> BoxFuture<'_, Result<Completion, CallFailure>> {
        Box::pin(async move {
            let lost = || CallFailure::new(FailureKind::Unavailable, "the model returned no answer");
            let mut outcomes = self.run(vec![call], order, Some(pieces)).await;
            outcomes.pop().unwrap_or_else(|| Err(lost()))
        })
    }
}

impl BuiltIn {
    async fn run(&self, calls: Vec<Call>, order: Order, pieces: Option<Sender<String>>) -> Outcomes {
        let count = calls.len();
        let (reply, outcomes) = oneshot::channel();
        let sent = self.jobs.send(Job { calls, order, pieces, reply }).is_ok();
        let stopped =
            || CallFailure::new(FailureKind::Unavailable, "the model's thread has ended; restart the gateway");
        match outcomes.await {
            Ok(outcomes) if sent => outcomes,
            _ => vec![Err(stopped()); count],
        }
    }
}
