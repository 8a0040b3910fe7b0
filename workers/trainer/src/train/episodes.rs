//! Episodes of one step with their outcomes, journalled so that nothing finished is done or paid twice.
//!
//! Several ranks share a round's places out, contiguously; each plays its own, asks for their answers and keeps both.
//! Then every rank learns what the others have, and all have the round that one alone would have played.

use super::notes::StepNotes;
use crate::baseline::BaselineStore;
use crate::engine::Engine;
use crate::run::Run;
use crate::team::{first, gather, tell};
use s3_artifacts::ArtifactError;
use s3_collective::{Collective, share};
use s3_config::{Determinism, FailurePolicy, TrainerConfig};
use s3_model::Decoder;
use s3_rollout::record::{EpisodeRecord, Outcome, StepEntry, StepRecord, TrainingRecord};
use s3_rollout::{
    Ask, GeneratorPeer, Job, Link, ModelCodec, Pace, RetrieverPeer, RolloutError, Sampling, Scored, Seat, Stage,
    Stream, Writer, all_failed, question_key, score_answers,
};
use s3_search::reward::{own, shaped};
use s3_search::score::Verdict;
use s3_search::script::qa_em;
use s3_search::{Codec, Passage, Play, Question, Searching};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Searches under way at once, a round.
const SEARCHES: usize = 64;

/// Of a place in a journal's keys; journals of earlier versions had others.
const DIGITS: usize = 6;

/// Everything that plays and scores episodes.
pub struct Arena<'a> {
    /// Configuration, progress.
    pub run: &'a Run,
    /// The searcher's tokenizer.
    pub codec: &'a ModelCodec,
    /// The retriever.
    pub retriever: RetrieverPeer,
    /// The generator; none where the searcher answers itself.
    pub generator: Option<GeneratorPeer>,
    /// The baseline's answers; the first rank has them.
    pub store: Option<&'a Mutex<BaselineStore<'a>>>,
    /// Servers that write the episodes; none where this process does.
    pub engine: Option<&'a Engine>,
    /// Asks to stop.
    pub link: Link,
}

/// What is played in one go.
pub struct Round<'a> {
    /// Before keys of the journal: empty, or `probe/`.
    pub prefix: &'a str,
    /// The questions.
    pub questions: &'a [Question],
    /// Episodes of each.
    pub samples: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

impl Round<'_> {
    /// Its episodes.
    pub fn len(&self) -> u64 {
        self.questions.len() as u64 * u64::from(self.samples)
    }
}

/// Episodes and, in the same order, what they were worth.
pub struct Played {
    /// In question order, samples of a question together.
    pub episodes: Vec<EpisodeRecord>,
    /// One an episode.
    pub outcomes: Vec<Outcome>,
    /// Seconds until the last episode was played, and from then until all were answered.
    pub seconds: (f64, f64),
}

