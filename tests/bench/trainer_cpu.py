"""trainer-cpu: training tokens a second beside PyTorch, the same weights, tokens and optimiser.

Both sides take steps in turn; CPU seconds of the whole process are counted, so other load on the machine
weighs on neither. First the losses and every tensor's gradient are compared.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

THREADS = 2
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# waiting threads sleep: otherwise PyTorch's spin and, on a machine with other load, cost it four fifths of its rate
os.environ["OMP_WAIT_POLICY"] = "passive"
import torch
import torch.nn.functional as F

torch.set_num_threads(THREADS)
H, LAYERS, HEADS, KV, D, EPS, THETA = 256, 4, 4, 2, 64, 1e-6, 1e6
ROUNDS, STEPS = 7, 3


class Peer:
    def __init__(self, weights, tokens):
        self.w = {name: torch.nn.Parameter(value) for name, value in weights.items()}
        self.x = torch.tensor(tokens)
        self.adamw = torch.optim.AdamW(self.w.values(), lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01,
                                       fused=True)
        inv = 1.0 / THETA ** (torch.arange(0, D, 2) / D)
        angles = torch.outer(torch.arange(self.x.shape[1]).float(), inv)
        angles = torch.cat((angles, angles), -1)
        self.cos, self.sin = angles.cos(), angles.sin()

    def loss(self):
        x, w = self.x[:, :-1], self.w
        rows, n = x.shape
        cos, sin = self.cos[:n], self.sin[:n]
        half = lambda z: torch.cat((-z[..., D // 2:], z[..., :D // 2]), -1)
        h = F.embedding(x, w["model.embed_tokens.weight"])
        for i in range(LAYERS):
            p = f"model.layers.{i}."
            y = F.rms_norm(h, (H,), w[p + "input_layernorm.weight"], EPS)
            split = lambda m, heads: F.linear(y, w[p + f"self_attn.{m}.weight"], w[p + f"self_attn.{m}.bias"]) \
                .view(rows, n, heads, D).transpose(1, 2)
            q, k, v = split("q_proj", HEADS), split("k_proj", KV), split("v_proj", KV)
            q, k = q * cos + half(q) * sin, k * cos + half(k) * sin
            o = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            h = h + F.linear(o.transpose(1, 2).reshape(rows, n, HEADS * D), w[p + "self_attn.o_proj.weight"])
            y = F.rms_norm(h, (H,), w[p + "post_attention_layernorm.weight"], EPS)
            act = F.silu(F.linear(y, w[p + "mlp.gate_proj.weight"])) * F.linear(y, w[p + "mlp.up_proj.weight"])
            h = h + F.linear(act, w[p + "mlp.down_proj.weight"])
        h = F.rms_norm(h, (H,), w["model.norm.weight"], EPS)
        logits = F.linear(h, w["model.embed_tokens.weight"])
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), self.x[:, 1:].reshape(-1))

    def steps(self, n):
        wall, cpu, losses = time.perf_counter(), time.process_time(), []
        for _ in range(n):
            loss = self.loss()
            loss.backward()
            self.adamw.step()
            self.adamw.zero_grad()
            losses.append(loss.item())
        return {"loss": losses, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def close(what, ours, theirs, bound):
    gap = abs(ours - theirs) / max(1e-12, abs(theirs))
    if not gap <= bound:
        sys.exit(f"error: {what} differs: ours {ours}, PyTorch {theirs}")
    return gap


def main():
    with tempfile.TemporaryDirectory() as folder:
        env = dict(os.environ, RAYON_NUM_THREADS=str(THREADS))
        ours = subprocess.Popen([sys.argv[1], folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

        def ask(line):
            ours.stdin.write(f"{line}\n")
            ours.stdin.flush()
            return json.loads(ours.stdout.readline())

        tokens = json.loads(ours.stdout.readline())["tokens"]
        from safetensors.torch import load_file
        weights = load_file(Path(folder) / "model.safetensors")
        peer = Peer(weights, tokens)
        count = sum(p.numel() for p in peer.w.values())
        batch = sum(len(t) - 1 for t in tokens)
        print(f"{count / 1e6:.2f}M parameters, f32, {len(tokens)} rows of {len(tokens[0]) - 1} tokens, {THREADS} threads;",
              f"PyTorch {torch.__version__} (eager, SDPA, fused AdamW)")
        first = ask("gradient")
        loss = peer.loss()
        loss.backward()
        worst = close("the loss", first["loss"], loss.item(), 1e-5)
        assert set(first["norms"]) == set(peer.w), "the trained tensors differ"
        for name, p in peer.w.items():
            worst = max(worst, close(f"the gradient of {name}", first["norms"][name], p.grad.norm().item(), 1e-3))
        peer.adamw.zero_grad()
        print(f"equal: loss and {len(peer.w)} gradients, worst relative difference {worst:.1e}")
        a, b = ask(STEPS), peer.steps(STEPS)  # also warms both up
        for x, y in zip(a["loss"], b["loss"]):
            close("the loss after a step", x, y, 1e-3)
        rows = []
        for i in range(ROUNDS):
            pair = [ask(STEPS), peer.steps(STEPS)]
            rows.append(pair)
            rate = lambda r, key: STEPS * batch / r[key]
            print(f"round {i}: ours {rate(pair[0], 'wall'):.0f} tokens/s, {rate(pair[0], 'cpu'):.0f} per CPU-s;",
                  f"PyTorch {rate(pair[1], 'wall'):.0f}, {rate(pair[1], 'cpu'):.0f}", flush=True)
        close("the last loss", rows[-1][0]["loss"][-1], rows[-1][1]["loss"][-1], 2e-2)
        for key, unit in (("wall", "tokens/s"), ("cpu", "tokens per CPU-s")):
            rates = [[STEPS * batch / pair[side][key] for pair in rows] for side in (0, 1)]
            text = [f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in rates]
            print(f"{unit}: ours {text[0]}, PyTorch {text[1]}, n {ROUNDS} rounds of {STEPS} steps")
        ratio = statistics.median(pair[1]["cpu"] / pair[0]["cpu"] for pair in rows)
        ours.stdin.close()
        ours.wait()
        print(f"ratio trainer-cpu {ratio:.2f}")


main()
