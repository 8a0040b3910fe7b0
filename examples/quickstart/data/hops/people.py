"""What passages say about persons; who led which state, and who was whose child."""

import re

from .corpus import CLAUSE, NAME, PERSONS, Fact, Link, bare
from .nations import COUNTRIES, LASTING, OTHERS

STYLES = (
    r"(?:Sir|Dame|Saint|St\.|Lord|Lady|Pope|King|Queen|Prince|Princess|Emperor|Count|Baron|Doctor|Dr\.|General|Marshal|President|Mahatma|Imam|Blessed|Rabbi)"
)
LEADERS = (
    "president|prime minister|premier|chancellor|king|queen|emperor|empress|sultan|tsar|shah|pharaoh|khan|caliph|monarch|dictator|regent|doge|leader|ruler"
)


def nationality(corpus, person):
    """The one adjective with which the passage says whence it is."""
    first = corpus.first(person)
    match = re.match(rf"[^.]*? (?:was|is) an? (?:[a-z-]+ )*((?:(?:New|South|North|Sri) )?{NAME})(?= [a-z])(?! and | or )", first)
    what = match and re.match(rf"(?: (?!(?:{CLAUSE})\b)[\w'’-]+,?)*", first[match.end() :]).group(0)
    if (
        match
        and re.search(rf"\b(?:{PERSONS})\b", what)
        and (match.group(1) in COUNTRIES or match.group(1) in OTHERS)
        and not re.search(
            r"-born|[a-z]-[A-Z]|\b(?:born in|born to|naturali[sz]ed|descent|origin|later|emigrat\w+|also|worked in|based in|living in|in exile)\b", first
        )
    ):
        others = [word for word in re.findall(r"[A-Z][a-z]+", first[match.end() :]) if word in COUNTRIES or word in OTHERS]
        return None if others else match.group(1)
    return None


def full_name(corpus, person):
    """The whole name with which the passage begins, where it is longer than the title."""
    match = re.match(
        rf"(?:{STYLES} )*((?:{NAME} ?|(?:de|da|di|von|van|der|den|del|la|le|du|of|the|bin|ibn|al) )+?)(?= (?:was|is)\b| ?\(|, )", corpus.head(person)
    )
    if not match:
        return
    name, title = match.group(1).strip(), bare(person)
    last = title.split()[-1]
    ordinary = not re.search(r"\d|\b[IVX]+\b|\b(?:of|the|and|Jr)\b", name + " " + title)
    if ordinary and name.split()[-1] == last and len(name.split()) > len(title.split()) > 1 and len(name.split()) <= 5 and not re.search(r"\b[A-Z]\.", name):
        yield Fact("full name", person, ("What is the full name of {0}?", "What is the full name, with all given names, of {0}?"), (name,))


def real_name(corpus, person):
    """The name behind a pen or stage name."""
    match = re.match(
        rf"({NAME}(?: (?:{NAME}|de|da|van|von|y))*), (?:better |best |widely |also )?(?:known|who wrote) (?:professionally |mononymously "
        rf"|universally |internationally |in the West |simply )?(?:by|under|as)(?: (?:his|her|the) (?:pen|stage|ring) name)?(?: of)? "
        rf"({NAME}(?: {NAME})*)",
        corpus.head(person),
    )
    if match and match.group(2) == bare(person) and bare(person).split()[-1] not in match.group(1).split() and 2 <= len(match.group(1).split()) <= 5:
        yield Fact("real name", person, ("What was the real name of {0}?", "Which real name was behind that of {0}?"), (match.group(1),))


