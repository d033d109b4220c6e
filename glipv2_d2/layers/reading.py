"""Who reads whom: the tokens each other, the image the text; and what the layers remember of a text being written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Reading:
    """Who reads whom where image and text are fused. The text reads the image in every case.

    Attributes:
        causal: A token reads tokens up to itself only. Otherwise it reads all of its prompt.
        image_reads: The image reads the text. Otherwise its features are the same for every prompt.

    Raises:
        ValueError: Both are True: through the image a token would read those after it.
    """

    causal: bool = False
    image_reads: bool = True

    def __post_init__(self) -> None:
        if self.causal and self.image_reads:
            raise ValueError("Reading: expected image_reads False with causal True, found True")


BOTH_WAYS = Reading()
# How a caption is read: word by word, without a change of the image (GLIPv2, App. D.2).
CAUSAL = Reading(causal=True, image_reads=False)


def visible_tokens(mask: Tensor, causal: bool) -> Tensor:
    """Tell which tokens each token of a prompt may attend to.

    Args:
        mask: (N, T) bool, True at real tokens.
        causal: A token sees those up to itself only.

    Returns:
        (N, 1, 1, T) bool, True at real tokens; with ``causal`` (N, 1, T, T), True in row t at real tokens up to t. A
        row may be all False.
    """
    visible = mask[:, None, None, :]
    if causal:
        order = torch.arange(mask.shape[1], device=mask.device)
        visible = visible & (order <= order[:, None])
    return visible


class KeyValues(NamedTuple):
    """What a layer remembers of the tokens of B texts, all of one length, for the tokens that follow.

    Attributes:
        keys: (B, heads, t, d).
        values: (B, heads, t, d).
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def extend(cls, past: KeyValues | None, keys: Tensor, values: Tensor) -> KeyValues:
        """Put the tokens of ``past``, None if there are none, before those of ``keys`` and ``values``."""
        if past is None:
            return cls(keys, values)
        return cls(torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2))

    def select(self, rows: Tensor) -> KeyValues:
        """Take the texts ``rows``, int64 of any length; a text may be taken several times."""
        return KeyValues(self.keys[rows], self.values[rows])


def next_position(past: list[KeyValues] | None, max_positions: int) -> int:
    """Return how many tokens the layers of a stack remember, which is the position of the next; 0 for None.

    Raises:
        InputError: It is not below ``max_positions``.
    """
    position = 0 if past is None else past[0].keys.shape[2]
    if position >= max_positions:
        raise InputError(
            f"MODEL.GLIPV2.CAPTIONING.MAX_LENGTH: a text of more than {max_positions} tokens was asked for, expected "
            f"at most the positions of the text encoder"
        )
    return position
