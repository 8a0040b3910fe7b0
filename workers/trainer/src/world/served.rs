//! The search world behind services that take their time: the rollout engine plays it, the trainer learns from it,
//! one thing after the other or ahead of itself.

use super::learn::{Curve, WorldConfig, draw, evaluate, gradients, optimizer};
use super::play::Rollout;
use super::task::{Puzzle, Retriever, Rng};
use s3_config::{AlgorithmConfig, RetrievalMethod, SearchConfig};
use s3_model::{AdamW, Decoder};
use s3_rollout::{
    Ahead, Job, Pace, Player, Retrieve, RolloutError, Sampling, Seat, Stage, Stream, TurnCodec, Writer, policy_of,
};
use s3_search::{Codec, CodecError, Passage, Play, Question, SearchError, Step, StopReason, Trajectory};
use s3_telemetry::Shutdown;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Log-normal latencies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Half of the calls take longer.
    pub median: Duration,
    /// Standard deviation of the logarithm: the tail.
    pub sigma: f64,
}

impl Latency {
    /// Of one call; a function of what is asked, so it is the same however the call is made.
    fn of(self, seed: u64, what: &str) -> Duration {
        let mut rng = Rng::new(seed, what, 0);
        let mut uniform = || (f64::from(rng.below(1 << 30)) + 0.5) / f64::from(1 << 30);
        let normal = (-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos();
        self.median.mul_f64((self.sigma * normal).exp())
    }
}

/// Retriever and generator.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Services {
    /// Of a search.
    pub retriever: Latency,
    /// Of an answer with its verdict.
    pub generator: Latency,
    /// Calls that a service answers at once; more wait.
    pub at_once: usize,
}

/// How the steps of a run follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// All episodes move together: turn, searches, turn, answers, update.
    LockStep,
    /// Episodes for themselves, rounds by policies of so many updates ago.
    Ahead(u32),
}

/// Token ids as text.
struct Numbers;

impl Codec for Numbers {
    fn encode(&self, text: &str) -> Vec<u32> {
        text.split(' ').filter_map(|word| word.parse().ok()).collect()
    }
    fn decode(&self, tokens: &[u32]) -> String {
        tokens.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }
    fn chat(&self, _: Option<&str>, _: &str) -> Result<Vec<u32>, CodecError> {
        Err(CodecError("the search world has no chat".into()))
    }
    fn end_of_turn(&self) -> u32 {
        u32::MAX
    }
}

impl TurnCodec for Numbers {
    fn ends(&self, _: u32) -> bool {
        false
    }
    fn plain(&self) -> &dyn Codec {
        self
    }
}

/// One episode: two tokens of a query, two documents, one token of a selection.
struct Quest {
    group: usize,
    puzzle: Puzzle,
    tokens: Vec<u32>,
    positions: Vec<usize>,
    logprobs: Vec<f32>,
    query: String,
    documents: Option<[[u32; 3]; 2]>,
    failure: Option<String>,
}

impl Quest {
    fn new(group: usize, puzzle: &Puzzle) -> Self {
        let tokens = puzzle.prompt();
        Self {
            group,
            puzzle: puzzle.clone(),
            tokens,
            positions: Vec::new(),
            logprobs: Vec::new(),
            query: String::new(),
            documents: None,
            failure: None,
        }
    }

    fn selection(&self) -> u32 {
        self.tokens.last().copied().unwrap_or_default()
    }

    fn right(&self) -> bool {
        self.documents.is_some_and(|documents| self.puzzle.searcher_right(documents, self.selection()))
    }

    /// What the generator is asked: the same for samples that chose the same.
    fn ask(&self) -> String {
        let chosen = self.documents.and_then(|documents| documents.get(self.selection() as usize).copied());
        format!("{} {chosen:?}", self.group)
    }

    fn rollout(&self, right: bool) -> Option<Rollout> {
        Some(Rollout {
            question: self.group,
            tokens: self.tokens.clone(),
            positions: self.positions.clone().try_into().ok()?,
            logprobs: self.logprobs.clone().try_into().ok()?,
            right,
            baseline_right: self.puzzle.baseline_right(),
        })
    }
}

