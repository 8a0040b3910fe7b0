//! The page of all metrics, `docs/metrics.md`, made from the catalogue.

use s3_telemetry::{CATALOGUE, Metric, MetricKind};
use std::fmt::Write as _;

/// Prefixes of names, and who serves them.
const GROUPS: [(&str, &str, &str); 6] = [
    ("s3_operator_", "Operator", "by `s3-operator run`"),
    ("s3_training_", "Training", "by the pods of a training job"),
    ("s3_eval_", "Evaluation", "by the pods of an evaluation"),
    ("s3_retriever_", "Retriever", "by the servers of an index"),
    ("s3_gateway_", "Gateway", "by the gateways"),
    ("s3_", "Calls between workers and reports", "by every worker that makes them"),
];

fn kind(metric: &Metric) -> &'static str {
    match metric.kind {
        MetricKind::Counter => "counter",
        MetricKind::Gauge => "gauge",
        MetricKind::Histogram => "histogram",
    }
}

/// The page as Markdown.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Metrics\n\nMade by `s3-operator explain-metrics --output docs/metrics.md` from `workers/telemetry/src/catalogue.rs`; do not \
         edit.\n\nEvery pod serves them at `/metrics` on port 9464. Scraping adds `namespace` and `pod`. Dashboards and alerts of the chart\n\
         use no others ([Kubernetes](kubernetes.md)).\n",
    );
    let mut left: Vec<&Metric> = CATALOGUE.iter().collect();
    for (prefix, title, by) in GROUPS {
        let (mine, others): (Vec<&Metric>, Vec<&Metric>) =
            left.into_iter().partition(|metric| metric.name.starts_with(prefix));
        left = others;
        // writing to a String cannot fail
        let _ = write!(page, "\n## {title}\n\nServed {by}.\n\n| metric | kind | labels | what |\n|---|---|---|---|\n");
        for metric in mine {
            let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
            let _ =
                writeln!(page, "| `{}` | {} | {} | {} |", metric.name, kind(metric), labels.join(", "), metric.help);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_page_is_the_generated_one() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/metrics.md");
        let committed = std::fs::read_to_string(file).unwrap();
        assert!(
            committed == markdown(),
            "docs/metrics.md is old; run: s3-operator explain-metrics --output docs/metrics.md"
        );
    }

    #[test]
    fn every_metric_is_on_it() {
        let page = markdown();
        for metric in CATALOGUE {
            assert_eq!(page.matches(&format!("| `{}` |", metric.name)).count(), 1, "{}", metric.name);
        }
    }
}
