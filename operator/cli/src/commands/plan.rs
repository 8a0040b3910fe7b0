//! `s3 plan`.

use crate::out::Out;
use crate::text::{Problem, bytes};
use crate::{StateArg, documents, observe, state::State};
use clap::{Args, ValueEnum};
use s3_plan::{Component, Observed, Plan, Role, decide};
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `s3 plan`.
#[derive(Args)]
pub struct PlanArgs {
    /// Manifests, or folders of them.
    #[arg(required = true, value_name = "FILE|DIR")]
    files: Vec<PathBuf>,
    /// `wide` adds commands, inputs and volumes; `yaml` is the whole plan with every configuration.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(flatten)]
    state: StateArg,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Wide,
    Yaml,
    Json,
}

/// Prints the plan; starts and writes nothing.
pub fn run(args: &PlanArgs) -> Result<ExitCode, Problem> {
    let plan = s3_plan::plan(&documents::read(&args.files)?)?;
    match args.output {
        Output::Yaml => write!(Out, "{}", serde_yaml_ng::to_string(&plan).map_err(Problem::internal)?)?,
        Output::Json => writeln!(Out, "{}", serde_json::to_string_pretty(&plan).map_err(Problem::internal)?)?,
        Output::Text | Output::Wide => {
            let observed = earlier(args)?;
            for component in &plan.components {
                print_component(&plan, component, &observed, args.output == Output::Wide)?;
            }
        }
    }
    if args.output != Output::Yaml && args.output != Output::Json {
        for notice in &plan.notices {
            writeln!(Out, "{notice}")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What the state folder holds, if there is one. Inputs are not read, so they count as unchanged.
fn earlier(args: &PlanArgs) -> Result<Observed, Problem> {
    let Ok(state) = State::existing(&args.state.state) else { return Ok(Observed::default()) };
    let inputs = state.read("inputs-by-plan.json")?.unwrap_or_default();
    observe::observe(&state, inputs)
}

fn print_component(plan: &Plan, component: &Component, observed: &Observed, wide: bool) -> Result<(), Problem> {
    let role = match component.role {
        Role::Job => "job",
        Role::Service => "service",
    };
    writeln!(Out, "{}  ({role}, {})", component.name, component.binary)?;
    writeln!(Out, "  for       {}", join(component.owners.iter()))?;
    if !component.needs.is_empty() {
        writeln!(Out, "  needs     {}", join(component.needs.iter()))?;
    }
    let together = plan.placements.of(component).replicas;
    if component.role == Role::Job && together > 1 {
        writeln!(Out, "  workers   {together}, which share its work")?;
    }
    writeln!(Out, "  state     {}", decide(plan, component, observed).reason())?;
    if !wide {
        return Ok(());
    }
    writeln!(Out, "  command   {} {} --config FILE", component.binary, component.args.join(" "))?;
    writeln!(Out, "  ports     {}", join(component.ports.iter()))?;
    if !component.volumes.is_empty() {
        writeln!(Out, "  volumes   {}", join(component.volumes.iter()))?;
    }
    if !component.secrets.is_empty() {
        writeln!(Out, "  secrets   {}", join(component.secrets.iter()))?;
    }
    for endpoint in &component.endpoints {
        writeln!(Out, "  endpoint  {}", endpoint.url)?;
    }
    for input in &component.inputs {
        writeln!(Out, "  input     {}{}", input.path, if input.sha256.is_some() { "  (sha256 given)" } else { "" })?;
    }
    writeln!(Out, "  disk      about {}", bytes(component.resources.disk))
}

fn join<'a>(items: impl Iterator<Item = &'a String>) -> String {
    items.map(String::as_str).collect::<Vec<_>>().join(", ")
}
