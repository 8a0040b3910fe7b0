//! Cross-encoders of the BERT family (ms-marco-MiniLM and their like): two texts read together to one score.

use super::slices::{linear, states};
use super::tokenizer;
use super::weights::{Bert, Head, Shape, read};
use crate::error::{ModelError, Result};
use candle_core::Device;
use rayon::prelude::*;
use std::path::Path;
use tokenizers::Tokenizer;

/// A loaded cross-encoder, on the CPU in f32. A pair's score is the same to the bit whatever else is scored.
pub struct CrossEncoder {
    tokenizer: Tokenizer,
    shape: Shape,
    bert: Bert<Vec<f32>>,
    head: Head<Vec<f32>>,
}

impl CrossEncoder {
    /// From a folder with `config.json`, `model.safetensors` and `tokenizer.json`. Pairs are cut to `max_tokens`, the
    /// longer text first.
    pub fn load(folder: &Path, max_tokens: usize) -> Result<Self> {
        let (shape, tensors) = read(folder, &Device::Cpu)?;
        let to_vec = |tensor: &candle_core::Tensor| tensor.flatten_all()?.to_vec1();
        let bert = Bert::assemble(folder, &shape, &tensors, to_vec)?.turned();
        let head = Head::assemble(folder, &shape, &tensors, to_vec)?.turned();
        Ok(Self { tokenizer: tokenizer(folder, max_tokens, &shape)?, shape, bert, head })
    }

    /// The score of every pair (query, passage), in order: the classifier's own, not squeezed into 0 to 1.
    pub fn scores<S: AsRef<str> + Sync>(&self, pairs: &[(S, S)]) -> Result<Vec<f32>> {
        // no longer pieces than one pair: lengths differ, and so does the work
        pairs.par_iter().with_max_len(1).map(|(a, b)| self.score(a.as_ref(), b.as_ref())).collect()
    }

    fn score(&self, query: &str, passage: &str) -> Result<f32> {
        let encoding =
            self.tokenizer.encode_fast((query, passage), true).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let tokens = encoding.get_ids();
        if tokens.is_empty() || tokens.iter().any(|id| *id as usize >= self.shape.vocab) {
            return Err(ModelError::Tokenizer("a pair has no tokens, or some outside the vocabulary".to_owned()));
        }
        let second = encoding.get_type_ids().iter().position(|kind| *kind == 1).unwrap_or(tokens.len());
        let h = self.shape.hidden;
        let x = states(&self.bert, &self.shape, &[tokens], Some(second));
        let mut pooled = linear(&x[..h], &self.head.pooler, h);
        for x in &mut pooled {
            *x = x.tanh();
        }
        Ok(linear(&pooled, &self.head.classifier, h)[0])
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pairs_are_scored_by_both_texts_and_by_themselves() {
        let dir = tempfile::tempdir().unwrap();
        super::super::weights::tests::write_random(dir.path(), "", ["weight", "bias"]);
        let model = CrossEncoder::load(dir.path(), 12).unwrap();
        let pairs = [("a b", "c d e"), ("a b", "e d c"), ("c d e", "a b"), ("a", "b c d e f g h a b c d e f g h")];
        let together = model.scores(&pairs).unwrap();
        for (pair, score) in pairs.iter().zip(&together) {
            assert_eq!(model.scores(std::slice::from_ref(pair)).unwrap()[0].to_bits(), score.to_bits());
            assert!(score.is_finite());
        }
        let mut different = together.clone();
        different.sort_by(f32::total_cmp);
        different.dedup();
        assert_eq!(different.len(), 4, "order and segment count: {together:?}");
    }
}
