//! A file in the reference's released layout, to contexts and scores in the reference's own formats.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../../questions/tests/support/released.rs"]
mod released;
#[allow(dead_code)] // each test file uses its part
mod support;

use s3_evaluator::results::Results;
use serde_json::Value;
use std::process::Command;
use support::{World, run};

#[test]
fn the_released_layout_becomes_contexts_and_scores() {
    let world = World::start();
    let root = world.dir.path().to_owned();
    let data = root.join("test_e5_s3.parquet");
    let rows: Vec<released::Row> = (0..24)
        .map(|at| released::Row {
            source: ["nq", "hotpotqa", "popqa"][at % 3],
            question: format!("what is fact {at}?"),
            answers: (0..40)
                .filter(|passage| (passage + at) % 2 == 0)
                .map(|passage| format!("answer{passage}"))
                .collect(),
            initial: "Doc 1 (Title: \"T1\") number 1 says answer1\n".into(),
        })
        .collect();
    released::write(&data, &rows);
    let config = world.config("r", 1000, "");
    let text = std::fs::read_to_string(&config).unwrap();
    let path = data.display();
    let sets = format!("[{{name: nq, path: {path}, set: Nq}}, {{name: hotpotqa, path: {path}, set: HotpotQa}}]");
    let own = format!("[{{name: d, path: {}/questions.jsonl}}]", root.display());
    let sample = text.lines().find(|line| line.starts_with("sample:")).unwrap().to_owned();
    let text = text.replace(&own, &sets).replace(&sample, "sample: {size: 1000}");
    std::fs::write(&config, text + "metrics: [GenAcc, ExactMatch, Span, EvidenceRecall]\n").unwrap();
    let (code, _, stderr) = run(&["run"], &config);
    assert_eq!(code, 0, "{stderr}");

    let (results, _, summary) = Results::load(&root.join("r/results")).unwrap();
    assert_eq!(results.questions.questions.len(), 16, "the two sets, each with its last question, and no other");
    assert!(!results.logprobs.is_empty() && !results.pieces.is_empty());
    // the paper's figures stand beside, with why they differ
    let beside =
        summary.published.iter().find(|one| one.arm == "s3" && one.dataset == "nq" && one.paper.contains("14B"));
    assert!((beside.unwrap().theirs - 67.2).abs() < 1e-9);
    assert!(summary.published_reasons.iter().any(|reason| reason.contains("8 of nq") && reason.contains("3610")));

    let export = |arguments: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_s3-evaluator"));
        let output = program.arg("export").arg("--config").arg(&config).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let folder = root.join("reference");
    let written = export(&["--reference", folder.to_str().unwrap(), "--arm", "s3"]);
    assert_eq!(written.lines().count(), 3, "{written}");
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let contexts = read("nq_output_sequences.json");
    assert_eq!(contexts.as_object().unwrap().len(), 8);
    let one = &contexts["what is fact 21?"];
    assert_eq!(one["golden_answers"].as_array().unwrap().len(), rows[21].answers.len());
    assert!(one["context_with_info"].is_string() && one["response_str"].is_string());
    let scores = read("result.json");
    let right: u64 = scores["nq"].as_object().unwrap().values().map(|one| one["score"].as_u64().unwrap()).sum();
    let row = summary.table.iter().find(|row| row.arm == "s3" && row.dataset == "nq").unwrap();
    assert!((row.gen_acc.value * 8.0 - right as f64).abs() < 1e-9, "the same accuracy");

    // tables for people and programs, from the same results
    let matrix = export(&["--format", "markdown"]);
    assert!(matrix.contains("| nq (n = 8) |") || matrix.contains("nq (n = 8)"), "{matrix}");
    assert!(matrix.contains("Evidence recall") && !matrix.contains("| s3 | GBR"), "the chosen metrics: {matrix}");
    assert!(export(&["--format", "latex", "--what", "pairs"]).contains("\\toprule"));
    assert_eq!(export(&["--format", "csv"]).lines().count(), 1 + 4 * 16);
    assert!(export(&["--format", "markdown", "--what", "published"]).contains("67.2"));

    // one arm against another, from the command line
    let compare = Command::new(env!("CARGO_BIN_EXE_s3-evaluator"))
        .args(["compare", "--first"])
        .arg(root.join("r/results"))
        .args(["--arm", "s3", "--with", "rag", "--show", "won,lost"])
        .output()
        .unwrap();
    let text = String::from_utf8(compare.stdout).unwrap();
    assert!(compare.status.success() && text.contains("16 questions") && text.contains("McNemar"), "{text}");

    // while a run goes on, what it has found so far: here one that has no published folder
    std::fs::remove_dir_all(root.join("r/results")).unwrap();
    assert_eq!(export(&["--format", "csv"]).lines().count(), 1 + 4 * 16);
}
