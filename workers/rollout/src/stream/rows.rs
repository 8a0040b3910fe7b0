//! Turns that a decoder of this process writes: each episode has a row of one cache, and the rows that write do so
//! together.

use super::table::{Live, Waiting};
use super::{Pace, Stream};
use crate::error::RolloutError;
use crate::play::{Sampling, ends_turn};
use rayon::prelude::*;
use s3_model::{Decoder, GenerateRequest, KvCache, SampleKey, generate, sample};
use s3_search::Play;
use std::collections::VecDeque;
use std::rc::Rc;

/// The prompts of some groups, computed together.
pub(super) struct Prompts {
    cache: KvCache,
    of: Vec<Vec<u32>>,
}

/// A prompt of several, by its place.
pub(super) type Prompt = (Rc<Prompts>, usize);

/// The rows, by slot.
pub(super) struct Rows<'d> {
    decoder: &'d Decoder,
    cache: KvCache,
    /// Tokens computed in other caches.
    elsewhere: u64,
    /// What every prompt begins with, in a cache of one row.
    beginning: Option<(Vec<u32>, KvCache)>,
}

impl<'d> Rows<'d> {
    pub fn new(decoder: &'d Decoder, slots: usize) -> Result<Self, RolloutError> {
        Ok(Self { decoder, cache: decoder.cache(slots)?, elsewhere: 0, beginning: None })
    }

    /// Tokens that went through the model.
    pub fn computed(&self) -> u64 {
        self.elsewhere + self.cache.computed()
    }

    /// Computes what every prompt begins with.
    pub fn begin(&mut self, beginning: Vec<u32>) -> Result<(), RolloutError> {
        if beginning.is_empty() {
            return Ok(());
        }
        let mut cache = self.decoder.cache(1)?;
        self.decoder.prefill(&mut cache, &[(0, &beginning)])?;
        self.elsewhere += cache.computed();
        self.beginning = Some((beginning, cache));
        Ok(())
    }

    /// Computes the prompts of the next `count` that wait, all but its last token, each distinct one of a group once.
    pub fn prompts<P: Play>(&mut self, waiting: &mut VecDeque<Waiting<P>>, count: usize) -> Result<(), RolloutError> {
        let mut distinct: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut of: Vec<(usize, usize)> = Vec::new();
        for (at, waiting) in waiting.iter().enumerate() {
            let Some((_, prompt)) = waiting.seat.play.context().split_last() else { continue };
            if waiting.prompt.is_some() || prompt.is_empty() {
                continue;
            }
            let known = distinct.iter().position(|(group, tokens)| *group == waiting.group && tokens == prompt);
            match known {
                // also those of the group that come later
                Some(row) => of.push((at, row)),
                None if at < count => {
                    of.push((at, distinct.len()));
                    distinct.push((waiting.group, prompt.to_vec()));
                }
                None => break,
            }
        }
        if distinct.is_empty() {
            return Ok(());
        }
        let mut cache = self.decoder.cache(distinct.len())?;
        let mut work: Vec<(usize, &[u32])> = Vec::new();
        for (row, (_, tokens)) in distinct.iter().enumerate() {
            let begun = match &self.beginning {
                Some((beginning, one)) if tokens.starts_with(beginning) => {
                    cache.adopt(row, one, 0)?;
                    beginning.len()
                }
                _ => 0,
            };
            if tokens.len() > begun {
                work.push((row, &tokens[begun..]));
            }
        }
        self.decoder.prefill(&mut cache, &work)?;
        self.elsewhere += cache.computed();
        let prompts = Rc::new(Prompts { cache, of: distinct.into_iter().map(|(_, tokens)| tokens).collect() });
        for (at, row) in of {
            waiting[at].prompt = Some((prompts.clone(), row));
        }
        Ok(())
    }

    /// Gives a slot to an episode and returns the tokens that its row begins with.
    pub fn seat(&mut self, slot: usize, prompt: Option<Prompt>) -> Result<Vec<u32>, RolloutError> {
        let Some((prompts, row)) = prompt else {
            self.cache.truncate(slot, 0);
            return Ok(Vec::new());
        };
        self.cache.adopt(slot, &prompts.cache, row)?;
        Ok(prompts.of[row].clone())
    }

    /// Has a row's episode write next. All of its cache stays while its context only grows.
    pub fn ask<P: Play>(&mut self, slot: usize, live: &mut Live<P>) {
        let context = live.seat.play.context();
        let same = context.iter().zip(&live.cached).take_while(|(a, b)| a == b).count();
        let kept = same.min(context.len().saturating_sub(1));
        live.next = context[kept..].to_vec();
        if kept < live.cached.len() {
            self.cache.truncate(slot, kept);
            live.cached.truncate(kept);
        }
    }

