"""retrieve-http: CPU per `POST /retrieve` of our server beside a server of the reference's shape, 16 clients.

Both search the same 1,000 vectors of 768 dimensions exactly, answer 12 documents with scores, and have a table in the
encoder's place. CPU time of the server's process, both in turn, median of the rounds' ratios.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.request

import peers

peers.environment()

import fastapi  # noqa: E402
import faiss  # noqa: E402
import numpy as np  # noqa: E402
import uvicorn  # noqa: E402

N, D, K, CLIENTS, REQUESTS, ROUNDS, BAR = 1000, 768, 12, 16, 20_000, 5, 15
HERE = pathlib.Path(__file__).parent
PROGRAM = os.environ.get("RETRIEVE_HTTP", "target/release/examples/retrieve-http")


class Server:
    def __init__(self, *command):
        self.process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
        self.port = int(self.process.stdout.readline() or sys.exit(f"error: {command[0]} ended"))
        self.first = 0
        for _ in range(200):
            try:
                self.ask(["query 0 x"])
                return
            except OSError:
                time.sleep(0.05)
        sys.exit(f"error: {command[0]} does not answer")

    def cpu(self):
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, queries):
        body = json.dumps({"queries": queries, "topk": K, "return_scores": True}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/retrieve", body,
                                         {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as reply:
            return json.load(reply)["result"]

    def load(self, requests):
        before = self.cpu()
        run = subprocess.run([PROGRAM, "load", str(self.port), str(CLIENTS), str(requests), str(self.first)],
                             stdout=subprocess.PIPE, check=True)
        self.first += requests
        found = json.loads(run.stdout)
        assert found["bad"] == 0 and found["requests"] == requests, found
        return found | {"micros": (self.cpu() - before) / requests * 1e6}


def same(ours, theirs):
    for mine, other in zip(ours, theirs, strict=True):
        assert [hit["document"]["id"] for hit in mine] == [hit["document"]["id"] for hit in other]
        for a, b in zip(mine, other, strict=True):
            assert a["document"]["contents"] == b["document"]["contents"]
            assert abs(a["score"] - b["score"]) < 1e-5


def main():
    rng = np.random.default_rng(3)
    unit = lambda n: (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True))(rng.standard_normal((n, D), np.float32))
    data = pathlib.Path(os.environ.get("S3_DATA", ".s3/data"))
    servers = []
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        with (data / "corpus/wiki-vital.jsonl").open() as lines:
            (folder / "corpus.jsonl").write_text("".join(line for line, _ in zip(lines, range(N))))
        (folder / "rows").write_bytes(unit(N).tobytes())
        (folder / "queries").write_bytes(unit(1024).tobytes())
        files = [folder / "corpus.jsonl", folder / "rows", folder / "queries", D]
        try:
            ours = Server(PROGRAM, "serve", *files, 0)
            servers.append(ours)
            theirs = Server(sys.executable, HERE / "reference_server.py", *files)
            servers.append(theirs)
            cached = Server(PROGRAM, "serve", *files, 100_000)
            servers.append(cached)
            asked = [f"query {at} of the check" for at in range(40)]
            same(ours.ask(asked), theirs.ask(asked))
            print(f"fastapi {fastapi.__version__}, uvicorn {uvicorn.__version__} (uvloop, httptools), faiss-cpu "
                  f"{faiss.__version__}, 1 worker, 1 thread; {N} x {D} f32, k {K}, {CLIENTS} clients, keep-alive, "
                  f"{ROUNDS} rounds of {REQUESTS} requests (peer {REQUESTS // 10}); same ids and scores")
            rounds = []
            for at in range(ROUNDS + 1):
                rounds.append((ours.load(REQUESTS), theirs.load(REQUESTS // 10)))
            rounds = rounds[1:]
            for name, which in (("ours", 0), ("theirs", 1)):
                print(f"{name}: CPU per request {peers.spread([r[which]['micros'] for r in rounds])} us, "
                      f"{peers.spread([r[which]['requests'] / r[which]['seconds'] for r in rounds])} requests/s, "
                      f"p50 {peers.spread([r[which]['p50'] for r in rounds])} ms, "
                      f"p99 {peers.spread([r[which]['p99'] for r in rounds])} ms")
            cached.load(1024)
            cached.first = 0
            hits = []
            for _ in range(5):
                hits.append(cached.load(1024)["micros"])
                cached.first = 0
            print(f"ours, every query in the cache: CPU per request {peers.spread(hits)} us")
            ratios = [other["micros"] / mine["micros"] for mine, other in rounds]
            print(f"ratio {peers.spread(ratios)} (bar {BAR})")
        finally:
            for server in servers:
                server.process.kill()
                server.process.wait()
    print(f"ratio retrieve-http {peers.median(ratios):.3f}")


main()
