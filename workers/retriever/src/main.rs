//! `s3-retriever build | serve | embed`.

use clap::{Parser, Subcommand};
use s3_config::{IndexBuildConfig, Runtime};
use s3_proto::Attempt;
use s3_retriever::{Result, build::build, export::export, serve::serve};
use s3_telemetry::{Failure, Outcome, Progress, Shutdown};
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// A request allocates a dozen times; this one takes half the time of the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Builds search indexes and serves them.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build an index from a corpus and publish it; continues a killed build.
    Build {
        /// YAML configuration of the build.
        #[arg(long)]
        config: PathBuf,
    },
    /// Serve the current index over gRPC and HTTP.
    Serve {
        /// YAML configuration of the server.
        #[arg(long)]
        config: PathBuf,
    },
    /// Embed a build's corpus into a safetensors file; continues a killed run.
    Embed {
        /// YAML configuration of the build.
        #[arg(long)]
        config: PathBuf,
        /// The file to write.
        #[arg(long)]
        output: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    s3_telemetry::init_logging();
    s3_telemetry::finish(run(arguments.command))
}

fn run(command: Command) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::internal)?;
    runtime.block_on(async {
        let shutdown = Shutdown::listen().map_err(Failure::internal)?;
        match command {
            Command::Build { config } => {
                let config: IndexBuildConfig = load(&config)?;
                let surroundings = config.runtime.clone();
                job(surroundings, shutdown, move |progress, shutdown| build(&config, progress, shutdown)).await
            }
            Command::Embed { config, output } => {
                let config: IndexBuildConfig = load(&config)?;
                let surroundings = config.runtime.clone();
                job(surroundings, shutdown, move |progress, shutdown| export(&config, &output, progress, shutdown))
                    .await
            }
            Command::Serve { config } => serve(load(&config)?, shutdown).await,
        }
    })
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    s3_config::load(path).map_err(Failure::input)
}

/// Runs a job that ends, on its own threads, and writes its outcome.
async fn job(
    runtime: Runtime,
    shutdown: Shutdown,
    work: impl FnOnce(&Progress, &Shutdown) -> Result<Outcome> + Send + 'static,
) -> Result<(), Failure> {
    if let Some(address) = runtime.admin {
        let ready = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        s3_telemetry::serve_admin(address, ready).await.map_err(Failure::input)?;
    }
    let working = tokio::task::spawn_blocking(move || -> Result<(), Failure> {
        let progress = Progress::new(runtime.progress.clone());
        let attempt = Attempt::begin(&runtime, &progress, &shutdown)?;
        progress.ready();
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(runtime.threads.unwrap_or(0))
            .build()
            .map_err(Failure::internal)?;
        let outcome = pool.install(|| work(&progress, &shutdown))?;
        tracing::info!(digest = %outcome.digest, summary = %outcome.summary, "done");
        attempt.check()?;
        if let Some(path) = &runtime.result {
            s3_telemetry::write_outcome(path, &outcome).map_err(Failure::io)?;
        }
        Ok(())
    });
    working.await.map_err(Failure::internal)?
}
