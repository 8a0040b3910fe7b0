"""Where a place lies, and what passages say about countries, states, cities and islands."""

import functools
import re

from .corpus import CLAUSE, NAMES, Fact, Link, bare, number

# what lies somewhere; what crosses borders is told by the words after it
PLACES = """city|town|mountain|lake|volcano|museum|university|building|palace|temple|island|stadium|cathedral|bridge|
waterfall|dam|site|castle|church|mosque|fortress|monument|airport|state|province|port|park|tower|square|complex|house|
library|district|prefecture|municipality|tomb|statue|mausoleum|ruins|citadel|reservoir|settlement|metropolis|capital|
autonomous community|academy|market|street|neighborhood|observatory|hospital|gallery|cemetery|theatre|theater|zoo|garden|
monastery|shrine|basilica|pagoda|fort|wall|region|county|territory|peninsula|desert|river|archipelago|island group|valley|
canyon|plain|plateau|skyscraper|canal|cave|glacier|peak|beach|college|school|institute|center|centre|arch|bay|
opera house|railway station|waterfalls|islands|ruin|crater|hill|department|oblast|republic|federal subject|megacity|
conurbation|commune|borough|gate|amphitheatre|arena|concert hall|stupa|complex|forest|mine|pyramid|venue"""
PLACES = PLACES.replace("\n", "")
BUILT = """museum|university|building|palace|temple|stadium|cathedral|bridge|castle|church|mosque|fortress|monument|airport|
park|tower|square|complex|house|library|tomb|statue|mausoleum|citadel|academy|market|street|neighborhood|observatory|hospital|
gallery|cemetery|theatre|theater|zoo|garden|monastery|shrine|basilica|pagoda|fort|skyscraper|college|institute|opera house|
railway station|gate|amphitheatre|arena|concert hall|arch|venue|district|borough"""
BUILT = BUILT.replace("\n", "")
STATES = r"state|province|prefecture|county|oblast|canton|governorate|autonomous community|autonomous region|federal subject|territory"
ABOUT = r"(?:about|around|over|some|approximately|more than|nearly|roughly|almost|just over|just under|an estimated|c\.|circa)"


@functools.cache
def sort_of(corpus, title):
    """What a passage says its title is, among what others lie in; in the present."""
    first = corpus.first(title)
    if re.search(
        r"\b(?:de facto|disputed|unrecogni[sz]ed|partially recogni[sz]ed|breakaway|former|constituent|roughly|part of the United Kingdom|was)\b", first
    ):
        return None
    match = re.search(r" is (?:an?|the|one of the|[A-Z][\w]+['’]s) ([^.]*)", first)
    if not match or corpus.person(title):
        return None
    said = match.group(1)
    named = all(word[:1].isupper() or word in ("and", "of", "the") for word in bare(title).split())
    if (
        named
        and re.match(r"(?:[\w'’-]+,? (?:and )?){0,5}?(?:country|nation|microstate|sovereign state|city-state)\b", said)
        and not re.match(r"[^,.]*(?:town|city|province|region)\b[^,.]*country", said)
    ):
        return "country"
    found = re.match(
        rf"(?:(?!(?:{CLAUSE})\b)[\w'’-]+,? (?:and )?){{0,6}}?({STATES}|city|town|metropolis|capital|island|mountain range|mountain "
        rf"system|archipelago|peninsula|desert|plateau|river|lake|sea|gulf)\b",
        said,
    )
    if not found:
        return None
    return {"town": "city", "metropolis": "city", "capital": "city", "mountain system": "mountain range"}.get(found.group(1), found.group(1))


