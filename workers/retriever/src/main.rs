//! `s3-retriever build | serve | embed`, and what is asked about an index: `inspect | verify | search | compare`.

use clap::{Parser, Subcommand};
use s3_config::{IndexBuildConfig, RetrieverServeConfig, Runtime};
use s3_proto::Attempt;
use s3_retriever::{Result, build::build, export::export, serve::serve, tools, web};
use s3_telemetry::{Failure, Outcome, Progress, Shutdown};
use serde::de::DeserializeOwned;
use std::io::Write;
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
    /// Serve what a web search finds over gRPC and HTTP, as an index is served.
    Web {
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
    /// Print what is published in a folder, as JSON.
    Inspect {
        /// Folder of published versions.
        folder: PathBuf,
    },
    /// Read all of the current version and check it; print what it is, as JSON.
    Verify {
        /// YAML configuration of its server.
        #[arg(long)]
        config: PathBuf,
    },
    /// Print what queries find, as JSON.
    Search {
        /// YAML configuration of its server.
        #[arg(long)]
        config: PathBuf,
        /// YAML file of the queries.
        #[arg(long)]
        queries: PathBuf,
    },
    /// Print how two indexes differ in what they find, as JSON.
    Compare {
        /// YAML configuration of the first one's server.
        #[arg(long)]
        config: PathBuf,
        /// YAML configuration of the second one's server.
        #[arg(long)]
        other: PathBuf,
        /// YAML file of the queries.
        #[arg(long)]
        queries: PathBuf,
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
            Command::Web { config } => web::serve(load(&config)?, shutdown).await,
            Command::Inspect { folder } => print(move |_| tools::inspect(&folder), None).await,
            Command::Verify { config } => {
                let config: RetrieverServeConfig = load(&config)?;
                let progress = config.runtime.progress.clone();
                print(move |_| tools::check(&config), progress).await
            }
            Command::Search { config, queries } => {
                let (config, queries): (RetrieverServeConfig, _) = (load(&config)?, load(&queries)?);
                let progress = config.runtime.progress.clone();
                print(move |_| tools::search(&config, &queries), progress).await
            }
            Command::Compare { config, other, queries } => {
                let (config, other): (RetrieverServeConfig, _) = (load(&config)?, load(&other)?);
                let queries: tools::Asked = load(&queries)?;
                let file = config.runtime.progress.clone();
                let work = move |progress: &Progress| {
                    progress.phase("open indexes", 0);
                    let total = queries.queries.len() as u64;
                    tools::compare(&config, &other, &queries, |done| {
                        if progress.report().total == 0 {
                            progress.phase("compare rankings", total);
                        }
                        progress.done(done);
                    })
                };
                print(work, file).await
            }
        }
    })
}

fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Failure> {
    s3_config::load(path).map_err(Failure::input)
}

/// Prints a question's answer on standard output.
async fn print(
    work: impl FnOnce(&Progress) -> Result<serde_json::Value> + Send + 'static,
    progress: Option<PathBuf>,
) -> Result<(), Failure> {
    let working = tokio::task::spawn_blocking(move || work(&Progress::new(progress)));
    let answer = working.await.map_err(Failure::internal)??;
    let text = serde_json::to_string(&answer).map_err(Failure::internal)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").map_err(Failure::io)
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
