"""From names or a caption to a ``Prompt``: cleaning, character ranges, and the choice of names for training."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import InputError
from ..structures import CharSpan, Prompt

if TYPE_CHECKING:
    from .tokenizer import PromptTokenizer

SEPARATOR = ". "
NEGATIVE_SAMPLING = ("drawn", "total")


def clean_name(name: str) -> str:
    """Turn the name of a category into words.

    What stands between the first "(" and the last ")" goes, an underscore becomes a space, and a pair of spaces becomes
    one, in a single pass. Nothing is stripped: "bow_(weapon)" gives "bow " with a space at its end.

    Source: the name cleaning of the official evaluation; the weights have seen its output.
    """
    begin, end = name.find("("), name.rfind(")")
    if 0 <= begin < end:
        name = name[:begin] + name[end + 1 :]
    return name.replace("_", " ").replace("  ", " ")


def namesakes(names: Sequence[str]) -> dict[int, list[int]]:
    """Return for each row of ``names`` that reads like others, once cleaned and in lower case, the rows of these."""
    rows_of_text: dict[str, list[int]] = {}
    for row, name in enumerate(names):
        rows_of_text.setdefault(" ".join(clean_name(name).lower().split()), []).append(row)
    groups = [rows for rows in rows_of_text.values() if len(rows) > 1]
    return {row: [other for other in rows if other != row] for rows in groups for row in rows}


def check_vocabulary(names: Sequence[str]) -> None:
    """Check a list of names that a user or a dataset brings, before anything is built from it.

    Different names may clean to the same text, as "bow_(weapon)" and "bow_(decorative_ribbons)" of LVIS do: each keeps
    its own place in the prompt.

    Raises:
        TypeError: ``names`` is one string, or a name is no string.
        InputError: There is no name, a name cleans to nothing or holds a line break, or the very same name stands in
            two rows.
    """
    _check_names(names)
    first_row: dict[str, int] = {}
    for row, name in enumerate(names):
        other = first_row.setdefault(name, row)
        if other != row:
            raise InputError(f"names: rows {other} and {row} are both {shorten(name)}, expected every name once")


def prompt_from_names(
    names: Sequence[str], category_ids: Sequence[int] | None = None, *, separator: str = SEPARATOR
) -> Prompt:
    """Join cleaned names to a caption; each name is one phrase.

    A name may hold the separator, and the same name may come twice: a phrase is a character range, not a search.

    Args:
        names: P >= 1 names, in the order of the caption.
        category_ids: Ids that detections get; 0..P-1 if absent.
        separator: Stands between two names, not after the last.

    Raises:
        TypeError: ``names`` is one string, or a name is no string.
        InputError: There is no name, a name cleans to nothing or holds a line break, the separator would glue two names
            to one word, or ``category_ids`` has another length.

    Source: the caption of the official evaluation.
    """
    _check_names(names)
    if separator.isalnum() or not separator:
        raise InputError(f"INPUT.PROMPT.SEPARATOR {separator!r} must hold a space or a punctuation mark")
    cleaned = [clean_name(name) for name in names]
    spans: list[tuple[CharSpan, ...]] = []
    begin = 0
    for text in cleaned:
        spans.append(((begin, begin + len(text)),))
        begin += len(text) + len(separator)
    if category_ids is None:
        category_ids = range(len(names))
    return Prompt(separator.join(cleaned), tuple(names), tuple(spans), tuple(int(i) for i in category_ids))


def prompt_from_caption(
    caption: str,
    phrase_spans: Sequence[Sequence[Sequence[int]]],
    phrases: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> Prompt:
    """Make a prompt of a caption whose phrases are known.

    Args:
        caption: Taken as it is.
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


