//! `s3 compare A B`: two evaluations, or two arms of one, question by question.

use crate::out::Out;
use crate::process::binary_folder;
use crate::text::Problem;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// Arguments of `s3 compare`.
#[derive(Args)]
pub struct CompareArgs {
    /// A run's state folder, or a folder of published results.
    first: PathBuf,
    /// What it is compared with; the same by default, then two arms are named.
    second: Option<PathBuf>,
    /// Arm of the first; by default the one with a searcher.
    #[arg(long)]
    arm: Option<String>,
    /// Arm of the second.
    #[arg(long)]
    with: Option<String>,
    /// Also lists these questions: won, lost, both, neither.
    #[arg(long, value_delimiter = ',', value_name = "QUADRANT")]
    show: Vec<String>,
    /// How many of each.
    #[arg(long, default_value_t = 20)]
    limit: usize,
    /// Writes all questions with both answers as a table instead: json, csv, parquet, markdown or latex.
    #[arg(long, value_name = "FORMAT")]
    export: Option<String>,
}

/// Prints who wins where, with the paired tests.
pub fn run(args: &CompareArgs) -> Result<ExitCode, Problem> {
    let mut arguments: Vec<std::ffi::OsString> = vec!["compare".into(), "--first".into(), results(&args.first)?.into()];
    if let Some(second) = &args.second {
        arguments.extend(["--second".into(), results(second)?.into()]);
    }
    for (flag, value) in [("--arm", &args.arm), ("--with", &args.with), ("--format", &args.export)] {
        if let Some(value) = value {
            arguments.extend([flag.into(), value.into()]);
        }
    }
    for quadrant in &args.show {
        arguments.extend(["--show".into(), quadrant.into()]);
    }
    arguments.extend(["--limit".into(), args.limit.to_string().into()]);
    evaluator(&arguments)
}

/// Calls the evaluator; what it prints is this command's output, and its exit code this one's.
pub fn evaluator(arguments: &[std::ffi::OsString]) -> Result<ExitCode, Problem> {
    let binary = binary_folder().map_err(Problem::internal)?.join("s3-evaluator");
    let ended = Command::new(&binary)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Problem::io("start", &binary, &error))?;
    Out.write_all(&ended.stdout)?;
    let code = ended.status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The published results that a path means: itself, or the only evaluation of a run's state folder.
pub fn results(path: &Path) -> Result<PathBuf, Problem> {
    if path.join("manifest.json").is_file() {
        return Ok(path.to_owned());
    }
    let work = path.join("work");
    let mut found: Vec<PathBuf> = std::fs::read_dir(&work)
        .map_err(|_| {
            Problem::input(format!("{} holds neither results nor a run; name a run's state folder", path.display()))
        })?
        .filter_map(|entry| Some(entry.ok()?.path().join("results")))
        .filter(|folder| folder.join("manifest.json").is_file())
        .collect();
    found.sort();
    match found.as_slice() {
        [only] => Ok(only.clone()),
        [] => Err(Problem::input(format!(
            "{}: no evaluation is finished yet; run the same `s3 run` again to continue",
            path.display()
        ))),
        several => {
            let names: Vec<String> = several.iter().map(|folder| folder.display().to_string()).collect();
            Err(Problem::input(format!("{}: several evaluations; name one: {}", path.display(), names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_path_means_one_evaluation() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let folder = dir.path().join("work").join(name).join("results");
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("manifest.json"), "{}").unwrap();
            folder
        };
        let said = |path: &Path| results(path).unwrap_err().0[0].to_string();
        assert!(said(dir.path()).contains("neither results nor a run"));
        std::fs::create_dir_all(dir.path().join("work/retriever")).unwrap();
        assert!(said(dir.path()).contains("no evaluation is finished"));
        let one = make("evaluation-a");
        assert_eq!(results(dir.path()).unwrap(), one);
        assert_eq!(results(&one).unwrap(), one);
        make("evaluation-b");
        assert!(said(dir.path()).contains("evaluation-b"));
    }
}
