"""Languages and the families that they are of."""

import re

from .corpus import NAME, Fact, Link, number


def family(corpus, title):
    """The family that the first sentence calls so, or the one group that it names."""
    first = corpus.first(title)
    match = re.search(rf"\b({NAME}(?:–{NAME})?) (?:language )?family\b", first)
    if match and f"{match.group(1)} languages" in corpus.titles:
        return f"{match.group(1)} languages", "language family"
    found = {match.group(1) for match in re.finditer(rf"\b((?:{NAME}[ –-])?{NAME}) (?:languages?|branch|subfamily|group|subgroup)\b", first)} - {
        title.split()[0]
    }
    if len(found) == 1 and (name := f"{found.pop()} languages") in corpus.titles:
        return name, "group of languages"
    return None, None


def links(corpus):
    for title in corpus.text:
        if title.endswith(" languages") or not (
            title.endswith(" language") or re.search(r"\b(?:is|are) (?:an?|the) (?:[\w–-]+ ){0,4}language\b", corpus.first(title))
        ):
            continue
        name, what = family(corpus, title)
        if name:
            yield Link("language", title, name, f"the {what} of which {'the ' if title.endswith(' language') else ''}{corpus.spoken(title)} is a member")


def facts(corpus):
    for title in corpus.text:
        if not title.endswith(" languages"):
            continue
        head = corpus.head(title)
        match = re.search(
            r"\b(?:branch|subfamily|subgroup|group|family) (?:of languages )?(?:of|within|in) the (?:larger |wider )?([A-Z][\w–-]+(?: "
            r"[A-Z][\w–-]+)?)(?: language family| languages?| family)",
            head,
        )
        if match:
            yield Fact(
                "larger family",
                title,
                ("Of which larger language family is {0} a branch?", "To which larger language family does {0} belong?"),
                (match.group(1), f"{match.group(1)} languages"),
            )
        for what, pattern in (
            ("speakers", r"\b([\d.,]+ (?:million|billion)) (?:native )?(?:people|speakers)"),
            ("languages", r"\b(\d[\d,]*) (?:living |known |distinct |different |individual )?languages\b"),
        ):
            found = set(re.findall(pattern, head))
            if len(found) == 1:
                asks = ("How many speakers are there of {0}?",) if what == "speakers" else ("How many languages are there in {0}?",)
                yield Fact(what, title, asks, number(found.pop()))
