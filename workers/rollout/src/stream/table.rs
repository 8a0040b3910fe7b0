//! One worker's episodes: who plays, who waits, and for what.

use super::rows::{Prompt, Rows};
use super::server::{Turn, write};
use super::{Job, Pace, Stage, Stream, Writer, lock, lost};
use crate::calls::{Call, Calls};
use crate::error::RolloutError;
use crate::play::{Seat, question_key};
use s3_model::Generated;
use s3_search::{Passage, Play, Question, Step};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

/// How long finished episodes may lie in memory before they are kept.
const KEEP_EVERY: Duration = Duration::from_millis(250);
/// Between two looks at whether to stop.
const LOOK: Duration = Duration::from_millis(50);

/// Words, number of passages, and the question where the retriever looks at it.
type Query = (String, usize, String);

/// What comes back from a call.
pub(super) enum Event<A> {
    Opened(usize, Result<Vec<Passage>, RolloutError>),
    Found(Query, Result<Vec<Passage>, RolloutError>),
    Answered(A),
    Said(usize, Result<Generated, RolloutError>),
}

/// Events as they arrive, with a sender that keeps the channel open.
type Events<A> = (Sender<Option<Event<A>>>, Receiver<Option<Event<A>>>);

/// A search of this round.
enum Search {
    Asked(Vec<usize>),
    Found(Vec<Passage>),
}

/// An episode that has no slot yet.
pub(super) struct Waiting<P> {
    pub group: usize,
    pub seat: Seat<P>,
    pub prompt: Option<Prompt>,
}

/// An episode that is played.
pub(super) struct Live<P> {
    pub group: usize,
    pub seat: Seat<P>,
    pub key: String,
    pub turn: u32,
    /// Tokens that its row of the cache holds.
    pub cached: Vec<u32>,
    /// What the decoder reads next, while the episode writes.
    pub next: Vec<u32>,
    pub limit: usize,
    pub stop: Vec<String>,
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
}

impl<P> Live<P> {
    /// Whether the decoder of this process writes its turn.
    pub fn writes(&self) -> bool {
        !self.next.is_empty()
    }
}

/// Threads that make calls.
pub(super) struct Pools<'t, 's, A> {
    pub searches: &'t Calls<'s, Event<A>>,
    pub answers: &'t Calls<'s, Event<A>>,
    pub turns: &'t Calls<'s, Event<A>>,
}

/// See the module.
pub(super) struct Table<'t, 's, S: Stage<'s>> {
    stream: &'t Stream<'s>,
    stage: &'t Mutex<S>,
    pools: Pools<'t, 's, S::Answer>,
    events: Events<S::Answer>,
    /// None where a server writes.
    rows: Option<Rows<'s>>,
    lives: Vec<Option<Live<S::Play>>>,
    free: Vec<usize>,
    waiting: VecDeque<Waiting<S::Play>>,
    asked: BTreeMap<Query, Search>,
    searching: usize,
    answering: usize,
    /// Turns under way at a server.
    writing: usize,
    /// Tokens of turns that a server wrote.
    served: u64,
    kept: Instant,
}

