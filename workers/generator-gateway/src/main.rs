//! `s3-generator-gateway serve --config FILE`.

use clap::{Parser, Subcommand};
use s3_telemetry::{Failure, finish, init_logging};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

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
}

fn main() -> ExitCode {
    init_logging();
    let Command::Serve { config } = Arguments::parse().command;
    finish(run(&config))
}

fn run(path: &Path) -> Result<(), Failure> {
    let config: s3_config::GatewayConfig = s3_config::load(path).map_err(Failure::input)?;
    fix_threads(config.runtime.threads)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::internal)?;
    let result = runtime.block_on(s3_generator_gateway::serve(config));
    // a call that still waits for its upstream must not hold the process
    runtime.shutdown_background();
    result
}

/// Arithmetic libraries read their thread count from the environment when they start, so a configured count
/// that differs starts this program again in place (same process, same arguments).
fn fix_threads(threads: Option<usize>) -> Result<(), Failure> {
    const VARIABLE: &str = "RAYON_NUM_THREADS";
    let Some(threads) = threads.filter(|threads| *threads > 0) else { return Ok(()) };
    if std::env::var(VARIABLE).is_ok_and(|value| value == threads.to_string()) {
        return Ok(());
    }
    let program = std::env::current_exe().map_err(Failure::internal)?;
    let mut again = std::process::Command::new(program);
    Err(Failure::internal(again.args(std::env::args_os().skip(1)).env(VARIABLE, threads.to_string()).exec()))
}
