//! One question's run of the loop, as a state machine over token ids.

use crate::compat::{self, Kind};
use crate::prompt::{self, Template};
use crate::protocol;
use crate::types::{Action, Codec, CodecError, Passage, Question, Role, StopReason, Trajectory, Turn};
use s3_config::{Ablation, Compatibility, InitialPolicy, SearchConfig, UnselectedPolicy};
use std::collections::BTreeSet;

/// Why an episode could not start or go on.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SearchError {
    /// A limit that no episode can keep.
    #[error("search.{key} is {value}: {fix}")]
    Limit {
        /// The configuration's key.
        key: &'static str,
        /// Its value.
        value: u32,
        /// What to set.
        fix: &'static str,
    },
    /// A behaviour that this crate does not have.
    #[error("search.compatibility {0:?} is another method's: use None or S3, or the method SearchR1")]
    Unsupported(Compatibility),
    /// A prompt template that cannot be filled in.
    #[error("prompt template: {0}")]
    Template(String),
    /// Instructions and question leave no room for a turn. Instructions are never cut.
    #[error(
        "question {question}: the prompt needs {needed} tokens and a turn {turn}, but search.contextTokens is {limit}; raise it or shorten the template"
    )]
    PromptTooLong {
        /// [`Question::id`].
        question: String,
        /// Tokens of the shortest prompt.
        needed: usize,
        /// `search.turnTokens`.
        turn: usize,
        /// `search.contextTokens`.
        limit: usize,
    },
    /// The driver called something that [`Episode::next`] did not ask for.
    #[error("{called} was called, but the episode's next step is {expected}")]
    OutOfOrder {
        /// The call.
        called: &'static str,
        /// The step due.
        expected: &'static str,
    },
    /// Sampled tokens that do not fit what was asked for.
    #[error(
        "a turn of {tokens} tokens with {logprobs} log-probabilities was fed; at most {limit} tokens, one finite log-probability each"
    )]
    Sampled {
        /// Tokens fed.
        tokens: usize,
        /// Log-probabilities fed.
        logprobs: usize,
        /// `search.turnTokens`.
        limit: usize,
    },
    /// The tokenizer refused.
    #[error("tokenizer: {0}")]
    Codec(#[from] CodecError),
}

/// What the driver is to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Sample from [`Episode::context`] until the end-of-turn token, a stop string in the turn's
    /// decoded text, or the limit; then call [`Episode::generated`] with every token sampled.
    Generate {
        /// Tokens at most.
        max_new_tokens: usize,
        /// Stop strings.
        stop: &'a [String],
    },
    /// Search, then call [`Episode::retrieved`] (or [`Episode::failed`]).
    Retrieve {
        /// Words for the retriever.
        query: &'a str,
        /// Passages wanted.
        top_k: usize,
    },
    /// Nothing is left to do: call [`Episode::finish`].
    Finish,
}

impl Step<'_> {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Generate { .. } => "Generate",
            Step::Retrieve { .. } => "Retrieve",
            Step::Finish => "Finish",
        }
    }
}

#[derive(Clone, Debug)]
enum State {
    Generate,
    Retrieve { query: String },
    Done(StopReason),
}

/// An information block that was shown.
#[derive(Clone, Debug)]
struct Window {
    passages: Vec<Passage>,
    picked: bool,
}

/// One question's run of the loop. It owns the tokens; the driver owns model, retriever and time.
///
/// Sampled tokens are kept as they are: their text is parsed, never encoded again. Passages are kept
/// as structures: a selection is a set of indices into the last block, whatever text surrounds it.
#[derive(Clone, Debug)]
pub struct Episode {
    config: SearchConfig,
    question_id: String,
    sample: u32,
    stop: Vec<String>,
    tokens: Vec<u32>,
    roles: Vec<Role>,
    logprobs: Vec<f32>,
    turns: Vec<Turn>,
    /// Block 0 is the initial one.
    windows: Vec<Window>,
    /// (block, index in it) in the order selected.
    picks: Vec<(usize, usize)>,
    searches: u32,
    corrections: u32,
    /// The reference's view of the episode; empty by default.
    transcript: String,
    /// Where in it the searcher's own writing begins.
    written_from: usize,
    state: State,
}

