"""dense-batch8, -batch32, -batch128, dense-int8, dense-onebit: our dense engine beside faiss-cpu.

CPU time on one thread, both engines in turn, median of the rounds' ratios. Speed on 100,000 generated unit vectors
of 768 dimensions; recall is claimed on real vectors, the quickstart's 10,033 articles and 500 NQ test questions by
multilingual-e5-small (`make data`).
"""

import json
import os
import pathlib
import sys
import tempfile
import time

import peers

peers.environment()

import faiss  # noqa: E402
import numpy as np  # noqa: E402

N, D, K, ROUNDS = 100_000, 768, 12, 5
faiss.omp_set_num_threads(1)


def generated(rng, centres, n):
    """Unit vectors in clusters, all on one side of the origin, most of their length in few directions."""
    base, basis = centres
    spectrum = np.arange(1, base.shape[1] + 1, dtype=np.float32) ** -0.5
    z = base[rng.integers(0, len(base), n)] * 0.8 + rng.standard_normal((n, base.shape[1]), dtype=np.float32)
    x = (z * spectrum) @ basis * 3 + 0.05 * rng.standard_normal((n, D), dtype=np.float32) + 0.05
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float16).astype(np.float32)


def real(folder):
    """The committed vectors of articles, and those of questions."""
    raw = pathlib.Path("examples/quickstart/vectors/e5-small.safetensors").read_bytes()
    head = int.from_bytes(raw[:8], "little")
    tensor = json.loads(raw[8 : 8 + head])["vectors"]
    begin, end = tensor["data_offsets"]
    x = np.frombuffer(raw[8 + head + begin : 8 + head + end], np.float16).reshape(tensor["shape"]).astype(np.float32)
    data = pathlib.Path(os.environ.get("S3_DATA", ".s3/data"))
    lines = (data / "questions/nq-test.jsonl").open()
    asked = pathlib.Path(folder) / "asked"
    asked.write_text("".join(json.loads(line)["question"] + "\n" for line, _ in zip(lines, range(500))))
    encoded = pathlib.Path(folder) / "encoded"
    peers.Ours("encode", data / "models/e5-small", "query:", asked, encoded)
    q = np.fromfile(encoded, np.float32).reshape(-1, x.shape[1])
    return x, q, f"{len(q)} NQ questions"


def save(folder, name, x):
    path = pathlib.Path(folder) / name
    path.write_bytes(np.ascontiguousarray(x, np.float32).tobytes())
    return path


def theirs(index, queries, batch):
    started = time.process_time()
    ids = [index.search(queries[at : at + batch], K)[1] for at in range(0, len(queries), batch)]
    return time.process_time() - started, np.concatenate(ids)


def agree(a, b):
    return float(np.mean([set(x) == set(y) for x, y in zip(a, b)]))


def recall(found, exact):
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, exact)]))


def interleave(ours, kind, oversample, index, queries, batch):
    """Rounds of (seconds of ours, of theirs) per query, and both results."""
    rounds = []
    for _ in range(ROUNDS + 1):
        mine = ours.ask(kind, batch, len(queries), K, oversample)
        seconds, ids = theirs(index, queries, batch)
        rounds.append((mine["seconds"] / len(queries), seconds / len(queries)))
    return rounds[1:], mine["ids"], ids


def report(what, rounds):
    mine, other = [1e3 * a for a, _ in rounds], [1e3 * b for _, b in rounds]
    ratios = [b / a for a, b in rounds]
    print(f"{what}: ours {peers.spread(mine)} ms, theirs {peers.spread(other)} ms a query, ratio {peers.spread(ratios)}")
    return peers.median(ratios)


def main():
    name = sys.argv[1]
    rng = np.random.default_rng(1)
    centres = (rng.standard_normal((2000, 128), dtype=np.float32),
               rng.standard_normal((128, D), dtype=np.float32) / 128**0.5)
    x, q = generated(rng, centres, N), generated(rng, centres, 128)
    print(f"faiss-cpu {faiss.__version__} ({faiss.get_compile_options().strip()}), 1 thread; "
          f"{N} x {D}, k {K}, {ROUNDS} rounds, median [least, most]")
    with tempfile.TemporaryDirectory() as folder:
        ours = peers.Ours("dense", save(folder, "x", x), D, save(folder, "q", q))
        print("ours:", ours.about)
        flat = faiss.IndexFlatIP(D)
        flat.add(x)
        if name.startswith("dense-batch"):
            batch = int(name.removeprefix("dense-batch"))
            q = q[: max(batch, 32)]
            rounds, mine, ids = interleave(ours, "f32", 1, flat, q, batch)
            same = agree(mine, ids)
            print(f"same ids for {same:.2%} of {len(q)} queries")
            assert same == 1.0, "the results differ"
            ratio = report(f"f32, batch {batch}", rounds)
            report(f"f16, batch {batch}", interleave(ours, "f16", 1, flat, q, batch)[0])
            # Not the default, but it can be set: a matrix product from 20 queries on, here from the first.
            default = faiss.cvar.distance_compute_blas_threshold
            faiss.cvar.distance_compute_blas_threshold = 1
            report(f"f32, batch {batch}, theirs by BLAS (threshold 1, default {default})",
                   interleave(ours, "f32", 1, flat, q, batch)[0])
            faiss.cvar.distance_compute_blas_threshold = default
        else:
            kind, oversample, factory, least = {
                "dense-int8": ("int8", 4, "SQ8", 0.999),
                "dense-onebit": ("onebit", 24, "RaBitQfs", 0.99),
            }[name]
            with tempfile.TemporaryDirectory() as other:
                rx, rq, what = real(other)
                r = peers.Ours("dense", save(other, "x", rx), rx.shape[1], save(other, "q", rq))
                exact = r.ask("f16", 64, len(rq), K, 1)["ids"]
                rflat = faiss.IndexFlatIP(rx.shape[1])
                rflat.add(rx)
                assert agree(exact, rflat.search(rq, K)[1]) > 0.99
                reached = {n: recall(r.ask(kind, 64, len(rq), K, n)["ids"], exact) for n in (4, 8, 16, 24, 32)}
                print(f"recall@{K} on {rx.shape[0]} x {rx.shape[1]} E5 vectors, {what}, by oversampling: "
                      + ", ".join(f"{n}: {value:.4f}" for n, value in reached.items()))
                assert reached[oversample] >= least, f"recall below {least}"
            q = q[:64]
            index = faiss.index_factory(D, factory, faiss.METRIC_INNER_PRODUCT)
            index.train(x)
            index.add(x)
            exact = flat.search(q, K)[1]
            batch = 8 if name == "dense-int8" else 1
            rounds, mine, ids = interleave(ours, kind, oversample, index, q, batch)
            print(f"recall@{K} on the generated vectors: ours {recall(mine, exact):.4f} with exact rescoring, "
                  f"{factory} {recall(ids, exact):.4f} without")
            ratio = report(f"{kind} and rescoring against {factory}, batches of {batch}", rounds)
            if batch > 1:
                report(f"against {factory}, single queries", interleave(ours, kind, oversample, index, q, 1)[0])
            single = report("against Flat, single queries", interleave(ours, kind, oversample, flat, q[:16], 1)[0])
            report(f"against {factory}, batches of 32", interleave(ours, kind, oversample, index, q, 32)[0])
            if name == "dense-onebit":
                # both bars at once: 1 x RaBitQ fast scan and 20 x Flat
                ratio = min(ratio, single / 20)
    print(f"ratio {name} {ratio:.3f}")


main()
