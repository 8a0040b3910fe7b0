#!/usr/bin/env python3
"""A model of Qwen2.5-7B's shape with random weights and Qwen2.5's tokenizer, to run the paper's recipe at full size
where no 7B weights are at hand. It searches: its layers hardly touch the residual stream, and its head gives each token
of one made-up query the token that follows, so that at temperature 1 nine turns of ten are a query of 100 words.

    random_7b.py QWEN.gguf FOLDER        needs torch and safetensors

The tokenizer comes from the metadata of a GGUF of that family.
"""

import json
import pathlib
import re
import struct
import sys

LAYERS, HIDDEN, FFN, HEADS, KV_HEADS, VOCAB = 28, 3584, 18944, 28, 4, 152064
# words of a query; the logit of the token that follows, where all others' are about N(0, 1.2); what layers add to the
# residual stream, as a share of what random ones would
WORDS, SURE, WHISPER = 100, 20.0, 1e-4
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def metadata(path):
    """The key-value part of a GGUF file, version 2 or 3."""
    with open(path, "rb") as file:

        def number(kind):
            return struct.unpack("<" + kind, file.read(struct.calcsize("<" + kind)))[0]

        def value(kind):
            if kind == 8:
                return file.read(number("Q")).decode("utf-8", "replace")
            if kind == 9:
                inner = number("I")
                return [value(inner) for _ in range(number("Q"))]
            return number(PLAIN[kind])

        if file.read(4) != b"GGUF":
            sys.exit(f"{path} is no GGUF file")
        number("I"), number("Q")
        found = {}
        for _ in range(number("Q")):
            key = value(8)
            found[key] = value(number("I"))
        return found


def tokenizer(found):
    tokens = found["tokenizer.ggml.tokens"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": SPLIT}, "behavior": "Isolated", "invert": False}
    added = [
        {"id": at, "content": tokens[at], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": kind == 3}
        for at, kind in enumerate(found["tokenizer.ggml.token_type"])
        if kind in (3, 4)
    ]
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
             "vocab": {token: at for at, token in enumerate(tokens)},
             "merges": [merge.split(" ") for merge in found["tokenizer.ggml.merges"]]}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": {"type": "NFC"}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None, "decoder": byte_level, "model": model}


def turn(tokens):
    """(token, the token after it) of a turn: one query of words that stand in it once. A turn follows a line's end."""
    place = {token: at for at, token in enumerate(tokens)}
    words = [token for token in tokens if re.fullmatch("Ġ[a-z]{4,}", token)][:WORDS]
    chain = ["<", "query", ">", *words, "</"]
    pairs = [("Ċ", "<"), (">Ċ", "<"), *zip(chain, chain[1:]), ("</", "query")]
    return [(place[token], place[after]) for token, after in pairs]


def weights(folder, follows):
    import torch
    from safetensors.torch import save_file

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(7)

    def random(*shape, scale=0.02):
        return (torch.randn(*shape, device=device) * scale).to(torch.bfloat16).cpu()

    kv = HIDDEN // HEADS * KV_HEADS
    # one file, as a plan names it: 15 GB, held in memory once
    tensors = {"model.embed_tokens.weight": random(VOCAB, HIDDEN), "lm_head.weight": random(VOCAB, HIDDEN),
               "model.norm.weight": torch.ones(HIDDEN, dtype=torch.bfloat16)}
    for layer in range(LAYERS):
        shapes = {"self_attn.q_proj.weight": (HIDDEN, HIDDEN), "self_attn.k_proj.weight": (kv, HIDDEN),
                  "self_attn.v_proj.weight": (kv, HIDDEN), "self_attn.o_proj.weight": (HIDDEN, HIDDEN),
                  "self_attn.q_proj.bias": (HIDDEN,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,),
                  "mlp.gate_proj.weight": (FFN, HIDDEN), "mlp.up_proj.weight": (FFN, HIDDEN),
                  "mlp.down_proj.weight": (HIDDEN, FFN)}
        tensors |= {f"model.layers.{layer}.{name}": random(*shape) for name, shape in shapes.items()}
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{norm}.weight"] = torch.ones(HIDDEN, dtype=torch.bfloat16)
        for out in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
            tensors[f"model.layers.{layer}.{out}"] *= WHISPER
    embedding, head = tensors["model.embed_tokens.weight"], tensors["lm_head.weight"]
    for token, after in follows:
        seen = embedding[token].float()
        head[after] += (SURE / HIDDEN * seen / seen.square().mean().sqrt()).to(torch.bfloat16)
    save_file(tensors, folder / "model.safetensors")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    found = metadata(sys.argv[1])
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(found), ensure_ascii=False), encoding="utf-8")
    settings = {"chat_template": found["tokenizer.chat_template"], "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
              "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": LAYERS,
              "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB,
              "max_position_embeddings": 32768, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
              "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    weights(folder, turn(found["tokenizer.ggml.tokens"]))


if __name__ == "__main__":
    main()
