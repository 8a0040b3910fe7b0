//! `s3 why`.

use crate::cluster::{Cluster, PATIENCE};
use crate::out::Out;
use crate::text::Problem;
use clap::Args;
use s3_crds::Kind;
use s3_plan::lifecycle::why;
use std::collections::BTreeSet;
use std::process::ExitCode;

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
    let cluster = Cluster::connect(namespace, PATIENCE).await?;
    let mut open = vec![(kind, name, 0)];
    let mut seen = BTreeSet::new();
    let mut found = true;
    while let Some((kind, name, depth)) = open.pop() {
        if !seen.insert((kind, name.clone())) {
            continue;
        }
        let indent = "  ".repeat(depth);
        let Some(object) = cluster.get(kind, &name).await? else {
            writeln!(Out, "{indent}{}/{name} does not exist in namespace {}", kind.name(), cluster.namespace)?;
            found &= depth > 0;
            continue;
        };
        let answer = why(kind, &object);
        writeln!(Out, "{indent}{}: {}", answer.title, answer.condition.as_deref().unwrap_or("not looked at"))?;
        writeln!(Out, "{indent}  {}", answer.message)?;
        if !answer.action.is_empty() {
            writeln!(Out, "{indent}  {}", answer.action)?;
        }
        open.extend(answer.blocked_by.into_iter().map(|(kind, name)| (kind, name, depth + 1)));
    }
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