    pub fn leave(&mut self, slot: usize) {
        self.cache.truncate(slot, 0);
    }

    /// One token of every row that writes, or one turn; returns the slots whose turns are over.
    pub fn write<P: Play>(
        &mut self,
        stream: &Stream<'_>,
        lives: &mut [Option<Live<P>>],
    ) -> Result<Vec<usize>, RolloutError> {
        let writing: Vec<usize> = (0..lives.len()).filter(|&at| lives[at].as_ref().is_some_and(Live::writes)).collect();
        if writing.is_empty() {
            return Ok(writing);
        }
        match stream.pace {
            Pace::Free => self.token(stream, lives, &writing),
            Pace::Turns | Pace::Together => self.turn(stream, lives, writing),
        }
    }

    fn token<P: Play>(
        &mut self,
        stream: &Stream<'_>,
        rows: &mut [Option<Live<P>>],
        writing: &[usize],
    ) -> Result<Vec<usize>, RolloutError> {
        let Sampling { temperature, top_p, seed, step } = stream.sampling;
        let lives: Vec<&Live<P>> = writing.iter().filter_map(|&slot| rows[slot].as_ref()).collect();
        let items: Vec<(usize, &[u32])> =
            writing.iter().zip(&lives).map(|(&slot, live)| (slot, live.next.as_slice())).collect();
        let logits = self.decoder.step_rows(&mut self.cache, &items)?;
        let vocab = logits.dim(1).map_err(s3_model::ModelError::from)?;
        let logits = logits.flatten_all().and_then(|l| l.to_vec1::<f32>()).map_err(s3_model::ModelError::from)?;
        let keys: Vec<SampleKey<'_>> = lives
            .iter()
            .map(|live| {
                let (sample, token) = (live.seat.sample, live.tokens.len() as u32);
                SampleKey { seed, step, question: &live.key, sample, turn: live.turn, token }
            })
            .collect();
        let chosen: Vec<_> = logits
            .par_chunks(vocab)
            .zip(&keys)
            .map(|(row, key)| sample(row, temperature as f32, top_p as f32, key))
            .collect();
        let mut over = Vec::new();
        for (&slot, chosen) in writing.iter().zip(chosen) {
            let Some(live) = &mut rows[slot] else { continue };
            if !chosen.logprob.is_finite() {
                return Err(RolloutError::NotANumber { what: "a logit" });
            }
            let read = std::mem::replace(&mut live.next, vec![chosen.token]);
            live.cached.extend(read);
            live.tokens.push(chosen.token);
            live.logprobs.push(chosen.logprob);
            if ends_turn(stream.codec, &live.tokens, &live.stop) || live.tokens.len() >= live.limit {
                over.push(slot);
            }
        }
        Ok(over)
    }

    fn turn<P: Play>(
        &mut self,
        stream: &Stream<'_>,
        rows: &mut [Option<Live<P>>],
        writing: Vec<usize>,
    ) -> Result<Vec<usize>, RolloutError> {
        let Sampling { temperature, top_p, seed, step } = stream.sampling;
        let lives: Vec<&Live<P>> = writing.iter().filter_map(|&slot| rows[slot].as_ref()).collect();
        let requests: Vec<GenerateRequest> = writing
            .iter()
            .zip(&lives)
            .map(|(&row, live)| GenerateRequest { row, prompt: live.next.clone(), max_new_tokens: live.limit })
            .collect();
        let key = |i: usize, token: u32| {
            let live = lives[i];
            SampleKey { seed, step, question: &live.key, sample: live.seat.sample, turn: live.turn, token }
        };
        let (shutdown, codec) = (stream.shutdown, stream.codec);
        let mut ended = |i: usize, tokens: &[u32]| shutdown.requested() || ends_turn(codec, tokens, &lives[i].stop);
        let sampling = s3_model::Sampling { temperature: temperature as f32, top_p: top_p as f32 };
        let said = generate(self.decoder, &mut self.cache, &requests, sampling, &key, &mut ended)?;
        if shutdown.requested() {
            return Err(RolloutError::Interrupted);
        }
        for (&slot, said) in writing.iter().zip(said) {
            let Some(live) = &mut rows[slot] else { continue };
            let read = std::mem::take(&mut live.next);
            live.cached.extend(read);
            live.cached.extend(said.tokens.iter().take(said.tokens.len().saturating_sub(1)));
            (live.tokens, live.logprobs) = (said.tokens, said.logprobs);
        }
        Ok(writing)
    }
}
