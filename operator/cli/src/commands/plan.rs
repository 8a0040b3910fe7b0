//! `s3 plan`.

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
        Output::Yaml => print!("{}", serde_yaml_ng::to_string(&plan).map_err(Problem::internal)?),
        Output::Json => println!("{}", serde_json::to_string_pretty(&plan).map_err(Problem::internal)?),
        Output::Text | Output::Wide => {
            let observed = earlier(args)?;
            for component in &plan.components {
                print_component(&plan, component, &observed, args.output == Output::Wide);
            }
        }
    }
    if args.output != Output::Yaml && args.output != Output::Json {
        for notice in &plan.notices {
            println!("{notice}");
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

fn print_component(plan: &Plan, component: &Component, observed: &Observed, wide: bool) {
    let role = match component.role {
        Role::Job => "job",
        Role::Service => "service",
    };
    println!("{}  ({role}, {})", component.name, component.binary);
    println!("  for       {}", join(component.owners.iter()));
    if !component.needs.is_empty() {
        println!("  needs     {}", join(component.needs.iter()));
    }
    let together = plan.placements.of(component).replicas;
    if component.role == Role::Job && together > 1 {
        println!("  workers   {together}, which share its work");
    }
    println!("  state     {}", decide(plan, component, observed).reason());
    if !wide {
        return;
    }
    println!("  command   {} {} --config FILE", component.binary, component.args.join(" "));
    println!("  ports     {}", join(component.ports.iter()));
    if !component.volumes.is_empty() {
        println!("  volumes   {}", join(component.volumes.iter()));
    }
    if !component.secrets.is_empty() {
        println!("  secrets   {}", join(component.secrets.iter()));
    }
    for endpoint in &component.endpoints {
        println!("  endpoint  {}", endpoint.url);
    }
    for input in &component.inputs {
        println!("  input     {}{}", input.path, if input.sha256.is_some() { "  (sha256 given)" } else { "" });
    }
    println!("  disk      about {}", bytes(component.resources.disk));
}

fn join<'a>(items: impl Iterator<Item = &'a String>) -> String {
    items.map(String::as_str).collect::<Vec<_>>().join(", ")
}