impl<'a> Arena<'a> {
    /// The same for work that may be given up alone.
    pub fn on(&self, link: Link) -> Arena<'a> {
        let retriever = self.retriever.on(&link);
        let generator = self.generator.as_ref().map(|generator| generator.on(&link));
        Arena { retriever, generator, link, ..*self }
    }

    /// Plays a round, or takes from the journal what it already holds. `each` hears how many episodes are over.
    pub fn round(
        &self,
        decoder: &Decoder,
        journal: &mut StepNotes,
        round: &Round<'_>,
        each: &(dyn Fn(u64) + Sync),
    ) -> Result<Played, RolloutError> {
        let started = std::time::Instant::now();
        let config = &self.run.config;
        let key = format!("{}outcomes", round.prefix);
        let known = match journal.get(&key) {
            Some(StepEntry::Outcomes { outcomes }) => Some(outcomes.clone()),
            Some(_) => return Err(wrong_kind(&key)),
            None => None,
        };
        let table = Mutex::new(RoundTable::new(self, journal, round, each));
        let pace = pace(config, decoder);
        // where rows do not stand alone, how they are shared out would change bits
        let workers = if pace == Pace::Together { 1 } else { config.rollout.workers.max(1) };
        let served = self.engine.map(|engine| engine.hold(decoder, &self.link)).transpose()?;
        let (writer, pace, workers) = match &served {
            Some(served) => (Writer::Server(served), Pace::Free, 1),
            None => (Writer::Decoder(decoder), pace, workers),
        };
        let stream = Stream {
            writer,
            codec: self.codec,
            retriever: &self.retriever,
            method: config.search.method,
            sampling: round.sampling,
            shutdown: &self.link.shutdown,
            slots: config.rollout.batch.max(1),
            workers,
            calls: (SEARCHES.min(round.len() as usize), config.generator.chunk.max(1)),
            pace,
        };
        let lost = std::thread::scope(|scope| {
            let baseline = scope.spawn(|| match self.store.filter(|_| known.is_none()) {
                Some(store) => locked(store).ensure(round.questions, |_| ()),
                None => Ok(0),
            });
            let played = stream.run(round.questions.len(), &table);
            let lost = baseline.join().unwrap_or_else(|_| {
                Err(RolloutError::Thread { reason: "the baseline's panicked; the message above says where".into() })
            });
            played.and(lost)
        });
        let mut table = table.into_inner().unwrap_or_else(PoisonError::into_inner);
        // what was had is kept, also when the round fails
        table.keep_own()?;
        if lost? > 0 {
            tracing::warn!("baseline answers could not be had; their questions' samples are masked");
        }
        let playing = table.over.duration_since(started).as_secs_f64();
        table.bring_together()?;
        let fails = config.reward.on_failure == FailurePolicy::Fail && known.is_none();
        if fails {
            table.unbroken()?;
        }
        let (episodes, searchers) = table.whole()?;
        // once this is heard, the first rank has written all that the others kept
        let baselines = tell(self.team(), || Ok::<_, RolloutError>(self.baselines(round, known.is_some())))?;
        journal.brought_together()?;
        if fails {
            unbroken(baselines.len(), baselines.iter().filter_map(broken).map(|why| format!("the baseline: {why}")))?;
        }
        let outcomes = if let Some(outcomes) = known {
            outcomes
        } else {
            let outcomes = self.outcomes(round, &episodes, searchers, baselines);
            journal.append(&key, StepEntry::Outcomes { outcomes: outcomes.clone() })?;
            outcomes
        };
        let answering = started.elapsed().as_secs_f64() - playing;
        Ok(Played { episodes, outcomes, seconds: (playing, answering) })
    }

    fn team(&self) -> &'a dyn Collective {
        self.run.collective.as_ref()
    }

    /// The baseline of every question, by the first rank; nothing where it is not asked for. Where the searcher answers
    /// itself, it is never right: gain is accuracy then.
    fn baselines(&self, round: &Round<'_>, known: bool) -> Vec<Scored> {
        if self.run.config.answers_itself() {
            return vec![Scored::own(None, &[]); round.questions.len()];
        }
        let Some(store) = self.store.filter(|_| !known).map(locked) else { return Vec::new() };
        let lost = || Scored::missing("the baseline answer was lost in an outage".into(), true);
        round.questions.iter().map(|question| store.get(question).unwrap_or_else(lost)).collect()
    }

    fn outcomes(
        &self,
        round: &Round<'_>,
        episodes: &[EpisodeRecord],
        searchers: Vec<Scored>,
        baselines: Vec<Scored>,
    ) -> Vec<Outcome> {
        let samples = round.samples as usize;
        let baselines = baselines.into_iter().flat_map(|baseline| std::iter::repeat_n(baseline, samples));
        let outcome = |((episode, searcher), baseline): ((&EpisodeRecord, Scored), Scored)| {
            let reward = rewarded(&self.run.config, episode, &searcher, &baseline);
            Outcome { searcher, baseline, reward }
        };
        episodes.iter().zip(searchers).zip(baselines).map(outcome).collect()
    }
}

/// The reward of an episode by its answers; none masks it.
pub fn rewarded(config: &TrainerConfig, episode: &EpisodeRecord, searcher: &Scored, baseline: &Scored) -> Option<f64> {
    let trajectory = episode.trajectory();
    if config.answers_itself() {
        return own(&config.reward, &trajectory, searcher.answer.as_deref(), &episode.question.answers);
    }
    shaped(&config.reward, &trajectory, searcher.verdict, baseline.verdict)
}

