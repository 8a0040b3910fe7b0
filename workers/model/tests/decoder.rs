//! Cached decoding on small random models: one meaning whatever the batching.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use candle_core::{DType, Device, Tensor};
use s3_config::LoraConfig;
use s3_model::{
    Architecture, Decoder, DecoderConfig, GenerateRequest, SampleKey, Sampling, TrainSequence, generate, log_softmax_at,
};

fn qwen() -> DecoderConfig {
    DecoderConfig { architecture: Architecture::Qwen2, qkv_bias: true, tied: false, ..DecoderConfig::tiny(97, 64, 3) }
}

fn qwen3() -> DecoderConfig {
    DecoderConfig { architecture: Architecture::Qwen3, head_dim: 32, ..DecoderConfig::tiny(97, 64, 3) }
}

/// A decoder whose adapter does something.
fn decoder(config: DecoderConfig) -> Decoder {
    let mut decoder = Decoder::random(config, 5, &Device::Cpu, DType::F32).unwrap();
    decoder.attach_lora(&LoraConfig { rank: 4, alpha: 8.0 }, 6).unwrap();
    for (name, tensor) in decoder.trained_tensors() {
        if name.ends_with("lora_B") {
            let n = tensor.elem_count();
            let data: Vec<f32> = (0..n).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 500.0).collect();
            decoder.set_trained(&name, Tensor::from_vec(data, tensor.shape(), &Device::Cpu).unwrap()).unwrap();
        }
    }
    decoder
}

fn tokens(seed: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * i * 31 + seed * 17 + i * 7) % 97) as u32).collect()
}

fn rows(t: &Tensor) -> Vec<Vec<f32>> {
    t.to_vec2().unwrap()
}

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= tolerance, "differs by {worst}");
}

#[test]
fn ragged_rows_equal_rows_alone() {
    for model in [decoder(DecoderConfig::tiny(97, 64, 3)), decoder(qwen()), decoder(qwen3())] {
        for model in [model.clone(), model.portable().unwrap()] {
            let prompts = [tokens(1, 90), tokens(2, 3), tokens(3, 41)];
            let mut cache = model.cache(3).unwrap();
            model.step(&mut cache, &prompts).unwrap();
            let together = rows(&model.step(&mut cache, &[tokens(4, 2), Vec::new(), tokens(5, 70)]).unwrap());
            for (row, more) in [(0, tokens(4, 2)), (2, tokens(5, 70))] {
                let mut alone = model.cache(1).unwrap();
                let whole = [prompts[row].clone(), more].concat();
                let logits = rows(&model.step(&mut alone, &[whole]).unwrap());
                close(&together[row], &logits[0], 1e-5);
            }
            assert!(together[1].iter().all(|z| z.abs() <= 0.0), "a row without tokens has zero logits");
            assert_eq!((cache.len(0), cache.len(1), cache.len(2)), (92, 3, 111));
        }
    }
}

