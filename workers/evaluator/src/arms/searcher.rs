//! s3: a searcher plays episodes, what it selected goes to the generator.

use super::{Arm, Gathered, Searcher, Surroundings, asked, raw};
use s3_config::SearchConfig;
use s3_rollout::record::EpisodeRecord;
use s3_rollout::{EpisodeRequest, Player, RolloutError, Sampling};
use s3_search::Question;

/// The arm of one searcher.
pub struct SearcherArm<'a> {
    /// The searcher.
    pub searcher: Searcher,
    /// The loop.
    pub search: &'a SearchConfig,
    /// 0 is greedy.
    pub temperature: f64,
    /// Nucleus; 1 is off.
    pub top_p: f64,
    /// Episodes decoded together.
    pub batch: usize,
    /// The retriever and the rest.
    pub around: Surroundings<'a>,
}

impl Arm for SearcherArm<'_> {
    fn gather(&mut self, _first: usize, questions: &[Question]) -> Result<Vec<Gathered>, RolloutError> {
        let Surroundings { retriever, shutdown, seed, .. } = self.around;
        let initial = if self.search.initial_top_k == 0 {
            vec![Vec::new(); questions.len()]
        } else {
            retriever.retrieve_for(&asked(questions), &raw(questions), self.search.initial_top_k, self.search.method)?
        };
        let requests: Vec<EpisodeRequest> = questions
            .iter()
            .zip(initial)
            .map(|(question, initial)| EpisodeRequest { question: question.clone(), sample: 0, initial })
            .collect();
        let player = Player {
            decoder: &self.searcher.decoder,
            codec: &self.searcher.codec,
            retriever,
            search: self.search,
            sampling: Sampling { temperature: self.temperature, top_p: self.top_p, seed, step: 0 },
            shutdown,
        };
        let mut gathered = Vec::with_capacity(questions.len());
        for batch in requests.chunks(self.batch.max(1)) {
            for (request, trajectory) in batch.iter().zip(player.play(batch)?) {
                if let Some(reason) = trajectory.failure() {
                    return Err(RolloutError::AllFailed { reason: reason.to_owned(), outage: true });
                }
                gathered.push(Gathered {
                    passages: trajectory.selected.clone(),
                    searches: trajectory.searches,
                    episode: Some(EpisodeRecord::new(&request.question, &trajectory)),
                    ..Gathered::default()
                });
            }
        }
        Ok(gathered)
    }
}
