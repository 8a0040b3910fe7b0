#!/usr/bin/env python3
"""The proof's tables from evaluations' results: all seeds, paired, with intervals over seeds and questions.

    table.py RESULTS.jsonl [RESULTS.jsonl ...] [--training FOLDER ...]

One table for each evaluation and, of several, one for all their questions together. Accuracies have Wilson intervals. A difference is the mean over questions and seeds; its interval comes from 4,000
resamples that draw seeds and, independently, questions, both with replacement. Training folders add the learning
curves.
"""

import argparse
import json
import math
import pathlib
import random
from collections import defaultdict

RESAMPLES = 4000
Z = 1.959964


def read(path):
    """{arm: [0 or 1 by place]}, {arm: mean passages}, {arm: mean exact match}; places where any arm failed are left out."""
    right, passages, exact = defaultdict(dict), defaultdict(list), defaultdict(list)
    failed = set()
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            arm, place = row["arm"], row["place"]
            if row["verdict"] == "Failed":
                failed.add(place)
                continue
            right[arm][place] = int(row["verdict"] == "Correct")
            passages[arm].append(len(row["passages"]))
            exact[arm].append(int(bool(row["exactMatch"])))
    places = sorted(set.union(*(set(of) for of in right.values())) - failed)
    table = {arm: [of[place] for place in places] for arm, of in right.items()}
    mean = lambda of: {arm: sum(values) / len(values) for arm, values in of.items()}
    return table, mean(passages), mean(exact), len(failed)


def wilson(hits, n):
    p, z2 = hits / n, Z * Z
    middle, half = (p + z2 / (2 * n)) / (1 + z2 / n), Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return middle - half, middle + half


def interval(differences, rng):
    """Mean and 95 % interval of per-seed lists of per-question differences."""
    seeds, n = len(differences), len(differences[0])
    mean = sum(map(sum, differences)) / (seeds * n)
    # only the questions where some seed differs move the sum; their number is drawn with them
    columns = [column for column in zip(*differences) if any(column)]
    found = []
    for _ in range(RESAMPLES):
        drawn = [rng.randrange(seeds) for _ in range(seeds)]
        weights = [sum(column[s] for s in drawn) for column in columns]
        count = sum(rng.random() < len(columns) / n for _ in range(n)) if columns else 0
        found.append(sum(rng.choices(weights, k=count)) / (seeds * n) if count else 0.0)
    found.sort()
    return mean, found[int(0.025 * RESAMPLES)], found[int(0.975 * RESAMPLES) - 1]


def joined(parts):
    """The questions of several evaluations as one, for the arms that all of them have."""
    arms = set.intersection(*(set(table) for table, _, _, _ in parts))
    sizes = [len(next(iter(table.values()))) for table, _, _, _ in parts]
    mean = lambda of, arm: sum(size * part[of][arm] for size, part in zip(sizes, parts)) / sum(sizes)
    table = {arm: sum((part[0][arm] for part in parts), []) for arm in arms}
    passages, exact = ({arm: mean(of, arm) for arm in arms} for of in (1, 2))
    return table, passages, exact, sum(part[3] for part in parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=pathlib.Path)
    parser.add_argument("--training", nargs="*", default=[], type=pathlib.Path)
    arguments = parser.parse_args()
    parts = [read(path) for path in arguments.results]
    for path, part in zip(arguments.results, parts):
        print(f"## {path.parent.parent.name}\n")
        show(*part)
    if len(parts) > 1:
        print("## all together\n")
        show(*joined(parts))
    for folder in arguments.training:
        curve(folder)


def show(table, passages, exact, failed):
    n = len(next(iter(table.values())))
    rng = random.Random(17)
    print(f"{n} questions, {failed} left out because an arm failed\n")
    print("| arm | GenAcc (span) | EM | GBR against rag-3 | passages |\n|---|---|---|---|---|")
    for arm in sorted(table):
        hits = sum(table[arm])
        low, high = wilson(hits, n)
        gain = "–"
        if arm != "rag-3":
            mean, below, above = interval([[a - b for a, b in zip(table[arm], table["rag-3"])]], rng)
            gain = f"{mean:+.4f} [{below:+.4f}, {above:+.4f}]"
        print(f"| {arm} | {hits / n:.3f} [{low:.3f}, {high:.3f}] | {exact[arm]:.3f} | {gain} | {passages[arm]:.2f} |")
    seeds = sorted(arm[3:] for arm in table if arm.startswith("s3-"))
    print(f"\nover seeds {', '.join(seeds)} and questions:\n")
    for name, other in [
        ("GBR", lambda seed: "rag-3"),
        ("gain over same-budget RAG", lambda seed: f"same-budget-{seed}"),
        ("GBR(end) − GBR(start)", lambda seed: f"sft-{seed}"),
        ("gain over rag-1", lambda seed: "rag-1"),
    ]:
        pairs = [[a - b for a, b in zip(table[f"s3-{seed}"], table[other(seed)])] for seed in seeds]
        mean, low, high = interval(pairs, rng)
        by_seed = ", ".join(f"{sum(pair) / n:+.4f}" for pair in pairs)
        print(f"{name}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]; by seed {by_seed}")
    print()


def curve(folder):
    print(f"\n{folder}")
    shown = ["gain", "accuracy", "baselineAccuracy", "selected", "invalidTurns", "entropy", "informative", "mismatchKl"]
    for path in sorted(folder.glob("step-*.journal")):
        for line in path.read_text(encoding="utf-8").splitlines():
            key, entry = json.loads(line.split(" ", 1)[1])
            if entry["kind"] == "figures":
                figures = entry["figures"]
                words = [f"{name} {figures[name]:.4g}" for name in shown if name in figures]
                words += [f"{name} {value:.1f}" for name, value in figures.items() if name.startswith("seconds")]
                print(f"  {path.stem[5:]} {key}: {', '.join(words)}")


if __name__ == "__main__":
    main()
