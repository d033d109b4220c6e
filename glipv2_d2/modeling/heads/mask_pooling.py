"""Pool the features under boxes, from which masks are predicted."""

from __future__ import annotations

import math

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn

from ...device_copies import to_device
from ...errors import InputError

# A box of this size, in pixels, belongs to the level of this stride, 2^4 (arXiv 1612.03144, Eq. 1).
_CANONICAL_SIZE = 224
_CANONICAL_LEVEL = 4


def mask_frames(boxes: Tensor) -> Tensor:
    """Return the frames that features are pooled from, and that the targets of masks are cut to.

    Args:
        boxes: (..., 4) XYXY, half-open, pixels.

    Returns:
        (..., 4) XYXY from edge to edge: a frame ends one pixel before its box, but is at least one pixel wide and high.
        A new tensor.

    Source: when the official code pools features and cuts targets, it reads the coordinates of the first and the last
    pixel of a box as edges. When it pastes masks, it does not: there the last pixel belongs to the box.
    """
    first, last = boxes[..., :2], boxes[..., 2:] - 1
    return torch.cat((first, torch.maximum(last, first + 1)), dim=-1)


class RegionPooler(nn.Module):
    """Sample the features under boxes at a fixed resolution, each from the level for its size.

    Args:
        strides: L strides of the levels, powers of 2, each twice the one before.
        resolution: S, cells along a side.
        sampling_ratio: Samples along a side of a cell; 0: as many as it has feature pixels, rounded up.

    Raises:
        InputError: The strides are not as above.

    Source: Mask R-CNN (arXiv 1703.06870) and its first ROIAlign, whose samples lie half a feature pixel right of and
    below those of the "aligned" one, as in the official code. detectron2's ``ROIPooler`` reads size and position from
    one set of boxes; half-open coordinates need two.
    """

    def __init__(self, *, strides: list[int], resolution: int, sampling_ratio: int = 0):
        super().__init__()
        levels = [math.log2(stride) for stride in strides]
        self.min_level, self.max_level = round(levels[0]), round(levels[-1])
        if levels != list(range(self.min_level, self.max_level + 1)):
            raise InputError(f"RegionPooler: expected powers of 2, each twice the one before, found strides {strides}")
        self.resolution = resolution
        self.aligns = nn.ModuleList(
            ROIAlign((resolution, resolution), 1 / stride, sampling_ratio, aligned=False) for stride in strides
        )

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Pool the boxes of N images.

        Args:
            features: L levels (N, C, Hl, Wl).
            boxes: N tensors (K, 4) XYXY, half-open, pixels of the padded input; on a device the CPU waits for the
                number of boxes of each level, unless they are on the CPU.

        Returns:
            (sum of K, C, S, S), image after image.
        """
        frames, levels = mask_frames(torch.cat(boxes)), self.assign_levels(boxes)
        image = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(one) for one in boxes]))
        (image,) = to_device([image], frames.device)
        order = levels.argsort(stable=True)
        counts = (levels[:, None] == torch.arange(len(features), device=levels.device)).sum(dim=0).tolist()
        regions = torch.cat((image[:, None].to(frames), frames), dim=1)[order]  # (sum K, 5)
        regions, back = to_device([regions, order.argsort()], features[0].device)
        # In single precision: ROIAlign brings the boxes to the type of the features, and half a pixel is lost above
        # 1024 in half precision.
        levels_and_regions = zip(features, self.aligns, regions.split(counts), strict=True)
        pooled = [align(feature.float(), own).to(feature.dtype) for feature, align, own in levels_and_regions]
        return torch.cat(pooled)[back]

    def assign_levels(self, boxes: list[Tensor]) -> Tensor:
        """Return the index of the level of each box, (sum of K,) int64 in [0, L)."""
        return assign_boxes_to_levels(
            [Boxes(image) for image in boxes], self.min_level, self.max_level, _CANONICAL_SIZE, _CANONICAL_LEVEL
        )
