//! Reordering the best passages by a cross-encoder, which reads query and passage together.

use crate::embed::encoder_files;
use crate::error::Result;
use crate::passages::PassageStore;
use crate::rank::{Ranked, TopK};
use s3_config::RerankerConfig;
use s3_model::encoder::CrossEncoder;

/// A cross-encoder and how deep it looks.
pub struct Reranker {
    model: CrossEncoder,
    depth: usize,
}

/// A passage as the reference's rerankers read it.
pub fn rendered(title: &str, text: &str) -> String {
    format!("(Title: {title}) {text}")
}

impl Reranker {
    /// Loads the configured model; refuses weights other than the configured.
    pub fn load(config: &RerankerConfig) -> Result<Self> {
        encoder_files(&config.model, config.sha256.as_deref())?;
        let model = CrossEncoder::load(&config.model, config.max_tokens, &s3_model::device(config.device)?)?;
        Ok(Self { model, depth: config.depth.max(1) })
    }

    /// Passages reordered per query.
    pub fn depth(&self) -> usize {
        self.depth
    }

    /// A ranking's passages by the model's scores.
    pub fn reorder(&self, query: &str, ranking: &[Ranked], store: &PassageStore) -> Result<Vec<Ranked>> {
        let texts = ranking
            .iter()
            .map(|one| store.get(one.position as usize).map(|found| rendered(&found.title, &found.text)))
            .collect::<Result<Vec<_>>>()?;
        let scores = self.scores(query, &texts)?;
        let mut best = TopK::new(ranking.len());
        for (one, score) in ranking.iter().zip(scores) {
            best.push(one.position, f64::from(score));
        }
        Ok(best.finish())
    }

    /// The model's score of each text for a query.
    pub fn scores(&self, query: &str, texts: &[String]) -> Result<Vec<f32>> {
        let pairs: Vec<(&str, &str)> = texts.iter().map(|text| (query, text.as_str())).collect();
        Ok(self.model.scores(&pairs)?)
    }
}
