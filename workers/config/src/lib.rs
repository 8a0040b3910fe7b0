//! The typed configuration of every worker.
//!
//! `operator/plan` writes these structs, the workers read them; a key exists once. Unknown keys are
//! refused with their name, so that a typing error never becomes a silent default.

mod algorithm;
mod evaluator;
mod fetch;
mod gateway;
mod load;
mod model;
mod retriever;
mod runtime;
mod search;
mod tls;
mod trainer;
mod web;

pub use algorithm::*;
pub use evaluator::*;
pub use fetch::*;
pub use gateway::*;
pub use load::{ConfigError, load, save};
pub use model::*;
pub use retriever::*;
pub use runtime::*;
pub use search::*;
pub use tls::*;
pub use trainer::*;
pub use web::*;
