//! Reading manifests from files and folders.

use crate::text::Problem;
use s3_plan::Resources;
use s3_telemetry::Failure;
use std::path::{Path, PathBuf};

/// Reads every named file, and of every named folder the YAML files directly in it, in order of name.
pub fn read(paths: &[PathBuf]) -> Result<Resources, Problem> {
    let mut resources = Resources::default();
    let mut wrong = Vec::new();
    for path in paths {
        for file in manifests(path, &mut wrong) {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) => {
                    wrong.push(Failure::input(format!("{}: {error}", file.display())));
                    continue;
                }
            };
            let folder = file.canonicalize().ok().and_then(|file| file.parent().map(Path::to_owned));
            let added = resources.add_manifest(&file.display().to_string(), folder.as_deref(), &text);
            wrong.extend(added.err().into_iter().flatten().map(Failure::input));
        }
    }
    Problem::all(wrong)?;
    if resources.is_empty() {
        return Err(Problem::input("no RetrieverIndex, S3TrainingJob or EvalRun in the given files"));
    }
    Ok(resources)
}

fn manifests(path: &Path, wrong: &mut Vec<Failure>) -> Vec<PathBuf> {
    if !path.is_dir() {
        if path.exists() {
            return vec![path.to_owned()];
        }
        wrong.push(Failure::input(format!("{}: no such file or folder", path.display())));
        return Vec::new();
    }
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) => {
            wrong.push(Failure::input(format!("{}: {error}", path.display())));
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|file| file.is_file() && file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json"))
        .collect();
    files.sort();
    if files.is_empty() {
        wrong.push(Failure::input(format!("{}: the folder holds no .yaml, .yml or .json file", path.display())));
    }
    files
}
