"""Prompts of some names of a vocabulary, put together from the tokens of its prompts; no text is read again."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Sequence
from itertools import accumulate, compress, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ..structures import TokenizedPrompt
from .builder import plain_name, token_name


def is_vocabulary(prompts: Sequence[TokenizedPrompt]) -> bool:
    """Tell whether prompts are lists of names, of which some can be asked for without the others."""
    return all(prompt.phrases and len(prompt.name_ranges) == len(prompt.phrases) for prompt in prompts)


def prompts_of_names(
    prompts: Sequence[TokenizedPrompt], rows: Sequence[int], *, max_tokens: int
) -> list[TokenizedPrompt]:
    """Ask for some names of a vocabulary only.

    The prompts are those that a tokenizer makes of these names alone, as long as it reads names apart from each other:
    that of BERT does for every separator with a punctuation mark. Otherwise a name keeps the tokens that it has in the
    vocabulary.

    Args:
        prompts: The vocabulary, see ``is_vocabulary``.
        rows: Names, numbered over all prompts, each with tokens, in the order in which they are asked for.
        max_tokens: Most tokens of a prompt, special tokens included.

    Returns:
        Prompts of as many names as fit, but of no more than a prompt of the vocabulary has; none for no names.
        ``category_ids`` and ``phrases`` are those of the vocabulary.
    """
    first_rows = list(accumulate((len(prompt.phrases) for prompt in prompts), initial=0))
    separator = _separator(prompts)
    head, tail = _ends(prompts[0], separator)
    most_names = max(len(prompt.phrases) for prompt in prompts)
    found: list[TokenizedPrompt] = []
    pieces: list[_Piece] = []
    num_tokens = len(head) + len(tail)
    for row in rows:
        number = bisect_right(first_rows, row) - 1
        piece = _Piece.of(prompts[number], row - first_rows[number])
        more = len(piece.ids) + (len(separator) if pieces else 0)
        if pieces and (len(pieces) == most_names or num_tokens + more > max_tokens):
            found.append(_join(pieces, separator, head, tail))
            pieces, num_tokens, more = [], len(head) + len(tail), len(piece.ids)
        pieces.append(piece)
        num_tokens += more
    return [*found, _join(pieces, separator, head, tail)] if pieces else found


def split_prompts(
    prompts: Sequence[TokenizedPrompt], own: Collection[str], *, max_tokens: int
) -> tuple[list[TokenizedPrompt], list[TokenizedPrompt]]:
    """Return the prompts of own names and those of all others, as ``prompts_of_names`` makes them.

    A prompt without own names, or with no others, stays as it is. A caption, whose phrases cannot be asked for apart,
    is one of the first if all of its phrases are own names.

    Args:
        prompts: What is asked for.
        own: The own names, each as ``plain_name`` returns it, and their tokens as ``token_name`` does: "cafe" is "café"
            to a tokenizer without accents. A synonym of one is another name.
        max_tokens: Most tokens of a prompt, special tokens included.
    """
    flags = [_are_own(prompt, own) for prompt in prompts]
    if is_vocabulary(prompts) and len({flag for of_prompt in flags for flag in of_prompt}) == 2:
        has_tokens = [begin < end for prompt in prompts for begin, end in prompt.name_ranges]
        rows = [row for row, spelled in enumerate(has_tokens) if spelled]
        is_own = [flag for of_prompt in flags for flag in of_prompt]
        parts = [row for row in rows if is_own[row]], [row for row in rows if not is_own[row]]
        first, second = (prompts_of_names(prompts, part, max_tokens=max_tokens) for part in parts)
        return first, second
    wholes = [(prompt, bool(of_prompt) and all(of_prompt)) for prompt, of_prompt in zip(prompts, flags, strict=True)]
    return [prompt for prompt, whole in wholes if whole], [prompt for prompt, whole in wholes if not whole]


def _are_own(prompt: TokenizedPrompt, own: Collection[str]) -> list[bool]:
    """Tell of each phrase of a prompt whether it is an own name."""
    ids, marks = prompt.input_ids.tolist(), [] if prompt.name_ranges else prompt.phrase_token_map.tolist()
    spelled = [ids[begin:end] for begin, end in prompt.name_ranges] or [list(compress(ids, row)) for row in marks]
    return [
        plain_name(phrase) in own or token_name(tokens) in own
        for phrase, tokens in zip(prompt.phrases, spelled, strict=True)
    ]


class _Piece(NamedTuple):
    """A name: its tokens, which of them spell it, and what a detection of it is called."""

    ids: list[int]
    marks: Tensor
    category_id: int
    phrase: str

    @classmethod
    def of(cls, prompt: TokenizedPrompt, row: int) -> _Piece:
        begin, end = prompt.name_ranges[row]
        ids = prompt.input_ids[begin:end].tolist()
        return cls(ids, prompt.phrase_token_map[row, begin:end], int(prompt.category_ids[row]), prompt.phrases[row])


def _separator(prompts: Sequence[TokenizedPrompt]) -> list[int]:
    """Return the tokens between two names, none if names never stand side by side."""
    for prompt in prompts:
        for (begin, end), (next_begin, next_end) in pairwise(prompt.name_ranges):
            if begin < end and next_begin < next_end:
                return prompt.input_ids[end:next_begin].tolist()
    return []


def _ends(prompt: TokenizedPrompt, separator: list[int]) -> tuple[list[int], list[int]]:
    """Return the tokens before the first name and after the last; names without tokens leave their separators there."""
    spelled = [(begin, end) for begin, end in prompt.name_ranges if begin < end] or [(1, 1)]
    head, tail = prompt.input_ids[: spelled[0][0]].tolist(), prompt.input_ids[spelled[-1][1] :].tolist()
    size = len(separator)
    while size and head[-size:] == separator:
        head = head[:-size]
    while size and tail[:size] == separator:
        tail = tail[size:]
    return head, tail


def _join(pieces: Sequence[_Piece], separator: list[int], head: list[int], tail: list[int]) -> TokenizedPrompt:
    ids, ranges = list(head), []
    for number, piece in enumerate(pieces):
        ids += separator if number else []
        ranges.append((len(ids), len(ids) + len(piece.ids)))
        ids += piece.ids
    ids += tail
    marks = torch.zeros(len(pieces), len(ids), dtype=torch.bool)
    for row, (piece, (begin, end)) in enumerate(zip(pieces, ranges, strict=True)):
        marks[row, begin:end] = piece.marks
    categories = torch.tensor([piece.category_id for piece in pieces])
    names = tuple(piece.phrase for piece in pieces)
    return TokenizedPrompt(torch.tensor(ids), marks, categories, names, name_ranges=tuple(ranges))
