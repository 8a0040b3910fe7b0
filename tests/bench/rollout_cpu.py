"""rollout-cpu: episodes a CPU second, played and learned from, beside PyTorch with a KV cache; one thread each.

The shape is that of the arle toy: width 128, 4 layers, 4 heads, feed-forward 256, 256 tokens, LoRA of rank 8 on every
linear module, groups of 8 and of 64 episodes of 64 tokens. First PyTorch scores the tokens that ours played: equal
log-probabilities, loss and gradients. Then both play and learn in turns.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

torch.set_num_threads(1)
torch.manual_seed(0)
H, LAYERS, HEADS, D, EPS, THETA, V = 128, 4, 4, 32, 1e-5, 1e4, 256
PROMPT, LENGTH, OBSERVED, ROUNDS = 16, 64, 40, 7


class Peer:
    def __init__(self, weights, adapter):
        self.w = weights
        self.lora = {name: torch.nn.Parameter(value) for name, value in adapter.items()}
        self.qkv = [torch.cat([weights[f"model.layers.{i}.self_attn.{m}_proj.weight"] for m in "qkv"]) for i in range(LAYERS)]
        self.adamw = torch.optim.AdamW(self.lora.values(), lr=1e-3, weight_decay=0.01, fused=True)
        inv = 1.0 / THETA ** (torch.arange(0, D, 2) / D)
        angles = torch.outer(torch.arange(LENGTH).float(), inv)
        angles = torch.cat((angles, angles), -1)
        self.cos, self.sin = angles.cos(), angles.sin()
        self.fused = None

    def fuse(self):
        """q, k and v as one product, as a fused module would have it."""
        pair = lambda i, half: [self.lora[f"model.layers.{i}.self_attn.{m}_proj.lora_{half}"] for m in "qkv"]
        self.fused = [(torch.cat(pair(i, "A")), torch.block_diag(*pair(i, "B"))) for i in range(LAYERS)]

    def forward(self, x, cache=None, past=0):
        rows, n = x.shape
        cos, sin = self.cos[past:past + n], self.sin[past:past + n]
        half = lambda z: torch.cat((-z[..., D // 2:], z[..., :D // 2]), -1)
        h = F.embedding(x, self.w["model.embed_tokens.weight"])
        for i in range(LAYERS):
            p = f"model.layers.{i}."
            linear = lambda m, y: F.linear(y, self.w[p + m + ".weight"]) + \
                F.linear(F.linear(y, self.lora[p + m + ".lora_A"]), self.lora[p + m + ".lora_B"])
            y = F.rms_norm(h, (H,), self.w[p + "input_layernorm.weight"], EPS)
            a, b = self.fused[i]
            q, k, v = (F.linear(y, self.qkv[i]) + F.linear(F.linear(y, a), b)).view(rows, n, 3, HEADS, D).unbind(2)
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            q, k = q * cos + half(q) * sin, k * cos + half(k) * sin
            if cache is not None:
                if cache[i]:
                    k, v = torch.cat((cache[i][0], k), 2), torch.cat((cache[i][1], v), 2)
                cache[i][:] = [k, v]
            o = F.scaled_dot_product_attention(q, k, v, is_causal=n > 1)
            h = h + linear("self_attn.o_proj", o.transpose(1, 2).reshape(rows, n, HEADS * D))
            y = F.rms_norm(h, (H,), self.w[p + "post_attention_layernorm.weight"], EPS)
            h = h + linear("mlp.down_proj", F.silu(linear("mlp.gate_proj", y)) * linear("mlp.up_proj", y))
        h = F.rms_norm(h, (H,), self.w["model.norm.weight"], EPS)
        return F.linear(h, self.w["model.embed_tokens.weight"])

    def play(self, group, step):
        prompt = torch.tensor([(i * 37 + step * 11) % V for i in range(PROMPT)])
        x = prompt.expand(group, PROMPT)
        with torch.no_grad():
            self.fuse()
            cache = [[] for _ in range(LAYERS)]
            logits = self.forward(x, cache)[:, -1]
            for t in range(PROMPT, LENGTH):
                token = torch.randint(0, V, (group,)) if t == OBSERVED else \
                    torch.multinomial(logits.softmax(-1), 1)[:, 0]
                x = torch.cat((x, token[:, None]), 1)
                if t + 1 < LENGTH:
                    logits = self.forward(token[:, None], cache, t)[:, -1]
        return x

    def loss(self, x):
        self.fuse()
        chosen = [t for t in range(PROMPT, LENGTH) if t != OBSERVED]
        reward = (x[:, PROMPT:] % 2 == 0).float().mean(1)
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        logits = self.forward(x[:, :-1])
        logprobs = logits.log_softmax(-1).gather(2, x[:, 1:, None])[..., 0][:, [t - 1 for t in chosen]]
        return -(advantage[:, None] * logprobs).mean(), logprobs

    def run(self, group, count):
        wall, cpu, playing = time.perf_counter(), time.process_time(), 0.0
        for step in range(count):
            began = time.process_time()
            x = self.play(group, step)
            playing += time.process_time() - began
            self.loss(x)[0].backward()
            self.adamw.step()
            self.adamw.zero_grad()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, "playing": playing}


def main():
    with tempfile.TemporaryDirectory() as folder:
        ours = subprocess.Popen([sys.argv[1], folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                env=dict(os.environ, RAYON_NUM_THREADS="1"))

        def ask(line):
            ours.stdin.write(f"{line}\n")
            ours.stdin.flush()
            return json.loads(ours.stdout.readline())

        json.loads(ours.stdout.readline())
        peer = Peer(load_file(Path(folder) / "model.safetensors"), load_file(Path(folder) / "adapter.safetensors"))
        first = ask("check 8")
        loss, logprobs = peer.loss(torch.tensor(first["tokens"]))
        loss.backward()
        gap = (logprobs.flatten() - torch.tensor(first["logprobs"])).abs().max().item()
        grads = max(abs(first["norms"][n] - p.grad.norm().item()) / p.grad.norm().item() for n, p in peer.lora.items())
        if gap > 1e-4 or grads > 1e-2 or abs(loss.item() - first["loss"]) > 1e-4 or first["own"] > 1e-5 \
                or set(first["norms"]) != set(peer.lora):
            sys.exit(f"error: not equal: log-probabilities {gap}, gradients {grads}, loss {loss.item()} and {first['loss']}")
        peer.adamw.zero_grad()
        print(f"PyTorch {torch.__version__}, f32, 1 thread each; equal: log-probabilities to {gap:.1e}, {len(peer.lora)}",
              f"gradients to {grads:.1e} relative; ours played against trained {first['own']:.1e}")
        ratios = []
        for group, count in ((8, 24), (64, 6)):
            ask(f"{group} 2"), peer.run(group, 2)
            pairs = [(ask(f"{group} {count}"), peer.run(group, count)) for _ in range(ROUNDS)]
            ratio = statistics.median(b["cpu"] / a["cpu"] for a, b in pairs)
            ratios.append(ratio)
            for name, side in (("ours", 0), ("PyTorch", 1)):
                rates = [group * count / pair[side]["cpu"] for pair in pairs]
                playing = statistics.median(pair[side]["playing"] / pair[side]["cpu"] for pair in pairs)
                print(f"group {group}, {name}: {statistics.median(rates):.1f} episodes per CPU-s ({min(rates):.1f} to",
                      f"{max(rates):.1f}), n {ROUNDS} rounds of {count} groups, {playing:.0%} of it playing", flush=True)
            print(f"group {group}: {ratio:.2f} times PyTorch")
        ours.stdin.close()
        ours.wait()
        print(f"ratio rollout-cpu {min(ratios):.2f}")


main()
