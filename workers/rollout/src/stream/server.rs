//! Turns that a server writes, such as vLLM: tokens go out, tokens and their log-probabilities come back.

use crate::error::RolloutError;
use crate::play::{Sampling, TurnCodec, ends_turn};
use s3_model::{Generated, SampleKey};

/// What a server is asked to continue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Continuation<'a> {
    /// The group of the episode: those of one group begin alike, so a server that knows one's beginning knows them all.
    pub group: usize,
    /// Tokens so far; never empty.
    pub prompt: &'a [u32],
    /// New tokens at most; at least 1.
    pub max_tokens: usize,
    /// Strings after which the server may stop; they are part of what it returns.
    pub stop: &'a [String],
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Of this call's randomness, below 2^53.
    pub seed: u64,
}

/// How a server went on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Continued {
    /// Tokens, those that stopped it included, with log-probabilities as [`s3_model::Sampled`] defines them.
    pub said: Generated,
    /// It stopped at one of the strings, as opposed to the model's end or a limit.
    pub at_string: bool,
}

/// A server that continues token sequences with one policy.
pub trait RolloutServer: Sync {
    /// Goes on. It blocks, and is called from as many threads as there are episodes under way.
    fn go_on(&self, from: &Continuation<'_>) -> Result<Continued, RolloutError>;
}

/// One turn to be written.
pub(super) struct Turn {
    pub group: usize,
    pub context: Vec<u32>,
    pub limit: usize,
    pub stop: Vec<String>,
    /// The episode: its question, and which sample of it.
    pub key: String,
    pub sample: u32,
    /// Which turn of the episode.
    pub number: u32,
}

/// Has a server write a turn to the end that the decoder of this process would find.
pub(super) fn write(
    server: &dyn RolloutServer,
    codec: &dyn TurnCodec,
    sampling: Sampling,
    turn: &Turn,
) -> Result<Generated, RolloutError> {
    let Sampling { temperature, top_p, seed, step } = sampling;
    let mut said = Generated::default();
    loop {
        let (sample, token) = (turn.sample, said.tokens.len() as u32);
        let key = SampleKey { seed, step, question: &turn.key, sample, turn: turn.number, token };
        let prompt = [turn.context.as_slice(), &said.tokens].concat();
        let from = Continuation {
            group: turn.group,
            prompt: &prompt,
            max_tokens: turn.limit - said.tokens.len(),
            stop: &turn.stop,
            temperature,
            top_p,
            // what JSON holds exactly
            seed: (key.uniform() * (1u64 << 53) as f64) as u64,
        };
        let Continued { said: more, at_string } = server.go_on(&from)?;
        let empty = more.tokens.is_empty();
        for (token, logprob) in more.tokens.into_iter().zip(more.logprobs) {
            if !logprob.is_finite() {
                return Err(RolloutError::NotANumber { what: "a log-probability of the rollout engine" });
            }
            said.tokens.push(token);
            said.logprobs.push(logprob);
            if ends_turn(codec, &said.tokens, &turn.stop) || said.tokens.len() >= turn.limit {
                return Ok(said);
            }
        }
        // a stop string before the turn's first word ends it for the server only
        if !at_string || empty {
            return Ok(said);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use s3_search::{Codec, CodecError};
    use std::sync::Mutex;

    /// A character a token; `\0` ends a turn.
    struct Characters;

    impl Codec for Characters {
        fn encode(&self, text: &str) -> Vec<u32> {
            text.chars().map(u32::from).collect()
        }
        fn decode(&self, tokens: &[u32]) -> String {
            tokens.iter().filter_map(|&token| char::from_u32(token)).collect()
        }
        fn chat(&self, _: Option<&str>, user: &str) -> Result<Vec<u32>, CodecError> {
            Ok(self.encode(user))
        }
        fn end_of_turn(&self) -> u32 {
            0
        }
    }

    impl TurnCodec for Characters {
        fn ends(&self, token: u32) -> bool {
            token == 0
        }
        fn plain(&self) -> &dyn Codec {
            self
        }
    }

    /// Says its pieces, one a call, and notes what it was asked.
    struct Pieces(Mutex<Vec<(&'static str, bool)>>, Mutex<Vec<(String, usize, u64)>>);

    impl RolloutServer for Pieces {
        fn go_on(&self, from: &Continuation<'_>) -> Result<Continued, RolloutError> {
            let asked = (Characters.decode(from.prompt), from.max_tokens, from.seed);
            self.1.lock().unwrap().push(asked);
            let (text, at_string) = self.0.lock().unwrap().remove(0);
            let tokens = Characters.encode(text);
            let logprobs = vec![-1.0; tokens.len()];
            Ok(Continued { said: Generated { tokens, logprobs }, at_string })
        }
    }

    fn written(pieces: &[(&'static str, bool)], limit: usize) -> (String, Vec<(String, usize, u64)>) {
        let server = Pieces(Mutex::new(pieces.to_vec()), Mutex::default());
        let turn = Turn {
            group: 0,
            context: Characters.encode("Q:"),
            limit,
            stop: vec!["\n".into()],
            key: "nq/1".into(),
            sample: 0,
            number: 0,
        };
        let sampling = Sampling { temperature: 1.0, top_p: 1.0, seed: 1, step: 1 };
        let said = write(&server, &Characters, sampling, &turn).unwrap();
        assert_eq!(said.tokens.len(), said.logprobs.len());
        (Characters.decode(&said.tokens), server.1.into_inner().unwrap())
    }

    #[test]
    fn a_turn_ends_where_this_process_would_end_it() {
        // the server runs past the end, at a string, at the end token
        assert_eq!(written(&[("yes\nmore", false)], 20).0, "yes\n");
        assert_eq!(written(&[("yes\n", true)], 20).0, "yes\n");
        assert_eq!(written(&[("yes\0", false)], 20).0, "yes\0");
        // at its own limit, and at ours
        assert_eq!(written(&[("ye", false)], 20).0, "ye");
        assert_eq!(written(&[("yes and more", false)], 4).0, "yes ");
    }

    #[test]
    fn a_line_break_before_the_first_word_ends_nothing() {
        let (said, asked) = written(&[("\n", true), ("yes\n", true)], 20);
        assert_eq!(said, "\nyes\n");
        assert_eq!((asked[0].0.as_str(), asked[0].1), ("Q:", 20));
        assert_eq!((asked[1].0.as_str(), asked[1].1), ("Q:\n", 19));
        // other tokens are drawn by other randomness
        assert_ne!(asked[0].2, asked[1].2);
    }

    #[test]
    fn a_server_that_says_nothing_is_not_asked_for_ever() {
        assert_eq!(written(&[("", true)], 20).0, "");
    }
}
