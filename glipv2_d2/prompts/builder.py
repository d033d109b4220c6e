"""From names or a caption to a ``Prompt``: cleaning and character ranges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..structures import CharSpan, Prompt

SEPARATOR = ". "


def clean_name(name: str) -> str:
    """Turn the name of a category into words.

    Text between the first "(" and the last ")" is removed, an underscore becomes a space, and a pair of spaces becomes
    one, in a single pass. Nothing is stripped: "bow_(weapon)" becomes "bow " with a space at its end.

    Source: the name cleaning of the official evaluation; the weights have seen its output.
    """
    begin, end = name.find("("), name.rfind(")")
    if 0 <= begin < end:
        name = name[:begin] + name[end + 1 :]
    return name.replace("_", " ").replace("  ", " ")


def plain_name(name: str) -> str:
    """Return what of a name counts where names are compared: its words in lower case, once it is cleaned."""
    return " ".join(clean_name(name).lower().split())


def token_name(input_ids: Sequence[int]) -> str:
    """Return what of a name counts where names are compared by their tokens; no ``plain_name`` is like it."""
    return "\t" + " ".join(map(str, input_ids))


def namesakes(names: Sequence[str]) -> dict[int, list[int]]:
    """Return, for each row of ``names`` that equals others once cleaned and in lower case, those other rows."""
    rows_of_text: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of_text.setdefault(plain_name(name), []).append(row)
    groups = [rows for rows in rows_of_text.values() if len(rows) > 1]
    return {row: [other for other in rows if other != row] for rows in groups for row in rows}


def siblings(names: Sequence[str], parents: Sequence[str]) -> dict[int, list[int]]:
    """Return, for each row of ``names`` that has others of its parent, the rows of all of them, itself among them.

    A name that is the parent itself, as "bird" beside "crow" and "robin", fits what they name and is no sibling.

    Args:
        names: Names of a dataset.
        parents: The parent of each, "" for none. One parent of all names says nothing: then there are no siblings.
    """
    rows_of_parent: dict[str, list[int]] = {}
    for row, (name, parent) in enumerate(zip(names, parents, strict=True)):
        if parent and clean_name(name).strip().lower() != parent.lower():
            rows_of_parent.setdefault(parent, []).append(row)
    groups = [rows for rows in rows_of_parent.values() if 1 < len(rows) < len(names)]
    return {row: rows for rows in groups for row in rows}


def check_vocabulary(names: Sequence[str], *, with_blank: bool = False) -> None:
    """Check a list of names of a user or a dataset before it is used.

    Different names may clean to the same text, such as "bow_(weapon)" and "bow_(decorative_ribbons)" of LVIS. Each of
    them stays a phrase of the prompt.

    Args:
        names: The names.
        with_blank: Some of them may be blank, see ``prompt_from_names``.

    Raises:
        TypeError: ``names`` is one string, or a name is no string.
        InputError: There is no name, a name cleans to nothing or holds a line break, or the very same name stands in
            two rows.
    """
    _check_names(names, with_blank)
    first_row: dict[str, int] = {}
    for row, name in enumerate(names):
        other = first_row.setdefault(name, row)
        if other != row:
            raise InputError(f"names: rows {other} and {row} are both {shorten(name)}, expected every name once")


def prompt_from_names(
    names: Sequence[str],
    category_ids: Sequence[int] | None = None,
    *,
    separator: str = SEPARATOR,
    with_blank: bool = False,
) -> Prompt:
    """Join cleaned names to a caption; each name is one phrase.

    A name may contain the separator, and the same name may occur twice, because a phrase is a character range.

    Args:
        names: P >= 1 names, in the order of the caption.
        category_ids: Ids that detections get; 0..P-1 if absent.
        separator: Stands between two names, not after the last.
        with_blank: A name may be white space alone, as the first category of ChessPieces in ODinW. It stays in the
            caption between its separators, its phrase has no range and therefore no token, and it is never detected.

    Raises:
        TypeError: ``names`` is one string, or a name is no string.
        InputError: There is no name, a name cleans to nothing or holds a line break, the separator would glue two names
            to one word, or ``category_ids`` has another length.

    Source: the caption of the official evaluation.
    """
    _check_names(names, with_blank)
    if separator.isalnum() or not separator:
        raise InputError(f"INPUT.PROMPT.SEPARATOR: expected a space or a punctuation mark in it, found {separator!r}")
    cleaned = [clean_name(name) for name in names]
    spans: list[CharSpan] = []
    begin = 0
    for text in cleaned:
        spans.append((begin, begin + len(text)))
        begin += len(text) + len(separator)
    phrase_spans = tuple((span,) if text.strip() else () for text, span in zip(cleaned, spans, strict=True))
    if category_ids is None:
        category_ids = range(len(names))
    ids = tuple(int(category_id) for category_id in category_ids)
    return Prompt(separator.join(cleaned), tuple(names), phrase_spans, ids, tuple(spans))


def prompt_from_caption(
    caption: str,
    phrase_spans: Sequence[Sequence[Sequence[int]]],
    phrases: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Prompt:
    """Make a prompt of a caption whose phrases are known.

    Args:
        caption: The caption, which is not changed.
        phrase_spans: For each of P >= 0 phrases its half-open character ranges. A phrase without a range has no tokens.
        phrases: P strings; if absent, the text of the ranges, joined by spaces.
        category_ids: Ids that detections get; 0..P-1 if absent.

    Raises:
        TypeError: ``caption`` is no string.
        InputError: The caption is empty or white space, a range is no pair of integers, is empty or leaves the caption,
            or the sequences differ in length.
    """
    if not isinstance(caption, str):
        raise TypeError(f"caption: expected a string, found {type(caption).__name__}")
    if not caption.strip():
        raise InputError(f"caption: expected some words, found {caption!r}")
    spans = tuple(_read_spans(phrase, row) for row, phrase in enumerate(phrase_spans))
    if phrases is None:
        phrases = [" ".join(caption[begin:end] for begin, end in ranges) for ranges in spans]
    if category_ids is None:
        category_ids = range(len(spans))
    return Prompt(caption, tuple(phrases), spans, tuple(int(i) for i in category_ids))


def shorten(name: str) -> str:
    """Quote a name for a message of one line, however long it is."""
    return repr(name if len(name) <= 60 else name[:57] + "...")


def _check_names(names: Sequence[str], with_blank: bool) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names: expected a list of strings, found the {type(names).__name__} {names!r:.100}")
    if len(names) == 0:
        raise InputError("names: expected at least one name, found none")
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"names[{row}]: expected a string, found {name!r:.100}")
        if with_blank and not name.strip():
            continue
        if not clean_name(name).strip():
            raise InputError(
                f"names[{row}]: nothing is left of {shorten(name)} once underscores and parentheses are removed"
            )
        # Mostly a list that was split at the wrong place: two names that would be asked for as one.
        if name.splitlines() != [name]:
            raise InputError(f"names[{row}]: {shorten(name)} holds a line break, expected a name on one line")


def _read_spans(ranges: Sequence[Sequence[int]], row: int) -> tuple[CharSpan, ...]:
    spans = []
    for item in ranges:
        pair = tuple(item) if isinstance(item, Sequence) and not isinstance(item, str) else ()
        if len(pair) != 2 or not all(isinstance(edge, (int, np.integer)) for edge in pair):
            raise InputError(f"phrase_spans[{row}]: expected pairs of integers, found {item!r}")
        spans.append((int(pair[0]), int(pair[1])))
    return tuple(spans)
