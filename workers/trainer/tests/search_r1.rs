//! Search-R1's training with the real program: no generator, the searcher's own answer, exact match as the reward.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[allow(dead_code)] // each test file uses its part
mod support;

use s3_model::TokenizerFile;
use s3_rollout::ModelCodec;
use s3_rollout::record::read_training;
use s3_search::script::qa_em;
use s3_search::{Action, Codec};
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{World, replay, run, spawn};

/// Whole turns as single tokens, so that a random policy searches and answers now and then.
const PHRASES: [&str; 9] = [
    "<search>fact</search>",
    "<search>number</search>",
    "<answer>red</answer>",
    "<answer> The Green! </answer>",
    "<answer>blue</answer>",
    "<answer>none of them</answer>",
    "<answer>",
    "</answer>",
    " words",
];

const TRAIN: &str = "rollout: {questions: 4, samples: 16, batch: 32, microBatch: 16}\nreward: {formatScore: 0.05}\n";

/// A world whose model says these words, with questions whose answers it can say.
fn world() -> World {
    let world = World::start_saying(&PHRASES);
    let root = world.dir.path();
    let rows: Vec<String> = (0..12)
        .map(|at| {
            serde_json::json!({"id": format!("c{at}"), "question": format!("which colour is {at}"), "answers": ["green"]})
                .to_string()
        })
        .collect();
    std::fs::write(root.join("colours.jsonl"), rows.join("\n")).unwrap();
    std::fs::write(root.join("prompt.txt"), "An <answer> x </answer> or <answer> y </answer>: {question}\n").unwrap();
    world
}

/// The world's configuration without a generator, by Search-R1's protocol.
fn config(world: &World, name: &str, more: &str) -> std::path::PathBuf {
    let path = world.config(name, more);
    let root = world.dir.path().display();
    let text = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<&str> = text
        .lines()
        .filter(|line| !["generator:", "search:", "data:"].iter().any(|key| line.starts_with(key)))
        .collect();
    let own = format!(
        "search: {{compatibility: SearchR1, maxSearches: 2, topK: 2, turnTokens: 10, contextTokens: 700, \
         observationTokens: 120, promptTemplate: {root}/prompt.txt}}\n\
         data: {{datasets: [{{name: c, path: {root}/colours.jsonl}}]}}\n"
    );
    std::fs::write(&path, format!("{}\n{own}", kept.join("\n"))).unwrap();
    path
}

#[test]
fn exact_match_is_learned_without_a_generator() {
    let world = world();
    let root = world.dir.path();
    let train = format!(
        "steps: 12\n{TRAIN}probe: {{every: 12, limit: 4, datasets: [{{name: p, path: {}/colours.jsonl}}]}}\n",
        root.display()
    );
    let path = config(&world, "whole", &train);
    let (code, stdout, stderr) = run("train", &path);
    assert_eq!(code, 0, "{stderr}");
    let outcome = world.outcome("whole");
    assert!(stdout.ends_with(&format!("digest {}\n", outcome.digest)));
    let accuracy = |key: &str| outcome.summary[key]["accuracy"].as_f64().unwrap();
    // sampled, and greedily on the held-out questions
    assert!(accuracy("first") < 0.25 && accuracy("last") > accuracy("first") + 0.15, "{}", outcome.summary);
    assert!(accuracy("probeFirst") < 0.1 && accuracy("probeLast") > 0.9, "{}", outcome.summary);
    assert_eq!(world.behaviour.answered.load(Ordering::SeqCst), 0, "no generator is asked");
    assert!(!root.join("whole/baseline").exists(), "and nothing is compared with");

    // what is stored says itself what it was worth, and what the environment wrote is learned from nowhere
    let codec = ModelCodec::new(TokenizerFile::from_folder(&root.join("model")).unwrap());
    let (mut searched, mut corrected) = (0, 0);
    for step in &read_training(&root.join("whole/state/training")).unwrap()[1..] {
        assert!(step.figures.contains_key("gradNorm"));
        for one in &step.episodes {
            let (episode, outcome) = (&one.episode, one.outcome.as_ref().unwrap());
            let text = codec.decode(&episode.tokens);
            let answer = qa_em::extract(&text);
            assert_eq!(outcome.searcher.answer.as_deref(), answer);
            assert_eq!(outcome.reward, Some(qa_em::score(answer, &episode.question.answers, 0.05)));
            assert_eq!(outcome.gain(), outcome.searcher.verdict.value(), "nothing is taken off");
            let written: String =
                episode.turns.iter().map(|turn| codec.decode(&episode.tokens[turn.tokens.0..turn.tokens.1])).collect();
            assert!(!written.contains("<information>") && !written.contains("My previous action"), "{written}");
            searched += usize::from(episode.searches > 0 && text.contains("\n\n<information>Doc 1(Title:"));
            corrected += usize::from(
                episode.turns.iter().rev().skip(1).any(|turn| matches!(turn.action, Action::Invalid { .. }))
                    && text.contains("\nMy previous action is invalid."),
            );
        }
    }
    assert!(searched > 10 && corrected > 10, "{searched} {corrected}");
}

#[test]
fn killed_anywhere_and_by_several_threads_the_digest_is_the_same() {
    let world = world();
    let train = format!("steps: 4\n{TRAIN}");
    let (code, _, stderr) = run("train", &config(&world, "whole", &train));
    assert_eq!(code, 0, "{stderr}");
    let digest = world.outcome("whole").digest;
    let several = train.replace("batch: 32", "batch: 32, workers: 2");
    let (code, _, stderr) = run("train", &config(&world, "threads", &several));
    assert_eq!((code, world.outcome("threads").digest), (0, digest.clone()), "{stderr}");
    world.behaviour.latency.store(15, Ordering::SeqCst);
    let path = config(&world, "killed", &train);
    for delay in [150, 400, 700] {
        let mut child = spawn("train", &path);
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let (code, _, stderr) = run("train", &path);
    assert_eq!((code, world.outcome("killed").digest), (0, digest), "{stderr}");
    // one episode again, beside what was stored
    let steps = read_training(&world.dir.path().join("killed/state/training")).unwrap();
    let one = &steps[2].episodes[5].episode;
    let name = format!("2/{}/{}", s3_rollout::question_key(&one.question), one.sample);
    let (code, text, stderr) = replay(&path, &name);
    assert_eq!(code, 0, "{stderr}");
    let reward = text.lines().find(|line| line.starts_with("reward")).unwrap();
    let (stored, again) = reward.split_once("stored ").unwrap().1.split_once(", again ").unwrap();
    assert_eq!(stored, again, "{text}");
}

#[test]
fn what_needs_a_generator_says_so() {
    let world = world();
    let path = config(&world, "none", &format!("steps: 1\n{TRAIN}"));
    let (code, _, stderr) = run("baseline", &path);
    assert!(code == 64 && stderr.contains("set `generator`"), "{code} {stderr}");
    std::fs::write(world.dir.path().join("prompt.txt"), "{question}{documents}").unwrap();
    let text = std::fs::read_to_string(&path).unwrap().replace("compatibility: SearchR1, ", "");
    std::fs::write(&path, text).unwrap();
    let (code, _, stderr) = run("train", &path);
    assert!(code == 64 && stderr.contains("set `generator`"), "{code} {stderr}");
}