/// Why an answer or its verdict could not be had, where that is no property of the question.
fn broken(scored: &Scored) -> Option<&str> {
    match &scored.failure {
        Some(missing) if missing.outage => Some(&missing.reason),
        None if scored.judge == Some(Verdict::Failed) => Some(&scored.judge_reason),
        _ => None,
    }
}

/// Refuses to go on without what an infrastructure failure took.
fn unbroken(all: usize, lost: impl Iterator<Item = String>) -> Result<(), RolloutError> {
    let lost: Vec<String> = lost.collect();
    let Some(first) = lost.first() else { return Ok(()) };
    let reason = format!("reward.onInfrastructureFailure is Fail, and {} of {all} failed ({first})", lost.len());
    Err(RolloutError::Incomplete { reason })
}

fn locked<'m, 'a>(store: &'m Mutex<BaselineStore<'a>>) -> std::sync::MutexGuard<'m, BaselineStore<'a>> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Who waits for whom: nobody for anybody where that changes no bit, or none need be kept.
fn pace(config: &TrainerConfig, decoder: &Decoder) -> Pace {
    match config.determinism {
        _ if decoder.rows_stand_alone() => Pace::Free,
        Determinism::Bitwise => Pace::Together,
        Determinism::Relaxed => Pace::Turns,
    }
}

/// One (question, passages) that the generator is asked about.
struct Asked {
    /// The first episode that asks.
    place: usize,
    scored: Option<Scored>,
}

/// What one rank brings to a round: its places' episodes, and its answers by the places that asked.
type Part = (Vec<(usize, EpisodeRecord)>, Vec<(usize, Scored)>);

/// A round's episodes and answers as they come. What another episode asks as well is asked once.
struct RoundTable<'s> {
    config: &'s TrainerConfig,
    codec: &'s ModelCodec,
    generator: Option<&'s GeneratorPeer>,
    round: &'s Round<'s>,
    team: &'s dyn Collective,
    /// The places that this rank plays.
    mine: Range<usize>,
    journal: &'s mut StepNotes,
    each: &'s (dyn Fn(u64) + Sync),
    episodes: Vec<Option<EpisodeRecord>>,
    /// By place: which ask answers it.
    ask_of: Vec<Option<usize>>,
    asks: Vec<Asked>,
    known: BTreeMap<(String, Vec<Passage>), usize>,
    unkept: Vec<(String, StepEntry)>,
    /// When the last episode was over.
    over: std::time::Instant,
}

impl<'s> RoundTable<'s> {
    fn new(
        arena: &'s Arena<'_>,
        journal: &'s mut StepNotes,
        round: &'s Round<'s>,
        each: &'s (dyn Fn(u64) + Sync),
    ) -> Self {
        let places = round.len() as usize;
        let team = arena.team();
        let mut table = Self {
            config: &arena.run.config,
            codec: arena.codec,
            generator: arena.generator.as_ref(),
            round,
            team,
            mine: share(places, team.rank(), team.size()),
            each,
            episodes: vec![None; places],
            ask_of: vec![None; places],
            asks: Vec::new(),
            known: BTreeMap::new(),
            unkept: Vec::new(),
            over: std::time::Instant::now(),
            journal,
        };
        table.load();
        table
    }

    /// Takes what the journal holds of the round.
    fn load(&mut self) {
        let keys: Vec<String> = self.round.questions.iter().map(question_key).collect();
        let place = |episode: &EpisodeRecord| {
            let group = keys.iter().position(|key| *key == question_key(&episode.question))?;
            (episode.sample < self.round.samples).then(|| group * self.round.samples as usize + episode.sample as usize)
        };
        let mut found: Vec<(usize, EpisodeRecord)> = Vec::new();
        let mut answers: BTreeMap<usize, Scored> = BTreeMap::new();
        let (rollouts, asked) = (format!("{}rollout/", self.round.prefix), format!("{}answer/", self.round.prefix));
        for (key, entry) in self.journal.entries() {
            match entry {
                StepEntry::Episodes { episodes } if key.starts_with(&rollouts) => {
                    found.extend(episodes.iter().filter_map(|episode| Some((place(episode)?, episode.clone()))));
                }
                StepEntry::Answers { answers: one } if key.starts_with(&asked) => {
                    let place = key[asked.len()..].parse().ok().filter(|_| key.len() == asked.len() + DIGITS);
                    answers.extend(place.zip(one.first().cloned()));
                }
                _ => {}
            }
        }
        for (place, episode) in found {
            self.episodes[place] = Some(episode);
        }
        // whoever asked first before asks first now
        for (place, scored) in answers {
            if let Some(ask) = self.ask(place) {
                self.asks[ask].scored = Some(scored);
            }
        }
        (0..self.episodes.len()).for_each(|place| {
            self.ask(place);
        });
    }

