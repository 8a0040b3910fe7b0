//! Evaluations on a job's schedule, as `EvalRun`s that belong to the job.

use super::status;
use crate::key::Key;
use crate::operator::Shared;
use crate::scene::{Scene, value_of};
use crate::world::template_of;
use crate::write::Trouble;
use kube::ResourceExt;
use kube::api::DynamicObject;
use s3_crds::{EvalRun, EvalRunSpec, Kind, S3TrainingJobSpec, S3TrainingJobStatus, api_resource, condition_type};
use s3_plan::lifecycle::{
    ScheduleDecision, ScheduleMove, ScheduleView, SeenRun, decide_schedule, scheduled_name, steps_of,
};
use s3_plan::objects::MANAGER;
use s3_plan::{PlanError, Resources};
use serde_json::json;
use std::collections::BTreeMap;

/// Holds them as they should be; what to say of them.
pub async fn hold(
    shared: &Shared,
    key: &Key,
    scene: &Scene,
    spec: &S3TrainingJobSpec,
    finished: bool,
    milestones: &BTreeMap<u32, String>,
) -> Result<ScheduleDecision, Trouble> {
    let Some(template) = template_of(&scene.object) else { return Ok(ScheduleDecision::default()) };
    let (job, namespace) = (scene.object.name_any(), scene.namespace());
    let fit = read_template(shared, &namespace, template);
    let mut runs = BTreeMap::new();
    let mut objects = BTreeMap::new();
    for name in steps_of(spec).map(|step| scheduled_name(&job, template, step)) {
        if let Some(object) = shared.world.resource(Kind::EvalRun, &namespace, &name) {
            runs.insert(name.clone(), seen(&object, &scene.object.uid().unwrap_or_default()));
            objects.insert(name, object);
        }
    }
    let template = fit.as_ref().map_err(Clone::clone);
    let decision = decide_schedule(&ScheduleView { job: &job, spec, finished, milestones, template, runs: &runs });
    for step in &decision.moves {
        match step {
            ScheduleMove::Make { name, step, spec } => {
                let owners = [scene.owner()];
                let mut object = DynamicObject::new(name, &api_resource(Kind::EvalRun)).within(&namespace);
                object.metadata.owner_references = Some(owners.to_vec());
                object.labels_mut().insert("app.kubernetes.io/managed-by".to_owned(), MANAGER.to_owned());
                let spec = serde_json::to_value(spec).map_err(|error| PlanError::Defect(error.to_string()))?;
                object.data = json!({ "spec": spec });
                shared.writer.make(key, Kind::EvalRun, &object, &owners).await?;
                tracing::info!(%key, step, run = name, "evaluation made");
            }
            ScheduleMove::Suspend { name, on } => {
                let Some(object) = objects.get(name) else { continue };
                let patch = json!({ "spec": { "suspend": on } });
                shared.writer.change(key, Kind::EvalRun, &object.metadata, patch).await?;
            }
            ScheduleMove::Remove { name } => {
                let Some(object) = objects.get(name) else { continue };
                shared.writer.delete(key, Kind::EvalRun.name(), &object.metadata).await?;
            }
        }
    }
    Ok(decision)
}

/// Puts a decision into the status.
pub fn tell(decision: ScheduleDecision, scene: &Scene, status: &mut S3TrainingJobStatus) {
    if decision.said.is_empty() {
        status.conditions.retain(|condition| condition.type_ != condition_type::EVALUATED);
    }
    status::say(&mut status.conditions, &decision.said, &scene.object);
    status.evaluations = decision.evaluations;
}

/// The template, or why there is none.
fn read_template(shared: &Shared, namespace: &str, name: &str) -> Result<EvalRunSpec, String> {
    let object = shared
        .world
        .resource(Kind::EvalRun, namespace, name)
        .ok_or_else(|| format!("EvalRun/{name} does not exist"))?;
    let (mut resources, refused) = Resources::from_cluster([(Kind::EvalRun, value_of(&object, Kind::EvalRun))]);
    resources.runs.remove(name).map(|run| run.object.spec).ok_or_else(|| {
        let errors = refused.values().flatten().map(ToString::to_string).collect::<Vec<_>>();
        format!("EvalRun/{name} is not valid: {}", errors.join("; "))
    })
}

fn seen(object: &DynamicObject, uid: &str) -> SeenRun {
    let read = serde_json::from_value::<EvalRun>(value_of(object, Kind::EvalRun)).ok();
    SeenRun {
        ours: object.owner_references().iter().any(|owner| owner.uid == uid),
        going: object.metadata.deletion_timestamp.is_some(),
        status: read.as_ref().and_then(|run| run.status.clone()).unwrap_or_default(),
        spec: read.map(|run| run.spec),
    }
}
