//! `s3 run`.

use crate::bind::{Given, LocalBinder};
use crate::out::Out;
use crate::state::State;
use crate::status::StatusWriter;
use crate::supervise::{End, Options, Supervisor};
use crate::text::Problem;
use crate::{BindArgs, StateArg, documents, observe, preflight, process};
use clap::Args;
use s3_plan::{Plan, Resources, RestartPolicy, Role};
use s3_telemetry::ExitClass;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Arguments of `s3 run`.
#[derive(Args)]
pub struct RunArgs {
    /// Manifests (indices, training jobs, evaluations, secrets); of a folder, its YAML files.
    #[arg(required = true, value_name = "FILE|DIR")]
    pub(super) files: Vec<PathBuf>,
    #[command(flatten)]
    bind: BindArgs,
    #[command(flatten)]
    pub(super) state: StateArg,
    /// Retriever and gateway stay up until Ctrl-C once all jobs are done.
    #[arg(long)]
    keep_services: bool,
    /// Jobs that run side by side when nothing else holds them back, such as the seeds of one experiment on one GPU.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    jobs: u16,
    /// Seconds that jobs get to save after Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0)]
    grace: f64,
    /// Pause before the first restart of a failed process; doubles each time.
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, hide = true)]
    backoff: f64,
    /// Restarts in a row before giving up.
    #[arg(long, value_name = "N", default_value_t = 5)]
    restarts: u32,
}

/// What later commands need to know about a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The plan.
    pub plan: Plan,
    /// Folders by volume.
    pub volumes: BTreeMap<String, PathBuf>,
}

impl Record {
    /// Of a run that has started.
    pub fn of(state: &State) -> Result<Self, Problem> {
        state.read("run.json")?.ok_or_else(|| Problem::input("the run has not started yet"))
    }
}

/// Runs everything; the last line is `digest <hex>`.
pub fn run(args: &RunArgs) -> Result<ExitCode, Problem> {
    go(args, documents::read(&args.files)?)
}

/// Runs these resources, whatever files they come from.
#[allow(clippy::needless_pass_by_value)] // they are done with
pub fn go(args: &RunArgs, resources: Resources) -> Result<ExitCode, Problem> {
    let given = Given::parse(&args.bind.volumes, &args.bind.secrets, &args.bind.ports)?;
    let plan = s3_plan::plan(&resources)?;
    let binaries = process::binary_folder().map_err(Problem::internal)?;
    preflight::binaries(&plan, &binaries)?;

    let state = State::open(&args.state.state)?;
    let _lock = state.lock()?;
    // Processes of a killed run would hold ports and write into the same folders.
    let left: Vec<_> = state.processes()?.into_values().collect();
    if process::end_leftovers(&left, Duration::from_secs(2)) > 0 {
        eprintln!("  ended processes that an earlier run had left behind");
    }
    let binder = LocalBinder::new(&plan, &state, &given, &resources.secrets)?;
    let inputs = preflight::inputs(&plan, &binder, &state)?;
    state.write("inputs-by-plan.json", &inputs)?;
    let observed = observe::observe(&state, inputs)?;
    preflight::endpoints(&plan, &observed)?;
    preflight::disk(&plan, &observed, &state)?;
    for notice in &plan.notices {
        eprintln!("  {notice}");
    }
    let volumes =
        given.volumes.iter().filter_map(|(name, dir)| Some((name.clone(), dir.canonicalize().ok()?))).collect();
    state.write("run.json", &Record { plan: plan.clone(), volumes })?;

    let seconds = |value: f64| Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(1));
    let options = Options {
        binaries,
        grace: seconds(args.grace),
        restart: RestartPolicy {
            first_pause: seconds(args.backoff),
            restarts: args.restarts,
            ..RestartPolicy::default()
        },
        keep_services: args.keep_services,
        jobs: args.jobs.into(),
    };
    let mut supervisor =
        Supervisor::new(plan.clone(), state.clone(), binder, options, observed, StatusWriter::default());
    // One thread: the kernel ties the workers' lives to the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::internal)?;
    let end = runtime.block_on(supervisor.run())?;
    if end == End::Interrupted {
        let jobs = plan.components.iter().filter(|component| component.role == Role::Job).count();
        eprintln!(
            "interrupted with {} of {jobs} jobs finished; everything done is saved: run the same command again to continue",
            supervisor.observed().finished.len().min(jobs)
        );
        return Ok(ExitCode::from(ExitClass::Interrupted.code()));
    }
    super::report::print(&plan, &state)?;
    writeln!(Out, "digest {}", s3_plan::run_digest(&plan, supervisor.observed())?)?;
    Ok(ExitCode::SUCCESS)
}
