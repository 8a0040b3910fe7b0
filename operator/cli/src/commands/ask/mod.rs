//! `s3 ask`.

mod served;

use super::run::Record;
use crate::bind::{Given, LocalBinder};
use crate::out::Out;
use crate::state::State;
use crate::status::StatusWriter;
use crate::supervise::{Options, Supervisor};
use crate::text::Problem;
use crate::{BindArgs, StateArg, observe, preflight, process};
use clap::Args;
use s3_plan::{Choice, Component, Plan, RestartPolicy, Role, Secrets, WorkerConfig};
use s3_telemetry::Failure;
use serde::Deserialize;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

/// Arguments of `s3 ask`.
#[derive(Args)]
pub struct AskArgs {
    /// The question.
    question: String,
    /// Asks the searcher that this training job made.
    #[arg(long, value_name = "NAME", conflicts_with = "arm")]
    job: Option<String>,
    /// Asks the searcher of this arm of an evaluation.
    #[arg(long, value_name = "NAME")]
    arm: Option<String>,
    /// Asks the searcher that the job serves in this namespace of the cluster (`spec.serving`), not a run of this machine.
    #[arg(short, long, requires = "job")]
    namespace: Option<String>,
    /// Prints what the searcher did as JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    bind: BindArgs,
    #[command(flatten)]
    state: StateArg,
}

