//! The final tables.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};
use serde::Deserialize;
use std::time::Duration;

/// What the evaluator leaves in its outcome's summary.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Summary {
    /// One row per arm and dataset (`all` for all together).
    pub table: Vec<Row>,
    /// Columns; those that a table always had where it does not say.
    pub metrics: Vec<String>,
    /// The reference's published figures beside this run's.
    pub published: Vec<Beside>,
    /// Why the two differ.
    pub published_reasons: Vec<String>,
    /// Sentences for people: what the run is worth, what it can detect.
    pub notes: Vec<String>,
    /// The report page.
    pub report: Option<String>,
}

/// An arm's figure and the paper's, in points.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Beside {
    /// The arm.
    pub arm: String,
    /// The dataset.
    pub dataset: String,
    /// Method and generator of the paper.
    pub paper: String,
    /// The paper's table.
    pub table: u8,
    /// The run's GenAcc.
    pub ours: f64,
    /// The paper's.
    pub theirs: f64,
    /// The run's EM.
    pub our_em: f64,
    /// The paper's.
    pub their_em: f64,
}

/// The paper's figures beside the run's; a line each, the reasons below.
pub fn beside(summary: &Summary) -> Vec<String> {
    if summary.published.is_empty() {
        return Vec::new();
    }
    let mut lines = vec!["Beside the paper (arXiv 2505.14146), GenAcc and EM in points:".to_owned()];
    for one in &summary.published {
        let Beside { arm, dataset, paper, table, ours, theirs, our_em, their_em } = one;
        lines.push(format!(
            "  {arm} on {dataset}: {ours:.1} ({our_em:.1}); paper {theirs:.1} ({their_em:.1}), {paper}, table {table}"
        ));
    }
    lines.push("They are not the same measurement:".into());
    lines.extend(summary.published_reasons.iter().map(|reason| format!("  {reason}")));
    lines
}

/// A figure with its interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// One arm on one dataset.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The arm.
    pub arm: String,
    /// The dataset.
    pub dataset: String,
    /// Questions.
    pub n: u64,
    /// Share of right answers.
    pub gen_acc: Estimate,
    /// Share of exact matches.
    pub em: Estimate,
    /// Mean token F1.
    pub f1: Estimate,
    /// Gain over the baseline arm; none for itself.
    #[serde(default)]
    pub gbr: Option<Estimate>,
    /// Searches per question.
    #[serde(default)]
    pub searches: f64,
    /// Passages per question.
    #[serde(default)]
    pub passages: f64,
    /// Seconds that the arm took.
    #[serde(default)]
    pub seconds: f64,
    /// A gold answer's span stands in the answer.
    #[serde(default)]
    pub span: Option<Estimate>,
    /// The judge alone.
    #[serde(default)]
    pub judge: Option<Estimate>,
    /// Evidence recall.
    #[serde(default)]
    pub evidence: Option<Estimate>,
    /// Tokens that the searcher wrote, per question.
    #[serde(default)]
    pub tokens: f64,
    /// Cost of the generator's tokens.
    #[serde(default)]
    pub cost: Option<f64>,
}

/// What stands in a table where nothing is chosen.
const USUAL: [&str; 7] = ["GenAcc", "ExactMatch", "F1", "Gbr", "Searches", "Passages", "Latency"];

/// A column's title and an arm's figure in it; none for a name that this version does not know.
fn column(metric: &str, row: &Row, judged: bool) -> Option<(&'static str, String)> {
    let known =
        |estimate: Option<Estimate>, signed| estimate.map_or_else(|| "–".to_owned(), |one| interval(one, signed));
    Some(match metric {
        "GenAcc" => (if judged { "GenAcc" } else { "GenAcc (span)" }, interval(row.gen_acc, false)),
        "ExactMatch" => ("EM", interval(row.em, false)),
        "F1" => ("F1", interval(row.f1, false)),
        "Gbr" => ("GBR", known(row.gbr, true)),
        "Span" => ("span", known(row.span, false)),
        "JudgeAccuracy" => ("judge", known(row.judge, false)),
        "EvidenceRecall" => ("evidence", known(row.evidence, false)),
        "Searches" => ("searches", format!("{:.2}", row.searches)),
        "Passages" => ("passages", format!("{:.2}", row.passages)),
        "Tokens" => ("tokens", format!("{:.0}", row.tokens)),
        "Latency" => ("time", crate::text::duration(Duration::try_from_secs_f64(row.seconds).unwrap_or_default())),
        "Cost" => ("cost", row.cost.map_or_else(|| "–".into(), |cost| format!("{cost:.4}"))),
        _ => return None,
    })
}

