//! `s3 status`.

use super::run::Record;
use crate::StateArg;
use crate::out::Out;
use crate::progress::number;
use crate::state::State;
use crate::text::{Problem, thousands};
use clap::Args;
use comfy_table::{ContentArrangement, Table, presets};
use s3_plan::Role;
use s3_telemetry::read_progress;
use std::process::ExitCode;

/// Arguments of `s3 status`.
#[derive(Args)]
pub struct StatusArgs {
    #[command(flatten)]
    state: StateArg,
}

/// Prints one line per component.
pub fn run(args: &StatusArgs) -> Result<ExitCode, Problem> {
    let state = State::existing(&args.state.state)?;
    let record = Record::of(&state)?;
    let (finished, processes) = (state.finished()?, state.processes()?);
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(["COMPONENT", "STATE", "PROGRESS", "DOING"]);
    for component in &record.plan.components {
        let alive = processes.get(&component.name).is_some_and(crate::process::Identity::alive);
        let report = read_progress(&state.progress(&component.name)).unwrap_or_default();
        let state = match (finished.get(&component.name), alive, component.role) {
            (Some(_), _, Role::Job) => "finished",
            (_, true, Role::Service) if report.ready => "ready",
            (_, true, Role::Service) => "starting",
            (_, true, Role::Job) => "running",
            (_, false, Role::Service) => "stopped",
            (_, false, Role::Job) => "waiting",
        };
        let progress = if alive && report.total > 0 {
            format!("{}/{}", thousands(report.done), thousands(report.total))
        } else {
            String::new()
        };
        let figures = report.figures.iter().map(|(name, value)| format!("  {name} {}", number(*value)));
        let doing = if alive { report.phase.clone() + &figures.collect::<String>() } else { String::new() };
        table.add_row([component.name.as_str(), state, &progress, &doing]);
    }
    writeln!(Out, "{}", table.trim_fmt())?;
    let folder = state.root().join("status");
    writeln!(Out, "\nresource status: {}", folder.display())?;
    Ok(ExitCode::SUCCESS)
}
