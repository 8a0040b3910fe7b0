//! Every method, played by the real program: killed and continued to the same digest, outages never scored.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use s3_evaluator::results::{ResultRow, Results};
use s3_search::Action;
use s3_search::score::Verdict;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::{QUESTIONS, World, run, spawn};

/// All but the one that is in the training file.
const ASKED: usize = QUESTIONS - 1;
/// Arms of the world's configuration, and those added here.
const ARMS: usize = 4 + 17;

/// The world's configuration with every other method added.
fn config(world: &World, name: &str, size: usize) -> PathBuf {
    let path = world.config(name, size, "");
    let root = world.dir.path().display();
    let search =
        "{maxSearches: 2, topK: 2, turnTokens: 12, contextTokens: 1400, passageTokens: 64, observationTokens: 400}";
    let local = format!("searcher: {{path: {root}/model, device: Cpu}}, search: {search}, temperature: 1.0, batch: 3");
    let own =
        |method: &str, more: &str| format!("- {{name: {0}, method: {method}, {local}{more}}}\n", method.to_lowercase());
    let served = |method: &str, more: &str| {
        format!("- {{name: {}-served, method: {method}, search: {search}{more}}}\n", method.to_lowercase())
    };
    let corpus = format!("corpus: {root}/corpus.jsonl");
    let mut arms = String::new();
    for method in ["Sft", "R1", "SearchR1"] {
        arms += &own(method, ", answer: Own");
    }
    for method in ["SearchO1", "IrCot", "DeepRetrieval"] {
        arms += &own(method, "");
    }
    arms += &served("ChainOfThought", ", answer: Own");
    arms += &served("SearchR1", "");
    arms += &served("SearchO1", ", answer: Own");
    arms += &served("IrCot", "");
    arms += &served("DeepRetrieval", "");
    arms += "- {name: same-tokens, method: SameBudgetRag, budgetFrom: s3, budgetBy: Tokens}\n";
    arms += "- {name: empty, method: Rag, topK: 3, retriever: {control: Empty}}\n";
    arms += &format!("- {{name: random, method: Rag, topK: 3, retriever: {{control: Random, {corpus}}}}}\n");
    arms += &format!("- {{name: oracle, method: Rag, topK: 3, retriever: {{control: Oracle, {corpus}}}}}\n");
    let s3 = "search: {maxSearches: 1, topK: 3, initialTopK: 3, turnTokens: 12, contextTokens: 900, passageTokens: 64, observationTokens: 400";
    arms += &format!(
        "- {{name: s3-all, method: S3, searcher: {{path: {root}/model, device: Cpu}}, {s3}, ablation: NoSelection}}, temperature: 1.0, batch: 2}}\n"
    );
    arms += &format!(
        "- {{name: s3-oracle, method: S3, retriever: {{control: Oracle, {corpus}}}, searcher: {{path: {root}/model, device: Cpu}}, {s3}}}, temperature: 1.0, topP: 0.9, batch: 2}}\n"
    );
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("datasets:", &format!("{arms}datasets:"))).unwrap();
    path
}

fn rows<'a>(results: &'a Results, arm: &str) -> Vec<&'a ResultRow> {
    let mut rows: Vec<&ResultRow> = results.rows.iter().filter(|row| row.arm == arm).collect();
    rows.sort_by_key(|row| row.place);
    assert_eq!(rows.len(), ASKED, "{arm}: the last question of the set, too");
    rows
}

#[test]
fn every_method_is_killed_and_continues_to_the_same_digest() {
    let world = World::start();
    let (code, _, stderr) = run(&["run"], &config(&world, "whole", 1000));
    assert_eq!(code, 0, "{stderr}");
    let whole = world.outcome("whole");
    let killed = config(&world, "killed", 1000);
    world.behaviour.latency.store(15, Ordering::SeqCst);
    let journal = world.dir.path().join("killed/state/units.journal");
    let grown = |than: u64| std::fs::metadata(&journal).is_ok_and(|file| file.len() > than);
    let mut kills = 0;
    for _ in 0..4 {
        let before = std::fs::metadata(&journal).map_or(0, |file| file.len());
        let mut child = spawn(&["run"], &killed);
        while !grown(before) && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        kills += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills >= 3, "{kills} kills in the middle");
    let (code, _, stderr) = run(&["run"], &killed);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("killed").digest, whole.digest);

    let (results, identity, summary) = Results::load(&world.dir.path().join("whole/results")).unwrap();
    assert_eq!((results.rows.len(), summary.table.len()), (ARMS * ASKED, ARMS));
    checks(&results);
    assert_eq!(identity["arm oracle"]["retriever"]["control"], "Oracle");
    let note = |start: &str| summary.notes.iter().any(|note| note.starts_with(start));
    assert!(note("oracle: an oracle, no method") && note("searchr1: answers itself"), "{:?}", summary.notes);
}

