"""Positions in an image as coordinates that layers can compare."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def relative_coordinates(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn points of an image into coordinates: -1 at the left and upper border, 1 at the far end of the longer side.

    Args:
        points: (..., 2), x and y.
        size: Height and width of the image, in the unit of the points.
    """
    return points * (2 / max(size)) - 1


def cell_coordinates(features: Sequence[Tensor]) -> Tensor:
    """Return the coordinates of the centres of all cells of L >= 1 maps (N, C, Hl, Wl) of one image, finest first.

    The finest level defines the area; the padding of a batch counts as image. Each level has 2, 4, ... times the stride
    of the one before, so that the last cells of a coarse level may be beyond the border.

    Returns:
        (S, 2), x and y of the S cells of all maps, row by row, in their type and on their device.

    Source: the coordinate channels of CoordConv (Liu et al. 2018).
    """
    rows, columns = features[0].shape[-2:]
    coordinates, stride, longer = [], 1, 0
    for level in features:
        height, width = level.shape[-2:]
        if longer:
            # Sizes are rounded up, and several maps of one cell may follow each other.
            stride *= 2 ** max(1, math.ceil(math.log2(longer / max(height, width))))
        longer = max(height, width)
        y, x = (torch.arange(size, device=level.device) + 0.5 for size in (height, width))
        centres = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
        coordinates.append(relative_coordinates(centres * stride, (rows, columns)))
    return torch.cat(coordinates).to(features[0].dtype)
