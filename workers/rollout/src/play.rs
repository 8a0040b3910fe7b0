//! Plays a batch of episodes to their ends.
//!
//! The batch moves in lock-step: all rows that are to write do so together, token by token; once none writes,
//! all searches of the batch go out in one request. The schedule depends on the episodes only, never on
//! latencies, so equal inputs give equal bytes. The KV cache is kept over turns, and a prompt that several
//! samples share is computed once and copied.

use crate::codec::ModelCodec;
use crate::error::RolloutError;
use crate::peers::Retrieve;
use rayon::prelude::*;
use s3_config::SearchConfig;
use s3_model::{Decoder, GenerateRequest, Generated, KvCache, SampleKey, generate};
use s3_search::{Codec, Episode, Passage, Play, Question, Step, Trajectory};
use s3_telemetry::Shutdown;
use std::collections::BTreeMap;

/// How tokens are chosen. Randomness is a function of (seed, step, question, sample, turn, token) alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Seed of the run.
    pub seed: u64,
    /// Policy update step.
    pub step: u64,
}

/// One episode to play.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpisodeRequest {
    /// The question.
    pub question: Question,
    /// Which sample of the question.
    pub sample: u32,
    /// Passages of the raw question, best first.
    pub initial: Vec<Passage>,
}

/// A codec that knows which tokens end a turn.
pub trait TurnCodec: Codec {
    /// Whether generation ends with this token.
    fn ends(&self, token: u32) -> bool;
    /// As what the search loop knows.
    fn plain(&self) -> &dyn Codec;
}

impl TurnCodec for ModelCodec {
    fn ends(&self, token: u32) -> bool {
        Self::ends(self, token)
    }

    fn plain(&self) -> &dyn Codec {
        self
    }
}

/// Whether a turn is over: by a token that ends it, or by a stop string.
pub(crate) fn ends_turn(codec: &dyn TurnCodec, tokens: &[u32], stop: &[String]) -> bool {
    if tokens.last().is_some_and(|&token| codec.ends(token)) {
        return true;
    }
    if stop.is_empty() {
        return false;
    }
    // a stop string ends with the newest token, so most tokens need no look at the whole turn
    let newest = codec.decode(&tokens[tokens.len().saturating_sub(1)..]);
    if !stop.iter().any(|stop| stop.chars().next_back().is_some_and(|last| newest.contains(last))) {
        return false;
    }
    let text = codec.decode(tokens);
    // a line break that ends a sentence does not end a turn that has not begun
    let text = text.trim_start();
    stop.iter().any(|stop| text.contains(stop))
}

/// What identifies a question over datasets.
pub fn question_key(question: &Question) -> String {
    format!("{}/{}", question.dataset, question.id)
}

/// Everything that plays an episode.
pub struct Player<'a> {
    /// The searcher.
    pub decoder: &'a Decoder,
    /// Its tokenizer.
    pub codec: &'a (dyn TurnCodec + Sync),
    /// Answers searches.
    pub retriever: &'a dyn Retrieve,
    /// Limits and policies.
    pub search: &'a SearchConfig,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Looked at between tokens.
    pub shutdown: &'a Shutdown,
}

/// One run to drive.
#[derive(Debug)]
pub struct Seat<P> {
    /// The run.
    pub play: P,
    /// Its question.
    pub question: Question,
    /// Which sample of the question.
    pub sample: u32,
}

struct Row<P> {
    seat: Seat<P>,
    key: String,
    turn: u32,
    /// Tokens that the cache holds.
    cached: Vec<u32>,
}

impl<P: Play> Row<P> {
    /// What the model has yet to read, and how much of the cache stays: all of it while the context only grows.
    fn ahead(&self) -> (usize, Vec<u32>) {
        let context = self.seat.play.context();
        let same = context.iter().zip(&self.cached).take_while(|(a, b)| a == b).count();
        let kept = same.min(context.len().saturating_sub(1));
        (kept, context[kept..].to_vec())
    }
}

