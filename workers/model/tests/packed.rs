//! Weights left as a GGUF file stores them: the answers of the dequantised model, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};

use candle_core::Tensor;
use s3_config::{LoraConfig, ModelSpec};
use s3_model::{Decoder, GenerateRequest, SampleKey, Sampling, TokenizerFile, TrainSequence, generate};

const NEW: usize = 8;
const BATCH: usize = 10;

fn spec() -> ModelSpec {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.s3/data");
    let data = std::env::var_os("S3_DATA").map_or_else(default, PathBuf::from);
    let path = data.join("models/smollm2-135m-instruct/model.gguf");
    serde_json::from_value(serde_json::json!({"path": path, "device": "Cpu"})).unwrap()
}

fn prompts(tokenizer: &TokenizerFile) -> Vec<Vec<u32>> {
    let things = ["Paris", "the Nile", "a violin", "iron", "Mars", "the heart", "tea", "a comet", "Kyoto", "bread"];
    let asks = [
        "What is # known for?",
        "Where is # found?",
        "Is # older than a clock? Answer yes or no.",
        "Say one word about #.",
        "Who first wrote about #?",
        "How large is #?",
        "What colour is #?",
        "Name something near #.",
        "Is # a living thing? Answer yes or no.",
        "Why does # matter?",
    ];
    asks.iter().flat_map(|ask| things.map(|t| tokenizer.chat(None, &ask.replace('#', t)).unwrap())).collect()
}

fn answers(decoder: &Decoder, prompts: &[Vec<u32>]) -> Vec<Vec<u32>> {
    let key = |_, token| SampleKey { seed: 0, step: 0, question: "", sample: 0, turn: 0, token };
    let sampling = Sampling { temperature: 0.0, top_p: 1.0 };
    let mut out = Vec::new();
    for batch in prompts.chunks(BATCH) {
        let mut cache = decoder.cache(batch.len()).unwrap();
        let request = |(row, p): (usize, &Vec<u32>)| GenerateRequest { row, prompt: p.clone(), max_new_tokens: NEW };
        let requests: Vec<GenerateRequest> = batch.iter().enumerate().map(request).collect();
        let said = generate(decoder, &mut cache, &requests, sampling, &key, &mut |_, _| false).unwrap();
        out.extend(said.into_iter().map(|said| said.tokens));
    }
    out
}

fn worst(a: &Tensor, b: &Tensor) -> f32 {
    (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap()
}

/// Logits after a prompt and after each of some further tokens, fed one by one.
fn logits(decoder: &Decoder, prompt: &[u32]) -> Tensor {
    let mut cache = decoder.cache(1).unwrap();
    let mut rows = vec![decoder.step_rows(&mut cache, &[(0, prompt)]).unwrap()];
    for token in 400..406 {
        rows.push(decoder.step_rows(&mut cache, &[(0, &[token])]).unwrap());
    }
    Tensor::cat(&rows, 0).unwrap()
}

/// Shares of equal greedy answers to the first `most` prompts.
fn equal_answers(most: usize) -> f64 {
    let (dense, tokenizer) = Decoder::load(&spec()).unwrap();
    let (packed, _) = Decoder::load_packed(&spec()).unwrap();
    let prompts = &prompts(&tokenizer)[..most];
    let (a, b) = (answers(&dense, prompts), answers(&packed, prompts));
    a.iter().zip(&b).filter(|(a, b)| a == b).count() as f64 / most as f64
}

#[test]
#[ignore = "half a minute; the short form runs always"]
fn a_hundred_greedy_answers_are_equal() {
    let share = equal_answers(100);
    assert!(share >= 0.99, "{share} of the answers are equal");
}

#[test]
fn packed_weights_answer_as_dequantised_ones() {
    let share = equal_answers(20);
    assert!(share >= 0.95, "{share} of the answers are equal");
    let (mut dense, tokenizer) = Decoder::load(&spec()).unwrap();
    let (mut packed, _) = Decoder::load_packed(&spec()).unwrap();
    assert!(packed.is_packed() && !dense.is_packed());
    let prompts = prompts(&tokenizer);
    let gap = worst(&logits(&dense, &prompts[0]), &logits(&packed, &prompts[0]));
    assert!(gap <= 2e-3, "logits differ by {gap}");
    // An adapter works beside packed weights; what needs the numbers says so.
    for decoder in [&mut dense, &mut packed] {
        decoder.attach_lora(&LoraConfig::default(), 1).unwrap();
        for (name, tensor) in decoder.trained_tensors() {
            if name.ends_with("lora_B") {
                decoder.set_trained(&name, (tensor.ones_like().unwrap() * 0.01).unwrap()).unwrap();
            }
        }
    }
    let adapted = logits(&packed, &prompts[0]);
    assert!(worst(&logits(&dense, &prompts[0]), &adapted) <= 2e-3);
    assert!(worst(&logits(&packed.without_adapter(), &prompts[0]), &adapted) > 0.1);
    let batch = [TrainSequence { tokens: prompts[0].clone(), positions: vec![3, 9] }];
    let (x, y) = (dense.score(&batch, 1.0).unwrap(), packed.score(&batch, 1.0).unwrap());
    assert!(x.logprob.iter().zip(&y.logprob).all(|(x, y)| (x - y).abs() < 1e-3));
    let mut objective = |_: &s3_model::PolicyOutputs| {
        Ok(s3_model::PolicyGrads { logprob: vec![1.0; 2], entropy: vec![0.0; 2], value: None })
    };
    for error in [
        packed.train_pass(&batch, 1.0, &mut objective).map(|_| ()).unwrap_err(),
        packed.clone().merge_adapter().unwrap_err(),
        packed.without_adapter().train_all().unwrap_err(),
    ] {
        assert!(error.to_string().contains("load the model unpacked"), "{error}");
    }
}
