//! The s3 search loop, pure: no I/O, no clock, no randomness.
//!
//! A searcher reads a question and a block of numbered passages and writes *turns*. A turn may
//! select passages of the window it sees (`<important_info>[1, 3]</important_info>`) and then either
//! searches (`<query>words</query>`) or stops (`<search_complete>True</search_complete>`).
//! [`Episode`] is that loop as a state machine over token ids: its driver asks [`Episode::next`]
//! what to do, does it (decode, retrieve), and feeds the result back. What the generator finally
//! reads is [`Trajectory::selected`].
//!
//! * [`types`]: passages, questions, turns, trajectories, [`Codec`].
//! * [`protocol`]: how a turn's text is read by default.
//! * [`compat`]: the s3 reference's own behaviour (arXiv 2505.14146), quirks included.
//! * [`prompt`]: the prompt template and token-budgeted information blocks.
//! * [`script`]: the protocols of other methods; [`Play`] is what a driver sees of them and of [`Episode`].
//! * [`score`] and [`reward`]: answers against golds, verdicts, GBR.
//! * [`eligible`]: which questions an evaluation may ask.

pub mod compat;
pub mod eligible;
mod episode;
mod play;
pub mod prompt;
pub mod protocol;
pub mod pyjson;
pub mod reward;
pub mod score;
pub mod script;
pub mod stated;
pub mod text;
pub mod types;

pub use episode::{Episode, SearchError, Step, check};
pub use play::{Play, Searching};
pub use types::{Action, Codec, CodecError, Message, Passage, Question, Role, Speaker, StopReason, Trajectory, Turn};
