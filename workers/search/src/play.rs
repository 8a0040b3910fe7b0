//! What a driver drives: one question's run of any protocol, over token ids.

use crate::episode::{Episode, SearchError, Step};
use crate::types::{Codec, Passage, Trajectory};

/// A run of one question. The driver does what [`Play::next`] says and feeds the result back.
pub trait Play {
    /// What to do next; changes nothing.
    fn next(&self) -> Step<'_>;
    /// What the model reads before it writes. It mostly grows at its end, so a KV cache can follow it; a protocol
    /// that asks in a fresh conversation changes it as a whole.
    fn context(&self) -> &[u32];
    /// Takes a sampled turn: its tokens, stop string and end-of-turn token included, and each one's log-probability.
    fn generated(&mut self, tokens: &[u32], logprobs: &[f32], codec: &dyn Codec) -> Result<(), SearchError>;
    /// Takes the passages of the search that was asked for, best first.
    fn retrieved(&mut self, passages: Vec<Passage>, codec: &dyn Codec) -> Result<(), SearchError>;
    /// Ends the run because infrastructure failed: it is masked, never scored.
    fn failed(&mut self, why: String);
    /// Why it is masked, if it is.
    fn failure(&self) -> Option<&str>;
    /// The trajectory so far, with the passages that go to the generator.
    fn finish(self) -> Trajectory;
}

impl Play for Episode {
    fn next(&self) -> Step<'_> {
        self.next()
    }

    fn context(&self) -> &[u32] {
        self.context()
    }

    fn generated(&mut self, tokens: &[u32], logprobs: &[f32], codec: &dyn Codec) -> Result<(), SearchError> {
        self.generated(tokens, logprobs, codec)
    }

    fn retrieved(&mut self, passages: Vec<Passage>, codec: &dyn Codec) -> Result<(), SearchError> {
        self.retrieved(passages, codec)
    }

    fn failed(&mut self, why: String) {
        self.failed(why);
    }

    fn failure(&self) -> Option<&str> {
        self.failure()
    }

    fn finish(self) -> Trajectory {
        self.finish()
    }
}
