//! Dashboards and alerts of the chart ask only for metrics and labels of the catalogue, and show all of it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use s3_telemetry::{CATALOGUE, Metric, MetricKind};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Labels that scraping adds.
const ADDED: [&str; 3] = ["namespace", "pod", "le"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    let path = repository().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The metric that a word of an expression names.
fn known(word: &str) -> Option<&'static Metric> {
    let plain = CATALOGUE.iter().find(|metric| metric.name == word && metric.kind != MetricKind::Histogram);
    plain.or_else(|| {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end))?;
        CATALOGUE.iter().find(|metric| metric.name == base && metric.kind == MetricKind::Histogram)
    })
}

/// Words of letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// Every `metric{label…}` of an expression: the metric and the names of its labels.
fn selectors(expression: &str) -> Vec<(&'static Metric, Vec<String>)> {
    let mut all = Vec::new();
    let mut rest = expression;
    while let Some(at) = rest.find("s3_") {
        rest = &rest[at..];
        let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let metric = known(name).unwrap_or_else(|| panic!("{name} is not in the catalogue: {expression}"));
        let labels = match after.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
            Some((inside, _)) => inside
                .split(',')
                .filter_map(|part| part.split(['=', '!']).next())
                .map(|label| label.trim().to_owned())
                .collect(),
            None => Vec::new(),
        };
        all.push((metric, labels));
        rest = after;
    }
    all
}

fn check(place: &str, expression: &str, seen: &mut BTreeSet<&'static str>) {
    let selectors = selectors(expression);
    assert!(!selectors.is_empty(), "{place} asks for no metric: {expression}");
    for (metric, labels) in &selectors {
        seen.insert(metric.name);
        for label in labels {
            assert!(
                metric.labels.contains(&label.as_str()) || ADDED.contains(&label.as_str()),
                "{place}: {} has no label {label}: {expression}",
                metric.name
            );
        }
    }
    // what is grouped by must be a label of some metric there
    for group in expression.split("by (").skip(1) {
        for label in words(group.split(')').next().unwrap()) {
            assert!(
                ADDED.contains(&label) || selectors.iter().any(|(metric, _)| metric.labels.contains(&label)),
                "{place}: nothing has the label {label}: {expression}"
            );
        }
    }
}

/// The alerts' names and expressions; the file is flat enough to be read by lines.
fn alerts() -> Vec<(String, String)> {
    let text = read("charts/s3-operator/files/alerts.yaml");
    let mut all: Vec<(String, String)> = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.trim().strip_prefix("- alert: ") {
            assert_eq!(lines.next().map(str::trim), Some("expr: >-"), "{name}");
            all.push((name.to_owned(), lines.next().unwrap().trim().to_owned()));
        }
    }
    all
}

#[test]
fn dashboards_and_alerts_ask_for_the_catalogue_and_show_all_of_it() {
    let mut seen = BTreeSet::new();
    let folder = repository().join("charts/s3-operator/files/dashboards");
    let mut dashboards = 0;
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        dashboards += 1;
        let json: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        for panel in json["panels"].as_array().unwrap() {
            let place = format!("{}: {}", json["title"], panel["title"]);
            assert!(!panel["description"].as_str().unwrap().is_empty(), "{place} says nothing");
            for target in panel["targets"].as_array().unwrap() {
                check(&place, target["expr"].as_str().unwrap(), &mut seen);
            }
        }
    }
    assert_eq!(dashboards, 5);
    for (name, expression) in alerts() {
        check(&name, &expression, &mut seen);
    }
    let unseen: Vec<_> = CATALOGUE.iter().map(|metric| metric.name).filter(|name| !seen.contains(name)).collect();
    assert!(unseen.is_empty(), "no dashboard and no alert shows {unseen:?}");
}

#[test]
fn every_alert_has_a_runbook_and_a_case() {
    let (rules, cases, index) = (
        read("charts/s3-operator/files/alerts.yaml"),
        read("tests/alerts/cases.yaml"),
        read("docs/runbooks/README.md"),
    );
    let alerts = alerts();
    assert!(!alerts.is_empty());
    for (name, expression) in &alerts {
        let page = read(&format!("docs/runbooks/{name}.md"));
        assert!(page.contains(expression), "docs/runbooks/{name}.md tells of another expression than {expression}");
        assert!(rules.contains(&format!("docs/runbooks/{name}.md")), "{name} has no runbook_url");
        assert!(index.contains(&format!("({name}.md)")), "docs/runbooks/README.md does not list {name}");
        for what in ["fires", "is silent"] {
            assert!(cases.contains(&format!("- name: {name} {what}")), "tests/alerts/cases.yaml: {name} {what}");
        }
    }
    for file in std::fs::read_dir(repository().join("docs/runbooks")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let stem = name.trim_end_matches(".md");
        assert!(stem == "README" || alerts.iter().any(|(alert, _)| alert == stem), "{name} belongs to no alert");
    }
}