# after these words it is no longer said where a place lies
APART = (
    r"\b(?:(?:north|south|east|west)(?:-?east|-?west|ern)?(?:ern)? of|near|off|opposite|facing|after|than|behind|named|with|known|"
    r"where|which|that|from|through|overlooking|along|originat\w+|rising|rises|flowing|flows|source|and its|Gulf|Sea|Bay|Strait|"
    r"Ocean|located at|at the|and the (?:\w+[ -])?(?:most|second|third|largest|capital|seat))\b"
)
WITHIN = re.compile(
    r"(?:\b(?:in|of|within) |, )(?:(?:far |central |upper |lower )?(?:north|south|east|west)(?:-?east|-?west)?(?:ern)?(?:most)? "
    r"|central |mainland |modern |(?:North|South|East|West)(?:ern|eastern|western) |Central |the )*"
    r"(?:(?:part|portion|half|corner|end|center|centre|heart) of )?(?:the )?(?:(?:[A-Z]\w+ )?(?:state|province|city|county|region|"
    r"island|department|prefecture) of )?(?=the [A-Z]|[A-Z])"
)


def lies(corpus):
    """(place, its noun, where it lies, what that is) where a first sentence says so and names one only."""
    head = re.compile(
        rf"^[^.]{{0,140}}? (?:is|are) (?:an?|the|one of the|[A-Z]\w+(?: [A-Z]\w+)?['’]s?) (?:(?!(?:{CLAUSE})\b)[\w'’-]+,? ){{0,9}}?({PLACES})s?\b([^.]{{0,200}})"
    )
    second = re.compile(
        r"(?:It|The (?:city|town|museum|park|lake|mountain|island|site|palace|temple|building|university|volcano)) (?:is|lies|stands)(?: "
        r"located| situated)?((?: in| on) [^.]{0,160})"
    )
    sorts = {title: sort for title in corpus.text if (sort := sort_of(corpus, title))}
    for place in corpus.text:
        sentences = corpus.sentences(place)
        match = head.match(sentences[0])
        if (
            not match
            or sorts.get(place) == "country"
            or re.search(
                r"\b(?:was|were|he|she|his|her|born|fictional|mythical|de facto|breakaway|unincorporated|overseas|dependency|self-governing|"
                r"autonomous territory|predominantly|mostly|mainly|primarily|largely|partly)\b|occupied",
                sentences[0],
            )
        ):
            continue
        named = {}
        owner = re.search(r" (?:is|are) (?=[A-Z]\w+(?: [A-Z]\w+)?['’])", sentences[0][: match.start(1)])
        if owner:
            whose = re.match(r"(.*?)['’]", sentences[0][owner.end() :]).group(1)
            if sorts.get(whose) == "country":
                named["country"] = {whose}
        rests = [match.group(2)] + [found.group(1) for sentence in sentences[1:2] if (found := second.match(sentence))]
        for rest in rests:
            rest = re.split(APART, rest)[0]
            # what only touches a country does not lie in it
            if named or re.search(
                r"\b(?:border|borders|bordering|bordered|boundary|between|shared|disputed|claimed|spans|spanning|across|separat\w+|[Ee]mbassy|Holy See)\b", rest
            ):
                continue
            for found in WITHIN.finditer(rest):
                name = corpus.named(rest[found.end() :])
                # `the U.S. state of Georgia` is no country
                other = re.search(rf"\b(?:{STATES})\b", found.group(0)) and name in sorts and not re.fullmatch(STATES, sorts[name])
                if name in sorts and name != place and not other:
                    group = "state" if re.fullmatch(STATES, sorts[name]) else sorts[name]
                    named.setdefault(group, set()).add(name)
                    if re.match(r"(?:the )?" + re.escape(bare(name)) + r",? (?:and|or) (?:the |in |of |[a-z]+ )*[A-Z]", rest[found.end() :]):
                        named[group] |= {"another"}  # it lies in two
        for group, names in named.items():
            if len(names) == 1 and group != sorts.get(place):
                name = next(iter(names))
                yield place, match.group(1), name, sorts[name]


