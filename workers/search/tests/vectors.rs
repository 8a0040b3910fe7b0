//! The reference's parsers and scorers against golden vectors made by running the reference.
//!
//! `S3_VECTORS` names another file of the same format; a key this test does not know fails it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use s3_search::{compat, pyjson, score, text};
use serde_json::Value;
use std::path::PathBuf;

fn strings(value: &Value) -> Vec<String> {
    serde_json::from_value(value.clone()).expect("a list of strings")
}

fn string(value: &Value) -> &str {
    value.as_str().expect("a string")
}

/// What the implementation gives for one vector, in the vector's own form.
fn run(key: &str, vector: &[Value]) -> Result<(Value, Value), String> {
    let bit = |yes: bool| Value::from(u8::from(yes));
    Ok(match (key, vector) {
        ("normalize", [input, expected]) => (text::normalize(string(input)).into(), expected.clone()),
        ("span", [answer, golds, expected]) => {
            (bit(compat::has_span(string(answer), &strings(golds))), expected.clone())
        }
        ("em", [answer, golds, expected]) => {
            (bit(compat::exact_match(string(answer), &strings(golds))), expected.clone())
        }
        ("extract", [_name, transcript, expected]) => {
            (serde_json::json!(compat::extract_documents(string(transcript))), expected.clone())
        }
        ("action", [input, kind, query, complete, ids]) => {
            let parsed = compat::parse_action(string(input));
            // the expected ids go through the same reader, so that 1.0 and 1 stay apart
            let expected_ids = pyjson::parse(&ids.to_string()).expect("ids are JSON").to_string();
            let query = pyjson::parse(&query.to_string()).expect("the query is JSON").to_string();
            (
                serde_json::json!([
                    parsed.kind.map(compat::Kind::name),
                    parsed.query,
                    parsed.complete,
                    pyjson::Json::Array(parsed.ids).to_string()
                ]),
                serde_json::json!([kind, query, complete, expected_ids]),
            )
        }
        ("normalize" | "span" | "em" | "extract" | "action", _) => return Err("has the wrong number of fields".into()),
        _ => return Err("is of a kind this test does not know".into()),
    })
}

#[test]
fn vectors() {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/s3-vectors.json");
    let path = std::env::var_os("S3_VECTORS").map_or(own, PathBuf::from);
    let file = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let groups: std::collections::BTreeMap<String, Vec<Vec<Value>>> =
        serde_json::from_str(&file).expect("an object of lists of vectors");
    let mut wrong = Vec::new();
    let mut total = 0;
    for (key, vectors) in &groups {
        if vectors.is_empty() && run(key, &[]).is_err_and(|why| why.contains("does not know")) {
            wrong.push(format!("{key}: a kind this test does not know"));
        }
        for vector in vectors {
            total += 1;
            match run(key, vector) {
                Ok((found, expected)) if found == expected => {}
                Ok((found, expected)) => wrong
                    .push(format!("{key} {}\n  expected {expected}\n  found    {found}", Value::from(vector.clone()))),
                Err(why) => wrong.push(format!("{key} {} {why}", Value::from(vector.clone()))),
            }
        }
    }
    assert!(total > 0, "{} holds no vector", path.display());
    assert!(wrong.is_empty(), "{} of {total} vectors are wrong:\n{}", wrong.len(), wrong.join("\n"));
    println!("{total} vectors hold ({})", path.display());
}

#[test]
fn the_reference_beyond_the_file() {
    let action = |text: &str| {
        let parsed = compat::parse_action(text);
        (parsed.kind.map_or("none", compat::Kind::name), parsed.query)
    };
    for (text, kind, query) in [
        (r#"<query>{"query": "x", "score": NaN}</query>"#, "search", "x"),
        (r#"<query>{"query": "x", "query": "y"}</query>"#, "search", "y"),
        (r#"<query>{"query": "caf\u00e9"}</query>"#, "search", "café"),
        (r#"<query>{"query": true}</query>"#, "search", r#"{"query": true}"#),
        (r#"<query>{"query": null}</query>"#, "search", r#"{"query": null}"#),
        (r#"<query>{"query": {"query": "x"}}</query>"#, "search", r#"{"query": {"query": "x"}}"#),
        (r#"<query>{"query": [5, "b"]}</query>"#, "search", "5"),
        (r#"<query>{"query": ""}</query>"#, "search", ""),
        (r#"<query>{"query": "x",}</query>"#, "search", r#"{"query": "x",}"#),
        ("<query>a", "none", ""),
        ("<query></query>", "search", ""),
        ("<search_complete> Y\u{a0}</search_complete>", "search_complete", ""),
        ("<search_complete>False</search_complete><search_complete>True</search_complete>", "none", ""),
    ] {
        assert_eq!(action(text), (kind, query.to_owned()), "{text}");
    }
    let ids = |text: &str| pyjson::Json::Array(compat::parse_action(text).ids).to_string();
    assert_eq!(ids("<important_info>[1, \"2\", NaN]</important_info>"), "[1, '2', nan]");
    assert_eq!(ids("<important_info>1, 2</important_info>"), "[]");
    assert_eq!(ids("<important_info>{\"a\": 1}</important_info>"), "[]");

    assert_eq!(compat::kept_response("{\"query\": \"x\"}</query> tail"), "<query>\n{\"query\": \"x\"}</query>");
    assert_eq!(compat::kept_response("<query>a</query><query>b</query>"), "<query>a</query>");
    assert_eq!(compat::kept_response("no query"), "no query");
    assert_eq!(compat::selected_ids("Doc 3, 3, 08, 12, -1, 2.5, 99999999999999"), [3, 8, 1, 2, 5]);
    assert_eq!(compat::executed_searches(3), 4);

    let titles = |text: &str| compat::extract_documents(text).into_iter().map(|(title, _)| title).collect::<Vec<_>>();
    assert_eq!(titles("<information>DOC2 ( title: \"A\") x doc 3(TITLE: B) y</information>"), ["B"]);
    assert_eq!(titles("<information>DOC2 (title: \"A\") x doc 3(TITLE: B) y</information>"), ["A", "B"]);
    // a header that cannot be read still ends the text before it
    assert_eq!(
        compat::extract_documents("<information>Doc 1(Title: A) x Doc 2(Title: \"\"Q\" r\") y</information>"),
        [("A".to_owned(), "x".to_owned())]
    );
    // a selection inside a block binds to nothing, and one block is bound once
    let block = "<information>Doc 1(Title: A) a</information>";
    assert_eq!(
        titles(&format!("{block}<information>Doc 1(Title: B) b<important_info>[1]</important_info></information>")),
        ["A", "B"]
    );
    assert_eq!(titles(&format!("<important_info>[1]</important_info>{block}")), ["A"]);
    assert_eq!(titles(&format!("{block}<important_info>none</important_info>")), [] as [&str; 0]);
    assert_eq!(
        compat::render_context(&[("A".into(), "x".into()), ("B\"".into(), "y".into())]),
        "Doc 1 (Title: A)\nx\n\nDoc 2 (Title: B)\ny\n\n"
    );

    assert!(compat::has_span("", &["the".into()]) && compat::exact_match("?", &["the".into()]));
    assert!(!score::has_span("", &["the".into()]) && !score::exact_match("?", &["the".into()]));
}
