"""Turns the words of picture collections into names: nouns with one sense, their parents and relatives."""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from . import wide_tables, wide_words
from .composer import Category
from .text import article_of, colour_of, plural_of
from .wordnet import KINDS, Sense, WordNet

ALL_KINDS = tuple(KINDS.values())

# Of a noun's meanings only the most frequent ones are looked at: the others surprise a reader.
MAX_SENSES = 4

# Kinds that one thing may be said to be of: an onion is a plant and food.
_SAME_KINDS = {"plant": "food", "object": "artifact"}


@dataclass(frozen=True)
class Look:
    """A picture of a named thing, not decoded yet.

    Attributes:
        identity: The collection and the path in it, unique.
        source: The collection.
        text: What the collection says of it, in lower case.
        kinds: What the thing can be, of the values of ``wordnet.KINDS``, the likeliest first.
        form: "name", "caption" (a name that WordNet may lack: "crash cymbal"), or "file name" (whose words may be
            followed by others, such as the artist's).
        read: Returns its pixels, (h, w, 4) uint8 BGRA.
    """

    identity: str
    source: str
    text: str
    kinds: tuple[str, ...]
    form: str
    read: Callable[[], np.ndarray] = field(repr=False, compare=False)


@dataclass(frozen=True)
class Named:
    """A name, its meaning and its looks."""

    name: str
    sense: Sense
    looks: tuple[Look, ...]


class Lexicon:
    """Names in texts, and how they are related.

    Args:
        wordnet: The nouns. Names that it lacks come from ``wide_words.ADDED``.
    """

    def __init__(self, wordnet: WordNet):
        self.wordnet = wordnet
        self._parents = {
            sense.number: word.strip()
            for kind, words in wide_tables.PARENTS.items()
            for word in (words.split(",") if "," in words else words.split())
            for sense in [one for one in wordnet.senses(word.strip()) if one.kind == kind][:1]
        }

    def name_in(self, look: Look) -> tuple[str, Sense] | None:
        """The name that a collection gives to a picture, and its meaning; None if its words are no fair name.

        A text is a name as a whole. In a file name, the longest run of words at its start that is a noun is the name,
        unless the next word names a visible thing too: a "cat house" is no cat.
        """
        text = wide_words.RENAMED.get(look.text, look.text)
        words = re.findall(r"[a-z][a-z'-]*", text)
        if look.form == "caption" and not wide_words.REJECTING.isdisjoint(words):
            return None
        if look.form != "file name":
            name = " ".join(words)
            sense = self.sense_of(name, look.kinds)
            if sense is None and look.form == "caption":
                name = " ".join(word for word in words if word not in wide_words.PASSED_OVER)
                if wide_words.CONNECTING.isdisjoint(words) and name.count(" ") < 2 and name not in wide_words.EXCLUDED:
                    sense = self.sense_or_head(name, look.kinds)
            if sense is not None and self.wordnet.is_plural(name) and name not in wide_words.ADDED:
                return None
            return None if sense is None else (name, sense)
        if not wide_words.REJECTING.isdisjoint(words):
            return None
        words = [word for word in words if word not in wide_words.PASSED_OVER]
        words = " ".join([wide_words.TRANSLATED.get(word, word) for word in words[:1]] + words[1:]).split()
        for length in range(min(len(words), 3), 0, -1):
            name = " ".join(words[:length])
            name = wide_words.RENAMED.get(name, name)
            sense = self.sense_of(name, look.kinds)
            if sense is not None:
                is_modifier = length < len(words) and self.sense_of(words[length], ALL_KINDS) is not None
                return None if is_modifier else (name, sense)
        return None

    def sense_of(self, name: str, kinds: Sequence[str]) -> Sense | None:
        """The most frequent meaning of a name, of the first kind of some that has one; None if it is no fair name."""
        if name in wide_words.ADDED:
            return self.kind_of(name, wide_words.ADDED[name], kinds)
        if len(name) < 2 or name in wide_words.EXCLUDED or self.wordnet.is_plural(name):
            return None
        return self._meaning(name, kinds)

    def kind_of(self, name: str, head: str, kinds: Sequence[str]) -> Sense | None:
        """The meaning of a name that WordNet lacks: a kind of ``head``."""
        sense = self._meaning(head, kinds)
        # A number that no line of the file has.
        return sense and Sense(-zlib.crc32(name.encode()), sense.kind, (name,), (sense.number,), False)

    def sense_or_head(self, name: str, kinds: Sequence[str]) -> Sense | None:
        """The meaning of a name, or, where WordNet lacks it, of a kind of its last word."""
        if name in wide_words.ADDED:
            return self.kind_of(name, wide_words.ADDED[name], kinds)
        first, _, last = name.rpartition(" ")
        found = self._meaning(name, kinds) or self._meaning(self.wordnet.singular(name), kinds)
        return found or (self.kind_of(name, self.wordnet.singular(last), kinds) if first else None)

    def unknown(self, name: str) -> Sense:
        """The meaning of a name of which nothing is known: a kind of nothing else."""
        return Sense(-zlib.crc32(name.encode()), "artifact", (name,), (), False)

    def _meaning(self, name: str, kinds: Sequence[str]) -> Sense | None:
        senses = [sense for sense in self.wordnet.senses(name)[:MAX_SENSES] if not sense.is_single]
        return next((sense for kind in kinds for sense in senses if sense.kind == kind), None)

    def lineage(self, sense: Sense) -> list[Sense]:
        """A meaning and those that it is a kind of, nearest first."""
        return [sense, *self.wordnet.ancestors(sense)]

    def parent_of(self, sense: Sense) -> str:
        """The parent that a thing shares with its like: "bird" for a crow; where the tables name none, its kind."""
        return next(
            (self._parents[one.number] for one in self.lineage(sense) if one.number in self._parents), sense.kind
        )


