//! Tokenizers and chat templates, from a GGUF's metadata or a Hugging Face folder.

use std::path::Path;

use candle_core::quantized::gguf_file::Value as GgufValue;
use minijinja::{Environment, context};
use s3_config::ModelSpec;
use serde_json::{Value, json};
use tokenizers::Tokenizer;

use crate::{
    error::{ModelError, Result},
    gguf::Gguf,
    safetensors::read_json,
};

/// Splitting rule of Qwen2's tokenizer (its tokenizer.json), applied before bytes are merged.
const QWEN2_SPLIT: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A tokenizer with its chat template and end tokens.
#[derive(Clone)]
pub struct TokenizerFile {
    inner: Tokenizer,
    /// The same, taking the text of special tokens for plain text.
    plain: Tokenizer,
    /// Texts of the special tokens.
    special: Vec<String>,
    template: Option<String>,
    bos: Option<String>,
    eos: Vec<u32>,
}

impl TokenizerFile {
    /// Of a model: of its GGUF file, or of its Hugging Face folder, with the chat template that it is told to have.
    pub fn of(spec: &ModelSpec) -> Result<Self> {
        let own = if spec.path.is_dir() {
            Self::from_folder(&spec.path)?
        } else {
            Self::from_gguf(&Gguf::open(&spec.path)?)?
        };
        own.told(spec)
    }

    /// With the chat template of a model's configuration, where it names one. One that cannot be filled in is refused.
    pub(crate) fn told(mut self, spec: &ModelSpec) -> Result<Self> {
        let Some(path) = &spec.chat_template else { return Ok(self) };
        self.template = Some(std::fs::read_to_string(path).map_err(ModelError::read(path))?);
        let question = "What is asked?";
        match self.chat_text(None, question) {
            Ok(text) if text.contains(question) => Ok(self),
            Ok(_) => Err(ModelError::format(path, "this chat template leaves the message out")),
            Err(error) => Err(ModelError::format(path, error)),
        }
    }

