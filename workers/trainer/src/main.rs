//! `s3-trainer {baseline|sft|train|export|replay} --config FILE`

use clap::{Parser, Subcommand};
use s3_telemetry::{Failure, finish, init_logging};
use s3_trainer::replay::EpisodeName;
use s3_trainer::run::{Command, start};
use std::path::PathBuf;
use std::process::ExitCode;

/// Trains the searcher of a search agent.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(clap::Args)]
struct Config {
    /// Configuration file (YAML).
    #[arg(long)]
    config: PathBuf,
}

#[derive(Subcommand)]
enum Commands {
    /// Answers the training questions by naive RAG and stores the answers.
    Baseline(Config),
    /// Warm start on supervised traces.
    Sft(Config),
    /// Policy updates on real episodes.
    Train(Config),
    /// Writes the newest checkpoint as adapter and as merged model.
    Export(Config),
    /// Computes one episode of a finished step again and shows the difference to what was stored.
    Replay {
        #[command(flatten)]
        config: Config,
        /// Which one: STEP/DATASET/ID/SAMPLE.
        #[arg(long)]
        episode: EpisodeName,
    },
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
    let (command, config) = match cli.command {
        Commands::Baseline(args) => (Command::Baseline, args.config),
        Commands::Sft(args) => (Command::Sft, args.config),
        Commands::Train(args) => (Command::Train, args.config),
        Commands::Export(args) => (Command::Export, args.config),
        Commands::Replay { config, episode } => (Command::Replay(episode), config.config),
    };
    finish(start(&command, &config))
}