/// Rows of every kind of shape, in batches of every kind: the bits of a row are its own.
#[test]
fn a_row_has_the_same_bits_in_any_batch() {
    let wide = DecoderConfig { hidden: 640, ffn: 1300, heads: 10, kv_heads: 2, ..DecoderConfig::tiny(97, 64, 1) };
    for (config, rank) in [(DecoderConfig::tiny(97, 64, 3), 0), (qwen(), 8), (qwen3(), 2), (wide, 16)] {
        let mut model = decoder(config);
        assert!(model.rows_stand_alone());
        if rank > 0 {
            let lora = LoraConfig { rank, ..LoraConfig::default() };
            model.attach_lora(&lora, 1).unwrap();
            let names: Vec<String> = model.trained_tensors().into_keys().collect();
            for name in names {
                let old = model.trained_tensors().remove(&name).unwrap();
                let waves: Vec<f32> = (0..old.elem_count()).map(|i| 0.05 * (i as f32 * 0.7).sin()).collect();
                model.set_trained(&name, Tensor::from_vec(waves, old.shape(), &Device::Cpu).unwrap()).unwrap();
            }
        }
        // a row: its prompt, then what it reads before each token
        let turns = |row: usize| -> Vec<Vec<u32>> {
            [1 + row * 13 % 40, 1, 1, 3 + row % 5, 1].iter().enumerate().map(|(t, n)| tokens(row * 7 + t, *n)).collect()
        };
        let rows_of = 70;
        let alone: Vec<Vec<Vec<u32>>> = (0..rows_of)
            .map(|row| {
                let mut cache = model.cache(1).unwrap();
                let step = |turn: Vec<u32>| rows(&model.step(&mut cache, &[turn]).unwrap()).remove(0);
                turns(row).into_iter().map(step).map(|l| l.iter().map(|x| x.to_bits()).collect()).collect()
            })
            .collect();
        let expected = |row: usize, turn: usize| &alone[row][turn];
        for together in [2, 3, 5, 9, 17, 33, 70] {
            let mut cache = model.cache(together).unwrap();
            for turn in 0..5 {
                let work: Vec<Vec<u32>> = (0..together).map(|row| turns(row).remove(turn)).collect();
                let logits = rows(&model.step(&mut cache, &work).unwrap());
                for (row, logits) in logits.iter().enumerate() {
                    let bits: Vec<u32> = logits.iter().map(|x| x.to_bits()).collect();
                    assert_eq!(&bits, expected(row, turn), "row {row} of {together}, turn {turn}");
                }
            }
        }
    }
}

#[test]
fn portable_operations_equal_slice_kernels() {
    let model = decoder(qwen());
    let portable = model.clone().portable().unwrap();
    let prompts = [tokens(1, 50), tokens(2, 7), tokens(9, 19)];
    let (mut a, mut b) = (model.cache(3).unwrap(), portable.cache(3).unwrap());
    let (la, lb) = (model.step(&mut a, &prompts).unwrap(), portable.step(&mut b, &prompts).unwrap());
    for (x, y) in rows(&la).iter().zip(&rows(&lb)) {
        close(x, y, 1e-5);
    }
}

#[test]
fn forked_and_cut_rows_equal_fresh_ones() {
    let model = decoder(DecoderConfig::tiny(97, 64, 3));
    for model in [model.clone(), model.portable().unwrap()] {
        let prefix = tokens(8, 33);
        let mut one = model.cache(1).unwrap();
        model.prefill(&mut one, &[(0, &prefix)]).unwrap();
        let mut many = one.fork(&[0, 0, 0]).unwrap();
        let tails = [tokens(1, 5), tokens(2, 1), tokens(3, 9)];
        let logits = rows(&model.step(&mut many, &tails).unwrap());
        for (tail, got) in tails.iter().zip(&logits) {
            let mut fresh = model.cache(1).unwrap();
            let whole = [prefix.clone(), tail.clone()].concat();
            close(got, &rows(&model.step(&mut fresh, &[whole]).unwrap())[0], 1e-5);
        }
        // Cut row 2 back to the prefix, give it row 0's tail; adopt row 0 into row 1.
        many.truncate(2, prefix.len());
        let source = many.fork(&[0]).unwrap();
        many.adopt(1, &source, 0).unwrap();
        let again = rows(&model.step_rows(&mut many, &[(2, &tails[0])]).unwrap());
        close(&again[0], &logits[0], 1e-5);
        let next = rows(&model.step_rows(&mut many, &[(1, &[4]), (0, &[4])]).unwrap());
        close(&next[0], &next[1], 1e-6);
    }
}

#[test]
fn a_cache_grows_past_its_first_capacity() {
    let model = decoder(DecoderConfig::tiny(97, 32, 2)).portable().unwrap();
    let whole = tokens(3, 700);
    let mut cache = model.cache(2).unwrap();
    for part in whole.chunks(200) {
        model.step(&mut cache, &[part.to_vec(), vec![1]]).unwrap();
    }
    let last = rows(&model.step(&mut cache, &[vec![5], vec![5]]).unwrap());
    let mut fresh = model.cache(1).unwrap();
    let expected = rows(&model.step(&mut fresh, &[[whole, vec![5]].concat()]).unwrap());
    close(&last[0], &expected[0], 1e-5);
}

