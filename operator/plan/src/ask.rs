//! Asking a trained searcher one question: an evaluation of one arm without a dataset.

use crate::component::{in_work, runtime};
use crate::template::Schema;
use crate::{Component, ComponentKind, ComponentResources, Plan, PlanError, Readiness, Role, Template};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Name of the component.
const NAME: &str = "ask";

/// Which searcher is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// An `S3TrainingJob` of the plan.
    pub job: Option<String>,
    /// An arm of an `EvalRun` of the plan.
    pub arm: Option<String>,
}

/// The component that answers one question with a searcher of the plan.
///
/// Without a choice it is the first S3 arm of an evaluation whose searcher a job trained, else the
/// first S3 arm, else the first job.
pub fn ask(plan: &Plan, choice: &Choice) -> Result<Component, PlanError> {
    let arms: Vec<(&Component, &Value)> = plan
        .components
        .iter()
        .filter(|component| component.kind == ComponentKind::Evaluation)
        .flat_map(|component| arms(component).map(move |arm| (component, arm)))
        .collect();
    let jobs: Vec<&Component> = plan
        .components
        .iter()
        .filter(|c| matches!(c.kind, ComponentKind::Training | ComponentKind::WarmStart))
        .collect();
    if let Some(name) = &choice.arm {
        let found = arms.iter().find(|(_, arm)| arm["name"] == json!(name));
        let Some((component, arm)) = found else {
            let names: BTreeSet<_> = arms.iter().filter_map(|(_, arm)| arm["name"].as_str()).collect();
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            return Err(PlanError::Binding(format!("no S3 arm {name}; there are: {names}")));
        };
        return of_arm(component, arm);
    }
    if let Some(name) = &choice.job {
        let owner = format!("S3TrainingJob/{name}");
        // The training stands after the warm start; the last one exports the job's searcher.
        let Some(component) = jobs.iter().rev().find(|component| component.owners.contains(&owner)) else {
            return Err(PlanError::Binding(format!("no S3TrainingJob {name} in this run")));
        };
        return of_job(component);
    }
    let trained = arms.iter().find(|(_, arm)| {
        arm.pointer("/searcher/adapter/path").and_then(Value::as_str).is_some_and(|path| path.starts_with("work://"))
    });
    match (trained.or(arms.first()), jobs.last()) {
        (Some((component, arm)), _) => of_arm(component, arm),
        (None, Some(component)) => of_job(component),
        (None, None) => Err(PlanError::Binding("this run has neither an S3 arm nor an S3TrainingJob to ask".into())),
    }
}

fn arms(component: &Component) -> impl Iterator<Item = &Value> {
    let arms = component.config.value["arms"].as_array();
    arms.into_iter().flatten().filter(|arm| arm["method"] == json!("S3"))
}

fn of_arm(component: &Component, arm: &Value) -> Result<Component, PlanError> {
    let value = &component.config.value;
    build(component, arm, &value["retriever"], &value["generator"], &value["seed"])
}

fn of_job(component: &Component) -> Result<Component, PlanError> {
    let value = &component.config.value;
    let arm = crate::searcher::arm(&component.name, value);
    build(component, &arm, &value["retriever"], &value["generator"], &value["seed"])
}

fn build(
    of: &Component,
    arm: &Value,
    retriever: &Value,
    generator: &Value,
    seed: &Value,
) -> Result<Component, PlanError> {
    let mut runtime = serde_json::to_value(runtime(NAME)).map_err(PlanError::defect)?;
    runtime["admin"] = Value::Null;
    let mut value = json!({
        "runtime": runtime,
        "seed": seed,
        "arms": [arm],
        "datasets": [],
        "sample": { "size": 1 },
        "retriever": retriever,
        "output": in_work(NAME, "results"),
    });
    if !generator.is_null() {
        value["generator"] = generator.clone();
    }
    // What the question needs at once: every address that stands in the configuration.
    let template = Template { schema: Schema::Evaluator, value };
    let needs = template.symbols().into_iter().filter_map(|symbol| match symbol {
        crate::Symbol::Address { component, .. } => Some(component),
        crate::Symbol::Work { component, .. } if component != NAME => Some(component),
        _ => None,
    });
    Ok(Component {
        name: NAME.into(),
        kind: ComponentKind::Evaluation,
        role: Role::Job,
        owners: of.owners.clone(),
        binary: "s3-evaluator".into(),
        args: vec!["ask".into()],
        needs: needs.collect(),
        ports: BTreeSet::new(),
        endpoints: Vec::new(),
        volumes: of.volumes.clone(),
        secrets: BTreeSet::new(),
        inputs: Vec::new(),
        resources: ComponentResources::default(),
        readiness: Readiness::Outcome,
        config: template,
    })
}
