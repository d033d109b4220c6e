"""Where things lie in an image, as coordinates that layers can compare."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def relative_coordinates(points: Tensor, size: tuple[int, int]) -> Tensor:
    """Turn points of an image into coordinates: -1 at the left and upper border, 1 at the far end of the longer side.

    Args:
        points: (..., 2), x and y.
        size: Height and width of the area that they lie in, of a length unit of theirs.
    """
    return points * (2 / max(size)) - 1


def cell_coordinates(features: Sequence[Tensor]) -> Tensor:
    """Give the coordinates of the centres of all cells of L >= 1 maps (N, C, Hl, Wl) of one image area.

    Both have the scale of the longer side; the padding of a batch counts as image.

    Returns:
        (S, 2) in [-1, 1], x and y, S over all maps, row by row, of their type and on their device.

    Source: the coordinate channels of CoordConv (Liu et al. 2018).
    """
    coordinates = []
    for level in features:
        height, width = level.shape[-2:]
        y, x = (torch.arange(size, device=level.device) + 0.5 for size in (height, width))
        centres = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
        coordinates.append(relative_coordinates(centres, (height, width)))
    return torch.cat(coordinates).to(features[0].dtype)
