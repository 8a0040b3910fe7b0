//! The values of the chart as types, from which `charts/s3-operator/values.schema.json` is made.

use s3_crds::{Resources, Storage};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Labels, annotations and selectors.
pub type Words = BTreeMap<String, String>;

/// Everything that a user of the chart can set.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Values {
    /// The custom resource definitions.
    pub crds: Crds,
    /// Images of all programs.
    pub image: Image,
    /// Secrets of the registry, for the operator and its workers.
    pub image_pull_secrets: Vec<String>,
    /// Operators; one leads, the others stand by.
    #[schemars(range(min = 1, max = 5))]
    pub replicas: u32,
    /// Namespaces that are served; all when empty.
    pub watch_namespaces: Vec<Name>,
    /// Seconds after which a leader that does not answer is replaced.
    #[schemars(range(min = 3, max = 600))]
    pub lease_seconds: u32,
    /// Resources that are reconciled at the same time.
    #[schemars(range(min = 1, max = 64))]
    pub reconcilers: u32,
    /// Seconds after which everything is looked at again.
    #[schemars(range(min = 1))]
    pub resync_seconds: u32,
    /// CPU and memory of the operator.
    pub resources: Resources,
    /// Labels of the nodes that may run the operator.
    pub node_selector: Words,
    /// Taints that the operator bears.
    pub tolerations: Vec<Map<String, Value>>,
    /// Affinity of the operator.
    pub affinity: Map<String, Value>,
    /// Priority class of the operator; none when empty.
    pub priority_class_name: String,
    /// Further labels of the operator's pods.
    pub pod_labels: Words,
    /// Further annotations of the operator's pods.
    pub pod_annotations: Words,
    /// Further environment variables of the operator, as in a container.
    pub env: Vec<Map<String, Value>>,
    /// What the operator makes.
    pub workers: Workers,
    /// Queues of Kueue that admit a resource as a whole (`queue.mode: Workload`).
    pub kueue: Switch,
    /// Servers of indices that follow the load (`serving.autoscaling`).
    pub autoscaling: Switch,
    /// The operator's service account.
    pub service_account: ServiceAccount,
    /// The operator's rights.
    pub rbac: Rbac,
    /// Keeps one operator running while nodes are drained; made for two replicas and more.
    pub pod_disruption_budget: Switch,
    /// Who may talk to whom.
    pub network_policy: NetworkPolicy,
    /// Scraping of the operator, by the Prometheus operator.
    pub service_monitor: Monitor,
    /// Scraping of the workers, by the Prometheus operator.
    pub pod_monitor: Monitor,
    /// Alerts with runbooks, for the Prometheus operator.
    pub alerts: Alerts,
    /// Dashboards for Grafana's sidecar.
    pub dashboards: Dashboards,
    /// What a parent chart shares; nothing of it is read.
    #[serde(default)]
    #[schemars(default)]
    pub global: Map<String, Value>,
}

/// Name of a namespace.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
pub struct Name(#[schemars(length(max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))] pub String);

/// See [`Values::crds`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Crds {
    /// Whether they belong to this release.
    pub install: bool,
    /// Whether they carry CEL rules, which Kubernetes knows since 1.25.
    pub validation: bool,
    /// Whether they, and all resources with them, stay when the chart is uninstalled.
    pub keep: bool,
}

/// See [`Values::image`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Image {
    /// Registry and folder before every program's name (`example.org/team`).
    pub registry: String,
    /// Tag; the chart's appVersion when empty.
    pub tag: String,
    /// Whether nodes ask the registry for an image that they have.
    pub pull_policy: PullPolicy,
}

/// When nodes pull.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start.
    Always,
    /// When it is missing.
    IfNotPresent,
    /// They have it.
    Never,
}

