//! Measuring a judge, requiring the measurement, and a second judge that must agree.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Act, Upstream, World, open_ai};
use s3_config::{CalibrationConfig, ProviderConfig};
use s3_generator_gateway::Calibration;
use s3_proto::v1::{JudgeItem, JudgeRequest, Verdict};
use std::process::Command;
use std::sync::Arc;

/// A judge that errs on every fifth right answer and every tenth wrong one, by the number in the answer.
async fn judge_server() -> Upstream {
    let upstream = Upstream::start().await;
    upstream.rule(Arc::new(|body, _| {
        let user = body["messages"][1]["content"].as_str().unwrap();
        let text = user.split("<answer>\n").nth(1).unwrap();
        let number: usize = text.split_whitespace().nth(1).unwrap().parse().unwrap();
        let yes = if text.starts_with("right") { number % 5 != 0 } else { number % 10 == 0 };
        Act::Say(if yes { "yes" } else { "no" }.into())
    }));
    upstream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_judge_is_measured_and_the_measurement_required() {
    let upstream = judge_server().await;
    let mut world = World::new(&upstream.url());
    let labels: String = (0..100)
        .map(|i| {
            let (word, correct) = if i < 50 { ("right", true) } else { ("wrong", false) };
            let line = serde_json::json!({"question": "q?", "answer": format!("{word} {i}"), "golds": ["g"], "correct": correct});
            format!("{line}\n")
        })
        .collect();
    std::fs::write(world.path("labels.jsonl"), labels).unwrap();
    world.command();
    let report = world.path("report.json");
    let measure = |labels: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_s3-generator-gateway"));
        command.args(["calibrate", "--judge", "up", "--config"]).arg(world.path("gateway.yaml"));
        command.arg("--labels").arg(world.path(labels)).arg("--report").arg(&report);
        command.output().unwrap()
    };
    let output = measure("labels.jsonl");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.contains("sensitivity  0.800 [0.670, 0.888]"), "{told}");
    assert!(told.contains("specificity  0.900 [0.786, 0.957]") && told.contains("kappa        0.700"), "{told}");
    let written = Calibration::load(&report).unwrap();
    let table = [written.true_positives, written.false_negatives, written.false_positives, written.true_negatives];
    assert_eq!((table, written.answers, written.undecided), ([40, 10, 5, 45], 100, 0));

    std::fs::write(world.path("few.jsonl"), "{\"question\":\"q\",\"answer\":\"a\",\"golds\":[],\"correct\":true}\n")
        .unwrap();
    let output = measure("few.jsonl");
    assert!(String::from_utf8_lossy(&output.stderr).contains("at least 5 of each"));

    let required = |min_kappa| CalibrationConfig { report: report.clone(), min_kappa };
    world.config.calibrations.insert("up".into(), required(0.5));
    assert_eq!(world.start().stop().0, 0);
    world.config.calibrations.insert("up".into(), required(0.6));
    let (code, line) = world.refused();
    assert!(code == 64 && line.contains("kappa 0.700") && line.contains("better judge"), "{line}");
    world.config.calibrations.insert("up".into(), required(0.5));
    world.provider(0).model = "another".into();
    let (code, line) = world.refused();
    assert!(code == 64 && line.contains("another judge"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_judges_must_agree() {
    let (first, second) = (Upstream::start().await, Upstream::start().await);
    let mut world = World::new(&first.url());
    world.config.providers.push(ProviderConfig::OpenAi(open_ai("second", &second.url())));
    world.config.second_judges.insert("up".into(), "second".into());
    let _process = world.start();
    for (i, (one, two, expected)) in [
        ("yes", Act::Say("yes".into()), Verdict::Correct),
        ("no", Act::Say("no".into()), Verdict::Incorrect),
        ("yes", Act::Say("no".into()), Verdict::Undecided),
        ("no", Act::Say("yes".into()), Verdict::Undecided),
        ("yes", Act::Say("perhaps".into()), Verdict::Undecided),
        ("yes", Act::Status(401, "", String::new()), Verdict::Failed),
    ]
    .into_iter()
    .enumerate()
    {
        first.always(Act::Say(one.into()));
        second.always(two.clone());
        let item = JudgeItem { question: "q".into(), answer: format!("a {i}"), gold_answers: vec!["g".into()] };
        let response =
            world.client().judge(JudgeRequest { items: vec![item], ..JudgeRequest::default() }).await.unwrap();
        assert_eq!(response.results[0].verdict(), expected, "{one} {two:?}: {}", response.results[0].reason);
    }
    // nothing to judge asks nobody
    let before = (first.calls(), second.calls());
    let item = JudgeItem { question: "q".into(), answer: " ".into(), gold_answers: vec!["g".into()] };
    let response = world.client().judge(JudgeRequest { items: vec![item], ..JudgeRequest::default() }).await.unwrap();
    assert_eq!(response.results[0].verdict(), Verdict::Incorrect);
    assert_eq!((first.calls(), second.calls()), before);
}
