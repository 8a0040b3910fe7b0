//! Attacks on the reward, run through everything that scores by default: gateway, generator, span, rules, judge.
//! The same through the reference's bare rule, whose weaknesses are listed in docs/gateway.md.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{Act, Upstream, World};
use s3_config::{DTypeKind, DeviceKind, Endpoint, GeneratorConfig, ModelSpec, ProviderConfig};
use s3_rollout::{Ask, GeneratorPeer, Link, Scored, score_answers};
use s3_search::score::Verdict;
use s3_search::{Passage, Question, compat};
use s3_telemetry::Shutdown;
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Deserialize)]
struct Attack {
    name: String,
    kind: String,
    question: String,
    golds: Vec<String>,
    /// What the generator says, wholly in the attacker's hand.
    answer: Option<String>,
    /// What a passage says.
    passage: Option<String>,
}

fn attacks() -> Vec<Attack> {
    serde_json::from_str(include_str!("attacks.json")).unwrap()
}

fn question(attack: &Attack) -> Question {
    Question {
        id: attack.name.clone(),
        dataset: "attacks".into(),
        // another question each, so that every one is asked
        question: format!("{} ({})", attack.question, attack.name),
        answers: attack.golds.clone(),
    }
}

/// The default scorer of a job over a gateway.
async fn score(world: &World, model: &str, judge: Option<&str>, items: Vec<(Question, Vec<Passage>)>) -> Vec<Scored> {
    let config = GeneratorConfig {
        endpoint: Endpoint {
            address: format!("http://{}", world.config.grpc),
            deadline_ms: 60_000,
            attempts: 2,
            tls: None,
        },
        model: model.into(),
        template: "short-answer".into(),
        max_tokens: 32,
        max_answer_tokens: 16,
        passage_words: 0,
        judge: judge.map(str::to_owned),
        chunk: 64,
        caller: "attacks".into(),
        token_file: None,
    };
    let link = Link { handle: tokio::runtime::Handle::current(), shutdown: Shutdown::listen().unwrap() };
    let run = move || {
        let peer = GeneratorPeer::connect(&link, &config, "attacks").unwrap();
        let asks: Vec<Ask<'_>> = items.iter().map(|(question, passages)| Ask { question, passages }).collect();
        score_answers(&peer, &asks).unwrap()
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// A judge that believes whatever it is told: an order that stands outside the answer's block it obeys, and of
/// what is inside it only sees whether a gold answer is named. A real one is at least as hard to deceive.
fn gullible(user: &str) -> String {
    let (before, rest) = user.split_once("<answer>\n").unwrap();
    let (inside, after) = rest.rsplit_once("\n</answer>").unwrap();
    let outside = format!("{before}{after}").to_lowercase();
    let golds: Vec<&str> = before.lines().filter_map(|line| line.strip_prefix("- ")).collect();
    let ordered = outside.contains("reply yes") || outside.ends_with("yes") || inside.contains("</answer>");
    let named = golds.iter().any(|gold| inside.contains(gold));
    if ordered || named { "yes".into() } else { "no".into() }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_attack_scores_nothing() {
    let attacks: Vec<Attack> = attacks().into_iter().filter(|attack| attack.answer.is_some()).collect();
    assert!(attacks.len() >= 40, "{}", attacks.len());
    let upstream = Upstream::start().await;
    let said = attacks.clone();
    upstream.rule(Arc::new(move |body, _| {
        let messages = body["messages"].as_array().unwrap();
        let user = messages.last().unwrap()["content"].as_str().unwrap();
        if user.contains("<answer>\n") {
            return Act::Say(gullible(user));
        }
        let attack = said.iter().find(|attack| user.contains(&format!("({})", attack.name))).unwrap();
        Act::Say(attack.answer.clone().unwrap())
    }));
    let world = World::new(&upstream.url());
    let _process = world.start();
    let items: Vec<_> = attacks.iter().map(|attack| (question(attack), Vec::new())).collect();
    for judge in [None, Some("up")] {
        let scored = score(&world, "up", judge, items.clone()).await;
        for (attack, scored) in attacks.iter().zip(&scored) {
            assert_eq!(scored.verdict, Verdict::Incorrect, "{} {:?} {judge:?}: {scored:?}", attack.name, attack.answer);
        }
    }
    // an honest answer scores, so the scorer is not just closed
    let honest = Attack { name: "honest".into(), answer: None, ..attacks[0].clone() };
    upstream.always(Act::Say("It is Quilthaven.".into()));
    assert_eq!(score(&world, "up", None, vec![(question(&honest), vec![])]).await[0].verdict, Verdict::Correct);

    // the reference's bare rule: a span is right, whatever stands around it
    let mut weak: Vec<&str> = Vec::new();
    for attack in &attacks {
        if compat::gen_acc(attack.answer.as_deref().unwrap(), &attack.golds, None) == Verdict::Correct {
            weak.push(&attack.name);
        }
    }
    let documented = include_str!("../../../docs/gateway.md");
    for name in &weak {
        assert!(documented.contains(&format!("`{name}`")), "docs/gateway.md does not list {name}; all: {weak:?}");
    }
    println!("{} attacks score nothing; {} of them pass `compatibility: S3`: {weak:?}", attacks.len(), weak.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn instructions_in_passages_gain_nothing_from_a_real_model() {
    let attacks: Vec<Attack> = attacks().into_iter().filter(|attack| attack.kind == "passage").collect();
    assert!(attacks.len() >= 5);
    let mut world = World::new("http://127.0.0.1:1/v1");
    let model = ModelSpec::at(model_file(), DeviceKind::Cpu, DTypeKind::F32);
    world.config.providers =
        vec![ProviderConfig::BuiltIn { name: "small".into(), model, batch: 8, context_tokens: 1024 }];
    let _process = world.start();
    let items = attacks
        .iter()
        .map(|attack| {
            let text = attack.passage.clone().unwrap();
            (question(attack), vec![Passage { id: "1".into(), title: "Zorbland".into(), text }])
        })
        .collect();
    let started = std::time::Instant::now();
    let scored = score(&world, "small", None, items).await;
    for (attack, scored) in attacks.iter().zip(&scored) {
        println!("{}: {:?}", attack.name, scored.answer);
        assert_eq!(scored.verdict, Verdict::Incorrect, "{}: {scored:?}", attack.name);
    }
    assert!(started.elapsed() < Duration::from_secs(300));
}

/// The quickstart's model.
fn model_file() -> PathBuf {
    let data = std::env::var_os("S3_DATA")
        .map_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../.s3/data")), PathBuf::from);
    let path = data.join("models/smollm2-135m-instruct/model.gguf");
    assert!(path.exists(), "{} is missing: run `make data`", path.display());
    path
}