def name_looks(looks: Iterable[Look], lexicon: Lexicon, fixed: Mapping[str, Sense]) -> list[Named]:
    """Give every look its one name, and every name its one meaning.

    A name whose looks are of different kinds, such as "bat", keeps those of the commoner kind; a tie leaves it out.
    Names of one meaning, such as "aubergine" and "eggplant", become the one with the most looks.

    Args:
        fixed: Names that stay as they are, with their meanings; looks of the same meaning get these names.
    """
    found: dict[str, list[tuple[Look, Sense]]] = {}
    for look in looks:
        named = lexicon.name_in(look)
        if named is not None:
            found.setdefault(named[0], []).append((look, named[1]))
    by_sense: dict[int, dict[str, list[Look]]] = {}
    senses: dict[int, Sense] = {}
    for name, pairs in found.items():
        kinds = Counter(_SAME_KINDS.get(sense.kind, sense.kind) for _, sense in pairs).most_common(2)
        if name in fixed:
            kind = _SAME_KINDS.get(fixed[name].kind, fixed[name].kind)
        elif len(kinds) == 2 and kinds[0][1] == kinds[1][1]:
            continue
        else:
            kind = kinds[0][0]
        kept = [(look, sense) for look, sense in pairs if _SAME_KINDS.get(sense.kind, sense.kind) == kind]
        if kept:
            sense = fixed.get(name) or Counter(sense for _, sense in kept).most_common(1)[0][0]
            senses[sense.number] = sense
            by_sense.setdefault(sense.number, {})[name] = [look for look, _ in kept]
    named_looks = []
    names_of_fixed = {sense.number: name for name, sense in fixed.items()}
    for number, names in by_sense.items():
        best = names_of_fixed.get(number) or max(sorted(names), key=lambda name: len(names[name]))
        all_looks = sorted((look for looks in names.values() for look in looks), key=lambda look: look.identity)
        named_looks.append(Named(best, senses[number], tuple(all_looks)))
    return sorted(named_looks, key=lambda named: named.name)


class KeptOut:
    """Names that must not be trained on: unseen names, whatever else they are called, and kinds of them.

    What an unseen name is a kind of may be trained on: birds where crows are unseen. Of a name that WordNet lacks, as
    "old oak", the last word is kept out too, but not all oaks.

    Args:
        categories: The unseen names.
    """

    def __init__(self, categories: Iterable[Category], lexicon: Lexicon):
        self._lexicon = lexicon
        self._words: set[str] = set()
        self._senses: set[int] = set()
        for category in categories:
            name = lexicon.wordnet.singular(category.name)
            known = name if lexicon.wordnet.senses(name) else lexicon.wordnet.singular(name.split(" ")[-1])
            senses = [sense for sense in lexicon.wordnet.senses(known) if sense.kind]
            parents = {word for sense in senses for one in lexicon.wordnet.ancestors(sense) for word in one.words}
            if known == name:
                self._senses |= {sense.number for sense in senses}
            self._words |= {word for sense in senses for word in sense.words}
            self._words |= {lexicon.wordnet.singular(word) for word in category.kinds} - parents

    def __contains__(self, named: tuple[str, Sense]) -> bool:
        name, sense = named
        name = self._lexicon.wordnet.singular(name)
        words = name.split(" ")
        runs = {" ".join(words[start:end]) for start in range(len(words)) for end in range(start + 1, len(words) + 1)}
        if not self._words.isdisjoint(runs | set(sense.words)):
            return True
        return any(one.number in self._senses for one in self._lexicon.lineage(sense))


def wide_category(
    name: str, sense: Sense, lexicon: Lexicon, names: Collection[str], given: Category | None
) -> Category:
    """The grammar, parent and other names of a thing.

    Args:
        names: All names of the world.
        given: What StampWorld's tables say of the name, which goes first.
    """
    others = {word for one in lexicon.lineage(sense) for word in one.words if word in names}
    kinds = frozenset({name, name.split(" ")[-1], *sense.words, *others})
    parent = lexicon.parent_of(sense)
    counted = wide_tables.COUNTED_PARENTS.get(parent, "")
    if given is not None:
        return Category(name, parent, counted, given.determiner, given.plural, kinds | given.kinds, given.colour)
    if name in wide_words.UNCOUNTED or _is_pair(name):
        return Category(name, parent, counted, "some", "", kinds, colour_of(name))
    first, _, last = name.rpartition(" ")
    plural = f"{first} {wide_words.PLURALS.get(last, plural_of(last))}".strip()
    return Category(name, parent, counted, article_of(name), plural, kinds, colour_of(name))


def _is_pair(name: str) -> bool:
    """Whether a name has the form of a plural: "scissors"."""
    return name.endswith("s") and not name.endswith(("ss", "us", "is", "lens", "gas"))