    /// Notes what a finished episode asks the generator; the ask when it is a new one.
    fn ask(&mut self, place: usize) -> Option<usize> {
        let episode = self.episodes.get(place)?.as_ref().filter(|episode| episode.failure().is_none())?;
        if self.config.answers_itself() {
            // nobody is asked: the answer stands in what was read and written
            if self.ask_of[place].is_none() {
                let text = self.codec.decode(&episode.tokens);
                let scored = Scored::own(qa_em::extract(&text), &episode.question.answers);
                self.ask_of[place] = Some(self.asks.len());
                self.asks.push(Asked { place, scored: Some(scored) });
            }
            return None;
        }
        let key = (episode.question.question.clone(), episode.selected.clone());
        let next = self.asks.len();
        let ask = *self.known.entry(key).or_insert(next);
        self.ask_of[place] = Some(ask);
        if ask < next {
            return None;
        }
        self.asks.push(Asked { place, scored: None });
        Some(ask)
    }

    fn job(&self, ask: usize) -> Option<Job<'s, (usize, Result<Scored, RolloutError>)>> {
        let episode = self.episodes[self.asks[ask].place].as_ref()?;
        let generator = self.generator?;
        let (question, passages) = (episode.question.clone(), episode.selected.clone());
        Some(Box::new(move || {
            let scored = score_answers(generator, &[Ask { question: &question, passages: &passages }]);
            let none = || Scored::missing("the generator answered nothing".into(), false);
            (ask, scored.map(|mut scored| scored.pop().unwrap_or_else(none)))
        }))
    }

    fn key(&self, what: &str, place: usize) -> String {
        format!("{}{what}/{place:0DIGITS$}", self.round.prefix)
    }

    fn missing(&self, group: usize) -> impl Iterator<Item = u32> + use<'_, 's> {
        let samples = self.round.samples;
        (0..samples).filter(move |sample| {
            let place = group * samples as usize + *sample as usize;
            self.mine.contains(&place) && self.episodes[place].is_none()
        })
    }

    /// Puts what was taken so far where it outlives the process.
    fn keep_own(&mut self) -> Result<(), RolloutError> {
        let units = std::mem::take(&mut self.unkept);
        self.journal.keep(units)
    }

    /// Takes what the other ranks have played and were answered; they all take the same.
    ///
    /// Where several asked the same, the answer of the first place counts that has one.
    fn bring_together(&mut self) -> Result<(), RolloutError> {
        if self.team.size() == 1 {
            return Ok(());
        }
        let own = |place: &usize| self.mine.contains(place);
        let episodes = self.mine.clone().filter_map(|place| Some((place, self.episodes[place].clone()?))).collect();
        let answers = self.asks.iter().filter(|ask| own(&ask.place));
        let answers = answers.filter_map(|ask| Some((ask.place, ask.scored.clone()?))).collect();
        let parts: Vec<Part> = gather(self.team, (episodes, answers))?;
        let mut answers = BTreeMap::new();
        for (episodes, scored) in parts {
            for (place, episode) in episodes {
                self.note("rollout", place, episode.failure().is_none(), || StepEntry::Episodes {
                    episodes: vec![episode.clone()],
                });
                self.episodes[place] = Some(episode);
            }
            for (place, one) in scored {
                let keeps = one.failure.is_none() && self.generator.is_some() && !self.refuses(&one);
                self.note("answer", place, keeps, || StepEntry::Answers { answers: vec![one.clone()] });
                answers.insert(place, one);
            }
        }
        self.known.clear();
        self.asks.clear();
        self.ask_of.fill(None);
        for place in 0..self.episodes.len() {
            self.ask(place);
            let Some((ask, one)) = self.ask_of[place].zip(answers.remove(&place)) else { continue };
            let scored = &mut self.asks[ask].scored;
            if scored.as_ref().is_none_or(|known| known.failure.is_some() && one.failure.is_none()) {
                *scored = Some(one);
            }
        }
        (self.each)(self.episodes.iter().flatten().count() as u64);
        self.keep_own()
    }

    /// Has the first rank keep what another one has.
    fn note(&mut self, what: &str, place: usize, keeps: bool, entry: impl FnOnce() -> StepEntry) {
        let key = self.key(what, place);
        if keeps && first(self.team) && self.journal.get(&key).is_none() {
            self.unkept.push((key, entry()));
        }
    }

    /// Whether a verdict that could not be had ends the attempt, so that the next one asks again.
    fn refuses(&self, scored: &Scored) -> bool {
        self.config.reward.on_failure == FailurePolicy::Fail && broken(scored).is_some()
    }

    /// Refuses a round that lost an episode or an answer; nothing of what was lost is kept.
    fn unbroken(&self) -> Result<(), RolloutError> {
        let episodes = self.episodes.iter().flatten().filter_map(|episode| episode.failure().map(str::to_owned));
        let answers = self.asks.iter().filter_map(|ask| broken(ask.scored.as_ref()?).map(str::to_owned));
        unbroken(self.episodes.len(), episodes.chain(answers))
    }

    /// All episodes with their answers. Where not one came about, nothing more is kept, so that a later run asks
    /// again.
    fn whole(mut self) -> Result<(Vec<EpisodeRecord>, Vec<Scored>), RolloutError> {
        let episodes: Vec<EpisodeRecord> = self.episodes.iter().flatten().cloned().collect();
        if episodes.len() < self.episodes.len() {
            return Err(RolloutError::Thread { reason: "a round ended before its episodes".into() });
        }
        if let Some(Some(reason)) = episodes.first().map(EpisodeRecord::failure)
            && episodes.iter().all(|episode| episode.failure().is_some())
        {
            return Err(RolloutError::AllFailed { reason: reason.to_owned(), outage: true });
        }
        let asked: Vec<Scored> = self.asks.iter().filter_map(|ask| ask.scored.clone()).collect();
        if let Some(error) = all_failed(&asked) {
            return Err(error);
        }
        let mut failed = Vec::new();
        let mut scored = Vec::with_capacity(episodes.len());
        for (place, episode) in episodes.iter().enumerate() {
            if episode.failure().is_some() {
                failed.push((self.key("rollout", place), StepEntry::Episodes { episodes: vec![episode.clone()] }));
            }
            let answer = self.ask_of[place].and_then(|ask| self.asks[ask].scored.clone());
            let reason = || episode.failure().unwrap_or("no answer came").to_owned();
            scored.push(answer.unwrap_or_else(|| Scored::missing(reason(), true)));
        }
        failed.retain(|(key, _)| first(self.team) && self.journal.get(key).is_none());
        self.unkept.extend(failed);
        self.keep_own()?;
        Ok((episodes, scored))
    }
}

