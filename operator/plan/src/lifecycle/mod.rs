//! What happens to a resource next, decided from what was observed: pure functions from state to a move and a reason.
//!
//! An *attempt* is one try of a job component. Its record stands on its `ConfigMap`: number, identity and, once
//! it has ended, what became of it. Records outlive Jobs and pods, so everything here can be decided again at any
//! time, by another process, with the same result. The controller carries moves out; `s3 why` prints them.

mod attempt;
mod classify;
mod index;
mod job;
mod queue;
mod run;
mod schedule;
mod stage;
mod summary;
mod supply;
mod why;

pub use attempt::{Attempted, End, Live, Record, StopCause, Verdict};
pub use classify::{PodEnd, cause, class_word, classify, default_action};
pub use index::{IndexDecision, IndexView, Serving, decide_index};
pub use job::{JobDecision, JobView, decide_job};
pub use queue::{Admission, Grant, QueueStep, admission, queue_step};
pub use run::{RunDecision, RunView, decide_run};
pub use schedule::{
    ScheduleDecision, ScheduleMove, ScheduleView, SeenRun, decide_schedule, scheduled_name, scheduled_run, steps_of,
};
pub use stage::{Failing, Move, Stage, Waiting, begins_anew, gpu_seconds, held_seconds, next_move, pause_after};
pub use summary::{fill_index, fill_job, fill_run};
pub use supply::{Supplies, Supply, holds, waits_for_gateway, wants_gateway};
pub use why::{Why, why};

use s3_crds::Reason;

/// A condition to set.
pub type Said = (Reason, String);
