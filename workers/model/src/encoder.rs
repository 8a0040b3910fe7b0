//! Sentence encoders of the BERT family (multilingual-e5-small, MiniLM and their like): text to a unit
//! vector.
//!
//! On the CPU texts are computed one after the other in pieces of a few hundred tokens, a thread a piece: nothing is
//! padded, and a vector is the same to the bit whatever else was in the batch. On other devices texts of similar
//! length are computed together.

mod pairs;
mod slices;
mod tensors;
mod weights;

pub use pairs::CrossEncoder;

use crate::error::{ModelError, Result};
use candle_core::{DType, Device};
use rayon::prelude::*;
use s3_config::Pooling;
use std::path::Path;
use tokenizers::{Tokenizer, TruncationParams};
use weights::{Bert, Shape};

/// Tokens (padding included) of one batch on a device other than the CPU.
const BATCH_TOKENS: usize = 1 << 15;

/// Tokens of one piece on the CPU: enough to use a weight often once it is at hand, few enough to stay in the cache.
const PIECE_TOKENS: usize = 256;

/// How an encoder turns text into a vector; the folder does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncoderSpec {
    /// Token states to one vector.
    pub pooling: Pooling,
    /// Tokens kept of a text, special ones included.
    pub max_tokens: usize,
}

/// A loaded encoder.
pub struct Encoder {
    tokenizer: Tokenizer,
    shape: Shape,
    pooling: Pooling,
    body: Body,
}

enum Body {
    /// On slices, f32, on the CPU.
    Slices(Bert<Vec<f32>>),
    /// By tensor operations on any device: f16 on GPUs, with sums in f32.
    Tensors(Bert<candle_core::Tensor>, Device),
}

impl Encoder {
    /// From a folder with `config.json`, `model.safetensors` and `tokenizer.json`.
    pub fn load(folder: &Path, spec: &EncoderSpec, device: &Device) -> Result<Self> {
        Self::load_as(folder, spec, device, if device.is_cpu() { DType::F32 } else { DType::F16 })
    }

    /// The same with a precision; the CPU computes in f32 only.
    pub fn load_as(folder: &Path, spec: &EncoderSpec, device: &Device, dtype: DType) -> Result<Self> {
        let (shape, tensors) = weights::read(folder, device)?;
        let body = if device.is_cpu() {
            let to_vec = |tensor: &candle_core::Tensor| tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1();
            Body::Slices(Bert::assemble(folder, &shape, &tensors, to_vec)?.turned())
        } else {
            Body::Tensors(Bert::assemble(folder, &shape, &tensors, |tensor| tensor.to_dtype(dtype))?, device.clone())
        };
        Ok(Self { tokenizer: tokenizer(folder, spec.max_tokens, &shape)?, shape, pooling: spec.pooling, body })
    }

    /// Elements of a vector.
    pub fn dimensions(&self) -> usize {
        self.shape.hidden
    }

    /// One vector of length one per text, in order. Prefixes (`query: `) are the caller's.
    pub fn encode<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<f32>>> {
        let tokens = texts.par_iter().map(|text| self.tokens(text.as_ref())).collect::<Result<Vec<_>>>()?;
        let mut vectors = match &self.body {
            Body::Slices(bert) => {
                let one = |piece: &Vec<&[u32]>| slices::forward(bert, &self.shape, piece, self.pooling);
                pieces(&tokens).par_iter().with_max_len(1).flat_map_iter(one).collect()
            }
            Body::Tensors(bert, device) => self.encode_by_length(bert, device, &tokens)?,
        };
        for vector in &mut vectors {
            normalize(vector);
        }
        Ok(vectors)
    }

    /// Token ids with the special tokens, truncated.
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.tokenizer.encode_fast(text, true).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        let ids = encoding.get_ids();
        match ids.iter().find(|id| **id as usize >= self.shape.vocab) {
            Some(id) => Err(ModelError::Tokenizer(format!(
                "token {id} is not in the encoder's vocabulary of {}",
                self.shape.vocab
            ))),
            None if ids.is_empty() => Err(ModelError::Tokenizer("a text has no tokens".to_owned())),
            None => Ok(ids.to_vec()),
        }
    }

    fn encode_by_length(
        &self,
        bert: &Bert<candle_core::Tensor>,
        device: &Device,
        tokens: &[Vec<u32>],
    ) -> Result<Vec<Vec<f32>>> {
        let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
        let mut vectors = vec![Vec::new(); tokens.len()];
        for places in by_length(&lengths) {
            let batch: Vec<&[u32]> = places.iter().map(|index| &tokens[*index][..]).collect();
            let found = tensors::forward(bert, &self.shape, &batch, self.pooling, device)?;
            for (index, vector) in places.into_iter().zip(found) {
                vectors[index] = vector;
            }
        }
        Ok(vectors)
    }
}