def sample_training_names(
    names: Sequence[str],
    positives: Collection[int],
    tokenizer: PromptTokenizer,
    *,
    num_negatives: int,
    full_negatives_prob: float,
    shuffle: bool,
    rng: np.random.Generator,
    separator: str = SEPARATOR,
    negative_sampling: str = "drawn",
    never_negatives: Collection[int] = (),
) -> list[int]:
    """Choose the names of a detection dataset that one training prompt holds.

    The names of the image's boxes come first in the budget of tokens, in random order; one that does not fit, and all
    after it, are left out. Then negatives are added as long as tokens are left:

    * "drawn": names are drawn from all, and those that are positive are dropped again; ``num_negatives`` bounds what is
      drawn, not what is added;
    * "total": as many of the absent names as fill the prompt up to ``num_negatives`` names, the positive ones counted.
      An image with more positives has no negatives.

    Args:
        names: All names of the dataset.
        positives: Rows of the names that have a box in the image; none for an image without boxes.
        tokenizer: Counts the tokens and knows the limit.
        num_negatives: Names to draw, or names of the prompt; -1 takes all names, without any draw.
        full_negatives_prob: Probability of ``num_negatives`` names; otherwise a uniform number from 1 to it.
        shuffle: Random order in the prompt; otherwise the order of ``names``.
        rng: Source of every random choice.
        separator: Stands between two names.
        negative_sampling: "drawn" or "total".
        never_negatives: Rows of names that stay out of the prompt unless they are positive: what they name may be in
            the image without a box. They are dropped where positive names are, and change no other draw.

    Returns:
        Rows of ``names`` in the order of the prompt. The caller drops the boxes of absent rows. It holds a name at
        least if ``names`` has one that fits, one of ``never_negatives`` where there is no other.

    Raises:
        InputError: ``num_negatives`` is -1 and the names pass the token limit, or ``negative_sampling`` is unknown.

    Source: "drawn" is the official code, "total" the GLIP paper (arXiv 2112.03857), which speaks of 85 names in all.
    Four departures from the two converters of detection data in the official code: there is no background name;
    ``num_negatives`` 0 draws none, where officially it draws one; an image without boxes whose draw leaves no name gets
    one of the names, since a prompt without a phrase is empty; and officially any name can be a negative.
    """
    if negative_sampling not in NEGATIVE_SAMPLING:
        raise InputError(
            f"INPUT.PROMPT.NEGATIVE_SAMPLING: expected one of {list(NEGATIVE_SAMPLING)}, found {negative_sampling!r}"
        )
    excluded = set(never_negatives).difference(positives)
    if num_negatives < 0:
        rows = [row for row in _all_rows(names, tokenizer, separator) if row not in excluded]
    else:
        kept, budget = _fitting_positives(names, positives, tokenizer, separator, rng)
        count = _draw_count(min(num_negatives, len(names)), full_negatives_prob, rng)
        num_kept = len(kept) if negative_sampling == "total" else None
        negatives = _draw_negatives(len(names), excluded.union(positives), count, num_kept, rng)
        rows = kept + _fitting_negatives(names, negatives, tokenizer, separator, budget)
    if not rows:
        others = [row for row in range(len(names)) if row not in excluded] or range(len(names))
        rows = [others[rng.integers(len(others))]]
    if shuffle:
        return rng.permutation(rows).tolist()
    return sorted(rows)


def shorten(name: str) -> str:
    """Quote a name for a message of one line, however long it is."""
    return repr(name if len(name) <= 60 else name[:57] + "...")


def _check_names(names: Sequence[str]) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"names: expected a list of strings, found the {type(names).__name__} {names!r:.100}")
    if len(names) == 0:
        raise InputError("names: expected at least one name, found none")
    for row, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"names[{row}]: expected a string, found {name!r:.100}")
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


def _all_rows(names: Sequence[str], tokenizer: PromptTokenizer, separator: str) -> list[int]:
    tokens = sum(tokenizer.count_tokens(clean_name(name) + separator) for name in names)
    tokens -= tokenizer.count_tokens(separator)  # none follows the last name
    if tokens > tokenizer.max_content_tokens:
        raise InputError(
            f"INPUT.PROMPT.NUM_NEGATIVES -1 puts all {len(names)} names into one prompt: {tokens} tokens, but "
            f"MODEL.TEXT_ENCODER.MAX_TOKENS leaves {tokenizer.max_content_tokens}; set a number of negatives"
        )
    return list(range(len(names)))


def _fitting_positives(
    names: Sequence[str],
    positives: Collection[int],
    tokenizer: PromptTokenizer,
    separator: str,
    rng: np.random.Generator,
) -> tuple[list[int], int]:
    """Return the rows that fit and the tokens left, below 0 if a row did not fit."""
    kept: list[int] = []
    budget = tokenizer.max_content_tokens
    # Sorted first: the order of a set must not enter the random stream.
    for row in rng.permutation(sorted({int(row) for row in positives})).tolist():
        budget -= tokenizer.count_tokens(clean_name(names[row]) + separator)
        if budget < 0:
            break
        kept.append(row)
    return kept, budget


def _draw_count(full: int, full_negatives_prob: float, rng: np.random.Generator) -> int:
    if full == 0 or rng.random() < full_negatives_prob:
        return full
    return int(rng.integers(1, full + 1))


def _draw_negatives(
    num_names: int, excluded: Collection[int], count: int, num_kept: int | None, rng: np.random.Generator
) -> list[int]:
    """Draw rows in random order: ``count`` less the excluded ones, or as many as fill ``num_kept`` up to ``count``."""
    if num_kept is None:
        return [row for row in rng.choice(num_names, count, replace=False).tolist() if row not in excluded]
    return [row for row in rng.permutation(num_names).tolist() if row not in excluded][: max(count - num_kept, 0)]


def _fitting_negatives(
    names: Sequence[str], negatives: list[int], tokenizer: PromptTokenizer, separator: str, budget: int
) -> list[int]:
    kept = []
    for row in negatives:
        budget -= tokenizer.count_tokens(clean_name(names[row]) + separator)
        if budget <= 0:
            break
        kept.append(row)
    return kept
