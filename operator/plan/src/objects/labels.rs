//! Labels and annotations by which objects are found again and told apart.

use super::Context;
use crate::names::short_digest;
use crate::{Component, ComponentKind, PlanError, Role, WorkIdentity, work_identity};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use std::collections::BTreeMap;

/// `app.kubernetes.io/managed-by` and the field manager of server-side apply.
pub const MANAGER: &str = "s3-operator";
/// Kind of the resource that a component belongs to; gateways belong to several and have none.
pub const KIND_LABEL: &str = "searchagent.dev/kind";
/// Name of that resource, cut as [`label_value`] says.
pub const NAME_LABEL: &str = "searchagent.dev/name";
/// The component.
pub const COMPONENT_LABEL: &str = "searchagent.dev/component";
/// Number of the attempt, on everything that belongs to one.
pub const ATTEMPT_LABEL: &str = "searchagent.dev/attempt";
/// Before a service component's name: label of the pods that call it.
pub const CLIENT_LABEL_PREFIX: &str = "client.searchagent.dev/";
/// Fingerprint of the component when the object was made, see [`crate::fingerprint`].
pub const FINGERPRINT_ANNOTATION: &str = "searchagent.dev/fingerprint";
/// Identity of the work in its folder without the number of steps, see [`WorkIdentity`].
pub const WORK_ANNOTATION: &str = "searchagent.dev/work";
/// Steps of that work.
pub const STEPS_ANNOTATION: &str = "searchagent.dev/steps";

/// The longest value of a label.
const LONGEST: usize = 63;

/// A name as a label's value: unchanged up to 63 characters, longer ones cut and told apart by a digest.
pub fn label_value(name: &str) -> String {
    if name.len() <= LONGEST {
        return name.to_owned();
    }
    let mark = short_digest(name);
    let keep: String = name.chars().take(LONGEST - mark.len() - 1).collect();
    format!("{}-{mark}", keep.trim_end_matches(['-', '.', '_']))
}

/// The resource (`Kind`, name) that a component belongs to; a gateway belongs to all its users alike.
pub fn belongs_to(component: &Component) -> Option<(&str, &str)> {
    let kind = match component.kind {
        ComponentKind::Gateway | ComponentKind::GatewayFetch | ComponentKind::ModelServer => return None,
        ComponentKind::Fetch => return component.owners.iter().find_map(|owner| owner.split_once('/')),
        ComponentKind::IndexBuild | ComponentKind::Retriever | ComponentKind::WebSearch => "RetrieverIndex",
        ComponentKind::Baseline | ComponentKind::WarmStart | ComponentKind::Training | ComponentKind::Searcher => {
            "S3TrainingJob"
        }
        ComponentKind::Evaluation => "EvalRun",
    };
    component.owners.iter().filter_map(|owner| owner.split_once('/')).find(|(of, _)| *of == kind)
}

/// What selects the pods of a component, of all its attempts.
pub fn component_selector(component: &Component) -> BTreeMap<String, String> {
    BTreeMap::from([(COMPONENT_LABEL.to_owned(), component.name.clone())])
}

/// The identity of the work that an object was made for, read back from its annotations.
pub fn identity_of(metadata: &ObjectMeta) -> Option<WorkIdentity> {
    let annotations = metadata.annotations.as_ref()?;
    let steps = annotations.get(STEPS_ANNOTATION)?.parse().ok()?;
    Some(WorkIdentity { settings: annotations.get(WORK_ANNOTATION)?.clone(), steps })
}

impl Context<'_> {
    /// Labels of the component's objects.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        self.labels_of(self.component)
    }

    /// Labels of another component's objects.
    pub(crate) fn labels_of(&self, component: &Component) -> BTreeMap<String, String> {
        let mut labels = self.surroundings.labels.clone();
        let mut set = |key: &str, value: &str| labels.insert(key.to_owned(), label_value(value));
        set("app.kubernetes.io/name", &component.binary);
        set("app.kubernetes.io/component", component_word(component.kind));
        set("app.kubernetes.io/part-of", "s3");
        set("app.kubernetes.io/managed-by", MANAGER);
        set(COMPONENT_LABEL, &component.name);
        match belongs_to(component) {
            Some((kind, name)) => {
                set("app.kubernetes.io/instance", name);
                set(KIND_LABEL, kind);
                set(NAME_LABEL, name);
            }
            None => {
                set("app.kubernetes.io/instance", &component.name);
            }
        }
        labels
    }

    /// Labels of what belongs to one attempt.
    pub(crate) fn attempt_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.labels();
        if self.component.role == Role::Job {
            labels.insert(ATTEMPT_LABEL.to_owned(), self.attempt.number.to_string());
        }
        labels
    }

    /// Metadata of an object of the component.
    pub(crate) fn metadata(
        &self,
        name: String,
        labels: BTreeMap<String, String>,
        owners: Vec<OwnerReference>,
    ) -> ObjectMeta {
        ObjectMeta {
            name: Some(name),
            namespace: Some(self.surroundings.namespace.clone()),
            labels: Some(labels),
            owner_references: (!owners.is_empty()).then_some(owners),
            ..ObjectMeta::default()
        }
    }

    /// Annotations that say for which work an object was made.
    pub(crate) fn identity_annotations(&self) -> Result<BTreeMap<String, String>, PlanError> {
        let mut annotations = BTreeMap::from([(FINGERPRINT_ANNOTATION.to_owned(), self.fingerprint.clone())]);
        if self.component.role == Role::Job {
            let work = work_identity(self.plan, self.component, self.observed)
                .map_err(|on| PlanError::Binding(format!("{} waits for the outcome of {on}", self.component.name)))?;
            annotations.insert(WORK_ANNOTATION.to_owned(), work.settings);
            annotations.insert(STEPS_ANNOTATION.to_owned(), work.steps.to_string());
        }
        Ok(annotations)
    }
}

/// The component's kind as a word of labels.
pub(crate) fn component_word(kind: ComponentKind) -> &'static str {
    match kind {
        ComponentKind::Fetch | ComponentKind::GatewayFetch => "fetch",
        ComponentKind::IndexBuild => "index-build",
        ComponentKind::Retriever => "retriever",
        ComponentKind::WebSearch => "web-search",
        ComponentKind::Gateway => "gateway",
        ComponentKind::ModelServer => "model-server",
        ComponentKind::Baseline => "baseline",
        ComponentKind::WarmStart => "warm-start",
        ComponentKind::Training => "training",
        ComponentKind::Searcher => "searcher",
        ComponentKind::Evaluation => "evaluation",
    }
}
