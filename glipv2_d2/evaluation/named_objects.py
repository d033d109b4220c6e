"""The objects that a caption names, and those that are annotated in its image."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from detectron2.structures import BoxMode

from ..structures import CharSpan

Name = tuple[str, ...]

_WORD = re.compile(r"[^\W_]+")
_ARTICLES = frozenset(("a", "an", "the"))


class Mention(NamedTuple):
    """A name and its position in a text.

    Attributes:
        name: Words of the name.
        span: Half-open character range of the text.
    """

    name: Name
    span: CharSpan


def name_of(text: str) -> Name:
    """Return the lower-case words of a name or phrase, without an article at its beginning; it may be empty."""
    words = [match.group().lower() for match in _WORD.finditer(text)]
    return tuple(words[1:] if words and words[0] in _ARTICLES else words)


def find_mentions(text: str, names: Iterable[Name]) -> list[Mention]:
    """Find names in a text: whole words, upper or lower case, with any marks between them.

    Of names that begin at the same word, the longest is found, and mentions do not overlap: "a toy sports car" mentions
    "sports car", not "car". Inflected words are other words: "two dogs" does not mention "dog".

    Args:
        text: A caption; it may be empty.
        names: Names to look for.

    Returns:
        All mentions, in the order of the text. A name may be mentioned several times.
    """
    known = set(names) - {()}
    longest = max(map(len, known), default=0)
    words = list(_WORD.finditer(text))
    mentions, start = [], 0
    while start < len(words):
        for end in range(min(start + longest, len(words)), start, -1):
            name = tuple(match.group().lower() for match in words[start:end])
            if name in known:
                mentions.append(Mention(name, (words[start].start(), words[end - 1].end())))
                start = end - 1
                break
        start += 1
    return mentions


def annotated_boxes(
    dataset_dict: Mapping[str, Any], thing_classes: Sequence[str] | None = None
) -> dict[Name, list[list[float]]]:
    """Return the annotated boxes of an image by name.

    Args:
        dataset_dict: Dict of the image. The name of an annotation is the part of ``caption`` that its
            ``tokens_positive`` mark, else the name of its ``category_id``. Annotations without a name are left out.
        thing_classes: Names of the categories, if there are any.

    Returns:
        For each name its boxes, XYXY in pixels of the original image; empty without annotations.
    """
    boxes: dict[Name, list[list[float]]] = {}
    for annotation in dataset_dict.get("annotations", ()):
        if annotation.get("tokens_positive"):
            caption = dataset_dict["caption"]
            name = name_of(" ".join(caption[begin:end] for begin, end in annotation["tokens_positive"]))
        elif thing_classes and "category_id" in annotation:
            name = name_of(thing_classes[annotation["category_id"]])
        else:
            continue
        if name:
            box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            boxes.setdefault(name, []).append(box)
    return boxes