impl Episode {
    /// Starts an episode: `initial` are the passages of the raw question, best first, of which
    /// `initialTopK` are shown as the budgets allow.
    pub fn new(
        question: &Question,
        sample: u32,
        initial: Vec<Passage>,
        config: &SearchConfig,
        codec: &dyn Codec,
    ) -> Result<Self, SearchError> {
        check(config)?;
        let template = Template::of(config)?;
        let mut passages = initial;
        passages.truncate(config.initial_top_k as usize);
        let mut episode = Self {
            config: config.clone(),
            question_id: question.id.clone(),
            sample,
            stop: vec![protocol::QUERY_END.to_owned()],
            tokens: Vec::new(),
            roles: Vec::new(),
            logprobs: Vec::new(),
            turns: Vec::new(),
            windows: Vec::new(),
            picks: Vec::new(),
            searches: 0,
            corrections: 0,
            transcript: String::new(),
            written_from: 0,
            state: State::Generate,
        };
        if episode.compat() {
            let documents = format!("<information>\n{}</information>", compat::render_initial(&passages));
            let text = template.render(&question.question, &documents);
            template.payload(&text).clone_into(&mut episode.transcript);
            episode.written_from = episode.transcript.len();
            let tokens = codec.chat(None, &text)?;
            if episode.room_beside(tokens.len()).is_none() {
                return Err(episode.prompt_too_long(tokens.len()));
            }
            episode.append(&tokens, Role::Prompt);
        } else {
            episode.stop.push(protocol::COMPLETE_END.to_owned());
            let asked = prompt::neutralise(&question.question);
            let skeleton = codec.chat(None, &template.render(&asked, ""))?.len();
            let budget = config.observation_tokens as usize;
            let block = prompt::block(&passages, config.passage_tokens as usize, codec, |text| {
                let whole = codec.chat(None, &template.render(&asked, text))?.len();
                let room = episode.room_beside(skeleton).unwrap_or(0).min(budget);
                Ok(whole.saturating_sub(skeleton).saturating_sub(room))
            })?;
            let Some(block) = block else { return Err(episode.prompt_too_long(skeleton)) };
            passages.truncate(block.shown);
            let tokens = codec.chat(None, &template.render(&asked, &block.text))?;
            episode.append(&tokens, Role::Prompt);
        }
        episode.windows.push(Window { passages, picked: false });
        Ok(episode)
    }

