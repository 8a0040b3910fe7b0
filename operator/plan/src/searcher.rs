//! A trained searcher that is served after its job: `S3TrainingJob` `spec.serving`.

use crate::component::{asked, in_work, runtime};
use crate::names::searcher_name;
use crate::template::Schema;
use crate::{ADMIN_PORT, Component, ComponentKind, HTTP_PORT, PlanError, Readiness, Role, Symbol, Template};
use s3_crds::AgentServing;
use serde_json::{Value, json};

/// The arm of what a trainer's configuration exports: an s3 searcher, or a model that answers itself.
pub(crate) fn arm(name: &str, trained: &Value) -> Value {
    let mut searcher = trained["searcher"].clone();
    searcher["adapter"] = json!({ "path": trained["export"] });
    let mut arm = json!({ "name": name, "method": "S3", "searcher": searcher, "search": trained["search"] });
    if trained["search"]["compatibility"] == json!("SearchR1") {
        (arm["method"], arm["answer"]) = (json!("SearchR1"), json!("Own"));
    }
    arm
}

/// The server of what `last` (the job's last component) exports.
pub(crate) fn component(name: &str, serving: &AgentServing, last: &Component) -> Result<Component, PlanError> {
    let own = searcher_name(name);
    let trained = &last.config.value;
    let mut value = json!({
        "runtime": serde_json::to_value(runtime(&own)).map_err(PlanError::defect)?,
        "seed": trained["seed"],
        "arms": [arm(name, trained)],
        "datasets": [],
        "sample": { "size": 1 },
        "retriever": trained["retriever"],
        "output": in_work(&own, "results"),
        "serve": { "http": "0.0.0.0:0", "batch": serving.batch },
    });
    if let Some(generator) = trained.get("generator") {
        value["generator"] = generator.clone();
    }
    let mut template = Template { schema: Schema::Evaluator, value };
    for (pointer, port) in [("/serve/http", HTTP_PORT), ("/runtime/admin", ADMIN_PORT)] {
        if let Some(place) = template.value.pointer_mut(pointer) {
            *place = Value::String(Symbol::Listen { port: port.to_owned() }.to_string());
        }
    }
    let needs = template.symbols().into_iter().filter_map(|symbol| match symbol {
        Symbol::Address { component, .. } => Some(component),
        Symbol::Work { component, .. } if component != own => Some(component),
        _ => None,
    });
    Ok(Component {
        name: own.clone(),
        kind: ComponentKind::Searcher,
        role: Role::Service,
        owners: last.owners.clone(),
        binary: "s3-evaluator".into(),
        args: vec!["serve".into()],
        needs: needs.collect(),
        ports: [ADMIN_PORT, HTTP_PORT].map(str::to_owned).into(),
        endpoints: Vec::new(),
        volumes: last.volumes.clone(),
        secrets: last.secrets.clone(),
        inputs: last.inputs.clone(),
        resources: asked(&serving.resources, 0, 0),
        readiness: Readiness::Reported,
        config: template,
    })
}
