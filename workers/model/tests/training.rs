//! Gradients against finite differences, optimiser and adapter files.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use candle_core::{DType, Device, Tensor};
use s3_config::{LoraConfig, OptimizerConfig};
use s3_model::{
    AdamW, Architecture, Decoder, DecoderConfig, Gradients, PolicyGrads, PolicyOutputs, TrainSequence, load_tensors,
};

fn batch() -> Vec<TrainSequence> {
    let tokens = |seed: usize, n: usize| (0..n).map(|i| ((i * i * 13 + seed * 5 + i) % 41) as u32).collect::<Vec<_>>();
    vec![
        TrainSequence { tokens: tokens(1, 12), positions: vec![4, 5, 9, 11] },
        TrainSequence { tokens: tokens(2, 3), positions: vec![] },
        TrainSequence { tokens: tokens(3, 7), positions: vec![1, 6] },
        TrainSequence { tokens: tokens(4, 75), positions: vec![3, 70, 73] },
        // A group: they begin alike, one shares more, one ends within what they share, one is its like.
        TrainSequence { tokens: [tokens(5, 20), tokens(6, 9)].concat(), positions: vec![7, 20, 28] },
        TrainSequence { tokens: [tokens(5, 20), tokens(7, 70)].concat(), positions: vec![7, 19, 20, 21, 85] },
        TrainSequence { tokens: tokens(5, 18), positions: vec![2, 17] },
        TrainSequence { tokens: [tokens(5, 20), tokens(6, 9)].concat(), positions: vec![7, 20, 28] },
    ]
}

/// Fixed, uneven weights of an objective that uses all three outputs.
fn weights(out: &PolicyOutputs) -> PolicyGrads {
    let n = out.logprob.len();
    let wave = |phase: f32| (0..n).map(|i| (i as f32 * 1.7 + phase).sin()).collect::<Vec<f32>>();
    PolicyGrads { logprob: wave(0.0), entropy: wave(1.0), value: out.value.as_ref().map(|_| wave(2.0)) }
}

fn loss(model: &Decoder) -> f64 {
    let out = model.score(&batch(), 0.7).unwrap();
    let w = weights(&out);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(&w.logprob, &out.logprob)
        + dot(&w.entropy, &out.entropy)
        + out.value.map_or(0.0, |v| dot(w.value.as_ref().unwrap(), &v))
}

fn gradients(model: &Decoder) -> Gradients {
    model.train_pass(&batch(), 0.7, &mut |out| Ok(weights(out))).unwrap()
}

fn noise(tensor: &Tensor, seed: usize, size: f32) -> Tensor {
    let data: Vec<f32> = (0..tensor.elem_count())
        .map(|i| size * (((i * 7919 + seed * 104_729 + 13) % 2003) as f32 / 1001.5 - 1.0))
        .collect();
    Tensor::from_vec(data, tensor.shape(), &Device::Cpu).unwrap()
}

fn model(lora: bool, config: DecoderConfig) -> Decoder {
    let mut model = Decoder::random(config, 11, &Device::Cpu, DType::F32).unwrap();
    model.attach_value_head().unwrap();
    if lora {
        model.attach_lora(&LoraConfig { rank: 3, alpha: 6.0 }, 2).unwrap();
    } else {
        model.train_all().unwrap();
    }
    for (seed, (name, tensor)) in model.trained_tensors().into_iter().enumerate() {
        if name.ends_with("lora_B") || name.starts_with("value_head") {
            model.set_trained(&name, noise(&tensor, seed, 0.1)).unwrap();
        }
    }
    model
}

fn shapes() -> [DecoderConfig; 3] {
    let tiny = DecoderConfig::tiny(41, 32, 2);
    let qwen = DecoderConfig { architecture: Architecture::Qwen2, qkv_bias: true, tied: false, ..tiny.clone() };
    let qwen3 = DecoderConfig { architecture: Architecture::Qwen3, head_dim: 8, ..tiny.clone() };
    [tiny, qwen, qwen3]
}

