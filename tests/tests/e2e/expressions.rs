//! Every expression of the chart's dashboards and alerts, as Prometheus is asked.

use serde_json::Value;
use std::path::Path;

/// One query.
pub struct Expression {
    /// Dashboard and panel, or the alert.
    pub place: String,
    /// Without Grafana's variables; of an alert, whether it fires.
    pub query: String,
    /// The event that fills it, where it may be empty.
    pub until: Option<String>,
}

fn chart(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/s3-operator/files").join(path)
}

/// All of them.
pub fn all() -> Vec<Expression> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(chart("dashboards")).unwrap() {
        let json: Value = serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap();
        for panel in json["panels"].as_array().unwrap() {
            let about = panel["description"].as_str().unwrap();
            for target in panel["targets"].as_array().unwrap() {
                all.push(Expression {
                    place: format!("{} / {}", json["title"].as_str().unwrap(), panel["title"].as_str().unwrap()),
                    query: bound(target["expr"].as_str().unwrap()),
                    until: about.split_once("Empty until ").map(|(_, event)| event.to_owned()),
                });
            }
        }
    }
    let rules = std::fs::read_to_string(chart("alerts.yaml")).unwrap();
    let mut lines = rules.lines().map(str::trim);
    let mut until = None;
    while let Some(line) = lines.next() {
        if let Some(event) = line.strip_prefix("# empty until ") {
            until = Some(event.to_owned());
        }
        let Some(name) = line.strip_prefix("- alert: ") else { continue };
        let expression = lines.nth(1).unwrap();
        // the threshold is the last comparison: with `bool` the answer is 0 where it does not fire
        let at = expression.rfind(' ').unwrap();
        let query = format!("{} bool{}", &expression[..at], &expression[at..]);
        all.push(Expression { place: format!("alert {name}"), query, until: until.take() });
    }
    all
}

/// Grafana's variables as it would fill them.
fn bound(expression: &str) -> String {
    [
        ("$__rate_interval", "1m"),
        ("$__range", "30m"),
        ("$namespace", ".*"),
        ("$pod", ".*"),
        ("$prompt_price", "0.15"),
        ("$completion_price", "0.60"),
    ]
    .iter()
    .fold(expression.to_owned(), |text, (from, to)| text.replace(from, to))
}