def nobel(corpus, person):
    head = corpus.head(person)
    years = set(re.findall(r"Nobel (?:Memorial )?Prize (?:in|for) [A-Z][a-z]+(?: or [A-Z][a-z]+| [A-Z][a-z]+)? in (\d{4})\b", head)) | set(
        re.findall(r"\b(\d{4}) Nobel (?:Memorial )?(?:Peace )?Prize\b", head)
    )
    years |= set(re.findall(r"Nobel Peace Prize in (\d{4})\b", head))
    if len(years) == 1 and len(re.findall("Nobel", head)) == 1:
        yield Fact("Nobel year", person, ("In what year did {0} receive the Nobel Prize?", "In what year was the Nobel Prize awarded to {0}?"), (years.pop(),))
    fields = set(re.findall(r"Nobel (?:Memorial )?Prize in ([A-Z][a-z]+(?: or [A-Z][a-z]+)?)", head))
    if (
        len(fields) == 1
        and "Nobel Peace" not in head
        and re.search(r"\b(?:won|received|awarded|laureate|recipient|winner|winning|shared)\b", head)
        and "nominated" not in head
    ):
        yield Fact("Nobel field", person, ("In which field did {0} receive the Nobel Prize?", "For which field was {0} given a Nobel Prize?"), tuple(fields))


def reign(corpus, person):
    """First and last year, where the passage gives one span and one only."""
    spans = re.findall(
        r"\b(?:from|reigned|reigning|ruled|ruling|serving from) (?:[A-Z]?[a-z]+ )?(?:\d{1,2} )?(?:[A-Z][a-z]+ )?(\d{3,4}) (?:until|"
        r"to)\b(?: his death in| her death in| \d{1,2} [A-Z][a-z]+| [A-Z][a-z]+)? (\d{3,4})\b",
        corpus.head(person),
    )
    if (
        len(spans) == 1
        and re.search(rf"(?:was|is|served as|reigned as|ruled as) [^.]*?\b(?:{LEADERS}|pope)\b[^.;]*{spans[0][0]}", corpus.head(person), re.IGNORECASE)
        and not re.search(r"\bBCE?\b|and from|and again|\d{4} to \d{4} and", corpus.head(person))
    ):
        yield Fact("came to power", person, ("In what year did {0} come to power?", "In what year did {0} first hold the highest office?"), (spans[0][0],))


def facts(corpus):
    for title in corpus.text:
        if corpus.person(title):
            nation = nationality(corpus, title)
            if nation:
                yield Fact("nationality", title, ("What nationality was {0}?", "Of what nationality was {0}?"), (nation,))
            yield from full_name(corpus, title)
            yield from real_name(corpus, title)
            yield from nobel(corpus, title)
            yield from reign(corpus, title)
    led = {}
    for link in leaders(corpus):
        led.setdefault(link.first, set()).add(link.bridge)
    for title, states in led.items():
        if len(states) == 1:
            yield Fact(
                "state led", title, ("Which country or state did {0} rule or lead?", "Of which country or state was {0} the ruler or leader?"), tuple(states)
            )


def links(corpus):
    for person in corpus.text:
        if not corpus.person(person) or not corpus.spoken(person):
            continue
        first, spoken = corpus.first(person), corpus.spoken(person)
        nation = COUNTRIES.get(nationality(corpus, person) or "")
        # an adjective of long ago may mean a state that is no more, or a people
        if (
            nation in corpus.titles
            and not re.search(r"\b(?:fictional|superhero\w*|character|mytholog\w+|legend\w*|folklore|saint|medieval|ancient)\b", first)
            and (nation in LASTING or re.search(r"\b(?:19|20)\d\d\b", corpus.text[person]))
        ):
            yield Link("nation", person, nation, f"the country that {spoken} {'is' if re.search(r' is an? ', first) else 'was'} from")
        yield from kin(corpus, person, spoken)
        yield from company(corpus, person, spoken)
    yield from leaders(corpus)