/// Draws the table of one evaluation. `judged` names the GenAcc column by what decides.
pub fn draw(summary: &Summary, judged: bool) -> String {
    let several = summary.table.iter().any(|row| row.dataset != summary.table[0].dataset);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let chosen: Vec<&str> = if summary.metrics.is_empty() {
        USUAL.to_vec()
    } else {
        // what the searcher wrote stands on the page; eight columns with intervals do not fit a narrow terminal
        let usual = summary.metrics.len() > USUAL.len();
        summary.metrics.iter().map(String::as_str).filter(|name| !usual || *name != "Tokens").collect()
    };
    let mut header = vec!["arm"];
    if several {
        header.push("dataset");
    }
    header.push("n");
    let titles = chosen.iter().filter_map(|metric| column(metric, summary.table.first()?, judged));
    header.extend(titles.map(|(title, _)| title));
    table.set_header(header);
    let mut last_dataset = None;
    for row in &summary.table {
        let mut cells = vec![Cell::new(&row.arm)];
        if several {
            // A dataset's name stands once, at its first arm.
            let first = last_dataset != Some(&row.dataset);
            cells.push(Cell::new(if first { row.dataset.as_str() } else { "" }));
            last_dataset = Some(&row.dataset);
        }
        let figures = chosen.iter().filter_map(|metric| column(metric, row, judged)).map(|(_, text)| text);
        let figures = std::iter::once(row.n.to_string()).chain(figures);
        cells.extend(figures.map(|text| Cell::new(text).set_alignment(CellAlignment::Right)));
        table.add_row(cells);
    }
    let rule = "─".repeat(table.lines().map(|line| line.trim_end().chars().count()).max().unwrap_or(0));
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    let (header, rows) = lines.split_at(1);
    format!("{}\n{rule}\n{}\n{rule}", header.join("\n"), rows.join("\n"))
}

fn interval(estimate: Estimate, signed: bool) -> String {
    let number = |value: f64| {
        // Minus as typeset, and no negative zero.
        let value = if value.abs() < 0.0005 { 0.0 } else { value };
        let text = if signed { format!("{value:+.3}") } else { format!("{value:.3}") };
        text.replace('-', "−")
    };
    // On two lines, so that four of them fit beside each other on a narrow terminal.
    format!("{}\n[{}, {}]", number(estimate.value), number(estimate.low), number(estimate.high))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn a_table_shows_gains_signed_and_the_baseline_without() {
        let text = r#"{"table":[
            {"arm":"direct","dataset":"all","n":48,"genAcc":{"value":0.1,"low":0.03,"high":0.2},"em":{"value":0,"low":0,"high":0.07},
             "f1":{"value":0.05,"low":0.01,"high":0.1},"gbr":{"value":-0.15,"low":-0.3,"high":-0.0001},"searches":0,"passages":0,"seconds":12.3},
            {"arm":"rag-3","dataset":"all","n":48,"genAcc":{"value":0.25,"low":0.14,"high":0.39},"em":{"value":0.2,"low":0.1,"high":0.3},
             "f1":{"value":0.25,"low":0.1,"high":0.4},"gbr":null,"searches":0,"passages":3,"seconds":61.0}],
            "notes":["a"],"report":null}"#;
        let summary: Summary = serde_json::from_str(text).unwrap();
        let drawn = draw(&summary, false);
        assert!(drawn.contains("GenAcc (span)") && !drawn.contains("dataset"), "{drawn}");
        assert!(drawn.contains("−0.150") && drawn.contains("[−0.300, +0.000]"), "{drawn}");
        assert!(drawn.contains('–') && drawn.contains("1 min 01 s"), "{drawn}");
        let chosen = Summary { metrics: vec!["F1".into(), "Cost".into(), "Later".into()], ..summary };
        let drawn = draw(&chosen, false);
        assert!(drawn.contains("cost") && !drawn.contains("GenAcc") && !drawn.contains("Later"), "{drawn}");
    }
}