/// Texts of similar length together, few enough for one batch on a device other than the CPU.
fn by_length(lengths: &[usize]) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|at| lengths[*at]);
    let (mut batches, mut rest) = (Vec::new(), &order[..]);
    while !rest.is_empty() {
        // rising lengths: the last text of a batch is its width
        let fits = |&(at, index): &(usize, &usize)| (at + 1) * lengths[*index] <= BATCH_TOKENS;
        let (batch, after) = rest.split_at(rest.iter().enumerate().take_while(fits).count().max(1));
        batches.push(batch.to_vec());
        rest = after;
    }
    batches
}

/// Texts in order, in pieces of few tokens, and so many that every thread has some.
fn pieces(texts: &[Vec<u32>]) -> Vec<Vec<&[u32]>> {
    let all: usize = texts.iter().map(Vec::len).sum();
    let limit = all.div_ceil(rayon::current_num_threads()).clamp(PIECE_TOKENS / 8, PIECE_TOKENS);
    let mut pieces: Vec<Vec<&[u32]>> = Vec::new();
    let mut filled = limit;
    for text in texts {
        if filled + text.len() > limit {
            pieces.push(Vec::new());
            filled = 0;
        }
        filled += text.len();
        if let Some(piece) = pieces.last_mut() {
            piece.push(text);
        }
    }
    pieces
}

fn tokenizer(folder: &Path, max_tokens: usize, shape: &Shape) -> Result<Tokenizer> {
    if max_tokens < 3 || max_tokens > shape.positions {
        return Err(ModelError::invalid(format!(
            "maxTokens is {max_tokens}: this encoder takes 3 to {} tokens",
            shape.positions
        )));
    }
    let path = folder.join("tokenizer.json");
    let bytes = std::fs::read(&path).map_err(ModelError::read(&path))?;
    let mut tokenizer = Tokenizer::from_bytes(bytes).map_err(|e| ModelError::format(&path, e))?;
    let truncation = TruncationParams { max_length: max_tokens, ..TruncationParams::default() };
    tokenizer.with_truncation(Some(truncation)).map_err(|e| ModelError::format(&path, e))?;
    // Some folders ship padding to a fixed length.
    tokenizer.with_padding(None);
    Ok(tokenizer)
}

fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if norm > 0.0 {
        for x in vector {
            *x = (f64::from(*x) / norm) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A folder with a random two-layer encoder in the old naming (`bert.` prefix, gamma and beta).
    fn random_folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        weights::tests::write_random(dir.path(), "bert.", ["gamma", "beta"]);
        dir
    }

    #[test]
    fn slices_and_tensors_agree_and_batches_change_nothing() {
        let dir = random_folder();
        let spec = EncoderSpec { pooling: Pooling::Mean, max_tokens: 12 };
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let encoder = Encoder::load(dir.path(), &EncoderSpec { pooling, ..spec }, &Device::Cpu).unwrap();
            let texts = ["a b c", "d", "a a b c d e a b c d e f g a b", "e d", "f f f f"];
            let together = encoder.encode(&texts).unwrap();
            for (text, vector) in texts.iter().zip(&together) {
                assert_eq!(&encoder.encode(&[text]).unwrap()[0], vector);
                assert!((vector.iter().map(|x| x * x).sum::<f32>() - 1.0).abs() < 1e-5);
            }
            let (_, tensors) = weights::read(dir.path(), &Device::Cpu).unwrap();
            let bert = Bert::assemble(dir.path(), &encoder.shape, &tensors, |t| Ok(t.clone())).unwrap();
            let body = Body::Tensors(bert, Device::Cpu);
            let by_tensors = Encoder { body, ..encoder }.encode(&texts).unwrap();
            for (a, b) in together.iter().flatten().zip(by_tensors.iter().flatten()) {
                assert!((a - b).abs() < 1e-5, "{a} {b}");
            }
        }
    }

    #[test]
    fn unusable_folders_say_why() {
        let dir = random_folder();
        let load = |max_tokens| {
            Encoder::load(dir.path(), &EncoderSpec { pooling: Pooling::Mean, max_tokens }, &Device::Cpu)
                .map(|_| ())
                .map_err(|error| error.to_string())
        };
        assert!(load(600).unwrap_err().contains("3 to 16 tokens"));
        let config = dir.path().join("config.json");
        let text = std::fs::read_to_string(&config).unwrap();
        std::fs::write(&config, text.replace("\"bert\"", "\"xlm-roberta\"")).unwrap();
        assert!(load(12).unwrap_err().contains("\"xlm-roberta\""));
        std::fs::write(&config, text.replace("\"num_hidden_layers\":2", "\"num_hidden_layers\":3")).unwrap();
        assert!(load(12).unwrap_err().contains("encoder.layer.2"));
        std::fs::write(dir.path().join("model.safetensors"), b"damaged").unwrap();
        assert!(load(12).unwrap_err().contains("model.safetensors"));
        std::fs::remove_file(&config).unwrap();
        assert!(load(12).unwrap_err().contains("config.json"));
    }
}
