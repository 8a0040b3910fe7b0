//! A codec without a model.

use s3_search::{Codec, CodecError};

/// One character a token; the chat template is given.
pub struct Letters(pub fn(Option<&str>, &str) -> String);

impl Codec for Letters {
    fn encode(&self, text: &str) -> Vec<u32> {
        text.chars().map(u32::from).collect()
    }
    fn decode(&self, tokens: &[u32]) -> String {
        tokens.iter().map(|&token| char::from_u32(token).unwrap_or('?')).collect()
    }
    fn chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>, CodecError> {
        Ok(self.encode(&self.0(system, user)))
    }
    fn end_of_turn(&self) -> u32 {
        0
    }
}
