//! `s3-generator-gateway serve --config FILE`, and `calibrate` of a judge.

use clap::{Parser, Subcommand};
use s3_config::GatewayConfig;
use s3_generator_gateway::{build, calibrate, read_labels};
use s3_telemetry::{Failure, finish, fix_threads, init_logging};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Answers and verdicts from any provider.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serves gRPC `Answer` and `Judge` and the OpenAI-compatible front.
    Serve {
        /// The gateway's configuration (YAML).
        #[arg(long)]
        config: PathBuf,
    },
    /// Measures a judge against labelled answers: sensitivity, specificity and kappa with intervals.
    Calibrate {
        /// The gateway's configuration (YAML).
        #[arg(long)]
        config: PathBuf,
        /// The judging provider; its second judge, where one is configured, judges too.
        #[arg(long, default_value = "")]
        judge: String,
        /// Labelled answers: a line of JSON each, {"question", "answer", "golds": […], "correct": true|false}.
        #[arg(long)]
        labels: PathBuf,
        /// Where the report goes (JSON).
        #[arg(long)]
        report: PathBuf,
    },
}

fn main() -> ExitCode {
    init_logging();
    finish(match Arguments::parse().command {
        Command::Serve { config } => run(&config, s3_generator_gateway::serve),
        Command::Calibrate { config, judge, labels, report } => {
            run(&config, |config| measure(config, judge, labels, report))
        }
    })
}

fn run<F>(path: &Path, work: impl FnOnce(GatewayConfig) -> F) -> Result<(), Failure>
where
    F: Future<Output = Result<(), Failure>>,
{
    let config: GatewayConfig = s3_config::load(path).map_err(Failure::input)?;
    fix_threads(config.runtime.threads)?;
    // One thread forwards tens of thousands of requests a second, and every wake-up of a second one costs as much as a
    // good part of a request; arithmetic has threads of its own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::internal)?;
    let result = runtime.block_on(work(config));
    // a call that still waits for its upstream must not hold the process
    runtime.shutdown_background();
    result
}

async fn measure(config: GatewayConfig, judge: String, labels: PathBuf, report: PathBuf) -> Result<(), Failure> {
    let found = read_labels(&labels).map_err(Failure::input)?;
    let gateway = tokio::task::spawn_blocking(move || build(&config)).await.map_err(Failure::internal)??;
    let lane = gateway.lane(&judge).map_err(Failure::input)?;
    let bar = indicatif::ProgressBar::new(found.labels.len() as u64);
    let measured = calibrate(&gateway, lane, &found, |done| bar.set_position(done as u64)).await;
    bar.finish_and_clear();
    let measured = measured.map_err(Failure::unavailable)?;
    measured.save(&report).map_err(Failure::io)?;
    println!("{measured}");
    Ok(())
}
