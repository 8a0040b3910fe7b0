//! A cluster, as the kubeconfig names it.

use crate::text::Problem;
use kube::api::DynamicObject;
use kube::{Api, Client, Config};
use s3_crds::Kind;
use std::time::Duration;

/// Deadline of a request that the API server answers by itself.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// One namespace of a cluster.
pub struct Cluster {
    pub client: Client,
    pub namespace: String,
}

impl Cluster {
    /// Of the kubeconfig or the pod; the namespace is the kubeconfig's where none is given.
    pub async fn connect(namespace: Option<&str>, deadline: Duration) -> Result<Self, Problem> {
        // A second provider in the process would be an error here; there is none, and the first stays.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut config = Config::infer().await.map_err(|error| {
            Problem::input(format!(
                "no cluster: {error}; set KUBECONFIG (runs of this machine are shown by `s3 status`)"
            ))
        })?;
        config.connect_timeout = Some(PATIENCE);
        config.read_timeout = Some(deadline);
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        Ok(Self { client: Client::try_from(config).map_err(Problem::internal)?, namespace })
    }

    /// A resource of this project; none when there is no such.
    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<serde_json::Value>, Problem> {
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &s3_crds::api_resource(kind));
        let object = api.get_opt(name).await.map_err(|error| trouble(&error))?;
        object.map(serde_json::to_value).transpose().map_err(Problem::internal)
    }
}

/// What the API server says, or why it says nothing.
pub fn trouble(error: &kube::Error) -> Problem {
    match error {
        kube::Error::Api(status) => Problem::unavailable(format!("the API server: {}", status.message)),
        error => Problem::unavailable(format!("the API server: {error}")),
    }
}
