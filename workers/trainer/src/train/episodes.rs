//! Episodes of one step with their outcomes, journalled so that nothing finished is done or paid twice.

use super::notes::StepNotes;
use crate::baseline::BaselineStore;
use crate::run::Run;
use crate::team::{gather, tell};
use s3_artifacts::ArtifactError;
use s3_collective::Collective;
use s3_model::Decoder;
use s3_rollout::record::{EpisodeRecord, Outcome, StepEntry, StepRecord, TrainingRecord};
use s3_rollout::{
    Ask, EpisodeRequest, GeneratorPeer, ModelCodec, Player, Retrieve, RetrieverPeer, RolloutError, Sampling, Scored,
    all_failed, distinct, question_key, score_answers,
};
use s3_search::reward::shaped;
use s3_search::{Passage, Question};
use std::collections::BTreeMap;
use std::path::Path;

/// Everything that plays and scores episodes.
pub struct Arena<'a> {
    /// Configuration, calls, progress.
    pub run: &'a Run,
    /// The searcher's tokenizer.
    pub codec: &'a ModelCodec,
    /// The retriever.
    pub retriever: &'a RetrieverPeer,
    /// The generator.
    pub generator: &'a GeneratorPeer,
}

/// What is played in one go.
pub struct Round<'a> {
    /// Before keys of the journal: empty, or `probe/`.
    pub prefix: &'a str,
    /// For people.
    pub name: String,
    /// The questions.
    pub questions: &'a [Question],
    /// Episodes of each.
    pub samples: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// Episodes and, in the same order, what they were worth.
pub struct Played {
    /// In question order, samples of a question together.
    pub episodes: Vec<EpisodeRecord>,
    /// One an episode.
    pub outcomes: Vec<Outcome>,
    /// Seconds of playing and of answering.
    pub seconds: (f64, f64),
}

