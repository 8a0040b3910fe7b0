//! Cross-encoders of the BERT family (ms-marco-MiniLM and their like): two texts read together to one score.

use super::slices::{linear, states};
use super::weights::{Bert, Head, Shape, read};
use super::{by_length, tensors, tokenizer};
use crate::error::{ModelError, Result};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use tokenizers::Tokenizer;

/// A loaded cross-encoder. On the CPU, in f32, a pair's score is the same to the bit whatever else is scored; on other
/// devices pairs of similar length are computed together.
pub struct CrossEncoder {
    tokenizer: Tokenizer,
    shape: Shape,
    body: Body,
}

enum Body {
    Slices(Bert<Vec<f32>>, Head<Vec<f32>>),
    Tensors(Bert<Tensor>, Head<Tensor>, Device),
}

/// A pair's tokens, and where its second text begins.
type Pair = (Vec<u32>, usize);

impl CrossEncoder {
    /// From a folder with `config.json`, `model.safetensors` and `tokenizer.json`. Pairs are cut to `max_tokens`, the
    /// longer text first.
    pub fn load(folder: &Path, max_tokens: usize, device: &Device) -> Result<Self> {
        let (shape, tensors) = read(folder, device)?;
        let body = if device.is_cpu() {
            let to_vec = |tensor: &Tensor| tensor.flatten_all()?.to_vec1();
            let bert = Bert::assemble(folder, &shape, &tensors, to_vec)?.turned();
            Body::Slices(bert, Head::assemble(folder, &shape, &tensors, to_vec)?.turned())
        } else {
            Self::on_tensors(folder, &shape, &tensors, device, DType::F16)?
        };
        Ok(Self { tokenizer: tokenizer(folder, max_tokens, &shape)?, shape, body })
    }

    fn on_tensors(
        folder: &Path,
        shape: &Shape,
        tensors: &BTreeMap<String, Tensor>,
        device: &Device,
        dtype: DType,
    ) -> Result<Body> {
        let make = |tensor: &Tensor| tensor.to_dtype(dtype);
        let bert = Bert::assemble(folder, shape, tensors, make)?;
        Ok(Body::Tensors(bert, Head::assemble(folder, shape, tensors, make)?, device.clone()))
    }

    /// The score of every pair (query, passage), in order: the classifier's own, not squeezed into 0 to 1.
    pub fn scores<S: AsRef<str> + Sync>(&self, pairs: &[(S, S)]) -> Result<Vec<f32>> {
        let tokens = |(a, b): &(S, S)| self.tokens(a.as_ref(), b.as_ref());
        match &self.body {
            // no longer pieces than one pair: lengths differ, and so does the work
            Body::Slices(bert, head) => pairs
                .par_iter()
                .with_max_len(1)
                .map(|pair| tokens(pair).map(|pair| self.score(bert, head, &pair)))
                .collect(),
            Body::Tensors(bert, head, device) => {
                let pairs = pairs.par_iter().map(tokens).collect::<Result<Vec<Pair>>>()?;
                let lengths: Vec<usize> = pairs.iter().map(|(tokens, _)| tokens.len()).collect();
                let mut scores = vec![0.0; pairs.len()];
                for places in by_length(&lengths) {
                    let batch: Vec<&[u32]> = places.iter().map(|at| &pairs[*at].0[..]).collect();
                    let second: Vec<usize> = places.iter().map(|at| pairs[*at].1).collect();
                    let found = tensors::scores(bert, head, &self.shape, &batch, &second, device)?;
                    for (at, score) in places.into_iter().zip(found) {
                        scores[at] = score;
                    }
                }
                Ok(scores)
            }
        }
    }

    fn tokens(&self, query: &str, passage: &str) -> Result<Pair> {
        let encoding =
            self.tokenizer.encode_fast((query, passage), true).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let tokens = encoding.get_ids();
        if tokens.is_empty() || tokens.iter().any(|id| *id as usize >= self.shape.vocab) {
            return Err(ModelError::Tokenizer("a pair has no tokens, or some outside the vocabulary".to_owned()));
        }
        let second = encoding.get_type_ids().iter().position(|kind| *kind == 1).unwrap_or(tokens.len());
        Ok((tokens.to_vec(), second))
    }

    fn score(&self, bert: &Bert<Vec<f32>>, head: &Head<Vec<f32>>, (tokens, second): &Pair) -> f32 {
        let h = self.shape.hidden;
        let x = states(bert, &self.shape, &[tokens], Some(*second));
        let mut pooled = linear(&x[..h], &head.pooler, h);
        for x in &mut pooled {
            *x = x.tanh();
        }
        linear(&pooled, &head.classifier, h)[0]
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
        let model = CrossEncoder::load(dir.path(), 12, &Device::Cpu).unwrap();
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
        // and by tensors, as on other devices
        let (shape, tensors) = read(dir.path(), &Device::Cpu).unwrap();
        let body = CrossEncoder::on_tensors(dir.path(), &shape, &tensors, &Device::Cpu, DType::F32).unwrap();
        let by_tensors = CrossEncoder { body, ..model }.scores(&pairs).unwrap();
        for (a, b) in by_tensors.iter().zip(&together) {
            assert!((a - b).abs() < 1e-4, "{a} {b}");
        }
    }
}
