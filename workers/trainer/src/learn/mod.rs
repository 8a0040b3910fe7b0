//! The mathematics of learning: pure functions over host vectors, no model and no I/O.
//!
//! Every array holds action tokens only. Prompt and observation tokens never enter, so they cannot change
//! a return, an advantage, a whitening statistic or a gradient.

mod advantage;
mod kl;
mod loss;

pub use advantage::{Advantages, EpisodeReturn, advantages};
pub use kl::{kl_term, mismatch_kl};
pub use loss::{PolicyLoss, TokenBatch, ValueLoss, policy_loss, token_weights, value_loss};
