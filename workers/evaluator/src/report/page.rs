//! The template around the data.

use super::{Attribution, Page, blocks, data};
use crate::error::EvalError;
use crate::matrix;
use crate::statistics::{Interval, correction};
use crate::summary::{ALL, Pair, Summary, TableRow};
use minijinja::{Environment, context};
use s3_config::Metric;
use serde::Serialize;
use serde_json::Value;

/// A figure as it is drawn: percent text, and its place on the column's scale (0 to 100).
#[derive(Serialize)]
struct Figure {
    value: String,
    low: String,
    high: String,
    at: f64,
    from: f64,
    width: f64,
    zero: Option<f64>,
}

#[derive(Serialize)]
struct Row {
    arm: String,
    dataset: String,
    part: bool,
    n: usize,
    masked: usize,
    cells: Vec<Cell>,
}

/// A column's cell: a figure with its interval, or a text.
#[derive(Serialize)]
struct Cell {
    label: String,
    drawn: bool,
    figure: Option<Figure>,
    text: String,
}

#[derive(Serialize)]
struct Test {
    arm: String,
    against: String,
    n: usize,
    wins: usize,
    losses: usize,
    difference: Figure,
    p: String,
    p_corrected: String,
    shown: bool,
}

#[derive(Serialize)]
struct Fact {
    name: String,
    value: String,
    digest: bool,
}

pub(super) fn html(page: &Page<'_>) -> Result<String, EvalError> {
    let mut environment = Environment::new();
    environment.add_template("report.html", include_str!("page.html"))?;
    let summary = page.summary;
    let top = |of: &dyn Fn(&TableRow) -> f64| summary.table.iter().map(of).fold(0.05, f64::max);
    let share = top(&|row| {
        let more = [row.span, row.judge, row.evidence].into_iter().flatten().map(|one| one.high);
        more.fold(row.gen_acc.high.max(row.em.high).max(row.f1.high), f64::max)
    });
    let gain = top(&|row| row.gbr.map_or(0.0, |gbr| gbr.low.abs().max(gbr.high.abs())));
    let spread = summary.pairs.iter().map(|pair| pair.difference).map(|d| d.low.abs().max(d.high.abs()));
    let spread = spread.fold(0.05, f64::max);
    let rows: Vec<Row> = summary.table.iter().map(|row| table_row(row, summary, share, gain)).collect();
    let tests: Vec<Test> = summary.pairs.iter().map(|pair| test(pair, spread, summary.confidence)).collect();
    let several = summary.table.iter().any(|row| row.dataset != ALL);
    let datasets: std::collections::BTreeSet<&str> =
        page.results.questions.questions.iter().map(|question| question.dataset.as_str()).collect();
    let arms = summary.table.iter().filter(|row| row.dataset == ALL).count();
    let columns: Vec<(String, bool)> =
        summary.metrics.iter().map(|metric| (label(*metric, summary), drawn(*metric))).collect();
    let rendered = environment.get_template("report.html")?.render(context! {
        css => include_str!("page.css"),
        js => include_str!("page.js"),
        data => blocks::elements(&data::of(page))?,
        questions => page.results.questions.questions.len(),
        datasets => datasets.into_iter().collect::<Vec<_>>().join(", "),
        eligible => page.results.questions.eligible,
        arms,
        smoke => summary.notes.first().filter(|note| note.contains("smoke run")),
        notes => summary.notes.iter().filter(|note| !note.contains("smoke run")).collect::<Vec<_>>(),
        accuracy => summary.accuracy,
        baseline => summary.baseline,
        level => format!("{:.0} %", summary.confidence * 100.0),
        several,
        columns,
        rows,
        tests,
        correction => correction::name(summary.correction),
        published => summary.published,
        published_reasons => summary.published_reasons,
        facts => facts(page)?,
        attribution => page.attribution.iter().map(shortened).collect::<Vec<_>>(),
    })?;
    Ok(rendered)
}

