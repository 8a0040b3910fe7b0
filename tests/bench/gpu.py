"""Training and decoding on a GPU beside PyTorch and Hugging Face: `python3 gpu.py PROGRAM [CASE...]`, where PROGRAM is
`workers/model/examples/gpu.rs`, built, and a case as there, with `+ck` (gradient checkpointing) or `+compile` after the
kind for the peer's variants. Random weights of equal shapes, bf16, SDPA, fused AdamW. Needs torch, transformers, peft.
Ends with the ratio of full fine-tuning of the 0.5b shape to the peer's eager mode without checkpointing."""
import os, re, subprocess, sys, time

CASES = ["full:0.5b:8:1024", "full+ck:0.5b:8:1024", "full+compile:0.5b:8:1024", "lora:0.5b:8:1024", "full:1.5b:8:1024",
         "lora+ck:7b:4:2048", "decode:0.5b:1:512", "decode:0.5b:32:512", "decode:0.5b:128:512", "decode:7b:1:1024",
         "decode:7b:64:1024"]
program, cases = os.path.abspath(sys.argv[1]), sys.argv[2:] or CASES
rates = {}
for case in dict.fromkeys(re.sub(r"\+\w+", "", case) for case in cases):  # one process each: memory starts empty
    out = subprocess.run([program, case], stdout=subprocess.PIPE, text=True, check=True).stdout
    print(out, end="", flush=True)
    found = re.search(r"^(?:full|lora|decode) .*?: (\d+) tokens/s", out, re.M)
    if not found:
        sys.exit(f"{case}: no figure")
    rates[case] = float(found[1])

os.environ.setdefault("HF_HUB_OFFLINE", "1")
import torch, transformers  # noqa: E402: after ours, so that memory is theirs alone
from transformers import Qwen2Config, Qwen2ForCausalLM

SHAPES = {
    "0.5b": dict(hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "1.5b": dict(hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
                 num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True),
    "7b": dict(hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
               num_key_value_heads=4, vocab_size=152064, tie_word_embeddings=False),
}
print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name(0)}", flush=True)


def model(name):
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        return Qwen2ForCausalLM(Qwen2Config(max_position_embeddings=4096, attn_implementation="sdpa", **SHAPES[name]))


def timed(work):
    torch.cuda.synchronize()
    start = time.time()
    work()
    torch.cuda.synchronize()
    return time.time() - start


def train(kind, name, rows, length):
    kind, *options = kind.split("+")
    m = model(name).train()
    m.config.use_cache = False
    if kind == "lora":
        import peft
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        m = peft.get_peft_model(m, peft.LoraConfig(r=16, lora_alpha=32, target_modules=names, task_type="CAUSAL_LM"))
    if "ck" in options:
        m.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if kind == "lora":
            m.enable_input_require_grads()
    run = torch.compile(m) if "compile" in options else m
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4, fused=True)
    x = torch.randint(0, SHAPES[name]["vocab_size"], (rows, length), device="cuda")

    def step():
        run(input_ids=x, labels=x).loss.backward()
        opt.step()
        opt.zero_grad()

    for _ in range(3):
        step()
    torch.cuda.reset_peak_memory_stats()
    times = sorted(timed(step) for _ in range(10))
    rates["+".join([kind, *options]) + f":{name}:{rows}:{length}", "peer"] = rows * length / times[5]
    print(f"peer {kind} {' '.join(options)} {name} {rows}x{length}: {rows * length / times[5]:.0f} tokens/s; "
          f"median {times[5] * 1e3:.1f} ms; best {times[0] * 1e3:.1f} ms; "
          f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB", flush=True)


@torch.no_grad()
def decode(kind, name, rows, prompt):
    m = model(name).eval()
    x = torch.randint(0, SHAPES[name]["vocab_size"], (rows, prompt), device="cuda")
    go = lambda n: m.generate(x, max_new_tokens=n, min_new_tokens=n, do_sample=True, temperature=1.0, top_k=0,
                              top_p=1.0, pad_token_id=0, use_cache=True)
    new = 33
    go(4)
    first, whole = min(timed(lambda: go(1)) for _ in range(2)), timed(lambda: go(new))
    step = (whole - first) / (new - 1)
    rates[f"decode:{name}:{rows}:{prompt}", "peer"] = rows / step
    print(f"peer decode {name} {rows} rows, prompt {prompt}: {rows / step:.0f} tokens/s; {step * 1e3:.2f} ms a step",
          flush=True)


for case in cases:
    kind, name, rows, length = case.split(":")
    try:
        (decode if kind == "decode" else train)(kind, name, int(rows), int(length))
    except Exception as error:  # a case that does not fit must not end the others
        print(f"peer {case} FAILED: {repr(error)[:300]}", flush=True)
    torch.cuda.empty_cache()
    import gc
    gc.collect()
    torch.cuda.empty_cache()
print()
for case in cases:
    if (case, "peer") in rates:
        ours = rates[re.sub(r"\+\w+", "", case)]
        print(f"{case}: ours {ours:.0f}, peer {rates[case, 'peer']:.0f} tokens/s, {ours / rates[case, 'peer']:.2f}")
if (CASES[0], "peer") in rates:
    print(f"ratio gpu {rates[CASES[0]] / rates[CASES[0], 'peer']:.3f}")
