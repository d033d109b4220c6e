"""From token ids back to text: the counterpart of the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE, WordPiece

from ..errors import InputError
from ..structures import CharSpan

# Marks that a tokenizer separates and that a text joins to the word before or after.
_NO_SPACE_BEFORE = frozenset(".,?!;:%)]}'-/")
_NO_SPACE_AFTER = frozenset("([{#$@-/")
_CLITICS = frozenset(("s", "m", "d", "t", "re", "ve", "ll"))


class DecodedText(NamedTuple):
    """A text and the character ranges of its tokens.

    Attributes:
        text: Words one space apart, without special tokens.
        token_spans: For each of T tokens its half-open character range of the text; None for special tokens and for
            tokens that spell no character.
    """

    text: str
    token_spans: list[CharSpan | None]


def decode_tokens(encoder: Tokenizer, input_ids: Sequence[int]) -> DecodedText:
    """Spell out token ids.

    Marks that English writes inside or at the end of a word get no space: "man's", "t-shirt", "3.5", "a dog, a cat.".

    Args:
        encoder: A tokenizer of word pieces, or one whose pieces mark the end of a word, such as CLIP's.
        input_ids: T >= 0 ids; special tokens are left out.

    Raises:
        InputError: An id is not of the vocabulary, or the tokenizer is of another kind.
    """
    special = {row for row, token in encoder.get_added_tokens_decoder().items() if token.special}
    words: list[list[tuple[int, str]]] = []  # For each word its pieces with their indices.
    ends_word = _end_marker(encoder)
    is_open = False
    for index, input_id in enumerate(map(int, input_ids)):
        if input_id in special:
            is_open = False
            continue
        piece = encoder.id_to_token(input_id)
        if piece is None:
            raise InputError(f"input_ids[{index}] is {input_id}, expected an id of the tokenizer's vocabulary")
        if ends_word is None:
            is_open = bool(words) and is_open and piece.startswith("##")
            piece = piece.removeprefix("##")
        if not is_open:
            words.append([])
        words[-1].append((index, piece.removesuffix(ends_word) if ends_word else piece))
        is_open = not (ends_word and piece.endswith(ends_word))
    return _write(words, len(input_ids), is_bytes=ends_word is not None)


def _end_marker(encoder: Tokenizer) -> str | None:
    """Return the mark at the end of a word's last piece; None for a vocabulary that marks all pieces but the first."""
    model = encoder.model
    if isinstance(model, WordPiece):
        return None
    if isinstance(model, BPE) and model.end_of_word_suffix:
        return model.end_of_word_suffix
    raise InputError(
        f"MODEL.TEXT_ENCODER.TOKENIZER: found a {type(model).__name__} without a mark at the end of words, expected "
        "word pieces or a vocabulary like CLIP's to write text with"
    )


def _write(words: list[list[tuple[int, str]]], num_tokens: int, is_bytes: bool) -> DecodedText:
    spans: list[CharSpan | None] = [None] * num_tokens
    text, previous, num_quotes = "", "", 0
    decoder = ByteLevel()
    for position, pieces in enumerate(words):
        spelled = [piece for _, piece in pieces]
        if is_bytes:
            # A character may begin in one piece and end in the next, so each prefix is decoded as a whole.
            prefixes = [decoder.decode(["".join(spelled[: count + 1])]) for count in range(len(spelled))]
        else:
            prefixes = ["".join(spelled[: count + 1]) for count in range(len(spelled))]
        word = prefixes[-1]
        following = "".join(piece for _, piece in words[position + 1]) if position + 1 < len(words) else ""
        if text and _has_space(text, previous, word, following, num_quotes):
            text += " "
        begin = end = len(text)
        text += word
        for (index, _), prefix in zip(pieces, prefixes, strict=True):
            start, end = end, max(end, min(begin + len(prefix), len(text)))
            spans[index] = (start, end) if start < end else None
        previous = word
        num_quotes += word == '"'
    return DecodedText(text, spans)


def _has_space(text: str, previous: str, word: str, following: str, num_quotes: int) -> bool:
    """Tell whether there is a space between a word and the text before it."""
    if word == '"':
        return num_quotes % 2 == 0
    if previous == '"' and num_quotes % 2 == 1:
        return False
    if previous in (".", ",", ":") and re.search(r"\d.$", text) and word[:1].isdigit():
        return False
    if word in ("-", "/"):
        # A mark between two words joins them; a dash at the end, or before another mark, does not.
        return not (previous[-1:].isalnum() and following[:1].isalnum())
    if previous in ("-", "/"):
        return not re.search(r"[^\W_][-/]$", text)
    if previous == "'":
        return not (word in _CLITICS or re.search(r"(?:^|\W)[odl]'$", text))
    return word not in _NO_SPACE_BEFORE and previous not in _NO_SPACE_AFTER