    /// From the metadata of a GGUF file. Supports byte-level BPE with the pre-tokenizers `smollm`
    /// and `qwen2`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let bad = |reason: String| ModelError::format(gguf.path(), reason);
        let model = gguf.text("tokenizer.ggml.model").unwrap_or("(none)");
        if model != "gpt2" {
            return Err(bad(format!("tokenizer {model:?} is not supported, only byte-level BPE (gpt2)")));
        }
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let split = match gguf.text("tokenizer.ggml.pre").unwrap_or("(none)") {
            "smollm" => json!([{"type": "Digits", "individual_digits": true}, byte_level]),
            "qwen2" => json!([
                {"type": "Split", "pattern": {"Regex": QWEN2_SPLIT}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false},
            ]),
            other => {
                return Err(bad(format!("pre-tokenizer {other:?} is not supported; supported are smollm, qwen2")));
            }
        };
        let normalizer =
            if gguf.text("tokenizer.ggml.pre") == Some("qwen2") { json!({"type": "NFC"}) } else { Value::Null };
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let merges: Vec<Value> = gguf
            .strings("tokenizer.ggml.merges")?
            .into_iter()
            .map(|merge| merge.split_once(' ').map(|(a, b)| json!([a, b])))
            .collect::<Option<_>>()
            .ok_or_else(|| bad("a merge has no blank in it".to_owned()))?;
        let Some(GgufValue::Array(kinds)) = gguf.value("tokenizer.ggml.token_type") else {
            return Err(bad("metadata tokenizer.ggml.token_type is missing".to_owned()));
        };
        // 3 is llama.cpp's "control", 4 "user defined": both stand outside BPE.
        let added: Vec<Value> = kinds
            .iter()
            .enumerate()
            .filter_map(|(id, kind)| {
                let kind = kind.to_i32().ok()?;
                let content = tokens.get(id)?;
                (kind == 3 || kind == 4).then(|| {
                    json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": kind == 3})
                })
            })
            .collect();
        let vocab: serde_json::Map<String, Value> =
            tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
        let file = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": split}, "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                      "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                      "ignore_merges": false, "vocab": vocab, "merges": merges},
        });
        let inner = Tokenizer::from_bytes(file.to_string())
            .map_err(|e| ModelError::Tokenizer(format!("building from {}: {e}", gguf.path().display())))?;
        let token = |key: &str| gguf.number(key);
        let mut eos: Vec<u32> = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]
            .iter()
            .filter_map(|key| token(key))
            .map(|id| id as u32)
            .collect();
        eos.extend(["<|im_end|>", "<|endoftext|>"].iter().filter_map(|text| inner.token_to_id(text)));
        let bos = token("tokenizer.ggml.bos_token_id").and_then(|id| tokens.get(id)).map(|&text| text.to_owned());
        let template = gguf.text("tokenizer.chat_template").map(str::to_owned);
        Self::new(inner, template, bos, eos)
    }

    /// From `tokenizer.json` and `tokenizer_config.json` of a Hugging Face folder.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(ModelError::read(&path))?;
        let inner = Tokenizer::from_bytes(bytes).map_err(|e| ModelError::format(&path, e))?;
        let settings_path = folder.join("tokenizer_config.json");
        let settings = if settings_path.exists() { read_json(&settings_path)? } else { Value::Null };
        // A special token is written as text or as an object with its content.
        let special = |key: &str| {
            let value = &settings[key];
            value.as_str().or_else(|| value["content"].as_str()).map(str::to_owned)
        };
        let template_file = folder.join("chat_template.jinja");
        let template = match settings["chat_template"].as_str() {
            Some(text) => Some(text.to_owned()),
            None if template_file.exists() => {
                Some(std::fs::read_to_string(&template_file).map_err(ModelError::read(&template_file))?)
            }
            None => None,
        };
        let mut eos: Vec<u32> = special("eos_token").and_then(|text| inner.token_to_id(&text)).into_iter().collect();
        let generation = folder.join("generation_config.json");
        if generation.exists() {
            let json = read_json(&generation)?;
            let value = &json["eos_token_id"];
            eos.extend(value.as_u64().map(|id| id as u32));
            eos.extend(value.as_array().into_iter().flatten().filter_map(Value::as_u64).map(|id| id as u32));
        }
        eos.extend(["<|im_end|>", "<|endoftext|>"].iter().filter_map(|text| inner.token_to_id(text)));
        let bos = special("bos_token");
        Self::new(inner, template, bos, eos)
    }

    fn new(inner: Tokenizer, template: Option<String>, bos: Option<String>, eos: Vec<u32>) -> Result<Self> {
        let mut seen = Vec::new();
        for id in eos {
            if !seen.contains(&id) {
                seen.push(id);
            }
        }
        if seen.is_empty() {
            return Err(ModelError::Tokenizer("the model names no end-of-sequence token".to_owned()));
        }
        let mut plain = inner.clone();
        plain.set_encode_special_tokens(true);
        let mut special: Vec<String> = inner
            .get_added_tokens_decoder()
            .into_values()
            .filter(|token| token.special)
            .map(|token| token.content)
            .collect();
        special.sort();
        Ok(Self { inner, plain, special, template, bos, eos: seen })
    }

    /// Token ids of plain text: nothing is added, and special tokens written out stay text, so a
    /// passage cannot open a turn.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.plain.encode_fast(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of token ids; special tokens are dropped.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.inner.decode(tokens, true).map_err(|e| ModelError::Tokenizer(e.to_string()))
    }

    /// The prompt of a one-question conversation, as text, ending where the assistant speaks.
    pub fn chat_text(&self, system: Option<&str>, user: &str) -> Result<String> {
        let system = system.map(|text| ("system", text));
        self.conversation_text(&system.into_iter().chain([("user", user)]).collect::<Vec<_>>())
    }

    /// The prompt of a conversation of (role, text), as text, ending where the assistant speaks.
    pub fn conversation_text(&self, said: &[(&str, &str)]) -> Result<String> {
        let Some(template) = &self.template else {
            return Err(ModelError::Tokenizer(
                "the model has no chat template; use an instruct model or add tokenizer_config.json".to_owned(),
            ));
        };
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        let failed = |e: minijinja::Error| ModelError::Tokenizer(format!("chat template: {e:#}"));
        environment.add_template("chat", template).map_err(failed)?;
        // Special tokens written out in what people and passages say are torn apart.
        let tame = |text: &str| {
            self.special.iter().filter(|s| s.len() > 1).fold(text.to_owned(), |text, special| {
                let (head, tail) = special.split_at(special.chars().next().map_or(0, char::len_utf8));
                text.replace(special, &format!("{head} {tail}"))
            })
        };
        let message = |(role, text): &(&str, &str)| context! { role => role, content => tame(text) };
        let messages: Vec<_> = said.iter().map(message).collect();
        let eos = self.inner.id_to_token(self.end_of_turn()).unwrap_or_default();
        let values = context! { messages, add_generation_prompt => true, bos_token => self.bos.as_deref().unwrap_or(""), eos_token => eos };
        environment.get_template("chat").and_then(|t| t.render(values)).map_err(failed)
    }

    /// Token ids of [`Self::chat_text`].
    pub fn chat(&self, system: Option<&str>, user: &str) -> Result<Vec<u32>> {
        self.encode_prompt(self.chat_text(system, user)?)
    }

    /// Token ids of [`Self::conversation_text`].
    pub fn conversation(&self, said: &[(&str, &str)]) -> Result<Vec<u32>> {
        self.encode_prompt(self.conversation_text(said)?)
    }

    fn encode_prompt(&self, text: String) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| ModelError::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The token that closes an assistant's turn.
    pub fn end_of_turn(&self) -> u32 {
        self.inner.token_to_id("<|im_end|>").unwrap_or(self.eos[0])
    }

    /// All tokens after which generation stops.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Writes `tokenizer.json` and `tokenizer_config.json` (chat template, special tokens) into `folder`.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let path = folder.join("tokenizer.json");
        self.inner.save(&path, false).map_err(|e| ModelError::format(&path, e))?;
        let settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "chat_template": self.template,
            "bos_token": self.bos,
            "eos_token": self.inner.id_to_token(self.end_of_turn()),
            "clean_up_tokenization_spaces": false,
        });
        let path = folder.join("tokenizer_config.json");
        std::fs::write(&path, format!("{settings:#}\n")).map_err(ModelError::write(&path))
    }

    /// Number of tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}
