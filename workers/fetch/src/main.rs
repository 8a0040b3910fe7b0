//! `s3-fetch run --config FILE`.

use clap::{Parser, Subcommand};
use s3_config::FetchConfig;
use s3_proto::Attempt;
use s3_telemetry::{Failure, Progress, Shutdown, finish, init_logging, write_outcome};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Fetches models and data from hubs and buckets.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Fetches what is missing; run again after an interruption, it continues.
    Run {
        /// Configuration file (YAML).
        #[arg(long)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let Command::Run { config } = Arguments::parse().command;
    init_logging();
    finish(run(&config))
}

fn run(path: &Path) -> Result<(), Failure> {
    let config: FetchConfig = s3_config::load(path).map_err(Failure::input)?;
    // A second provider in the process would be an error here; there is none, and the first stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    runtime.block_on(async {
        let shutdown = Shutdown::listen().map_err(Failure::internal)?;
        if let Some(address) = config.runtime.admin {
            let ready = Arc::new(AtomicBool::new(true));
            s3_telemetry::serve_admin(address, ready).await.map_err(Failure::input)?;
        }
        let progress = Progress::new(config.runtime.progress.clone());
        let attempt = Attempt::begin(&config.runtime, &progress, &shutdown)?;
        progress.ready();
        let outcome = s3_fetch::run(&config, &progress, &shutdown).await?;
        attempt.check()?;
        if let Some(path) = &config.runtime.result {
            write_outcome(path, &outcome).map_err(Failure::io)?;
        }
        println!("digest {}", outcome.digest);
        // Its last report waits for the network; nothing else is left to do on this thread.
        tokio::task::spawn_blocking(move || drop(attempt)).await.map_err(Failure::internal)
    })
}
