//! `hugging-face MODEL FOLDER`: a model (GGUF, or a Hugging Face folder) as a Hugging Face folder in f32, as servers that
//! read no GGUF want it.

use s3_config::{DTypeKind, DeviceKind, ModelSpec};
use s3_model::Decoder;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, folder] = arguments.as_slice() else { return Err("usage: hugging-face MODEL FOLDER".into()) };
    let (mut decoder, tokenizer) = Decoder::load(&ModelSpec::at(model.into(), DeviceKind::Cpu, DTypeKind::F32))?;
    decoder.train_all()?;
    Ok(decoder.save_trained(Path::new(folder), &tokenizer, false)?)
}