impl Arena<'_> {
    /// Plays a round, or takes from the journal what it already holds.
    pub fn round(
        &self,
        decoder: &Decoder,
        store: Option<&mut BaselineStore<'_>>,
        journal: &mut StepNotes,
        round: &Round<'_>,
    ) -> Result<Played, RolloutError> {
        let started = std::time::Instant::now();
        let episodes = self.episodes(decoder, journal, round)?;
        let playing = started.elapsed().as_secs_f64();
        let key = format!("{}outcomes", round.prefix);
        let outcomes = match journal.get(&key) {
            Some(StepEntry::Outcomes { outcomes }) => outcomes.clone(),
            Some(_) => return Err(wrong_kind(&key)),
            None => {
                let outcomes = self.outcomes(store, journal, round, &episodes)?;
                journal.append(&key, StepEntry::Outcomes { outcomes: outcomes.clone() })?;
                outcomes
            }
        };
        let answering = started.elapsed().as_secs_f64() - playing;
        Ok(Played { episodes, outcomes, seconds: (playing, answering) })
    }

    fn episodes(
        &self,
        decoder: &Decoder,
        journal: &mut StepNotes,
        round: &Round<'_>,
    ) -> Result<Vec<EpisodeRecord>, RolloutError> {
        let config = &self.run.config;
        let wanted: Vec<(&Question, u32)> = round
            .questions
            .iter()
            .flat_map(|question| (0..round.samples).map(move |sample| (question, sample)))
            .collect();
        self.run.progress.phase(format!("{}: episodes", round.name), wanted.len() as u64);
        let player = Player {
            decoder,
            codec: self.codec,
            retriever: self.retriever,
            search: &config.search,
            sampling: round.sampling,
            shutdown: &self.run.link.shutdown,
        };
        // The ranks play a batch each at a time; a batch is the same whoever plays it.
        let batches: Vec<(String, &[(&Question, u32)])> = wanted
            .chunks(config.rollout.batch.max(1))
            .enumerate()
            .map(|(at, batch)| (format!("{}rollout/{at:04}", round.prefix), batch))
            .collect();
        let missing: Vec<_> = batches.iter().filter(|(key, _)| journal.get(key).is_none()).collect();
        let mut done = wanted.len() - missing.iter().map(|(_, batch)| batch.len()).sum::<usize>();
        for wave in missing.chunks(self.team().size()) {
            self.run.check()?;
            let own = match wave.get(self.team().rank()) {
                None => Vec::new(),
                Some((_, batch)) => {
                    let trajectories = player.play(&self.requests(batch)?)?;
                    let pairs = batch.iter().zip(&trajectories);
                    pairs.map(|((question, _), trajectory)| EpisodeRecord::new(question, trajectory)).collect()
                }
            };
            for ((key, _), episodes) in wave.iter().zip(gather(self.team(), own)?) {
                done += episodes.len();
                journal.append(key, StepEntry::Episodes { episodes })?;
            }
            self.run.progress.done(done as u64);
        }
        let mut played = Vec::with_capacity(wanted.len());
        for (key, _) in &batches {
            let Some(StepEntry::Episodes { episodes }) = journal.get(key) else { return Err(wrong_kind(key)) };
            played.extend(episodes.iter().cloned());
        }
        Ok(played)
    }

    fn team(&self) -> &dyn Collective {
        self.run.collective.as_ref()
    }

    /// Adds the passages of the raw question, retrieved once for all samples of a question.
    fn requests(&self, batch: &[(&Question, u32)]) -> Result<Vec<EpisodeRequest>, RolloutError> {
        let search = &self.run.config.search;
        let mut queries: Vec<String> = batch.iter().map(|(question, _)| question.question.clone()).collect();
        queries.sort_unstable();
        queries.dedup();
        let found = if search.initial_top_k == 0 {
            vec![Vec::new(); queries.len()]
        } else {
            self.retriever.retrieve(&queries, search.initial_top_k, search.method)?
        };
        let initial: BTreeMap<String, Vec<Passage>> = queries.into_iter().zip(found).collect();
        Ok(batch
            .iter()
            .map(|(question, sample)| EpisodeRequest {
                question: (*question).clone(),
                sample: *sample,
                initial: initial.get(&question.question).cloned().unwrap_or_default(),
            })
            .collect())
    }

    fn outcomes(
        &self,
        store: Option<&mut BaselineStore<'_>>,
        journal: &mut StepNotes,
        round: &Round<'_>,
        episodes: &[EpisodeRecord],
    ) -> Result<Vec<Outcome>, RolloutError> {
        let config = &self.run.config;
        let baselines = tell(self.team(), || Self::baselines(store, round.questions))?;
        let baselines: BTreeMap<String, Scored> = round.questions.iter().map(question_key).zip(baselines).collect();
        let searchers = self.answers(journal, round, episodes)?;
        let outcomes = episodes.iter().zip(searchers).map(|(episode, searcher)| {
            let baseline = baselines.get(&question_key(&episode.question)).cloned().unwrap_or_else(lost_baseline);
            let reward = shaped(&config.reward, &episode.trajectory(), searcher.verdict, baseline.verdict);
            Outcome { searcher, baseline, reward }
        });
        Ok(outcomes.collect())
    }

    /// The baseline of every question, computed where it is missing; by the first rank, which has the store.
    fn baselines(store: Option<&mut BaselineStore<'_>>, questions: &[Question]) -> Result<Vec<Scored>, RolloutError> {
        let Some(store) = store else { return Ok(Vec::new()) };
        let lost = store.ensure(questions, |_| ())?;
        if lost > 0 {
            tracing::warn!(lost, "baseline answers could not be had; their questions' samples are masked");
        }
        Ok(questions.iter().map(|question| store.get(question).unwrap_or_else(lost_baseline)).collect())
    }

    /// Answers from every episode's selection; equal selections of a question are asked once.
    fn answers(
        &self,
        journal: &mut StepNotes,
        round: &Round<'_>,
        episodes: &[EpisodeRecord],
    ) -> Result<Vec<Scored>, RolloutError> {
        let whole: Vec<usize> = (0..episodes.len()).filter(|at| episodes[*at].failure().is_none()).collect();
        let asks: Vec<Ask> = whole
            .iter()
            .map(|&at| Ask { question: &episodes[at].question, passages: &episodes[at].selected })
            .collect();
        let (first, of) = distinct(&asks);
        self.run.progress.phase(format!("{}: answers", round.name), first.len() as u64);
        let parts: Vec<(String, &[usize])> = first
            .chunks(self.run.config.generator.chunk.max(1))
            .enumerate()
            .map(|(at, part)| (format!("{}answer/{at:04}", round.prefix), part))
            .collect();
        let missing: Vec<_> = parts.iter().filter(|(key, _)| journal.get(key).is_none()).collect();
        let mut found: BTreeMap<&str, Vec<Scored>> = BTreeMap::new();
        let mut done = first.len() - missing.iter().map(|(_, part)| part.len()).sum::<usize>();
        for wave in missing.chunks(self.team().size()) {
            self.run.check()?;
            let own = match wave.get(self.team().rank()) {
                None => Vec::new(),
                Some((_, part)) => {
                    let part: Vec<Ask> = part.iter().map(|&index| asks[index]).collect();
                    score_answers(self.generator, &part)?
                }
            };
            for ((key, _), answers) in wave.iter().zip(gather(self.team(), own)?) {
                done += answers.len();
                // a part without any answer is asked again if the run is interrupted before the round ends
                if all_failed(&answers).is_none() {
                    journal.append(key, StepEntry::Answers { answers: answers.clone() })?;
                }
                found.insert(key, answers);
            }
            self.run.progress.done(done as u64);
        }
        let mut scored: Vec<Scored> = Vec::with_capacity(first.len());
        for (key, _) in &parts {
            match (found.remove(key.as_str()), journal.get(key)) {
                (Some(answers), _) => scored.extend(answers),
                (None, Some(StepEntry::Answers { answers })) => scored.extend(answers.iter().cloned()),
                (None, _) => return Err(wrong_kind(key)),
            }
        }
        if let Some(error) = all_failed(&scored) {
            return Err(error);
        }
        let mut all: Vec<Scored> = episodes
            .iter()
            .map(|episode| {
                let reason = episode.failure().unwrap_or_default().to_owned();
                Scored::missing(reason, true)
            })
            .collect();
        for (place, index) in whole.into_iter().zip(of) {
            all[place] = scored[index].clone();
        }
        Ok(all)
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

fn lost_baseline() -> Scored {
    Scored::missing("the baseline answer was lost in an outage".into(), true)
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