    /// What to do next; changes nothing.
    pub fn next(&self) -> Step<'_> {
        match &self.state {
            State::Generate => Step::Generate { max_new_tokens: self.config.turn_tokens as usize, stop: &self.stop },
            State::Retrieve { query } => Step::Retrieve { query, top_k: self.config.top_k as usize },
            State::Done(_) => Step::Finish,
        }
    }

    /// All tokens so far. It only ever grows at its end, so a KV cache can follow it.
    pub fn context(&self) -> &[u32] {
        &self.tokens
    }

    /// Takes a sampled turn: its tokens, stop string and end-of-turn token included, and each one's
    /// log-probability at sampling temperature.
    pub fn generated(&mut self, tokens: &[u32], logprobs: &[f32], codec: &dyn Codec) -> Result<(), SearchError> {
        let step = self.next();
        let Step::Generate { max_new_tokens, .. } = step else {
            return Err(SearchError::OutOfOrder { called: "generated", expected: step.name() });
        };
        let sound = tokens.len() == logprobs.len() && logprobs.iter().all(|logprob| logprob.is_finite());
        if !sound || tokens.len() > max_new_tokens {
            return Err(SearchError::Sampled { tokens: tokens.len(), logprobs: logprobs.len(), limit: max_new_tokens });
        }
        let start = self.tokens.len();
        self.append(tokens, Role::Action);
        self.logprobs[start..].copy_from_slice(logprobs);
        let end = codec.end_of_turn();
        let written = tokens.iter().position(|&token| token == end).map_or(tokens, |at| &tokens[..at]);
        let text = codec.decode(written);
        let span = (start, self.tokens.len());
        if self.compat() {
            self.reference_turn(text, span, codec);
        } else {
            self.turn(text, span, codec);
        }
        Ok(())
    }

    /// Takes the passages of the search that was asked for, best first.
    pub fn retrieved(&mut self, passages: Vec<Passage>, codec: &dyn Codec) -> Result<(), SearchError> {
        let step = self.next();
        let Step::Retrieve { top_k, .. } = step else {
            return Err(SearchError::OutOfOrder { called: "retrieved", expected: step.name() });
        };
        let mut passages = passages;
        passages.truncate(top_k);
        self.searches += 1;
        let tokens = if self.compat() {
            // the reference cuts the block like any text, closing tag and all
            let mut tokens = codec.encode(&compat::render_observation(&passages));
            tokens.truncate(self.config.observation_tokens as usize);
            self.transcript.push_str(&codec.decode(&tokens));
            tokens
        } else {
            let budget = self.observation_room();
            let framed = |text: &str| codec.encode(&format!("\n{text}\n"));
            let block = prompt::block(&passages, self.config.passage_tokens as usize, codec, |text| {
                Ok(framed(text).len().saturating_sub(budget))
            })?;
            let Some(block) = block else {
                self.state = State::Done(StopReason::ContextFull);
                return Ok(());
            };
            passages.truncate(block.shown);
            framed(&block.text)
        };
        self.append(&tokens, Role::Observation);
        self.windows.push(Window { passages, picked: false });
        self.await_turn();
        Ok(())
    }

    /// Ends the episode because infrastructure failed: its sample is masked, never scored.
    pub fn failed(&mut self, why: String) {
        self.state = State::Done(StopReason::Failed { reason: why });
    }

    /// Why the sample is masked, if it is.
    pub fn failure(&self) -> Option<&str> {
        match &self.state {
            State::Done(StopReason::Failed { reason }) => Some(reason),
            _ => None,
        }
    }

    /// The trajectory so far, with the passages that the policies hand to the generator.
    pub fn finish(self) -> Trajectory {
        let selected = match self.config.ablation {
            Ablation::NoSelection => self.everything(0),
            Ablation::NoBoth => self.everything(1),
            Ablation::None | Ablation::NoInitial if self.compat() => self.reference_selection(),
            Ablation::None | Ablation::NoInitial => self.selection(),
        };
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
                State::Generate | State::Retrieve { .. } => StopReason::Running,
            },
            searches: self.searches,
        }
    }

    fn compat(&self) -> bool {
        self.config.compatibility == Compatibility::S3
    }

    fn append(&mut self, tokens: &[u32], role: Role) {
        self.tokens.extend_from_slice(tokens);
        self.roles.resize(self.tokens.len(), role);
        self.logprobs.resize(self.tokens.len(), 0.0);
    }

    /// Tokens left beside `used` ones and a whole turn; `None` when the turn does not fit.
    fn room_beside(&self, used: usize) -> Option<usize> {
        (self.config.context_tokens as usize).checked_sub(used + self.config.turn_tokens as usize)
    }

    fn observation_room(&self) -> usize {
        self.room_beside(self.tokens.len()).unwrap_or(0).min(self.config.observation_tokens as usize)
    }

    fn prompt_too_long(&self, needed: usize) -> SearchError {
        SearchError::PromptTooLong {
            question: self.question_id.clone(),
            needed,
            turn: self.config.turn_tokens as usize,
            limit: self.config.context_tokens as usize,
        }
    }

    /// The next turn, if it fits.
    fn await_turn(&mut self) {
        self.state = match self.room_beside(self.tokens.len()) {
            Some(_) => State::Generate,
            None => State::Done(StopReason::ContextFull),
        };
    }

    fn window(&self) -> Vec<Passage> {
        self.windows.last().map(|window| window.passages.clone()).unwrap_or_default()
    }

    /// A turn by the default protocol.
    fn turn(&mut self, text: String, tokens: (usize, usize), codec: &dyn Codec) {
        let window = self.window();
        let reading = protocol::read(&text, window.len(), self.config.max_selected as usize);
        if let Some(block) = self.windows.len().checked_sub(1).filter(|_| !reading.selected.is_empty()) {
            self.windows[block].picked = true;
            self.picks.extend(reading.selected.iter().map(|&index| (block, index)));
        }
        let action = reading.action.clone();
        self.turns.push(Turn { text, action: reading.action, window, selected: reading.selected, tokens });
        match action {
            Action::Complete => self.state = State::Done(StopReason::Complete),
            Action::Search { .. } if self.searches >= self.config.max_searches => {
                self.state = State::Done(StopReason::SearchLimit);
            }
            Action::Search { query } => {
                let empty_block = codec.encode("\n<information>\n</information>\n").len();
                self.state = if self.observation_room() >= empty_block {
                    State::Retrieve { query }
                } else {
                    State::Done(StopReason::ContextFull)
                };
            }
            // no turn is read as a note by this protocol
            Action::Note | Action::Invalid { .. } if self.corrections >= self.config.max_corrections => {
                self.state = State::Done(StopReason::Unreadable);
            }
            Action::Note | Action::Invalid { .. } => {
                self.corrections += 1;
                self.correct(&codec.encode(protocol::CORRECTION));
            }
        }
    }

    fn correct(&mut self, correction: &[u32]) {
        if self.room_beside(self.tokens.len() + correction.len()).is_none() {
            self.state = State::Done(StopReason::ContextFull);
            return;
        }
        self.append(correction, Role::Observation);
        self.state = State::Generate;
    }

    /// A turn as the reference takes it: unreadable turns use up iterations like searches, and after
    /// the last iteration one closing turn follows in which nothing is executed.
    fn reference_turn(&mut self, text: String, tokens: (usize, usize), codec: &dyn Codec) {
        let kept = compat::kept_response(&text);
        self.transcript.push_str(&kept);
        let parsed = compat::parse_action(&kept);
        let window = self.window();
        let selected = compat::first_selection(&kept)
            .into_iter()
            .filter_map(|id| (id as usize).checked_sub(1))
            .filter(|&index| index < window.len())
            .collect();
        let closing = self.turns.len() >= compat::executed_searches(self.config.max_searches) as usize;
        let action = match parsed.kind {
            Some(Kind::SearchComplete) => Action::Complete,
            Some(Kind::Search) => Action::Search { query: parsed.query },
            None => Action::Invalid { reason: "neither a query nor a completed search".to_owned() },
        };
        self.turns.push(Turn { text, action: action.clone(), window, selected, tokens });
        match action {
            Action::Complete => self.state = State::Done(StopReason::Complete),
            Action::Search { .. } if closing => self.state = State::Done(StopReason::SearchLimit),
            Action::Search { query } => self.state = State::Retrieve { query },
            Action::Note | Action::Invalid { .. } if closing => self.state = State::Done(StopReason::Unreadable),
            Action::Note | Action::Invalid { .. } => {
                let correction = codec.encode(&compat::correction());
                self.transcript.push_str(&compat::correction());
                self.correct(&correction);
            }
        }
    }

    /// All passages that were shown, from block `first` on, each id once: no budget, as in the reference's ablations.
    fn everything(&self, first: usize) -> Vec<Passage> {
        let mut seen = BTreeSet::new();
        let shown = self.windows.iter().skip(first).flat_map(|window| &window.passages);
        shown.filter(|passage| seen.insert(passage.id.as_str())).cloned().collect()
    }

    /// Selected passages in the order selected, then what the policies add, each id once.
    fn selection(&self) -> Vec<Passage> {
        let ablated = self.config.ablation == Ablation::NoInitial;
        let initial = if ablated { InitialPolicy::None } else { self.config.initial };
        let picked = self.picks.iter().filter_map(|&(block, index)| {
            let dropped = block == 0 && initial == InitialPolicy::None;
            self.windows.get(block).filter(|_| !dropped)?.passages.get(index)
        });
        let whole = self.windows.iter().enumerate().filter(|(block, window)| match (block, initial) {
            (0, InitialPolicy::All) => true,
            (0, InitialPolicy::Selected) => self.picks.is_empty(),
            (0, InitialPolicy::None) => false,
            _ => self.config.unselected == UnselectedPolicy::Keep && !window.picked,
        });
        let mut seen = BTreeSet::new();
        picked
            .chain(whole.flat_map(|(_, window)| &window.passages))
            .filter(|passage| seen.insert(passage.id.as_str()))
            .take(self.config.max_passages as usize)
            .cloned()
            .collect()
    }

    /// What the reference parses out of the transcript. A passage that came through unharmed keeps
    /// its id; others are named by their place.
    fn reference_selection(&self) -> Vec<Passage> {
        let shown: Vec<&Passage> = self.windows.iter().flat_map(|window| &window.passages).collect();
        let from = if self.config.ablation == Ablation::NoInitial { self.written_from } else { 0 };
        let transcript = self.transcript.get(from..).unwrap_or_default();
        let extracted = compat::extract_documents(transcript).into_iter().enumerate();
        extracted
            .map(|(index, (title, text))| {
                let whole = shown.iter().find(|passage| crate::text::strip(&passage.text) == text);
                let id = whole.map_or_else(|| format!("extracted-{}", index + 1), |passage| passage.id.clone());
                Passage { id, title, text }
            })
            .collect()
    }
}

/// Refuses limits that no episode can keep, before anything is loaded or spent.
pub fn check(config: &SearchConfig) -> Result<(), SearchError> {
    at_least_one(config)?;
    if config.context_tokens <= config.turn_tokens {
        let fix = "it must be more than turnTokens, or no turn fits";
        return Err(SearchError::Limit { key: "contextTokens", value: config.context_tokens, fix });
    }
    match config.compatibility {
        Compatibility::None | Compatibility::S3 => {}
        other @ Compatibility::SearchR1 => return Err(SearchError::Unsupported(other)),
    }
    Template::of(config).map(|_valid| ())
}

/// Refuses limits of 0 that leave nothing to do.
pub(crate) fn at_least_one(config: &SearchConfig) -> Result<(), SearchError> {
    let limits = [
        ("topK", config.top_k),
        ("maxPassages", config.max_passages),
        ("passageTokens", config.passage_tokens),
        ("observationTokens", config.observation_tokens),
        ("turnTokens", config.turn_tokens),
    ];
    for (key, value) in limits {
        if value == 0 {
            return Err(SearchError::Limit { key, value, fix: "it must be at least 1" });
        }
    }
    Ok(())
}
