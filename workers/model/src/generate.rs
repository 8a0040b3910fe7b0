//! Batched generation: rows start from prompts of their own length, each stops for itself and then
//! costs nothing more.

use rayon::prelude::*;

use crate::{
    cache::KvCache,
    decoder::Decoder,
    error::{ModelError, Result},
    sample::{SampleKey, Sampled, sample},
};

/// One row's work.
#[derive(Clone, Debug)]
pub struct GenerateRequest {
    /// Row of the cache.
    pub row: usize,
    /// Tokens to append before generating; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens to generate.
    pub max_new_tokens: usize,
}

/// What a row said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Tokens, the one that stopped it included.
    pub tokens: Vec<u32>,
    /// Log-probability of each at the sampling temperature, see [`crate::Sampled`].
    pub logprobs: Vec<f32>,
}

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Nucleus mass; 1 keeps every token.
    pub top_p: f32,
}

/// Generates for all `requests` at once. `key` names the randomness of a request's n-th token;
/// `stop` sees a request's tokens after each new one and says whether it is finished. Afterwards a
/// row's cache holds its prompt and all new tokens but the last, which the next prompt begins with.
pub fn generate<'k>(
    decoder: &Decoder,
    cache: &mut KvCache,
    requests: &[GenerateRequest],
    sampling: Sampling,
    key: &dyn Fn(usize, u32) -> SampleKey<'k>,
    stop: &mut dyn FnMut(usize, &[u32]) -> bool,
) -> Result<Vec<Generated>> {
    if let Some(empty) = requests.iter().find(|r| r.prompt.is_empty()) {
        return Err(ModelError::invalid(format!("row {} has no prompt token to continue from", empty.row)));
    }
    #[cfg(feature = "cuda")]
    if crate::cuda::decode::serves(decoder, sampling) {
        return crate::cuda::decode::generate(decoder, cache, requests, sampling, key, stop);
    }
    let mut out = vec![Generated::default(); requests.len()];
    let mut active: Vec<usize> = (0..requests.len()).filter(|&i| requests[i].max_new_tokens > 0).collect();
    let mut next: Vec<Vec<u32>> = requests.iter().map(|r| r.prompt.clone()).collect();
    while !active.is_empty() {
        let items: Vec<(usize, &[u32])> = active.iter().map(|&i| (requests[i].row, next[i].as_slice())).collect();
        let logits = decoder.step_rows(cache, &items)?;
        let vocab = logits.dim(1)?;
        let logits = logits.flatten_all()?.to_vec1::<f32>()?;
        let keys: Vec<SampleKey<'k>> = active.iter().map(|&i| key(i, out[i].tokens.len() as u32)).collect();
        let choose = |(row, key)| sample(row, sampling.temperature, sampling.top_p, key);
        let chosen: Vec<Sampled> = logits.par_chunks(vocab).zip(&keys).map(choose).collect();
        let mut still = Vec::with_capacity(active.len());
        for (&i, chosen) in active.iter().zip(chosen) {
            let said = &mut out[i];
            if !chosen.logprob.is_finite() {
                return Err(ModelError::invalid(format!("row {} has logits that are not finite", requests[i].row)));
            }
            said.tokens.push(chosen.token);
            said.logprobs.push(chosen.logprob);
            if !stop(i, &said.tokens) && said.tokens.len() < requests[i].max_new_tokens {
                still.push(i);
            }
            next[i] = vec![chosen.token];
        }
        active = still;
    }
    Ok(out)
}
