"""Encode equal prompts of a batch only once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...structures import TokenBatch


def encode_distinct(encode: Callable[[Tensor, Tensor], Tensor], tokens: TokenBatch) -> Tensor:
    """Encode N prompts of T tokens, equal prompts only once.

    Args:
        encode: Maps token ids (M, T) and their mask (M, T) bool to features (M, T, D). It must encode each prompt by
            itself and without randomness.
        tokens: The prompts.

    Returns:
        (N, T, D). Gradients of equal prompts add up.
    """
    # The mask is part of the key, because a real token may have the id that fills the padding.
    rows = torch.stack([tokens.input_ids, tokens.mask.long()], dim=1)  # (N, 2, T)
    distinct, prompt_row = torch.unique(rows, dim=0, return_inverse=True)
    return encode(distinct[:, 0], distinct[:, 1].bool())[prompt_row]
