#!/usr/bin/env python3
"""Makes two-hop questions with true answers out of the corpus itself.

    python3 examples/quickstart/data/multihop.py [FOLDER]      (default: $S3_DATA, else .s3/data)

Reads corpus/wiki-vital.jsonl, writes questions/multihop-{train,dev,test}.jsonl beside it:
`{"id", "question", "answers", "kind", "evidence": [title, title]}`. Every question needs two
passages: one names the bridge, which the question does not, the other says the answer about it.
Nothing is guessed: a relation counts only where a sentence of the passage states it in so many
words, and a bridge only where its passage is the one with exactly that title.

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

SPLITS = (("train", 50), ("dev", 10), ("test", 40))  # percent of the answering passages
# questions, and the first half of the sha256, from the pinned corpus
PINNED = {"train": (102, "037e6f2ef39c764e"), "dev": (13, "159b8508531f1af0"), "test": (91, "092a0b25010b7484")}

NATIONS = """Afghan Albanian Algerian American Andalusian Arab Argentine Armenian Athenian Australian Austrian Azerbaijani
Belgian Bengali Bolivian Brazilian British Bulgarian Burmese Byzantine Canadian Catalan Chilean Chinese Colombian Croatian
Cuban Czech Danish Dutch Egyptian English Estonian Ethiopian Filipino Finnish Flemish Florentine French Genoese Georgian
German Ghanaian Greek Hungarian Icelandic Indian Indonesian Iranian Iraqi Irish Israeli Italian Jamaican Japanese Kenyan
Korean Kurdish Latvian Lebanese Lithuanian Malian Mexican Mongol Moroccan Nigerian Norwegian Ottoman Pakistani Persian
Peruvian Polish Portuguese Prussian Roman Romanian Russian Scottish Senegalese Serbian Sicilian Slovak Slovene Somali Soviet
Spanish Sudanese Swedish Swiss Syrian Tanzanian Thai Tunisian Turkish Ugandan Ukrainian Uruguayan Venetian Venezuelan
Vietnamese Welsh""".split()

MADE = {
    "directed": "directed", "written": "wrote", "composed": "composed", "painted": "painted",
    "created": "created", "designed": "designed", "sculpted": "sculpted", "invented": "invented",
    "discovered": "discovered", "proposed": "proposed", "introduced": "introduced",
    "developed": "developed", "founded": "founded", "formulated": "formulated",
}  # fmt: skip
# what lies in one country; rivers, ranges and regions cross borders
PLACES = """city|town|mountain|lake|volcano|museum|university|building|palace|temple|island|stadium|cathedral|bridge|
waterfall|dam|site|castle|church|mosque|fortress|monument|airport|state|province|port|park|tower|square|complex|house|
library|company|bank|newspaper|party|team|club|district|prefecture|municipality|tomb|statue|mausoleum|ruins|citadel|
reservoir|settlement|metropolis|capital|autonomous community|academy|festival|market|street|neighborhood|observatory|
hospital|gallery|cemetery|theatre|theater|zoo|garden|monastery|shrine|basilica|pagoda|fort|wall"""
PLACES = PLACES.replace("\n", "")


class Corpus:
    """Passages by title."""

    def __init__(self, lines):
        self.text = {}
        for line in lines:
            row = json.loads(line)
            self.text[row["title"]] = row["text"]
        self.titles = set(self.text)

    def named(self, text):
        """The longest title that `text` starts with, a `the` skipped; none when it starts with no title."""
        text = re.sub(r"^the ", "", text)
        words = re.findall(r"[^ ]+", text)[:7]
        for count in range(len(words), 0, -1):
            name = " ".join(words[:count])
            for cut in (name, name.rstrip(".,;:)")):
                if cut in self.titles and cut[:1].isupper() and len(cut) > 2:
                    # a longer name that has no passage is not the shorter one that has
                    follows = words[count] if cut == name and count < len(words) else ""
                    return None if follows[:1].isupper() else cut
        return None

    def first(self, title):
        """The first sentence, roughly."""
        return re.split(r"(?<=[a-z)])\. (?=[A-Z])", self.text[title])[0]


def capitals(corpus):
    """Country or region -> (its capital, the passage that says so)."""
    found = {}
    for title, text in corpus.text.items():
        for match in re.finditer(r"is the (?:\w+ )?capital(?: city)?(?:,? and (?:the )?[a-z -]+ (?:city|municipality))? of ", text[:300]):
            of = corpus.named(text[match.end() :])
            if of and of != title:
                found.setdefault(of, {}).setdefault(title, title)
        match = re.search(r"[Ii]ts capital(?:,? and [a-z -]+ city| city)? is ", text)
        if match:
            city = corpus.named(text[match.end() :])
            if city and city != title:
                found.setdefault(title, {})[city] = title
    # two passages that disagree make no question
    return {of: next(iter(cities.items())) for of, cities in found.items() if len(cities) == 1}


def nationality(corpus, person):
    if not re.search(r"\b(?:he|she|his|her|him)\b", corpus.text[person], re.IGNORECASE):
        return None  # a company or a people
    match = re.search(r"\b(?:was|is) an? (?:[a-z-]+ )*([A-Z][a-z]+)\b", corpus.first(person))
    return match.group(1) if match and match.group(1) in NATIONS else None


def region(corpus, country):
    pattern = (
        r"(?:country|state|nation|republic|kingdom|microstate)(?:(?! in | on )[^.])*? (?:in|on) (?:the )?((?:[A-Z][a-z]+ )*(?:region of )?"
        r"(?:Africa|Asia|Europe|America|Caribbean|Oceania|Balkans|Maghreb|Caucasus|Polynesia|Melanesia|Micronesia|Pacific Ocean|Middle East|Levant))\b"
    )
    match = re.search(pattern, corpus.first(country))
    return match.group(1).split("region of ")[-1] if match else None


def founded(corpus, title):
    years = set(re.findall(r"\b(?:founded|established|formed|incorporated|chartered)(?: as [^.,]*)? in (?:[A-Z][a-z]+ )?(\d{4})\b", corpus.text[title]))
    return years.pop() if len(years) == 1 else None


def makers(corpus):
    """(work, verb, maker) where the work's passage says `VERB by MAKER` and the maker has a passage."""
    verbs = "|".join(MADE)
    pattern = re.compile(rf"\b({verbs}) (?:and [a-z]+ )?by (?:the )?(?:[A-Z]?[a-z-]+ ){{0,5}}?(?=[A-Z])")
    for work, text in corpus.text.items():
        if re.search(r"\b(?:he|she)\b", text, re.IGNORECASE) and re.search(r"\bborn\b|\bwas an? ", corpus.first(work)):
            continue  # a person, whose passage speaks of several works
        seen = set()
        for match in pattern.finditer(text[:400]):
            maker = corpus.named(text[match.end() :])
            if maker and maker != work and match.group(1) not in seen:
                seen.add(match.group(1))
                yield work, match.group(1), maker


