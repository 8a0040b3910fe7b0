//! `s3 reproduce`: the reference's evaluation on the files that it was released with.
//!
//! The resources of `examples/reproduce` (or your own) are run on the first N questions, in hash order, of the
//! released Parquet file; contexts and scores are then also written in the reference's own formats, and the paper's
//! figures printed beside.

use super::compare::evaluator;
use super::run::{RunArgs, go};
use crate::documents;
use crate::out::Out;
use crate::state::State;
use crate::text::Problem;
use clap::Args;
use s3_crds::{ArmMethod, Dataset, QuestionSet};
use s3_plan::{Resources, evaluation_name};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Arguments of `s3 reproduce`.
#[derive(Args)]
pub struct ReproduceArgs {
    #[command(flatten)]
    run: RunArgs,
    /// Questions in all; without it every question.
    #[arg(long, value_name = "N")]
    limit: Option<u32>,
    /// The released file (`test_e5_s3.parquet`, `mirage_wiki_test.parquet`), in place of the evaluations' own datasets.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// With --data: its sets, by the names that `set` of a dataset has.
    #[arg(long, value_name = "SET", value_delimiter = ',', requires = "data", value_parser = set,
          default_value = "Nq,TriviaQa,PopQa,HotpotQa,TwoWiki,MuSiQue")]
    sets: Vec<QuestionSet>,
}

fn set(name: &str) -> Result<QuestionSet, String> {
    serde_json::from_value(name.into()).map_err(|error| error.to_string())
}

/// Runs it, and writes the reference's files below `STATE/reproduction`.
pub fn run(args: &ReproduceArgs) -> Result<ExitCode, Problem> {
    let mut resources = documents::read(&args.run.files)?;
    if resources.runs.is_empty() {
        return Err(Problem::input("no EvalRun in the given files; start from examples/reproduce"));
    }
    let data = match &args.data {
        Some(path) => Some(path.canonicalize().map_err(|error| Problem::io("read", path, &error))?),
        None => None,
    };
    narrow(&mut resources, args.limit, data.as_deref(), &args.sets)?;
    let searchers: Vec<(String, String)> = searchers(&resources);
    let code = go(&args.run, resources)?;
    if code != ExitCode::SUCCESS {
        return Ok(code);
    }
    let state = State::existing(&args.run.state.state)?;
    for (run, arm) in searchers {
        let component = evaluation_name(&run);
        let folder = state.root().join("reproduction").join(&run).join(&arm);
        writeln!(Out, "the reference's files for {run}, arm {arm}:")?;
        let results = state.work(&component).join("results");
        let written = evaluator(&[
            "export".into(),
            "--results".into(),
            results.into(),
            "--reference".into(),
            folder.into(),
            "--arm".into(),
            arm.into(),
        ])?;
        if written != ExitCode::SUCCESS {
            return Ok(written);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Narrows every evaluation to the limit and the released file.
fn narrow(
    resources: &mut Resources,
    limit: Option<u32>,
    data: Option<&Path>,
    sets: &[QuestionSet],
) -> Result<(), Problem> {
    for run in resources.runs.values_mut() {
        let spec = &mut run.object.spec;
        if limit.is_some() {
            spec.sample.size = limit;
        }
        if let Some(path) = data {
            let dataset = |set: &QuestionSet| {
                let name = serde_json::to_value(set).map_err(Problem::internal)?;
                Ok(Dataset {
                    name: name.as_str().unwrap_or_default().to_lowercase(),
                    set: *set,
                    uri: Some(format!("file://{}", path.display())),
                    ..Dataset::default()
                })
            };
            spec.datasets = sets.iter().map(dataset).collect::<Result<_, Problem>>()?;
        }
    }
    Ok(())
}

/// Every evaluation's arms with a searcher: those have contexts that the reference's scripts would read.
fn searchers(resources: &Resources) -> Vec<(String, String)> {
    let arms = resources.runs.iter().flat_map(|(name, run)| {
        let own = run.object.spec.arms.iter().filter(|arm| arm.method == ArmMethod::S3);
        own.map(|arm| (name.clone(), arm.name.clone()))
    });
    arms.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_example_is_narrowed_to_the_released_file() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/reproduce");
        let mut resources = documents::read(&[folder]).unwrap();
        let sets = ["Nq", "HotpotQa"].map(|name| set(name).unwrap());
        narrow(&mut resources, Some(10), Some(Path::new("/released/test_e5_s3.parquet")), &sets).unwrap();
        let spec = &resources.runs["reproduce"].object.spec;
        assert_eq!((spec.sample.size, spec.datasets.len()), (Some(10), 2));
        assert_eq!(spec.datasets[1].name, "hotpotqa");
        assert_eq!(spec.datasets[1].uri.as_deref(), Some("file:///released/test_e5_s3.parquet"));
        assert_eq!(searchers(&resources), [("reproduce".to_owned(), "s3-8-3-3".to_owned())]);
        assert!(set("Nope").is_err());
        // and it is a plan: everything that the reference's setting needs can be said
        s3_plan::plan(&resources).unwrap();
    }
}
