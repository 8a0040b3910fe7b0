//! Encoders against a reference runtime, on the real files (`make data`, `make data-minilm`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use s3_config::Pooling;
use s3_model::encoder::{Encoder, EncoderSpec};
use std::path::PathBuf;

fn models() -> PathBuf {
    let data = std::env::var_os("S3_DATA").map(PathBuf::from);
    data.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../.s3/data")).join("models")
}

#[test]
fn vectors_equal_the_reference() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/encoder/reference.json");
    let reference: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let texts: Vec<&str> = reference["texts"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
    for entry in reference["encoders"].as_array().unwrap() {
        let name = entry["folder"].as_str().unwrap();
        let folder = models().join(name);
        let pooling = if entry["pooling"] == "Cls" { Pooling::Cls } else { Pooling::Mean };
        let spec = EncoderSpec { pooling, max_tokens: entry["maxTokens"].as_u64().unwrap() as usize };
        let encoder = Encoder::load(&folder, &spec, &candle_core::Device::Cpu)
            .unwrap_or_else(|error| panic!("{error}; fetch the models with `make data data-minilm`"));
        let prefix = entry["prefix"].as_str().unwrap();
        let prefixed: Vec<String> = texts.iter().map(|text| format!("{prefix}{text}")).collect();
        let vectors = encoder.encode(&prefixed).unwrap();
        // alone or with others: the same to the bit
        for (text, vector) in prefixed.iter().zip(&vectors) {
            assert_eq!(&encoder.encode(&[text]).unwrap()[0], vector, "{name}: {text}");
        }
        for (at, (vector, expected)) in vectors.iter().zip(entry["vectors"].as_array().unwrap()).enumerate() {
            let expected: Vec<f64> = expected.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
            assert_eq!(vector.len(), expected.len());
            // both have length one
            let cosine: f64 = vector.iter().zip(&expected).map(|(a, b)| f64::from(*a) * b).sum();
            assert!(cosine >= 0.999_99, "{name} {prefix:?} text {at}: cosine {cosine}");
        }
    }
}
