//! Choosing a token from logits, with randomness that belongs to the token and to nothing else.

use crate::{
    cpu,
    random::{key, mix, unit},
};

/// What a sampled token's randomness is a function of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SampleKey<'a> {
    /// Seed of the run.
    pub seed: u64,
    /// Policy update step.
    pub step: u64,
    /// Question id.
    pub question: &'a str,
    /// Which sample of the question.
    pub sample: u32,
    /// Turn of the episode.
    pub turn: u32,
    /// Token of the turn.
    pub token: u32,
}

impl SampleKey<'_> {
    /// The key's uniform number in [0, 1).
    pub fn uniform(&self) -> f64 {
        let mut state = key(self.seed, self.question);
        for part in [self.step, u64::from(self.sample), u64::from(self.turn), u64::from(self.token)] {
            state = mix(state ^ mix(part));
        }
        unit(state)
    }
}

/// A chosen token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    /// The token.
    pub token: u32,
    /// Its log-probability under the full softmax at the sampling temperature (not renormalised
    /// over the nucleus), which is what the training pass computes; at temperature 0 under the
    /// softmax at temperature 1.
    pub logprob: f32,
}

/// Chooses from one row of logits: the largest (first of equals) when `temperature` is 0, else by
/// inverse transform over the smallest set of likeliest tokens whose probability reaches `top_p`.
pub fn sample(logits: &[f32], temperature: f32, top_p: f32, key: &SampleKey) -> Sampled {
    if temperature <= 0.0 {
        let token = argmax(logits);
        return Sampled { token, logprob: log_softmax_at(logits, 1.0, token) };
    }
    let uniform = key.uniform();
    let mut weights = Vec::with_capacity(logits.len());
    cpu::softmax_weights(logits, temperature, &mut weights);
    let token = if top_p < 1.0 { nucleus(&weights, f64::from(top_p), uniform) } else { inverse(&weights, uniform) };
    Sampled { token, logprob: log_softmax_at(logits, temperature, token) }
}

/// Index of the largest logit, the first of equals.
pub fn argmax(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, z) in logits.iter().enumerate() {
        if *z > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Log-probability of `token` under the softmax of `logits / temperature`.
pub fn log_softmax_at(logits: &[f32], temperature: f32, token: u32) -> f32 {
    cpu::softmax_stats(logits, temperature).logprob(logits[token as usize], temperature)
}

fn inverse(weights: &[f32], uniform: f64) -> u32 {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let goal = uniform * total;
    let mut sum = 0.0;
    let mut last = 0;
    for (i, &w) in weights.iter().enumerate() {
        if w > 0.0 {
            sum += f64::from(w);
            last = i;
            if sum > goal {
                break;
            }
        }
    }
    last as u32
}

fn nucleus(weights: &[f32], top_p: f64, uniform: f64) -> u32 {
    let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_unstable_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let mut sum = 0.0;
    let kept = order
        .iter()
        .position(|&i| {
            sum += f64::from(weights[i]);
            sum >= top_p * total
        })
        .map_or(order.len(), |i| i + 1);
    let goal = uniform * order[..kept].iter().map(|&i| f64::from(weights[i])).sum::<f64>();
    let mut sum = 0.0;
    for &i in &order[..kept] {
        sum += f64::from(weights[i]);
        if sum > goal {
            return i as u32;
        }
    }
    order[kept - 1] as u32
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    fn at(sample: u32, token: u32) -> SampleKey<'static> {
        SampleKey { seed: 7, step: 3, question: "nq-1", sample, turn: 0, token }
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        let logits = [0.0f32, 1.0, 2.0];
        let mut counts = [0f64; 3];
        for i in 0..20_000 {
            counts[sample(&logits, 1.0, 1.0, &at(0, i)).token as usize] += 1.0 / 20_000.0;
        }
        for (token, share) in counts.iter().enumerate() {
            let p = f64::from(log_softmax_at(&logits, 1.0, token as u32)).exp();
            assert!((share - p).abs() < 0.015, "{token}: {share} against {p}");
        }
    }

    #[test]
    fn nucleus_drops_the_tail_and_reports_the_full_logprob() {
        let logits = [3.0f32, 2.9, -4.0, -5.0];
        for i in 0..500 {
            let chosen = sample(&logits, 0.7, 0.9, &at(1, i));
            assert!(chosen.token < 2);
            assert!((chosen.logprob - log_softmax_at(&logits, 0.7, chosen.token)).abs() < 1e-7);
        }
    }

    #[test]
    fn keys_decide_and_greedy_takes_the_first_maximum() {
        assert!((at(0, 1).uniform() - at(0, 1).uniform()).abs() < f64::EPSILON);
        assert!((at(0, 1).uniform() - at(1, 0).uniform()).abs() > 1e-9);
        assert_eq!(sample(&[1.0, 5.0, 5.0], 0.0, 1.0, &at(0, 0)).token, 1);
    }
}
