//! Plays episodes that wait for nobody but themselves.
//!
//! Rows that are ready are decoded together, token by token; whoever finishes a turn leaves, whoever got its
//! passages joins. Searches, answers and everything else that takes its time are calls on threads of their own,
//! so a slow one holds up its episode alone. As a row's bits do not depend on the rows beside it
//! ([`Decoder::rows_stand_alone`]), what an episode becomes is a function of its question, sample, policy and
//! seed, and of no latency. Where rows do not stand alone, [`Pace::Together`] keeps the batches equal by waiting.

use crate::calls::{Call, Calls, Closing};
use crate::error::RolloutError;
use crate::peers::Retrieve;
use crate::play::{Sampling, Seat, TurnCodec, ends_turn, question_key};
use rayon::prelude::*;
use s3_config::RetrievalMethod;
use s3_model::{Decoder, GenerateRequest, KvCache, SampleKey, generate, sample};
use s3_search::{Passage, Play, Question, Step};
use s3_telemetry::Shutdown;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long finished episodes may lie in memory before they are kept.
const KEEP_EVERY: Duration = Duration::from_millis(250);
/// Between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(50);
/// Room for the tokenizer and debug builds.
const STACK: usize = 64 << 20;

/// A call to a service, made while others are played.
pub type Job<'s, T> = Box<dyn FnOnce() -> T + Send + 's>;

/// Whether an episode that waits lets others go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Each for itself, token by token.
    Free,
    /// Each for itself, turn by turn: whoever gets its passages joins when the turns under way are written. For
    /// devices that decode a whole turn at once.
    Turns,
    /// Nobody writes before all searches under way are answered: batches are the same whatever the latencies.
    Together,
}

/// What is played, kept and paid for. Groups are questions; the episodes of a group begin alike.
///
/// Its methods are called by one thread at a time.
pub trait Stage<'s>: Send {
    /// A run.
    type Play: Play + Send;
    /// What a call of [`Self::ended`] brings.
    type Answer: Send + 's;

    /// Tokens that every prompt begins with. Where they end may depend on nothing that is played.
    fn beginning(&self) -> Vec<u32> {
        Vec::new()
    }
    /// What to search before a group's episodes can start: question, words, passages. None where nothing is.
    fn opening(&mut self, group: usize) -> Option<(Question, String, usize)>;
    /// The episodes of a group that are still to be played.
    fn seats(&mut self, group: usize, initial: Vec<Passage>) -> Result<Vec<Seat<Self::Play>>, RolloutError>;
    /// Calls that are still to be made for runs of a group that were over before.
    fn unanswered(&mut self, _group: usize) -> Vec<Job<'s, Self::Answer>> {
        Vec::new()
    }
    /// Takes a run that is over; the call is made elsewhere, and its answer comes to [`Self::answered`].
    fn ended(&mut self, group: usize, run: Seat<Self::Play>) -> Result<Option<Job<'s, Self::Answer>>, RolloutError>;
    /// Takes an answer.
    fn answered(&mut self, answer: Self::Answer) -> Result<(), RolloutError>;
    /// Puts what was taken so far where it outlives the process.
    fn keep(&mut self) -> Result<(), RolloutError>;
}

/// Everything that plays episodes of a stage.
pub struct Stream<'s> {
    /// The searcher.
    pub decoder: &'s Decoder,
    /// Its tokenizer.
    pub codec: &'s (dyn TurnCodec + Sync),
    /// Answers searches.
    pub retriever: &'s (dyn Retrieve + Sync),
    /// How passages are ranked.
    pub method: RetrievalMethod,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Looked at between tokens.
    pub shutdown: &'s Shutdown,
    /// Episodes that are played at once, each with a row of the cache.
    pub slots: usize,
    /// Threads that decode, each with its share of groups and slots.
    pub workers: usize,
    /// Searches and answers under way at once.
    pub calls: (usize, usize),
    /// Who waits for whom.
    pub pace: Pace,
}

/// Words, number of passages, and the question where the retriever looks at it.
type Query = (String, usize, String);

enum Event<A> {
    Opened(usize, Result<Vec<Passage>, RolloutError>),
    Found(Query, Result<Vec<Passage>, RolloutError>),
    Answered(A),
}

/// A search of this round.
enum Search {
    Asked(Vec<usize>),
    Found(Vec<Passage>),
}

