"""Where the positions of a feature pyramid lie, as numbers that a linear layer can compare."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Half waves over the longer side. One tells left from right, and is even in the middle; the others are finer.
_HALF_WAVES = (1.0, 2.0, 4.0)
POSITION_CHANNELS = 4 * len(_HALF_WAVES)


def encode_positions(features: Sequence[Tensor]) -> Tensor:
    """Encode the centres of the cells of L >= 1 maps (N, C, Hl, Wl) of one image area: cosines and sines of x and y.

    Lengths are relative to the longer side, so that x and y have one scale; the padding of a batch counts as image.

    Returns:
        (S, ``POSITION_CHANNELS``) in [-1, 1], S over all maps, row by row, of their type and on their device.

    Source: the sine code of Vaswani et al. 2017 in two dimensions, as detectors with attention use it.
    """
    codes = []
    for level in features:
        height, width = level.shape[-2:]
        longer = max(height, width)
        y, x = (torch.arange(size, device=level.device).add(0.5).div(longer) for size in (height, width))
        places = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).flatten(0, 1)
        angles = [places * (math.pi * number) for number in _HALF_WAVES]
        codes.append(torch.cat([wave for angle in angles for wave in (angle.cos(), angle.sin())], dim=1))
    return torch.cat(codes).to(features[0].dtype)