impl Play for Quest {
    fn next(&self) -> Step<'_> {
        match (self.positions.len(), self.documents) {
            _ if self.failure.is_some() => Step::Finish,
            (0, _) => Step::Generate { max_new_tokens: 2, stop: &[] },
            (2, None) => Step::Retrieve { query: &self.query, top_k: 2 },
            (2, Some(_)) => Step::Generate { max_new_tokens: 1, stop: &[] },
            _ => Step::Finish,
        }
    }
    fn context(&self) -> &[u32] {
        &self.tokens
    }
    fn generated(&mut self, tokens: &[u32], logprobs: &[f32], codec: &dyn Codec) -> Result<(), SearchError> {
        self.positions.extend(self.tokens.len()..self.tokens.len() + tokens.len());
        self.tokens.extend(tokens);
        self.logprobs.extend(logprobs);
        if self.documents.is_none() {
            self.query = codec.decode(tokens);
        }
        Ok(())
    }
    fn retrieved(&mut self, passages: Vec<Passage>, codec: &dyn Codec) -> Result<(), SearchError> {
        let facts: Vec<[u32; 3]> =
            passages.iter().filter_map(|passage| codec.encode(&passage.text).try_into().ok()).collect();
        let wrong = SearchError::OutOfOrder { called: "retrieved", expected: "two facts" };
        let documents: [[u32; 3]; 2] = facts.try_into().map_err(|_| wrong)?;
        self.tokens.extend(self.puzzle.observation(documents));
        self.documents = Some(documents);
        Ok(())
    }
    fn failed(&mut self, why: String) {
        self.failure = Some(why);
    }
    fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }
    fn finish(self) -> Trajectory {
        let count = self.tokens.len();
        let mut roles = vec![s3_search::Role::Observation; count];
        self.positions.iter().for_each(|at| roles[*at] = s3_search::Role::Action);
        Trajectory {
            question_id: self.group.to_string(),
            sample: 0,
            tokens: self.tokens,
            roles,
            logprobs: vec![0.0; count],
            turns: Vec::new(),
            selected: Vec::new(),
            stop: StopReason::Complete,
            searches: u32::from(self.documents.is_some()),
        }
    }
}

/// The services of one round.
struct Round {
    services: Services,
    seed: u64,
    step: u64,
    puzzles: Vec<Puzzle>,
}

impl Round {
    fn facts(&self, question: &Question, query: &str) -> Vec<Passage> {
        let group: usize = question.id.parse().unwrap_or_default();
        let words = Numbers.encode(query);
        let (entity, relation) =
            (words.first().copied().unwrap_or(u32::MAX), words.get(1).copied().unwrap_or(u32::MAX));
        let mut rng = Rng::new(self.seed, &format!("retrieval {group} {query}"), self.step);
        let found = self.puzzles[group].retrieve(Retriever::Working, entity, relation, &mut rng);
        let passage = |fact: [u32; 3]| Passage { text: Numbers.decode(&fact), ..Passage::default() };
        found.map(passage).to_vec()
    }

    fn search_time(&self, question: &Question, query: &str) -> Duration {
        let what = format!("search {} {} {query}", self.step, question.id);
        self.services.retriever.of(self.seed, &what)
    }

    fn answer_time(&self, ask: &str) -> Duration {
        self.services.generator.of(self.seed, &format!("answer {} {ask}", self.step))
    }

    /// How long calls take that are made together.
    fn together(&self, calls: impl IntoIterator<Item = Duration>) -> Duration {
        // when each of the service's places is free again, the earliest first
        let mut places: BinaryHeap<std::cmp::Reverse<Duration>> =
            (0..self.services.at_once).map(|_| std::cmp::Reverse(Duration::ZERO)).collect();
        let mut last = Duration::ZERO;
        for call in calls {
            let std::cmp::Reverse(free) = places.pop().unwrap_or_default();
            last = last.max(free + call);
            places.push(std::cmp::Reverse(free + call));
        }
        last
    }

    fn seats(&self, group: usize, samples: usize) -> Vec<Seat<Quest>> {
        let question = Question { id: group.to_string(), dataset: "world".into(), ..Question::default() };
        let seat = |sample| Seat {
            play: Quest::new(group, &self.puzzles[group]),
            question: question.clone(),
            sample: sample as u32,
        };
        (0..samples).map(seat).collect()
    }
}

