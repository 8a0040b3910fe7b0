//! What a worker shows of itself: metrics, logs, health, progress and its outcome; how it ends, and its threads.

mod admin;
mod catalogue;
mod exit;
mod last_words;
mod logging;
mod outcome;
mod progress;
mod shutdown;
mod threads;

pub use admin::{AdminError, serve_admin};
pub use catalogue::{CATALOGUE, Metric, MetricKind, Metrics, metrics};
pub use exit::{ExitClass, Failure, finish, one_line};
pub use last_words::{CheckpointNote, LastWords, TERMINATION_LIMIT, Termination, last_words};
pub use logging::init_logging;
pub use outcome::{Outcome, write_outcome};
pub use progress::{Progress, ProgressReport, read_progress};
pub use shutdown::Shutdown;
pub use threads::fix_threads;