/// What each arm's rows must be.
fn checks(results: &Results) {
    for arm in ["sft", "r1", "searchr1", "chainofthought-served", "searcho1-served"] {
        for row in rows(results, arm) {
            assert!(row.answer.is_some() && row.episode.is_some(), "{arm} answers itself, in turns");
        }
    }
    for arm in ["searchr1-served", "searcho1-served", "ircot-served", "ircot", "deepretrieval"] {
        let searches: u32 = rows(results, arm).iter().map(|row| row.searches).sum();
        assert!(arm == "deepretrieval" || searches > 0, "{arm} searches");
        assert!(rows(results, arm).iter().all(|row| row.searches <= 2));
    }
    let turns = |arm: &str| -> Vec<Action> {
        let all = rows(results, arm).into_iter().filter_map(|row| row.episode.as_ref());
        all.flat_map(|episode| episode.turns.iter().map(|turn| turn.action.clone())).collect()
    };
    assert!(turns("searcho1-served").contains(&Action::Note), "documents are read aside");
    // one question is refused by the provider: no verdict, not wrong
    let refused: Vec<&ResultRow> =
        rows(results, "deepretrieval-served").into_iter().filter(|row| row.refused.is_some()).collect();
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].verdict, refused[0].answer.as_ref()), (Verdict::Failed, None));
    // controls
    assert!(rows(results, "empty").iter().all(|row| row.passages.is_empty()));
    assert!(rows(results, "random").iter().all(|row| row.passages.len() == 3));
    assert_ne!(rows(results, "random")[0].passages, rows(results, "random")[1].passages);
    for row in rows(results, "oracle") {
        let question = &results.questions.questions[row.place];
        let holds =
            |id: &String| question.answers.iter().any(|gold| results.passages[id].text.ends_with(gold.as_str()));
        assert!(row.passages.iter().all(holds), "every passage of the oracle has a gold answer");
    }
    // the same episodes, all passages
    let selected = rows(results, "s3");
    let all = rows(results, "s3-all");
    for (row, whole) in selected.iter().zip(&all) {
        let tokens = |row: &ResultRow| row.episode.as_ref().unwrap().tokens.clone();
        assert_eq!(tokens(row), tokens(whole), "an ablation plays the same episode");
        assert!(row.passages.iter().all(|id| whole.passages.contains(id)));
    }
    assert!(all.iter().zip(&selected).any(|(whole, row)| whole.passages.len() > row.passages.len()));
    // every passage of the fake corpus is as long, so as many tokens are as many passages
    for (row, tokens) in selected.iter().zip(rows(results, "same-tokens")) {
        assert!(row.passages.len().abs_diff(tokens.passages.len()) <= 1);
    }
}

#[test]
fn an_outage_of_a_served_model_stops_the_run_and_is_never_a_wrong_answer() {
    let world = World::start();
    let only = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        let (head, rest) = text.split_once("arms:\n").unwrap();
        let (arms, tail) = rest.split_once("datasets:").unwrap();
        let ircot = arms.lines().find(|line| line.contains("ircot-served")).unwrap();
        let tail = tail.replace("baseline: rag, ", "").replace("pairedAgainst: [rag, same]", "pairedAgainst: []");
        std::fs::write(path, format!("{head}arms:\n{ircot}\ndatasets:{tail}")).unwrap();
    };
    let whole = config(&world, "whole", 12);
    only(&whole);
    assert_eq!(run(&["run"], &whole).0, 0);
    let down = config(&world, "down", 12);
    only(&down);
    world.behaviour.down_after.store(9, Ordering::SeqCst);
    let (code, _, stderr) = run(&["run"], &down);
    assert_eq!(code, 69, "{stderr}");
    assert!(stderr.contains("lost for the test"), "{stderr}");
    world.behaviour.down_after.store(0, Ordering::SeqCst);
    let (code, _, stderr) = run(&["run"], &down);
    assert_eq!(code, 0, "{stderr}");
    assert_eq!(world.outcome("down").digest, world.outcome("whole").digest);
}
