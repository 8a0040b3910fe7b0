//! `s3-evaluator {run|ask|serve|report|export|compare}`

use clap::{Parser, Subcommand};
use s3_config::ReportConfig;
use s3_evaluator::compare::{self, Quadrant, Side};
use s3_evaluator::export::{self, Format, What};
use s3_evaluator::results::Results;
use s3_evaluator::summary::summarise;
use s3_evaluator::{EvalError, ask, identity, pin, report, run, serve, start};
use s3_telemetry::{Failure, finish, init_logging, write_outcome};
use std::io::Write;
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
    /// Writes the results, of a finished evaluation or of one that is going on, as a table.
    Export(ExportArgs),
    /// Compares two arms question by question, of one evaluation or of two.
    Compare(CompareArgs),
}

#[derive(clap::Args)]
struct ExportArgs {
    /// Configuration of an evaluation; while it runs, what it has found so far is written.
    #[arg(long, required_unless_present = "results", conflicts_with = "results")]
    config: Option<PathBuf>,
    /// Folder of published results.
    #[arg(long)]
    results: Option<PathBuf>,
    /// How it is written.
    #[arg(long, default_value = "json", conflicts_with = "reference")]
    format: Format,
    /// What is written; questions for json, csv and parquet, the matrix for markdown and latex.
    #[arg(long, conflicts_with = "reference")]
    what: Option<What>,
    /// File; standard output by default.
    #[arg(long, conflicts_with = "reference")]
    output: Option<PathBuf>,
    /// Writes the reference's own files into this folder instead: `SOURCE_output_sequences.json` and `result.json`.
    #[arg(long, value_name = "FOLDER")]
    reference: Option<PathBuf>,
    /// With --reference: whose contexts; by default the arm with a searcher.
    #[arg(long, requires = "reference")]
    arm: Option<String>,
}

#[derive(clap::Args)]
struct CompareArgs {
    /// Folder of published results.
    #[arg(long)]
    first: PathBuf,
    /// Folder that it is compared with; the same by default.
    #[arg(long)]
    second: Option<PathBuf>,
    /// Arm of the first; by default the one with a searcher.
    #[arg(long)]
    arm: Option<String>,
    /// Arm of the second.
    #[arg(long)]
    with: Option<String>,
    /// Also lists these questions.
    #[arg(long, value_delimiter = ',')]
    show: Vec<Quadrant>,
    /// How many of each.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Writes all questions with both answers as a table instead.
    #[arg(long)]
    format: Option<Format>,
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
        Command::Export(args) => export_table(&args),
        Command::Compare(args) => compare_arms(&args),
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
    let config = pin::pinned(&start::read_config(config)?)?;
    let asked = start::with_runtime(config, move |run| ask::ask(run, &question, arm.as_deref()), |_| Ok(()))?;
    println!("{}", serde_json::to_string_pretty(&asked).map_err(Failure::internal)?);
    Ok(())
}

fn serve_searcher(config: &std::path::Path) -> Result<(), Failure> {
    let config = pin::pinned(&start::read_config(config)?)?;
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

fn export_table(args: &ExportArgs) -> Result<(), Failure> {
    let (results, identity, summary) = match (&args.config, &args.results) {
        (Some(path), _) => {
            let config = start::read_config(path)?;
            if config.output.join("manifest.json").exists() {
                let (results, identity, summary) = Results::load(&config.output)?;
                (results, identity, summary.with_prices(config.prices))
            } else {
                let results = Results::so_far(&config)?;
                let (done, of) = (results.rows.len(), results.questions.questions.len() * config.arms.len());
                eprintln!("note: not finished; {done} of {of} answers so far");
                let summary = summarise(&config, &results).map_err(EvalError::from)?;
                (results, identity::frozen(&config.runtime.state_dir)?, summary)
            }
        }
        (None, Some(folder)) => Results::load(folder)?,
        (None, None) => return Err(Failure::input("name --config or --results")),
    };
    if let Some(folder) = &args.reference {
        let arm = args.arm.clone().map_or_else(|| compare::usual_arm(&results), Ok)?;
        let written = export::reference::write(&results, &arm, folder)?;
        for file in &written.files {
            println!("{}", file.display());
        }
        if written.replaced > 0 {
            eprintln!(
                "note: {} questions have the text of another one, which these files cannot hold",
                written.replaced
            );
        }
        return Ok(());
    }
    let what = args.what.unwrap_or(args.format.usual());
    let bytes = export::export(&results, &identity, &summary, what, args.format)?;
    match &args.output {
        Some(path) => Ok(s3_artifacts::write_atomic(path, &bytes).map_err(EvalError::from)?),
        None => std::io::stdout().write_all(&bytes).map_err(|error| Failure::io(format!("standard output: {error}"))),
    }
}

fn compare_arms(args: &CompareArgs) -> Result<(), Failure> {
    let (first, ..) = Results::load(&args.first)?;
    let second = match &args.second {
        Some(folder) => Results::load(folder)?.0,
        None => first.clone(),
    };
    let arm = args.arm.clone().map_or_else(|| compare::usual_arm(&first), Ok)?;
    let with = args.with.clone().map_or_else(|| compare::usual_arm(&second), Ok)?;
    if args.second.is_none() && arm == with {
        return Err(Failure::input(format!("{arm} would be compared with itself; name another arm with --with")));
    }
    let comparison = compare::compare(Side { results: &first, arm: &arm }, Side { results: &second, arm: &with })?;
    let bytes = if let Some(format) = args.format {
        export::write(&compare::frame(&comparison), format)?
    } else {
        // two arms of one name are told apart by their side
        let names = if arm == with {
            [format!("{arm} (first)"), format!("{with} (second)")]
        } else {
            [arm.clone(), with.clone()]
        };
        compare::text(&comparison, [&names[0], &names[1]], &args.show, args.limit).into_bytes()
    };
    std::io::stdout().write_all(&bytes).map_err(|error| Failure::io(format!("standard output: {error}")))
}