def birthplaces(corpus):
    for person, text in corpus.text.items():
        if not re.match(r"[^.]*\b(?:was|is) an? ", text):
            continue
        match = re.search(r"\b(?:[Bb]orn|was born|raised)(?: and raised| into [^.]*?)? in (?:the )?(?=[A-Z])", text)
        if match:
            place = corpus.named(text[match.end() :])
            if place and place != person:
                yield person, place


def is_country(corpus, title):
    """Whether a passage says of its title that it is a country, in the present."""
    return bool(re.search(r"\bis an? (?:[a-z-]+ )*(?:country|republic|kingdom|nation|microstate|sovereign state)\b|\bis a (?:country|state)\b", corpus.first(title))) or bool(
        re.search(r"\bis (?:an?|the) [^.]{0,60}\bcountry\b", corpus.first(title))
    )


def countries(corpus, capital):
    """Place -> the one country with a known capital in which its first sentence says it lies."""
    head = re.compile(
        rf"^[^.]{{0,140}}? (?:is|are) (?:an?|the|one of the) (?:[\w'-]+ ){{0,6}}?(?:{PLACES})s?\b([^.]{{0,120}})"
    )
    for place in corpus.text:
        first = corpus.first(place)
        match = head.match(first)
        if place in capital or not match or re.search(r"\b(?:was|were|he|she|his|her|born)\b", match.group(0)):
            continue
        rest = match.group(1)
        # what only touches a country, or lies in waters named after one, does not lie in it
        if re.search(r"\b(?:Gulf|Sea|Bay|Strait|Ocean|border|borders|between|shared|and its)\b", rest):
            continue
        named = set()
        for found in re.finditer(r"(?:\b(?:in|of) |, )(?=the [A-Z]|[A-Z])", rest):
            name = corpus.named(rest[found.end() :])
            if name in capital and is_country(corpus, name):
                named.add(name)
                if re.match(r"(?:the )?" + re.escape(name) + r",? (?:and|or) (?:the )?[A-Z]", rest[found.end() :]):
                    named.add("another")  # it lies in two
        if len(named) == 1:
            yield place, named.pop()


