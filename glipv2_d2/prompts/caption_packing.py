"""Negative captions: captions of other images in the prompt of an image, whose phrases are absent from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..structures import CharSpan
from .tokenizer import PromptTokenizer


def draw_num_negative_captions(num_negatives: int, no_prob: float, full_prob: float, rng: np.random.Generator) -> int:
    """Draw how many captions of other images a prompt should hold.

    Args:
        num_negatives: The most there can be, >= 0.
        no_prob: Probability of 0.
        full_prob: Otherwise the probability of ``num_negatives``. Otherwise the number is uniform from 0 to one less.
        rng: Source of the random choice.

    Source: the caption data of the official GLIP code.
    """
    if num_negatives == 0 or rng.random() < no_prob:
        return 0
    if rng.random() < full_prob:
        return num_negatives
    return int(rng.integers(num_negatives))


class PackedCaption(NamedTuple):
    """A caption among captions of other images.

    Attributes:
        text: All captions.
        spans: For each phrase of the own caption its ranges in the text.
        own: Range of the own caption in the text.
    """

    text: str
    spans: list[list[CharSpan]]
    own: CharSpan


def pack_captions(
    caption: str,
    spans: Sequence[Sequence[CharSpan]],
    negatives: Sequence[str],
    tokenizer: PromptTokenizer,
    *,
    num_negatives: int,
    no_prob: float,
    full_prob: float,
    rng: np.random.Generator,
) -> PackedCaption:
    """Join a caption with captions of other images, in random order, each followed by a full stop and a space.

    Negatives are added in random order, up to the drawn number, without those that no longer fit into the token limit,
    so that the image's own caption never loses a token. A negative that is blank or equal to the own caption is left
    out.

    Args:
        caption: The own caption. A caption past the token limit stays alone, and the tokenizer cuts it off.
        spans: For each of P phrases its half-open character ranges of ``caption``.
        negatives: Captions of other images to choose from; at most ``num_negatives`` are used. If there are fewer than
            the drawn number, all of them are candidates.
        tokenizer: Counts the tokens and knows the limit.
        num_negatives: See ``draw_num_negative_captions``; 0 leaves the caption as it is.
        no_prob: See ``draw_num_negative_captions``.
        full_prob: See ``draw_num_negative_captions``.
        rng: Source of every random choice.

    Returns:
        The joined caption, with the place of the own one and of its phrases.

    Source: the caption data of the official GLIP code, including its protection of the own caption.
    """
    if num_negatives == 0:
        return PackedCaption(caption, [[(begin, end) for begin, end in phrase] for phrase in spans], (0, len(caption)))
    count = draw_num_negative_captions(num_negatives, no_prob, full_prob, rng)
    own = _with_full_stop(caption)
    others = [_with_full_stop(text.strip()) for text in negatives if text.strip()]
    others = [text for text in others if text.lower() != own.strip().lower()]
    drawn = [others[row] for row in rng.permutation(len(others))[:count].tolist()]
    sentences = [own, *_fitting(drawn, own, tokenizer)]

    order = rng.permutation(len(sentences)).tolist()
    before = order[: order.index(0)]
    shift = sum(len(sentences[row]) + 1 for row in before)
    packed = "".join(sentences[row] + " " for row in order)
    moved = [[(begin + shift, end + shift) for begin, end in phrase] for phrase in spans]
    return PackedCaption(packed, moved, (shift, shift + len(own)))


def _with_full_stop(text: str) -> str:
    return text if text.rstrip().endswith(".") else text + "."


def _fitting(drawn: list[str], own: str, tokenizer: PromptTokenizer) -> list[str]:
    """Return the captions that fit beside the own one and those before them.

    Each counts with its special tokens, as officially.
    """
    num_special = tokenizer.max_tokens - tokenizer.max_content_tokens
    room = tokenizer.max_content_tokens - tokenizer.count_tokens(own)
    kept = []
    for text in drawn:
        tokens = tokenizer.count_tokens(text) + num_special
        if tokens < room:
            room -= tokens
            kept.append(text)
    return kept
