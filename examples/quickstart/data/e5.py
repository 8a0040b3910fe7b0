"""multilingual-e5-small from its 4-bit container to files that every BERT loader reads.

The container (magic `E5S1`, little endian):
  u32 version, i32 hidden, layers, heads, ffn, vocab, positions, token types
  f32 layer-norm epsilon, i32 block length (32)
  i32 pieces, bos, eos, pad, unk; u64 blob length; u32 offsets[pieces + 1]; f32 scores[pieces]; blob
  i32 entries, u32 bytes, the code-point normalisation map (not needed, see `tokenizer`)
  i32 tensors, then each: u16 name length, name, u8 dtype, u32 count, u64 offset, u64 bytes
Quantised tensors are blocks of 32 weights: f16 scale, 16 bytes; low nibbles are weights 0..15, high
nibbles 16..31, weight = scale * (nibble - 8). They are dequantised once and rounded to f16.

Standard library only, so that fetching needs no environment. Written for 24 MB in a few seconds.
"""

import json
import struct

# ours (Hugging Face BertModel) <- theirs, per layer; `{}` is the layer number
LAYER = {
    "attention.self.query.weight": ("q.w", "hh"),
    "attention.self.query.bias": ("q.b", "h"),
    "attention.self.key.weight": ("k.w", "hh"),
    "attention.self.key.bias": ("k.b", "h"),
    "attention.self.value.weight": ("v.w", "hh"),
    "attention.self.value.bias": ("v.b", "h"),
    "attention.output.dense.weight": ("ao.w", "hh"),
    "attention.output.dense.bias": ("ao.b", "h"),
    "attention.output.LayerNorm.weight": ("aln.w", "h"),
    "attention.output.LayerNorm.bias": ("aln.b", "h"),
    "intermediate.dense.weight": ("fi.w", "fh"),
    "intermediate.dense.bias": ("fi.b", "f"),
    "output.dense.weight": ("fo.w", "hf"),
    "output.dense.bias": ("fo.b", "h"),
    "output.LayerNorm.weight": ("oln.w", "h"),
    "output.LayerNorm.bias": ("oln.b", "h"),
}
EMBEDDINGS = {
    "embeddings.word_embeddings.weight": ("emb.word", "vh"),
    "embeddings.position_embeddings.weight": ("emb.pos", "ph"),
    "embeddings.token_type_embeddings.weight": ("emb.type", "th"),
    "embeddings.LayerNorm.weight": ("emb.ln.w", "h"),
    "embeddings.LayerNorm.bias": ("emb.ln.b", "h"),
}


class E5Error(ValueError):
    """The container is not one this converter was written for."""


class Container:
    """The parsed header; tensors stay in `data` until asked for."""

    def __init__(self, data):
        self.data = data
        if data[:4] != b"E5S1":
            raise E5Error("not an E5S1 container")
        at = 4
        self.version, *sizes = struct.unpack_from("<I7i", data, at)
        self.hidden, self.layers, self.heads, self.ffn, self.vocab, self.positions, self.types = sizes
        at += 32
        self.eps, self.block = struct.unpack_from("<fi", data, at)
        at += 8
        if self.version != 1 or self.block != 32:
            raise E5Error(f"E5S1 version {self.version}, block {self.block}: only 1 and 32 are known")
        pieces, self.bos, self.eos, self.pad, self.unk = struct.unpack_from("<5i", data, at)
        at += 20
        (blob,) = struct.unpack_from("<Q", data, at)
        at += 8
        offsets = struct.unpack_from(f"<{pieces + 1}I", data, at)
        at += 4 * (pieces + 1)
        self.scores = struct.unpack_from(f"<{pieces}f", data, at)
        at += 4 * pieces
        self.pieces = [data[at + a : at + b].decode() for a, b in zip(offsets, offsets[1:])]
        at += blob
        _, skip = struct.unpack_from("<iI", data, at)
        at += 8 + skip
        (count,) = struct.unpack_from("<i", data, at)
        at += 4
        self.tensors = {}
        for _ in range(count):
            (length,) = struct.unpack_from("<H", data, at)
            name = data[at + 2 : at + 2 + length].decode()
            at += 2 + length + 1
            self.tensors[name] = struct.unpack_from("<IQQ", data, at)
            at += 20

    def f16(self, name):
        """The tensor as little-endian f16 bytes."""
        count, offset, size = self.tensors[name]
        raw = self.data[offset : offset + size]
        if size == 4 * count:
            return struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", raw))
        if size * 32 != count * 18:
            raise E5Error(f"{name}: {size} bytes for {count} values is neither f32 nor 4-bit blocks")
        return dequantise(raw)