def pick(question, wordings):
    """One of several wordings, always the same for the same names."""
    place = int.from_bytes(hashlib.sha256("\0".join(question).encode()).digest()[:4], "big")
    return wordings[place % len(wordings)].format(*question)


def make(corpus):
    """All questions: kind, bridge, question, answers, evidence."""
    capital = capitals(corpus)
    for place, country in countries(corpus, capital):
        city, said = capital[country]
        if city not in place and place not in city:
            wordings = ["What is the capital of the country in which {0} lies?", "Which city is the capital of the country where {0} is?"]
            yield "capital", country, pick([place], wordings), [city], [place, said]
    for country, (city, said) in capital.items():
        where = region(corpus, country)
        if where and said != country and is_country(corpus, country):
            wordings = ["In which part of the world lies the country whose capital is {0}?", "{0} is the capital of a country in which part of the world?"]
            yield "region", country, pick([city], wordings), [where], [city, country]
    for work, verb, maker in makers(corpus):
        nation = nationality(corpus, maker)
        if nation:
            wordings = ["What nationality was the person who {1} {0}?", "Of what nationality was whoever {1} {0}?"]
            yield "nationality", maker, pick([work, MADE[verb]], wordings), [nation], [work, maker]
        year = founded(corpus, maker)
        if year:
            yield "date", maker, pick([work, MADE[verb]], ["In what year was the organisation that {1} {0} founded?"]), [year], [work, maker]
    for person, place in birthplaces(corpus):
        if place in capital and is_country(corpus, place):
            city, said = capital[place]
            wordings = ["What is the capital of the country where {0} was born?", "{0} was born in a country with which capital?"]
            yield "birthplace", place, pick([person], wordings), [city], [person, said]
        country = [of for of, (city, _) in capital.items() if city == place]
        if len(country) == 1:
            yield "birthplace", place, pick([person], ["{0} was born in the capital of which country or region?"]), country, [person, capital[country[0]][1]]
    for title, text in corpus.text.items():
        for match in re.finditer(r"\b(?:headquartered|based|located) in (?:the )?(?=[A-Z])", corpus.first(title)):
            place = corpus.named(text[match.end() :])
            country = [of for of, (city, _) in capital.items() if city == place]
            if place and place != title and len(country) == 1:
                yield "seat", place, pick([title], ["{0} has its seat in the capital of which country or region?"]), country, [title, capital[country[0]][1]]


def spoken(answer):
    """An answer as people say it: titles carry a country or a kind to be told apart."""
    plain = re.sub(r" \(.*\)$|, .*$", "", answer)
    return [answer] if plain == answer else [answer, plain]


def split_of(title):
    place = int.from_bytes(hashlib.sha256(f"hop\0{title}".encode()).digest()[:4], "big") % 100
    for name, percent in SPLITS:
        if place < percent:
            return name
        place -= percent
    raise AssertionError("the percents are a hundred")


def rows(corpus):
    """Split -> its lines, each question text once, in the order of their hash."""
    split = {name: {} for name, _ in SPLITS}
    taken = set()
    for kind, bridge, question, answers, evidence in make(corpus):
        texts = [corpus.text[title] for title in evidence]
        fair = (
            evidence[0] != evidence[1]
            and question not in taken
            # the question gives neither answer nor bridge away, and the second passage does say the answer
            and not any(answer.lower() in question.lower() for answer in answers)
            and bridge.lower() not in question.lower()
            and any(answer in texts[1] or answer in evidence[1] for answer in answers)
            # one passage alone is not enough
            and not any(re.search(rf"\b{re.escape(answer)}\b", texts[0]) for answer in answers)
        )
        if fair:
            taken.add(question)
            said = [form for answer in answers for form in spoken(answer)]
            split[split_of(evidence[1])][question] = {"kind": kind, "answers": said, "evidence": evidence}
    for name, questions in split.items():
        ordered = sorted(questions, key=lambda question: hashlib.sha256(question.encode()).hexdigest())
        yield name, [
            {"id": f"multihop-{name}-{place}", "question": question, **questions[question]}
            for place, question in enumerate(ordered)
        ]


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
        print(f"{target}  {len(questions)} questions {kinds}  sha256 {hashlib.sha256(text).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1:])
