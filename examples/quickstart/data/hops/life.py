"""Living things: which family, order, class or phylum they are of, and what passages say about those."""

import functools
import re

from .corpus import CLAUSE, Fact, Link, bare, number

RANKS = ("genus", "family", "order", "class", "phylum")
FIT = r"[a-zA-Z'’, -]*"
NUMBER = r"[\d][\d,]*(?: ?[–-] ?[\d][\d,]*)?"


def creature(corpus, title):
    """A living thing as one speaks of it: `the lion`, `squirrels`, `Taraxacum`."""
    name, text = bare(title), corpus.text[title]
    lower = name[:1].lower() + name[1:]
    lower = lower if {lower.split()[0], lower.split()[0] + "s"} & corpus.words else name
    if re.match(rf"(?:An?|The) {re.escape(name)}\b(?!,? are\b)", text, re.IGNORECASE):
        return f"the {lower}"
    plural = re.match(rf"(?:The )?({re.escape(name)}(?:s|es)?)\b[^.]{{0,80}}? are\b", text, re.IGNORECASE)
    if plural:
        return lower + plural.group(1)[len(name) :]
    return f"the {lower}" if lower != name and re.search(rf"\b[Tt]he {re.escape(lower)}\b", text) else lower


def placed(corpus, title):
    """Rank -> its name, of the group in which the first sentences place this living thing; own rank first."""
    sentences = corpus.sentences(title)
    said = sentences[0]
    for sentence in sentences[1:3]:
        if re.match(r"(?:It|They|The (?:genus|family|order|species))\b", sentence) or sentence.startswith(bare(title)):
            said += ". " + sentence
    own = re.search(rf"\b(?:is|are) (?:an?|the|one of the) (?:(?!(?:{CLAUSE})\b)[\w-]+ ){{0,5}}?({'|'.join(RANKS)})\b", sentences[0])
    own = RANKS.index(own.group(1)) if own else -1
    found = {}
    for rank in RANKS[max(own, 0) :]:
        names = set()
        pattern = rf"(?<!sub)(?<!super)(?<!infra)\b{rank}\b(?: of (?:[a-z-]+ ){{1,4}}?| ?\(|, (?:the )?|,? called | )([A-Z][a-z]+)\b(?! family)"
        for match in re.finditer(pattern, said):
            before = said[: match.start()]
            if re.search(
                r"\b(?:not|unlike|including|includes|related to|relatives?|excluding|except|formerly|from the name|named|other|type)\b[^,;.]*$", before
            ):
                continue
            names.add(match.group(1))
        if len(names) == 1:
            found[rank] = names.pop()
    return own, found


@functools.cache
def groups(corpus):
    """(rank, name of a group) -> the passage about it: its title, or the first sentence says it is that group."""
    found = {}
    for title in corpus.text:
        match = re.search(
            r"\b(?:is|are|constitut\w+|mak\w+ up|form\w*|compris\w+) (?:an? |the )?(?:[\w-]+ ){0,4}?(" + "|".join(RANKS) + r")\b", corpus.first(title)
        )
        if match and re.fullmatch(r"[A-Z][a-z]+", bare(title)) and bare(title).lower() not in corpus.words:
            found[match.group(1), bare(title)] = title
    for title in corpus.text:
        # `Cuckoos are birds that make up the family Cuculidae`
        match = re.search(
            r"\b(?:constitut\w+|compos\w+|compris\w+|form\w*|mak\w+ up|are (?:an? )?(?:[a-z-]+ )*family,) (?:the )?(?:[a-z-]+ )*?(?:("
            + "|".join(RANKS)
            + r") ?\(?)?([A-Z][a-z]+)\b",
            corpus.first(title),
        )
        if match and (match.group(1) or "family," in match.group(0)):
            found.setdefault((match.group(1) or "family", match.group(2)), title)
    return found


def links(corpus):
    for title in corpus.text:
        if (
            not re.search(rf"\b(?:{'|'.join(RANKS)})\b", corpus.head(title))
            or corpus.person(title)
            and not re.search("species|genus|family", corpus.first(title))
        ):
            continue
        own, found = placed(corpus, title)
        for rank, name in found.items():
            bridge = groups(corpus).get((rank, name))
            if bridge and bridge != title and RANKS.index(rank) > own:
                what = "genus" if rank == "genus" else f"biological {rank}"
                yield Link(rank, title, bridge, f"the {what} of {creature(corpus, title)}")


def facts(corpus):
    for (rank, _), title in groups(corpus).items():
        own, found = placed(corpus, title)
        for higher, name in found.items():
            if RANKS.index(higher) > RANKS.index(rank):
                yield Fact(higher, title, (f"In which {higher} is {{0}} placed?", f"To which {higher} does {{0}} belong?"), (name,))
        head = corpus.head(title)
        for what in ("species", "genera"):
            counts = re.findall(
                rf"(?<! to )(?<! and )(?<! or )\b({NUMBER}) (?:(?:known|extant|accepted|living|described|recogni[sz]ed|different|named|valid) )*{what}\b", head
            )
            if len(counts) == 1 and len(re.findall(rf"\b{what}\b", head)) == 1:
                count = counts[0].replace(" ", "")
                yield Fact(f"{what} count", title, (f"How many {what} are there in {{0}}?", f"How many {what} does {{0}} have?"), number(count))
        common = re.match(
            rf"{title},? (?:(?:commonly|also|sometimes) )*(?:known as |called |or |commonly )?(?:the |simply the )?((?:[a-z-]+,? )+?family|"
            rf"[a-z]+ family)\b(?= or|,| is)",
            head,
        )
        if common and common.group(1).count(",") == 0 and " or " not in common.group(1) and " and " not in common.group(1):
            yield Fact(
                "common name",
                title,
                ("What is {0} called in plain English?", "By which common English name is {0} known?"),
                (common.group(1), common.group(1).removesuffix(" family")),
            )
        native = re.search(
            r"\b(?:native|endemic|indigenous) (?:only )?to (?:the )?([A-Z]\w+(?: [A-Z]\w+)*)(?=[.;]|, (?:with|where|and (?:is|are))| where)", head
        )
        if native:
            yield Fact("native to", title, ("Where is {0} native?",), (native.group(1),))
