#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::super::attempt::{Record, Verdict};
use super::super::supply::Supply;
use super::*;
use s3_crds::{CheckpointStatus, FailurePolicy};
use serde_json::Value;

fn attempt(verdict: Option<Verdict>) -> Attempted {
    let live = Live { jobs: 1, holding: 1, running: true, since: Some(100), phase: "step 1".into(), ..Live::default() };
    let live = if verdict.is_some() { Live::default() } else { live };
    let record = verdict.map(|verdict| Record::new(verdict, 900, 40));
    Attempted { number: 1, print: "p".into(), started: 1, gpus: 2, anew: 0, record, live }
}

fn done() -> Verdict {
    Verdict::Done { digest: "d".into(), summary: Value::Null }
}

fn decide(baseline: &[Attempted], train: &[Attempted], change: impl FnOnce(&mut JobView<'_>)) -> JobDecision {
    let policy = FailurePolicy::default();
    let trained =
        baseline.iter().any(|attempt| matches!(&attempt.record, Some(r) if matches!(r.verdict, Verdict::Done { .. })));
    let stage = |component, attempts, print| Stage {
        component,
        print,
        attempts,
        policy: &policy,
        stop: None,
        may_start: true,
        now: 1000,
        seed: "u",
    };
    let stages = vec![
        (ComponentKind::Baseline, stage("b", baseline, Some("p"))),
        (ComponentKind::Training, stage("t", train, trained.then_some("p"))),
    ];
    let mut view = JobView {
        stages,
        supplies: Supplies::default(),
        queue: Grant::NotAsked,
        suspend: false,
        deadline: None,
        gpu_budget: None,
        now: 1000,
    };
    change(&mut view);
    decide_job(&view)
}

fn reasons(decision: &JobDecision) -> [&'static str; 6] {
    let mut names = decision.said.iter().map(|(reason, _)| reason.name);
    [(); 6].map(|()| names.next().unwrap())
}

#[test]
fn waits_in_order_and_says_for_what() {
    let missing = || Supply::Missing("x".into());
    let index = decide(&[], &[], |view| {
        view.supplies = Supplies { index: missing(), gateway: missing(), ..Supplies::default() }
    });
    assert_eq!(
        reasons(&index),
        ["Pending", "NoCheckpoint", "WaitingForIndex", "NotSuspended", "WithinBounds", "Progressing"]
    );
    assert!(index.moves.iter().all(|(.., step)| *step == Move::Wait(Waiting::Needs)));
    let secret = decide(&[], &[], |view| {
        view.supplies = Supplies { secret: missing(), gateway: missing(), ..Supplies::default() }
    });
    assert_eq!(reasons(&secret)[2], "WaitingForSecret");
    let gateway = decide(&[], &[], |view| view.supplies.gateway = missing());
    assert_eq!(reasons(&gateway)[2], "WaitingForGenerator");
}

#[test]
fn baseline_then_training_then_success() {
    let first = decide(&[], &[], |_| {});
    assert_eq!(first.moves[0].2, Move::Start { attempt: 1 });
    assert_eq!(first.moves[1].2, Move::Wait(Waiting::Needs));
    let training = decide(&[attempt(Some(done()))], &[attempt(None)], |_| {});
    assert_eq!(
        reasons(&training),
        ["Complete", "NoCheckpoint", "Stepping", "NotSuspended", "WithinBounds", "Progressing"]
    );
    let over = decide(&[attempt(Some(done()))], &[attempt(Some(done()))], |_| {});
    assert_eq!(reasons(&over), ["Complete", "Verified", "Finished", "NotSuspended", "WithinBounds", "StepsDone"]);
    assert!(over.finished);
    // Asked to stop when all is over: it is over.
    let late = decide(&[attempt(Some(done()))], &[attempt(Some(done()))], |view| view.suspend = true);
    assert_eq!(reasons(&late)[3..], ["NotSuspended", "WithinBounds", "StepsDone"]);
}

#[test]
fn suspending_is_told_from_suspended() {
    let going = decide(&[attempt(Some(done()))], &[attempt(None)], |view| view.suspend = true);
    assert!(matches!(going.moves[1].2, Move::Record { .. }));
    assert_eq!(reasons(&going)[3], "Suspending");
    let cause = StopCause::Suspended;
    let mut stopped = attempt(Some(Verdict::Stopped { cause }));
    if let Some(record) = &mut stopped.record {
        record.checkpoint = Some(CheckpointStatus { uri: "pvc://a/b".into(), digest: "c".into(), step: 7 });
    }
    let gone = decide(&[attempt(Some(done()))], &[stopped.clone()], |view| view.suspend = true);
    assert_eq!(reasons(&gone), ["Complete", "Verified", "Stopping", "Suspended", "WithinBounds", "Progressing"]);
    let again = decide(&[attempt(Some(done()))], &[stopped], |_| {});
    assert_eq!(again.moves[1].2, Move::Start { attempt: 2 });
}

#[test]
fn limits_end_it_and_a_greater_limit_lets_it_go_on() {
    let running = [attempt(None)];
    let early = decide(&[attempt(Some(done()))], &running, |view| view.deadline = Some(2000));
    assert_eq!(early.again, Some(1000 + 2000 - 940));
    let late = decide(&[attempt(Some(done()))], &running, |view| view.deadline = Some(900));
    assert!(matches!(late.moves[1].2, Move::Record { .. }));
    let stopped = [attempt(Some(Verdict::Stopped { cause: StopCause::Deadline }))];
    let over = decide(&[attempt(Some(done()))], &stopped, |view| view.deadline = Some(80));
    assert_eq!((reasons(&over)[5], over.finished), ("DeadlineExceeded", true));
    let budget = decide(&[attempt(Some(done()))], &stopped, |view| view.gpu_budget = Some(160));
    assert_eq!((reasons(&budget)[5], budget.finished), ("GpuBudgetExhausted", true));
    let more = decide(&[attempt(Some(done()))], &stopped, |view| view.deadline = Some(81));
    assert_eq!(more.moves[1].2, Move::Start { attempt: 2 });
}

#[test]
fn failures_are_told_by_class() {
    let failed = |class| [attempt(Some(Verdict::Failed { class, message: "m".into() }))];
    for (class, reason) in [
        (FailureClass::OutOfMemory, "OutOfMemory"),
        (FailureClass::NotANumber, "NotANumber"),
        (FailureClass::InvalidInput, "InvalidInput"),
    ] {
        let over = decide(&[attempt(Some(done()))], &failed(class), |_| {});
        assert_eq!((reasons(&over)[5], over.finished), (reason, true));
        let early = decide(&failed(class), &[], |_| {});
        assert_eq!((reasons(&early)[0], reasons(&early)[5]), ("BaselineFailed", reason));
    }
    let pausing = decide(&[attempt(Some(done()))], &failed(FailureClass::NodeLost), |view| view.now = 905);
    assert_eq!(
        reasons(&pausing)[2],
        "Stepping".replace("Stepping", "Starting"),
        "the pause of ten seconds is over at 1000"
    );
    assert_eq!(pausing.moves[1].2, Move::Start { attempt: 2 });
}
