#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::super::attempt::Live;
use super::*;
use s3_crds::FailureRule;
use serde_json::json;

fn open(number: u32) -> Attempted {
    let live = Live { jobs: 1, holding: 1, running: true, since: Some(100), ..Live::default() };
    Attempted { number, print: "p".into(), started: 90, gpus: 2, anew: 0, record: None, live }
}

fn over(number: u32, verdict: Verdict) -> Attempted {
    let record = Record::new(verdict, 1000, 50);
    Attempted { record: Some(record), live: Live::default(), ..open(number) }
}

fn failed(number: u32, class: FailureClass) -> Attempted {
    over(number, Verdict::Failed { class, message: "m".into() })
}

fn stage<'a>(attempts: &'a [Attempted], policy: &'a FailurePolicy) -> Stage<'a> {
    Stage { component: "c", print: Some("p"), attempts, policy, stop: None, may_start: true, now: 1005, seed: "u" }
}

#[test]
fn a_life_without_trouble() {
    let policy = FailurePolicy::default();
    assert_eq!(next_move(&stage(&[], &policy)), Move::Start { attempt: 1 });
    let mut attempt = open(1);
    assert_eq!(next_move(&stage(&[attempt.clone()], &policy)), Move::Run { attempt: 1 });
    attempt.live.end = Some(End::Done { digest: "d".into(), summary: json!({}) });
    let Move::Record { attempt: 1, record } = next_move(&stage(&[attempt.clone()], &policy)) else { panic!() };
    assert_eq!(record.seconds, 905);
    attempt.record = Some(*record);
    attempt.live = Live { jobs: 1, ..Live::default() };
    assert_eq!(next_move(&stage(&[attempt], &policy)), Move::Done { attempt: 1, digest: "d".into() });
}

#[test]
fn nothing_starts_before_its_needs_and_beside_old_pods() {
    let policy = FailurePolicy::default();
    let waiting = Stage { may_start: false, ..stage(&[], &policy) };
    assert_eq!(next_move(&waiting), Move::Wait(Waiting::Needs));
    let blind = Stage { print: None, ..stage(&[], &policy) };
    assert_eq!(next_move(&blind), Move::Wait(Waiting::Needs));
    let mut old = failed(1, FailureClass::NodeLost);
    old.live.holding = 1;
    assert_eq!(next_move(&stage(&[old.clone()], &policy)), Move::Wait(Waiting::Pods { attempt: 1, count: 1 }));
    old.live.jobs = 1;
    assert_eq!(next_move(&stage(&[old], &policy)), Move::Remove { attempt: 1 });
}

#[test]
fn failures_pause_longer_each_time_and_not_for_ever() {
    let policy = FailurePolicy { max_attempts: 3, ..FailurePolicy::default() };
    let one = [failed(1, FailureClass::Storage)];
    let Move::Wait(Waiting::Backoff { until, next: 2, .. }) = next_move(&stage(&one, &policy)) else { panic!() };
    assert!((1010..=1011).contains(&until), "{until}");
    assert_eq!(next_move(&Stage { now: until, ..stage(&one, &policy) }), Move::Start { attempt: 2 });
    let two = [failed(1, FailureClass::Storage), failed(2, FailureClass::Storage)];
    let Move::Wait(Waiting::Backoff { until, .. }) = next_move(&stage(&two, &policy)) else { panic!() };
    assert!((1020..=1022).contains(&until), "{until}");
    let three = [1, 2, 3].map(|number| failed(number, FailureClass::Storage));
    let Move::Fail(failing) = next_move(&stage(&three, &policy)) else { panic!() };
    assert!(!failing.by_class && failing.message.contains("3 of 3"), "{failing:?}");
    // A greater number lets it go on.
    let more = FailurePolicy { max_attempts: 4, ..policy };
    assert!(matches!(next_move(&stage(&three, &more)), Move::Wait(Waiting::Backoff { .. })));
    let longest = FailurePolicy::default().max_backoff.millis() / 1000;
    for failures in [30, 31, 300] {
        let pause = pause_after(&FailurePolicy::default(), failures, "x");
        assert!((longest..=longest + longest / 10 + 1).contains(&pause), "{pause}");
    }
}

