"""Reads the nouns of WordNet: which names are words, what kind of thing they name, and what else it is called."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Lexicographer files of WordNet, by number, whose nouns can be seen in a picture.
KINDS = {5: "animal", 6: "artifact", 8: "body", 13: "food", 17: "object", 18: "person", 20: "plant"}

# Endings of plurals with those of their singulars, as WordNet's own look-up tries them.
_PLURAL_ENDINGS = (
    *(("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh")),
    *(("men", "man"), ("ies", "y"), ("s", "")),
)


@dataclass(frozen=True)
class Sense:
    """One meaning of a noun.

    Attributes:
        number: Its position in the file of nouns, unique.
        kind: "animal", "artifact", ... of ``KINDS``; empty for what cannot be seen, such as "joy".
        words: Its names, in lower case with spaces.
        parents: Numbers of the meanings that it is a kind of.
        is_single: It is one single thing in the world, such as a town.
    """

    number: int
    kind: str
    words: tuple[str, ...]
    parents: tuple[int, ...]
    is_single: bool


class WordNet:
    """The nouns of WordNet 3.0 in the files ``index.noun``, ``data.noun`` and ``noun.exc``.

    Args:
        folder: The folder of the three files.

    Raises:
        ValueError: A file is missing, or a line does not have the form of the manual page wndb(5WN).
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._content = self._read("data.noun")
        self._numbers: dict[str, tuple[int, ...]] = {}
        for line in self._read("index.noun").decode("ascii").splitlines():
            if not line.startswith(" "):
                fields = line.split()
                self._numbers[fields[0].replace("_", " ")] = tuple(map(int, fields[-int(fields[2]) :]))
        lines = self._read("noun.exc").decode("ascii").splitlines()
        self._singulars = dict(line.replace("_", " ").split(" ")[:2] for line in lines if line.count(" ") == 1)
        self._senses: dict[int, Sense] = {}

    def senses(self, name: str) -> list[Sense]:
        """All meanings of a noun, the most frequent one first; an empty list for what is no noun.

        Args:
            name: Lower case, as it stands in a text; plurals are no names of their own.
        """
        return [self._sense(number) for number in self._numbers.get(name, ())]

    def ancestors(self, sense: Sense) -> Iterator[Sense]:
        """The meanings that a meaning is a kind of, nearest first, itself not among them."""
        seen, pending = {sense.number}, list(sense.parents)
        while pending:
            number = pending.pop(0)
            if number not in seen:
                seen.add(number)
                parent = self._sense(number)
                yield parent
                pending += parent.parents

    def singular(self, name: str) -> str:
        """The singular of a name that is a plural, by its last word; any other name as it is."""
        first, _, last = name.rpartition(" ")
        for word in (name, last):
            if word in self._singulars and self._singulars[word] in self._numbers:
                one = self._singulars[word]
                return one if word == name else f"{first} {one}"
        for plural, ending in _PLURAL_ENDINGS:
            one = last.removesuffix(plural) + ending
            if last.endswith(plural) and one in self._numbers and not last.endswith("ss"):
                return f"{first} {one}".strip()
        return name

    def is_plural(self, name: str) -> bool:
        """Whether a name is only the plural of another: "apples", but not "scissors"."""
        return name not in self._numbers and self.singular(name) != name

    def _read(self, file: str) -> bytes:
        path = self._folder / file
        if not path.is_file():
            raise ValueError(f"{path}: expected this file of WordNet, found none")
        return path.read_bytes()

    def _sense(self, number: int) -> Sense:
        if number not in self._senses:
            end = self._content.find(b"\n", number)
            line = self._content[number:end].decode("ascii", errors="replace")
            try:
                self._senses[number] = _parse(number, line)
            except (ValueError, IndexError) as error:
                path = self._folder / "data.noun"
                raise ValueError(f"{path}: expected a noun at byte {number}, found {line[:60]!r} ({error})") from error
        return self._senses[number]


def _parse(number: int, line: str) -> Sense:
    """Read a line: number, lexicographer file, type, words with ids, pointers, and the gloss behind a bar."""
    fields = line.split(" | ")[0].split()
    if int(fields[0]) != number:
        raise ValueError("another number")
    num_words = int(fields[3], 16)
    words = [re.sub(r"\(.*\)$", "", fields[4 + 2 * index]) for index in range(num_words)]
    start = 5 + 2 * num_words
    pointers = [fields[start + 4 * index : start + 4 * index + 2] for index in range(int(fields[start - 1]))]
    return Sense(
        number,
        KINDS.get(int(fields[1]), ""),
        tuple(word.replace("_", " ").lower() for word in words),
        tuple(int(target) for symbol, target in pointers if symbol in ("@", "@i")),
        any(symbol == "@i" for symbol, _ in pointers),
    )
