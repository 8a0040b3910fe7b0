//! Language models of the workers, on candle: decoders (Llama, Qwen2, Qwen3) with cached decoding, `LoRA`,
//! a training pass with written-out gradients, sampling, tokenizers and chat templates; and
//! sentence encoders.

mod attention;
mod cache;
mod config;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod device;
pub mod encoder;
mod error;
mod export;
mod generate;
mod gguf;
mod gradients;
mod head;
mod lanes;
mod linear;
mod lora;
mod memory;
mod ops;
mod optimizer;
mod packed;
mod parallel;
mod random;
mod safetensors;
mod sample;
mod tokenizer;
mod train;

pub use cache::KvCache;
pub use candle_core::Device;
pub use config::{Architecture, DecoderConfig};
#[cfg(feature = "cuda")]
pub use cuda::nearest::{KEEP as NEAREST_KEPT, Kept, Nearest};
pub use decoder::{Decoder, Trainable};
pub use device::{device, gpu, peak_memory, working_dtype};
#[cfg(feature = "cuda")]
pub use device::{start_timing, timings};
pub use error::{ModelError, Result};
pub use export::whole_of_trained;
pub use generate::{GenerateRequest, Generated, Sampling, generate};
pub use gguf::Gguf;
pub use gradients::Gradients;
pub use lora::{adapter_of_trained, load_tensors, save_tensors};
pub use memory::{MemoryPlan, Workload};
pub use optimizer::AdamW;
pub use parallel::{Summed, Team};
pub use sample::{SampleKey, Sampled, argmax, log_softmax_at, sample};
pub use tokenizer::TokenizerFile;
pub use train::{PolicyGrads, PolicyOutputs, TrainSequence};