# nibble planes of a byte string, by table: the inner loop below only looks up
_LOW = bytes(b & 15 for b in range(256))
_HIGH = bytes(b >> 4 for b in range(256))


def dequantise(raw):
    """4-bit blocks to f16 bytes, rounded to nearest even."""
    blocks = len(raw) // 18
    out = bytearray(64 * blocks)
    tables = {}
    for block in range(blocks):
        at = 18 * block
        scale = raw[at : at + 2]
        table = tables.get(scale)
        if table is None:
            (d,) = struct.unpack("<e", scale)
            values = struct.pack("<16e", *(d * (q - 8) for q in range(16)))
            # the low and the high byte of the f16 for each nibble, as translation tables
            table = tables[scale] = (values[0::2].ljust(256, b"\0"), values[1::2].ljust(256, b"\0"))
        packed = raw[at + 2 : at + 18]
        nibbles = packed.translate(_LOW) + packed.translate(_HIGH)
        at = 64 * block
        out[at : at + 64 : 2] = nibbles.translate(table[0])
        out[at + 1 : at + 64 : 2] = nibbles.translate(table[1])
    return bytes(out)


def _plan(box):
    size = {"h": box.hidden, "f": box.ffn, "v": box.vocab, "p": box.positions, "t": box.types}
    names = dict(EMBEDDINGS)
    for layer in range(box.layers):
        for ours, (theirs, shape) in LAYER.items():
            names[f"encoder.layer.{layer}.{ours}"] = (f"l{layer}.{theirs}", shape)
    for ours in sorted(names):
        theirs, shape = names[ours]
        yield ours, theirs, [size[letter] for letter in shape]


def safetensors(box):
    """Yields the bytes of `model.safetensors`: header, then every tensor in name order."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for ours, theirs, shape in _plan(box):
        count = 1
        for n in shape:
            count *= n
        if box.tensors.get(theirs, (0,))[0] != count:
            raise E5Error(f"{theirs}: missing, or not of shape {shape}")
        header[ours] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        at += 2 * count
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for _, theirs, _ in _plan(box):
        yield box.f16(theirs)


def config(box):
    """`config.json` of a Hugging Face BertModel."""
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": box.hidden,
        "initializer_range": 0.02,
        "intermediate_size": box.ffn,
        "layer_norm_eps": float(f"{box.eps:.6g}"),
        "max_position_embeddings": box.positions,
        "model_type": "bert",
        "num_attention_heads": box.heads,
        "num_hidden_layers": box.layers,
        "pad_token_id": box.pad,
        "position_embedding_type": "absolute",
        "type_vocab_size": box.types,
        "vocab_size": box.vocab,
    }


def tokenizer(box):
    """`tokenizer.json`: SentencePiece unigram with the normalisation `nmt_nfkc`.

    The container's code-point map equals NFKC but for the control characters, which vanish, and the
    separators below, which become spaces; U+FF5E, which it keeps and NFKC turns into `~`, is the
    one difference left.
    """
    control = "[\u0001-\u0008\u000b\u000e-\u001f\u007f\u008f\u009f]"
    space = "[\t\n\f\r\u1680\u200b-\u200f\u2028\u2029\u2581\ufeff\ufffd]"
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}

    def replace(pattern, content):
        return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}

    def special(name):
        return {"SpecialToken": {"id": name, "type_id": 0}}

    def text(name):
        return {"Sequence": {"id": name, "type_id": 0}}

    bos, eos = box.pieces[box.bos], box.pieces[box.eos]
    specials = sorted({box.bos, box.pad, box.eos, box.unk})
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": i,
                "content": box.pieces[i],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for i in specials
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                replace(control, ""),
                replace(space, " "),
                {"type": "NFKC"},
                replace(" {2,}", " "),
                {"type": "Strip", "strip_left": True, "strip_right": True},
            ],
        },
        "pre_tokenizer": metaspace,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special(bos), text("A"), special(eos)],
            "pair": [special(bos), text("A"), special(eos), special(eos), text("B"), special(eos)],
            "special_tokens": {
                name: {"id": name, "ids": [i], "tokens": [name]}
                for name, i in ((bos, box.bos), (eos, box.eos))
            },
        },
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": box.unk,
            "vocab": [[piece, score] for piece, score in zip(box.pieces, box.scores)],
            "byte_fallback": False,
        },
    }
