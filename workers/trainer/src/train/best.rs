//! The searcher with the highest gain on the held-out questions so far, kept beside the journals.
//!
//! Which step it is stands in the position, and so in every checkpoint; its tensors stand in a file named by the
//! step. A run that goes on from an older checkpoint comes past the same steps again and writes the same files.

use crate::checkpoint::{Position, lay_over};
use s3_model::{Decoder, load_tensors, save_tensors};
use s3_rollout::RolloutError;
use s3_telemetry::Failure;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Where the position keeps it.
const KEY: &str = "best";

/// A step and its gain on the held-out questions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Policy update step.
    pub step: u32,
    /// Gain Beyond RAG there.
    pub gain: f64,
}

impl Best {
    /// The best step that a position knows.
    pub fn of(position: &Position) -> Option<Self> {
        serde_json::from_value(position.summary.get(KEY)?.clone()).ok()
    }

    /// Puts its tensors into a decoder.
    pub fn lay_over(self, folder: &Path, decoder: &mut Decoder) -> Result<(), Failure> {
        let file = file(folder, self.step);
        lay_over(load_tensors(&file).map_err(RolloutError::from)?, &file, decoder)
    }
}

fn file(folder: &Path, step: u32) -> PathBuf {
    folder.join(format!("best-{step:06}.safetensors"))
}

/// Notes `step` when its gain is higher than that of every step before, and keeps its policy in `folder`; a rank that
/// keeps no files names none.
pub fn note(
    position: &mut Position,
    step: u32,
    gain: f64,
    decoder: &Decoder,
    folder: Option<&Path>,
) -> Result<(), Failure> {
    let before = Best::of(position);
    if before.is_some_and(|best| gain <= best.gain) {
        return Ok(());
    }
    position.summary[KEY] = json!(Best { step, gain });
    let Some(folder) = folder else { return Ok(()) };
    let (target, part) = (file(folder, step), folder.join("best.part"));
    let io = |e: std::io::Error| Failure::io(format!("{}: {e}", target.display()));
    save_tensors(&part, &decoder.trained_tensors()).map_err(RolloutError::from)?;
    std::fs::rename(&part, &target).map_err(io)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{DType, Device};
    use s3_config::LoraConfig;
    use s3_model::DecoderConfig;

    #[test]
    fn the_earliest_of_the_highest_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let policy = |seed| {
            let mut decoder = Decoder::random(DecoderConfig::tiny(16, 8, 1), seed, &Device::Cpu, DType::F32).unwrap();
            decoder.attach_lora(&LoraConfig::default(), seed).unwrap();
            decoder
        };
        let tensors = |decoder: &Decoder| -> Vec<Vec<f32>> {
            decoder.trained_tensors().values().map(|t| t.flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        let mut position = Position { summary: json!({}), ..Position::default() };
        assert_eq!(Best::of(&position), None);
        for (step, gain) in [(0, -0.1), (5, 0.2), (10, 0.2), (15, 0.1)] {
            note(&mut position, step, gain, &policy(u64::from(step)), Some(folder.path())).unwrap();
        }
        let best = Best::of(&position).unwrap();
        assert_eq!(best, Best { step: 5, gain: 0.2 });
        let mut last = policy(15);
        best.lay_over(folder.path(), &mut last).unwrap();
        assert_eq!(tensors(&last), tensors(&policy(5)));
    }
}
