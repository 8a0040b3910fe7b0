//! A tiny random model with a byte-level tokenizer, as a Hugging Face folder.

use s3_model::{Decoder, DecoderConfig, save_tensors};
use std::path::Path;

const SPECIAL: [&str; 2] = ["<|im_start|>", "<|im_end|>"];
/// Whole turns as single tokens, so that a random policy writes readable ones now and then.
const PHRASES: [&str; 12] = [
    "<query>",
    "</query>",
    "<query>fact</query>",
    "<query>number</query>",
    "<query>answer</query>",
    "<search_complete>True</search_complete>",
    "<important_info>[1]</important_info>",
    "<important_info>[2]</important_info>",
    "<important_info>[3]</important_info>",
    "<important_info>[1, 2]</important_info>",
    "<important_info>[2, 3]</important_info>",
    " words",
];

/// A byte-level tokenizer without merges, and a tiny Llama with random weights, as a Hugging Face folder.
pub fn write_model(folder: &Path) {
    write_model_that_says(folder, &PHRASES);
}

/// The same with other turns as single tokens.
pub fn write_model_that_says(folder: &Path, phrases: &[&str]) {
    std::fs::create_dir_all(folder).unwrap();
    let mut vocab = serde_json::Map::new();
    let mut extra = 0;
    for byte in 0..=255u32 {
        // GPT-2's printable stand-ins for bytes
        let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let c = if printable {
            char::from_u32(byte)
        } else {
            extra += 1;
            char::from_u32(255 + extra)
        };
        vocab.insert(c.unwrap().to_string(), byte.into());
    }
    let added: Vec<serde_json::Value> = SPECIAL
        .iter()
        .chain(phrases)
        .enumerate()
        .map(|(i, content)| {
            serde_json::json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false,
                "rstrip": false, "normalized": false, "special": SPECIAL.contains(content)})
        })
        .collect();
    let vocab_size = 256 + added.len();
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": []},
    });
    let write = |name: &str, value: &serde_json::Value| {
        std::fs::write(folder.join(name), value.to_string()).unwrap();
    };
    write("tokenizer.json", &tokenizer);
    write(
        "tokenizer_config.json",
        &serde_json::json!({"eos_token": "<|im_end|>", "bos_token": "<|im_start|>",
            "chat_template": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"}),
    );
    let config = DecoderConfig::tiny(vocab_size, 32, 2);
    write(
        "config.json",
        &serde_json::json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab,
            "hidden_size": config.hidden, "intermediate_size": config.ffn, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim,
            "max_position_embeddings": config.max_positions, "rope_theta": config.rope_theta,
            "rms_norm_eps": config.norm_eps, "tie_word_embeddings": true, "hidden_act": "silu"}),
    );
    let device = candle_core::Device::Cpu;
    let mut decoder = Decoder::random(config, 5, &device, candle_core::DType::F32).unwrap();
    decoder.train_all().unwrap();
    save_tensors(&folder.join("model.safetensors"), &decoder.trained_tensors()).unwrap();
}
