//! Progress over a real socket: what arrives, with which token, and what an operator's answers do.
#![allow(clippy::unwrap_used)]

use s3_config::{AttemptConfig, OperatorConfig, Runtime};
use s3_proto::tonic::transport::Server;
use s3_proto::tonic::transport::server::TcpIncoming;
use s3_proto::tonic::{Request, Response, Status};
use s3_proto::v1::progress_server::{Progress as Service, ProgressServer};
use s3_proto::v1::{ProgressReply, ProgressReport, Standing};
use s3_proto::{Attempt, Patience, Reporter};
use s3_telemetry::{CheckpointNote, ExitClass, Outcome, Progress, Shutdown, last_words, metrics};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the operator was told, and what it answers.
#[derive(Default)]
struct Told {
    reports: Vec<(String, ProgressReport)>,
    answers: Vec<Result<Standing, Status>>,
    /// Of the connections that the reports came over.
    peers: Vec<SocketAddr>,
}

#[derive(Clone, Default)]
struct Operator(Arc<Mutex<Told>>);

#[s3_proto::tonic::async_trait]
impl Service for Operator {
    async fn report(&self, request: Request<ProgressReport>) -> Result<Response<ProgressReply>, Status> {
        let token = request.metadata().get("authorization").unwrap().to_str().unwrap().to_owned();
        let peer = request.remote_addr().unwrap();
        let mut told = self.0.lock().unwrap();
        told.peers.push(peer);
        told.reports.push((token, request.into_inner()));
        let answer = if told.answers.is_empty() { Ok(Standing::Current) } else { told.answers.remove(0) };
        answer.map(|standing| Response::new(ProgressReply { standing: standing.into(), epoch: 7 }))
    }
}

impl Operator {
    /// Serves on a free port until the test's runtime goes.
    fn serve(&self, runtime: &tokio::runtime::Runtime) -> String {
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let serving = Server::builder().add_service(ProgressServer::new(self.clone()));
        runtime.spawn(async move { serving.serve_with_incoming(TcpIncoming::from(listener)).await });
        address
    }

    fn answers(&self, answers: impl IntoIterator<Item = Result<Standing, Status>>) {
        self.0.lock().unwrap().answers.extend(answers);
    }