impl Retrieve for Round {
    fn retrieve(&self, _: &[String], _: u32, _: RetrievalMethod) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let reason = "the search world's facts belong to a question".to_owned();
        Err(RolloutError::Reply { service: "retriever", reason })
    }
    fn retrieve_for(
        &self,
        questions: &[&Question],
        queries: &[String],
        _: u32,
        _: RetrievalMethod,
    ) -> Result<Vec<Vec<Passage>>, RolloutError> {
        let calls = || questions.iter().zip(queries);
        std::thread::sleep(self.together(calls().map(|(question, query)| self.search_time(question, query))));
        Ok(calls().map(|(question, query)| self.facts(question, query)).collect())
    }
    fn looks_at_questions(&self) -> bool {
        true
    }
}

/// Finished quests and the answers they wait for.
struct Collected<'s> {
    round: &'s Round,
    samples: usize,
    quests: Vec<Option<Quest>>,
    asks: BTreeMap<String, Option<bool>>,
}

impl<'s> Stage<'s> for Collected<'s> {
    type Play = Quest;
    type Answer = (String, bool);

    fn opening(&mut self, _: usize) -> Option<(Question, String, usize)> {
        None
    }
    fn seats(&mut self, group: usize, _: Vec<Passage>) -> Result<Vec<Seat<Quest>>, RolloutError> {
        Ok(self.round.seats(group, self.samples))
    }
    fn ended(&mut self, group: usize, run: Seat<Quest>) -> Result<Option<Job<'s, Self::Answer>>, RolloutError> {
        let (ask, right) = (run.play.ask(), run.play.right());
        self.quests[group * self.samples + run.sample as usize] = Some(run.play);
        if self.asks.contains_key(&ask) {
            return Ok(None);
        }
        self.asks.insert(ask.clone(), None);
        let time = self.round.answer_time(&ask);
        Ok(Some(Box::new(move || {
            std::thread::sleep(time);
            (ask, right)
        })))
    }
    fn answered(&mut self, (ask, right): Self::Answer) -> Result<(), RolloutError> {
        self.asks.insert(ask, Some(right));
        Ok(())
    }
    fn keep(&mut self) -> Result<(), RolloutError> {
        Ok(())
    }
}

fn sampling(seed: u64, step: u64) -> Sampling {
    Sampling { temperature: 1.0, top_p: 1.0, seed, step }
}

/// A round in lock-step.
fn lock_step(decoder: &Decoder, round: &Round, samples: usize) -> Result<Vec<Rollout>, RolloutError> {
    let seats = (0..round.puzzles.len()).flat_map(|group| round.seats(group, samples)).collect();
    let search = SearchConfig::default();
    let player = Player {
        decoder,
        codec: &Numbers,
        retriever: round,
        search: &search,
        sampling: sampling(round.seed, round.step),
        shutdown: &Shutdown::default(),
    };
    let (quests, _) = player.drive(seats)?;
    let mut asks: BTreeMap<String, bool> = BTreeMap::new();
    for quest in &quests {
        asks.insert(quest.ask(), quest.right());
    }
    std::thread::sleep(round.together(asks.keys().map(|ask| round.answer_time(ask))));
    Ok(quests.iter().filter_map(|quest| quest.rollout(asks[&quest.ask()])).collect())
}

/// A round in which every episode goes for itself. `share`: of the services' places, what one round may take.
fn streamed(decoder: &Decoder, round: &Round, samples: usize, share: usize) -> Result<Vec<Rollout>, RolloutError> {
    let places = round.puzzles.len() * samples;
    let collected =
        Mutex::new(Collected { round, samples, quests: (0..places).map(|_| None).collect(), asks: BTreeMap::new() });
    let stream = Stream {
        writer: Writer::Decoder(decoder),
        codec: &Numbers,
        retriever: round,
        method: RetrievalMethod::default(),
        sampling: sampling(round.seed, round.step),
        shutdown: &Shutdown::default(),
        slots: places,
        workers: 1,
        calls: (share.min(places), share.min(places)),
        pace: Pace::Free,
    };
    stream.run(round.puzzles.len(), &collected)?;
    let Collected { quests, asks, .. } = collected.into_inner().unwrap_or_else(PoisonError::into_inner);
    let rollout = |quest: &Quest| quest.rollout(asks.get(&quest.ask()).copied().flatten()?);
    Ok(quests.iter().flatten().filter_map(rollout).collect())
}

