//! Exact match, F1 and span against the public scorers' own functions (`fixtures/public_scores.py` ran them).
#![allow(clippy::unwrap_used)]

use s3_search::compat;
use s3_search::score::{exact_match, f1, has_span};

type Line = (String, Vec<String>, u8, f64, u8);

#[test]
fn public_scorers_say_the_same() {
    let lines = include_str!("fixtures/public-scores.jsonl");
    let lines: Vec<Line> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() >= 2000);
    let mut wrong = Vec::new();
    for (answer, golds, exact, expected, span) in &lines {
        let found = [exact_match(answer, golds), compat::exact_match(answer, golds)];
        if found != [*exact == 1; 2] {
            wrong.push(format!("exact match {answer:?} {golds:?}: {found:?}, not {exact}"));
        }
        let found = f1(answer, golds);
        if (found - expected).abs() > 1e-9 {
            wrong.push(format!("F1 {answer:?} {golds:?}: {found}, not {expected}"));
        }
        let found = [has_span(answer, golds), compat::has_span(answer, golds)];
        if found != [*span == 1; 2] {
            wrong.push(format!("span {answer:?} {golds:?}: {found:?}, not {span}"));
        }
    }
    let shown: Vec<&String> = wrong.iter().take(20).collect();
    assert!(wrong.is_empty(), "{} of {} differ:\n{shown:#?}", wrong.len(), 3 * lines.len());
}