impl<'t, 's, S: Stage<'s>> Table<'t, 's, S> {
    pub fn new(
        stream: &'t Stream<'s>,
        stage: &'t Mutex<S>,
        pools: Pools<'t, 's, S::Answer>,
        events: Events<S::Answer>,
        slots: usize,
    ) -> Result<Self, RolloutError> {
        let rows = match stream.writer {
            Writer::Decoder(decoder) => Some(Rows::new(decoder, slots)?),
            Writer::Server(_) => None,
        };
        Ok(Self {
            stream,
            stage,
            pools,
            events,
            rows,
            lives: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            waiting: VecDeque::new(),
            asked: BTreeMap::new(),
            searching: 0,
            answering: 0,
            writing: 0,
            served: 0,
            kept: Instant::now(),
        })
    }

    /// Tokens that went through the decoder, or that a server wrote.
    pub fn computed(&self) -> u64 {
        self.served + self.rows.as_ref().map_or(0, Rows::computed)
    }

    pub fn open(&mut self, groups: &[usize]) -> Result<(), RolloutError> {
        if let Some(rows) = &mut self.rows {
            rows.begin(lock(self.stage).beginning())?;
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
                    self.pools.searches.ask(Box::new(move || Event::Opened(group, call())));
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
    pub fn step(&mut self) -> Result<bool, RolloutError> {
        if self.stream.shutdown.requested() {
            return Err(RolloutError::Interrupted);
        }
        let idle = !self.lives.iter().flatten().any(Live::writes);
        let seated = self.waiting.is_empty() || self.free.is_empty();
        let together = self.stream.pace == Pace::Together && self.searching > 0;
        if together || idle && seated {
            if self.searching + self.answering + self.writing == 0 {
                return Ok(false);
            }
            self.keep()?;
            match self.events.1.recv_timeout(LOOK) {
                Ok(event) => self.take(event)?,
                Err(RecvTimeoutError::Timeout) => return Ok(true),
                Err(RecvTimeoutError::Disconnected) => return Err(lost()),
            }
        }
        let mut paid = false;
        while let Ok(event) = self.events.1.try_recv() {
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
        if let Some(rows) = &mut self.rows {
            for slot in rows.write(self.stream, &mut self.lives)? {
                self.said(slot)?;
            }
        }
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
            Some(Event::Said(slot, said)) => {
                self.writing -= 1;
                self.served += said.as_ref().map_or(0, |said| said.tokens.len() as u64);
                match said {
                    Ok(said) => {
                        if let Some(live) = &mut self.lives[slot] {
                            (live.tokens, live.logprobs) = (said.tokens, said.logprobs);
                        }
                        self.said(slot)
                    }
                    Err(error) if error.is_outage() => {
                        tracing::warn!(%error, "a turn could not be had; its sample is masked");
                        self.fail(slot, &error)
                    }
                    Err(error) => Err(error),
                }
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
                            self.fail(slot, &error)?;
                        }
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Ends an episode that waits for what cannot be had.
    fn fail(&mut self, slot: usize, error: &RolloutError) -> Result<(), RolloutError> {
        if let Some(live) = &mut self.lives[slot] {
            live.seat.play.failed(error.to_string());
        }
        self.go_on(slot)
    }

    fn found(&mut self, slot: usize, passages: &[Passage]) -> Result<(), RolloutError> {
        if let Some(live) = &mut self.lives[slot] {
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
        if let Some(rows) = &mut self.rows {
            rows.prompts(&mut self.waiting, count)?;
        }
        for _ in 0..count {
            let (Some(waiting), Some(slot)) = (self.waiting.pop_front(), self.free.pop()) else { break };
            let Waiting { group, seat, prompt } = waiting;
            let cached = self.rows.as_mut().map_or_else(|| Ok(Vec::new()), |rows| rows.seat(slot, prompt))?;
            let key = question_key(&seat.question);
            self.lives[slot] = Some(Live {
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

    /// Does what an episode asks for next.
    fn go_on(&mut self, slot: usize) -> Result<(), RolloutError> {
        loop {
            let Some(live) = &mut self.lives[slot] else { return Ok(()) };
            match live.seat.play.next() {
                Step::Generate { max_new_tokens, stop } => {
                    live.stop = stop.to_vec();
                    live.limit = max_new_tokens;
                    if live.limit > 0 && !live.seat.play.context().is_empty() {
                        match &mut self.rows {
                            Some(rows) => rows.ask(slot, live),
                            None => self.ask_server(slot),
                        }
                        return Ok(());
                    }
                    // no room for a token: the protocol is told so
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
                            self.pools.searches.ask(Box::new(move || Event::Found(key, call())));
                        }
                    }
                    return Ok(());
                }
                Step::Finish => return self.leave(slot),
            }
        }
    }

    fn ask_server(&mut self, slot: usize) {
        let (Writer::Server(server), Some(live)) = (self.stream.writer, &self.lives[slot]) else { return };
        let (codec, sampling) = (self.stream.codec, self.stream.sampling);
        let turn = Turn {
            group: live.group,
            context: live.seat.play.context().to_vec(),
            limit: live.limit,
            stop: live.stop.clone(),
            key: live.key.clone(),
            sample: live.seat.sample,
            number: live.turn,
        };
        self.writing += 1;
        self.pools.turns.ask(Box::new(move || Event::Said(slot, write(server, codec, sampling, &turn))));
    }

    fn call_of(&self, slot: usize, (query, top_k, _): &Query) -> Call<'s, Result<Vec<Passage>, RolloutError>> {
        let question = self.lives[slot].as_ref().map(|live| live.seat.question.clone()).unwrap_or_default();
        self.call(question, query.clone(), *top_k)
    }

    fn leave(&mut self, slot: usize) -> Result<(), RolloutError> {
        let Some(live) = self.lives[slot].take() else { return Ok(()) };
        if let Some(rows) = &mut self.rows {
            rows.leave(slot);
        }
        self.free.push(slot);
        let job = lock(self.stage).ended(live.group, live.seat)?;
        if let Some(job) = job {
            self.answer(job);
        }
        Ok(())
    }

    fn answer(&mut self, job: Job<'s, S::Answer>) {
        self.answering += 1;
        self.pools.answers.ask(Box::new(move || Event::Answered(job())));
    }

    /// Hands a finished turn to its episode.
    fn said(&mut self, slot: usize) -> Result<(), RolloutError> {
        let Some(live) = &mut self.lives[slot] else { return Ok(()) };
        live.next.clear();
        live.turn += 1;
        let (tokens, logprobs) = (std::mem::take(&mut live.tokens), std::mem::take(&mut live.logprobs));
        live.seat.play.generated(&tokens, &logprobs, self.stream.codec.plain())?;
        self.go_on(slot)
    }
}
