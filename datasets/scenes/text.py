"""Says in words what a scene shows: its caption, and questions whose answers are true by construction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .composer import Category

# Two centres count as apart in a direction from this share of the image's side on. Below it, people disagree.
CLEAR_MARGIN = 0.1

COLOURS = ("black", "blue", "brown", "green", "grey", "orange", "pink", "purple", "red", "silver", "white", "yellow")

# By the last word of a name.
_IRREGULAR_PLURALS = {
    "bison": "bison",
    "chamois": "chamois",
    "deer": "deer",
    "fireman": "firemen",
    "fish": "fish",
    "fowl": "fowl",
    "goose": "geese",
    "mouse": "mice",
    "sheep": "sheep",
    "trout": "trout",
    "woodlouse": "woodlice",
}


@dataclass(frozen=True)
class Mention:
    """An object as the text sees it: its category, and its box x, y, width, height in pixels."""

    category: Category
    box: tuple[int, int, int, int]

    @property
    def centre(self) -> tuple[float, float]:
        x, y, width, height = self.box
        return x + width / 2, y + height / 2


@dataclass(frozen=True)
class Caption:
    """A sentence; ``spans[i]`` is the half-open range of characters that names object ``i`` of the scene."""

    text: str
    spans: tuple[tuple[int, int], ...]


def plural_of(name: str) -> str:
    """The plural of an English name, by its last word: "church bell" gives "church bells"."""
    head, _, last = name.rpartition(" ")
    if last in _IRREGULAR_PLURALS:
        plural = _IRREGULAR_PLURALS[last]
    elif last.endswith("fish"):
        plural = last
    elif last.endswith("y") and last[-2:-1] not in tuple("aeiou"):
        plural = last[:-1] + "ies"
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        plural = last + "es"
    else:
        plural = last + "s"
    return f"{head} {plural}" if head else plural


def article_of(name: str) -> str:
    """ "a" or "an", by the first letter, but for the few words that sound otherwise than they are spelt."""
    if name.startswith(("uk", "us ", "eu", "uni")):
        return "a"
    return "an" if name[0] in "aeiou" else "a"


def colour_of(name: str) -> str:
    """The colour that a name begins with, or an empty string."""
    first, _, rest = name.partition(" ")
    return first if rest and first in COLOURS else ""


def relation(a: Mention, b: Mention, size: int) -> str:
    """How ``a`` lies to ``b``, along the axis on which their centres are further apart.

    "near" says that neither axis is clear: the centres are less than a tenth of the image apart on both.
    """
    dx, dy = (b.centre[0] - a.centre[0]) / size, (b.centre[1] - a.centre[1]) / size
    if max(abs(dx), abs(dy)) < CLEAR_MARGIN:
        return "near"
    if abs(dx) >= abs(dy):
        return "to the left of" if dx > 0 else "to the right of"
    return "above" if dy > 0 else "below"


def describe(rng: np.random.Generator, mentions: Sequence[Mention], setting: str, size: int) -> Caption:
    """One sentence that names every object once.

    Objects come in random order, two by two with their relation ("a crow above a saw, and a lion near a drum") or,
    in every third sentence, as a plain list. Whatever is named again becomes "another".

    Args:
        mentions: The labelled objects. With none, the sentence is the setting alone: "a photo of a castle".
        setting: The end of the sentence: "on a photo of a castle".
    """
    if not mentions:
        return Caption(setting.removeprefix("on "), ())
    order = [int(index) for index in rng.permutation(len(mentions))]
    plain = rng.random() < 1 / 3
    parts: list[str | int] = []  # text, or the index of a mention
    for rank, index in enumerate(order):
        if rank:
            parts.append(_joint(mentions, order, rank, plain, size))
        parts.append(index)
    parts.append(f"{', ' if len(order) > 2 else ' '}{setting}")

    text, spans, named = "", {}, set()
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        category = mentions[part].category
        text += (_another(category.determiner) if category.name in named else category.determiner) + " "
        spans[part] = (len(text), len(text) + len(category.name))
        text += category.name
        named.add(category.name)
    return Caption(text, tuple(spans[index] for index in range(len(mentions))))


def _joint(mentions: Sequence[Mention], order: list[int], rank: int, plain: bool, size: int) -> str:
    """The words between the ``rank``-th object of the sentence and the one before it."""
    last = rank == len(order) - 1
    if plain:
        return " and " if last else ", "
    if rank % 2:
        return f" {relation(mentions[order[rank - 1]], mentions[order[rank]], size)} "
    return ", and " if rank >= len(order) - 2 else ", "


def _another(determiner: str) -> str:
    if determiner in ("a", "an"):
        return "another"
    return "some more" if determiner == "some" else "another" + determiner.removeprefix("a").removeprefix("n")


def _the(category: Category) -> str:
    """ "the kangaroo", "the pair of pliers"."""
    rest = category.determiner.split(" ", 1)[1:]
    return " ".join(["the", *rest, category.name])


def ask(
    rng: np.random.Generator,
    mentions: Sequence[Mention],
    hidden: Sequence[Category],
    vocabulary: Sequence[Category],
    size: int,
) -> list[dict[str, str]]:
    """Questions about a scene, each with its type, its words and its answer.

    No question has an answer that a hidden object, or an object with two possible names, could make false.

    Args:
        mentions: The labelled objects.
        hidden: Categories of the objects that are pasted but nearly covered.
        vocabulary: All categories of the split, for questions about objects that are absent.
    """
    present = [mention.category for mention in mentions]
    clear = [
        mention
        for index, mention in enumerate(mentions)
        if not any(_alike(mention.category, other) for other in [*present[:index], *present[index + 1 :], *hidden])
    ]
    questions = [
        *_count_questions(rng, present, hidden),
        *_presence_questions(rng, present, hidden, vocabulary),
        *_spatial_questions(rng, clear, size),
        *_colour_questions(clear),
    ]
    return [dict(zip(("type", "question", "answer"), one)) for one in questions]


def _alike(a: Category, b: Category) -> bool:
    return bool(a.kinds & b.kinds)


def _count_questions(rng, present, hidden):
    # A name is counted only when whatever could also be called so has just this name, and nothing of it is hidden.
    countable = sorted(
        {
            one.plural: one.name
            for one in present
            if one.plural
            and not any(_alike(one, other) for other in hidden)
            and all(other.name == one.name for other in present if _alike(one, other))
        }.items()
    )
    if countable:
        plural, name = countable[rng.integers(len(countable))]
        yield "count", f"How many {plural} are there?", str(sum(one.name == name for one in present))
    groups = sorted({one.group_plural for one in present} - {""} - {one.group_plural for one in hidden})
    if groups:
        plural = groups[rng.integers(len(groups))]
        yield "count", f"How many {plural} are there?", str(sum(one.group_plural == plural for one in present))


def _presence_questions(rng, present, hidden, vocabulary):
    if present:
        there = present[rng.integers(len(present))]
        yield "presence", f"Is there {there.determiner} {there.name} in the picture?", "yes"
    taken = frozenset().union(*(one.kinds for one in [*present, *hidden]))
    absent = [one for one in vocabulary if taken.isdisjoint(one.kinds)]
    if absent:
        missing = absent[rng.integers(len(absent))]
        yield "presence", f"Is there {missing.determiner} {missing.name} in the picture?", "no"


def _spatial_questions(rng, clear, size):
    if len(clear) < 2:
        return
    a, b = (clear[index] for index in rng.permutation(len(clear))[:2])
    for axis, before, after in ((0, "to the left of", "to the right of"), (1, "above", "below")):
        gap = (b.centre[axis] - a.centre[axis]) / size
        if abs(gap) < CLEAR_MARGIN:
            continue
        first = a if gap > 0 else b
        side = "further to the left" if axis == 0 else "higher up"
        yield "spatial", f"Which is {side}, {_the(a.category)} or {_the(b.category)}?", first.category.name
        claim = before if rng.random() < 0.5 else after
        true = (claim == before) == (gap > 0)
        yield "spatial", f"Is {_the(a.category)} {claim} {_the(b.category)}?", "yes" if true else "no"


def _colour_questions(clear):
    for mention in clear:
        if mention.category.colour:
            thing = mention.category.name.removeprefix(mention.category.colour).strip()
            yield "colour", f"What colour is the {thing}?", mention.category.colour
