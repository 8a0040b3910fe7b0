//! `s3-generator-gateway serve --config FILE`.

use clap::{Parser, Subcommand};
use s3_telemetry::{Failure, finish, init_logging};
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
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Failure::internal)?;
    let result = runtime.block_on(s3_generator_gateway::serve(config));
    // a call that still waits for its upstream must not hold the process
    runtime.shutdown_background();
    result
}
