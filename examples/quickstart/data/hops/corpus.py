"""Passages, how they are read, and how their titles are spoken of in a question."""

import functools
import json
import re
from typing import NamedTuple

HEAD_WORDS = 64
"""An answer stands within this many first words of its passage: a generator reads no more of it."""


class Link(NamedTuple):
    """What the first passage says: who or what `bridge` is to it, in words that do not name the bridge."""

    name: str
    first: str  # title
    bridge: str  # title
    phrase: str  # "the country in which Kumasi lies"


class Fact(NamedTuple):
    """What the bridge's passage says about it."""

    name: str
    bridge: str  # title
    asks: tuple  # wordings, with {0} for the phrase of a link
    answers: tuple  # what is right; the first stands in the passage


# a full stop that ends no sentence
ABBREVIATION = "".join(rf"(?<!\b{short})" for short in ("St", "Mt", "Dr", "Mr", "Jr", "Mrs", "Gen", "Col", "ca", "c", "No", "Ltd", "Inc", "vs"))
NAME = r"(?:St\.|[A-Z]\.(?:[A-Z]\.)*|[A-ZÀ-ÖØ-ÞĀĐŁŌŚŠȘŻŽİ][\w'’-]*)"
NAMES = rf"{NAME}(?: (?:(?:of|de|da|do|del|el|la|le|al|the|and) )?{NAME}){{0,4}}"


# with these words something else begins
CLAUSE = "who|that|which|whose|of|by|from|in|for|to|with|on|at"
PERSONS = r"""\w+(?:ist|ian|smith|wright|grapher|maker|player|leader|ruler|monarch)|actor|actress|director|singer|composer|writer|
author|poet|king|queen|emperor|empress|painter|sculptor|philosopher|general|president|minister|pope|saint|prophet|engineer|
inventor|explorer|conductor|dancer|lawyer|teacher|scholar|soldier|officer|nun|monk|priest|entertainer|boxer|footballer|golfer|
swimmer|sprinter|runner|athlete|astronaut|cosmonaut|architect|tenor|soprano|rapper|drummer|god|goddess|deity|hero|khan|sultan|
caliph|businessman|businesswoman|entrepreneur|magnate|translator|thinker|mystic|reformer|founder|regent|statesman|producer"""
PERSONS = PERSONS.replace("\n", "")
# what a passage may tell persons' doings of
THINGS = """film|novel|play|poem|painting|opera|symphony|album|song|series|theorem|principle|equation|law|city|country|state|
island|empire|dynasty|war|battle|book|treatise|theory|tragedy|comedy|ballet|unit|language|company|band|museum|building|palace|
church|mosque|sculpture|fresco|dialogue|religion|mathematics|sea|strait|kingdom|event|trilogy|collection|essay|tale|genre|
science|species|genus|family|effect|constant|method|movement|period|text|work|conflict|revolution|house|plays|paintings|
novella|cycle|franchise|epic|concerto|cantata|oratorio|character|programme|program|system|game|formula|hypothesis|magazine|
uprising|rebellion|massacre|treaty|crisis|coup|campaign|plan|policy|act|school|doctrine|ideology|trial|expedition|conquest|
invasion|siege|crusade|style|academy|university|temple|organi[sz]ation|party|award|prize|tournament|league|team|club|instrument|
machine|device|concept|practice|tradition|process|technique"""
THINGS = THINGS.replace("\n", "")


