//! What a driver drives: one question's run of any protocol, over token ids.

use crate::episode::{self, Episode, SearchError, Step};
use crate::script::{self, Scripted};
use crate::types::{Codec, Passage, Question, Trajectory};
use s3_config::{Compatibility, ProtocolKind, SearchConfig};

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

/// A run of the loop that a configuration describes: s3's, or Search-R1's.
#[derive(Debug)]
pub enum Searching {
    /// `compatibility` None or S3.
    Episode(Box<Episode>),
    /// `compatibility` `SearchR1`.
    SearchR1(Box<Scripted>),
}

impl Searching {
    /// Starts; `initial` are the passages of the raw question, of which Search-R1 shows none.
    pub fn new(
        question: &Question,
        sample: u32,
        initial: Vec<Passage>,
        config: &SearchConfig,
        codec: &dyn Codec,
    ) -> Result<Self, SearchError> {
        if config.compatibility == Compatibility::SearchR1 {
            let protocol = script::protocol(ProtocolKind::SearchR1, question, config)?;
            return Ok(Self::SearchR1(Box::new(Scripted::new(protocol, question, sample, config, codec)?)));
        }
        Ok(Self::Episode(Box::new(Episode::new(question, sample, initial, config, codec)?)))
    }

    /// Passages of the raw question that a run starts with.
    pub fn initial(config: &SearchConfig) -> usize {
        if config.compatibility == Compatibility::SearchR1 { 0 } else { config.initial_top_k as usize }
    }

    /// Refuses limits and templates that no run can keep.
    pub fn check(config: &SearchConfig) -> Result<(), SearchError> {
        if config.compatibility == Compatibility::SearchR1 {
            script::limits(config)?;
            return script::protocol(ProtocolKind::SearchR1, &Question::default(), config).map(|_valid| ());
        }
        episode::check(config)
    }
}

impl Play for Searching {
    fn next(&self) -> Step<'_> {
        match self {
            Self::Episode(run) => run.next(),
            Self::SearchR1(run) => run.next(),
        }
    }

    fn context(&self) -> &[u32] {
        match self {
            Self::Episode(run) => run.context(),
            Self::SearchR1(run) => run.context(),
        }
    }

    fn generated(&mut self, tokens: &[u32], logprobs: &[f32], codec: &dyn Codec) -> Result<(), SearchError> {
        match self {
            Self::Episode(run) => run.generated(tokens, logprobs, codec),
            Self::SearchR1(run) => run.generated(tokens, logprobs, codec),
        }
    }

    fn retrieved(&mut self, passages: Vec<Passage>, codec: &dyn Codec) -> Result<(), SearchError> {
        match self {
            Self::Episode(run) => run.retrieved(passages, codec),
            Self::SearchR1(run) => run.retrieved(passages, codec),
        }
    }

    fn failed(&mut self, why: String) {
        match self {
            Self::Episode(run) => run.failed(why),
            Self::SearchR1(run) => run.failed(why),
        }
    }

    fn failure(&self) -> Option<&str> {
        match self {
            Self::Episode(run) => run.failure(),
            Self::SearchR1(run) => run.failure(),
        }
    }

    fn finish(self) -> Trajectory {
        match self {
            Self::Episode(run) => run.finish(),
            Self::SearchR1(run) => run.finish(),
        }
    }
}
