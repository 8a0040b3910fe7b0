//! What earlier runs left in the state folder.

use crate::state::State;
use crate::text::Problem;
use s3_plan::Observed;
use s3_telemetry::Outcome;
use std::collections::BTreeMap;

/// The outcome that a job left.
pub fn outcome(state: &State, component: &str) -> Option<Outcome> {
    serde_json::from_slice(&std::fs::read(state.result(component)).ok()?).ok()
}

/// Finished jobs whose outcome is still there and is the recorded one; the rest runs again.
pub fn observe(state: &State, inputs: BTreeMap<String, String>) -> Result<Observed, Problem> {
    let mut finished = state.finished()?;
    finished.retain(|name, record| outcome(state, name).is_some_and(|outcome| outcome.digest == record.digest));
    Ok(Observed { finished, inputs, ..Observed::default() })
}
