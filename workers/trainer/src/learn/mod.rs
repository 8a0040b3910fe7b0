//! The mathematics of learning: pure functions over host vectors, no model and no I/O.
//!
//! Every array holds action tokens only. Prompt and observation tokens never enter, so they cannot change
//! a return, an advantage, a whitening statistic or a gradient. (`compatibility: S3` does what the reference
//! does: it hands in *all* tokens of the response to [`advantages`] and to the critic; the policy's loss still
//! gets action tokens only.)
//!
//! Units: log-probabilities, entropies and KL in nats; rewards, values, returns in units of the reward;
//! advantages in those of the estimator (whitened ones have none); weights are shares of a batch. Sources stand
//! at each function; `docs/learning.md` has the table, and `tests/parity.rs` compares with the public trainers'
//! own functions.

mod advantage;
mod aggregate;
mod importance;
mod kl;
mod loss;

pub use advantage::{Advantages, EpisodeReturn, advantages, zero_variance};
pub use aggregate::{micro_weights, token_weights};
pub use importance::{Importance, importance};
pub use kl::{kl_penalties, kl_term, mismatch_kl};
pub use loss::{PolicyLoss, TokenBatch, ValueLoss, policy_loss, value_loss};
