//! Showing how far every component is: bars on a terminal, plain lines elsewhere.

use crate::text::{duration, thousands};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use s3_telemetry::ProgressReport;
use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Without a terminal a line is printed at most this often per component, and at each new phase.
const QUIET: Duration = Duration::from_secs(5);

/// Phase of a component before its first report.
pub const STARTING: &str = "starting";

/// Where progress goes.
pub struct Display {
    width: usize,
    bars: Option<MultiProgress>,
    rows: BTreeMap<String, Row>,
}

struct Row {
    bar: Option<ProgressBar>,
    since: Instant,
    printed: Option<Instant>,
    phase: String,
}

impl Display {
    /// `names` are all components, so that columns line up.
    pub fn new<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { width: names.map(str::len).max().unwrap_or(0), bars, rows: BTreeMap::new() }
    }

    /// Prints a line above the bars.
    pub fn line(&self, text: &str) {
        match &self.bars {
            // `println` fails only when standard error is closed; then nobody reads.
            Some(bars) => drop(bars.println(text)),
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    /// Prints a line that belongs to a component.
    pub fn note(&self, name: &str, text: &str) {
        self.line(&format!("  {name:<width$}  {text}", width = self.width));
    }

    /// A component was started.
    pub fn start(&mut self, name: &str) {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::new_spinner());
            bar.set_prefix(format!("{name:<width$}", width = self.width));
            bar.set_style(style("  {prefix}  {spinner} {msg}"));
            bar.set_message(STARTING);
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            self.note(name, STARTING);
        }
        let since = self.rows.get(name).map_or_else(Instant::now, |row| row.since);
        self.drop_bar(name);
        self.rows
            .insert(name.to_owned(), Row { bar, since, printed: Some(Instant::now()), phase: STARTING.to_owned() });
    }

    /// Shows a component's latest report.
    pub fn update(&mut self, name: &str, report: &ProgressReport) {
        let Some(row) = self.rows.get_mut(name) else { return };
        let figures = figures(report);
        if let Some(bar) = &row.bar {
            if report.total > 0 {
                bar.set_style(style("  {prefix}  {bar:24.cyan/dim} {pos:>6}/{len:<6} {msg}"));
                bar.set_length(report.total);
                bar.set_position(report.done);
            } else {
                bar.set_style(style("  {prefix}  {spinner} {msg}"));
            }
            bar.set_message(format!("{}{figures}", report.phase));
            return;
        }
        let new_phase = row.phase != report.phase;
        if new_phase || row.printed.is_none_or(|at| at.elapsed() >= QUIET) {
            row.phase.clone_from(&report.phase);
            row.printed = Some(Instant::now());
            let count = match (report.done, report.total) {
                (0, 0) => String::new(),
                (done, 0) => format!("  {}", thousands(done)),
                (done, total) => format!("  {}/{}", thousands(done), thousands(total)),
            };
            // The time shows that a long silent phase is alive.
            let line = format!("{}{count}{figures}  {}", report.phase, duration(row.since.elapsed()));
            self.note(name, &line);
        }
    }

    /// A component ended or became ready: its bar gives way to a line.
    pub fn finish(&mut self, name: &str, mark: &str, text: &str) {
        self.drop_bar(name);
        let time = self.rows.remove(name).map(|row| format!("  {}", duration(row.since.elapsed()))).unwrap_or_default();
        self.line(&format!("{mark} {name:<width$}  {text}{time}", width = self.width));
    }

    /// Takes all bars away.
    pub fn clear(&mut self) {
        for row in self.rows.values() {
            if let Some(bar) = &row.bar {
                bar.finish_and_clear();
            }
        }
        self.rows.clear();
    }

    fn drop_bar(&mut self, name: &str) {
        if let (Some(bars), Some(Row { bar: Some(bar), .. })) = (&self.bars, self.rows.get(name)) {
            bar.finish_and_clear();
            bars.remove(bar);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file; a wrong one would show the default style.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner()).progress_chars("━╸─")
}

fn figures(report: &ProgressReport) -> String {
    let texts: Vec<String> =
        report.figures.iter().map(|(name, value)| format!("  {name} {}", number(*value))).collect();
    texts.concat()
}

/// Whole numbers as such, others with three significant places.
pub fn number(value: f64) -> String {
    let whole = value.fract() == 0.0 && value.abs() < 1e9;
    if whole || value.abs() >= 100.0 {
        format!("{value:.0}")
    } else if value.abs() >= 0.001 {
        format!("{value:.3}")
    } else {
        format!("{value:.1e}")
    }
}
