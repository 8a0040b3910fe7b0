//! `s3 report`, and the end of `s3 run`.

use super::run::Record;
use crate::StateArg;
use crate::bind::LocalBinder;
use crate::observe::outcome;
use crate::out::Out;
use crate::state::State;
use crate::table::{Summary, beside, draw};
use crate::text::Problem;
use clap::Args;
use s3_plan::{Component, ComponentKind, Plan, WorkerConfig};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Arguments of `s3 report`.
#[derive(Args)]
pub struct ReportArgs {
    /// Opens the page in the browser.
    #[arg(long)]
    open: bool,
    /// Writes the page again from the stored results.
    #[arg(long)]
    render: bool,
    /// Writes the results as a table instead, while the evaluation still runs those so far: json, csv, parquet,
    /// markdown or latex.
    #[arg(long, value_name = "FORMAT", conflicts_with_all = ["open", "render"])]
    export: Option<String>,
    /// With --export: questions, table, pairs, matrix or contexts; by default questions for programs and the matrix
    /// for readers.
    #[arg(long, requires = "export")]
    what: Option<String>,
    /// With --export: the file; standard output by default.
    #[arg(long, value_name = "FILE", requires = "export")]
    output: Option<PathBuf>,
    /// With --export: which evaluation, where there are several.
    #[arg(long, value_name = "NAME", requires = "export")]
    evaluation: Option<String>,
    #[command(flatten)]
    state: StateArg,
}

/// Prints the tables of a finished run and the place of its page.
pub fn run(args: &ReportArgs) -> Result<ExitCode, Problem> {
    let state = State::existing(&args.state.state)?;
    let record = Record::of(&state)?;
    if let Some(format) = &args.export {
        return export(args, format, &record, &state);
    }
    if args.render {
        render(&record, &state)?;
    }
    let pages = print(&record.plan, &state)?;
    if pages.is_empty() && !has_result(&record.plan, &state) {
        return Err(Problem::input("no evaluation is finished yet; run the same `s3 run` again to continue"));
    }
    if args.open {
        for page in &pages {
            let status = Command::new("xdg-open").arg(page).stdin(Stdio::null()).status();
            if !status.is_ok_and(|status| status.success()) {
                return Err(Problem::unavailable(format!(
                    "no browser could be started; open {} yourself",
                    page.display()
                )));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn evaluations(plan: &Plan) -> impl Iterator<Item = &Component> {
    plan.components.iter().filter(|component| component.kind == ComponentKind::Evaluation)
}

fn has_result(plan: &Plan, state: &State) -> bool {
    evaluations(plan).any(|component| outcome(state, &component.name).is_some())
}

/// Prints table, sentences and page of every finished evaluation; returns the pages.
pub fn print(plan: &Plan, state: &State) -> Result<Vec<PathBuf>, Problem> {
    let mut pages = Vec::new();
    for component in evaluations(plan) {
        let Some(outcome) = outcome(state, &component.name) else { continue };
        let summary: Summary = serde_json::from_value(outcome.summary)
            .map_err(|error| Problem::internal(format!("summary of {}: {error}", component.name)))?;
        let judged = component.config.value.pointer("/generator/judge").is_some();
        writeln!(Out)?;
        if evaluations(plan).count() > 1 {
            writeln!(Out, "{}", component.name)?;
        }
        if !summary.table.is_empty() {
            writeln!(Out, "{}", draw(&summary, judged))?;
        }
        for note in &summary.notes {
            writeln!(Out, "{note}")?;
        }
        for line in beside(&summary) {
            writeln!(Out, "{line}")?;
        }
        if let Some(page) = &summary.report {
            writeln!(Out, "report {}", from_here(page))?;
            pages.push(PathBuf::from(page));
        }
    }
    Ok(pages)
}

/// The path as it is named from the current folder, when the page lies below it.
fn from_here(page: &str) -> String {
    let here = std::env::current_dir().and_then(|here| here.canonicalize()).unwrap_or_default();
    Path::new(page).strip_prefix(&here).map_or_else(|_| page.to_owned(), |path| path.display().to_string())
}

/// Writes the configuration that a finished or running evaluation has, and where.
fn bound(component: &Component, binder: &LocalBinder, state: &State) -> Result<PathBuf, Problem> {
    let config: WorkerConfig = component.config.bind(&component.name, binder)?;
    let path = state.root().join("configs").join(format!("{}-report.yaml", component.name));
    s3_config::save(&path, &config).map_err(Problem::input)?;
    Ok(path)
}

fn export(args: &ReportArgs, format: &str, record: &Record, state: &State) -> Result<ExitCode, Problem> {
    let all: Vec<&Component> = evaluations(&record.plan).collect();
    let names = || all.iter().map(|component| component.name.as_str()).collect::<Vec<_>>().join(", ");
    let component = match (&args.evaluation, all.as_slice()) {
        (Some(name), _) => *all
            .iter()
            .find(|component| component.name == *name)
            .ok_or_else(|| Problem::input(format!("no evaluation {name}; there are {}", names())))?,
        (None, [only]) => only,
        (None, []) => return Err(Problem::input("this run has no evaluation")),
        (None, _) => {
            return Err(Problem::input(format!("several evaluations; name one with --evaluation: {}", names())));
        }
    };
    let binder = LocalBinder::attached(&record.plan, state, &record.volumes)?;
    let config = bound(component, &binder, state)?;
    let mut arguments: Vec<std::ffi::OsString> =
        ["export".into(), "--config".into(), config.into(), "--format".into(), format.into()].into();
    if let Some(what) = &args.what {
        arguments.extend(["--what".into(), what.into()]);
    }
    if let Some(output) = &args.output {
        arguments.extend(["--output".into(), output.into()]);
    }
    super::compare::evaluator(&arguments)
}

fn render(record: &Record, state: &State) -> Result<(), Problem> {
    let binder = LocalBinder::attached(&record.plan, state, &record.volumes)?;
    for component in evaluations(&record.plan) {
        let path = bound(component, &binder, state)?;
        let binary = crate::process::binary_folder().map_err(Problem::internal)?.join(&component.binary);
        let output = Command::new(&binary)
            .args(["report", "--config"])
            .arg(&path)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| Problem::io("start", &binary, &error))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().rev().find_map(|line| line.strip_prefix("error: ")).unwrap_or("no reason given");
            return Err(Problem::input(format!("{}: {line}", component.name)));
        }
    }
    Ok(())
}
