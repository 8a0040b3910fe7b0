//! What follows the end of a process.

use super::{Phase, Supervisor};
use crate::highlights::highlight;
use crate::state::State;
use crate::text::{Problem, duration};
use s3_plan::{Component, Decision, Exit, ExitKind, Finished, Next, Role, decide, fingerprint};
use s3_telemetry::{ExitClass, Failure, Outcome};
use std::time::{Duration, Instant};

impl Supervisor {
    pub(super) fn ended(&mut self, name: &str, exit: Exit, lived: Duration) -> Result<(), Problem> {
        let component = self.component(name)?.clone();
        self.status_due = Instant::now();
        if component.role == Role::Service
            && decide(&self.plan, &component, &self.observed) == Decision::Idle
            && !self.options.keep_services
        {
            self.phases.insert(name.to_owned(), Phase::Waiting);
            self.display.finish(name, "○", "stopped, no longer needed");
            return self.record_processes();
        }
        let mut exit = exit;
        let mut said = None;
        if component.role == Role::Job && exit.kind() == ExitKind::Done {
            match self.take_outcome(&component) {
                Ok(()) => return self.record_processes(),
                Err(reason) => {
                    exit = Exit::Code(i32::from(ExitClass::Internal.code()));
                    said = Some(reason);
                }
            }
        }
        if lived >= self.options.restart.stable {
            self.restarts.remove(name);
        }
        let row = self.restarts.entry(name.to_owned()).or_default();
        let next = self.options.restart.after(component.role, exit, *row);
        let said = said.or_else(|| last_error(&self.state, name)).unwrap_or_else(|| exit.describe());
        match next {
            Next::Restart(pause) => {
                *row += 1;
                let left = self.options.restart.restarts - *row;
                let how = if said == exit.describe() { String::new() } else { format!(" ({})", exit.describe()) };
                let text = format!(
                    "{said}{how}; starting again in {} ({left} more {})",
                    duration(pause),
                    if left == 1 { "try" } else { "tries" }
                );
                self.display.finish(name, "!", &text);
                self.phases.insert(name.to_owned(), Phase::Pausing { until: Instant::now() + pause });
                self.record_processes()
            }
            Next::Finished | Next::GiveUp => {
                self.phases.insert(name.to_owned(), Phase::Waiting);
                self.display.finish(name, "✗", "failed");
                self.status.failed(name, &said);
                let class = match exit {
                    Exit::Code(code) => ExitClass::from_code(code).unwrap_or(ExitClass::Internal),
                    Exit::Signal(_) => ExitClass::Internal,
                };
                let log = self.state.log(name);
                let how = if said == exit.describe() { String::new() } else { format!("{}; ", exit.describe()) };
                Err(Problem(vec![Failure::new(class, format!("{name}: {said} ({how}log {})", log.display()))]))
            }
        }
    }

    /// Records a job's outcome; from here on it is finished for every later run.
    pub(super) fn take_outcome(&mut self, component: &Component) -> Result<(), String> {
        let path = self.state.result(&component.name);
        let text = std::fs::read(&path).map_err(|e| format!("ended without the outcome {}: {e}", path.display()))?;
        let outcome: Outcome = serde_json::from_slice(&text).map_err(|e| format!("outcome {}: {e}", path.display()))?;
        let print = fingerprint(&self.plan, component, &self.observed)
            .map_err(|on| format!("{on} lost its outcome while {} ran", component.name))?;
        let finished = Finished { fingerprint: print, digest: outcome.digest.clone() };
        self.observed.finished.insert(component.name.clone(), finished);
        self.state
            .write("finished.json", &self.observed.finished)
            .map_err(|problem| problem.0.into_iter().map(|f| f.message).collect::<String>())?;
        self.phases.insert(component.name.clone(), Phase::Finished);
        self.display.finish(&component.name, "✓", &highlight(component.kind, &outcome.summary));
        Ok(())
    }
}

/// The last line of a log that says what went wrong.
fn last_error(state: &State, name: &str) -> Option<String> {
    let text = crate::commands::logs::tail(&state.log(name), 64 << 10).ok()?;
    text.lines().rev().take(200).find_map(|line| line.strip_prefix("error: ").map(str::to_owned))
}
