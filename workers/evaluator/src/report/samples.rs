//! A small finished evaluation for tests.
#![allow(clippy::unwrap_used)]

use crate::arms::Gathered;
use crate::questions::QuestionSet;
use crate::results::Results;
use crate::units::ArmResults;
use s3_config::EvaluatorConfig;
use s3_rollout::Scored;
use s3_rollout::record::EpisodeRecord;
use s3_search::score::{Verdict, gen_acc};
use s3_search::{Action, Passage, Question, StopReason, Turn, eligible};

/// Text that tries to become markup.
pub const EVIL: &str = "</script><img src=x onerror=alert(1)>\u{2028}<!--";

/// Three arms.
pub fn config() -> EvaluatorConfig {
    serde_json::from_value(serde_json::json!({
        "runtime": {"name": "e", "stateDir": "state"},
        "seed": 1,
        "arms": [
            {"name": "direct", "method": "Direct"},
            {"name": "rag", "method": "Rag", "topK": 2},
            {"name": "s3", "method": "S3", "searcher": {"path": "m"}, "search": {}},
        ],
        "datasets": [],
        "sample": {"size": 6},
        "retriever": {"address": "http://127.0.0.1:1"},
        "generator": {"endpoint": {"address": "http://127.0.0.1:1"}},
        "statistics": {"baseline": "rag", "resamples": 200},
        "output": "out",
    }))
    .unwrap()
}

/// One passage.
pub fn passage(id: usize) -> Passage {
    Passage { id: id.to_string(), title: format!("{EVIL} {id}"), text: format!("text {EVIL}") }
}

/// Six questions in two datasets; `direct` is right never, `rag` on even ones, `s3` on the first four.
pub fn results(config: &EvaluatorConfig) -> Results {
    let questions: Vec<Question> = (0..6)
        .map(|at| Question {
            // two questions share an id
            id: format!("q{}", at.max(1)),
            dataset: if at < 3 { "a" } else { "b" }.into(),
            question: format!("question {at} {EVIL}"),
            answers: vec!["gold".into(), EVIL.into()],
        })
        .collect();
    let scored = |question: &Question, right: bool| {
        let answer = if right { "gold".to_owned() } else { format!("nothing {EVIL}") };
        let verdict = if right { gen_acc(&answer, &question.answers, 16, None) } else { Verdict::Incorrect };
        Scored { answer: Some(answer), judge: None, judge_reason: String::new(), verdict, failure: None }
    };
    let arm = |passages: usize, right: &dyn Fn(usize) -> bool, episode: bool| {
        let mut results = ArmResults { seconds: 3.0, ..ArmResults::default() };
        for (at, question) in questions.iter().enumerate() {
            let passages: Vec<Passage> = (0..passages).map(|n| passage(at * 3 + n)).collect();
            let episode = episode.then(|| EpisodeRecord {
                question: question.clone(),
                sample: 0,
                tokens: vec![1, 2, 3],
                prompt_tokens: 1,
                logprobs: vec![-0.5, -0.25],
                turns: vec![Turn {
                    text: EVIL.into(),
                    action: Action::Search { query: EVIL.into() },
                    window: vec![passage(90), passage(91)],
                    selected: vec![1],
                    tokens: (1, 3),
                }],
                selected: passages.clone(),
                stop: StopReason::Complete,
                searches: 1,
            });
            let searches = u32::from(episode.is_some());
            results.gathered.push(Gathered { passages, searches, episode, ..Gathered::default() });
            results.scored.push(scored(question, right(at)));
        }
        results
    };
    let set = QuestionSet {
        sha256: eligible::digest(&questions),
        seed: 1,
        eligible: false,
        considered: 6,
        in_training: 0,
        unanswerable: 0,
        questions: questions.clone(),
        evidence: Vec::new(),
    };
    let arms = [
        ("direct".to_owned(), arm(0, &|_| false, false)),
        ("rag".to_owned(), arm(2, &|at| at % 2 == 0, false)),
        ("s3".to_owned(), arm(1, &|at| at < 4, true)),
    ];
    Results::collect(set, &arms, config.statistics.baseline.as_deref())
}
