//! A protocol, played over token ids.

use super::page::Budgets;
use super::{Move, Place, Protocol, Tag, Write};
use crate::episode::{SearchError, Step};
use crate::play::Play;
use crate::types::{Codec, Message, Passage, Question, Role, Speaker, StopReason, Trajectory, Turn};
use s3_config::SearchConfig;
use std::collections::BTreeSet;

/// A conversation: its messages, and what the model reads of it.
#[derive(Clone, Debug, Default)]
struct Tape {
    messages: Vec<Message>,
    tokens: Vec<u32>,
}

#[derive(Clone, Debug)]
enum State {
    Write { stops: Vec<String>, tags: Vec<Tag> },
    Retrieve { query: String, raw: bool },
    Done(StopReason),
}

/// One question's run of a protocol. What was read and written is kept in order, whatever conversation it stood in.
#[derive(Debug)]
pub struct Scripted {
    protocol: Box<dyn Protocol>,
    config: SearchConfig,
    question_id: String,
    sample: u32,
    main: Tape,
    aside: Option<Tape>,
    tokens: Vec<u32>,
    roles: Vec<Role>,
    logprobs: Vec<f32>,
    turns: Vec<Turn>,
    window: Vec<Passage>,
    searches: u32,
    state: State,
}

impl Scripted {
    /// Starts. `config` has the limits; lengths are tokens of `codec`.
    pub fn new(
        protocol: Box<dyn Protocol>,
        question: &Question,
        sample: u32,
        config: &SearchConfig,
        codec: &dyn Codec,
    ) -> Result<Self, SearchError> {
        limits(config)?;
        let mut run = Self {
            protocol,
            config: config.clone(),
            question_id: question.id.clone(),
            sample,
            main: Tape::default(),
            aside: None,
            tokens: Vec::new(),
            roles: Vec::new(),
            logprobs: Vec::new(),
            turns: Vec::new(),
            window: Vec::new(),
            searches: 0,
            state: State::Done(StopReason::Running),
        };
        run.advance(codec)?;
        Ok(run)
    }

    /// The conversation that is written in, as messages: for models that are served.
    pub fn messages(&self) -> &[Message] {
        &self.tape().messages
    }

    /// What ends the turn that is to be written.
    pub fn tags(&self) -> &[Tag] {
        match &self.state {
            State::Write { tags, .. } => tags,
            State::Retrieve { .. } | State::Done(_) => &[],
        }
    }

    /// Takes a turn as text: what a served model wrote.
    pub fn written(&mut self, text: &str, codec: &dyn Codec) -> Result<(), SearchError> {
        self.expect("written")?;
        let tokens = codec.encode(text);
        let span = self.wrote_tokens(&tokens);
        self.wrote(text.to_owned(), span, codec)
    }

    /// The method's own answer; empty when it gave none.
    pub fn answer(&self) -> String {
        self.protocol.answer()
    }

    fn tape(&self) -> &Tape {
        self.aside.as_ref().unwrap_or(&self.main)
    }

    fn tape_mut(&mut self) -> &mut Tape {
        self.aside.as_mut().unwrap_or(&mut self.main)
    }

    fn expect(&self, called: &'static str) -> Result<(), SearchError> {
        match self.next() {
            Step::Generate { .. } => Ok(()),
            step => Err(SearchError::OutOfOrder { called, expected: step.name() }),
        }
    }

    fn keep(&mut self, tokens: &[u32], role: Role) {
        self.tokens.extend_from_slice(tokens);
        self.roles.resize(self.tokens.len(), role);
        self.logprobs.resize(self.tokens.len(), 0.0);
    }

    fn wrote_tokens(&mut self, tokens: &[u32]) -> (usize, usize) {
        let start = self.tokens.len();
        self.tape_mut().tokens.extend_from_slice(tokens);
        self.keep(tokens, Role::Action);
        (start, self.tokens.len())
    }

    fn wrote(&mut self, text: String, tokens: (usize, usize), codec: &dyn Codec) -> Result<(), SearchError> {
        self.tape_mut().messages.push(Message { speaker: Speaker::Assistant, text: text.clone() });
        let action = self.protocol.wrote(&text);
        self.turns.push(Turn { text, action, window: self.window.clone(), selected: Vec::new(), tokens });
        self.aside = None;
        self.advance(codec)
    }

    fn advance(&mut self, codec: &dyn Codec) -> Result<(), SearchError> {
        self.state = match self.protocol.next() {
            Move::Done(reason) => State::Done(reason),
            Move::Retrieve { query, raw } => State::Retrieve { query, raw },
            Move::Write(write) => self.open(write, codec)?,
        };
        Ok(())
    }

