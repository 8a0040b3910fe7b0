"""Wars, dynasties and empires: what was part of them, and when they were."""

import re

from .corpus import NAMES, Fact, Link
from .waters import one

WAR = r"\b(?:War|Wars|Revolution|Crusade|Rebellion|Campaigns?|Uprising)\b"


def links(corpus):
    for title in corpus.text:
        spoken = corpus.spoken(title)
        if not spoken:
            continue
        first = corpus.first(title)
        for match in re.finditer(r"\b(?:in|of|during|ended|ending|end of|throughout) (?:the )?(?=[A-Z])", first):
            war = corpus.named(first[match.end() :])
            if not war or war == title or not re.search(WAR, war) and war not in ("World War I", "World War II"):
                continue
            if re.search(
                r"\b(?:battle|siege|campaign|theat(?:re|er)|front|invasion|operation|massacre|bombing|offensive)\b", first[: match.start()]
            ) and not corpus.person(title):
                yield Link("war", title, war, f"the war of which {spoken} was part")
            elif (
                corpus.person(title)
                and re.search(r"\bWars?\b", war)
                and re.search(r"\b(?:general|commander|commanded|fought|admiral|pilot|marshal)\b", first[: match.start()])
            ):
                yield Link("served", title, war, f"the war in which {spoken} took part")
        match = re.search(r"\b(?:of|during) (?:the )?(?=[A-Z][\w ]*(?:dynasty|Empire|Caliphate|Sultanate|period|Kingdom|Republic)\b)", first)
        if match and corpus.person(title):
            state = corpus.named(first[match.end() :])
            if (
                state
                and re.search(r"dynasty$|Empire$|Caliphate$|period$", state)
                and not re.search(
                    r"\b(?:against|overthrew|fall|enemy|historian|history|emperor|king|sultan|ruler|caliph|shah|khan|founder|last|queen|monarch|"
                    r"conquered|dynasty)\b",
                    first[: match.start()],
                )
            ):
                what = state.split()[-1].lower()
                yield Link("realm", title, state, f"the {what} {'in' if what == 'period' else 'under'} which {spoken} lived")


YEAR = r"(\d{3,4}(?: BCE?| AD| CE)?)"


def facts(corpus):
    for title in corpus.text:
        head = corpus.head(title)
        if corpus.person(title) or not re.search(WAR + r"|dynasty|Empire|Caliphate|Sultanate|Kingdom|Republic|period", title):
            continue
        for name, pattern, asks in (
            (
                "founder",
                rf"\b(?:founded|established) by (?:the )?(?:[a-z-]+ )*({NAMES})(?=[,.;]|$| in | and )",
                ("Who founded {0}?", "By whom was {0} founded?"),
            ),
            (
                "capital",
                rf"\b(?:its capital (?:was|at|in)|with (?:its|their) capital (?:at|in)|capital (?:was|was at)) ({NAMES})",
                ("What was the capital of {0}?",),
            ),
            ("capital", rf"\bwith ({NAMES}) as (?:its|their|the) capital", ("What was the capital of {0}?",)),
            (
                "predecessor",
                rf"\b(?:preceded by|succeeding|following the (?:collapse|fall) of) (?:the )?(?:[A-Z]?[a-z-]+-led )?({NAMES}(?: dynasty| period)?)(?=[,.;]|"
                rf"$| and succeeded| in )",
                ("What came before {0}?", "By what was {0} preceded?"),
            ),
            (
                "successor",
                rf"\b(?:succeeded|followed|replaced) by (?:the )?(?:[A-Z]?[a-z-]+-led )?({NAMES}(?: dynasty| period)?)(?=[,.;]|$| in )",
                ("What came after {0}?", "By what was {0} succeeded?"),
            ),
            ("official name", rf"\bofficially (?:known as )?(?:the )?({NAMES})(?=,| or| was)", ("What was the official name of {0}?",)),
        ):
            said = one(pattern, head)
            if said:
                yield Fact(name, title, asks, (said,))
        spans = set(
            re.findall(
                rf"\b(?:from|between) (?:\d{{1,2}} )?(?:[A-Z][a-z]+ )?(?:\d{{1,2}}, )?{YEAR} (?:to|until|and|through)(?: (?:\d{{1,2}} )?[A-Z][a-z]+(?: "
                rf"\d{{1,2}},)?)? {YEAR}\b",
                head,
            )
        )
        if len(spans) == 1:
            start, end = spans.pop()
            start += end[len(re.match(r"\d+", end).group(0)) :] if re.fullmatch(r"\d+", start) and "BC" in end else ""
            yield Fact("first year", title, ("In what year did {0} begin?",), (start, re.match(r"\d+", start).group(0)))
            yield Fact("last year", title, ("In what year did {0} end?",), (end, re.match(r"\d+", end).group(0)))
