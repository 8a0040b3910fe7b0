//! Tells the operator how far a job is, from a thread of its own: the work never waits for it.
//!
//! What is sent is always the latest state, so a report that is lost is replaced, not repeated. An operator that
//! is away or refuses costs a warning and a counted failure. Only one answer has consequences: `Fenced` stops the
//! process.

use crate::CallError;
use crate::v1::progress_client::ProgressClient;
use crate::v1::{CheckpointReport, OutcomeReport, ProgressReport, Standing};
use s3_config::{AttemptConfig, OperatorConfig};
use s3_telemetry::{Progress, Shutdown, last_words, metrics};
use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// How often is reported, and how long is waited.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Between looks at the state; what has changed is sent.
    pub period: Duration,
    /// What has not changed is sent this often all the same.
    pub heartbeat: Duration,
    /// For one call.
    pub deadline: Duration,
    /// Longest pause after failures in a row.
    pub longest_pause: Duration,
    /// Tries of the last report.
    pub last_tries: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            period: Duration::from_secs(1),
            heartbeat: Duration::from_secs(30),
            deadline: Duration::from_secs(5),
            longest_pause: Duration::from_secs(60),
            last_tries: 3,
        }
    }
}

/// Reports until it is dropped; then once more, for a bounded time.
pub struct Reporter {
    stop: Option<Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Reporter {
    /// Starts to report the state of `progress`, with what was noted for the last words.
    pub fn start(
        operator: &OperatorConfig,
        component: &str,
        attempt: &AttemptConfig,
        progress: &Progress,
        shutdown: &Shutdown,
        patience: Patience,
    ) -> Result<Self, CallError> {
        let wrong = || CallError::Address { service: "operator", address: operator.address.clone() };
        let endpoint = Endpoint::from_shared(operator.address.clone()).map_err(|_| wrong())?;
        let endpoint = endpoint.connect_timeout(patience.deadline).tcp_nodelay(true);
        let reporting = Reporting {
            endpoint,
            token_file: operator.token_file.clone(),
            template: ProgressReport {
                uid: operator.uid.clone(),
                component: component.to_owned(),
                epoch: attempt.epoch,
                rank: attempt.rank,
                ..ProgressReport::default()
            },
            progress: progress.clone(),
            shutdown: shutdown.clone(),
            patience,
        };
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("report".into()).spawn(move || reporting.run(&stopped));
        // Progress is advice: work goes on without it.
        let thread = thread.inspect_err(|error| tracing::warn!(%error, "progress is not reported")).ok();
        Ok(Self { stop: Some(stop), thread })
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was printed there.
            let _ = thread.join();
        }
    }
}

struct Reporting {
    endpoint: Endpoint,
    token_file: PathBuf,
    template: ProgressReport,
    progress: Progress,
    shutdown: Shutdown,
    patience: Patience,
}

impl Reporting {
    fn run(&self, stopped: &Receiver<()>) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::warn!(%error, "progress is not reported"),
        };
        let connect = || {
            let _inside = runtime.enter();
            self.endpoint.connect_lazy()
        };
        let connection = RefCell::new(connect());
        let send = |report: &ProgressReport| {
            let sent = runtime.block_on(self.send(connection.borrow().clone(), report.clone()));
            match &sent {
                Ok(Standing::Fenced) => {
                    tracing::error!("a newer attempt has taken over; stopping");
                    last_words().fence();
                    self.shutdown.request();
                }
                Ok(_) => {}
                Err(status) => {
                    metrics().report_failures.with_label_values(&[label(status.code())]).inc();
                    // Several operators share the address, and only one of them leads: a new connection may reach it.
                    connection.replace(connect());
                }
            }
            sent
        };
        let mut sent: Option<(ProgressReport, Instant)> = None;
        let mut failures = 0_u32;
        let mut pause = self.patience.period;
        while stopped.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
            let report = self.report();
            if sent.as_ref().is_some_and(|(last, at)| *last == report && at.elapsed() < self.patience.heartbeat) {
                continue;
            }
            match send(&report) {
                Ok(Standing::Fenced) => return,
                Ok(_) => {
                    sent = Some((report, Instant::now()));
                    failures = 0;
                    pause = self.patience.period;
                }
                Err(status) => {
                    failures += 1;
                    pause = (self.patience.period * (1 << failures.min(10))).min(self.patience.longest_pause);
                    if failures.is_power_of_two() {
                        tracing::warn!(failures, code = ?status.code(), message = status.message(), "the operator did not take the progress report");
                    }
                }
            }
        }
        let last = self.report();
        if sent.is_some_and(|(sent, _)| sent == last) {
            return;
        }
        for attempt in 1..=self.patience.last_tries {
            match send(&last) {
                Ok(_) => return,
                Err(status) if attempt == self.patience.last_tries => {
                    tracing::warn!(code = ?status.code(), message = status.message(), "the operator did not take the last report");
                }
                Err(_) => std::thread::sleep(self.patience.period),
            }
        }
    }

    fn report(&self) -> ProgressReport {
        let (state, said) = (self.progress.report(), last_words().said());
        ProgressReport {
            phase: state.phase,
            done: state.done,
            total: state.total,
            figures: state.figures.into_iter().collect(),
            ready: state.ready,
            checkpoint: said.checkpoint.map(|checkpoint| CheckpointReport {
                step: checkpoint.step,
                digest: checkpoint.digest,
                path: checkpoint.path.display().to_string(),
            }),
            outcome: said.digest.map(|digest| OutcomeReport {
                digest,
                summary_json: said.summary.map(|summary| summary.to_string()).unwrap_or_default(),
            }),
            milestones: said.milestones.into_iter().collect(),
            guard: said.guard.unwrap_or_default(),
            ..self.template.clone()
        }
    }

    async fn send(&self, channel: Channel, report: ProgressReport) -> Result<Standing, Status> {
        let mut request = Request::new(report);
        request.set_timeout(self.patience.deadline);
        // Read for each call: the kubelet renews it.
        let token = tokio::fs::read_to_string(&self.token_file).await;
        let token = token.map_err(|e| Status::unauthenticated(format!("{}: {e}", self.token_file.display())))?;
        let bearer = AsciiMetadataValue::try_from(format!("Bearer {}", token.trim()));
        let bearer = bearer.map_err(|_| Status::unauthenticated("the token is not plain text"))?;
        request.metadata_mut().insert("authorization", bearer);
        let reply = tokio::time::timeout(self.patience.deadline, ProgressClient::new(channel).report(request)).await;
        let reply = reply.map_err(|_| Status::deadline_exceeded("no answer within the deadline"))??;
        Ok(reply.into_inner().standing())
    }
}

fn label(code: Code) -> &'static str {
    match code {
        Code::Unavailable => "unavailable",
        Code::DeadlineExceeded => "deadline",
        Code::Unauthenticated => "unauthenticated",
        Code::PermissionDenied => "denied",
        _ => "other",
    }
}