#[test]
fn classes_decide_by_default_and_by_rule() {
    let policy = FailurePolicy::default();
    let memory = [failed(1, FailureClass::OutOfMemory)];
    assert!(matches!(next_move(&stage(&memory, &policy)), Move::Fail(Failing { by_class: true, .. })));
    let rule = FailureRule { class: FailureClass::OutOfMemory, action: FailureAction::Resume, limit: Some(1) };
    let limited = FailurePolicy { rules: vec![rule.clone()], ..policy.clone() };
    assert!(matches!(next_move(&stage(&memory, &limited)), Move::Fail(Failing { by_class: false, .. })));
    let free = FailurePolicy { rules: vec![FailureRule { limit: None, ..rule }], ..policy };
    assert!(matches!(next_move(&stage(&memory, &free)), Move::Wait(Waiting::Backoff { .. })));
}

#[test]
fn stopping_records_then_removes_then_waits_then_is_stopped_and_goes_on_with_a_new_epoch() {
    let policy = FailurePolicy::default();
    let suspend =
        |attempts: &[Attempted]| next_move(&Stage { stop: Some(StopCause::Suspended), ..stage(attempts, &policy) });
    let mut attempt = open(1);
    let Move::Record { record, .. } = suspend(&[attempt.clone()]) else { panic!() };
    assert_eq!(record.verdict, Verdict::Stopped { cause: StopCause::Suspended });
    attempt.record = Some(*record);
    assert_eq!(suspend(&[attempt.clone()]), Move::Remove { attempt: 1 });
    attempt.live.jobs = 0;
    assert_eq!(suspend(&[attempt.clone()]), Move::Wait(Waiting::Pods { attempt: 1, count: 1 }));
    attempt.live = Live::default();
    assert_eq!(suspend(&[attempt.clone()]), Move::Stopped(StopCause::Suspended));
    assert_eq!(next_move(&stage(&[attempt], &policy)), Move::Start { attempt: 2 }, "no pause, and no attempt is lost");
}

#[test]
fn an_outcome_survives_a_later_stop_and_changed_settings_run_again() {
    let policy = FailurePolicy::default();
    let done = [over(1, Verdict::Done { digest: "d".into(), summary: json!(null) })];
    let stopped = Stage { stop: Some(StopCause::Suspended), ..stage(&done, &policy) };
    assert!(matches!(next_move(&stopped), Move::Done { .. }));
    let changed = Stage { print: Some("q"), ..stage(&done, &policy) };
    assert_eq!(next_move(&changed), Move::Start { attempt: 2 });
    let running = [open(1)];
    let superseded = Stage { print: Some("q"), ..stage(&running, &policy) };
    let Move::Record { record, .. } = next_move(&superseded) else { panic!() };
    assert_eq!(record.verdict, Verdict::Stopped { cause: StopCause::Superseded });
}

#[test]
fn what_was_used_is_summed_over_attempts() {
    let attempts = [failed(1, FailureClass::Storage), open(2)];
    assert_eq!(gpu_seconds(attempts.iter(), 130), 2 * 50 + 2 * 30);
    assert_eq!(held_seconds(attempts.iter(), 130), 80);
}

#[test]
fn a_rule_lets_work_begin_anew_once_for_each_failure() {
    let rule = |class| FailureRule { class, action: FailureAction::Restart, limit: Some(2) };
    let policy = FailurePolicy { rules: vec![rule(FailureClass::NotANumber)], ..FailurePolicy::default() };
    let wrong = failed(1, FailureClass::NotANumber);
    assert!(begins_anew(std::slice::from_ref(&wrong), Some("p"), &policy));
    assert!(
        !begins_anew(std::slice::from_ref(&wrong), Some("q"), &policy),
        "other settings have a folder of their own"
    );
    assert!(!begins_anew(std::slice::from_ref(&wrong), Some("p"), &FailurePolicy::default()));
    // The next one was suspended: it goes on where it began anew.
    let stopped = over(2, Verdict::Stopped { cause: StopCause::Suspended });
    assert!(!begins_anew(&[wrong.clone(), stopped], Some("p"), &policy));
    let Move::Wait(Waiting::Backoff { next: 2, .. }) = next_move(&stage(std::slice::from_ref(&wrong), &policy)) else {
        panic!()
    };
    let again = [wrong, failed(2, FailureClass::NotANumber)];
    assert!(matches!(next_move(&stage(&again, &policy)), Move::Fail(_)), "the limit counts");
}
