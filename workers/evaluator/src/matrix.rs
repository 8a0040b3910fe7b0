//! Arms × datasets: one table a reader can cite.

use crate::export::frame::{Cell, Column, Frame, Kind};
use crate::statistics::Interval;
use crate::summary::{ALL, Pair, Summary, TableRow};
use s3_config::Metric;

/// A row an arm and metric, a column a dataset (the last one all together). A cell is the figure with its interval in
/// points of 100; `†` marks accuracies whose paired test against the baseline shows a difference at the level.
pub fn matrix(summary: &Summary) -> Frame {
    let mut datasets: Vec<&str> = Vec::new();
    for row in summary.table.iter().filter(|row| row.dataset != ALL) {
        if !datasets.contains(&row.dataset.as_str()) {
            datasets.push(&row.dataset);
        }
    }
    datasets.push(ALL);
    let mut frame = Frame::new(&[("arm", Kind::Text), ("metric", Kind::Text)]);
    for dataset in &datasets {
        let questions = summary.table.iter().filter(|row| row.dataset == *dataset).map(|row| row.n).max().unwrap_or(0);
        frame.columns.push(Column { name: format!("{dataset} (n = {questions})"), kind: Kind::Text });
    }
    let mut arms: Vec<&str> = Vec::new();
    for row in &summary.table {
        if !arms.contains(&row.arm.as_str()) {
            arms.push(&row.arm);
        }
    }
    for arm in arms {
        for metric in &summary.metrics {
            let mut cells: Vec<Cell> = vec![arm.into(), name(*metric, summary).into()];
            let rows = datasets.iter().map(|dataset| find(summary, arm, dataset));
            let texts: Vec<Option<String>> = rows.map(|row| row.and_then(|row| cell(*metric, row, summary))).collect();
            if texts.iter().all(Option::is_none) {
                continue;
            }
            cells.extend(texts.into_iter().map(Cell::from));
            frame.rows.push(cells);
        }
    }
    frame
}

fn find<'a>(summary: &'a Summary, arm: &str, dataset: &str) -> Option<&'a TableRow> {
    summary.table.iter().find(|row| row.arm == arm && row.dataset == dataset)
}

/// As a column is named.
pub fn name(metric: Metric, summary: &Summary) -> String {
    match metric {
        Metric::GenAcc => summary.accuracy.clone(),
        Metric::ExactMatch => "EM".into(),
        Metric::F1 => "F1".into(),
        Metric::Gbr => "GBR".into(),
        Metric::Span => "Span".into(),
        Metric::JudgeAccuracy => "Judge alone".into(),
        Metric::EvidenceRecall => "Evidence recall".into(),
        Metric::Searches => "Searches".into(),
        Metric::Passages => "Passages".into(),
        Metric::Tokens => "Tokens written / words read".into(),
        Metric::Latency => "Seconds p50 / p99".into(),
        Metric::Cost => "Cost".into(),
    }
}

/// One figure of one arm on one dataset; none where it is not known.
pub fn cell(metric: Metric, row: &TableRow, summary: &Summary) -> Option<String> {
    Some(match metric {
        Metric::GenAcc => format!("{}{}", points(row.gen_acc, false), mark(summary, row)),
        Metric::ExactMatch => points(row.em, false),
        Metric::F1 => points(row.f1, false),
        Metric::Gbr => points(row.gbr?, true),
        Metric::Span => points(row.span?, false),
        Metric::JudgeAccuracy => points(row.judge?, false),
        Metric::EvidenceRecall => points(row.evidence?, false),
        Metric::Searches => format!("{:.2}", row.searches),
        Metric::Passages => format!("{:.2}", row.passages),
        Metric::Tokens => {
            format!(
                "{:.0} / {}",
                row.tokens,
                row.words.map_or_else(|| "–".into(), |words| format!("{:.0}", words.mean))
            )
        }
        Metric::Latency => row.latency.map(|seconds| format!("{:.2} / {:.2}", seconds.p50, seconds.p99))?,
        Metric::Cost => format!("{:.4}", row.cost?),
    })
}

/// `†` where the paired test against the baseline, in this dataset, is below the level after correction.
fn mark(summary: &Summary, row: &TableRow) -> &'static str {
    let shown = |pair: &&Pair| {
        let names = [pair.arm.as_str(), pair.against.as_str()];
        let baseline = summary.baseline.as_deref().unwrap_or_default();
        pair.dataset == row.dataset
            && row.arm != baseline
            && names.contains(&row.arm.as_str())
            && names.contains(&baseline)
    };
    let pair = summary.pairs.iter().chain(&summary.by_dataset).find(shown);
    if pair.is_some_and(|pair| pair.p_corrected <= 1.0 - summary.confidence) { " †" } else { "" }
}

fn points(interval: Interval, signed: bool) -> String {
    let one = |value: f64| {
        let value = value * 100.0;
        let text = if signed { format!("{value:+.1}") } else { format!("{value:.1}") };
        let text = if matches!(text.as_str(), "-0.0" | "+0.0") { "0.0".into() } else { text };
        text.replace('-', "−")
    };
    format!("{} [{}, {}]", one(interval.value), one(interval.low), one(interval.high))
}