impl<'s> Stage<'s> for RoundTable<'s> {
    type Play = Searching;
    type Answer = (usize, Result<Scored, RolloutError>);

    /// What two prompts that have nothing in common begin with.
    fn beginning(&self) -> Vec<u32> {
        let prompt = |text: &str, initial: Vec<Passage>| {
            let question = Question { question: text.into(), ..Question::default() };
            let episode = Searching::new(&question, 0, initial, &self.config.search, self.codec);
            episode.map(|episode| episode.context().to_vec()).unwrap_or_default()
        };
        let passage = Passage { id: "0".into(), title: "9".into(), text: "9".into() };
        let (one, other) = (prompt("A", Vec::new()), prompt("9", vec![passage]));
        one.iter().zip(&other).take_while(|(a, b)| a == b).map(|(a, _)| *a).collect()
    }

    fn unanswered(&mut self, group: usize) -> Vec<Job<'s, Self::Answer>> {
        let samples = self.round.samples as usize;
        let open = |ask: &usize| {
            let Asked { place, scored } = &self.asks[*ask];
            place / samples == group && self.mine.contains(place) && scored.is_none()
        };
        if self.journal.get(&format!("{}outcomes", self.round.prefix)).is_some() {
            return Vec::new();
        }
        (0..self.asks.len()).filter(open).filter_map(|ask| self.job(ask)).collect()
    }

    fn opening(&mut self, group: usize) -> Option<(Question, String, usize)> {
        let top_k = Searching::initial(&self.config.search);
        let question = &self.round.questions[group];
        (top_k > 0 && self.missing(group).next().is_some())
            .then(|| (question.clone(), question.question.clone(), top_k))
    }

    fn seats(&mut self, group: usize, initial: Vec<Passage>) -> Result<Vec<Seat<Searching>>, RolloutError> {
        let question = &self.round.questions[group];
        self.missing(group)
            .map(|sample| {
                let play = Searching::new(question, sample, initial.clone(), &self.config.search, self.codec)?;
                Ok(Seat { play, question: question.clone(), sample })
            })
            .collect()
    }

    fn ended(&mut self, group: usize, run: Seat<Searching>) -> Result<Option<Job<'s, Self::Answer>>, RolloutError> {
        let place = group * self.round.samples as usize + run.sample as usize;
        let episode = EpisodeRecord::new(&run.question, &run.play.finish());
        if episode.failure().is_none() {
            self.unkept.push((self.key("rollout", place), StepEntry::Episodes { episodes: vec![episode.clone()] }));
        }
        self.episodes[place] = Some(episode);
        self.over = std::time::Instant::now();
        (self.each)(self.episodes.iter().flatten().count() as u64);
        Ok(self.ask(place).and_then(|ask| self.job(ask)))
    }

    fn answered(&mut self, (ask, scored): Self::Answer) -> Result<(), RolloutError> {
        let scored = scored?;
        // a failure is asked again if the run is interrupted before the round ends
        if scored.failure.is_none() && !self.refuses(&scored) {
            let key = self.key("answer", self.asks[ask].place);
            self.unkept.push((key, StepEntry::Answers { answers: vec![scored.clone()] }));
        }
        self.asks[ask].scored = Some(scored);
        Ok(())
    }

    /// Also tells of a rank that was lost, as nobody else does while all play.
    fn keep(&mut self) -> Result<(), RolloutError> {
        self.keep_own()?;
        self.team.lost().map_or(Ok(()), |lost| Err(lost.into()))
    }
}

