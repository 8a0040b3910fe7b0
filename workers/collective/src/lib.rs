//! What the replicas of a trainer do together.
//!
//! [`Collective`] is a point-to-point link to every other rank and, built on it, sums and exchanges. Every sum has
//! one order, that of the ranks, and every rank ends with the same bits, so it matters neither which message came
//! first nor which link carried it: [`Local`] joins threads of one process, [`Tcp`] processes on any machines.
//! Nobody waits for one who is gone: a rank that leaves says why, one that vanishes is noticed by its silence.

mod collective;
mod error;
mod local;
mod mailbox;
mod tcp;

pub use collective::{Collective, Tag, chunk, share};
pub use error::{CollectiveError, Result};
pub use local::Local;
pub use tcp::{Tcp, TcpOptions};

/// Asked again and again while a rank waits: whether it is to stop.
pub type Stop = std::sync::Arc<dyn Fn() -> bool + Send + Sync>;
