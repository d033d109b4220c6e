"""Choose the boxes that train the mask head, and cut their target masks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.matcher import Matcher
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks, pairwise_iou
from torch import Tensor

from ...device_copies import to_device
from .mask_pooling import mask_frames

# A proposal trains the mask of the box that it overlaps the most, from this IoU on.
_MATCHER = Matcher([0.5], [0, 1])


class MatchedRegions(NamedTuple):
    """Boxes of one image that have a mask to learn.

    Attributes:
        boxes: (K, 4) XYXY, half-open, proposals first, then annotated boxes.
        matched_idxs: (K,) int64, index of the annotated box whose mask each box learns.
    """

    boxes: Tensor
    matched_idxs: Tensor


@torch.no_grad()
def match_proposals(proposals: Boxes, instances: Instances, usable: Tensor, max_proposals: int) -> MatchedRegions:
    """Choose the boxes of one image that train the mask head, and the mask of each.

    Args:
        proposals: Predicted boxes, best first; there may be none.
        instances: Has ``gt_boxes``, M >= 0 boxes in the same frame.
        usable: (M,) bool, the boxes that have a mask and a phrase. A proposal that fits another box best is left out.
        max_proposals: The most proposals to keep; the first that match are kept.

    Source: the official mask head, without a limit; ``gt_boxes`` are added to the proposals there too.
    """
    matches, is_match = _MATCHER(pairwise_iou(instances.gt_boxes, proposals))
    kept = is_match == 1
    kept[kept.clone()] = usable[matches[kept]]
    rows = kept.nonzero().squeeze(1)[:max_proposals]
    own = usable.nonzero().squeeze(1)
    boxes = torch.cat((proposals.tensor[rows], instances.gt_boxes.tensor[own]))
    return MatchedRegions(boxes, torch.cat((matches[rows], own)))


@torch.no_grad()
def crop_masks(masks: PolygonMasks | BitMasks, regions: MatchedRegions, resolution: int) -> Tensor:
    """Cut the masks of regions to their frames.

    Args:
        masks: Masks of the M annotated boxes of an image, in the frame of the boxes.
        regions: Regions of the same image, on the CPU.
        resolution: Pixels along a side of the result.

    Returns:
        (K, resolution, resolution) float, 0 or 1, on the device of the masks; polygons are on the CPU.

    Source: the official code draws the polygons in a frame scaled to the resolution, which is what detectron2 does.
    """
    frames = mask_frames(regions.boxes)
    if isinstance(masks, PolygonMasks):
        cut = masks[regions.matched_idxs].crop_and_resize(frames, resolution)
        return cut.to(frames)
    # As ``BitMasks.crop_and_resize``, which needs a copy of the whole bitmap for each of its regions.
    used, rows = regions.matched_idxs.unique(return_inverse=True)
    used, rois = to_device([used, torch.cat((rows[:, None], frames), dim=1)], masks.device)
    align = ROIAlign((resolution, resolution), 1.0, 0, aligned=True)
    bitmaps = masks.tensor[used]
    shares = align(bitmaps[:, None].to(rois.dtype), rois)  # (K, 1, resolution, resolution)
    return (shares[:, 0] >= 0.5).to(rois.dtype)
