//! Methods other than naive RAG as what gains are measured against, with the real program.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_artifacts::Journal;
use s3_trainer::baseline::BaselineAnswer;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{QUESTIONS, World, run, spawn};

const TRAIN: &str = "steps: 2\nrollout: {questions: 4, samples: 4, batch: 8, microBatch: 4}\n";

/// Every stored answer of a run.
fn stored(folder: &Path) -> Vec<BaselineAnswer> {
    let journal = std::fs::read_dir(folder.join("baseline")).unwrap().map(|entry| entry.unwrap().path());
    let journal = journal.filter(|path| path.extension().is_some_and(|end| end == "journal")).collect::<Vec<_>>();
    assert_eq!(journal.len(), 1, "{journal:?}");
    Journal::<BaselineAnswer>::open(&journal[0]).unwrap().entries().values().cloned().collect()
}

#[test]
fn any_method_of_the_generator_is_a_baseline() {
    let world = World::start();
    let asked = &world.behaviour.answered;
    let mut digests = BTreeSet::new();
    let played = "search: {maxSearches: 2, topK: 2, initialTopK: 0, maxPassages: 12}, batch: 5";
    for (name, method) in [
        ("rag", String::new()),
        ("direct", "baseline: {method: {method: Direct}}".to_owned()),
        ("thought", format!("baseline: {{method: {{method: ChainOfThought, {played}, answer: Own}}}}")),
        ("own", format!("baseline: {{method: {{method: SearchR1, {played}, answer: Own}}}}")),
        ("read", format!("baseline: {{method: {{method: IrCot, {played}, answer: Generator}}}}")),
    ] {
        let more = format!("{TRAIN}{method}");
        asked.store(0, Ordering::SeqCst);
        let config = world.config(name, &more);
        let (code, _, stderr) = run("baseline", &config);
        assert_eq!(code, 0, "{name}: {stderr}");
        let outcome = world.outcome(name);
        let right = outcome.summary["right"].as_u64().unwrap() as usize;
        let answers = stored(&world.dir.path().join(name));
        assert_eq!(answers.len(), QUESTIONS, "{name}");
        assert!((right > 0 && right < QUESTIONS) || name == "direct", "{name}: {right}");
        let passages: Vec<usize> = answers.iter().map(|answer| answer.passages.len()).collect();
        match name {
            "direct" | "thought" => assert!(passages.iter().all(|count| *count == 0), "{name}"),
            _ => assert!(passages.iter().any(|count| *count > 0), "{name}"),
        }
        if name == "thought" {
            assert!(answers.iter().all(|one| one.answer.as_ref().unwrap().starts_with("answer")), "{answers:?}");
        }
        // once per question and settings: nothing is asked again, not by another command either
        let paid = asked.swap(0, Ordering::SeqCst);
        assert!(paid >= QUESTIONS, "{name}: {paid}");
        let (code, _, stderr) = run("baseline", &config);
        assert_eq!((code, asked.load(Ordering::SeqCst)), (0, 0), "{name}: {stderr}");
        assert_eq!(world.outcome(name).digest, outcome.digest);

        // killed on the way it comes to the same
        world.behaviour.latency.store(30, Ordering::SeqCst);
        let killed = world.config(&format!("{name}-killed"), &more);
        let mut child = spawn("baseline", &killed);
        std::thread::sleep(Duration::from_millis(120));
        child.kill().unwrap();
        child.wait().unwrap();
        world.behaviour.latency.store(0, Ordering::SeqCst);
        let (code, _, stderr) = run("baseline", &killed);
        assert_eq!(code, 0, "{name}: {stderr}");
        assert_eq!(world.outcome(&format!("{name}-killed")).digest, outcome.digest, "{name}");

        let (code, _, stderr) = run("train", &config);
        assert_eq!(code, 0, "{name}: {stderr}");
        let trained = world.outcome(name);
        let accuracy = trained.summary["first"]["baselineAccuracy"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&accuracy), "{}", trained.summary);
        assert!(digests.insert(trained.digest), "{name}: rewards are others, so is the policy");
    }
    // what was computed for one method is not continued as another's
    let config = world.config("direct", TRAIN);
    let (code, _, stderr) = run("train", &config);
    assert!(code == 64 && stderr.contains("baselineMethod"), "{code} {stderr}");
}
