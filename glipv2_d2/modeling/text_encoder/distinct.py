"""Equal prompts of a batch are encoded once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...structures import TokenBatch


def encode_distinct(encode: Callable[[Tensor, Tensor], Tensor], tokens: TokenBatch) -> Tensor:
    """Encode N prompts of T tokens, each of those that are equal once.

    Args:
        encode: Maps token ids (M, T) and their mask (M, T) bool to features (M, T, D), each prompt by itself and always
            the same way.
        tokens: The prompts.

    Returns:
        (N, T, D). Gradients of equal prompts add up.
    """
    # The mask belongs to the key: a real token may have the id that fills the padding.
    rows = torch.stack([tokens.input_ids, tokens.mask.long()], dim=1)  # (N, 2, T)
    distinct, prompt_row = torch.unique(rows, dim=0, return_inverse=True)
    return encode(distinct[:, 0], distinct[:, 1].bool())[prompt_row]
