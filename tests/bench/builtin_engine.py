"""builtin-engine: prefill and decoding of the built-in engine beside llama.cpp, the same GGUF file and tokens.

Both sides run in turns. The figures at two threads are wall time, the best of all rounds each; those at one
thread are CPU time, which other load on the machine hardly touches (threads that wait for each other spin, so
CPU time says nothing at two). The ratio is the smallest of the four.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import time

import xllamacpp

PROMPT, NEW, ROUNDS = 512, 64, 5


class Ours:
    def __init__(self, program, model, threads):
        env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
        self.process = subprocess.Popen([program, model, "packed"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env=env)
        first = json.loads(self.process.stdout.readline())
        assert first["packed"], "the weights are not packed"
        self.tokens = first["tokens"]

    def run(self, prompt=PROMPT, new=NEW):
        self.process.stdin.write(f"{prompt} {new}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


class Peer:
    def __init__(self, model, threads, tokens):
        p = xllamacpp.CommonParams()
        p.model.path = model
        p.n_ctx, p.n_parallel, p.verbosity = 2048, 1, -1
        p.n_gpu_layers = 0
        p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
        self.server, self.tokens = xllamacpp.Server(p), tokens

    def run(self, prompt=PROMPT, new=NEW):
        def ask(n):
            before = time.process_time()
            reply = self.server.handle_completions({"prompt": self.tokens[:prompt], "max_tokens": n, "temperature": 0,
                                                    "cache_prompt": False, "ignore_eos": True})
            reply = json.loads(reply) if isinstance(reply, str) else reply
            return reply, time.process_time() - before
        short, cpu_short = ask(1)
        long, cpu_long = ask(new)
        t = long["timings"]
        assert t["prompt_n"] == prompt and t["predicted_n"] == new, t
        return {"prefill": t["prompt_per_second"], "decode": t["predicted_per_second"],
                "prefill_cpu": prompt / cpu_short, "decode_cpu": (new - 1) / max(1e-9, cpu_long - cpu_short),
                "text": long["choices"][0]["text"]}


def load():
    return open("/proc/loadavg").read().split()[0]


def main():
    program, model = sys.argv[1:3]
    ratios = []
    version = importlib.metadata.version("xllamacpp")
    for threads, suffix in ((2, ""), (1, "_cpu")):
        ours = Ours(program, model, threads)
        peer = Peer(model, threads, ours.tokens)
        a, b = ours.run(), peer.run()  # also warms both up
        same = os.path.commonprefix([a["text"], b["text"]])
        if len(same) < 20:
            sys.exit(f"error: the continuations differ at once: {a['text']!r}, llama.cpp {b['text']!r}")
        if threads == 2:
            print(f"SmolLM2-135M as stored (Q4_1, head Q8_0), {PROMPT} prompt tokens, {NEW} new; xllamacpp {version};",
                  f"n {ROUNDS}; {len(same)} characters of {len(b['text'])} equal")
        pairs = [(ours.run(), peer.run()) for _ in range(ROUNDS)]
        for what in ("prefill", "decode"):
            mine, theirs = ([one[side][what + suffix] for one in pairs] for side in (0, 1))
            ratio = max(mine) / max(theirs)
            ratios.append(ratio)
            unit = "tokens per CPU-s" if suffix else "tokens/s"
            print(f"{threads} thread(s) {what}: ours {max(mine):.0f} (least {min(mine):.0f}), llama.cpp {max(theirs):.0f}",
                  f"(least {min(theirs):.0f}) {unit}: {ratio:.2f}; load {load()}", flush=True)
        ours.process.stdin.close()
        ours.process.wait()
    print(f"ratio builtin-engine {min(ratios):.2f}")


main()