/// What the evaluator's `ask` prints.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Answered {
    initial: Vec<Passage>,
    turns: Vec<Turn>,
    passages: Vec<Passage>,
    answer: Option<String>,
    failure: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Turn {
    text: String,
    query: Option<String>,
    invalid: Option<String>,
    /// Titles or whole passages that the turn's ids refer to.
    window: Vec<Passage>,
    /// Ids of the window, from 1.
    selected: Vec<usize>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Passage {
    title: String,
    text: String,
}

/// Asks, and shows the episode.
pub fn run(args: &AskArgs) -> Result<ExitCode, Problem> {
    let text = match (&args.namespace, &args.job) {
        (Some(namespace), Some(job)) => {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::internal)?;
            runtime.block_on(served::answer(namespace, job, &args.question))?
        }
        _ => ask_here(args)?,
    };
    if args.json {
        write!(Out, "{text}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let answered: Answered = serde_json::from_str(&text)
        .map_err(|error| Problem::internal(format!("the evaluator's answer cannot be read: {error}")))?;
    write!(Out, "{}", show(&args.question, &answered))?;
    Ok(ExitCode::SUCCESS)
}

/// Brings up retriever and gateway of a run of this machine, and asks its searcher.
fn ask_here(args: &AskArgs) -> Result<String, Problem> {
    let state = State::existing(&args.state.state)?;
    let record = Record::of(&state)?;
    let choice = Choice { job: args.job.clone(), arm: args.arm.clone() };
    let ask = s3_plan::ask(&record.plan, &choice)?;
    let inputs = state.read("inputs-by-plan.json")?.unwrap_or_default();
    let observed = observe::observe(&state, inputs)?;
    for need in &ask.needs {
        let job = record.plan.component(need).is_some_and(|component| component.role == Role::Job);
        if job && !observed.finished.contains_key(need) {
            return Err(Problem::input(format!("{need} is not finished; run the same `s3 run` again to continue")));
        }
    }
    match state.lock() {
        Ok(_lock) => {
            let plan = with_needs(&record.plan, &ask);
            let mut given = Given::parse(&args.bind.volumes, &args.bind.secrets, &args.bind.ports)?;
            for (name, folder) in &record.volumes {
                given.volumes.entry(name.clone()).or_insert_with(|| folder.clone());
            }
            let binder = LocalBinder::new(&plan, &state, &given, &Secrets::default())?;
            preflight::inputs(&plan, &binder, &state)?;
            let options = Options {
                binaries: process::binary_folder().map_err(Problem::internal)?,
                grace: Duration::from_secs(5),
                restart: RestartPolicy { restarts: 1, ..RestartPolicy::default() },
                keep_services: true,
                jobs: 1,
            };
            let status = StatusWriter::default();
            let mut supervisor = Supervisor::new(plan, state.clone(), binder, options, observed, status);
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::internal)?;
            runtime.block_on(supervisor.with_services(&ask.name, |binder| call(&ask, binder, &state, &args.question)))
        }
        // A run with --keep-services holds the folder: its services are asked.
        Err(busy) => {
            let processes = state.processes()?;
            let up = |need: &String| processes.get(need).is_some_and(process::Identity::alive);
            let services = ask
                .needs
                .iter()
                .filter(|need| record.plan.component(need).is_some_and(|component| component.role == Role::Service));
            if !services.into_iter().all(up) {
                return Err(busy);
            }
            let binder = LocalBinder::attached(&record.plan, &state, &record.volumes)?;
            call(&ask, &binder, &state, &args.question)
        }
    }
}

/// The part of the plan that one question needs.
fn with_needs(plan: &Plan, ask: &Component) -> Plan {
    let mut wanted: Vec<String> = ask.needs.iter().cloned().collect();
    let mut at = 0;
    while let Some(name) = wanted.get(at).cloned() {
        at += 1;
        if let Some(component) = plan.component(&name).filter(|component| component.role == Role::Service) {
            wanted.extend(component.needs.iter().filter(|need| !wanted.contains(need)).cloned().collect::<Vec<_>>());
        }
    }
    let mut components: Vec<Component> =
        plan.components.iter().filter(|component| wanted.contains(&component.name)).cloned().collect();
    components.push(ask.clone());
    Plan { components, ..Plan::default() }
}

fn call(ask: &Component, binder: &LocalBinder, state: &State, question: &str) -> Result<String, Problem> {
    let config: WorkerConfig = ask.config.bind(&ask.name, binder)?;
    let path = state.config(&ask.name);
    s3_config::save(&path, &config).map_err(Problem::input)?;
    let binary = process::binary_folder().map_err(Problem::internal)?.join(&ask.binary);
    let output = Command::new(&binary)
        .args(&ask.args)
        .arg("--config")
        .arg(&path)
        .args(["--question", question])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Problem::io("start", &binary, &error))?;
    if output.status.success() {
        return String::from_utf8(output.stdout).map_err(Problem::internal);
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let (class, line) = process::complaint(output.status, &text);
    let line = line.unwrap_or("no reason given");
    Err(Problem(vec![Failure::new(class, format!("the searcher could not be asked: {line}"))]))
}

fn show(question: &str, answered: &Answered) -> String {
    use std::fmt::Write;
    let mut out = format!("question  {question}\n");
    let list = |out: &mut String, passages: &[Passage], selected: &[usize]| {
        for (place, passage) in passages.iter().enumerate() {
            let mark = if selected.contains(&(place + 1)) { "✓" } else { " " };
            // Writing into a String cannot fail.
            let _ = writeln!(out, "   {mark} {}. {}: {}", place + 1, passage.title, cut(&passage.text, 100));
        }
    };
    if answered.turns.first().is_none_or(|turn| turn.window.is_empty()) && !answered.initial.is_empty() {
        out.push_str("found by the question itself\n");
        list(&mut out, &answered.initial, &[]);
    }
    for (number, turn) in answered.turns.iter().enumerate() {
        if !turn.window.is_empty() {
            out.push_str(if number == 0 { "found by the question itself\n" } else { "found\n" });
            list(&mut out, &turn.window, &turn.selected);
        }
        let _ = match (&turn.query, &turn.invalid) {
            (Some(query), _) => writeln!(out, "search    {query}"),
            (None, Some(reason)) => writeln!(out, "unclear   {} ({reason})", cut(&turn.text, 80)),
            (None, None) => writeln!(out, "stop      the searcher has what it wants"),
        };
    }
    out.push_str("handed to the generator\n");
    list(&mut out, &answered.passages, &[]);
    let _ = match (&answered.answer, &answered.failure) {
        (Some(answer), _) => writeln!(out, "answer    {answer}"),
        (None, Some(failure)) => writeln!(out, "no answer {failure}"),
        (None, None) => writeln!(out, "no answer"),
    };
    out
}

fn cut(text: &str, characters: usize) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(characters) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text,
    }
}
