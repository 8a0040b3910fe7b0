//! Drives search episodes: a decoder writes turns, the retriever answers searches, the generator gateway
//! answers questions from what was selected.
//!
//! * [`Player`] plays a batch of episodes to their ends; its token stream is exactly what is trained on.
//! * [`Stream`] plays episodes that wait for nobody but themselves, with every call made elsewhere; [`Ahead`] keeps
//!   whole rounds of them under way while the trainer learns from earlier ones.
//! * [`ServedPlayer`] plays other methods with a model behind the gateway.
//! * [`RetrieverPeer`] and [`GeneratorPeer`] are blocking clients with outages told apart from refusals.
//! * [`score_answers`] turns selections into answers and verdicts; an outage masks a sample, it is never a
//!   wrong answer.
//! * [`arms`]: methods that gather passages or answer themselves, for evaluations and baselines.
//! * [`record`] is what a training run leaves behind, for resuming and for the report.

mod ahead;
pub mod arms;
mod calls;
mod codec;
mod convert;
mod error;
mod peers;
mod play;
pub mod record;
mod score;
mod served;
mod stream;

pub use ahead::{Ahead, policy_of};
pub use codec::ModelCodec;
pub use error::RolloutError;
pub use peers::{
    AnswerOutcome, AnswerSource, ChatSampling, ChatSource, Completion, CompletionOutcome, GeneratorPeer, Judged, Link,
    Retrieve, RetrieverPeer, Usage,
};
pub use play::{EpisodeRequest, Player, Sampling, Seat, TurnCodec, question_key};
pub use score::{Ask, Missing, Scored, all_failed, distinct, score_answers, score_own};
pub use served::{Characters, Served, ServedPlayer, in_characters};
pub use stream::{Continuation, Continued, Job, Pace, RolloutServer, Stage, Stream, Writer};
