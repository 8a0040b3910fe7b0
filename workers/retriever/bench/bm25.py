"""bm25-parity: our BM25 beside Anserini's on every query. bm25-throughput: beside bm25s with numba, by CPU time.

Parity: NQ test questions on the quickstart's Wikipedia articles, and known-item queries on about 180,000 short texts
of Debian's packages. Tie-aware: rank by rank equal scores (1e-4), and the same passages above the last score.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import corpus
import peers

cache = peers.environment()
from parity import equal_top  # noqa: E402

BAR = {"bm25-parity": 0.995, "bm25-throughput": 1.25}
ROUNDS = 5


def passages(path):
    for line in path.open():
        if line.strip():
            yield json.loads(line)


def contents(passage):
    return passage.get("contents") or f'"{passage.get("title", "")}"\n{passage["text"]}'


def anserini(path, queries, folder):
    command, jar = peers.anserini()
    source = folder / "source"
    source.mkdir()
    with (source / "corpus.jsonl").open("w") as out:
        for passage in passages(path):
            out.write(json.dumps({"id": passage["id"], "contents": contents(passage)}) + "\n")
    topics = folder / "topics.tsv"
    topics.write_text("".join(f"{at}\t{query}\n" for at, query in enumerate(queries)))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": True}
    subprocess.run([*command, "io.anserini.index.IndexCollection", "-collection", "JsonCollection", "-input", source,
                    "-index", folder / "index", "-generator", "DefaultLuceneDocumentGenerator", "-threads", "1"], **quiet)
    subprocess.run([*command, "io.anserini.search.SearchCollection", "-index", folder / "index", "-topics", topics,
                    "-topicReader", "TsvInt", "-output", folder / "run", "-bm25", "-bm25.k1", "0.9", "-bm25.b", "0.4",
                    "-hits", "20", "-threads", "1"], **quiet)
    found = [[] for _ in queries]
    for line in (folder / "run").open():
        query, _, name, _, score, _ = line.split()
        found[int(query)].append((name, float(score)))
    return found, jar


def parity():
    data = pathlib.Path(os.environ.get("S3_DATA", ".s3/data"))
    questions = [json.loads(line)["question"] for line in (data / "questions/nq-test.jsonl").open()]
    known, queries = corpus.known_items(cache)
    total = equal = 0
    for what, path, asked in [("NQ test questions, Wikipedia articles", data / "corpus/wiki-vital.jsonl", questions),
                              ("known-item queries, WordNet and Debian", known, queries.read_text().splitlines())]:
        asked = [" ".join(question.split()) for question in asked]
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            theirs, jar = anserini(path, asked, folder)
            (folder / "asked").write_text("\n".join(asked) + "\n")
            ours = peers.Ours("bm25", path, folder / "asked")
            mine = [[tuple(pair) for pair in found] for found in ours.ask(20)["found"]]
        same = [equal_top(a, b) for a, b in zip(mine, theirs)]
        total, equal = total + len(same), equal + sum(same)
        print(f"{jar}, k1 0.9, b 0.4; {what}: {ours.about['passages']} passages, "
              f"{sum(same)} of {len(same)} queries with an equal top 10")
        for at in [at for at, yes in enumerate(same) if not yes][:3]:
            print(f"  differs: {asked[at]!r}\n    ours   {mine[at][:10]}\n    theirs {theirs[at][:10]}")
    return equal / total / BAR["bm25-parity"]


def throughput():
    import bm25s
    import numba
    import Stemmer

    path, queries = corpus.known_items(cache)
    asked = queries.read_text().splitlines()[:2000]
    with tempfile.NamedTemporaryFile("w") as file:
        file.write("\n".join(asked) + "\n")
        file.flush()
        ours = peers.Ours("bm25", path, file.name)
        texts = [p["title"] + " " + p["text"] for p in passages(path)]
        stemmer = Stemmer.Stemmer("english")
        started = time.process_time()
        tokens = bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False)
        peer = bm25s.BM25(k1=0.9, b=0.4, backend="numba")
        peer.index(tokens, show_progress=False)
        print(f"bm25s {bm25s.__version__}, numba {numba.__version__}, 1 thread; {len(texts)} passages, {len(asked)} "
              f"queries, k 10; indexing: ours {ours.about['seconds']:.1f}, theirs {time.process_time() - started:.1f} s")
        # Its queries are cut into tokens beforehand and not counted; ours are counted with the analysis.
        cut = bm25s.tokenize(asked, stopwords="en", stemmer=stemmer, show_progress=False)
        rounds = []
        for _ in range(ROUNDS + 1):
            mine = ours.ask(10)
            started = time.process_time()
            found = peer.retrieve(cut, k=10, n_threads=1, show_progress=False)
            rounds.append((len(asked) / mine["seconds"], len(asked) / (time.process_time() - started)))
        names = [p["id"] for p in passages(path)]
        overlap = [len({name for name, _ in a} & {names[at] for at in b}) / max(1, len(a))
                   for a, b in zip(mine["found"], found.documents)]
        print(f"overlap of the top 10: {sum(overlap) / len(overlap):.1%} (another analyzer)")
    rounds = rounds[1:]
    ratios = [a / b for a, b in rounds]
    print(f"queries per CPU-second: ours {peers.spread([a for a, _ in rounds])}, theirs "
          f"{peers.spread([b for _, b in rounds])}, ratio {peers.spread(ratios)}")
    return peers.median(ratios)


name = sys.argv[1]
print(f"ratio {name} {(parity if name == 'bm25-parity' else throughput)():.3f}")
