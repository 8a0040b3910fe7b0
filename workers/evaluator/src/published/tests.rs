//! The file is the paper's, and a run finds its rows in it.
#![allow(clippy::unwrap_used, clippy::float_cmp)]

use super::*;
use crate::report::samples;
use crate::summary::summarise;
use s3_config::DatasetConfig;

#[test]
fn the_rows_are_the_papers() {
    let all: Vec<Published> = serde_json::from_str(include_str!("paper.json")).unwrap();
    assert_eq!(*PUBLISHED, all);
    let count = |table| all.iter().filter(|row| row.table == table).count();
    assert_eq!((count(1), count(2), count(3), count(6)), (33, 19, 5, 12));
    for row in &all {
        let sets: Vec<&str> = SIZES.iter().map(|(name, _)| *name).collect();
        assert!(row.figures.keys().all(|set| sets.contains(&set.as_str())), "{row:?}");
        assert_eq!(row.figures.len(), if row.table == 2 { 5 } else { 6 });
        assert!(row.figures.values().all(|(acc, em)| (0.0..=100.0).contains(acc) && (0.0..=100.0).contains(em)));
    }
    // the headline: the mean of s3's row with Claude-3-Haiku is the abstract's 58.9
    let s3 = all.iter().find(|row| row.table == 1 && row.method == "S3" && row.generator == "Claude-3-Haiku").unwrap();
    let mean = s3.figures.values().map(|(acc, _)| acc).sum::<f64>() / 6.0;
    assert!((mean - 58.9).abs() < 0.1, "{mean}");
}

#[test]
fn a_run_stands_beside_them() {
    let mut config = samples::config();
    let results = samples::results(&config);
    let dataset = |name: &str, set: Option<&str>| DatasetConfig {
        name: name.into(),
        set: set.map(str::to_owned),
        ..DatasetConfig::default()
    };
    config.datasets = vec![dataset("a", Some("Nq")), dataset("b", None)];
    let summary = summarise(&config, &results).unwrap();
    let find = |arm: &str| summary.published.iter().filter(|one| one.arm == arm).collect::<Vec<_>>();
    let s3 = find("s3");
    assert_eq!(s3.len(), 3, "three generators, one set that the paper has: {s3:?}");
    assert!(s3.iter().all(|one| one.dataset == "a" && one.ours == 100.0));
    assert!(s3.iter().any(|one| one.theirs == 70.5 && one.their_em == 3.2 && one.paper.contains("Haiku")));
    assert_eq!(find("direct").len(), 3);
    assert_eq!(find("rag").len(), 6, "BM25 and E5");
    let reasons = summary.published_reasons.join("\n");
    assert!(reasons.contains("3 of a; the paper's set has 3610") && reasons.contains("Claude-3-Haiku"), "{reasons}");
    assert_eq!(frame(&summary).rows.len(), 12);
    config.datasets = vec![dataset("mine", None)];
    let summary = summarise(&config, &results).unwrap();
    assert!(summary.published.is_empty() && summary.published_reasons.is_empty());
}
