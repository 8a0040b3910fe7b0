//! Fetches models and data from hubs and buckets: resumable, verified, kept by digest.
//!
//! What is there stays: a later run fetches only what is missing or no longer what is expected, so all attempts
//! of a job see the same bytes, whatever a branch points to by then.

mod download;
mod error;
mod run;
mod store;

pub use error::FetchError;
pub use run::run;
