"""Rivers, lakes and seas: where they flow, what they are part of, how long, large and deep they are; heights of land."""

import re

from .corpus import NAMES, Fact, Link, number
from .places import sort_of

FLOWS = rf"\b(?:empties|flows|drains|discharges|emptying|flowing|draining|discharging)(?: [a-z]+)* into (?:the )?({NAMES})"
TRIBUTARY = rf"\bis (?:a|the|one of the) (?:[a-z-]+ )*tributary of the ({NAMES})"
PART = rf"\b(?:is|are) (?:an?|the) (?:[a-z-]+,? )*(?:marginal sea|arm|inlet|part|branch|sea|gulf|bay|extension) of the ({NAMES})"
FIGURE = r"(\d[\d,.]*)"


def one(pattern, text, follows=r"(?![\w’'-]| [A-Z]| and [A-Z]| or )"):
    """What a pattern finds, where it finds one thing."""
    found = set(re.findall(pattern + follows, text))
    return found.pop().rstrip(".,") if len(found) == 1 else None


def links(corpus):
    for title in corpus.text:
        spoken = corpus.spoken(title)
        if not spoken or sort_of(corpus, title) not in ("river", "lake", "sea", "gulf"):
            continue
        text = corpus.head(title)
        for name, pattern, phrase in (
            ("mouth", FLOWS, f"the body of water into which {spoken} flows"),
            ("tributary", TRIBUTARY, f"the river of which {spoken} is a tributary"),
            ("part", PART, f"the larger body of water of which {spoken} is part"),
        ):
            found = one(pattern, text)
            other = found and corpus.named("the " + found)
            if other and other != title:
                yield Link(name, title, other, phrase)


def facts(corpus):
    for title in corpus.text:
        sort, text = sort_of(corpus, title), corpus.head(title)
        if sort not in (
            "river",
            "lake",
            "sea",
            "gulf",
            "mountain range",
            "desert",
            "peninsula",
            "island",
            "archipelago",
            "plateau",
            "country",
            "state",
            "province",
        ) and not re.search(r" (?:River|Sea|Ocean|Gulf)$", title):
            continue
        if sort == "river":
            length = one(rf"{FIGURE} (?:km|kilomet(?:er|re)s)(?: \([^)]*\))?(?:,)? (?:long|in length)(?=[,.;)]| and|$)", text, "") or one(
                rf"\blength of (?:about |around |approximately |over |some )?{FIGURE} (?:km|kilomet(?:er|re)s)", text, ""
            )
            if length:
                yield Fact("length", title, ("How many kilometres long is {0}?", "In kilometres, what is the length of {0}?"), number(length))
            mouth = one(FLOWS, text)
            if mouth:
                yield Fact("mouth", title, ("Into which body of water does {0} flow?", "Into what does {0} empty?"), (mouth,))
            source = one(rf"\b(?:rises|originates|originating|rising|begins) (?:in|from|at|on) (?:the )?({NAMES})", text)
            if source:
                yield Fact("source", title, ("Where does {0} rise?", "In what place does {0} have its source?"), (source,))
        part = one(PART, text) if sort in ("sea", "gulf", "lake") or re.search(r" (?:Sea|Ocean|Gulf)$|^Gulf ", title) else None
        if part and re.search(r"\b(?:Sea|Ocean|Gulf)$", part):
            yield Fact("part of", title, ("Of which larger body of water is {0} part?",), (part, re.sub(r"^(?:North|South|East|West)(?:ern)? ", "", part)))
        depth = one(
            rf"\b(?:maximum|greatest|deepest) (?:known )?(?:depth|point)(?: of| is| at)* (?:about |around |approximately )?{FIGURE} (?:m|met(?:er|re)s)\b",
            text,
            "",
        )
        if depth:
            yield Fact("depth", title, ("How many metres deep is {0} at most?",), number(depth))
        top = one(rf"\b[Hh]ighest (?:peak|mountain|point|summit)(?: in the range| of the range)?(?: is|,) ({NAMES})", text) or one(
            rf"({NAMES})(?:, | is )(?:the|its) highest (?:peak|mountain|point|summit)\b", text, ""
        )
        if top:
            yield Fact("highest point", title, ("What is the highest point of {0}?",), (top,))
        if sort in ("lake", "sea", "gulf", "island", "desert", "archipelago", "peninsula"):
            area = one(rf"{FIGURE} (?:square kilomet(?:er|re)s|km2|sq km)\b", text, "")
            if area and "million" not in text and sort not in ("island", "archipelago", "peninsula", "desert"):
                yield Fact("area", title, ("In square kilometres, what is the area of {0}?", "How many square kilometres are covered by {0}?"), number(area))
