//! `s3`: runs the project's custom resources on this machine, without a cluster.
#![warn(clippy::print_stdout)] // `out` prints

mod admin;
mod bind;
mod cluster;
mod commands;
mod documents;
mod highlights;
mod observe;
mod out;
mod preflight;
mod process;
mod progress;
mod state;
mod status;
mod supervise;
mod table;
mod text;

use clap::{Args, Parser, Subcommand};
use s3_telemetry::ExitClass;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// Trains and evaluates search agents from the same resources as in a cluster.
#[derive(Parser)]
#[command(name = "s3", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs resources as processes of this machine; run again, it continues and skips what is finished.
    Run(commands::run::RunArgs),
    /// Shows what would run: components, what they need, commands and configurations.
    Plan(commands::plan::PlanArgs),
    /// Asks the trained searcher of a finished run one question, and shows how it searched.
    Ask(commands::ask::AskArgs),
    /// Shows the result of a finished run and where its report page is.
    Report(commands::report::ReportArgs),
    /// Compares two evaluations, or two arms of one, question by question.
    Compare(commands::compare::CompareArgs),
    /// Runs the reference's evaluation on its released files, and writes contexts and scores in its formats, too.
    Reproduce(commands::reproduce::ReproduceArgs),
    /// Builds, imports, checks, searches and compares search indexes, without a run.
    #[command(subcommand)]
    Index(commands::index::IndexCommand),
    /// Computes one episode of a training again and shows the difference to what was stored.
    Replay(commands::replay::ReplayArgs),
    /// Prints the log of a component.
    Logs(commands::logs::LogsArgs),
    /// Shows how far a run is.
    Status(commands::status::StatusArgs),
    /// Says where a resource of a cluster stands, what holds it up, and what to do about it.
    Why(commands::why::WhyArgs),
}

/// Where a run keeps everything.
#[derive(Args, Clone, Debug)]
pub struct StateArg {
    /// Folder of the run: progress, logs, results.
    #[arg(long, value_name = "DIR", default_value = ".s3/run")]
    pub state: PathBuf,
}

/// What binds the plan to this machine.
#[derive(Args, Clone, Debug)]
pub struct BindArgs {
    /// Folder behind `pvc://NAME/…`; may be given several times.
    #[arg(long = "volume", value_name = "NAME=DIR")]
    pub volumes: Vec<String>,
    /// Value of a secret's key: `NAME/KEY=env:VARIABLE` or `NAME/KEY=file:PATH`.
    #[arg(long = "secret", value_name = "NAME/KEY=SOURCE")]
    pub secrets: Vec<String>,
    /// Fixes a component's port instead of taking a free one.
    #[arg(long = "port", value_name = "COMPONENT/PORT=NUMBER")]
    pub ports: Vec<String>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // clap's own text, with the exit code of wrong input; a closed stream is no reason for another.
            let _ = error.print();
            return ExitCode::from(ExitClass::Input.code());
        }
        Err(error) => error.exit(),
    };
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Plan(args) => commands::plan::run(&args),
        Command::Ask(args) => commands::ask::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Reproduce(args) => commands::reproduce::run(&args),
        Command::Index(command) => commands::index::run(&command),
        Command::Replay(args) => commands::replay::run(&args),
        Command::Logs(args) => commands::logs::run(&args),
        Command::Status(args) => commands::status::run(&args),
        Command::Why(args) => commands::why::run(&args),
    };
    match result {
        Ok(code) => code,
        Err(problem) => {
            for failure in &problem.0 {
                // as above
                let _ = writeln!(std::io::stderr(), "error: {failure}");
            }
            ExitCode::from(problem.code())
        }
    }
}
