"""Who made a work, found a thing or lent a name; and what passages say about organisations and works."""

import re

from .corpus import NAMES, Fact, Link, bare
from .nations import COUNTRIES, OTHERS

MADE = {
    "directed": "directed", "written": "wrote", "composed": "composed", "painted": "painted", "authored": "wrote",
    "created": "created", "designed": "designed", "sculpted": "sculpted", "invented": "invented", "compiled": "compiled",
    "discovered": "discovered", "proposed": "proposed", "introduced": "introduced", "coined": "coined",
    "developed": "developed", "founded": "founded", "formulated": "formulated", "conceived": "conceived",
    "established": "established", "commissioned": "commissioned", "led": "led", "conquered": "conquered",
    "patented": "patented", "described": "described", "popularized": "popularized", "initiated": "initiated", "launched": "launched",
    "translated": "translated", "ordered": "ordered", "defeated": "defeated", "isolated": "isolated", "pioneered": "pioneered",
    "owned": "owns", "manufactured": "makes",
}  # fmt: skip
KINDS = {
    "novel|play|poem|book|treatise|novella|short story|tragedy|comedy|epic poem|autobiography|essay|dialogue|memoir|trilogy|fairy tale|verse novel": "the author of",
    "opera|symphony|ballet|concerto|oratorio|cantata|suite|song cycle|requiem|operas": "the composer of",
    "painting|fresco|oil painting|mural|mural painting|woodblock print|triptych": "the artist who made",
    "album|studio album|song|single": "the act that recorded",
    "sculpture|statue": "the sculptor of",
}
ORGANISATION = (
    r"company|corporation|organi[sz]ation|university|conglomerate|manufacturer|band|club|agency|association|firm|studio|museum|"
    r"institution|network|newspaper|party"
)
ADJECTIVES = "|".join([*COUNTRIES, *OTHERS, "Renaissance", "Norwegian", "Baroque", "Austro", "Persian", "Dutch", "Bohemian", "Muslim", "Jewish"])
# the maker of what the work was made from is not its maker
OTHER = (
    r"\b(?:based|adapted|adaptation|from an?|inspired|score|music|screenplay|libretto|lyrics|after|text|words|cover\w*|version|"
    r"film adaptation|with|starring|and)\b[^,;]*$"
)


def maker(corpus, text):
    """The one title that `text` starts with, what the person is before it; none when a second name follows."""
    text = text.removeprefix("the ")
    for _ in range(8):
        name = corpus.named("the " + text) if text[:1].isupper() else None
        if name:
            follows = text[len(name) :]
            return None if re.match(r",? (?:and|or|&) (?:the |his [a-z]+ |her [a-z]+ )?[A-Z]|, [A-Z][^,]*,? and [A-Z]", follows) else name
        word = re.match(rf"[a-z][a-z'’-]*,? |(?:{ADJECTIVES})(?:[ -]|-[a-z]+ )|(?:Sir|King|Emperor|Queen|President|Saint|High|Early) ", text)
        if not word:
            return None
        text = text[word.end() :]
    return None


def links(corpus):
    verbs = "|".join(MADE)
    made = re.compile(rf"\b({verbs}) (?:and [a-z]+ )?(?:in \d{{4}} )?by ")
    named = re.compile(r"\bnamed (?:after|for|in hono[u]?r of) ")
    for work in corpus.text:
        if corpus.person(work):
            continue  # whose passage speaks of several works
        first, spoken = corpus.first(work), corpus.spoken(work)
        if not spoken:
            continue
        lower = bare(work)[:1].lower() + bare(work)[1:]
        if spoken == work and lower.split()[0] in corpus.words and re.search(rf"\b{re.escape(lower)}\b", corpus.text[work]):
            spoken = f"the {lower}" if f"the {lower}" in corpus.text[work] or f"The {lower}" in corpus.text[work] else lower
        # the second sentence, where it goes on about the work
        it = re.match(rf"(?:It|They|The \w+) (?:was|were|is|are) (?:first |originally |jointly )?(?={'|'.join(MADE)})", (corpus.sentences(work) + [""])[1])
        said = f"{first}. {corpus.sentences(work)[1]}" if it else first
        for match in made.finditer(said):
            verb = match.group(1)
            if re.search(rf"\b{match.group(1)}\b", said[: match.start()]):
                continue  # the same said of another thing
            # something named just before is what was made, not the work
            if (
                re.search(r"(?<!^)\b(?!Sir )[A-Z]\w+,? $", said[len(bare(work)) + 5 : match.start()])
                or re.search(OTHER, said[: match.start()])
                and not re.search(r"\band $", said[: match.start()])
            ):
                continue
            who = maker(corpus, said[match.end() :])
            # a maker that is no person is one of these; a people or a country is not asked for
            if who and who != work and (corpus.person(who) or re.search(rf"\b(?:{ORGANISATION})\b", corpus.first(who))):
                yield Link("maker", work, who, f"{'the person who' if corpus.person(who) else 'the organisation that'} {MADE[verb]} {spoken}")
        for kinds, phrase in KINDS.items():
            match = re.search(rf"\b(?:is|was) (?:an?|the|one of [^.,]*?) (?:[\w'’-]+,? ){{0,7}}?(?:{kinds})(?: (?:in|of|on) [\w ]+)? by ", first)
            if match:
                who = maker(corpus, first[match.end() :])
                if who and who != work and (corpus.person(who) or "act" in phrase and "band" in corpus.first(who)):
                    yield Link("maker", work, who, f"{phrase} {spoken}")
        match = named.search(corpus.head(work))
        if match:
            who = maker(corpus, corpus.head(work)[match.end() :])
            if who and who != work and corpus.person(who):
                yield Link("namesake", work, who, f"the person after whom {spoken} {'are' if corpus.plural(work) else 'is'} named")


def facts(corpus):
    for title in corpus.text:
        if corpus.person(title):
            continue
        head, first = corpus.head(title), corpus.first(title)
        if re.search(rf"\b(?:{ORGANISATION})\b", first):
            years = set(
                re.findall(r"\b(?:founded|established|formed|incorporated|chartered)(?: as [^.,]*| by [^.,]*)? in (?:[A-Z][a-z]+ )?(\d{4})\b", head)
            ) | set(re.findall(r"\b(?:[Ff]ounded|[Ee]stablished|[Ff]ormed) (?:on|in) (?:[A-Z]?\w+ )?(?:\d{1,2},? )?(?:[A-Z]\w+ )?(\d{4})\b", head))
            if len(years) == 1:
                yield Fact("founding year", title, ("In what year was {0} founded?", "When was {0} founded?"), (years.pop(),))
            seat = set(re.findall(rf"\b(?:headquartered|based) in ({NAMES})", head))
            if len(seat) == 1:
                yield Fact("seat", title, ("In which city is {0} based?", "Where is the seat of {0}?"), (seat.pop().rstrip(".,"),))
