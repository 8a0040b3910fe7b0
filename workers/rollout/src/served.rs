//! Plays protocols with a model that is served: conversations go out as messages, text comes back.
//!
//! There is no tokenizer here, so budgets are kept in characters, three to a token, and no token id is recorded. What
//! an environment says inside a running text (Search-R1's and Search-o1's results) is a user's message instead.

use crate::error::RolloutError;
use crate::peers::{ChatSampling, ChatSource, CompletionOutcome, Retrieve};
use crate::play::Seat;
use s3_config::{RetrievalMethod, SearchConfig};
use s3_search::script::{Scripted, close};
use s3_search::{Codec, CodecError, Message, Play, Question, Step, Trajectory};
use s3_telemetry::Shutdown;

/// Characters that a token is taken for: fewer than English takes, so that nothing is refused as too long.
const CHARS: u32 = 3;
/// Tokens of a chat template around the messages.
const TEMPLATE: u32 = 64;

/// Characters as tokens, for budgets without a tokenizer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Characters;

impl Codec for Characters {
    fn encode(&self, text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }

    fn decode(&self, tokens: &[u32]) -> String {
        tokens.iter().map(|&token| char::from_u32(token).unwrap_or(char::REPLACEMENT_CHARACTER)).collect()
    }

    fn chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>, CodecError> {
        Ok(self.encode(&[system.unwrap_or_default(), user].concat()))
    }

    fn end_of_turn(&self) -> u32 {
        // no character
        u32::MAX
    }
}

/// The same limits, in characters.
pub fn in_characters(search: &SearchConfig) -> SearchConfig {
    let scaled = |tokens: u32| tokens.saturating_mul(CHARS);
    SearchConfig {
        passage_tokens: scaled(search.passage_tokens),
        observation_tokens: scaled(search.observation_tokens),
        turn_tokens: scaled(search.turn_tokens),
        context_tokens: scaled(search.context_tokens.saturating_sub(TEMPLATE).max(search.turn_tokens + 1)),
        ..search.clone()
    }
}

/// What became of one question.
#[derive(Debug)]
pub enum Served {
    /// Its run, with the tokens that the provider counted for each turn.
    Played(Scripted, Vec<u32>),
    /// The provider refuses it, every time.
    Refused(String),
}

impl Served {
    /// The record of a run: no ids, turns as long as the provider counted.
    pub fn trajectory(run: Scripted, counts: &[u32]) -> Trajectory {
        let mut trajectory = run.finish();
        (trajectory.tokens, trajectory.roles, trajectory.logprobs) = (Vec::new(), Vec::new(), Vec::new());
        let mut end = 0;
        for (turn, count) in trajectory.turns.iter_mut().zip(counts) {
            turn.tokens = (end, end + *count as usize);
            end = turn.tokens.1;
        }
        trajectory
    }
}

/// Everything that plays with a served model.
pub struct ServedPlayer<'a> {
    /// The model.
    pub model: &'a dyn ChatSource,
    /// Answers searches.
    pub retriever: &'a dyn Retrieve,
    /// How the retriever ranks.
    pub method: RetrievalMethod,
    /// How the model writes.
    pub sampling: ChatSampling,
    /// Looked at between rounds.
    pub shutdown: &'a Shutdown,
}

impl ServedPlayer<'_> {
    /// Plays all together, in rounds: every turn that is due is asked for in one request, then every search.
    /// An outage is an error: nothing of the batch is worth anything without the rest.
    pub fn drive(&self, seats: Vec<Seat<Scripted>>) -> Result<Vec<Served>, RolloutError> {
        let mut rows: Vec<(Served, Question)> =
            seats.into_iter().map(|seat| (Served::Played(seat.play, Vec::new()), seat.question)).collect();
        loop {
            if self.shutdown.requested() {
                return Err(RolloutError::Interrupted);
            }
            if self.write(&mut rows)? || self.search(&mut rows)? {
                continue;
            }
            return Ok(rows.into_iter().map(|(row, _)| row).collect());
        }
    }

    fn write(&self, rows: &mut [(Served, Question)]) -> Result<bool, RolloutError> {
        let due = |row: &Served| match row {
            Served::Played(run, _) => matches!(run.next(), Step::Generate { .. }),
            Served::Refused(_) => false,
        };
        let places: Vec<usize> = (0..rows.len()).filter(|&at| due(&rows[at].0)).collect();
        if places.is_empty() {
            return Ok(false);
        }
        let item = |at: &usize| -> Option<(&[Message], Vec<String>)> {
            let Served::Played(run, _) = &rows[*at].0 else { return None };
            Some((run.messages(), run.tags().iter().map(|tag| tag.close.to_owned()).collect()))
        };
        let items: Vec<_> = places.iter().filter_map(item).collect();
        let outcomes = self.model.complete(&items, self.sampling)?;
        for (at, outcome) in places.into_iter().zip(outcomes) {
            let row = &mut rows[at].0;
            match (outcome, &mut *row) {
                (CompletionOutcome::Written(written), Served::Played(run, counts)) => {
                    counts.push(written.tokens);
                    let text = close(&written.text, run.tags());
                    run.written(&text, &Characters)?;
                }
                (CompletionOutcome::Failed { reason, outage: true }, _) => {
                    return Err(RolloutError::AllFailed { reason, outage: true });
                }
                (CompletionOutcome::Failed { reason, outage: false }, _) => *row = Served::Refused(reason),
                (_, Served::Refused(_)) => {}
            }
        }
        Ok(true)
    }

    fn search(&self, rows: &mut [(Served, Question)]) -> Result<bool, RolloutError> {
        let mut places = Vec::new();
        let (mut queries, mut questions, mut most) = (Vec::new(), Vec::new(), 0);
        for (at, (row, question)) in rows.iter().enumerate() {
            if let Served::Played(run, _) = row
                && let Step::Retrieve { query, top_k } = run.next()
            {
                places.push(at);
                queries.push(query.to_owned());
                questions.push(question);
                most = most.max(top_k as u32);
            }
        }
        if places.is_empty() {
            return Ok(false);
        }
        let found = self.retriever.retrieve_for(&questions, &queries, most, self.method)?;
        for (at, passages) in places.into_iter().zip(found) {
            if let Served::Played(run, _) = &mut rows[at].0 {
                run.retrieved(passages, &Characters)?;
            }
        }
        Ok(true)
    }
}
