"""Names that a text encoder cannot tell apart are named when they are read: their results look like any others."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from detectron2.utils.logger import log_first_n

from ..errors import InputError
from .builder import clean_name, namesakes, plain_name
from .tokenizer import PromptTokenizer

# Texts in one message.
_MAX_SHOWN = 8


def warn_about_unknown(texts: Sequence[str], tokenizer: PromptTokenizer, where: str) -> None:
    """Log once, in one line, the parts of texts that are not in the vocabulary of the text encoder.

    Args:
        texts: Names, or a caption.
        tokenizer: The tokenizer of the text encoder.
        where: The dataset or the argument that the texts come from.
    """
    pieces = dict.fromkeys(piece for text in texts for piece in tokenizer.unknown_pieces(text))
    if pieces:
        _warn(
            f"{where}: expected words of the text encoder's vocabulary, found {_some(list(pieces))}, which it cannot "
            f"tell apart; say it in English"
        )


def warn_about_untrained(names: Sequence[str], trained: Collection[str], tokenizer: PromptTokenizer) -> None:
    """Log once, in one line, those of the names that a user asks for that a model was not trained on.

    Args:
        names: The names.
        trained: All that the model knows, as ``plain_name`` returns them; empty: it knows others.
        tokenizer: The tokenizer of the text encoder. A name with the tokens of a known one is known.
    """
    others = [name for name in names if trained and plain_name(name) not in trained]
    known = {tokenizer.token_name(name) for name in trained if others} - {""}
    others = [name for name in others if tokenizer.token_name(clean_name(name)) not in known]
    if others:
        _warn(
            f"names: expected those that the model was trained on, {_some(list(trained))}, found {_some(others)}; the "
            "training began without weights that know names, so boxes of other names mean nothing: train from weights "
            "with --keep, or give examples of both"
        )


def check_names_differ(names: Sequence[str], tokenizer: PromptTokenizer, where: str, *, is_train: bool) -> None:
    """Check that names which read differently have different tokens, and warn of unknown parts of names.

    Names that are one text once cleaned, such as "bow_(weapon)" and "bow_(decorative_ribbons)", are no fault.

    Args:
        names: Names of a dataset or of a user, or the texts that stand for them.
        tokenizer: The tokenizer of the text encoder.
        where: The dataset or the argument that the names come from.
        is_train: Names with the same tokens are an error; otherwise a warning.

    Raises:
        InputError: In training, two names have the same tokens.
    """
    warn_about_unknown(names, tokenizer, where)
    cleaned = [clean_name(name) for name in names]
    known = namesakes(names)
    for group in tokenizer.same_tokens(cleaned):
        others = [row for row in group if row != group[0] and row not in known.get(group[0], ())]
        if not others or not cleaned[group[0]].strip():
            continue
        found = [names[row] for row in (group[0], *others)]
        message = f"{where}: expected names with different tokens, found {_some(found)} with the same; rename them"
        if is_train:
            raise InputError(message)
        _warn(message)


def _warn(message: str) -> None:
    log_first_n(logging.WARNING, message, name=__name__, key="message")


def _some(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:_MAX_SHOWN])) + (
        f" and {len(texts) - _MAX_SHOWN} others" * (len(texts) > _MAX_SHOWN)
    )
