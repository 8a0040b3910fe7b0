//! The examples, and a world in which everything is done.
#![allow(dead_code, clippy::unwrap_used)] // each test file takes a part

use s3_plan::{Finished, Observed, Plan, Role, fingerprint};
use std::path::Path;

pub const FILES: [&str; 3] = ["evalrun.yaml", "retrieverindex.yaml", "s3trainingjob.yaml"];

pub fn example(folder: &str, file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(folder).join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn quickstart() -> Vec<String> {
    FILES.iter().map(|file| example("quickstart", file)).collect()
}

/// The lines of a manifest's built-in generator, below `provider`.
pub fn gateway_of(text: &str) -> String {
    let start = text.find("      builtIn:\n").unwrap();
    let end = text[start..].find("    answer:\n").unwrap();
    text[start..start + end].to_owned()
}

/// A uid that depends on the resource.
pub fn uid(owner: &str) -> String {
    format!("uid-of-{}", owner.replace('/', "-").to_lowercase())
}

/// Everything finished, as after a whole run.
pub fn finished(plan: &Plan) -> Observed {
    let mut observed = Observed::default();
    for component in plan.components.iter().filter(|component| component.role == Role::Job) {
        let print = fingerprint(plan, component, &observed).unwrap();
        let digest = format!("outcome of {}", component.name);
        observed.finished.insert(component.name.clone(), Finished { fingerprint: print, digest });
    }
    observed
}
