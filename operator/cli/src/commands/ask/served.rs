//! The searcher that a job serves in a cluster, asked through the API server.

use crate::cluster::{Cluster, trouble};
use crate::text::Problem;
use kube::api::PostParams;
use kube::core::Request;
use s3_crds::Kind;
use serde_json::json;
use std::time::Duration;

/// Longest wait for an answer; a searcher on a CPU takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// The reply of the searcher's `POST /answer`.
pub async fn answer(namespace: &str, job: &str, question: &str) -> Result<String, Problem> {
    let cluster = Cluster::connect(Some(namespace), PATIENCE).await?;
    let Some(object) = cluster.get(Kind::S3TrainingJob, job).await? else {
        return Err(Problem::input(format!("there is no S3TrainingJob {job} in namespace {namespace}")));
    };
    let endpoint = object.pointer("/status/endpoint").and_then(serde_json::Value::as_str).unwrap_or("");
    let Some((service, port)) = service(endpoint) else {
        return Err(Problem::input(format!(
            "{job} serves no searcher; set spec.serving, and wait for its status.endpoint (s3 why S3TrainingJob/{job})"
        )));
    };
    // The API server passes it on: no port needs to be open, and the caller's own rights decide.
    let path = format!("/api/v1/namespaces/{}/services/{service}:{port}/proxy/answer", cluster.namespace);
    let body = json!({ "question": question }).to_string().into_bytes();
    let request = Request::new(path).create(&PostParams::default(), body).map_err(Problem::internal)?;
    cluster.client.request_text(request).await.map_err(|error| trouble(&error))
}

/// Service and port of an address like `http://NAME.NAMESPACE.svc:8080`.
fn service(endpoint: &str) -> Option<(&str, &str)> {
    let (host, port) = endpoint.strip_prefix("http://")?.split_once(':')?;
    Some((host.split('.').next()?, port.trim_end_matches('/'))).filter(|(name, _)| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_name_a_service() {
        assert_eq!(service("http://a-searcher.ns.svc:8080"), Some(("a-searcher", "8080")));
        for wrong in ["", "a-searcher", "http://a", "http://:80"] {
            assert_eq!(service(wrong), None, "{wrong}");
        }
    }
}
