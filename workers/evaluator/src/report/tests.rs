//! The page escapes what data says, asks nobody for anything, and holds every episode.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::arms::Gathered;
use crate::questions::QuestionSet;
use crate::summary::summarise;
use crate::units::ArmResults;
use s3_config::EvaluatorConfig;
use s3_rollout::Scored;
use s3_rollout::record::EpisodeRecord;
use s3_search::score::{Verdict, gen_acc};
use s3_search::{Action, Passage, Question, StopReason, Turn, eligible};
use std::collections::BTreeMap;

const EVIL: &str = "</script><img src=x onerror=alert(1)>\u{2028}<!--";

fn config() -> EvaluatorConfig {
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

fn passage(id: usize) -> Passage {
    Passage { id: id.to_string(), title: format!("{EVIL} {id}"), text: format!("text {EVIL}") }
}

/// Six questions in two datasets; `direct` is right never, `rag` on even ones, `s3` on the first four.
fn results(config: &EvaluatorConfig) -> Results {
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
        Scored { answer: Some(answer), judge: None, verdict, failure: None }
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
    };
    let arms = [
        ("direct".to_owned(), arm(0, &|_| false, false)),
        ("rag".to_owned(), arm(2, &|at| at % 2 == 0, false)),
        ("s3".to_owned(), arm(1, &|at| at < 4, true)),
    ];
    Results::collect(set, &arms, config.statistics.baseline.as_deref())
}

#[test]
fn data_never_becomes_markup() {
    let config = config();
    let results = results(&config);
    let summary = summarise(&config, &results).unwrap();
    let attribution = [Attribution { name: EVIL.into(), ..Attribution::default() }];
    let identity = serde_json::json!({"index": EVIL, "arm s3": {"model": EVIL}});
    let training = [Training {
        name: EVIL.into(),
        steps: vec![StepRecord { step: 1, figures: BTreeMap::from([("gain".into(), 0.5)]), ..StepRecord::default() }],
    }];
    let page = Page {
        results: &results,
        identity: &identity,
        summary: &summary,
        training: &training,
        attribution: &attribution,
    };
    let html = render(&page).unwrap();
    assert!(!html.contains("<img"), "escaped everywhere");
    assert_eq!(html.matches("</script>").count(), 2, "only the page's own two scripts end");
    assert_eq!(html.matches("<!--").count(), 0);
    assert!(html.contains("&lt;img"), "shown as text");
    let own = [include_str!("page.css"), include_str!("page.js"), include_str!("page.html")].concat();
    for request in ["http://", "https://", "@import", "url(", "innerHTML", "eval(", "fetch("] {
        let namespace = own.replace("http://www.w3.org/2000/svg", "");
        assert!(!namespace.contains(request), "{request}");
    }
    let start = html.find("id=\"data\">").unwrap() + 10;
    let json = &html[start..start + html[start..].find("</script>").unwrap()];
    assert!(!json.contains('<') && !json.contains('\u{2028}'));
    let data: Value = serde_json::from_str(json).unwrap();
    assert_eq!(data["episodes"].as_array().unwrap().len(), 6, "every episode, the last question's too");
    assert_eq!(data["questions"].as_array().unwrap().len(), 6, "questions with equal ids are kept");
    assert_eq!(data["episodes"][5]["t"][0]["y"], EVIL);
    let quadrants: Vec<_> =
        (0..6).map(|at| (data["episodes"][at]["b"][1].clone(), data["episodes"][at]["a"][1].clone())).collect();
    assert_eq!(quadrants.iter().filter(|pair| **pair == (0.into(), 1.into())).count(), 2, "gained: questions 1 and 3");
}

#[test]
fn the_summary_has_the_shape_that_tables_read() {
    let config = config();
    let results = results(&config);
    let summary = summarise(&config, &results).unwrap();
    let value = serde_json::to_value(&summary).unwrap();
    let rows = value["table"].as_array().unwrap();
    let places: Vec<[&str; 2]> =
        rows.iter().map(|row| [row["arm"].as_str().unwrap(), row["dataset"].as_str().unwrap()]).collect();
    assert_eq!(places[..4], [["direct", "all"], ["direct", "a"], ["direct", "b"], ["rag", "all"]]);
    assert_eq!(rows.len(), 9);
    let s3 = &rows[6];
    assert_eq!((s3["n"].as_u64(), s3["passages"].as_f64(), s3["searches"].as_f64()), (Some(6), Some(1.0), Some(1.0)));
    assert_eq!((s3["tokens"].as_f64(), s3["seconds"].as_f64()), (Some(2.0), Some(3.0)));
    assert!((s3["genAcc"]["value"].as_f64().unwrap() - 4.0 / 6.0).abs() < 1e-12);
    // right on 1 and 3 beyond rag, wrong on 4 where rag is right
    assert!((s3["gbr"]["value"].as_f64().unwrap() - 1.0 / 6.0).abs() < 1e-12);
    assert!(rows[3]["gbr"].is_null(), "the baseline has no gain over itself");
    assert_eq!(value["accuracy"], "GenAcc (span)");
    let pair = summary.pairs.iter().find(|pair| pair.arm == "s3").unwrap();
    assert_eq!((pair.wins, pair.losses, pair.n), (2, 1, 6));
    assert!(pair.p_holm >= pair.p);
    assert_eq!(Some(pair.difference), summary.table[6].gbr, "the same figure twice");
    assert!(summary.notes[0].contains("smoke run") && summary.notes[1].contains("6 paired questions"));
}

#[test]
fn published_results_come_back_and_digests_know_no_time() {
    let config = config();
    let results = results(&config);
    let summary = summarise(&config, &results).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (target, staging) = (dir.path().join("results"), dir.path().join("results.staging"));
    results.publish(&target, &staging, &serde_json::json!({"seed": 1}), &summary).unwrap();
    let (loaded, identity, again) = Results::load(&target).unwrap();
    assert_eq!(identity["seed"], 1);
    assert_eq!((&loaded, loaded.digest().unwrap()), (&results, results.digest().unwrap()));
    assert_eq!(again, Summary { report: None, ..summary });
    let mut slower = results.clone();
    slower.seconds.values_mut().for_each(|seconds| *seconds *= 9.0);
    assert_eq!(slower.digest().unwrap(), results.digest().unwrap());
    let mut other = results.clone();
    if let Some(episode) = other.rows.iter_mut().find_map(|row| row.episode.as_mut()) {
        episode.tokens[2] += 1;
    }
    assert_ne!(other.digest().unwrap(), results.digest().unwrap());
}
