//! `s3 why`.

use crate::text::Problem;
use clap::Args;
use kube::api::DynamicObject;
use kube::{Api, Client, Config};
use s3_crds::Kind;
use s3_plan::lifecycle::why;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

/// Deadline of one request to the API server.
const PATIENCE: Duration = Duration::from_secs(15);

/// Arguments of `s3 why`.
#[derive(Args)]
pub struct WhyArgs {
    /// The resource, `KIND/NAME` (`S3TrainingJob/quickstart`; the kind in any case, or its plural or short name).
    #[arg(value_name = "KIND/NAME")]
    resource: String,
    /// Its namespace; the kubeconfig's by default.
    #[arg(short, long)]
    namespace: Option<String>,
}

/// Says where a resource of the cluster stands, what holds it up, and what to do.
pub fn run(args: &WhyArgs) -> Result<ExitCode, Problem> {
    let (kind, name) = parse(&args.resource)?;
    // A second provider in the process would be an error here; there is none, and the first stays.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Problem::internal)?;
    runtime.block_on(explain(args.namespace.as_deref(), kind, name))
}

fn parse(text: &str) -> Result<(Kind, String), Problem> {
    let kinds = Kind::ALL.map(Kind::name).join(", ");
    let wrong = || Problem::input(format!("{text}: write KIND/NAME with a kind of {kinds}"));
    let (kind, name) = text.split_once('/').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
    let kind = kind.to_ascii_lowercase();
    let known = Kind::ALL.into_iter().find(|of| {
        let names = &s3_crds::crd(*of)["spec"]["names"];
        let short = names["shortNames"].as_array().into_iter().flatten().any(|short| *short == kind.as_str());
        short || names["plural"] == kind.as_str() || of.name().to_ascii_lowercase() == kind
    });
    Ok((known.ok_or_else(wrong)?, name.to_owned()))
}

async fn explain(namespace: Option<&str>, kind: Kind, name: String) -> Result<ExitCode, Problem> {
    let mut config = Config::infer().await.map_err(|error| {
        Problem::input(format!("no cluster: {error}; set KUBECONFIG (runs of this machine are shown by `s3 status`)"))
    })?;
    config.connect_timeout = Some(PATIENCE);
    config.read_timeout = Some(PATIENCE);
    let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
    let client = Client::try_from(config).map_err(Problem::internal)?;
    let mut open = vec![(kind, name, 0)];
    let mut seen = BTreeSet::new();
    let mut found = true;
    while let Some((kind, name, depth)) = open.pop() {
        if !seen.insert((kind, name.clone())) {
            continue;
        }
        let indent = "  ".repeat(depth);
        let Some(object) = get(&client, &namespace, kind, &name).await? else {
            println!("{indent}{}/{name} does not exist in namespace {namespace}", kind.name());
            found &= depth > 0;
            continue;
        };
        let answer = why(kind, &object);
        println!("{indent}{}: {}", answer.title, answer.condition.as_deref().unwrap_or("not looked at"));
        println!("{indent}  {}", answer.message);
        if !answer.action.is_empty() {
            println!("{indent}  {}", answer.action);
        }
        open.extend(answer.blocked_by.into_iter().map(|(kind, name)| (kind, name, depth + 1)));
    }
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn get(client: &Client, namespace: &str, kind: Kind, name: &str) -> Result<Option<serde_json::Value>, Problem> {
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &s3_crds::api_resource(kind));
    match api.get_opt(name).await {
        Ok(object) => object.map(serde_json::to_value).transpose().map_err(Problem::internal),
        Err(kube::Error::Api(status)) => Err(Problem::unavailable(format!("the API server: {}", status.message))),
        Err(error) => Err(Problem::unavailable(format!("the API server: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn kinds_have_several_names() {
        for text in ["S3TrainingJob/a", "s3trainingjob/a", "s3trainingjobs/a"] {
            assert_eq!(parse(text).unwrap(), (Kind::S3TrainingJob, "a".to_owned()));
        }
        assert!(parse("Pod/a").is_err() && parse("a").is_err() && parse("EvalRun/").is_err());
    }
}
