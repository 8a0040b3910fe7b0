//! `s3-evaluator {run|ask|serve|report}`

use clap::{Parser, Subcommand};
use s3_config::ReportConfig;
use s3_evaluator::{ask, report, run, serve, start};
use s3_telemetry::{Failure, finish, init_logging, write_outcome};
use std::path::PathBuf;
use std::process::ExitCode;

/// Compares ways of gathering passages for the same frozen generator.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Evaluates all arms; run again after an interruption, it continues.
    Run {
        /// Configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Answers one question with a searcher of the configuration and prints the episode as JSON.
    Ask {
        /// Configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
        /// The question.
        #[arg(long)]
        question: String,
        /// Which arm; the first one with a searcher by default.
        #[arg(long)]
        arm: Option<String>,
    },
    /// Serves a searcher of the configuration over HTTP until it is asked to stop.
    Serve {
        /// Configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Makes the report page again from published results.
    Report(ReportArgs),
}

#[derive(clap::Args)]
struct ReportArgs {
    /// Configuration of an evaluation that has run: its page is made again.
    #[arg(long, required_unless_present = "results", conflicts_with_all = ["results", "training", "attribution"])]
    config: Option<PathBuf>,
    /// Folders of published results; `report.html` is made in the folder above each.
    #[arg(long, num_args = 1..)]
    results: Vec<PathBuf>,
    /// With --results: folders of training runs, for the learning curves.
    #[arg(long, num_args = 1..)]
    training: Vec<PathBuf>,
    /// With --results: attribution file (JSON list).
    #[arg(long)]
    attribution: Option<PathBuf>,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.use_stderr() => {
            // clap's own text, with this worker's exit code for wrong input
            let _ = error.print();
            return finish(Err(Failure::input("wrong command line; see --help")));
        }
        Err(error) => error.exit(),
    };
    init_logging();
    finish(match cli.command {
        Command::Run { config } => evaluate(&config),
        Command::Ask { config, question, arm } => answer(&config, question, arm),
        Command::Serve { config } => serve_searcher(&config),
        Command::Report(args) => page(&args),
    })
}

fn evaluate(config: &std::path::Path) -> Result<(), Failure> {
    let config = start::read_config(config)?;
    let result = config.runtime.result.clone();
    let outcome = start::with_runtime(config, run::run, |outcome| match &result {
        Some(path) => write_outcome(path, outcome).map_err(|error| Failure::io(format!("{}: {error}", path.display()))),
        None => Ok(()),
    })?;
    println!("digest {}", outcome.digest);
    Ok(())
}

fn answer(config: &std::path::Path, question: String, arm: Option<String>) -> Result<(), Failure> {
    let config = start::read_config(config)?;
    let asked = start::with_runtime(config, move |run| ask::ask(run, &question, arm.as_deref()), |_| Ok(()))?;
    println!("{}", serde_json::to_string_pretty(&asked).map_err(Failure::internal)?);
    Ok(())
}

fn serve_searcher(config: &std::path::Path) -> Result<(), Failure> {
    let config = start::read_config(config)?;
    let Some(serving) = config.serve.clone() else {
        return Err(Failure::input("serve is not configured; set serve.http"));
    };
    start::with_runtime(config, move |run| serve::serve(run, &serving), |()| Ok(()))
}

fn page(args: &ReportArgs) -> Result<(), Failure> {
    if let Some(path) = &args.config {
        let config = start::read_config(path)?;
        let Some(page) = &config.report else {
            return Err(Failure::input(format!("{}: report is not configured", path.display())));
        };
        return Ok(report::again(page, &config.output)?);
    }
    for folder in &args.results {
        let page = ReportConfig {
            path: folder.with_file_name("report.html"),
            attribution: args.attribution.clone(),
            training: args.training.clone(),
        };
        report::again(&page, folder)?;
        println!("{}", page.path.display());
    }
    Ok(())
}