/// The prompts of some groups, computed together.
struct Prompts {
    cache: KvCache,
    of: Vec<Vec<u32>>,
}

struct Waiting<P> {
    group: usize,
    seat: Seat<P>,
    prompt: Option<(Rc<Prompts>, usize)>,
}

struct Live<P> {
    group: usize,
    seat: Seat<P>,
    key: String,
    turn: u32,
    /// Tokens that the cache holds.
    cached: Vec<u32>,
    /// What the model reads next, while the episode writes.
    next: Vec<u32>,
    limit: usize,
    stop: Vec<String>,
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
}

impl<'s> Stream<'s> {
    /// Plays `groups` groups to their ends and returns the number of tokens that went through the model.
    pub fn run<S: Stage<'s>>(&self, groups: usize, stage: &Mutex<S>) -> Result<u64, RolloutError> {
        let workers = self.workers.clamp(1, groups.max(1));
        if workers == 1 {
            return self.worker(&(0..groups).collect::<Vec<_>>(), self.slots, stage);
        }
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..workers)
                .map(|worker| {
                    let share: Vec<usize> = (worker..groups).step_by(workers).collect();
                    std::thread::Builder::new()
                        .name(format!("rollout {worker}"))
                        .stack_size(STACK)
                        .spawn_scoped(scope, move || self.worker(&share, (self.slots / workers).max(1), stage))
                        .map_err(|error| RolloutError::Thread { reason: error.to_string() })
                })
                .collect::<Result<_, _>>()?;
            let mut sum = Ok(0);
            for thread in threads {
                let computed = thread.join().unwrap_or_else(|_| Err(lost()));
                // the first error counts; the others are its echoes
                sum = sum.and_then(|sum: u64| Ok(sum + computed?));
            }
            sum
        })
    }

    fn worker<S: Stage<'s>>(&self, groups: &[usize], slots: usize, stage: &Mutex<S>) -> Result<u64, RolloutError> {
        let (searches, answers) = (Calls::new(), Calls::new());
        std::thread::scope(|scope| {
            let (sender, events) = channel();
            let _closing = (Closing(&searches), Closing(&answers));
            let workers = self.workers.max(1);
            searches.serve(scope, (self.calls.0 / workers).max(1), &sender);
            answers.serve(scope, (self.calls.1 / workers).max(1), &sender);
            let cache = self.decoder.cache(slots.max(1))?;
            let free = (0..slots.max(1)).rev().collect();
            let rows = (0..slots.max(1)).map(|_| None).collect();
            let mut table = Table {
                stream: self,
                stage,
                searches: &searches,
                answers: &answers,
                events,
                _sender: sender,
                cache,
                computed: 0,
                beginning: None,
                rows,
                free,
                waiting: VecDeque::new(),
                asked: BTreeMap::new(),
                searching: 0,
                answering: 0,
                kept: Instant::now(),
            };
            table.open(groups)?;
            while table.step()? {}
            lock(stage).keep()?;
            Ok(table.computed + table.cache.computed())
        })
    }
}

fn lock<S>(stage: &Mutex<S>) -> MutexGuard<'_, S> {
    stage.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> RolloutError {
    RolloutError::Thread { reason: "it panicked; the message above says where".into() }
}

/// One worker's episodes.
struct Table<'t, 's, S: Stage<'s>> {
    stream: &'t Stream<'s>,
    stage: &'t Mutex<S>,
    searches: &'t Calls<'s, Event<S::Answer>>,
    answers: &'t Calls<'s, Event<S::Answer>>,
    events: Receiver<Option<Event<S::Answer>>>,
    /// Keeps the channel open.
    _sender: Sender<Option<Event<S::Answer>>>,
    cache: KvCache,
    /// Tokens computed in other caches.
    computed: u64,
    /// The stage's beginning in a cache of one row.
    beginning: Option<(Vec<u32>, KvCache)>,
    rows: Vec<Option<Live<S::Play>>>,
    free: Vec<usize>,
    waiting: VecDeque<Waiting<S::Play>>,
    asked: BTreeMap<Query, Search>,
    searching: usize,
    answering: usize,
    kept: Instant,
}