    fn reports(&self) -> Vec<(String, ProgressReport)> {
        self.0.lock().unwrap().reports.clone()
    }
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn operator_config(address: &str, folder: &Path) -> OperatorConfig {
    let token_file = folder.join("token");
    std::fs::write(&token_file, "first\n").unwrap();
    OperatorConfig { address: address.to_owned(), token_file, uid: "job-uid".into() }
}

const QUICK: Patience = Patience {
    period: Duration::from_millis(10),
    heartbeat: Duration::from_secs(3600),
    deadline: Duration::from_secs(20),
    longest_pause: Duration::from_millis(40),
    last_tries: 3,
};

const FIFTH: AttemptConfig = AttemptConfig { epoch: 5, rank: 0, replicas: 1 };

// One test, because the last words and the metrics are the process's.
#[test]
fn reports_follow_the_work_and_never_hold_it_up() {
    let runtime = runtime();
    let folder = tempfile::tempdir().unwrap();
    let operator = Operator::default();
    let config = operator_config(&operator.serve(&runtime), folder.path());
    let (progress, shutdown) = (Progress::new(None), Shutdown::default());
    let start = || Reporter::start(&config, "quickstart-train", &FIFTH, &progress, &shutdown, QUICK).unwrap();
    let failures = |code: &str| metrics().report_failures.with_label_values(&[code]).get();

    // The state arrives, with who it is and the token as it is now.
    progress.phase("step 1/3: rollouts", 12);
    progress.figure("gbr", 0.25);
    let reporter = start();
    until("the first report", || !operator.reports().is_empty());
    let (token, report) = operator.reports().remove(0);
    assert_eq!(token, "Bearer first");
    assert_eq!((report.uid.as_str(), report.component.as_str()), ("job-uid", "quickstart-train"));
    assert_eq!((report.epoch, report.rank, report.total), (5, 0, 12));
    assert_eq!((report.phase.as_str(), report.figures["gbr"]), ("step 1/3: rollouts", 0.25));

    // Nothing new is said once; a renewed token is taken; a checkpoint arrives.
    std::fs::write(&config.token_file, "second").unwrap();
    last_words().checkpoint(CheckpointNote { step: 1, digest: "ab".into(), path: "/work/step-1".into() });
    until("the checkpoint", || operator.reports().iter().any(|(_, r)| r.checkpoint.is_some()));
    let (token, report) = operator.reports().pop().unwrap();
    assert_eq!((token.as_str(), report.checkpoint.unwrap().step), ("Bearer second", 1));
    assert_eq!(operator.reports().len(), 2, "one report for each state");

    // Refusals are counted and tried again; the work goes on meanwhile.
    let refused = failures("denied");
    operator.answers([Err(Status::permission_denied("another job's token")), Err(Status::unavailable("no leader"))]);
    progress.done(3);
    until("the third state", || operator.reports().iter().filter(|(_, r)| r.done == 3).count() == 3);
    assert_eq!(failures("denied"), refused + 1);
    // Behind one address another operator may lead: each refusal is followed by a new connection.
    let peers = operator.0.lock().unwrap().peers.clone();
    let [.., denied, away, taken] = peers.as_slice() else { panic!("{peers:?}") };
    assert!(denied != away && away != taken, "{peers:?}");
    assert!(!shutdown.requested());

    // The end says what was made.
    last_words().outcome(&Outcome { digest: "cd".into(), summary: json!({"steps": 3}) });
    drop(reporter);
    let (_, report) = operator.reports().pop().unwrap();
    let outcome = report.outcome.unwrap();
    assert_eq!((outcome.digest.as_str(), outcome.summary_json.as_str()), ("cd", r#"{"steps":3}"#));

    // Nobody there: a bounded time at the end, and nothing else. The port is bound and never listened on.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let away = OperatorConfig { address: format!("http://{}", socket.local_addr().unwrap()), ..config.clone() };
    let before = failures("unavailable");
    drop(Reporter::start(&away, "quickstart-train", &FIFTH, &progress, &shutdown, QUICK).unwrap());
    assert!(failures("unavailable") >= before + u64::from(QUICK.last_tries));
    let nonsense = OperatorConfig { address: "no address".into(), ..config.clone() };
    assert!(Reporter::start(&nonsense, "quickstart-train", &FIFTH, &progress, &shutdown, QUICK).is_err());

    // A newer attempt: this process stops, and leaves by the code that says so.
    operator.answers([Ok(Standing::Fenced)]);
    progress.done(4);
    let reporter = start();
    until("the stop", || shutdown.requested());
    assert!(last_words().fenced());
    let said = operator.reports().len();
    drop(reporter);
    assert_eq!(operator.reports().len(), said, "a fenced process says nothing more");
}

#[test]
fn an_attempt_holds_its_folder_until_a_newer_one_takes_it() {
    let folder = tempfile::tempdir().unwrap();
    let of = |epoch: u32, rank: u32| Runtime {
        name: "quickstart-train".into(),
        state_dir: folder.path().join("state"),
        progress: None,
        result: None,
        admin: None,
        threads: None,
        termination_message: None,
        attempt: Some(AttemptConfig { epoch, rank, replicas: 2 }),
        operator: None,
        team: None,
    };
    let begin = |epoch, rank| Attempt::begin(&of(epoch, rank), &Progress::new(None), &Shutdown::default());
    let first = begin(1, 0).unwrap();
    first.check().unwrap();
    begin(1, 1).unwrap().check().unwrap();
    first.check().unwrap();
    let second = begin(2, 0).unwrap();
    assert_eq!(first.check().unwrap_err().class, ExitClass::Fenced);
    assert_eq!(begin(1, 0).err().unwrap().class, ExitClass::Fenced, "started late");
    second.check().unwrap();

    let alone = Runtime { attempt: None, state_dir: folder.path().join("alone"), ..of(1, 0) };
    Attempt::begin(&alone, &Progress::new(None), &Shutdown::default()).unwrap().check().unwrap();
    assert!(!alone.state_dir.exists(), "on one machine nothing is kept");
}
