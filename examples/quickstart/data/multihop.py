#!/usr/bin/env python3
"""Makes two-hop questions with true answers out of the corpus itself.

    python3 examples/quickstart/data/multihop.py [FOLDER]      (default: $S3_DATA, else .s3/data)

Reads corpus/wiki-vital.jsonl, writes questions/multihop-{train,dev,test}.jsonl beside it:
`{"id", "question", "answers", "kind", "evidence": [title, title]}`. Every question needs two
passages: the first names the bridge, which the question does not; the second, the bridge's own, says
the answer within its first words. Nothing is guessed: a link or a fact counts only where a sentence of
the passage states it in so many words, and two that disagree make no question.

The split is by the passage that says the answer, so that none of those of the held-out test set is
ever trained on. It depends on that passage's title alone: another corpus moves no question from one
side to the other. Wordings are chosen by a hash of the question; there is no random state.
"""

import hashlib
import json
import os
import re
import sys
from pathlib import Path

from hops import history, languages, life, origins, people, places, waters, works
from hops.corpus import Corpus, bare

SPLITS = (("train", 45), ("dev", 9), ("test", 46))  # percent of the answering passages
# questions, and the first half of the sha256, from the pinned corpus
PINNED = {"train": (1350, "917aadec8525d8d3"), "dev": (254, "984c96c6da317376"), "test": (1415, "8cd61e9bfc2ac0ff")}

SUBJECTS = (places, waters, origins, life, people, works, history, languages)
ANSWER_WORDS = 5
PER_KIND = 13  # questions of one kind about one passage
PER_BRIDGE = 55  # questions about one passage
PER_FIRST = 10  # questions that start from one passage
PER_FIRST_KIND = 3  # of one kind
PER_ANSWER = 24  # questions with one answer: a constant answer must not score


def digest(*words):
    return hashlib.sha256("\0".join(words).encode()).digest()


def pick(wordings, *words):
    """One of several wordings, always the same for the same words."""
    return wordings[int.from_bytes(digest(*words)[:4], "big") % len(wordings)]


def sole(items, key, value):
    """Those items whose key has one value: passages that disagree, or name two, say nothing."""
    values = {}
    for item in items:
        values.setdefault(key(item), {}).setdefault(value(item), item)
    return [next(iter(items.values())) for items in values.values() if len(items) == 1]


def fair(corpus, question, answers, link, fact):
    """Whether it needs both passages and the second one says its answer where it is read."""
    first, head = corpus.text[link.first], corpus.head(fact.bridge)
    return (
        link.first != fact.bridge
        and len(answers[0].split()) <= ANSWER_WORDS
        and re.search(rf"(?<!\w){re.escape(answers[0])}(?!\w)", head)
        # the question gives neither answer nor bridge away
        and not any(answer.lower() in question.lower() for answer in answers)
        and bare(fact.bridge).lower() not in question.lower()
        # the first passage alone is not enough
        and not any(re.search(rf"\b{re.escape(answer)}\b", first, re.IGNORECASE) for answer in answers)
    )


def make(corpus):
    """All fair questions: kind, question, answers, link."""
    links = sole((link for subject in SUBJECTS for link in subject.links(corpus)), lambda link: link.phrase, lambda link: link.bridge)
    facts = {}
    for fact in sole(
        (fact for subject in SUBJECTS for fact in subject.facts(corpus)), lambda fact: (fact.name, fact.bridge, fact.asks), lambda fact: fact.answers[0]
    ):
        facts.setdefault(fact.bridge, []).append(fact)
    for link in links:
        for fact in facts.get(link.bridge, ()):
            question = pick(fact.asks, link.first, fact.name).format(link.phrase)
            question = question[:1].upper() + question[1:]
            if fair(corpus, question, fact.answers, link, fact):
                yield f"{link.name}: {fact.name}", question, list(dict.fromkeys(fact.answers)), [link.first, link.bridge]


def split_of(title):
    place = int.from_bytes(hashlib.sha256(f"hop\0{title}".encode()).digest()[:4], "big") % 100
    for name, percent in SPLITS:
        if place < percent:
            return name
        place -= percent
    raise AssertionError("the percents are a hundred")


def rows(corpus):
    """Split -> its lines, each question text once, in the order of their hash; what is capped falls out by it too."""
    made = {name: {} for name, _ in SPLITS}
    for kind, question, answers, evidence in make(corpus):
        made[split_of(evidence[1])].setdefault(question, {"kind": kind, "answers": answers, "evidence": evidence})
    for name, questions in made.items():
        kept, counts = [], {}
        for question in sorted(questions, key=lambda question: digest(question)):
            row = questions[question]
            first, bridge = row["evidence"]
            caps = {
                ("kind", row["kind"], bridge): PER_KIND,
                ("bridge", bridge): PER_BRIDGE,
                ("first", first): PER_FIRST,
                ("first", row["kind"], first): PER_FIRST_KIND,
                ("answer", row["answers"][0]): PER_ANSWER,
            }
            if all(counts.get(key, 0) < cap for key, cap in caps.items()):
                for key in caps:
                    counts[key] = counts.get(key, 0) + 1
                kept.append((question, row))
        yield name, [{"id": f"multihop-{name}-{place}", "question": question, **row} for place, (question, row) in enumerate(kept)]


def main(arguments):
    default = Path(__file__).resolve().parents[3] / ".s3" / "data"
    root = Path(arguments[0] if arguments else os.environ.get("S3_DATA") or default)
    source = root / "corpus" / "wiki-vital.jsonl"
    if not source.is_file():
        sys.exit(f"error: {source} is not there; run `make data` first")
    with open(source, encoding="utf-8") as lines:
        corpus = Corpus(lines)
    for name, questions in rows(corpus):
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in questions).encode()
        target = root / "questions" / f"multihop-{name}.jsonl"
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".partial")
        partial.write_bytes(text)
        os.replace(partial, target)
        kinds = {}
        for row in questions:
            kinds[row["kind"]] = kinds.get(row["kind"], 0) + 1
        print(f"{target}  {len(questions)} questions {dict(sorted(kinds.items()))}  sha256 {hashlib.sha256(text).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1:])