impl<'s, S: Stage<'s>> Table<'_, 's, S> {
    fn open(&mut self, groups: &[usize]) -> Result<(), RolloutError> {
        let beginning = lock(self.stage).beginning();
        if !beginning.is_empty() {
            let mut cache = self.stream.decoder.cache(1)?;
            self.stream.decoder.prefill(&mut cache, &[(0, &beginning)])?;
            self.computed += cache.computed();
            self.beginning = Some((beginning, cache));
        }
        for &group in groups {
            let jobs = lock(self.stage).unanswered(group);
            for job in jobs {
                self.answer(job);
            }
            let opening = lock(self.stage).opening(group);
            match opening {
                None => self.sit(group, Vec::new())?,
                Some((question, query, top_k)) => {
                    let call = self.call(question, query, top_k);
                    self.searching += 1;
                    self.searches.ask(Box::new(move || Event::Opened(group, call())));
                }
            }
        }
        Ok(())
    }

    fn call(&self, question: Question, query: String, top_k: usize) -> Call<'s, Result<Vec<Passage>, RolloutError>> {
        let (retriever, method) = (self.stream.retriever, self.stream.method);
        Box::new(move || {
            let mut found = retriever.retrieve_for(&[&question], &[query], top_k as u32, method)?;
            Ok(found.pop().unwrap_or_default())
        })
    }

    fn sit(&mut self, group: usize, initial: Vec<Passage>) -> Result<(), RolloutError> {
        let seats = lock(self.stage).seats(group, initial)?;
        self.waiting.extend(seats.into_iter().map(|seat| Waiting { group, seat, prompt: None }));
        Ok(())
    }

    /// Takes what came, lets in who waits, and decodes once; false when all is done.
    fn step(&mut self) -> Result<bool, RolloutError> {
        if self.stream.shutdown.requested() {
            return Err(RolloutError::Interrupted);
        }
        let idle = self.rows.iter().flatten().all(|live| live.next.is_empty());
        let seated = self.waiting.is_empty() || self.free.is_empty();
        let together = self.stream.pace == Pace::Together && self.searching > 0;
        if together || idle && seated {
            if self.searching + self.answering == 0 {
                return Ok(false);
            }
            self.keep()?;
            match self.events.recv_timeout(LOOK) {
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => return Ok(true),
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            }
        }
        let mut paid = false;
        while let Ok(event) = self.events.try_recv() {
            paid |= matches!(event, Some(Event::Answered(_)));
            self.take(event)?;
        }
        if paid || self.kept.elapsed() > KEEP_EVERY {
            self.keep()?;
        }
        if self.stream.pace == Pace::Together && self.searching > 0 {
            return Ok(true);
        }
        self.admit()?;
        self.write()?;
        Ok(true)
    }

    fn keep(&mut self) -> Result<(), RolloutError> {
        lock(self.stage).keep()?;
        self.kept = Instant::now();
        Ok(())
    }

    fn take(&mut self, event: Option<Event<S::Answer>>) -> Result<(), RolloutError> {
        match event {
            None => Err(lost()),
            Some(Event::Opened(group, found)) => {
                self.searching -= 1;
                self.sit(group, found?)
            }
            Some(Event::Answered(answer)) => {
                self.answering -= 1;
                lock(self.stage).answered(answer)
            }
            Some(Event::Found(query, found)) => {
                self.searching -= 1;
                let Some(Search::Asked(slots)) = self.asked.remove(&query) else { return Ok(()) };
                match found {
                    Ok(passages) => {
                        for slot in slots {
                            self.found(slot, &passages)?;
                        }
                        self.asked.insert(query, Search::Found(passages));
                        Ok(())
                    }
                    Err(error) if error.is_outage() => {
                        tracing::warn!(%error, episodes = slots.len(), "a search failed; these samples are masked");
                        for slot in slots {
                            if let Some(live) = &mut self.rows[slot] {
                                live.seat.play.failed(error.to_string());
                            }
                            self.go_on(slot)?;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn found(&mut self, slot: usize, passages: &[Passage]) -> Result<(), RolloutError> {
        if let Some(live) = &mut self.rows[slot] {
            live.seat.play.retrieved(passages.to_vec(), self.stream.codec.plain())?;
        }
        self.go_on(slot)
    }

    /// Gives free rows to those that wait, in their order.
    fn admit(&mut self) -> Result<(), RolloutError> {
        let count = self.free.len().min(self.waiting.len());
        if count == 0 {
            return Ok(());
        }
        if self.stream.pace == Pace::Together {
            // not in the order in which calls were answered
            self.waiting.make_contiguous().sort_by_key(|waiting| (waiting.group, waiting.seat.sample));
            self.free.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.prompts(count)?;
        for _ in 0..count {
            let (Some(waiting), Some(slot)) = (self.waiting.pop_front(), self.free.pop()) else { break };
            let Waiting { group, seat, prompt } = waiting;
            let mut cached = Vec::new();
            if let Some((prompts, row)) = prompt {
                self.cache.adopt(slot, &prompts.cache, row)?;
                cached.clone_from(&prompts.of[row]);
            } else {
                self.cache.truncate(slot, 0);
            }
            let key = question_key(&seat.question);
            self.rows[slot] = Some(Live {
                group,
                seat,
                key,
                turn: 0,
                cached,
                next: Vec::new(),
                limit: 0,
                stop: Vec::new(),
                tokens: Vec::new(),
                logprobs: Vec::new(),
            });
            self.go_on(slot)?;
        }
        Ok(())
    }

    /// Computes the prompts of the next `count` that wait, all but its last token, each distinct one of a group once.
    fn prompts(&mut self, count: usize) -> Result<(), RolloutError> {
        let mut distinct: Vec<(usize, Vec<u32>)> = Vec::new();
        let mut of: Vec<(usize, usize)> = Vec::new();
        for (at, waiting) in self.waiting.iter().enumerate() {
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
        let decoder = self.stream.decoder;
        let mut cache = decoder.cache(distinct.len())?;
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
        decoder.prefill(&mut cache, &work)?;
        self.computed += cache.computed();
        let prompts = Rc::new(Prompts { cache, of: distinct.into_iter().map(|(_, tokens)| tokens).collect() });
        for (at, row) in of {
            self.waiting[at].prompt = Some((prompts.clone(), row));
        }
        Ok(())
    }

    /// Does what an episode asks for next.
    fn go_on(&mut self, slot: usize) -> Result<(), RolloutError> {
        loop {
            let Some(live) = &mut self.rows[slot] else { return Ok(()) };
            match live.seat.play.next() {
                Step::Generate { max_new_tokens, stop } => {
                    live.stop = stop.to_vec();
                    live.limit = max_new_tokens;
                    let context = live.seat.play.context();
                    let same = context.iter().zip(&live.cached).take_while(|(a, b)| a == b).count();
                    let kept = same.min(context.len().saturating_sub(1));
                    live.next = context[kept..].to_vec();
                    if kept < live.cached.len() {
                        self.cache.truncate(slot, kept);
                        live.cached.truncate(kept);
                    }
                    if live.limit > 0 && !live.next.is_empty() {
                        return Ok(());
                    }
                    // no room for a token: the protocol is told so
                    live.next.clear();
                    live.turn += 1;
                    live.seat.play.generated(&[], &[], self.stream.codec.plain())?;
                }
                Step::Retrieve { query, top_k } => {
                    let whose =
                        if self.stream.retriever.looks_at_questions() { live.key.clone() } else { String::new() };
                    let key = (query.to_owned(), top_k, whose);
                    match self.asked.get_mut(&key) {
                        Some(Search::Asked(slots)) => slots.push(slot),
                        Some(Search::Found(passages)) => {
                            let passages = passages.clone();
                            live.seat.play.retrieved(passages, self.stream.codec.plain())?;
                            continue;
                        }
                        None => {
                            let call = self.call_of(slot, &key);
                            self.asked.insert(key.clone(), Search::Asked(vec![slot]));
                            self.searching += 1;
                            self.searches.ask(Box::new(move || Event::Found(key, call())));
                        }
                    }
                    return Ok(());
                }
                Step::Finish => return self.leave(slot),
            }
        }
    }

    fn call_of(&self, slot: usize, (query, top_k, _): &Query) -> Call<'s, Result<Vec<Passage>, RolloutError>> {
        let question = self.rows[slot].as_ref().map(|live| live.seat.question.clone()).unwrap_or_default();
        self.call(question, query.clone(), *top_k)
    }

    fn leave(&mut self, slot: usize) -> Result<(), RolloutError> {
        let Some(live) = self.rows[slot].take() else { return Ok(()) };
        self.cache.truncate(slot, 0);
        self.free.push(slot);
        let job = lock(self.stage).ended(live.group, live.seat)?;
        if let Some(job) = job {
            self.answer(job);
        }
        Ok(())
    }

    fn answer(&mut self, job: Job<'s, S::Answer>) {
        self.answering += 1;
        self.answers.ask(Box::new(move || Event::Answered(job())));
    }

    /// One token of every row that writes, or one turn.
    fn write(&mut self) -> Result<(), RolloutError> {
        let writing: Vec<usize> = (0..self.rows.len())
            .filter(|&at| self.rows[at].as_ref().is_some_and(|live| !live.next.is_empty()))
            .collect();
        if writing.is_empty() {
            return Ok(());
        }
        match self.stream.pace {
            Pace::Free => self.token(&writing),
            Pace::Turns | Pace::Together => self.turn(&writing),
        }
    }

    fn token(&mut self, writing: &[usize]) -> Result<(), RolloutError> {
        let Sampling { temperature, top_p, seed, step } = self.stream.sampling;
        let lives: Vec<&Live<S::Play>> = writing.iter().filter_map(|&slot| self.rows[slot].as_ref()).collect();
        let items: Vec<(usize, &[u32])> =
            writing.iter().zip(&lives).map(|(&slot, live)| (slot, live.next.as_slice())).collect();
        let logits = self.stream.decoder.step_rows(&mut self.cache, &items)?;
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
        for (&slot, chosen) in writing.iter().zip(chosen) {
            let Some(live) = &mut self.rows[slot] else { continue };
            if !chosen.logprob.is_finite() {
                return Err(RolloutError::NotANumber { what: "a logit" });
            }
            let read = std::mem::replace(&mut live.next, vec![chosen.token]);
            live.cached.extend(read);
            live.tokens.push(chosen.token);
            live.logprobs.push(chosen.logprob);
            if ends_turn(self.stream.codec, &live.tokens, &live.stop) || live.tokens.len() >= live.limit {
                self.said(slot)?;
            }
        }
        Ok(())
    }

    fn turn(&mut self, writing: &[usize]) -> Result<(), RolloutError> {
        let Sampling { temperature, top_p, seed, step } = self.stream.sampling;
        let lives: Vec<&Live<S::Play>> = writing.iter().filter_map(|&slot| self.rows[slot].as_ref()).collect();
        let requests: Vec<GenerateRequest> = writing
            .iter()
            .zip(&lives)
            .map(|(&row, live)| GenerateRequest { row, prompt: live.next.clone(), max_new_tokens: live.limit })
            .collect();
        let key = |i: usize, token: u32| {
            let live = lives[i];
            SampleKey { seed, step, question: &live.key, sample: live.seat.sample, turn: live.turn, token }
        };
        let (shutdown, codec) = (self.stream.shutdown, self.stream.codec);
        let mut ended = |i: usize, tokens: &[u32]| shutdown.requested() || ends_turn(codec, tokens, &lives[i].stop);
        let sampling = s3_model::Sampling { temperature: temperature as f32, top_p: top_p as f32 };
        let said = generate(self.stream.decoder, &mut self.cache, &requests, sampling, &key, &mut ended)?;
        if shutdown.requested() {
            return Err(RolloutError::Interrupted);
        }
        for (&slot, said) in writing.iter().zip(said) {
            let Some(live) = &mut self.rows[slot] else { continue };
            let read = std::mem::take(&mut live.next);
            live.cached.extend(read);
            live.cached.extend(said.tokens.iter().take(said.tokens.len().saturating_sub(1)));
            (live.tokens, live.logprobs) = (said.tokens, said.logprobs);
            self.said(slot)?;
        }
        Ok(())
    }

    /// Hands a finished turn to its episode.
    fn said(&mut self, slot: usize) -> Result<(), RolloutError> {
        let Some(live) = &mut self.rows[slot] else { return Ok(()) };
        live.next.clear();
        live.turn += 1;
        let (tokens, logprobs) = (std::mem::take(&mut live.tokens), std::mem::take(&mut live.logprobs));
        live.seat.play.generated(&tokens, &logprobs, self.stream.codec.plain())?;
        self.go_on(slot)
    }
}