class Corpus:
    """Passages by title."""

    def __init__(self, lines):
        self.text = {}
        for line in lines:
            row = json.loads(line)
            self.text[row["title"]] = row["text"]
        self.titles = set(self.text)
        # a running text says `the Gambia`
        self.aliases = {title.removeprefix("The "): title for title in self.titles if title.startswith("The ")}
        # and of a state what it calls it, where no other passage has that name
        names = [bare(title) for title in self.titles]
        for title in sorted(self.titles):
            if re.search(r" \((?:state|province|island|city|region|prefecture|country)\)$", title) and names.count(bare(title)) == 1:
                self.aliases[bare(title)] = title

    @functools.cached_property
    def words(self):
        """Every word that the corpus writes in lower case somewhere: those are no names."""
        return {word for text in self.text.values() for word in re.findall(r"\b[a-z][a-z-]+\b", text)}

    def named(self, text):
        """The longest title that `text` starts with, a `the` skipped; none when it starts with no title."""
        article = text.startswith("the ")
        text = text.removeprefix("the ")
        words = re.findall(r"[^ ]+", text)[:7]
        for count in range(len(words), 0, -1):
            name = " ".join(words[:count])
            for cut in (name, name.rstrip(".,;:)"), re.sub(r"['’]s[.,;:)]*$", "", name)):
                if (cut in self.titles or cut in self.aliases and (article or self.aliases[cut] != f"The {cut}")) and cut[:1].isupper() and len(cut) > 2:
                    if cut == name and count < len(words) and words[count] == "of" and cut.lower() in self.words:
                        return None  # `Republic of`, which is no title
                    # a longer name that has no passage is not the shorter one that has
                    follows = words[count] if cut == name and count < len(words) else ""
                    return None if follows[:1].isupper() else cut if cut in self.titles else self.aliases[cut]
        return None

    @functools.cache
    def head(self, title):
        """The words in which an answer must stand, initials of the United States without full stops."""
        return " ".join(self.text[title].split()[:HEAD_WORDS]).replace("U.S.", "US")

    @functools.cache
    def sentences(self, title):
        """Of the head, roughly."""
        return re.split(rf"(?<=[a-z)\d\"”]){ABBREVIATION}\. (?=[A-Z])", self.head(title))

    def first(self, title):
        """The first sentence."""
        return self.sentences(title)[0]

    @functools.cache
    def person(self, title):
        """Whether the passage is about one person, or one of those whom myths speak of so."""
        said = re.search(rf"\b(?:is|was) (?:an?|the|one of the) ((?:(?!(?:{CLAUSE})\b)[\w'’-]+,? )*(?!(?:{CLAUSE})\b)[\w'’-]+)", self.first(title))
        said = re.sub(r"(?: (?:written|directed|published|created|composed|made|set))*$", "", said.group(1)) if said else ""
        someone, something = re.search(rf"\b(?:{PERSONS})\b", said), re.search(rf"\b(?:{THINGS})$", said)
        if self.plural(title) or something or not someone and re.search(rf"\b(?:{THINGS})\b", said):
            return False
        return bool(someone or re.search(r"\b(?:he|she|his|her|him)\b", self.text[title], re.IGNORECASE))

    @functools.cache
    def plural(self, title):
        name, text = bare(title), self.text[title].removeprefix("The ")
        return name.endswith((" Islands", " Mountains")) or text.startswith(name) and bool(re.match(r"(?:s|es)?(?:,[^.]*,)? (?:are|were)\b", text[len(name) :]))

    @functools.cache
    def spoken(self, title):
        """The title as a question says it; none when only brackets tell it from another."""
        name, kind = bare(title), re.search(r" \((.*)\)$", title)
        if kind:
            of = "of " if re.search(r"state|province|island|city|county", kind.group(1)) else ""
            return f"the {kind.group(1)} {of}{name}" if kind.group(1)[:1].islower() or kind.group(1)[:1].isdigit() else None
        if name.startswith("The ") and f" the {name[4:]}" in self.text[title]:
            name = name[4:]  # the Gambia
        # "The Eiffel Tower is": the article belongs to it; "The Tempest" has its own
        article = "the " if self.text[title].startswith(f"The {name}") or self.text[title].startswith("The ") and f"the {name}" in self.text[title] else ""
        if re.search(r" (?:River|Sea|Ocean|Desert|Mountains|Islands|Peninsula|Plateau|Strait|Canal|Empire|Caliphate|dynasty)$", name):
            article = "the "
        return article + name


def bare(title):
    """A title without what tells it from another of that name."""
    return re.sub(r" \(.*\)$", "", title)


def number(text):
    """A number as people write it: with and without commas."""
    return (text, text.replace(",", "")) if "," in text else (text,)
