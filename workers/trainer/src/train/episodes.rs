//! Episodes of one step with their outcomes, journalled so that nothing finished is done or paid twice.

use crate::baseline::BaselineStore;
use crate::run::Run;
use s3_artifacts::{ArtifactError, Journal};
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
        store: &mut BaselineStore<'_>,
        journal: &mut Journal<StepEntry>,
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
        journal: &mut Journal<StepEntry>,
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
        let mut played = Vec::with_capacity(wanted.len());
        for (at, batch) in wanted.chunks(config.rollout.batch.max(1)).enumerate() {
            let key = format!("{}rollout/{at:04}", round.prefix);
            match journal.get(&key) {
                Some(StepEntry::Episodes { episodes }) => played.extend(episodes.iter().cloned()),
                Some(_) => return Err(wrong_kind(&key)),
                None => {
                    self.run.check()?;
                    let trajectories = player.play(&self.requests(batch)?)?;
                    let episodes: Vec<EpisodeRecord> = batch
                        .iter()
                        .zip(&trajectories)
                        .map(|((question, _), trajectory)| EpisodeRecord::new(question, trajectory))
                        .collect();
                    played.extend(episodes.iter().cloned());
                    journal.append(&key, StepEntry::Episodes { episodes })?;
                }
            }
            self.run.progress.done(played.len() as u64);
        }
        Ok(played)
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
        store: &mut BaselineStore<'_>,
        journal: &mut Journal<StepEntry>,
        round: &Round<'_>,
        episodes: &[EpisodeRecord],
    ) -> Result<Vec<Outcome>, RolloutError> {
        let config = &self.run.config;
        let lost = store.ensure(round.questions, |_| ())?;
        if lost > 0 {
            tracing::warn!(lost, "baseline answers could not be had; their questions' samples are masked");
        }
        let searchers = self.answers(journal, round, episodes)?;
        let outcomes = episodes.iter().zip(searchers).map(|(episode, searcher)| {
            let baseline = store
                .get(&episode.question)
                .unwrap_or_else(|| Scored::missing("the baseline answer was lost in an outage".into(), true));
            let reward = shaped(&config.reward, &episode.trajectory(), searcher.verdict, baseline.verdict);
            Outcome { searcher, baseline, reward }
        });
        Ok(outcomes.collect())
    }

    /// Answers from every episode's selection; equal selections of a question are asked once.
    fn answers(
        &self,
        journal: &mut Journal<StepEntry>,
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
        let mut scored: Vec<Scored> = Vec::with_capacity(first.len());
        for (at, part) in first.chunks(self.run.config.generator.chunk.max(1)).enumerate() {
            let key = format!("{}answer/{at:04}", round.prefix);
            match journal.get(&key) {
                Some(StepEntry::Answers { answers }) => scored.extend(answers.iter().cloned()),
                Some(_) => return Err(wrong_kind(&key)),
                None => {
                    self.run.check()?;
                    let part: Vec<Ask> = part.iter().map(|&index| asks[index]).collect();
                    let answers = score_answers(self.generator, &part)?;
                    scored.extend(answers.iter().cloned());
                    // a part without any answer is asked again if the run is interrupted before the round ends
                    if all_failed(&answers).is_none() {
                        journal.append(&key, StepEntry::Answers { answers })?;
                    }
                }
            }
            self.run.progress.done(scored.len() as u64);
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
