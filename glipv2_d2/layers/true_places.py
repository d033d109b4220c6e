"""The places of the True entries of a mask whose number is known: nobody waits for a device to count them."""

from __future__ import annotations

import torch
from torch import Tensor


def true_places(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return row and column of each True entry, row by row, as ``mask.nonzero(as_tuple=True)`` does.

    Args:
        mask: (N, R) bool.
        count: The number of its True entries.

    Returns:
        Two tensors (count,) int64.
    """
    if mask.device.type == "cpu":
        row, column = mask.nonzero(as_tuple=True)
        return row, column
    flat = mask.flatten()
    # Each True entry writes its place into the next slot, all others into one behind the last.
    slots = torch.where(flat, flat.cumsum(0) - 1, count)
    places = slots.new_empty(count + 1).scatter_(0, slots, torch.arange(len(flat), device=mask.device))[:count]
    return places // mask.shape[1], places % mask.shape[1]