#[test]
fn gradients_equal_finite_differences_for_every_tensor() {
    for config in shapes() {
        for lora in [true, false] {
            let model = model(lora, config.clone());
            let grads = gradients(&model);
            let trained = model.trained_tensors();
            assert_eq!(grads.0.keys().collect::<Vec<_>>(), trained.keys().collect::<Vec<_>>());
            for (seed, (name, tensor)) in trained.iter().enumerate() {
                let gradient = &grads.0[name];
                let size: f32 = gradient.sqr().unwrap().sum_all().unwrap().to_scalar().unwrap();
                assert!(size > 0.0, "{name} receives no gradient");
                // Along a random direction: central difference of the loss in f64 sums.
                let direction = noise(tensor, seed + 100, 1.0);
                let step = 2e-3;
                let at = |factor: f64| {
                    let mut moved = model.clone();
                    let shifted = (tensor + (&direction * factor).unwrap()).unwrap();
                    moved.set_trained(name, shifted).unwrap();
                    loss(&moved)
                };
                let numeric = (at(step) - at(-step)) / (2.0 * step);
                let analytic: f32 = (gradient * &direction).unwrap().sum_all().unwrap().to_scalar().unwrap();
                let error = (numeric - f64::from(analytic)).abs();
                assert!(
                    error <= 6e-3 + 1e-2 * numeric.abs(),
                    "{name} (lora {lora}): {analytic} against {numeric} by differences"
                );
            }
        }
    }
}

