//! A model's tokenizer as the search loop's codec.

use s3_model::TokenizerFile;
use s3_search::{Codec, CodecError};

/// Adapts [`TokenizerFile`] to [`Codec`].
#[derive(Clone)]
pub struct ModelCodec(TokenizerFile);

impl ModelCodec {
    /// Wraps a loaded tokenizer.
    pub fn new(tokenizer: TokenizerFile) -> Self {
        Self(tokenizer)
    }

    /// The tokenizer itself.
    pub fn tokenizer(&self) -> &TokenizerFile {
        &self.0
    }

    /// Whether generation ends with this token.
    pub fn ends(&self, token: u32) -> bool {
        self.0.eos().contains(&token)
    }
}

impl Codec for ModelCodec {
    fn encode(&self, text: &str) -> Vec<u32> {
        // byte-level tokenizers encode any text; a failure would be a broken file, and shows as an empty prompt
        self.0.encode(text).unwrap_or_else(|error| {
            tracing::error!(%error, "text could not be encoded");
            Vec::new()
        })
    }

    fn decode(&self, tokens: &[u32]) -> String {
        self.0.decode(tokens).unwrap_or_else(|error| {
            tracing::error!(%error, "tokens could not be decoded");
            String::new()
        })
    }

    fn chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>, CodecError> {
        self.0.chat(system, user).map_err(|error| CodecError(error.to_string()))
    }

    fn end_of_turn(&self) -> u32 {
        self.0.end_of_turn()
    }
}
