//! `s3 replay`.

use super::run::Record;
use crate::StateArg;
use crate::out::Out;
use crate::process::{binary_folder, complaint};
use crate::state::State;
use crate::text::Problem;
use clap::Args;
use s3_plan::ComponentKind;
use s3_telemetry::Failure;
use std::process::{Command, ExitCode, Stdio};

/// Arguments of `s3 replay`.
#[derive(Args)]
pub struct ReplayArgs {
    /// The episode, as reports name it: STEP/DATASET/ID/SAMPLE.
    episode: String,
    /// The training job, where the run has several.
    #[arg(long, value_name = "NAME")]
    job: Option<String>,
    #[command(flatten)]
    state: StateArg,
}

/// Has the trainer compute the episode again, from the run's journals and checkpoints.
pub fn run(args: &ReplayArgs) -> Result<ExitCode, Problem> {
    let state = State::existing(&args.state.state)?;
    let record = Record::of(&state)?;
    let owner = args.job.as_ref().map(|job| format!("S3TrainingJob/{job}"));
    let trainings: Vec<&str> = record
        .plan
        .components
        .iter()
        .filter(|component| component.kind == ComponentKind::Training)
        .filter(|component| owner.as_ref().is_none_or(|owner| component.owners.contains(owner)))
        .map(|component| component.name.as_str())
        .collect();
    let [training] = trainings.as_slice() else {
        return Err(Problem::input(match trainings.len() {
            0 => "the run has no such training".to_owned(),
            _ => format!("the run has several trainings: {}; name the job with --job", trainings.join(", ")),
        }));
    };
    let config = state.config(training);
    if !config.is_file() {
        return Err(Problem::input(format!("{training} has not started yet")));
    }
    let binary = binary_folder().map_err(Problem::internal)?.join("s3-trainer");
    let output = Command::new(&binary)
        .args(["replay", "--episode", &args.episode, "--config"])
        .arg(&config)
        .env("RUST_LOG", std::env::var_os("RUST_LOG").unwrap_or_else(|| "warn".into()))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Problem::io("start", &binary, &error))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let (class, line) = complaint(output.status, &text);
        return Err(Problem(vec![Failure::new(class, line.unwrap_or("no reason given"))]));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text.lines().filter(|line| !line.starts_with("digest ")) {
        writeln!(Out, "{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}
