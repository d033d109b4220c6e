"""How tokens and image read each other, and the keys and values that layers keep while a text is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError


@dataclass(frozen=True)
class Reading:
    """How image and text read each other in the fusion. The text always reads the image.

    Attributes:
        causal: A token reads only tokens up to itself. Otherwise it reads its whole prompt.
        image_reads: The image reads the text. Otherwise its features are the same for every prompt.

    Raises:
        ValueError: Both are True: a token would read later tokens through the image.
    """

    causal: bool = False
    image_reads: bool = True

    def __post_init__(self) -> None:
        if self.causal and self.image_reads:
            raise ValueError("Reading: expected image_reads False with causal True, found True")


BOTH_WAYS = Reading()
# Captions are read word by word and do not change the image (GLIPv2, App. D.2).
CAUSAL = Reading(causal=True, image_reads=False)


def visible_tokens(mask: Tensor, causal: bool) -> Tensor:
    """Tell which tokens each token of a prompt may attend to.

    Args:
        mask: (N, T) bool, True at real tokens.
        causal: A token sees only tokens up to itself.

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
    """Keys and values that a layer keeps of the tokens of B texts of equal length, for the tokens that follow.

    Attributes:
        keys: (B, heads, t, d).
        values: (B, heads, t, d).
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def extend(cls, past: KeyValues | None, keys: Tensor, values: Tensor) -> KeyValues:
        """Append ``keys`` and ``values`` to those of ``past``, which is None before the first token."""
        if past is None:
            return cls(keys, values)
        return cls(torch.cat([past.keys, keys], dim=2), torch.cat([past.values, values], dim=2))

    def select(self, rows: Tensor) -> KeyValues:
        """Select texts by ``rows``, int64 of any length; a text may be selected several times."""
        return KeyValues(self.keys[rows], self.values[rows])


def next_position(past: list[KeyValues] | None, max_positions: int) -> int:
    """Return the position of the next token: the number of tokens whose keys a stack of layers keeps, 0 for None.

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