#[test]
fn merged_adapter_means_the_same() {
    let model = decoder(qwen());
    let mut merged = model.clone();
    merged.merge_adapter().unwrap();
    let prompt = [tokens(2, 40)];
    let a = model.step(&mut model.cache(1).unwrap(), &prompt).unwrap();
    let b = merged.step(&mut merged.cache(1).unwrap(), &prompt).unwrap();
    let base = model.without_adapter();
    let c = base.step(&mut base.cache(1).unwrap(), &prompt).unwrap();
    close(&rows(&a)[0], &rows(&b)[0], 1e-5);
    let moved = rows(&a)[0].iter().zip(&rows(&c)[0]).map(|(a, c)| (a - c).abs()).fold(0.0, f32::max);
    assert!(moved > 1e-2, "the adapter of this test must matter, moved {moved}");
}

#[test]
fn sampled_logprobs_are_those_of_the_training_pass() {
    let model = decoder(DecoderConfig::tiny(97, 64, 3));
    for model in [model.clone(), model.portable().unwrap()] {
        let requests: Vec<GenerateRequest> = (0..4)
            .map(|row| GenerateRequest { row, prompt: tokens(row, 20 + row * 9), max_new_tokens: 12 - row })
            .collect();
        let key =
            |i: usize, token: u32| SampleKey { seed: 1, step: 0, question: "q", sample: i as u32, turn: 0, token };
        let mut cache = model.cache(4).unwrap();
        let sampling = Sampling { temperature: 0.8, top_p: 0.95 };
        let said = generate(&model, &mut cache, &requests, sampling, &key, &mut |_, t| t.last() == Some(&3)).unwrap();
        let batch: Vec<TrainSequence> = requests
            .iter()
            .zip(&said)
            .map(|(r, s)| {
                let tokens = [r.prompt.clone(), s.tokens.clone()].concat();
                TrainSequence { positions: (r.prompt.len()..tokens.len()).collect(), tokens }
            })
            .collect();
        let scored = model.score(&batch, 0.8).unwrap();
        let sampled: Vec<f32> = said.iter().flat_map(|s| s.logprobs.clone()).collect();
        close(&sampled, &scored.logprob, 1e-5);
        assert_eq!(cache.len(0), requests[0].prompt.len() + said[0].tokens.len() - 1);
        // The same randomness, alone: the same words.
        let mut alone = model.cache(1).unwrap();
        let one = [GenerateRequest { row: 0, ..requests[2].clone() }];
        let again =
            generate(&model, &mut alone, &one, sampling, &|_, t| key(2, t), &mut |_, t| t.last() == Some(&3)).unwrap();
        assert_eq!(again[0].tokens, said[2].tokens);
        // Entropy is that of the distribution.
        let mut fresh = model.cache(1).unwrap();
        let logits = rows(&model.step(&mut fresh, &[requests[0].prompt.clone()]).unwrap());
        let entropy: f64 = (0..97).map(|t| f64::from(log_softmax_at(&logits[0], 0.8, t))).map(|l| -l.exp() * l).sum();
        assert!((entropy - f64::from(scored.entropy[0])).abs() < 1e-5);
    }
}

#[test]
fn mistakes_are_refused_in_words() {
    let model = decoder(DecoderConfig::tiny(97, 32, 2));
    let mut cache = model.cache(1).unwrap();
    let says = |e: s3_model::ModelError, text: &str| assert!(e.to_string().contains(text), "{e}");
    says(model.step(&mut cache, &[vec![97]]).unwrap_err(), "outside the vocabulary");
    says(model.step(&mut cache, &[vec![0; 1025]]).unwrap_err(), "context of 1024");
    says(model.step(&mut cache, &[vec![1], vec![1]]).unwrap_err(), "2 rows of new tokens");
    says(model.step_rows(&mut cache, &[(0, &[1]), (0, &[2])]).unwrap_err(), "named twice");
    let early = TrainSequence { tokens: vec![1, 2, 3], positions: vec![0] };
    says(model.score(&[early], 1.0).unwrap_err(), "positions must increase");
    let fine = TrainSequence { tokens: vec![1, 2, 3], positions: vec![1] };
    says(model.score(&[fine], 0.0).unwrap_err(), "temperature above 0");
}
