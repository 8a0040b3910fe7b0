//! The page escapes what data says, asks nobody for anything, and holds every episode.
#![allow(clippy::unwrap_used)]

use super::samples::{EVIL, config, results};
use super::*;
use crate::summary::summarise;
use std::collections::BTreeMap;

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
    let blocks = html.matches("<script type=\"text/plain\"").count();
    assert_eq!(html.matches("</script>").count(), blocks + 1, "only the page's own scripts end");
    assert_eq!(html.matches("<!--").count(), 0);
    assert!(html.contains("&lt;img"), "shown as text");
    let own = [include_str!("page.css"), include_str!("page.js"), include_str!("page.html")].concat();
    for request in ["http://", "https://", "@import", "url(", "innerHTML", "eval(", "fetch("] {
        let namespace = own.replace("http://www.w3.org/2000/svg", "");
        assert!(!namespace.contains(request), "{request}");
    }
    let (index, episodes, questions) = (block(&html, "index"), block(&html, "episodes-0"), block(&html, "questions-0"));
    assert_eq!(episodes.as_array().unwrap().len(), 6, "every episode, the last question's too");
    assert_eq!(index["questions"]["q"].as_array().unwrap().len(), 6, "questions with equal ids are kept");
    assert_eq!(questions[0]["a"][1], EVIL);
    let turn = &episodes[5]["t"][0];
    assert_eq!((turn["y"].as_str(), &turn["l"]), (Some(EVIL), &serde_json::json!([-500, -250])));
    assert!(turn["i"].is_null(), "no text of its tokens is at hand");
    assert_eq!(episodes[0]["a"][5], "equal to a gold answer");
    let quadrants = (0..6).map(|at| (&index["episodes"]["z"][at], &index["episodes"]["v"][at]));
    assert_eq!(quadrants.filter(|(z, v)| **z == 0 && **v == 1).count(), 2, "gained: questions 1 and 3");
}

/// A block as the page's script opens it.
fn block(html: &str, name: &str) -> Value {
    use base64::Engine;
    let mark = format!("id=\"b-{name}\">");
    let start = html.find(&mark).unwrap() + mark.len();
    let text = &html[start..start + html[start..].find("</script>").unwrap()];
    let packed = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    serde_json::from_reader(flate2::read::DeflateDecoder::new(packed.as_slice())).unwrap()
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
    assert!(pair.p_corrected >= pair.p);
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
    slower.facts.seconds.values_mut().for_each(|seconds| *seconds *= 9.0);
    assert_eq!(slower.digest().unwrap(), results.digest().unwrap());
    let mut other = results.clone();
    if let Some(episode) = other.rows.iter_mut().find_map(|row| row.episode.as_mut()) {
        episode.tokens[2] += 1;
    }
    assert_ne!(other.digest().unwrap(), results.digest().unwrap());
}