    /// Shows the page of a turn, as far as it fits.
    fn open(&mut self, write: Write, codec: &dyn Codec) -> Result<State, SearchError> {
        let Write { place, page, stops } = write;
        let limit = (self.config.context_tokens as usize).saturating_sub(self.config.turn_tokens as usize);
        let held = if place == Place::Next { self.main.tokens.len() } else { 0 };
        if held > limit {
            return Ok(State::Done(StopReason::ContextFull));
        }
        let budgets = Budgets {
            passage: self.config.passage_tokens as usize,
            block: self.config.observation_tokens as usize,
            room: limit - held,
        };
        let chat = |text: &str| codec.chat(page.system.as_deref(), text);
        let fitted = match place {
            Place::New | Place::Aside => page.fitted(budgets, codec, &|text| Ok(chat(text)?.len()))?,
            Place::Next => page.fitted(budgets, codec, &|text| Ok(codec.encode(text).len()))?,
        };
        let Some(fitted) = fitted else {
            if self.tokens.is_empty() {
                let needed = chat(&[page.before.as_str(), page.after.as_str()].concat())?.len();
                return Err(SearchError::PromptTooLong {
                    question: self.question_id.clone(),
                    needed,
                    turn: self.config.turn_tokens as usize,
                    limit: self.config.context_tokens as usize,
                });
            }
            return Ok(State::Done(StopReason::ContextFull));
        };
        let role = if self.tokens.is_empty() { Role::Prompt } else { Role::Observation };
        let said = Message { speaker: Speaker::User, text: fitted.text.clone() };
        let tokens = match place {
            Place::New | Place::Aside => {
                let system = page.system.clone().map(|text| Message { speaker: Speaker::System, text });
                let tokens = chat(&fitted.text)?;
                let tape = Tape { messages: system.into_iter().chain([said]).collect(), tokens: tokens.clone() };
                if place == Place::New {
                    self.main = tape;
                } else {
                    self.aside = Some(tape);
                }
                tokens
            }
            Place::Next => {
                let tokens = fitted.cut.unwrap_or_else(|| codec.encode(&fitted.text));
                self.main.messages.push(said);
                self.main.tokens.extend_from_slice(&tokens);
                tokens
            }
        };
        self.keep(&tokens, role);
        if let Some((_, mut passages)) = page.passages {
            passages.truncate(fitted.shown);
            self.protocol.shown(fitted.shown);
            self.window = passages;
        }
        let ends = stops.iter().map(|tag| tag.close.to_owned()).collect();
        Ok(State::Write { stops: ends, tags: stops })
    }
}

impl Play for Scripted {
    fn next(&self) -> Step<'_> {
        match &self.state {
            State::Write { stops, .. } => {
                Step::Generate { max_new_tokens: self.config.turn_tokens as usize, stop: stops }
            }
            State::Retrieve { query, .. } => Step::Retrieve { query, top_k: self.config.top_k as usize },
            State::Done(_) => Step::Finish,
        }
    }

    fn context(&self) -> &[u32] {
        &self.tape().tokens
    }

    fn generated(&mut self, tokens: &[u32], logprobs: &[f32], codec: &dyn Codec) -> Result<(), SearchError> {
        self.expect("generated")?;
        let limit = self.config.turn_tokens as usize;
        let sound = tokens.len() == logprobs.len() && logprobs.iter().all(|logprob| logprob.is_finite());
        if !sound || tokens.len() > limit {
            return Err(SearchError::Sampled { tokens: tokens.len(), logprobs: logprobs.len(), limit });
        }
        let end = codec.end_of_turn();
        let said = tokens.iter().position(|&token| token == end).map_or(tokens, |at| &tokens[..at]);
        let kept = if self.protocol.keeps_end() { tokens } else { said };
        let span = self.wrote_tokens(kept);
        self.logprobs[span.0..].copy_from_slice(&logprobs[..kept.len()]);
        self.wrote(codec.decode(said), span, codec)
    }

    fn retrieved(&mut self, passages: Vec<Passage>, codec: &dyn Codec) -> Result<(), SearchError> {
        let State::Retrieve { raw, .. } = self.state else {
            return Err(SearchError::OutOfOrder { called: "retrieved", expected: self.next().name() });
        };
        let mut passages = passages;
        passages.truncate(self.config.top_k as usize);
        self.searches += u32::from(!raw);
        self.protocol.found(passages);
        self.advance(codec)
    }

    fn failed(&mut self, why: String) {
        self.state = State::Done(StopReason::Failed { reason: why });
    }

    fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Done(StopReason::Failed { reason }) => Some(reason),
            _ => None,
        }
    }

    fn finish(self) -> Trajectory {
        let mut seen = BTreeSet::new();
        let mut selected = self.protocol.passages();
        selected.retain(|passage| seen.insert(passage.id.clone()));
        selected.truncate(self.config.max_passages as usize);
        Trajectory {
            question_id: self.question_id,
            sample: self.sample,
            tokens: self.tokens,
            roles: self.roles,
            logprobs: self.logprobs,
            turns: self.turns,
            selected,
            stop: match self.state {
                State::Done(reason) => reason,
                State::Write { .. } | State::Retrieve { .. } => StopReason::Running,
            },
            searches: self.searches,
        }
    }
}

/// Refuses limits that no run can keep, before anything is loaded or spent.
pub(crate) fn limits(config: &SearchConfig) -> Result<(), SearchError> {
    crate::episode::at_least_one(config)?;
    if config.context_tokens <= config.turn_tokens {
        let fix = "it must be more than turnTokens, or no turn fits";
        return Err(SearchError::Limit { key: "contextTokens", value: config.context_tokens, fix });
    }
    Ok(())
}
