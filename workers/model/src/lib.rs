//! Language models of the workers, on candle: decoders (Llama, Qwen2) with cached decoding, LoRA,
//! a training pass with written-out gradients, sampling, tokenizers and chat templates; and
//! sentence encoders.

mod attention;
mod cache;
mod config;
mod cpu;
mod decoder;
mod device;
mod error;
mod gguf;
mod linear;
mod lora;
mod ops;
mod random;
mod safetensors;
mod sample;
mod tokenizer;

pub use cache::KvCache;
pub use config::{Architecture, DecoderConfig};
pub use decoder::{Decoder, Trainable};
pub use device::{device, working_dtype};
pub use error::{ModelError, Result};
pub use gguf::Gguf;
pub use lora::{load_tensors, save_tensors};
pub use sample::{SampleKey, Sampled, argmax, log_softmax_at, sample};
pub use tokenizer::TokenizerFile;
