"""Which country things that are no places are from: organisations, arts, dishes, events, ruins, birthplaces."""

import re

from .corpus import CLAUSE, Link, bare
from .life import creature
from .nations import COUNTRIES
from .places import sort_of

ORGANISATION = (
    "company|corporation|conglomerate|bank|newspaper|magazine|broadcaster|airline|manufacturer|firm|retailer|band|automaker|"
    "television network|rock band|football club|brand|agency|magazine"
)
# what comes from a country, as an adjective before it says
MADE = (
    "film|novel|dish|martial art|instrument|video game|game|game series|video game series|franchise|drink|beverage|breed|dance|"
    "garment|opera|television series|sitcom|soup|bread|cheese|poetry|theatre|dance-drama|comic|manga|poem|ballet|play|magazine|"
    "sport|weapon|sword|dessert|soap opera|media franchise|comedy|musical|epic|festival|wrestling"
)
EVENT = (
    "war|earthquake|massacre|revolution|famine|uprising|conflict|rebellion|genocide|disaster|accident|protests|demonstrations|"
    "movement|campaign|incident|period|era|reform|reforms|coup"
)
BECAME = (
    r"\b(?:originat(?:ed|es|ing)|developed|invented|emerged|evolved|arose|began|created|first made)(?: [a-z]+| [0-9]+(?:th|st|"
    r"rd)?| century| [A-Z][a-z]+ period)*? in (?:(?:north|south|east|west)\w*ern |central |the )*(?=[A-Z])"
)


def country(corpus, text):
    """The country that `text` starts with, or with a place in it; none where another follows."""
    name = corpus.named(text)
    if name is None or sort_of(corpus, name) != "country":
        match = re.match(r"(?:the )?[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*, (?:[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)*, )?(?=[A-Z]|the [A-Z])", text)
        if not match:
            return None
        text = text[match.end() :]
        name = corpus.named(text)
    if name is None or sort_of(corpus, name) != "country":
        return None
    follows = text.removeprefix("the ")[len(name.removeprefix("The ")) :]
    return None if re.match(r",? (?:and|or|to|/) |, (?:the )?[A-Z]|['’]", follows) else name


def links(corpus):
    for title in corpus.text:
        spoken, first = corpus.spoken(title), corpus.first(title)
        if not spoken:
            continue
        plural = corpus.plural(title)
        if corpus.person(title):
            match = re.search(r"\b(?:born|was born|raised)(?: and raised| into [^.]*?)? in (?=the [A-Z]|[A-Z])", corpus.head(title))
            where = match and country(corpus, corpus.head(title)[match.end() :])
            if where:
                yield Link("birthplace", title, where, f"the country in which {spoken} was born")
            continue
        match = re.match(
            rf"[^.]*? (?:is|are|was|were) an? (?:(?!(?:{CLAUSE}|and)\b)[a-z-]+ )*((?:(?:New|South|North|Sri) )?[A-Z][a-z]+) (?:(?!(?:{CLAUSE})\b)[a-z-]+ "
            rf")*(?:{ORGANISATION})\b",
            first,
        )
        where = match and COUNTRIES.get(match.group(1))
        if where in corpus.titles and not re.search(r"[a-z]-[A-Z]|-owned", match.group(0)):
            yield Link("home", title, where, f"the home country of {spoken}")
        match = re.match(
            rf"[^.]*? (?:is|are|was|were) an? (?:(?!(?:{CLAUSE}|and)\b)[\w-]+ )*?((?:(?:New|South|North|Sri) )?[A-Z][a-z]+) (?:(?!(?:{CLAUSE}|"
            rf"and)\b)[a-z-]+,? )*?(?:{MADE})s?(?=[,.;]| (?:{CLAUSE}|and|or|is|about|set|made|between|consisting|typically|as|written|"
            rf"\w+ed)\b|$)",
            first,
        )
        where = match and COUNTRIES.get(match.group(1))
        if (
            where in corpus.titles
            and not re.search(r"[a-z]-[A-Z][a-z]+ |\b[Aa]ncient\b", match.group(0))
            and "ncient" not in first
            and not re.search(rf"\b(?:{'|'.join(COUNTRIES)}) (?:and|or|[A-Z])", match.group(0))
        ):
            lower = spoken if spoken != title else creature_case(corpus, title)
            yield Link("product", title, where, f"the country from which {lower} {'come' if plural else 'comes'}")
        match = re.search(r"\b(?:headquartered|based) in (?=[A-Z])", first)
        where = match and country(corpus, first[match.end() :])
        if where and re.search(rf"\b(?:{ORGANISATION}|organi[sz]ation|institution|union|association)\b", first):
            yield Link("home", title, where, f"the country in which {spoken} {'have their' if plural else 'has its'} headquarters")
        if sort_of(corpus, title):
            continue
        lower = spoken if spoken != title else creature_case(corpus, title)
        match = re.search(BECAME, first)
        where = match and country(corpus, first[match.end() :])
        if where and "pandemic" not in title:
            yield Link("origin", title, where, f"the country in which {lower} originated")
        match = re.match(
            rf"[^.]*? (?:was|were) (?:an?|the) (?:(?!(?:{CLAUSE}|and)\b)[\w'’-]+,? )*?(?:{EVENT})(?: of [a-z -]+)?(?:,? (?:that|which) "
            rf"(?:took place|occurred|happened|began|was fought))? in (?:(?:north|south|east|west)\w*ern |central |the )*(?=[A-Z])",
            first,
        )
        where = match and country(corpus, first[match.end() :])
        if where and all(word[:1].isupper() or word in ("of", "the", "in") or word[:1].isdigit() for word in title.split()):
            yield Link("event", title, where, f"the country in which {spoken} took place")
        match = re.search(r"\b(?:endemic|native|indigenous) (?:only )?to (?:(?:mainland|north|south|east|west)\w* |central |the )*(?=[A-Z])", first)
        where = match and country(corpus, first[match.end() :])
        if where and title == bare(title):
            living = creature(corpus, title)
            yield Link("native", title, where, f"the country to which {living} {'are' if plural or living.endswith('s') else 'is'} native")
        match = re.search(
            rf"\b(?:is|was) (?:an?|the) (?:(?!(?:{CLAUSE}|and)\b)[\w'’-]+,? )*?(?:city|town|site|settlement|capital|ruins?|village|temple|"
            rf"ziggurat|city-state)\b[^.]*? in (?:the )?(?:[a-z]+ )?(?:present-day|modern-day|modern|what is (?:now|today)|today's) (?:(?:north|"
            rf"south|east|west)\w*ern |central |the )*(?=[A-Z])",
            first,
        )
        where = match and country(corpus, first[match.end() :])
        if where:
            yield Link("ruins", title, where, f"the present-day country in which {spoken} lay")


def creature_case(corpus, title):
    """A common noun in lower case, a name as it is."""
    first = title.split()[0]
    return title[:1].lower() + title[1:] if first.lower() in corpus.words and title[1:].lower() == title[1:] else title


def facts(_):
    return ()
