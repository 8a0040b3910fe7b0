"""Two GPUs against one: `python3 gpu_team.py PROGRAM [CASE...]`, where PROGRAM is `workers/model/examples/gpu.rs`, built, and
a case a `team-…` one of it. Beside it PyTorch: an all-reduce of 1 GiB by NCCL (what the link gives), and
DistributedDataParallel on the 0.5b shape with 8x1024 tokens a GPU. Needs torch, transformers, and NCCL, which is taken from
torch's own packages. Ends with the ratio of tokens/s on two GPUs, full fine-tuning with one micro-batch a GPU, to the peer's;
how each scales stands above it."""
import glob, os, re, subprocess, sys, time

CASES = ["team-full:0.5b:8:1024:2:2", "team-full:0.5b:8:1024:8:2", "team-lora:0.5b:8:1024:2:2",
         "team-decode:0.5b:32:512:2", "team-full:1.5b:8:1024:2:2", "team-lora:7b:4:2048:2:2", "team-lost:0.5b:2"]


def peer(rank, gpus, results):
    import torch
    import torch.distributed as dist
    from transformers import Qwen2Config, Qwen2ForCausalLM

    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(29500 + gpus))
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", rank=rank, world_size=gpus)

    def timed(work, n=10):
        times = []
        for _ in range(n):
            torch.cuda.synchronize()
            dist.barrier()
            start = time.time()
            work()
            torch.cuda.synchronize()
            times.append(time.time() - start)
        return sorted(times)[n // 2]

    if gpus > 1:
        big = torch.ones(1 << 28, device="cuda")
        seconds = timed(lambda: dist.all_reduce(big))
        results["link"] = (1 << 30) * 2 * (gpus - 1) / gpus / seconds / 1e9
        del big
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = Qwen2ForCausalLM(Qwen2Config(max_position_embeddings=4096, attn_implementation="sdpa", hidden_size=896,
                                             intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
                                             num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True))
    model.train().config.use_cache = False
    run = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank], gradient_as_bucket_view=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    x = torch.randint(0, 151936, (8, 1024), device="cuda")

    def step():
        run(input_ids=x, labels=x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    timed(step, 3)
    results[gpus] = gpus * 8 * 1024 / timed(step)
    dist.destroy_process_group()


if __name__ == "__main__":
    program, cases = os.path.abspath(sys.argv[1]), sys.argv[2:] or CASES
    import importlib.util
    folders = list(importlib.util.find_spec("nvidia").submodule_search_locations)
    found = [lib for folder in folders for lib in glob.glob(f"{folder}/*/lib")]
    env = dict(os.environ, LD_LIBRARY_PATH=":".join(found + [os.environ.get("LD_LIBRARY_PATH", "")]))
    rate = None
    for case in cases:  # one process each: memory starts empty
        started = time.time()
        try:
            out = subprocess.run([program, case], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
                                 timeout=90).stdout
        except subprocess.TimeoutExpired as error:
            out = f"{(error.stdout or b'').decode()[-3000:]}\n{case}: ended after 90 s\n"
        print(out, end="", flush=True)
        print(f"  ({case}: {time.time() - started:.0f} s)", flush=True)
        two = re.search(r"^team-full 0.5b 2 x 8x1024 on 2 GPU\(s\): (\d+) tokens/s", out, re.M)
        rate = float(two[1]) if two else rate
    import torch, transformers
    import torch.multiprocessing as mp

    print(f"torch {torch.__version__}, transformers {transformers.__version__}, NCCL {torch.cuda.nccl.version()}, "
          f"{torch.cuda.get_device_name(0)}", flush=True)
    with mp.Manager() as manager:
        results = manager.dict()
        for gpus in (1, 2):
            mp.spawn(peer, (gpus, results), nprocs=gpus)
        print(f"peer all-reduce of 1 GiB: {results['link']:.0f} GB/s bus bandwidth")
        print(f"peer DistributedDataParallel 0.5b 8x1024 a GPU: {results[1]:.0f} tokens/s on one, {results[2]:.0f} on two: "
              f"{results[2] / results[1]:.3f} times")
        if rate:
            print(f"ratio gpu-team {rate / results[2]:.3f}")