def links(corpus):
    for place, noun, where, sort in lies(corpus):
        spoken = corpus.spoken(place)
        if not spoken:
            continue
        lie = "lie" if corpus.plural(place) else "lies"
        if sort == "city":
            if re.fullmatch(BUILT, noun):
                yield Link("city", place, where, f"the city in which {spoken} {lie}")
        elif sort in ("island", "peninsula", "plateau"):
            yield Link(sort, place, where, f"the {sort} on which {spoken} {lie}")
        elif sort in ("river", "lake", "sea", "gulf"):
            continue  # nothing lies in those as in a country
        elif sort in ("mountain range", "archipelago", "desert"):
            yield Link(sort, place, where, f"the {sort} in which {spoken} {lie}")
        else:
            yield Link("country" if sort == "country" else "state", place, where, f"the {sort} in which {spoken} {lie}")
    yield from neighbours(corpus)
    yield from heads(corpus)


def facts(corpus):
    for title in corpus.text:
        sort = sort_of(corpus, title)
        if sort:
            yield from official(corpus, title)
            yield from former(corpus, title)
            if re.fullmatch(rf"country|{STATES}", sort):
                yield from capital(corpus, title)
            yield from population(corpus, title)
            yield from parts(corpus, title)
            yield from borders(corpus, title, sort)
        if sort == "country":
            yield from region(corpus, title)
        if sort and sort != "city":
            yield from area(corpus, title)
        if sort == "city":
            yield from river(corpus, title)
    for place, _, where, sort in lies(corpus):
        if sort == "country" or re.fullmatch(STATES, sort):
            yield Fact(
                f"in which {'country' if sort == 'country' else 'state'}",
                place,
                (f"In which {sort} is {{0}}?", f"In which {sort} does one find {{0}}?"),
                (where,) if bare(where) == where else (bare(where),),
            )


def former(corpus, title):
    match = re.search(rf"\b(?:formerly|historically|previously)(?: (?:known as|called|named))? (?:the )?({NAMES})(?=[,;)]| is )", corpus.first(title))
    if match and not re.search(r"\b(?:formerly|later|then)\b", corpus.first(title)[match.end() :]):
        yield Fact("former name", title, ("What was {0} formerly called?", "Under which former name was {0} known?"), (match.group(1),))


def official(corpus, title):
    match = re.match(rf"[^.]{{0,60}}?\bofficially(?: known as)? (?:the )?({NAMES})(?= ?[,;]| \([^)]*\)(?! of)| is )", corpus.head(title))
    if match and match.group(1) != title:
        yield Fact("official name", title, ("What is the official name of {0}?", "What is {0} officially called?"), (match.group(1),))


def region(corpus, country):
    pattern = (
        r"(?:country|state|nation|republic|kingdom|microstate)(?:(?! in | on )[^.])*? (?:in|on) (?:the )?((?:[A-Z][a-z]+ )*(?:region of )?"
        r"(?:Africa|Asia|Europe|America|Caribbean|Oceania|Balkans|Maghreb|Caucasus|Polynesia|Melanesia|Micronesia|Pacific Ocean|Middle East|Levant))\b(?! and| or)"
    )
    first = corpus.first(country)
    match = re.search(pattern, first)
    if match:
        wider = re.match(r" region of ((?:[A-Z][a-z]+ ?)+)", first[match.end() :])
        where = match.group(1).split("region of ")[-1]
        # West Africa is one part of Africa, and of the world Africa would be right too
        whole = re.fullmatch(r"(?:Mainland )?[A-Z][a-z]+ (Africa|Asia|Europe)", where)
        asked = whole.group(1) if whole else "the world"
        asks = (f"In which part of {asked} is {{0}}?", f"In which part of {asked} does one find {{0}}?")
        yield Fact("region", country, asks, (where, *([wider.group(1).strip()] if wider else []), where.removeprefix("Mainland ")))


