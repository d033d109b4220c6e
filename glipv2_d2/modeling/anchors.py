"""Anchors of feature maps, made once for maps of one size."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor, nn

# Sizes of images whose anchors are kept: 350 KiB for 800 x 1333 pixels.
_KEPT_SIZES = 32


class AnchorCache:
    """Make the anchors of L levels as a generator of detectron2 does, and keep them.

    That of detectron2 copies two lines of numbers for each level to the device; here they are made there.

    Args:
        generator: The generator, in a model any of its registry.
    """

    def __init__(self, generator: nn.Module) -> None:
        self._generator: Any = generator
        self._kept: OrderedDict[tuple, list[Boxes]] = OrderedDict()

    def __call__(self, features: Sequence[Tensor]) -> list[Boxes]:
        """Return L sets of anchors of maps (N, C, Hl, Wl); they are shared and must not be changed."""
        device = features[0].device
        key = (device, *(tuple(feature.shape[-2:]) for feature in features))
        anchors = self._kept.get(key)
        if anchors is None:
            # What is made for a test may be used in training.
            with torch.inference_mode(False), torch.no_grad():
                anchors = self._kept[key] = self._make(features)
            while len(self._kept) > _KEPT_SIZES:
                self._kept.popitem(last=False)
        return list(anchors)

    def _make(self, features: Sequence[Tensor]) -> list[Boxes]:
        generator = self._generator
        if type(generator) is not DefaultAnchorGenerator:
            return generator(features)
        levels = zip(features, generator.strides, generator.cell_anchors, strict=True)
        return [_shift(feature, stride, generator.offset, cell) for feature, stride, cell in levels]


def _shift(feature: Tensor, stride: int, offset: float, cell: Tensor) -> Boxes:
    """Shift the anchors (A, 4) of a cell to each location of a map."""
    y, x = (
        torch.arange(offset * stride, length * stride, stride, dtype=torch.float32, device=feature.device)
        for length in feature.shape[-2:]
    )
    row, column = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((column, row, column, row), dim=-1).view(-1, 1, 4)
    return Boxes((shifts + cell).view(-1, 4))