/// A finished round of a journal, as [`Arena::round`] gave it.
pub fn again(record: &StepRecord) -> Result<Played, RolloutError> {
    let pair = |one: &TrainingRecord| Some((one.episode.clone(), one.outcome.clone()?));
    let whole: Option<Vec<_>> = record.episodes.iter().map(pair).collect();
    let Some(whole) = whole else { return Err(wrong_kind("outcomes")) };
    let (episodes, outcomes) = whole.into_iter().unzip();
    Ok(Played { episodes, outcomes, seconds: (0.0, 0.0) })
}

fn wrong_kind(key: &str) -> RolloutError {
    let reason = format!("entry {key} is of another kind");
    ArtifactError::Corrupt { path: Path::new("step journal").to_owned(), reason }.into()
}

/// Digest over a round's results: tokens, log-probabilities' bits, answers, verdicts; no times.
pub fn results_digest(played: &Played) -> Result<String, RolloutError> {
    let lines: Vec<serde_json::Value> = played
        .episodes
        .iter()
        .zip(&played.outcomes)
        .map(|(episode, outcome)| {
            let bits: Vec<u32> = episode.logprobs.iter().map(|value| value.to_bits()).collect();
            serde_json::json!([
                question_key(&episode.question),
                episode.sample,
                episode.tokens,
                bits,
                outcome.searcher.answer,
                outcome.searcher.verdict,
                outcome.baseline.verdict,
                outcome.reward,
            ])
        })
        .collect();
    Ok(s3_artifacts::digest_json(&lines)?)
}