/// See [`Values::workers`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workers {
    /// Other images than `image` says, by program (`s3-trainer`).
    pub images: Words,
    /// Images of builds with CUDA by program, for pods that ask for GPUs.
    pub cuda_images: Words,
    /// Service account of pods whose resource names none; the namespace's `default` when empty.
    pub service_account: String,
    /// Labels of every object that is made.
    pub labels: Words,
    /// Annotations of every pod that is made.
    pub annotations: Words,
    /// Storage class of claims that name none; the cluster's default when empty.
    pub storage_class: String,
    /// Gateways, which the resources of a namespace share.
    pub gateway: Gateway,
}

/// See [`Workers::gateway`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Where answers are kept.
    pub storage: Storage,
    /// CPU and memory.
    pub resources: Resources,
}

/// See [`Values::service_account`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceAccount {
    /// Whether it is made.
    pub create: bool,
    /// Its name; the release's when empty and made.
    pub name: String,
    /// Annotations (cloud identities).
    pub annotations: Words,
}

/// See [`Values::rbac`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rbac {
    /// Whether roles and bindings are made.
    pub create: bool,
    /// Whether viewers, editors and admins of the cluster get the three kinds.
    pub aggregate: bool,
}

/// Something that is made or not.
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Switch {
    /// Whether it is.
    pub enabled: bool,
}

/// See [`Values::network_policy`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicy {
    /// Whether policies are made, for the operator and every worker.
    pub enabled: bool,
    /// Address ranges of the name servers; port 53 anywhere when empty.
    pub dns_ranges: Vec<String>,
    /// Address ranges of storage that workers reach themselves.
    pub storage_ranges: Vec<String>,
    /// Labels of the namespaces that may scrape metrics; any when empty.
    pub scraper_namespaces: Words,
}

/// See [`Values::service_monitor`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Monitor {
    /// Whether it is made; needs the kinds of `monitoring.coreos.com`.
    pub enabled: bool,
    /// Time between two looks.
    #[schemars(regex(pattern = r"^[0-9]+(ms|s|m|h)$"))]
    pub interval: String,
    /// Labels by which Prometheus selects it.
    pub labels: Words,
}

/// See [`Values::alerts`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Alerts {
    /// Whether they are made; needs the kinds of `monitoring.coreos.com`.
    pub enabled: bool,
    /// Labels by which Prometheus selects them.
    pub labels: Words,
}

/// See [`Values::dashboards`].
#[derive(Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dashboards {
    /// Whether they are made.
    pub enabled: bool,
    /// Labels by which Grafana's sidecar finds them.
    pub labels: Words,
    /// Annotations (a folder).
    pub annotations: Words,
}

/// The schema of the values, as Helm reads it.
///
/// Nothing is required: Helm lays a user's values over the chart's.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07();
    let schema = SchemaGenerator::new(settings).into_root_schema_for::<Values>();
    let mut schema = schema.to_value();
    relax(&mut schema);
    schema
}

/// Takes out what only the API server reads, and what a user need not say.
fn relax(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("required").is_some_and(Value::is_array) {
                fields.remove("required");
            }
            for key in ["x-kubernetes-validations", "x-kubernetes-int-or-string", "format"] {
                fields.remove(key);
            }
            // in `properties` every key is a field's name, whatever it is called
            fields.values_mut().for_each(relax);
        }
        Value::Array(items) => items.iter_mut().for_each(relax),
        _ => {}
    }
}

/// The schema as the text of its file.
pub fn schema_json() -> Result<String, serde_json::Error> {
    Ok(serde_json::to_string_pretty(&schema())? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn chart(file: &str) -> String {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../charts/s3-operator").join(file);
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[test]
    fn the_committed_schema_is_the_generated_one() {
        assert!(
            chart("values.schema.json") == schema_json().unwrap(),
            "charts/s3-operator/values.schema.json is old; run: \
             s3-operator values-schema --output charts/s3-operator/values.schema.json"
        );
    }

    #[test]
    fn the_charts_own_values_are_values() {
        let values: Values = serde_yaml_ng::from_str(&chart("values.yaml")).unwrap();
        assert!(values.crds.keep && values.watch_namespaces.is_empty());
    }
}