def capital(corpus, title, head=None):
    head = head or corpus.head(title)
    found = set()
    for match in re.finditer(
        rf"(?:\b[Ii]ts|\b[Tt]he(?: country's)?|['’]s) capital(?:,? and (?:largest|most populous|biggest)(?: city)?| city)?(?: is|,)(?: the city of)? ({NAMES})",
        head,
    ):
        found.add(match.group(1))
    for match in re.finditer(
        rf"({NAMES}),? (?:is|being|as) (?:the country's|the state's|the province's|its|the) (?:national )?capital\b(?! of|[^.,]* of )", head
    ):
        found.add(match.group(1))
    for match in re.finditer(rf"({NAMES}), (?:its|the) capital\b(?! of)", head):
        found.add(match.group(1))
    found = {name.rstrip(".,") for name in found}
    if len(found) == 1:
        city = found.pop()
        yield Fact(
            "capital",
            title,
            ("What is the capital of {0}?", "Which city is the capital of {0}?"),
            (city, "Washington") if city.startswith("Washington, D") else (city,),
        )


def heads(corpus):
    """Links to the capital of a country, state or province, and to the river of a city."""
    for title in corpus.text:
        spoken = corpus.spoken(title)
        if spoken:
            for fact in capital(corpus, title, corpus.text[title]) if re.fullmatch(rf"country|{STATES}", sort_of(corpus, title) or "") else ():
                city = corpus.named(fact.answers[0])
                if city and city != title and sort_of(corpus, city) == "city":
                    yield Link("capital", title, city, f"the capital of {spoken}")
            for fact in river(corpus, title) if sort_of(corpus, title) == "city" else ():
                name = fact.answers[0]
                name = next((form for form in (name, name.removesuffix(" River"), f"{name} River") if corpus.named(form) == form), None)
                if name and sort_of(corpus, name) == "river":
                    yield Link("river", title, name, f"the river on which {spoken} lies")


def population(corpus, title):
    """As the passage gives it, where it gives one number of people and that is of the whole."""
    head = corpus.head(title)
    found = re.findall(
        rf"\b[Pp]opulation (?:is |was )?(?:of |stands at |exceeding )(?:{ABOUT} )?([\d][\d.,]*\d(?: (?:million|billion))?|\d(?: (?:million|"
        rf"billion)))\b(?![\d.,]*$|[.,]?\d)",
        head,
    )
    others = re.findall(r"\b\d[\d.,]*(?: million| billion)? (?:people|inhabitants|residents)\b", head)
    # not that of its capital
    if sort_of(corpus, title) != "city" and re.search(r"\b(?:capital|city)\b[^.]*\bpopulation\b", head):
        return
    if (
        len(found) == 1
        and not others
        and len(re.findall(r"\b[Pp]opulation\b", head)) == 1
        and not re.search(
            r"\b(?:metropolitan|metro|urban|agglomeration|municipal)\b[^.]*\bpopulation|\bpopulation\b[^.]*\b(?:metropolitan|metro|urban area|agglomeration)\b",
            head,
        )
    ):
        yield Fact("population", title, ("What is the population of {0}?", "How many people live in {0}?"), number(found[0]))


NUMBERS = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty".split()


def parts(corpus, title):
    """How many islands or provinces it is made of."""
    found = re.findall(
        rf"\b(?:consists of|consisting of|made up of|comprises|comprising|divided into|composed of|encompasses) (?:an archipelago "
        rf"of )?(?:{ABOUT} )?(?:the )?(\d[\d,]*|{'|'.join(NUMBERS)}) (provinces|states|islands|regions|counties|departments|districts|"
        rf"emirates|parishes|cantons)\b(?!,? (?:and|alongside|as well as) [^.]*islands| of )",
        corpus.head(title),
    )
    if len(found) == 1:
        count, what = found[0]
        yield Fact(
            "parts", title, (f"Of how many {what} does {{0}} consist?",), (*number(count), str(NUMBERS.index(count) + 2)) if count in NUMBERS else number(count)
        )


def area(corpus, title):
    head = corpus.head(title)
    found = re.findall(r"(\d[\d.,]*(?: million)?) (?:square kilomet(?:er|re)s|km2|sq km)\b", head)
    if (
        len(found) == 1
        and re.search(r"\b(?:area of|area|covers|covering|spans|spanning|comprising|measures|by area, at|At) [^.]*" + re.escape(found[0]), head)
        and not re.search(r"metropolitan|urban", head)
    ):
        yield Fact("area", title, ("In square kilometres, what is the area of {0}?", "How many square kilometres are covered by {0}?"), number(found[0]))


