//! `s3-operator`: runs the operator, and makes the CRD manifests and references from the types.

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use s3_crds::Kind;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Caches live for months and change all the time: this one gives back what they no longer fill.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Threads at most: the work is waiting, and each thread keeps memory of its own.
const THREADS: usize = 4;

/// Operator of `RetrieverIndex`, `S3TrainingJob` and `EvalRun`.
#[derive(Parser)]
#[command(name = "s3-operator", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the operator until it is asked to stop.
    Run(Box<s3_operator::options::Options>),
    /// Write the CRD manifests, for `kubectl apply -f`.
    Crds {
        /// Folder for one file a kind; without it all go to the output.
        #[arg(long)]
        output: Option<PathBuf>,
        /// Leave CEL rules out, for Kubernetes before 1.25.
        #[arg(long)]
        without_cel: bool,
    },
    /// Write the page of all metrics as Markdown.
    ExplainMetrics {
        /// File; without it the output.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Write the schema of the chart's values.
    ValuesSchema {
        /// File; without it the output.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Write the reference of all fields as Markdown.
    ExplainApi {
        /// File; without it the output.
        #[arg(long)]
        output: Option<PathBuf>,
    },
    /// Write the catalogue of condition reasons as Markdown.
    ExplainReasons {
        /// File; without it the output.
        #[arg(long)]
        output: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Run(options) => run(*options),
        Command::Crds { output, without_cel } => crds(output.as_deref(), without_cel),
        Command::ExplainMetrics { output } => write(output.as_deref(), &s3_operator::metrics_page::markdown()),
        Command::ValuesSchema { output } => {
            write(output.as_deref(), &s3_operator::values::schema_json().context("the values as JSON")?)
        }
        Command::ExplainApi { output } => write(output.as_deref(), &s3_crds::api_markdown()),
        Command::ExplainReasons { output } => write(output.as_deref(), &s3_crds::reasons_markdown()),
    }
}

fn run(options: s3_operator::options::Options) -> Result<()> {
    s3_telemetry::init_logging();
    // A second provider in the process would be an error here; there is none, and the first stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get().min(THREADS));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.context("the runtime")?;
    runtime.block_on(async {
        let shutdown = s3_telemetry::Shutdown::listen().context("signals")?;
        s3_operator::operator::run(options, shutdown).await.context("the operator ended")
    })
}

fn crds(output: Option<&Path>, without_cel: bool) -> Result<()> {
    let mut all = String::new();
    for kind in Kind::ALL {
        let yaml = s3_crds::crd_yaml(kind, !without_cel).with_context(|| format!("the CRD of {}", kind.name()))?;
        match output {
            Some(folder) => write(Some(&folder.join(kind.file_name())), &yaml)?,
            None => all.extend(["---\n", &yaml]),
        }
    }
    if output.is_none() { write(None, &all) } else { Ok(()) }
}

fn write(file: Option<&Path>, text: &str) -> Result<()> {
    let Some(file) = file else {
        return std::io::stdout().write_all(text.as_bytes()).context("the output cannot be written");
    };
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("folder {} cannot be made", folder.display()))?;
    }
    std::fs::write(file, text).with_context(|| format!("{} cannot be written", file.display()))
}