def leaders(corpus):
    """Who led or ruled a state, where the first sentence names one and one only."""
    for person in corpus.text:
        if not corpus.person(person) or not corpus.spoken(person):
            continue
        first, spoken = corpus.first(person), corpus.spoken(person)
        found = {}
        for match in re.finditer(rf"\b({LEADERS}) of (?:the )?(?=[A-Z])", first, re.IGNORECASE):
            before = re.sub("prime minister.*", "", first[: match.start()], flags=re.IGNORECASE)
            if re.search(
                r"\b(?:vice|deputy|son|daughter|wife|husband|mother|father|brother|sister|under|against|for|by|to|lady|court|advis\w+|between|"
                r"overthrew|fought|minister|claim\w*|title\w*)\b[^,]*$",
                before,
                re.IGNORECASE,
            ):
                continue
            state = corpus.named(first[match.end() :])
            follows = first[match.end() :][len((state or "").removeprefix("The ")) :]
            two = state is None or re.match(r",? (?:and|or) (?:the )?[A-Z]|, [A-Z]", follows)
            found.setdefault(None if two else state, match.group(1).lower())
        if len(found) != 1 or None in found:
            continue
        ((state, role),) = found.items()
        if state == person or corpus.person(state):
            continue
        said = corpus.first(state)
        what = (
            "country"
            if re.search(r"\bis [^.]{0,60}\bcountry\b", said)
            else next((kind for kind in ("dynasty", "empire", "caliphate", "kingdom") if kind in state.lower()), None)
        )
        # who led a country long ago led another state than the one that its passage is about
        if what == "country" and role not in ("president", "prime minister") and not re.search(r"\b(?:19|20)\d\d\b", corpus.text[person]):
            continue
        if what:
            verb = "led" if role in ("president", "prime minister", "chancellor", "premier", "leader", "dictator") else "ruled"
            if what == "dynasty":
                yield Link("led", person, state, f"the dynasty of which {spoken} was {'an' if role[0] in 'aeiou' else 'a'} {role}")
                continue
            yield Link(
                "led",
                person,
                state,
                f"the {what} that {spoken} {'has ' if re.search(r' is an? ', first) else ''}{verb}{'' if role in ('leader', 'ruler') else f' as {role}'}",
            )


TITLED = r"(?:(?:King|Emperor|Queen|Roman|Sultan|Empress|Pope|President|Prime|Minister|US|Pharaoh|Prophet|Islamic|prophet|emperor|king|of|god) )*"


def kin(corpus, person, spoken):
    """Parents, and husbands and wives: those whom the passage names first."""
    for sentence in corpus.sentences(person)[:2]:
        for match in re.finditer(rf"\b(son|daughter|wife|husband|consort|widow) of (?:the )?{TITLED}(?=[A-Z])", sentence):
            other = corpus.named(sentence[match.end() :])
            before = sentence[: match.start()]
            # it is the person of this passage that is someone's child, not another one
            if (
                not other
                or other == person
                or not corpus.person(other)
                or re.search(r"\b(?:by|with|married|and|of|grand)\s*(?:the |his |her )?(?:\w+ )?$", before)
                or not re.search(r"\b(?:was|is|The|the|As|as)\b[^.,]*$", before)
            ):
                continue
            words = re.findall(r"\b(he|his|him|she|her)\b", corpus.text[other], re.IGNORECASE)
            male = sum(word.lower() in ("he", "his", "him") for word in words) * 2 > len(words)
            if match.group(1) in ("son", "daughter"):
                yield Link("parent", person, other, f"the {'father' if male else 'mother'} of {spoken}")
            else:
                yield Link("spouse", person, other, f"the {'husband' if male else 'wife'} of {spoken}")


def company(corpus, person, spoken):
    """What the passage says a person founded."""
    match = re.search(r"\b(?:who |and )?(co-?founded|founded|co-?founder of|founder of) (?:the )?(?:(?:[a-z-]+ ){0,4})(?=[A-Z])", corpus.first(person))
    other = match and corpus.named(corpus.first(person)[match.end() :])
    if other and other != person and not corpus.person(other):
        follows = corpus.first(person)[match.end() + len(other) :]
        if not re.match(r",? and (?:the )?[A-Z]", follows):
            what = next(
                (
                    kind
                    for kind in ("dynasty", "empire", "company", "party", "movement", "school", "religion", "city", "kingdom", "state")
                    if re.search(rf"\b{kind}\b", corpus.first(other), re.IGNORECASE)
                ),
                None,
            )
            if what:
                yield Link("founded", person, other, f"the {what} that {spoken} {'helped to found' if match.group(1).startswith('co') else 'founded'}")
