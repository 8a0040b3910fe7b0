//! The trainer: naive-RAG baseline answers, supervised warm start, policy updates from real episodes, export.
//!
//! * [`data`]: which questions are trained on; [`baseline`]: the stored naive-RAG answers.
//! * [`sft`]: warm starts, of the search protocol and of a generator's short answers.
//! * [`train`]: rollouts, rewards and policy updates; [`learn`] holds their mathematics.
//! * `engine`: servers that write the episodes in the place of this process.
//! * [`replay`]: one episode again, beside what was stored.
//! * [`checkpoint`] and [`identity`]: what a run is, and how it goes on after any interruption.

pub mod baseline;
pub mod checkpoint;
pub mod data;
mod engine;
pub mod export;
pub mod identity;
pub mod learn;
pub mod replay;
pub mod run;
pub mod sft;
mod team;
pub mod train;
pub mod world;