/// As [`super::reinforce`], over services that take their time; the seconds that the steps took, without
/// evaluations.
pub fn reinforce_served(
    config: &WorldConfig,
    algorithm: &AlgorithmConfig,
    decoder: &mut Decoder,
    services: Services,
    way: Way,
    seed: u64,
    mut progress: impl FnMut(u64),
) -> Result<(Curve, f64), RolloutError> {
    decoder.train_all()?;
    let mut adam = AdamW::new(&optimizer(config.rate));
    let before = evaluate(config, decoder, Retriever::Working, seed)?;
    let mut curve = Curve { gain: vec![(0, before)], gradient_norm: Vec::new() };
    let round = |step: u64| Round { services, seed, step, puzzles: draw(seed, "training", step, config.questions) };
    let staleness = if let Way::Ahead(staleness) = way { staleness } else { 0 };
    let samples = config.samples;
    let started = Instant::now();
    std::thread::scope(|scope| -> Result<(), RolloutError> {
        let steps = u32::try_from(config.steps).unwrap_or(u32::MAX);
        let mut ahead = Ahead::new(scope, staleness, steps);
        let mut policies: BTreeMap<u32, Decoder> = BTreeMap::new();
        for step in 1..=steps {
            policies.insert(step - 1, decoder.clone());
            let rollouts = if way == Way::LockStep {
                lock_step(decoder, &round(u64::from(step - 1)), samples)?
            } else {
                for due in ahead.due(step - 1) {
                    let player = policies[&policy_of(due, staleness)].clone();
                    let (round, share) = (round(u64::from(due - 1)), services.at_once / (staleness as usize + 1));
                    ahead.start(due, Shutdown::default(), move |_, _| streamed(&player, &round, samples, share))?;
                }
                ahead.take(step, |_| ())?
            };
            let gain = |rollout: &Rollout| rollout.gain();
            let rewards: Vec<f64> = rollouts.iter().map(gain).collect();
            let mut gradients = gradients(algorithm, decoder, &rollouts, &rewards)?;
            curve.gradient_norm.push(gradients.clip(1.0)?);
            adam.step(decoder, &gradients, config.rate)?;
            progress(u64::from(step));
        }
        Ok(())
    })?;
    let seconds = started.elapsed().as_secs_f64();
    curve.gain.push((config.steps, evaluate(config, decoder, Retriever::Working, seed)?));
    Ok((curve, seconds))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::task::Vocabulary;
    use super::*;
    use s3_model::DecoderConfig;

    fn services(median: u64) -> Services {
        let latency = Latency { median: Duration::from_millis(median), sigma: 1.0 };
        Services { retriever: latency, generator: latency, at_once: 16 }
    }

    #[test]
    fn a_round_is_the_same_whatever_its_latencies() {
        let shape = DecoderConfig::tiny(Vocabulary::PROOF.size(), 32, 2);
        let decoder = Decoder::random(shape, 3, &candle_core::Device::Cpu, candle_core::DType::F32).unwrap();
        let play = |median, share| {
            let round = Round { services: services(median), seed: 5, step: 1, puzzles: draw(5, "training", 1, 6) };
            (streamed(&decoder, &round, 4, share).unwrap(), lock_step(&decoder, &round, 4).unwrap())
        };
        let (fast, together) = play(0, 16);
        assert_eq!(fast, play(4, 3).0);
        assert_eq!(fast.len(), 24);
        for (a, b) in fast.iter().zip(&together) {
            assert_eq!((&a.tokens, a.right), (&b.tokens, b.right));
            assert!(a.logprobs.iter().zip(&b.logprobs).all(|(x, y)| (x - y).abs() < 1e-5));
        }
    }

    #[test]
    fn calls_that_are_made_together_queue_for_places() {
        let round = Round { services: Services { at_once: 2, ..services(1) }, seed: 1, step: 1, puzzles: Vec::new() };
        let ms = |ms| Duration::from_millis(ms);
        assert_eq!(round.together([5, 2, 2, 4].map(ms)), ms(8));
        assert_eq!(round.together([]), ms(0));
    }
}