impl Player<'_> {
    /// Plays all requests together, in one batch, and returns their trajectories in the same order.
    ///
    /// A search that cannot be had masks the episodes that wait for it; when that leaves no episode of the
    /// batch, the call fails instead.
    pub fn play(&self, requests: &[EpisodeRequest]) -> Result<Vec<Trajectory>, RolloutError> {
        self.play_counted(requests).map(|(played, _)| played)
    }

    /// As [`Self::play`], with the number of tokens that went through the model.
    pub fn play_counted(&self, requests: &[EpisodeRequest]) -> Result<(Vec<Trajectory>, u64), RolloutError> {
        let seat = |request: &EpisodeRequest| {
            let EpisodeRequest { question, sample, initial } = request;
            let play = Episode::new(question, *sample, initial.clone(), self.search, self.codec.plain())?;
            Ok(Seat { play, question: question.clone(), sample: *sample })
        };
        let seats = requests.par_iter().map(seat).collect::<Result<Vec<_>, RolloutError>>()?;
        let (played, computed) = self.drive(seats)?;
        Ok((played.into_iter().map(Play::finish).collect(), computed))
    }

    /// Drives runs of any protocol to their ends, in one batch; they come back in the same order, with the number of
    /// tokens that went through the model.
    pub fn drive<P: Play + Send>(&self, seats: Vec<Seat<P>>) -> Result<(Vec<P>, u64), RolloutError> {
        if seats.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let row = |seat: Seat<P>| Row { key: question_key(&seat.question), seat, turn: 0, cached: Vec::new() };
        let mut rows: Vec<Row<P>> = seats.into_iter().map(row).collect();
        let mut cache = self.prompts(&mut rows)?;
        loop {
            let writing = places(&rows, |step| matches!(step, Step::Generate { .. }));
            if !writing.is_empty() {
                self.write(&mut rows, &writing, &mut cache)?;
                continue;
            }
            let waiting = places(&rows, |step| matches!(step, Step::Retrieve { .. }));
            if waiting.is_empty() {
                break;
            }
            self.search(&mut rows, &waiting)?;
        }
        let played: Vec<P> = rows.into_iter().map(|row| row.seat.play).collect();
        match played.iter().map(Play::failure).collect::<Option<Vec<_>>>() {
            Some(failures) => {
                let reason = failures.first().copied().unwrap_or_default().to_owned();
                Err(RolloutError::AllFailed { reason, outage: true })
            }
            None => Ok((played, cache.computed())),
        }
    }

    /// Computes what all prompts begin with once, then the rest of every distinct prompt once, all but its last
    /// token, and copies it to the rows that share it.
    fn prompts<P: Play>(&self, rows: &mut [Row<P>]) -> Result<KvCache, RolloutError> {
        let mut distinct: BTreeMap<&[u32], usize> = BTreeMap::new();
        let mut first: Vec<usize> = Vec::new();
        let mut of = Vec::with_capacity(rows.len());
        for (at, row) in rows.iter().enumerate() {
            of.push(*distinct.entry(row.seat.play.context()).or_insert_with(|| {
                first.push(at);
                first.len() - 1
            }));
        }
        // sorted, so that what the first and the last begin with all do
        let common = match (distinct.keys().next(), distinct.keys().next_back()) {
            (Some(least), Some(most)) => least.iter().zip(most.iter()).take_while(|(a, b)| a == b).count(),
            _ => 0,
        };
        let items: Vec<(usize, &[u32])> = first
            .iter()
            .enumerate()
            .filter_map(|(at, &row)| Some((at, rows[row].seat.play.context().split_last()?.1)))
            .filter(|(_, tokens)| !tokens.is_empty())
            .collect();
        let shared = items.iter().map(|(_, tokens)| tokens.len()).min().unwrap_or(0).min(common);
        let mut cache = self.decoder.cache(first.len())?;
        if first.len() > 1 && items.len() == first.len() && shared > 0 {
            let mut one = self.decoder.cache(1)?;
            self.decoder.prefill(&mut one, &[(0, &items[0].1[..shared])])?;
            cache = one.fork(&vec![0; first.len()])?;
        }
        let rest: Vec<(usize, &[u32])> = items
            .into_iter()
            .map(|(at, tokens)| (at, &tokens[cache.len(at)..]))
            .filter(|(_, tokens)| !tokens.is_empty())
            .collect();
        self.decoder.prefill(&mut cache, &rest)?;
        let cache = if first.len() == rows.len() { cache } else { cache.fork(&of)? };
        for (at, row) in rows.iter_mut().enumerate() {
            row.cached = row.seat.play.context()[..cache.len(at)].to_vec();
        }
        Ok(cache)
    }

    /// One turn of every named row.
    fn write<P: Play + Send>(
        &self,
        rows: &mut [Row<P>],
        writing: &[usize],
        cache: &mut KvCache,
    ) -> Result<(), RolloutError> {
        let mut requests = Vec::with_capacity(writing.len());
        let mut stops: Vec<Vec<String>> = Vec::with_capacity(writing.len());
        for &at in writing {
            let row = &mut rows[at];
            let Step::Generate { max_new_tokens, stop } = row.seat.play.next() else { continue };
            stops.push(stop.to_vec());
            let (kept, prompt) = row.ahead();
            if kept < row.cached.len() {
                cache.truncate(at, kept);
                row.cached.truncate(kept);
            }
            requests.push(GenerateRequest { row: at, prompt, max_new_tokens });
        }
        let Sampling { temperature, top_p, seed, step } = self.sampling;
        let key = |i: usize, token: u32| {
            let row = &rows[requests[i].row];
            SampleKey { seed, step, question: &row.key, sample: row.seat.sample, turn: row.turn, token }
        };
        let mut ended =
            |i: usize, tokens: &[u32]| self.shutdown.requested() || ends_turn(self.codec, tokens, &stops[i]);
        let sampling = s3_model::Sampling { temperature: temperature as f32, top_p: top_p as f32 };
        let said = generate(self.decoder, cache, &requests, sampling, &key, &mut ended)?;
        if self.shutdown.requested() {
            return Err(RolloutError::Interrupted);
        }
        let said: BTreeMap<usize, (GenerateRequest, Generated)> =
            requests.into_iter().zip(said).map(|(request, said)| (request.row, (request, said))).collect();
        rows.par_iter_mut().enumerate().try_for_each(|(at, row)| {
            let Some((request, said)) = said.get(&at) else { return Ok(()) };
            // the last token is in no cache before the next turn reads it
            row.cached.extend_from_slice(&request.prompt);
            row.cached.extend(said.tokens.iter().take(said.tokens.len().saturating_sub(1)));
            row.turn += 1;
            Ok(row.seat.play.generated(&said.tokens, &said.logprobs, self.codec.plain())?)
        })
    }

    /// All searches that the named rows wait for, each distinct query once.
    fn search<P: Play + Send>(&self, rows: &mut [Row<P>], waiting: &[usize]) -> Result<(), RolloutError> {
        let mut asked: BTreeMap<(String, usize, [&str; 2]), Vec<usize>> = BTreeMap::new();
        for &at in waiting {
            let row = &rows[at];
            if let Step::Retrieve { query, top_k } = row.seat.play.next() {
                // what looks at the question is asked for each
                let whose = if self.retriever.looks_at_questions() {
                    [row.key.as_str(), row.seat.question.question.as_str()]
                } else {
                    [""; 2]
                };
                asked.entry((query.to_owned(), top_k, whose)).or_default().push(at);
            }
        }
        let top_k = asked.keys().map(|(_, top_k, _)| *top_k).max().unwrap_or_default() as u32;
        let (queries, rows_of): (Vec<String>, Vec<Vec<usize>>) =
            asked.into_iter().map(|((query, ..), rows)| (query, rows)).unzip();
        let questions: Vec<&Question> = rows_of.iter().map(|of| &rows[of[0]].seat.question).collect();
        match self.retriever.retrieve_for(&questions, &queries, top_k, self.search.method) {
            Ok(found) => {
                let found: BTreeMap<usize, &Vec<Passage>> = rows_of
                    .iter()
                    .zip(&found)
                    .flat_map(|(of, passages)| of.iter().map(move |&at| (at, passages)))
                    .collect();
                rows.par_iter_mut().enumerate().try_for_each(|(at, row)| {
                    let Some(passages) = found.get(&at) else { return Ok::<(), RolloutError>(()) };
                    Ok(row.seat.play.retrieved((*passages).clone(), self.codec.plain())?)
                })?;
            }
            Err(error) if error.is_outage() => {
                tracing::warn!(%error, episodes = waiting.len(), "searches failed; these samples are masked");
                for &at in waiting {
                    rows[at].seat.play.failed(error.to_string());
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

fn places<P: Play>(rows: &[Row<P>], wanted: impl Fn(&Step<'_>) -> bool) -> Vec<usize> {
    (0..rows.len()).filter(|&at| wanted(&rows[at].seat.play.next())).collect()
}
