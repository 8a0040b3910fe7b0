"""A corpus of about 180,000 short texts with known-item queries, from Debian's own packages: WordNet's glosses with
their example sentences, and package descriptions with their one-line synopses. Kept in the cache folder.

Needs apt's package lists (`apt-get update`).
"""

import json
import pathlib
import random
import subprocess
import sys


def glosses(folder):
    for pos in ("noun", "verb", "adj", "adv"):
        for line in (folder / f"data.{pos}").open(encoding="utf8", errors="replace"):
            if line.startswith("  "):
                continue
            head, _, gloss = line.partition("|")
            fields = head.split()
            words = [fields[4 + 2 * at].replace("_", " ") for at in range(int(fields[3], 16))]
            definition, *examples = gloss.strip().split('; "')
            yield words[0], ", ".join(words) + ": " + definition, [e.strip('" ') for e in examples if len(e.split()) >= 5]


def packages():
    out = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    seen = set()
    for paragraph in out.split("\n\n"):
        name, lines, inside = None, [], False
        for line in paragraph.split("\n"):
            if line.startswith("Package: "):
                name = line[9:]
            if line.startswith((" ", "\t")):
                if inside:
                    lines.append(line.strip())
                continue
            inside = line.startswith("Description") and not line.startswith("Description-md5")
            if inside:
                lines = [line.partition(":")[2].strip()]
        if name and lines and name not in seen:
            seen.add(name)
            rest = "\n".join(lines[1:]).strip()
            yield name, rest or lines[0], [lines[0]] if len(lines[0].split()) >= 4 else []


def known_items(cache):
    """Paths of the corpus (jsonl of id, title, text) and of the queries (one a line)."""
    folder = cache / "known-items"
    corpus, queries = folder / "corpus.jsonl", folder / "queries.txt"
    if queries.exists():
        return corpus, queries
    folder.mkdir(parents=True, exist_ok=True)
    print(f"making the known-item corpus in {folder}", file=sys.stderr)
    subprocess.run(["apt-get", "download", "-qq", "wordnet-base"], cwd=folder, check=True)
    (package,) = folder.glob("wordnet-base_*.deb")
    subprocess.run(["dpkg-deb", "-x", package, folder / "wordnet"], check=True)
    asked = []
    with corpus.open("w") as out:
        sources = [("wn", glosses(folder / "wordnet/usr/share/wordnet")), ("deb", packages())]
        for prefix, texts in sources:
            for at, (title, text, questions) in enumerate(texts):
                out.write(json.dumps({"id": f"{prefix}{at}", "title": title, "text": text}) + "\n")
                asked += [" ".join(question.split()) for question in questions]
    random.Random(7).shuffle(asked)
    queries.write_text("\n".join(asked[:5000]) + "\n")
    return corpus, queries


if __name__ == "__main__":
    print(*known_items(pathlib.Path(sys.argv[1])))