#[test]
fn portable_gradients_equal_slice_gradients() {
    for config in shapes() {
        for lora in [true, false] {
            let model = model(lora, config.clone());
            let (a, b) = (gradients(&model), gradients(&model.clone().portable().unwrap()));
            for (name, a) in &a.0 {
                let difference =
                    (a - &b.0[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                let size = a.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(difference <= 1e-5 + 1e-4 * size, "{name}: {difference} of {size}");
            }
        }
    }
}

#[test]
fn micro_batches_add_up_and_masked_objectives_give_zero() {
    let model = model(true, DecoderConfig::tiny(41, 32, 2));
    let sum_of_logprobs = |out: &PolicyOutputs| {
        let n = out.logprob.len();
        Ok(PolicyGrads { logprob: vec![1.0; n], entropy: vec![0.0; n], value: None })
    };
    let whole = model.train_pass(&batch(), 1.0, &mut |out| sum_of_logprobs(out)).unwrap();
    let mut parts = Gradients::default();
    for sequence in batch() {
        parts.add(&model.train_pass(&[sequence], 1.0, &mut |out| sum_of_logprobs(out)).unwrap()).unwrap();
    }
    for (name, a) in &whole.0 {
        let difference = (a - &parts.0[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-4, "{name} differs by {difference}");
    }
    let none = model
        .train_pass(&batch(), 1.0, &mut |out| {
            let n = out.logprob.len();
            Ok(PolicyGrads { logprob: vec![0.0; n], entropy: vec![0.0; n], value: Some(vec![0.0; n]) })
        })
        .unwrap();
    assert!(none.global_norm().unwrap() <= 0.0);
}

#[test]
fn outputs_of_a_group_equal_those_of_its_members_alone() {
    for config in shapes() {
        let model = model(true, config);
        let together = model.score(&batch(), 0.7).unwrap();
        let mut alone = PolicyOutputs::default();
        for sequence in batch() {
            let out = model.score(&[sequence], 0.7).unwrap();
            alone.logprob.extend(out.logprob);
            alone.entropy.extend(out.entropy);
        }
        let pairs = together.logprob.iter().zip(&alone.logprob).chain(together.entropy.iter().zip(&alone.entropy));
        assert_eq!(together.logprob.len(), alone.logprob.len());
        for (a, b) in pairs {
            assert!((a - b).abs() < 1e-5, "{a} against {b}");
        }
    }
}

fn bytes(model: &Decoder) -> Vec<Vec<u32>> {
    let bits = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect();
    model.trained_tensors().values().map(bits).collect()
}

#[test]
fn training_resumes_bit_for_bit_and_lowers_the_loss() {
    let config = OptimizerConfig { weight_decay: 0.01, ..OptimizerConfig::default() };
    let step = |model: &mut Decoder, optimizer: &mut AdamW| {
        let mut grads = gradients(model);
        let norm = grads.clip(1.0).unwrap();
        assert!(norm > 1.0 && (grads.global_norm().unwrap() - 1.0).abs() < 1e-5);
        optimizer.step(model, &grads, 1e-2).unwrap();
    };
    let start = model(true, DecoderConfig::tiny(41, 32, 2));
    let (mut one, mut optimizer) = (start.clone(), AdamW::new(&config));
    for _ in 0..3 {
        step(&mut one, &mut optimizer);
    }
    let folder = tempfile::tempdir().unwrap();
    optimizer.save(&folder.path().join("optimizer.safetensors")).unwrap();
    one.save_adapter(folder.path(), false).unwrap();
    let value: Vec<(String, Tensor)> =
        one.trained_tensors().into_iter().filter(|(n, _)| n.starts_with("value_head")).collect();
    // A new process: same base, adapter and optimiser from the files.
    let mut two = start.clone();
    two.load_adapter(folder.path()).unwrap();
    for (name, tensor) in value {
        two.set_trained(&name, tensor).unwrap();
    }
    assert_eq!(bytes(&one), bytes(&two));
    let mut resumed = AdamW::new(&config);
    resumed.load(&folder.path().join("optimizer.safetensors"), &two).unwrap();
    assert_eq!(resumed.steps(), 3);
    for _ in 0..2 {
        step(&mut one, &mut optimizer);
        step(&mut two, &mut resumed);
    }
    assert_eq!(bytes(&one), bytes(&two));
    assert!(loss(&one) < loss(&start) - 0.5, "{} to {}", loss(&start), loss(&one));
}

#[test]
fn adapter_files_are_peft_and_wrong_ones_are_refused() {
    let model = model(true, DecoderConfig::tiny(41, 32, 2));
    let folder = tempfile::tempdir().unwrap();
    model.save_adapter(folder.path(), false).unwrap();
    let file = folder.path().join("adapter_model.safetensors");
    let first = std::fs::read(&file).unwrap();
    let tensors = load_tensors(&file).unwrap();
    assert_eq!(tensors.len(), 2 * 7 * 2);
    let a = &tensors["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"];
    assert_eq!(a.dims(), [3, model.config().ffn]);
    model.save_adapter(folder.path(), false).unwrap();
    assert_eq!(first, std::fs::read(&file).unwrap());
    model.save_adapter(folder.path(), true).unwrap();
    assert!(load_tensors(&file).unwrap().values().all(|t| t.dtype() == DType::BF16));
    let mut other = Decoder::random(DecoderConfig::tiny(41, 64, 2), 1, &Device::Cpu, DType::F32).unwrap();
    let error = other.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(error.contains("the adapter is for another model"), "{error}");
    std::fs::write(&file, b"junk").unwrap();
    let error = other.load_adapter(folder.path()).unwrap_err().to_string();
    assert!(error.contains("not safetensors or damaged"), "{error}");
}

#[test]
fn seeds_decide_fresh_weights() {
    let fresh = |seed| {
        let mut model = Decoder::random(DecoderConfig::tiny(41, 32, 2), 3, &Device::Cpu, DType::F32).unwrap();
        model.attach_lora(&LoraConfig::default(), seed).unwrap();
        bytes(&model)
    };
    assert_eq!(fresh(1), fresh(1));
    assert_ne!(fresh(1), fresh(2));
}
