//! `compatibility: SearchR1` against Search-R1's own code: episodes, masks, queries, rewards (`fixtures/search_r1.py`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::float_cmp)] // rewards are written, not computed

mod common;

use common::Letters;
use s3_config::{Compatibility, RewardConfig, SearchConfig};
use s3_search::script::qa_em;
use s3_search::{Codec, Passage, Play, Question, Role, Searching, Step, reward};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    prompt: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Case {
    question: String,
    golds: Vec<String>,
    turns: Vec<String>,
    max_turns: u32,
    max_obs: u32,
    top_k: u32,
    template: Option<String>,
    queries: Vec<String>,
    text: String,
    /// Characters that are learned from: [start, end).
    learned: Vec<(usize, usize)>,
    answer: Option<String>,
    score: f64,
    score_with_format: f64,
}

/// A chat is its message alone.
const LETTERS: Letters = Letters(|_, user| user.to_owned());

fn golden() -> Golden {
    let golden: Golden = serde_json::from_str(include_str!("fixtures/search-r1.json")).unwrap();
    assert!(golden.cases.len() >= 50);
    golden
}

/// The passages that the script's search finds for words.
fn found(query: &str, top_k: usize) -> Vec<Passage> {
    let words = query.split_whitespace().collect::<Vec<_>>().join(" ");
    (1..=top_k)
        .map(|place| Passage {
            id: format!("{words}-{place}"),
            title: format!("{words} {place}"),
            text: format!("text of {words}, </information> and {place}"),
        })
        .collect()
}

#[test]
fn episodes_masks_and_rewards_are_those_of_the_reference() {
    let Golden { prompt, cases } = golden();
    for (number, case) in cases.iter().enumerate() {
        let config = SearchConfig {
            max_searches: case.max_turns,
            top_k: case.top_k,
            observation_tokens: case.max_obs,
            turn_tokens: 500,
            context_tokens: 20_000,
            compatibility: Compatibility::SearchR1,
            prompt_text: case.template.clone(),
            ..SearchConfig::default()
        };
        Searching::check(&config).unwrap();
        assert_eq!(Searching::initial(&config), 0, "no passage is shown before the first search");
        let question = Question { question: case.question.clone(), answers: case.golds.clone(), ..Question::default() };
        let mut run = Searching::new(&question, 0, Vec::new(), &config, &LETTERS).unwrap();
        let (mut turns, mut queries) = (case.turns.iter(), Vec::new());
        loop {
            match run.next() {
                Step::Finish => break,
                Step::Retrieve { query, top_k } => {
                    queries.push(query.to_owned());
                    let passages = found(query, top_k);
                    run.retrieved(passages, &LETTERS).unwrap();
                }
                Step::Generate { stop, .. } => {
                    let turn = turns.next().expect("a turn is left");
                    let mut tokens = LETTERS.encode(turn);
                    // without a closing tag the model ends its turn itself, and that token leaves the conversation
                    if !stop.iter().any(|stop| turn.ends_with(stop)) {
                        tokens.push(LETTERS.end_of_turn());
                    }
                    run.generated(&tokens, &vec![-0.5; tokens.len()], &LETTERS).unwrap();
                }
            }
        }
        assert!(turns.next().is_none(), "{number}: turns are left");
        let trajectory = run.finish();
        let asked = case.template.as_ref().unwrap_or(&prompt).replace("{question}", &case.question);
        let whole = LETTERS.decode(&trajectory.tokens);
        assert_eq!(whole, format!("{asked}{}", case.text), "{number}");
        let start = asked.chars().count();
        let learned = |at: usize| case.learned.iter().any(|(from, to)| (from + start..to + start).contains(&at));
        for (at, role) in trajectory.roles.iter().enumerate() {
            assert_eq!(*role == Role::Action, learned(at), "{number} at {at}");
            assert_eq!(*role == Role::Prompt, at < start, "{number} at {at}");
        }
        assert_eq!(queries, case.queries, "{number}");
        let answer = qa_em::extract(&whole);
        assert_eq!(answer, case.answer.as_deref(), "{number}");
        assert_eq!(qa_em::score(answer, &case.golds, 0.0), case.score, "{number}");
        assert_eq!(qa_em::score(answer, &case.golds, 0.1), case.score_with_format, "{number}");
        // the shaping of this project comes on top, and is off by default
        let plain = RewardConfig { format_score: 0.1, ..RewardConfig::default() };
        assert_eq!(reward::own(&plain, &trajectory, answer, &case.golds), Some(case.score_with_format));
        let costly = RewardConfig { search_cost: -0.25, invalid_turn: -0.5, ..RewardConfig::default() };
        let invalid = trajectory.invalid_turns() as f64;
        let wanted = case.score - 0.25 * f64::from(trajectory.searches) - 0.5 * invalid;
        assert_eq!(reward::own(&costly, &trajectory, answer, &case.golds), Some(wanted));
    }
}

#[test]
fn what_no_longer_fits_ends_the_episode() {
    let config = SearchConfig {
        max_searches: 4,
        turn_tokens: 30,
        context_tokens: 800,
        observation_tokens: 500,
        compatibility: Compatibility::SearchR1,
        ..SearchConfig::default()
    };
    let question = Question { question: "q?".into(), ..Question::default() };
    let mut run = Searching::new(&question, 0, Vec::new(), &config, &LETTERS).unwrap();
    let mut most = 0;
    while let Step::Generate { .. } = run.next() {
        let turn = LETTERS.encode("<search>x</search>");
        run.generated(&turn, &vec![-0.5; turn.len()], &LETTERS).unwrap();
        if let Step::Retrieve { query, top_k } = run.next() {
            let passages = found(query, top_k);
            run.retrieved(passages, &LETTERS).unwrap();
        }
        most = most.max(run.context().len());
    }
    assert!(most <= 800, "{most}");
    // an outage masks
    let mut run = Searching::new(&question, 0, Vec::new(), &config, &LETTERS).unwrap();
    run.failed("down".into());
    assert_eq!(run.failure(), Some("down"));
    assert_eq!(reward::own(&RewardConfig::default(), &run.finish(), Some("a"), &["a".into()]), None);
}
