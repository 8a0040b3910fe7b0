//! The search world: a task small enough to learn in CPU-minutes, with the shape of the real one.
//!
//! Every episode draws its own knowledge base of (entity, relation, entity) facts, so nothing can be
//! memorised. A question names an entity and two relations; the answer is two hops away. Naive retrieval of
//! the question brings the first hop and distractors. The searcher must copy the bridge entity out of the
//! first document into a query, and then select the right one of two retrieved documents. The baseline is
//! right only by luck; GBR is what the query and the selection win over it.

mod learn;
mod play;
mod served;
mod task;

pub use learn::{Conditions, Curve, WorldConfig, evaluate, reinforce, warm_start};
pub use play::{Rollout, play};
pub use served::{Latency, Services, Way, reinforce_served};
pub use task::{Puzzle, Retriever, Rng, Vocabulary};
