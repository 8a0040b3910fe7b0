//! Other methods' protocols: a model of their own on this machine, or the generator's through the gateway.

use super::{Arm, Gathered, Searcher, Surroundings};
use crate::error::RolloutError;
use crate::peers::ChatSampling;
use crate::play::{Player, Sampling, Seat};
use crate::record::EpisodeRecord;
use crate::served::{Characters, Served, ServedPlayer, in_characters};
use s3_config::{AnswerBy, PlayedArm, ProtocolKind};
use s3_search::script::{Scripted, protocol};
use s3_search::{Codec, Play, Question, Trajectory};

/// The arm of one protocol.
pub struct Played<'a> {
    /// Whose.
    pub kind: ProtocolKind,
    /// Its settings.
    pub config: &'a PlayedArm,
    /// None asks the generator.
    pub model: Option<Searcher>,
    /// What it searches and asks.
    pub around: Surroundings<'a>,
}

impl Arm for Played<'_> {
    fn gather(&mut self, _first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let mut gathered = Vec::with_capacity(questions.len());
        for part in questions.chunks(self.config.batch.max(1)) {
            gathered.append(&mut match &self.model {
                Some(model) => self.here(model, part)?,
                None => self.served(part)?,
            });
        }
        Ok(gathered)
    }
}

impl Played<'_> {
    fn seats(
        &self,
        questions: &[Question],
        search: &s3_config::SearchConfig,
        codec: &dyn Codec,
    ) -> Result<Vec<Seat<Scripted>>, RolloutError> {
        let seat = |question: &Question| {
            let play = Scripted::new(protocol(self.kind, question, search)?, question, 0, search, codec)?;
            Ok(Seat { play, question: question.clone(), sample: 0 })
        };
        questions.iter().map(seat).collect()
    }

    fn here(&self, model: &Searcher, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let Surroundings { retriever, shutdown, seed, .. } = self.around;
        let (search, codec) = (&self.config.search, &model.codec);
        let sampling = Sampling { temperature: self.config.temperature, top_p: self.config.top_p, seed, step: 0 };
        let player = Player { decoder: &model.decoder, codec, retriever, search, sampling, shutdown };
        let (played, _) = player.drive(self.seats(questions, search, codec)?)?;
        let one = |(run, question): (Scripted, &Question)| {
            if let Some(reason) = run.failure() {
                return Err(RolloutError::AllFailed { reason: reason.to_owned(), outage: true });
            }
            let answer = run.answer();
            Ok(self.handed(question, &run.finish(), answer))
        };
        played.into_iter().zip(questions).map(one).collect()
    }

    fn served(&self, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let Surroundings { retriever, chat, shutdown, .. } = self.around;
        let search = in_characters(&self.config.search);
        let player = ServedPlayer {
            model: chat,
            retriever,
            method: search.method,
            sampling: ChatSampling {
                max_tokens: self.config.search.turn_tokens,
                temperature: self.config.temperature,
                top_p: self.config.top_p,
            },
            shutdown,
        };
        let played = player.drive(self.seats(questions, &search, &Characters)?)?;
        let one = |(served, question): (Served, &Question)| match served {
            Served::Refused(reason) => Gathered { refused: Some(reason), ..Gathered::default() },
            Served::Played(run, counts) => {
                let answer = run.answer();
                self.handed(question, &Served::trajectory(*run, &counts), answer)
            }
        };
        Ok(played.into_iter().zip(questions).map(one).collect())
    }

    fn handed(&self, question: &Question, trajectory: &Trajectory, answer: String) -> Gathered {
        Gathered {
            passages: trajectory.selected.clone(),
            searches: trajectory.searches,
            episode: Some(EpisodeRecord::new(question, trajectory)),
            own: (self.config.answer == AnswerBy::Own).then_some(answer),
            refused: None,
        }
    }
}