DIRECTION = r"(?:north-?(?:east|west)|south-?(?:east|west)|north|south|east|west)"
DIRECTIONS = rf"{DIRECTION}(?:,? (?:and|or) (?:the )?{DIRECTION}|, (?:the )?{DIRECTION}(?=,))*"
WATER = r"\b(?:Sea|Ocean|Gulf|Bay|Channel|Lake)\b"


@functools.cache
def sides(corpus, title):
    """Side -> what lies to it, where that is one thing and one thing only."""
    found = {}
    before = re.compile(rf"(?:to|on|in) the ({DIRECTIONS}) by (?:the )?({NAMES})(?=[,;.]| and (?:to|on|in) |$)")
    after = re.compile(rf",? ?(?:to|on|in) (?:the|its) ({DIRECTIONS})\b")
    for sentence in corpus.sentences(title):
        start = re.search(r"\b(?:bordered|borders|bounded|bordering|neighbou?rs|border with)\b", sentence)
        if not start or "maritime" in sentence[: start.end()]:
            continue
        # what is across the sea is no neighbour
        said = re.split(r",? (?:and )?(?:shares |has |with )?(?:a )?maritime ", sentence[start.end() :])[0]
        if re.search(rf"\b(?:to|on|in) the {DIRECTIONS} by\b", said):
            pairs = [(match.group(1), match.group(2)) for match in before.finditer(said)]
            # a side of which more is said than one name
            vague = re.findall(rf"\b(?:to|on|in) the ({DIRECTIONS}) by\b", said)
            pairs += [(where, "") for where in vague if where not in [pair[0] for pair in pairs]]
        else:
            pairs, place = [], 0
            for match in after.finditer(said):
                names = re.sub(r"^(?:[,;: ]|and |by |with |land borders? |the |states? of |provinces? of |countries of )*", "", said[place : match.start()])
                pairs.append((match.group(1), names))
                place = match.end()
        for where, name in pairs:
            for side in re.findall(DIRECTION, where):
                found.setdefault(side.replace("-", ""), set()).add(name)
    return {
        side: next(iter(names))
        for side, names in found.items()
        if len(names) == 1 and re.fullmatch(NAMES, next(iter(names))) and " and " not in next(iter(names))
    }


def borders(corpus, title, sort):
    for side, name in sides(corpus, title).items():
        other = corpus.named(name)
        if other and sort_of(corpus, other) == sort:
            # `United States of America` is the one of the shorter title
            name = bare(other) if bare(other) in name else name
            yield Fact("border", title, (f"Which neighbouring {sort} lies to the {side} of {{0}}?", f"To the {side}, which {sort} borders on {{0}}?"), (name,))
        elif re.search(WATER, name):
            yield Fact("border", title, (f"Which body of water lies to the {side} of {{0}}?",), (name,))


def neighbours(corpus):
    """Links to what lies next to a country, state or province."""
    for title in corpus.text:
        sort, spoken = sort_of(corpus, title), corpus.spoken(title)
        if not sort or not spoken or sort == "city":
            continue
        for side, name in sides(corpus, title).items():
            other = corpus.named(name)
            if other and sort_of(corpus, other) == sort and other != title:
                yield Link(
                    "neighbour",
                    title,
                    other,
                    f"the {side}ern neighbour of {spoken}" if sort == "country" else f"the {sort} that borders {spoken} to the {side}",
                )
            elif other and re.search(WATER, name):
                yield Link("water", title, other, f"the body of water to the {side} of {spoken}")


def river(corpus, title):
    found = {
        bare(name)
        for name in re.findall(rf"\b(?:on the|along the|banks? of the|shores? of the) (?:River )?({NAMES})\b", corpus.head(title))
        if "River" in name or f"River {name}" in corpus.head(title)
    }
    if len(found) == 1:
        yield Fact("river", title, ("On which river does one find {0}?", "Which river runs by {0}?"), (found.pop(),))
