"""encoder-cpu: texts per CPU-second of our encoder beside PyTorch on the CPU, the same weights and tokens.

multilingual-e5-small and all-MiniLM-L6-v2, questions and passages, f32, one thread, batches of 32. PyTorch gets its
best: tokens cut beforehand and not counted, texts sorted by length before they are batched and padded, fused
attention, no gradients. Ours counts its tokenizer and takes the texts as they come. First every vector is compared.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"
import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

torch.set_num_threads(1)
BATCH, ROUNDS, LEAST = 32, 5, 0.9999


class Peer:
    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.layers, self.heads = config["num_hidden_layers"], config["num_attention_heads"]
        self.hidden, self.eps = config["hidden_size"], config["layer_norm_eps"]
        self.w = {name.removeprefix("bert."): value.float() for name, value in
                  load_file(folder / "model.safetensors").items()}
        for at in range(self.layers):
            for kind in ("weight", "bias"):
                parts = [self.w[f"encoder.layer.{at}.attention.self.{m}.{kind}"] for m in ("query", "key", "value")]
                self.w[f"encoder.layer.{at}.qkv.{kind}"] = torch.cat(parts)

    def linear(self, x, name):
        return F.linear(x, self.w[name + ".weight"], self.w[name + ".bias"])

    def norm(self, x, name):
        return F.layer_norm(x, (self.hidden,), self.w[name + ".weight"], self.w[name + ".bias"], self.eps)

    def forward(self, ids, mask):
        w, (rows, n) = self.w, ids.shape
        x = w["embeddings.word_embeddings.weight"][ids] + w["embeddings.position_embeddings.weight"][:n] \
            + w["embeddings.token_type_embeddings.weight"][0]
        x = self.norm(x, "embeddings.LayerNorm")
        hidden = None if mask.all() else mask[:, None, None, :]
        for at in range(self.layers):
            p = f"encoder.layer.{at}."
            q, k, v = self.linear(x, p + "qkv").view(rows, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=hidden).transpose(1, 2).reshape(rows, n, -1)
            x = self.norm(self.linear(o, p + "attention.output.dense") + x, p + "attention.output.LayerNorm")
            up = F.gelu(self.linear(x, p + "intermediate.dense"))
            x = self.norm(self.linear(up, p + "output.dense") + x, p + "output.LayerNorm")
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(mean, dim=1)

    @torch.inference_mode()
    def encode(self, tokens):
        order = sorted(range(len(tokens)), key=lambda at: len(tokens[at]))
        out = torch.empty(len(tokens), self.hidden)
        for first in range(0, len(order), BATCH):
            places = order[first : first + BATCH]
            width = max(len(tokens[at]) for at in places)
            ids = torch.zeros(len(places), width, dtype=torch.long)
            mask = torch.zeros(len(places), width, dtype=torch.bool)
            for row, at in enumerate(places):
                ids[row, : len(tokens[at])] = torch.tensor(tokens[at])
                mask[row, : len(tokens[at])] = True
            out[places] = self.forward(ids, mask)
        return out.numpy()


def spread(values):
    values = sorted(values)
    return f"{values[len(values) // 2]:.4g} [{values[0]:.4g}, {values[-1]:.4g}]"


def main():
    program, data = sys.argv[1], pathlib.Path(sys.argv[2])
    with (data / "questions/nq-test.jsonl").open() as lines:
        questions = [json.loads(line)["question"] for line, _ in zip(lines, range(512))]
    with (data / "corpus/wiki-vital.jsonl").open() as lines:
        passages = [json.loads(line) for line, _ in zip(lines, range(128))]
    passages = [" ".join(f'"{p["title"]}" {p["text"]}'.split()) for p in passages]
    print(f"torch {torch.__version__}, f32, 1 thread, batches of {BATCH}, {ROUNDS} rounds; median [least, most]")
    least = []
    for model, prefixes in (("e5-small", ("query: ", "passage: ")), ("minilm-l6", ("", ""))):
        peer = Peer(data / "models" / model)
        for what, texts, prefix in (("questions", questions, prefixes[0]), ("passages", passages, prefixes[1])):
            with tempfile.TemporaryDirectory() as folder:
                asked, out = pathlib.Path(folder) / "texts", pathlib.Path(folder) / "out"
                asked.write_text("".join(f"{prefix}{text}\n" for text in texts))
                ours = subprocess.Popen([program, "encoder", data / "models" / model, asked, out],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                tokens = json.loads(ours.stdout.readline())["tokens"]
                rounds = []
                for _ in range(ROUNDS + 1):
                    ours.stdin.write(f"{BATCH}\n")
                    ours.stdin.flush()
                    mine = json.loads(ours.stdout.readline())["seconds"]
                    started = time.process_time()
                    theirs = peer.encode(tokens)
                    rounds.append((len(texts) / mine, len(texts) / (time.process_time() - started)))
                vectors = np.fromfile(out, np.float32).reshape(theirs.shape)
                ours.stdin.close()
                ours.wait()
            cosine = float((vectors * theirs).sum(1).min())
            assert cosine >= LEAST, f"{model} {what}: cosine {cosine}"
            ratios = [a / b for a, b in rounds[1:]]
            print(f"{model}, {len(texts)} {what} of {statistics.mean(map(len, tokens)):.0f} tokens: least cosine "
                  f"{cosine:.7f}; texts per CPU-second: ours {spread([a for a, _ in rounds[1:]])}, theirs "
                  f"{spread([b for _, b in rounds[1:]])}, ratio {spread(ratios)}")
            least.append(statistics.median(ratios))
    print(f"ratio encoder-cpu {min(least):.3f}")


main()
