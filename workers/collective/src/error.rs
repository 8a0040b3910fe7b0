//! Why ranks could not do something together.

/// Why ranks could not do something together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CollectiveError {
    /// A rank vanished: its process was killed, its node or the network went away.
    #[error(
        "replica {rank} was lost ({reason}); this attempt is over, the next one goes on from the newest checkpoint"
    )]
    Lost {
        /// Which.
        rank: usize,
        /// How it was noticed.
        reason: String,
    },
    /// A rank left and said why.
    #[error("replica {rank} ended: {message}")]
    Left {
        /// Which.
        rank: usize,
        /// Its exit code.
        code: u8,
        /// Its last words.
        message: String,
    },
    /// Ranks do different things: a defect, or other versions of the program.
    #[error("replica {rank} sent {theirs} where {ours} was due; run the same version everywhere")]
    OutOfStep {
        /// Which.
        rank: usize,
        /// What it sent.
        theirs: String,
        /// What was due.
        ours: String,
    },
    /// Not all ranks came.
    #[error(
        "the replicas did not come together within {seconds} s: {missing}; check that all of them were started and that \
         the network lets them reach each other"
    )]
    Rendezvous {
        /// How long was waited.
        seconds: u64,
        /// Whom this rank misses, and why.
        missing: String,
    },
    /// The configuration cannot work.
    #[error("{0}")]
    Input(String),
    /// This rank was asked to stop while it waited.
    #[error("interrupted; run the same command again to continue")]
    Interrupted,
}

/// Result of working together.
pub type Result<T> = std::result::Result<T, CollectiveError>;
