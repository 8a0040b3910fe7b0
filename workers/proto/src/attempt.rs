//! What a job does around its work where several tries of it may be alive: it takes its folder, reports, and
//! hands nothing over once a newer try has taken over.

use crate::{Patience, Reporter};
use s3_artifacts::{ArtifactError, Head};
use s3_config::Runtime;
use s3_telemetry::{Failure, Progress, Shutdown, last_words};

/// One process of one try. On one machine, where one process at a time is certain, it does nothing.
///
/// Dropping it sends the last report.
pub struct Attempt {
    head: Option<Head>,
    _reporter: Option<Reporter>,
}

impl Attempt {
    /// Takes the state folder for this try and starts to report.
    pub fn begin(runtime: &Runtime, progress: &Progress, shutdown: &Shutdown) -> Result<Self, Failure> {
        last_words().write_to(runtime.termination_message.as_deref());
        let Some(attempt) = &runtime.attempt else { return Ok(Self { head: None, _reporter: None }) };
        // Only the first replica publishes, so only it holds the folder.
        let head = match attempt.rank {
            0 => Some(Head::claim(&runtime.state_dir, attempt.epoch).map_err(refused)?),
            _ => None,
        };
        let reporter = match &runtime.operator {
            Some(operator) => {
                let reporter =
                    Reporter::start(operator, &runtime.name, attempt, progress, shutdown, Patience::default());
                Some(reporter.map_err(Failure::input)?)
            }
            None => None,
        };
        Ok(Self { head, _reporter: reporter })
    }

    /// An error once a newer try has taken over; to be asked before anything is handed over.
    pub fn check(&self) -> Result<(), Failure> {
        match &self.head {
            Some(head) => head.check().map(drop).map_err(refused),
            None => Ok(()),
        }
    }
}

fn refused(error: ArtifactError) -> Failure {
    if error.is_fenced() {
        Failure::fenced(error)
    } else if error.is_io() {
        Failure::io(error)
    } else {
        Failure::input(error)
    }
}