fn table_row(row: &TableRow, summary: &Summary, share: f64, gain: f64) -> Row {
    let cell = |metric: &Metric| {
        let share = |interval| Some(figure(interval, 0.0, share, false));
        let gain = |interval| figure(interval, -gain, gain, true);
        let (figure, text) = match metric {
            Metric::GenAcc => (share(row.gen_acc), None),
            Metric::ExactMatch => (share(row.em), None),
            Metric::F1 => (share(row.f1), None),
            Metric::Gbr => (row.gbr.map(gain), None),
            Metric::Span => (row.span.and_then(share), None),
            Metric::JudgeAccuracy => (row.judge.and_then(share), None),
            Metric::EvidenceRecall => (row.evidence.and_then(share), None),
            Metric::Latency => (None, row.seconds.map(duration)),
            Metric::Tokens => (None, Some(format!("{:.0}", row.tokens))),
            Metric::Searches | Metric::Passages | Metric::Cost => (None, matrix::cell(*metric, row, summary)),
        };
        let drawn = drawn(*metric);
        Cell { label: label(*metric, summary), drawn, figure, text: text.unwrap_or_else(|| "–".into()) }
    };
    Row {
        arm: row.arm.clone(),
        dataset: row.dataset.clone(),
        part: row.dataset != ALL,
        n: row.n,
        masked: row.masked,
        cells: summary.metrics.iter().map(cell).collect(),
    }
}

/// Whether a column has intervals.
fn drawn(metric: Metric) -> bool {
    use Metric::{EvidenceRecall, ExactMatch, F1, Gbr, GenAcc, JudgeAccuracy, Span};
    matches!(metric, GenAcc | ExactMatch | F1 | Gbr | Span | JudgeAccuracy | EvidenceRecall)
}

fn label(metric: Metric, summary: &Summary) -> String {
    match metric {
        Metric::Tokens => "Tokens".into(),
        Metric::Latency => "Time".into(),
        other => matrix::name(other, summary),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7200 => format!("{} min", (whole + 30) / 60),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

fn test(pair: &Pair, spread: f64, confidence: f64) -> Test {
    Test {
        arm: pair.arm.clone(),
        against: pair.against.clone(),
        n: pair.n,
        wins: pair.wins,
        losses: pair.losses,
        difference: figure(pair.difference, -spread, spread, true),
        p: p_value(pair.p),
        p_corrected: p_value(pair.p_corrected),
        shown: pair.p_corrected <= 1.0 - confidence,
    }
}

fn p_value(p: f64) -> String {
    if p < 0.001 { "< 0.001".into() } else { format!("{p:.3}") }
}

/// Points of a hundred with one decimal; a real minus, and a sign where a difference is meant.
fn points(value: f64, signed: bool) -> String {
    let value = value * 100.0;
    let text = format!("{:.1}", value.abs());
    match (text == "0.0", value < 0.0, signed) {
        (false, true, _) => format!("−{text}"),
        (false, false, true) => format!("+{text}"),
        _ => text,
    }
}

fn figure(interval: Interval, from: f64, to: f64, signed: bool) -> Figure {
    let place = |value: f64| (((value - from) / (to - from)).clamp(0.0, 1.0) * 1000.0).round() / 10.0;
    Figure {
        value: points(interval.value, signed),
        low: points(interval.low, signed),
        high: points(interval.high, signed),
        at: place(interval.value),
        from: place(interval.low),
        width: place(interval.high) - place(interval.low),
        zero: (from < 0.0).then(|| place(0.0)),
    }
}

/// What ran: digests and settings, from the identity.
fn facts(page: &Page<'_>) -> Result<Vec<Fact>, EvalError> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let fact = |name: &str, value: String, digest| Fact { name: name.to_owned(), value, digest };
    let identity = page.identity;
    let mut facts = vec![
        fact("Results", page.results.digest()?, true),
        fact("Questions", page.results.questions.sha256.clone(), true),
        fact("Index", text(&identity["index"]), true),
        fact("Generator", text(&identity["generator"]), true),
    ];
    for (key, arm) in identity.as_object().into_iter().flatten() {
        let Some(name) = key.strip_prefix("arm ") else { continue };
        for (what, label) in [("model", "searcher"), ("adapter", "adapter")] {
            if let Some(digest) = arm[what].as_str() {
                facts.push(fact(&format!("{name}: {label}"), digest.to_owned(), true));
            }
        }
    }
    let set = &page.results.questions;
    let judge = identity["answers"]["judge"].as_str().unwrap_or("none (span only)");
    facts.push(fact("Judge", judge.to_owned(), false));
    facts.push(fact("Seed", set.seed.to_string(), false));
    facts.push(fact(
        "Choice",
        format!(
            "{} of {} questions; {} in training files, {} without an answer in the corpus left out",
            set.questions.len(),
            set.considered,
            set.in_training,
            set.unanswerable
        ),
        false,
    ));
    Ok(facts)
}

fn shortened(source: &Attribution) -> Attribution {
    let sha256 = source.sha256.chars().take(16).collect();
    Attribution { sha256, ..source.clone() }
}
